"""The live state of a run, read from the files that its stages leave: nothing of a stage is asked.

So a run is seen from another terminal, or from another machine over a shared folder. A training
stage shows by its log, work on images by its ledger (or mask store), and whoever is at an image by
its claim, which is touched once a minute. How long ago a file was written is told by the clock
that stamped it, the file server's, and not by that of the machine that looks.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from core.data.layout import open_layout
from core.errors import UserError
from core.files import is_number, json_or_empty, number
from core.pipeline.folders import CONFIG, LOG, TRAIN, UNREFINED, RunFolder
from core.pipeline.inputs import noted_data
from core.pipeline.stage import Kind, Pipeline, Trace, pipeline_of
from core.pipeline.times import stage_seconds
from core.training.log import FACTS
from core.work.claims import CLAIMS_FOLDER, TIMEOUT_S
from core.work.ledger import LEDGER_FOLDER, SETTINGS_FILE
from tools.watch.clock import FileClock

WAITING, RUNNING, STOPPED, FINISHED = "waiting", "running", "stopped", "finished"

# A stage that has said nothing for so long, or five times as long as usual, stopped.
_SILENT_S = 180.0
_MOST = 2**53  # of whole numbers in a JSON file


@dataclass
class StageState:
    """One stage; numbers that are not known are None."""

    name: str
    state: str
    done: int = 0
    total: int | None = None
    unit: str = "images"
    rate: float | None = None
    """Images a second."""
    left_s: float | None = None
    memory_mib: float | None = None
    silent_s: float | None = None
    """Seconds since its last sign of life."""
    took_s: float | None = None
    """Of finished processes of this stage, by times.jsonl."""
    failed: int = 0
    values: dict[str, float] = field(default_factory=dict)
    """Epoch, learning rate and losses of the last line of a log."""
    workers: list[str] = field(default_factory=list)
    """"host pid" of each process that is at an image."""


class RunState:
    """Reads a run again and again; what was read is not read twice.

    Args:
        run: the run's folder.
        pipeline: whose stages are looked for, where the folder states none itself.
        data: the data set, for totals; None: where the run's records name it.
        result: ``dump_path`` of test.py; None: ``<run>/result`` where it is there.

    Raises:
        UserError: the folder states an unknown pipeline.
    """

    def __init__(
        self,
        run: Path,
        pipeline: Pipeline,
        data: Path | None = None,
        result: Path | None = None,
    ) -> None:
        self.pipeline = pipeline_of(RunFolder(run.absolute()), pipeline)
        self.run: RunFolder = self.pipeline.run_folder(run.absolute())
        self._data, self._result = data, result
        self._clock = FileClock(self.run.root, result or self.run.result)
        self._tails: dict[Path, _Tail] = {}
        self._seen: dict[str, list[tuple[float, int]]] = {}
        self._images: dict[str, int | None] = {}

    def stages(self) -> list[StageState]:
        """The stages that have left a trace, in the order of the pipeline."""
        took = self._times()
        self._find_data()
        found = []
        for trace in self.pipeline.traces(self.run):
            if trace.stage.kind is Kind.TRAINING:
                found += self._training(trace, took)
            elif trace.stage.kind is Kind.WHOLE:
                found += self._whole(trace, took)
            elif (trace.folder / LEDGER_FOLDER).is_dir():
                found += self._images_of(trace.title, trace.folder, trace.of or "")
            else:
                found += self._masks(trace, took)
        for title, split, folder in self._results():
            found += self._images_of(title, folder, split)
            if found[-1].state == FINISHED:
                found[-1].took_s = took.get(found[-1].name)
        return found

    # Training -----------------------------------------------------------------------------------

    def _training(self, trace: Trace, took: dict[str, float]) -> list[StageState]:
        log, config, name = trace.folder / LOG, trace.folder / CONFIG, trace.title
        if not log.is_file() and not config.is_file():
            return []
        whole = json_or_empty(config)
        settings = whole.get(trace.stage.section)
        lines = self._tail(log)
        state = StageState(
            name, RUNNING, unit="steps", silent_s=self._clock.age(log if lines.last else config)
        )
        state.took_s = took.get(name, took.get(f"{name} {whole.get('arch')}"))
        if lines.last is None:
            state.state = RUNNING if (state.silent_s or 0.0) < 10 * _SILENT_S else STOPPED
            return [state]
        last = lines.last
        state.done = last["step"]
        state.rate = number(last.get("images_per_second"))
        state.memory_mib = number(last.get("peak_memory_mib"))
        shown = ("epoch", "lr", "loss", *(key for key in last if key not in (*FACTS, "loss")))
        state.values = {key: last[key] for key in shown if _is_shown(last.get(key))}
        epochs, batch = (_whole_number(settings, name) for name in ("epochs", "batch_size"))
        steps = lines.steps_per_epoch
        if steps is None and batch and self._count(TRAIN):
            steps = (self._count(TRAIN) or 0) // batch
        if steps and epochs:
            state.total = epochs * steps
            if batch and state.rate:
                state.left_s = max(state.total - state.done, 0) * batch / state.rate
        if (state.total and state.done >= state.total) or (
            state.took_s is not None and last["epoch"] == epochs and state.total is None
        ):
            state.state, state.left_s = FINISHED, None
        # Slow steps: a first line may have taken long, and the next one will take as long.
        elif (state.silent_s or 0.0) > max(
            _SILENT_S, 5 * (lines.usual_pause or _time_of(log) - _time_of(config))
        ):
            state.state, state.left_s = STOPPED, None
        return [state]

    def _whole(self, trace: Trace, took: dict[str, float]) -> list[StageState]:
        """A computation over all images, which writes its settings last."""
        if not trace.folder.is_dir():
            return []
        if (trace.folder / SETTINGS_FILE).is_file():
            return [StageState(trace.title, FINISHED, took_s=took.get(trace.title))]
        # All that lies below it: blocks of features, and the claims of those who make them.
        ages = map(self._clock.age, trace.folder.rglob("*"))
        silent = min((age for age in ages if age is not None), default=None)
        state = STOPPED if silent is None or silent > _SILENT_S else RUNNING
        return [StageState(trace.title, state, silent_s=silent)]

    # Work on images -----------------------------------------------------------------------------

    def _images_of(self, name: str, folder: Path, split: str) -> list[StageState]:
        """A folder whose results a ledger records, under the settings used last."""
        ledgers = sorted((folder / LEDGER_FOLDER).glob(f"*/{SETTINGS_FILE}"), key=_time_of)
        if not ledgers:
            return []
        files = sorted(ledgers[-1].parent.glob("*.jsonl"))
        done: set[str] = set()
        failed: set[str] = set()
        memory = 0.0
        for file in files:
            tail = self._tail(file)
            done |= tail.done
            failed |= tail.failed
            memory = max(memory, tail.memory_mib)
        state = StageState(name, RUNNING, len(done), failed=len(failed - done))
        state.memory_mib = memory or None
        state.silent_s = min(
            (self._clock.age(file) or 0.0 for file in [ledgers[-1], *files]), default=None
        )
        self._settle(state, folder / LEDGER_FOLDER / CLAIMS_FOLDER, self._count(split))
        return [state]

    def _masks(self, trace: Trace, took: dict[str, float]) -> list[StageState]:
        """A mask store, under the settings used last."""
        stores = sorted(trace.folder.glob(f"*/{SETTINGS_FILE}"), key=_time_of)
        if not stores:
            return []
        store = stores[-1].parent
        done, newest = 0, _time_of(stores[-1])
        for bucket in store.iterdir():
            if len(bucket.name) == 2 and bucket.is_dir():
                done += sum(name.endswith(".gz") for name in os.listdir(bucket))
                newest = max(newest, _time_of(bucket))
        state = StageState(trace.title, RUNNING, done, silent_s=self._clock.since(store, newest))
        self._settle(state, store / CLAIMS_FOLDER, self._count(trace.of or ""))
        asked = (f"{stage.command} {trace.of}" for stage in self.pipeline.scripts)
        if state.state == STOPPED and any(title in took for title in asked):
            # A script asks for masks only where the network saw something.
            state.state, state.total = FINISHED, None
        return [state]

    def _settle(self, state: StageState, claims: Path, total: int | None) -> None:
        """Fill in total, workers, rate, time left, and whether somebody is at it."""
        state.total = total
        state.workers = sorted({_owner(token) for token in _live_claims(claims, self._clock)})
        if total is not None and state.done + state.failed >= total:
            state.state = FINISHED
            return
        if not state.workers and (state.silent_s or 0.0) > _SILENT_S:
            state.state = STOPPED
            return
        seen = self._seen.setdefault(state.name, [])
        now = time.monotonic()
        seen.append((now, state.done))
        while len(seen) > 2 and now - seen[1][0] > _SILENT_S:
            seen.pop(0)
        begun, before = seen[0]
        if state.done > before and now > begun:
            state.rate = (state.done - before) / (now - begun)
            if total is not None:
                state.left_s = (total - state.done - state.failed) / state.rate

    # What else the run tells --------------------------------------------------------------------

    def _results(self) -> Iterator[tuple[str, str, Path]]:
        """(title, split, folder) of what scripts have made or are at in the result folder."""
        root = self._result or self.run.result
        for stage in self.pipeline.scripts:
            with contextlib.suppress(OSError):
                for folder in sorted(root.iterdir()):
                    if not folder.name.endswith(UNREFINED) and (folder / LEDGER_FOLDER).is_dir():
                        yield f"{stage.command} {folder.name}", folder.name, folder

    def _find_data(self) -> None:
        """Take the data set that the predictions note, unless one was given."""
        if self._data is None:
            self._data = noted_data(self.run)

    def _count(self, split: str) -> int | None:
        """Images of a split, by the data set or by what the clustering noted; None: not known."""
        if self._images.get(split) is None:
            self._images[split] = self._listed(split)
        return self._images[split]

    def _listed(self, split: str) -> int | None:
        if self._data is not None:
            with contextlib.suppress(UserError):
                return len(open_layout(self._data).images(split))
        for trace in self.pipeline.traces(self.run):
            if trace.stage.kind is Kind.WHOLE:
                noted = json_or_empty(trace.folder / SETTINGS_FILE).get("images")
                count = _whole_number(noted, split)
                if count is not None:
                    return count
        return None

    def _times(self) -> dict[str, float]:
        with contextlib.suppress(UserError):
            return stage_seconds(self.run.times)
        return {}

    def _tail(self, path: Path) -> _Tail:
        tail = self._tails.setdefault(path, _Tail(path))
        tail.read()
        return tail


class _Tail:
    """What the lines of a growing JSONL file say; reads on where it stopped."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._begin_anew((0, 0))

    def _begin_anew(self, identity: tuple[int, int]) -> None:
        self._identity, self._offset = identity, 0
        self.last: dict[str, Any] | None = None
        self.steps_per_epoch: int | None = None
        self.usual_pause = 0.0
        self.done: set[str] = set()
        self.failed: set[str] = set()
        self.memory_mib = 0.0

    def read(self) -> None:
        """Take in what was appended; a file that was replaced is read from its beginning."""
        try:
            with open(self._path, "rb") as file:
                status = os.fstat(file.fileno())
                if (
                    status.st_dev,
                    status.st_ino,
                ) != self._identity or status.st_size < self._offset:
                    self._begin_anew((status.st_dev, status.st_ino))
                file.seek(self._offset)
                text = file.read()
        except OSError:
            return
        whole = text.rfind(b"\n") + 1
        self._offset += whole
        for line in text[:whole].splitlines():
            with contextlib.suppress(ValueError, RecursionError):
                value = json.loads(line)
                if isinstance(value, dict):
                    self._take(value)

    def _take(self, line: dict[str, Any]) -> None:
        """Take in one line; one that is not as the stages write it says nothing."""
        if isinstance(line.get("key"), str):
            (self.failed if "failed" in line else self.done).add(line["key"])
            self.memory_mib = max(self.memory_mib, number(line.get("resident_mib")) or 0.0)
            return
        epoch, step = _whole_number(line, "epoch"), _whole_number(line, "step")
        moment = number(line.get("time"))
        if epoch is None or step is None or moment is None:
            return
        if self.last is not None:
            # The last line of an epoch is that of its last step.
            if epoch > self.last["epoch"] > 0:
                self.steps_per_epoch = self.last["step"] // self.last["epoch"]
            self.usual_pause = moment - self.last["time"]
        self.last = {**line, "epoch": epoch, "step": step, "time": moment}


