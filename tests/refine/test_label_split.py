"""Labelling a split: what is made, what is said of it, and which images are reported."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from core.data.imagenet_s import ImageItem
from core.errors import UserError
from core.work.worklist import Made, Worklist
from refine.label_split import label_split


class Refiner:
    """Fails at images named so; remembers what it was asked."""

    processes = 1

    def __init__(self) -> None:
        self.asked: list[str] = []

    def __call__(self, item: ImageItem) -> Made:
        return self._make(item, 2, {"rule": "vote"})

    def network_only(self, item: ImageItem) -> Made:
        return self._make(item, 1, {})

    def _make(self, item: ImageItem, files: int, facts: dict) -> Made:
        self.asked.append(item.key)
        if "broken" in item.key:
            raise UserError(f"{item.key} is cut off")
        seconds = {"decode": 0.25, "network": 0.5}
        return Made([b"png"] * files, {**facts, "seconds": seconds, "resident_mib": 100.0})


def images(folder: Path, *keys: str) -> list[ImageItem]:
    for key in keys:
        (folder / key).write_bytes(b"image")
    return [ImageItem(folder / key, key) for key in keys]


@pytest.mark.parametrize("network_only", [False, True])
def test_failed_images_are_reported_until_they_are_mended(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], network_only: bool
) -> None:
    items = images(tmp_path, "a", "broken1", "c")
    also = [] if network_only else [tmp_path / "unrefined"]
    report = tmp_path / "failed.json"
    refiner = Refiner()

    def label(items: list[ImageItem]):
        work = Worklist(tmp_path / "labels", {"of": "test"}, also=also)
        return label_split(work, items, refiner, "stage", "test", network_only)

    outcome = label(items)
    outcome.report(report, "stage")
    assert sorted(outcome.finished) == ["a", "c"] and outcome.stale == 0
    assert json.loads(report.read_text()) == {"broken1": "broken1 is cut off"}
    assert outcome.complaint(report) == (
        f"no archive: 1 of 3 images have no label map (broken1; reasons in {report}); mend or "
        "remove them and run the same command again"
    )
    said = capsys.readouterr().err
    assert "no result of broken1: broken1 is cut off" in said
    assert "time per image: decode 0.250 s, network 0.500 s; together 0.750 s" in said
    assert ("2 images: 2 by vote" in said) is not network_only

    # Without the broken one: nothing is made again, and the report of the earlier run goes.
    del refiner.asked[:]
    outcome = label([items[0], items[2]])
    outcome.report(report, "stage")
    assert not refiner.asked and not outcome.failed and not report.exists()
    assert "time per image" not in capsys.readouterr().err
