#!/bin/sh
# Breaks the CPU ops one at a time (zeros and an early return in a copy of the sources) and tells which tests turn red.
# A break that no test sees ends with exit code 1. Half a minute an op on two cores, a quarter of an hour in all.
#
#   tools/verify/mutation_check.sh           every op
#   tools/verify/mutation_check.sh linear    this op only; more may be named
set -eu
cd "$(dirname "$0")/../.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT INT TERM
mkdir -p "$work/Sources" "$work/Tests"
cp -R Sources/CMartletVectors Sources/MartletCore Sources/MartletCPU "$work/Sources"
cp -R Tests/CPUTests Tests/MartletTestSupport "$work/Tests"
cp -R Sources/MartletCPU "$work/whole"
cat >"$work/Package.swift" <<'SWIFT'
// swift-tools-version: 6.1
import PackageDescription
let strict: [SwiftSetting] = [
    .swiftLanguageMode(.v6), .enableUpcomingFeature("ExistentialAny"),
    .enableUpcomingFeature("InternalImportsByDefault"), .enableUpcomingFeature("MemberImportVisibility"),
]
let package = Package(
    name: "martlet",
    targets: [
        .target(name: "MartletCore", swiftSettings: strict, linkerSettings: [.linkedLibrary("m")]),
        .target(name: "CMartletVectors"),
        .target(name: "MartletCPU", dependencies: ["MartletCore", "CMartletVectors"], swiftSettings: strict),
        .target(
            name: "MartletTestSupport", dependencies: ["MartletCore"], path: "Tests/MartletTestSupport",
            swiftSettings: strict),
        .testTarget(
            name: "CPUTests", dependencies: ["MartletCPU", "MartletCore", "MartletTestSupport"], swiftSettings: strict),
    ])
SWIFT

# op | what stands at the start of its body
mutations='
zero|return
set|zero(y_N); return
add|return
embedding|zero(x_TH); return
embeddingBackward|return
rmsNorm|zero(y_TH); return
rmsNormBackward|return
linear|if !adds { zero(y_TO) }; return
linearBackward|if let dx_TI, !adds { zero(dx_TI) }; return
rotate|zero(y_TND); return
rotateBackward|zero(dx_TND); return
attention|zero(o_TQD); zero(logSumExp_TQ); return
attentionBackward|zero(dq_TQD); return
route|for x in [routing.probability_TE, routing.logSumExp_T, routing.expert_TK, routing.weight_TK, routing.order_R, routing.offset_E1] { zero(x) }; return
routeBackward|zero(dlogits_TE); return
experts|zero(gateUp_RF); return
expertsBackward|zero(dweight_TK); return
swiGLU|zero(y_TF); return
swiGLUBackward|zero(dgate_TF); zero(dup_TF); return
crossEntropy|zero(loss_T); if let dx_TH { zero(dx_TH) }; return
sumsOfSquares|return Array(repeating: 0, count: tensors.count)
split|return
isFinite|return true
adamW|return
'

tests() { # log -> exit code of the tests
    timeout 300 swift test --package-path "$work" -c release >"$1" 2>&1
}

echo "the ops as they are"
tests "$work/log" || { tail -n 20 "$work/log"; echo "the tests fail without any break" >&2; exit 1; }

survivors=""
checked=0
while IFS='|' read -r op statements; do
    [ -n "$op" ] || continue
    if [ $# -gt 0 ]; then case " $* " in *" $op "*) ;; *) continue ;; esac; fi
    rm -rf "$work/Sources/MartletCPU"
    cp -R "$work/whole" "$work/Sources/MartletCPU"
    file=$(grep -l "package func $op(" -r "$work/Sources/MartletCPU" | head -n 1)
    awk -v op="$op" -v statements="$statements" '
        { print }
        !found && index($0, "package func " op "(") { inside = 1; found = 1 }
        inside && / \{$/ { print "        " statements; inside = 0 }
    ' "$file" >"$work/mutated"
    mv "$work/mutated" "$file"
    checked=$((checked + 1))
    if tests "$work/log"; then
        echo "$op: NO TEST TURNED RED"
        survivors="$survivors $op"
    elif grep -q "error: .*\.swift\|: error:" "$work/log" && ! grep -q "Test run" "$work/log"; then
        grep -m 3 "error:" "$work/log" || true
        echo "$op: the broken op does not compile; correct this script" >&2
        exit 1
    else
        red=$(sed -n 's/.*Test \([A-Za-z0-9]*\)(.*) .*failed after.*/\1/p' "$work/log" | sort -u | tr '\n' ' ')
        echo "$op: ${red:-the tests crashed, or ran past 300 s}"
    fi
done <<EOF
$mutations
EOF
[ -z "$survivors" ] || { echo "not seen by any test:$survivors" >&2; exit 1; }
[ "$checked" -gt 0 ] || { echo "no such op: $*" >&2; exit 1; }
