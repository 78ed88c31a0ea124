#!/usr/bin/env bash
# The whole pipeline on a generated data set: what `make demo` runs. Run again, it continues.
#   DEMO    folder of the data set and the run   (default runs/demo in the project)
#   RESULT  folder of the result                 (default result in the project)
set -euo pipefail
ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
DEMO="$(realpath -m "${DEMO:-$ROOT/runs/demo}")"
RESULT="$(realpath -m "${RESULT:-$ROOT/result}")"
export PRESET=demo DATA="$DEMO/data" RUN="$DEMO"
source "$ROOT/scripts/common.sh"

started=$SECONDS
"$PYTHON" -m uss weights
"$PYTHON" -m uss data demo --data "$DATA"
for script in train_1.sh train_2.sh train_3.sh train_4.sh; do
    bash "$ROOT/$script"
done
for mode in validation test; do
    "$PYTHON" test.py --preset demo --run "$RUN" --data_path "$DATA" --mode "$mode" --dump_path "$RESULT"
done
"$PYTHON" -m uss summary --data "$DATA" --run "$RUN" --result "$RESULT"
echo "demo: finished in $((SECONDS - started)) s"
