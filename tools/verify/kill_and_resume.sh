#!/bin/sh
# A run that is killed (kill -9) at random moments and resumed ends with the same bytes as one that never was.
#
#   [OPTIM=adamw_8bit] [DEVICE=cuda] [STD=2] tools/verify/kill_and_resume.sh MARTLET [KILLS]
#
# The first kill comes while the run starts, the others within 30 ms after a checkpoint that was drawn. STD is the deviation of the
# model's weights: with 2 and MARTLET_CAPABILITY=7.5 (float16) steps overflow, and the loss scale has to survive as well.
set -eu
martlet=$1
kills=${2:-6}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT INT TERM
here=$(cd "$(dirname "$0")/../.." && pwd)
steps=60

"$martlet" init "$work/model" --layers 2 --hidden 48 --heads 4 --kv-heads 2 --head-dim 12 --experts 4 \
    --experts-per-token 2 --expert-inner 24 --vocab 400 --context 256 ${STD:+--std "$STD"} \
    --text "$here/examples/data/tiny-text.txt" >/dev/null
cat >"$work/recipe.yaml" <<YAML
model: $work/model
dataset: [$here/examples/data/birds.jsonl]
eval_fraction: 0.1
max_length: 192
per_device_train_batch_size: 2
max_steps: $steps
save_steps: 3
save_total_limit: 3
eval_steps: 10
load_best_model_at_end: true
lora_r: 4
lora_dropout: 0.1
optim: ${OPTIM:-adamw}
device: ${DEVICE:-auto}
seed: 3
YAML
"$martlet" train "$work/recipe.yaml" --set output_dir="$work/whole" >/dev/null

random() { # below $1
    od -An -N2 -tu2 /dev/urandom | awk -v n="$1" '{ print $1 % n }'
}
reached() { # the last checkpoint's step
    ls "$work/killed" 2>/dev/null | sed -n 's/^checkpoint-//p' | sort -n | tail -n 1 | grep . || echo 0
}
landed="" round=0
while [ "$round" -lt "$kills" ]; do
    "$martlet" train "$work/recipe.yaml" --set output_dir="$work/killed" >/dev/null 2>&1 &
    child=$!
    if [ "$round" = 0 ]; then
        sleep "0.$(printf %03d "$(random 700)")"
    else
        target=$((steps * (round - 1) / (kills - 1) + 1 + $(random $((steps / kills)))))
        while kill -0 "$child" 2>/dev/null && [ "$(reached)" -lt "$target" ]; do sleep 0.002; done
        sleep "0.0$(printf %02d "$(random 30)")"
    fi
    # A kill that comes after the end shows nothing.
    kill -9 "$child" 2>/dev/null || true
    wait "$child" 2>/dev/null && status=0 || status=$?
    [ "$status" != 137 ] || landed="$landed $(reached)"
    round=$((round + 1))
done
[ "$(echo "$landed" | wc -w)" -ge $((kills / 2)) ] || { echo "only these kills met a run, after step:$landed" >&2; exit 1; }
"$martlet" train "$work/recipe.yaml" --set output_dir="$work/killed" >/dev/null

for file in adapter/adapter_model.safetensors adapter/adapter_config.json checkpoint-$steps/parameters.safetensors \
    checkpoint-$steps/optimizer.safetensors; do
    cmp "$work/whole/$file" "$work/killed/$file"
done
echo "killed after steps$landed: adapter and optimizer state equal byte for byte$(
    tr -d ' \n' <"$work/killed/checkpoint-$steps/trainer_state.json" | sed -n 's/.*"loss_scale":{[^}]*"value":\([0-9.]*\).*/, loss scale \1/p')"