def as_json(stages: Sequence[StageState], indent: int | None = None) -> str:
    """The states as JSON, in which what is not finite (a loss) is null."""
    values = [asdict(stage) for stage in stages]
    for value in values:
        value["values"] = {name: number(shown) for name, shown in value["values"].items()}
    return json.dumps(values, indent=indent)


def _is_shown(value: Any) -> bool:
    """Whether a value of a log is a number, be it NaN or infinite."""
    return is_number(value) or (isinstance(value, float) and not math.isfinite(value))


def _whole_number(values: Any, name: str) -> int | None:
    """A whole number of at least 0 in an object of a JSON file; None where it is something else."""
    value = number(values.get(name)) if isinstance(values, dict) else None
    return int(value) if value is not None and 0 <= value <= _MOST else None


def _live_claims(folder: Path, clock: FileClock) -> Iterator[str]:
    """The owners' tokens of the claims in a folder that show life."""
    with contextlib.suppress(OSError):
        for place in folder.iterdir():
            with contextlib.suppress(OSError):
                for token in place.iterdir():
                    if clock.since(token, token.stat().st_mtime) < TIMEOUT_S:
                        yield token.name


def _owner(token: str) -> str:
    """ "host pid" of a claim's token (see ``core.work.claims``)."""
    fields = token.split("~")
    return f"{fields[0]} {fields[2]}" if len(fields) > 2 else token


def _time_of(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
