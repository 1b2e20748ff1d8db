#!/bin/sh
# Holds whole models on a GPU against what transformers and PEFT compute with them, and runs on it against runs on the CPU.
#
#     tools/verify/gpu_goldens.sh [MARTLET]            default: .build/release/martlet; DEVICE=cpu tries the script itself
#
# float32 is held against the committed goldens. For bfloat16 goldens are made (into .goldens, which git ignores) whose routers choose by
# a wide margin, so that rounding changes no choice: every committed case, and wider ones that take the tensor cores' kernels; float16
# too, by letting the GPU stand in for one of compute capability 7.5. That
# needs a Python with tools/goldens/requirements.txt (JUDGE, default .local/judge/bin/python); without it only float32 is examined.
set -eu
cd "$(dirname "$0")/../.."
martlet=${1:-.build/release/martlet}
judge=${JUDGE:-.local/judge/bin/python}
failed=0

examine() { # DEVICE GOLDENS [EXPERTS ATTENTION [CAPABILITY]]
    echo "== $2 on $1, experts: ${3:-auto}, attention: ${4:-auto}${5:+, as compute capability $5}"
    MARTLET_MOE_BACKEND=${3:-auto} MARTLET_ATTENTION=${4:-auto} MARTLET_CAPABILITY=${5:-} "$martlet" doctor --goldens "$2" --device "$1" || failed=1
}

make_goldens() { # FOLDER OPTIONS...
    folder=$1
    shift
    [ -e "$folder/MANIFEST.json" ] || "$judge" tools/goldens/model.py --router-margin 0.05 --out "$folder" "$@"
}

examine "${DEVICE:-cuda-fp32}" Tests/ModelTests/ModelGoldens
if "$judge" -c 'import transformers, peft' 2>/dev/null; then
    make_goldens .goldens/margin --sequence 6
    make_goldens .goldens/rank16 --sequence 6 --rank 16 --case moe_seed0 --case moe_unnormalized --case moe_every_second \
        --case moe_tied --set hidden_size=64 --set head_dim=64 --set moe_intermediate_size=40 --set intermediate_size=72 \
        --set vocab_size=64
    make_goldens .goldens/rank8 --sequence 6 --rank 8 --case moe_rslora --case dense_untied --set hidden_size=96 \
        --set head_dim=128 --set moe_intermediate_size=40 --set intermediate_size=72 --set vocab_size=64 \
        --set num_attention_heads=2 --set num_key_value_heads=1
    for goldens in .goldens/margin .goldens/rank16 .goldens/rank8; do
        examine "${DEVICE:-cuda}" "$goldens"
        examine "${DEVICE:-cuda}" "$goldens" portable flash
        examine "${DEVICE:-cuda}" "$goldens" loop plain
        examine "${DEVICE:-cuda}" "$goldens" auto auto 7.5
    done
else
    echo "no goldens for bfloat16: $judge has no transformers and peft (tools/goldens/requirements.txt)"
fi
python3 tools/verify/gpu_training.py --martlet "$martlet" --devices "${DEVICE:-cuda-fp32,cuda,cuda@7.5}" || failed=1
[ "$failed" = 0 ] && echo "all sound" || { echo "something is BROKEN" >&2; exit 1; }
