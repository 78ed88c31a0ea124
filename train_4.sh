#!/usr/bin/env bash
# Fine-tunes a ResNet50-UPerNet on the pseudo labels, then predicts the test split and zips it.
# SPLIT names another split. The settings are documented in scripts/common.sh; arguments
# (--set stage.field=value) reach every stage.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/scripts/common.sh"

uss_parallel finetune --arch resnet50 "$@"
uss_parallel predict --arch resnet50 --split "${SPLIT:-auto}" "$@"
