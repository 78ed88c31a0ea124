#!/usr/bin/env bash
# setup.sh [run|test|judge]: makes .venv and installs into it, from the lock of its Python and with
# hashes, what running (default), testing or judging the project needs.
#   PYTHON  the interpreter of a new .venv   (default the first fit one on PATH)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
TIER="${1:-run}"

# Jittor 1.3.11 and its numpy have builds for these.
PYTHONS="Python 3.10 to 3.12"
usable() { "$1" -c 'import sys, venv, ensurepip; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null; }
if [ ! -x .venv/bin/python ]; then
    for candidate in ${PYTHON:-python3 python3.12 python3.11 python3.10}; do
        if usable "$candidate"; then
            echo "setup: making .venv with $("$candidate" --version)"
            "$candidate" -m venv .venv
            break
        fi
    done
fi
if [ ! -x .venv/bin/python ]; then
    echo "error: no $PYTHONS with the venv module was found; install one (Debian: apt-get install python3-venv python3-dev) or name it: PYTHON=/path/to/python make setup" >&2
    exit 2
fi
lock="requirements/lock-py$(.venv/bin/python -c 'import sys; print(*sys.version_info[:2], sep="")')"
if [ ! -f "$lock.txt" ]; then
    echo "error: expected $PYTHONS in .venv, found $(.venv/bin/python --version); make another: rm -rf .venv && make setup" >&2
    exit 2
fi

# install FILE [PIP-OPTION...]
install() {
    echo "setup: installing $1"
    .venv/bin/python -m pip install --quiet --disable-pip-version-check -r "$@"
}
case "$TIER" in
    run) install "$lock.txt" --require-hashes ;;
    test) install "$lock-test.txt" --require-hashes ;;
    judge)
        install "$lock-judge.txt" --require-hashes
        install requirements/torch.txt
        # What the official packages ask for would bring a CUDA build of PyTorch.
        install requirements/official.txt --require-hashes --no-deps
        ;;
    *)
        echo "error: expected run, test or judge, found $TIER" >&2
        exit 2
        ;;
esac
touch ".venv/.$TIER.done"
