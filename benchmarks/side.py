"""One side of one case, in its own process: loads, warms up, then does what its input says.

Requests and answers are lines on stdin and stdout; ``run`` is answered with the time and the peak
of resident memory so far, ``result`` writes the last run's outcome.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.cases import load_suite
from core.memory import resident_mib


def main(arguments: list[str]) -> None:
    """MODULE CASE SIDE INPUTS(JSON) RESULT(path of the .npz to write)."""
    module, name, side_name, inputs, result_path = arguments
    answers = _own_stdout()
    side = load_suite(module).cases[name].sides[side_name].load(json.loads(inputs))
    gc.collect()
    loaded = resident_mib("VmRSS")
    side.warm_up()
    _answer(answers, loaded_mib=loaded)
    outcome: Any = None
    for request in sys.stdin:
        if request.strip() == "run":
            outcome = None  # the last run's result must not add to this run's peak
            gc.collect()
            started = time.perf_counter()
            outcome = side.run()
            ms = (time.perf_counter() - started) * 1000
            _answer(answers, ms=ms, peak_mib=resident_mib("VmHWM"))
        else:
            np.savez(Path(result_path), **side.result(outcome))
            _answer(answers)


def _own_stdout() -> Any:
    """Stdout for the answers alone; what libraries print there goes to stderr."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return answers


def _answer(answers: Any, **figures: float) -> None:
    answers.write(json.dumps(figures) + "\n")
    answers.flush()


if __name__ == "__main__":
    main(sys.argv[1:])
