#!/usr/bin/env bash
# PASS with ResNet50: self-supervised pretraining, pixel attention, clustering.
# The settings are documented in scripts/common.sh; arguments (--set stage.field=value) reach every stage.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/scripts/common.sh"

uss_parallel pretrain --arch resnet50 "$@"
uss_parallel pixel-attention --arch resnet50 "$@"
uss_single cluster --arch resnet50 "$@"
