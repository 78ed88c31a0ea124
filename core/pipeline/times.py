"""The table of times in a run folder: wall-clock seconds of every stage, an object a line."""

from __future__ import annotations

import json
from pathlib import Path

from core.errors import UserError, names_file
from core.files import is_number
from core.pipeline.folders import RunFolder


def record_time(run: RunFolder, stage: str, seconds: float) -> None:
    """Append a stage's wall-clock time to the run's table of times."""
    run.root.mkdir(parents=True, exist_ok=True)
    with names_file(run.times), run.times.open("a", encoding="utf-8") as file:
        file.write(json.dumps({"stage": stage, "seconds": round(seconds, 1)}) + "\n")


def stage_seconds(times: Path) -> dict[str, float]:
    """Seconds by stage, in the order of first appearance; a resumed stage's parts are added up.

    Raises:
        UserError: no stage has run, or the file is not what the stages write.
    """
    seconds: dict[str, float] = {}
    try:
        for line in times.read_text(encoding="utf-8").splitlines():
            entry = json.loads(line)
            name, taken = entry["stage"], entry["seconds"]
            if not isinstance(name, str) or not is_number(taken):
                raise ValueError("a line names no stage or no number of seconds")
            seconds[name] = seconds.get(name, 0.0) + taken
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(
            f"expected the times of a run in {times}: {error}; run a stage, or name its --run"
        ) from error
    return seconds
