#!/bin/bash
# compute-sanitizer over our own kernels, op by op: memory errors, races in shared memory, wrong barriers. Needs a GPU.
#
#   tools/verify/sanitize.sh [MARTLET] [OP...]        default: .build/release/martlet, every op
#   JOBS=8 LIMIT=300 TOOLS="memcheck synccheck racecheck" SANITIZER=compute-sanitizer
#
# `martlet doctor --gpu --only OP` runs each op's cases, forward and backward, in every way that the op can be computed, with no
# kernel of NVIDIA's libraries (MARTLET_LIBRARIES=off): racecheck ends where cuBLASLt multiplies. It looks at shared memory only:
# what blocks hand on through global memory (the turns of attention's backward passes) no tool sees; that the same input gives the
# same bytes is what speaks for those. Flash attention takes it minutes, so there it runs the shortest cases. It does not follow all
# that orders accesses, so it gets a form of the kernels in which every thread arrives for itself (MARTLET_RACECHECK=on, sm90.cuh).
# A line an op, way and tool; exit status 1 if anything was found or did not finish in LIMIT seconds. Kernels are compiled before, into
# MARTLET_CACHE (default: a folder of its own).
set -u
repo=$(cd "$(dirname "$0")/../.." && pwd)
martlet=$(realpath "${1:-$repo/.build/release/martlet}")
[ $# -eq 0 ] || shift
sanitizer=${SANITIZER:-$(command -v compute-sanitizer || ls /usr/local/cuda/bin/compute-sanitizer 2>/dev/null)}
[ -x "$martlet" ] && [ -n "$sanitizer" ] || { echo "sanitize.sh: needs martlet ($martlet) and compute-sanitizer" >&2; exit 2; }
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export MARTLET_LIBRARIES=off MARTLET_CACHE=${MARTLET_CACHE:-$work/cache} LIMIT=${LIMIT:-300} martlet sanitizer work
kernels=$(sed -n 's/^extern "C" __global__.* \([a-z_0-9]*\)(.*/\1/p' "$repo"/Sources/CMartletKernels/kernels/*.cu)
[ "$(echo "$kernels" | wc -l)" = "$(grep -h '^extern "C" __global__' "$repo"/Sources/CMartletKernels/kernels/*.cu | wc -l)" ] ||
    { echo "sanitize.sh: a kernel's name does not stand in the line of its __global__" >&2; exit 2; }
export ours="regex=^($(echo "$kernels" | sort -u | paste -sd '|'))\$"

# op attention experts
ways() {
    for op in adamW crossEntropy elementwise embedding linear rmsNorm rotate route swiGLU; do echo "$op flash auto"; done
    for experts in hopper portable loop; do echo "experts flash $experts"; done
    for attention in flash plain hopper; do echo "attention $attention auto"; done
}

examine() { # TOOL OP ATTENTION EXPERTS NUMBER; TOOL none: only compile, and ask whether the way is had
    tool=$1 op=$2 way="$2 $3 $4" number=${5:-0} name="$2-$3-$4" log=$work/$1-$2-$3-$4
    [ "$tool-$name" != racecheck-attention-flash-auto ] || op="attention T193"
    set -- env MARTLET_ATTENTION="$3" MARTLET_MOE_BACKEND="$4" "$martlet" doctor --gpu --only "$op"
    if [ "$tool" = none ]; then
        timeout "$LIMIT" "$@" >"$log" 2>&1
        grep -q 'in  *MARTLET_\|none that Martlet' "$log" && echo "not had here: $name" || echo "$way" >>"$work/had"
        return
    fi
    [ "$tool" != racecheck ] || export MARTLET_RACECHECK=on
    began=$(date +%s)
    timeout "$LIMIT" "$sanitizer" --tool "$tool" --kernel-name "$ours" --port $((40000 + 16 * number)) --error-exitcode 9 "$@" >"$log" 2>&1
    status=$? seconds=$(($(date +%s) - began))
    summary=$(grep -E '= (ERROR|RACECHECK) SUMMARY' "$log" | tail -n 1 | sed 's/.*SUMMARY: //')
    checks=$(grep -c '^ok .* on the GPU' "$log")
    if [ "$status" = 124 ]; then verdict="BROKEN" summary="not finished, $checks checks done"
    elif [ "$status" = 0 ] && [ "$checks" -ge 2 ] && [[ "$summary" == 0\ * ]]; then verdict="ok    "
    else verdict=BROKEN; fi
    echo "$verdict $tool $name: $summary, $seconds s"
    [ "$verdict" != BROKEN ] || { echo "$tool-$name" >>"$work/broken"
        grep -E '^BROKEN|========= .*(Error|Warning|Invalid|hazard|arrier|Program|error)|=========     at ' "$log" | sort | uniq -c | sort -rn | head -n 12 | cut -c1-220; }
}
export -f examine

for op in "${@:-.*}"; do
    ways | grep -E "^$op( |$)" || { echo "sanitize.sh: there is no '$op' among:" >&2; ways >&2; exit 2; }
done >"$work/ways"
xargs -P "${JOBS:-8}" -L 1 bash -c 'examine none "$@"' _ <"$work/ways" | grep '^not had' || true
[ -s "$work/had" ] || { echo "sanitize.sh: no GPU" >&2; exit 2; }
n=0
for tool in ${TOOLS:-memcheck synccheck racecheck}; do
    while read -r way; do n=$((n + 1)); echo "$tool $way $n"; done <"$work/had"
done | xargs -P "${JOBS:-8}" -L 1 bash -c 'examine "$@"' _
[ ! -e "$work/broken" ] && echo "all sound" || { echo "$(wc -l <"$work/broken") BROKEN" >&2; exit 1; }
