# Sourced by scripts/pass50.sh, scripts/pass300.sh and scripts/pass919.sh: the four steps of PASS.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

arch=()
if [ -n "${ARCH:-}" ]; then
    arch=(--arch "$ARCH")
fi
# Step 1: pretraining.
uss_parallel pretrain ${arch[@]+"${arch[@]}"} "$@"
# Step 2: pixel attention, clusters, the threshold of the validation masks, pseudo labels.
uss_parallel pixel-attention ${arch[@]+"${arch[@]}"} "$@"
uss_single cluster ${arch[@]+"${arch[@]}"} "$@"
uss_parallel pseudo-labels ${arch[@]+"${arch[@]}"} "$@"
# Step 3: fine-tuning.
uss_parallel finetune ${arch[@]+"${arch[@]}"} "$@"
# Step 4: predictions, match and archive.
uss_parallel predict --split "${SPLIT:-auto}" ${arch[@]+"${arch[@]}"} "$@"
