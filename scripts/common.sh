# Sourced by train_1..4.sh: machine facts only, hyper-parameters live in uss/config.py.
#
#   DATA    data set in the ImageNet-S layout            (default /data/ImageNetS50)
#   PRESET  a name that uss/presets.py lists             (default luss50)
#   RUN     run folder, products and logs                (default runs/$PRESET in the project)
#   LAUNCH  launcher of the parallel stages              (for example "mpirun -np 8")
#   PYTHON  interpreter                                  (default the project's .venv)
# Relative paths are taken from the folder the script is called in.

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
PRESET="${PRESET:-luss50}"
DATA="$(realpath -m "${DATA:-/data/ImageNetS50}")"
RUN="$(realpath -m "${RUN:-$ROOT/runs/$PRESET}")"
LAUNCH="${LAUNCH:-}"
if [ -z "${PYTHON:-}" ]; then
    PYTHON="$ROOT/.venv/bin/python"
    if [ ! -x "$PYTHON" ]; then
        echo "error: $PYTHON is missing; run: make -C $ROOT setup (or set PYTHON)" >&2
        exit 2
    fi
fi
cd "$ROOT"

# One stage in one process: uss_single COMMAND [ARGUMENT ...]
uss_single() {
    local command="$1"
    shift
    "$PYTHON" -m uss "$command" --preset "$PRESET" --data "$DATA" --run "$RUN" "$@"
}

# One stage under LAUNCH, which is split into words on purpose.
uss_parallel() {
    local command="$1"
    shift
    # shellcheck disable=SC2086
    $LAUNCH "$PYTHON" -m uss "$command" --preset "$PRESET" --data "$DATA" --run "$RUN" "$@"
}
