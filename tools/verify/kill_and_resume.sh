#!/bin/sh
# A run that is killed (kill -9) at random moments and resumed ends with the same bytes as one that never was.
#
#   [OPTIM=adamw_8bit] tools/verify/kill_and_resume.sh MARTLET [KILLS]
set -eu
martlet=$1
kills=${2:-6}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT INT TERM
here=$(cd "$(dirname "$0")/../.." && pwd)

"$martlet" init "$work/model" --layers 2 --hidden 48 --heads 4 --kv-heads 2 --head-dim 12 --experts 4 \
    --experts-per-token 2 --expert-inner 24 --vocab 400 --context 256 --text "$here/examples/data/tiny-text.txt" >/dev/null
cat >"$work/recipe.yaml" <<YAML
model: $work/model
dataset: [$here/examples/data/birds.jsonl]
eval_fraction: 0.1
max_length: 192
per_device_train_batch_size: 2
max_steps: 60
save_steps: 3
save_total_limit: 3
eval_steps: 10
load_best_model_at_end: true
lora_r: 4
lora_dropout: 0.1
optim: ${OPTIM:-adamw}
seed: 3
YAML
"$martlet" train "$work/recipe.yaml" --set output_dir="$work/whole" >/dev/null

killed=0
while [ "$killed" -lt "$kills" ]; do
    "$martlet" train "$work/recipe.yaml" --set output_dir="$work/killed" >/dev/null 2>&1 &
    child=$!
    sleep "0.$(od -An -N2 -tu2 /dev/urandom | awk '{ printf "%03d", 150 + $1 % 700 }')"
    kill -9 "$child" 2>/dev/null || true
    wait "$child" 2>/dev/null || true
    killed=$((killed + 1))
done
"$martlet" train "$work/recipe.yaml" --set output_dir="$work/killed" >/dev/null

for file in adapter/adapter_model.safetensors adapter/adapter_config.json checkpoint-60/parameters.safetensors \
    checkpoint-60/optimizer.safetensors; do
    cmp "$work/whole/$file" "$work/killed/$file"
done
echo "after $killed kills: adapter and optimizer state equal byte for byte"
