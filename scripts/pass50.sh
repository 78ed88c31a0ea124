#!/usr/bin/env bash
# PASS's own four steps on ImageNet-S50: no masks of another model, a head of one layer.
# The steps are those of scripts/pass_steps.sh. ARCH names another trunk, SPLIT another split to
# predict; the other settings are documented in scripts/common.sh. Arguments (--set
# stage.field=value) reach every stage.
set -euo pipefail
PRESET="${PRESET:-pass50}" DATA="${DATA:-/data/ImageNetS50}"
source "$(dirname "${BASH_SOURCE[0]}")/pass_steps.sh"
