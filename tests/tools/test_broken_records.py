"""``summary``, ``watch`` and ``report`` over records that are not what the stages write: a run
folder comes from other machines, versions and people, and is cut off where a disk was full.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from core.errors import UserError
from core.files import write_json
from core.work.ledger import SETTINGS_FILE
from tests.helpers.report_runs import SmallRun, make_run
from tests.tools.watch.test_watch import train
from tools import summary
from tools.report.collect import collect
from tools.report.page import render
from tools.report.run_files import Request
from tools.watch.command import page
from tools.watch.state import RunState, as_json
from uss.pipeline import PIPELINE

#: Of a whole file.
CONTENTS = (
    b"",
    b"[]",
    b'"text"',
    b"7",
    b"null",
    b"{}",
    b"\x80\x00\xff",
    b"[" * 50_000,
    b'[{"a": 1}]',
)
#: Of every value in it.
VALUES = (
    *("text", "", None, True, [], ["a"], {}, {"a": {}}, -1, 0, 0.5, 10**400, -(10**18), 1e308),
    *(float("inf"), float("-inf"), float("nan")),
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> SmallRun:
    """A run with everything; the tests change copies of it."""
    return make_run(tmp_path_factory.mktemp("finished"))


@pytest.fixture
def own(finished: SmallRun, tmp_path: Path) -> SmallRun:
    """A copy that may be changed."""
    shutil.copytree(finished.root, tmp_path / "run", symlinks=True)
    root = tmp_path / "run"
    return SmallRun(root, root / "data", root / "result")


def records(run: SmallRun) -> list[Path]:
    """Every JSON file of the run outside its data set, and every log."""
    found = sorted([*run.root.rglob("*.json"), *run.root.rglob("*.jsonl")])
    found = [path for path in found if run.data not in path.parents]
    assert len(found) > 10
    return found


def with_values(content: Any, value: Any) -> Any:
    """``content`` with every value that is no object replaced."""
    if isinstance(content, dict):
        return {key: with_values(each, value) for key, each in content.items()}
    return value


def broken(path: Path) -> Iterator[bytes]:
    """Contents that a record may have instead."""
    yield from CONTENTS
    lines = path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]
    values = [json.loads(line) for line in lines]
    if not all(isinstance(each, dict) for each in values):
        return
    for value in VALUES:
        yield "\n".join(json.dumps(with_values(each, value)) for each in values).encode() + b"\n"
    for key in sorted({key for each in values for key in each}):
        cut = [{name: each[name] for name in each if name != key} for each in values]
        yield "\n".join(map(json.dumps, cut)).encode() + b"\n"
        for value in ("text", [], {}, float("inf")):
            yield "\n".join(json.dumps({**each, key: value}) for each in values).encode() + b"\n"


def watched(run: SmallRun) -> None:
    state = RunState(run.root, PIPELINE, None, run.result)
    stages = state.stages()
    assert page(run.root, stages)
    json.loads(as_json(stages), parse_constant=lambda name: pytest.fail(name))


def summed_up(run: SmallRun) -> None:
    places = ["--data", str(run.data), "--run", str(run.root), "--result", str(run.result)]
    assert summary.main(places, PIPELINE) == 0


def reported(run: SmallRun) -> None:
    request = Request(run.root, run.data, run.result)
    assert render(collect(request, PIPELINE, 1, workers=1)).rstrip().endswith("</html>")


def check(run: SmallRun, tool: Callable[[SmallRun], None], paths: Iterable[Path]) -> None:
    """Give ``tool`` every broken content of some records, one record at a time."""
    tool(run)
    for path in paths:
        whole = path.read_bytes()
        for content in broken(path):
            path.write_bytes(content)
            try:
                tool(run)
            except UserError as error:
                assert "\n" not in str(error) and len(str(error)) < 600, error
            except Exception as error:
                raise AssertionError(f"{path.relative_to(run.root)}: {content[:200]!r}") from error
        path.write_bytes(whole)


def test_watch(own: SmallRun) -> None:
    check(own, watched, records(own))


def test_watch_of_a_run_at_work(tmp_path: Path) -> None:
    run = SmallRun(tmp_path, tmp_path / "data", tmp_path / "result")
    log = train(tmp_path, 12)
    noted = run.folder.cluster("resnet18") / SETTINGS_FILE
    write_json(noted, {"images": {"train": 40}})
    config = log.with_name("config.json")
    whole = json.loads(config.read_text())
    (stage, *_) = RunState(run.root, PIPELINE).stages()
    assert (stage.state, stage.done, stage.total) == ("running", 12, 20)
    check(run, watched, [log, config, noted])
    # Without an epoch's end in the log the totals are those of the clustering.
    log.write_text(log.read_text().splitlines(keepends=True)[0])
    assert RunState(run.root, PIPELINE).stages()[0].total == 20
    for section in ("text", [], 7, None, {"epochs": "4", "batch_size": 0}, {"epochs": [1]}):
        config.write_text(json.dumps({**whole, "pretrain": section}))
        watched(run)
    config.write_text(json.dumps(whole))
    for images in ("text", [], {"train": "40"}, {"train": -1}, {"train": float("nan")}):
        write_json(noted, {"images": images})
        watched(run)


def test_summary(own: SmallRun) -> None:
    check(own, summed_up, [own.root / "times.jsonl", own.result / "evaluation_validation.json"])


def test_report(own: SmallRun) -> None:
    check(own, reported, [own.result / "evaluation_validation.json", own.folder.threshold])


@pytest.mark.slow
def test_report_of_every_record(own: SmallRun) -> None:
    check(own, reported, records(own))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({}, "an `miou` from 0 to 1 of 'before_refinement', found 'None'"),
        ({"before_refinement": {"iou": [1, 1], "miou": "high"}}, "found 'high'"),
        ({"before_refinement": {"iou": [1, 1], "miou": 61.8}}, "found '61.8'"),
        ({"before_refinement": {"iou": [1, 1], "miou": float("inf")}}, "found 'inf'"),
        ({"before_refinement": {"iou": "all", "miou": 0.5}}, "a list `iou` of 'before_refinement'"),
    ],
)
def test_scores_that_are_none(own: SmallRun, change: dict[str, Any], said: str) -> None:
    path = own.result / "evaluation_validation.json"
    path.write_text(json.dumps(change))
    with pytest.raises(UserError, match=said) as complaint:
        summed_up(own)
    assert str(path) in str(complaint.value)


def test_the_report_says_that_scores_are_none(own: SmallRun) -> None:
    path = own.result / "evaluation_validation.json"
    scores = json.loads(path.read_text())
    scores["after_refinement"]["miou"] = "high"
    path.write_text(json.dumps(scores))
    content = collect(Request(own.root, own.data, own.result), PIPELINE, 0, workers=1)
    assert [note for note in content.notes if "states no mIoU after refinement" in note]
