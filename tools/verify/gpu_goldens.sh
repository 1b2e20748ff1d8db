#!/bin/bash
# Holds whole models on a GPU against what transformers and PEFT compute with them, and runs on it against runs on the CPU.
#
#     tools/verify/gpu_goldens.sh [MARTLET]            default: .build/release/martlet; DEVICE=cpu tries the script itself
#
# float32 is held against the committed goldens. For bfloat16 goldens are made (into GOLDENS, default .goldens, which git ignores; 5 minutes)
# whose routers choose by a wide margin, so that rounding changes no choice, and in which transformers itself loses little in bfloat16:
# every committed case, and wider ones that take the tensor cores' kernels; float16 too, by letting the GPU stand in for one of compute capability 7.5. Making them needs a Python with
# tools/goldens/requirements.txt (JUDGE, default .local/judge/bin/python); without it those that are there are examined, and only
# float32 if there are none. All at once, JOBS at a time, and one whose adapter was made zeros, which must not pass; then
# `gpu_training.py`.
set -eu
martlet=$(realpath "${1:-$(dirname "$0")/../../.build/release/martlet}")
cd "$(dirname "$0")/../.."
goldens=${GOLDENS:-.goldens}
judge=${JUDGE:-.local/judge/bin/python}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT INT TERM
export martlet work

make_goldens() { # NAME OPTIONS...
    folder=$goldens/$1
    shift
    grep -qs '"bfloat16": {' "$folder/MANIFEST.json" || "$judge" tools/goldens/model.py --router-margin 0.05 --out "$folder" "$@"
}

examine() { # DEVICE GOLDENS EXPERTS ATTENTION [CAPABILITY]
    name="$2 on $1, experts: $3, attention: $4${5:+, as compute capability $5}"
    MARTLET_MOE_BACKEND=$3 MARTLET_ATTENTION=$4 MARTLET_CAPABILITY=${5:-} "$martlet" doctor --goldens "$2" --device "$1" \
        >"$work/$$" 2>&1 || echo "$name" >>"$work/broken"
    { echo "== $name"; cat "$work/$$"; } >"$work/$$.told"
    cat "$work/$$.told"
}

must_fail() { # GOLDEN: with an adapter of zeros
    cp -r "$1" "$work/wrong"
    python3 - "$work/wrong/adapter/adapter_model.safetensors" <<'PYTHON'
import json, struct, sys
with open(sys.argv[1], "r+b") as file:
    start = 8 + struct.unpack("<Q", file.read(8))[0]
    for name, entry in json.loads(file.read(start - 8)).items():
        if "lora_B" in name:
            begin, end = entry["data_offsets"]
            file.seek(start + begin)
            file.write(bytes(end - begin))
PYTHON
    "$martlet" doctor --goldens "$work/wrong" --device "${DEVICE:-cuda}" >"$work/wrong.told" 2>&1 &&
        echo "an adapter of zeros passed" >>"$work/broken"
    grep -q "^BROKEN.*adapted logits [^;]* may be" "$work/wrong.told" || { cat "$work/wrong.told"; echo "what fails with an adapter of zeros" >>"$work/broken"; }
}
export -f examine

if "$judge" -c 'import transformers, peft' 2>/dev/null; then
    make_goldens margin --sequence 6
    make_goldens rank16 --sequence 6 --rank 16 --case moe_seed0 --case moe_unnormalized --case moe_every_second \
        --case moe_tied --set hidden_size=64 --set head_dim=64 --set moe_intermediate_size=40 --set intermediate_size=72 \
        --set vocab_size=64
    make_goldens rank8 --sequence 6 --rank 8 --alpha 8 --case moe_rslora --case dense_untied --set hidden_size=96 \
        --set head_dim=128 --set moe_intermediate_size=40 --set intermediate_size=72 --set vocab_size=64 \
        --set num_attention_heads=2 --set num_key_value_heads=1
fi
{
    echo "${DEVICE:-cuda-fp32} Tests/ModelTests/ModelGoldens auto auto"
    for manifest in "$goldens"/*/MANIFEST.json; do
        [ -e "$manifest" ] || continue
        for way in "auto auto" "portable flash" "loop plain" "auto auto 7.5"; do echo "${DEVICE:-cuda} $(dirname "$manifest") $way"; done
    done
} >"$work/list"
[ "$(wc -l <"$work/list")" -gt 1 ] || echo "no goldens for bfloat16: $judge has no transformers and peft (tools/goldens/requirements.txt)"
xargs -P "${JOBS:-4}" -L 1 bash -c 'examine "$@"' _ <"$work/list"
python3 tools/verify/gpu_training.py --martlet "$martlet" --devices "${DEVICE:-cuda-fp32,cuda,cuda@7.5}" || echo "gpu_training.py" >>"$work/broken"
wrong=$(ls -d "$goldens"/*/moe_rslora 2>/dev/null | head -n 1)
must_fail "${wrong:-Tests/ModelTests/ModelGoldens/moe_rslora}"
[ ! -e "$work/broken" ] && echo "all sound" || { echo "BROKEN:" >&2; cat "$work/broken" >&2; exit 1; }
