#!/usr/bin/env bash
# lock.sh [UV-OPTION...]: writes requirements/lock-py*.txt from the lists of names, and the pins of
# requirement.yaml. Versions stay as they are where they still fit; --upgrade takes the newest.
#   PYTHON  an interpreter that can make a virtual environment   (default python3)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work"
"$work/bin/python" -m pip install --quiet --disable-pip-version-check uv

# compile VERSION NAME [UV-OPTION...] LIST...: what NAME's lists need, at the versions of the locks before it.
compile() {
    local version="$1" lock="requirements/lock-py${1/./}$2.txt"
    shift 2
    echo "lock: $lock"
    "$work/bin/uv" pip compile --quiet --generate-hashes --no-annotate --python-version "$version" \
        --python-platform x86_64-manylinux_2_28 --custom-compile-command "make lock" \
        --output-file "$lock" "$@"
}
for version in 3.10 3.11 3.12; do
    run="requirements/lock-py${version/./}.txt"
    lists=(requirements.txt requirements/convert.txt)
    compile "$version" "" "$@" "${lists[@]}"
    lists+=(requirements/test.txt)
    compile "$version" -test "$@" --constraint "$run" "${lists[@]}"
    lists+=(requirements/judge.txt)
    compile "$version" -judge "$@" --constraint "${run%.txt}-test.txt" "${lists[@]}"
done

# The conda environment has Python 3.11.
sed -nE 's/^([a-z0-9.-]+)==([^ ]+).*/\1 \2/p' requirements/lock-py311.txt | while read -r name version; do
    sed -i -E "s/^( +- $name)==.*/\1==$version/" requirement.yaml
done
