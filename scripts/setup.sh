#!/usr/bin/env bash
# setup.sh [REQUIREMENTS [PIP-OPTION...]]: makes .venv with the pinned dependencies of a requirements file
# (default: run time and tests).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
REQUIREMENTS="${1:-requirements-test.txt}"

# Jittor 1.3.11 and its pinned numpy have builds for Python 3.9 to 3.12.
usable() { "$1" -c 'import sys, venv, ensurepip; sys.exit(not (3, 9) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null; }
if [ ! -x .venv/bin/python ]; then
    for candidate in ${PYTHON:-python3 python3.12 python3.11 python3.10 python3.9}; do
        if usable "$candidate"; then
            echo "setup: making .venv with $("$candidate" --version)"
            "$candidate" -m venv .venv
            break
        fi
    done
fi
if [ ! -x .venv/bin/python ]; then
    echo "error: no Python 3.9 to 3.12 with the venv module was found; install one (Debian: apt-get install python3-venv python3-dev) or name it: PYTHON=/path/to/python make setup" >&2
    exit 2
fi
echo "setup: installing $REQUIREMENTS"
.venv/bin/python -m pip install --quiet --disable-pip-version-check -r "$REQUIREMENTS" "${@:2}"
touch ".venv/.$REQUIREMENTS.done"
