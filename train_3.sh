#!/usr/bin/env bash
# Pseudo labels from SAM masks and the products of train_2.sh (ARCH=resnet50: those of train_1.sh):
# a sweep of the threshold on the validation split, then the training split at the chosen threshold.
# The settings are documented in scripts/common.sh; arguments (--set stage.field=value) reach every stage.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/scripts/common.sh"

uss_parallel pseudo-labels --arch "${ARCH:-resnet18}" "$@"
