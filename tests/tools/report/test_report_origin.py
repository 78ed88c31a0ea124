"""What the report says about how a result came about: told from records, never from flags."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from core.checkpoints.files import save_checkpoint
from core.files import read_json, write_json
from core.pipeline import label_origin, origin
from core.pipeline.origin import LABELS, NONE, SAM, UNKNOWN, Link
from tests.helpers.report_runs import MASKS, SmallRun, make_run
from tools.report.collect import PageData, collect
from tools.report.page import render
from tools.report.run_files import Request
from uss.pipeline import PIPELINE

SUPERPIXELS = {"masks": "superpixels"}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> SmallRun:
    return make_run(tmp_path_factory.mktemp("run"))


@pytest.fixture
def own(tmp_path: Path) -> SmallRun:
    return make_run(tmp_path)


def content_of(run: SmallRun) -> PageData:
    return collect(Request(run.root, result=run.result), PIPELINE, limit=1, workers=1)


def labels_by(supervision: str) -> list[Link]:
    """A segmenter's chain whose labels were made so."""
    choice = "validation masks chose the pseudo labels' threshold 0.4"
    made = Link("pseudo-labels", supervision, ground_truth=(choice,))
    return [Link("pretrain", NONE, seed=4), made, Link("finetune", NONE, seed=4)]


def ledger_of(run: SmallRun) -> Path:
    (settings,) = (run.result / "validation").glob(".ledger/*/settings.json")
    return settings.parent


def state(run: SmallRun, chain: list[Link], refined_by: Any) -> None:
    """Let the label maps of a run have this chain, refined with these masks."""
    refined = label_origin.refinement_link("test.py", {"masks": refined_by})
    record = {origin.KEY: origin.plain([*chain, refined])}
    write_json(ledger_of(run) / origin.RECORD, record)


@pytest.mark.parametrize(
    ("labels", "refined_by", "headline"),
    [
        (SAM, MASKS, "With SAM"),
        (NONE, MASKS, "With SAM"),
        (SAM, SUPERPIXELS, "With SAM"),
        (LABELS, SUPERPIXELS, "With labels that people gave"),
        (LABELS, MASKS, "With labels that people gave and with SAM"),
        (NONE, SUPERPIXELS, "Fully unsupervised"),
        (NONE, None, "Fully unsupervised"),
        (UNKNOWN, SUPERPIXELS, "Not known"),
        (NONE, {"masks": "by hand"}, "Not known"),
    ],
)
def test_the_protocol_is_what_the_chain_says(
    labels: str, refined_by: Any, headline: str, finished: SmallRun
) -> None:
    state(finished, labels_by(labels), refined_by)
    found = content_of(finished).protocol
    assert found.headline.startswith(headline)
    assert any("threshold 0.4" in fact for fact in found.facts)
    # Whatever fine-tuning's flags say.
    assert read_json(finished.folder.segmenter / "config.json", "")["masks"]["source"] == "sam"


def test_a_run_without_records_is_not_known(own: SmallRun) -> None:
    """As make_run leaves it: by an earlier version, with SAM's masks in the ledger."""
    found = content_of(own).protocol
    assert found.headline.startswith("With SAM") and "the rest is not known" in found.headline
    ledger = ledger_of(own) / "settings.json"
    write_json(ledger, {**read_json(ledger, ""), "masks": SUPERPIXELS})
    found = content_of(own).protocol
    assert found.headline.startswith("Not known: no record says what checkpoint.pth")
    assert "what else it chose is not known" in found.facts[-1]


def test_without_a_record_the_checkpoint_of_the_run_tells(own: SmallRun) -> None:
    """Label maps of an earlier version by a checkpoint that has its chain."""
    chain = labels_by(NONE)
    path = save_checkpoint(own.folder.segmenter, {origin.KEY: origin.plain(chain)})
    ledger = ledger_of(own) / "settings.json"
    stated = {"checkpoint_sha256": origin.source_of(path, own.root).sha256, "masks": SUPERPIXELS}
    write_json(ledger, {**read_json(ledger, ""), **stated})
    assert content_of(own).protocol.headline.startswith("Fully unsupervised")
    # Another checkpoint made them: the run's own says nothing about them.
    write_json(ledger, {**read_json(ledger, ""), "checkpoint_sha256": "0" * 64})
    assert content_of(own).protocol.headline.startswith("Not known")


def test_label_maps_that_no_ledger_records_are_not_known(own: SmallRun) -> None:
    state(own, labels_by(NONE), SUPERPIXELS)
    assert content_of(own).protocol.headline.startswith("Fully unsupervised")
    path = next((own.result / "validation").glob("*/*.png"))
    other = next(p for p in (own.result / "validation_unrefined").glob("*/*.png"))
    path.write_bytes(other.read_bytes() + b"x")
    assert content_of(own).protocol.headline.startswith("Not known: no record says what 1 label")


def test_scores_stand_beside_what_they_are_to_be_compared_with(own: SmallRun) -> None:
    state(own, labels_by(NONE), SUPERPIXELS)
    content = content_of(own)
    trivial = content.scores["after"].background_miou
    assert 0 < trivial < content.scores["after"].miou
    text = re.sub(r"<[^>]+>", " ", render(content))
    assert re.search(rf"mIoU of background everywhere\s+{100 * trivial:.2f}", text)
    assert (
        "Split validation; clusters and classes: matched on validation masks, by the same" in text
    )
    assert "one run, seed 4: no mean and no spread over seeds" in text


def test_a_given_match_is_not_said_to_be_of_these_masks(own: SmallRun) -> None:
    path = own.result / "evaluation_validation.json"
    scores = read_json(path, "")
    entries = {name: {**entry, "matched_here": False} for name, entry in scores.items()}
    write_json(path, entries)
    content = content_of(own)
    assert not content.matched_here and "by the same masks" not in render(content)


def test_a_chain_may_say_anything_and_breaks_nothing(own: SmallRun) -> None:
    (first, *rest) = labels_by(NONE)
    state(own, [replace(first, stage="<script>alert(1)</script>"), *rest], SUPERPIXELS)
    assert "<script>alert(1)" not in render(content_of(own))
    write_json(ledger_of(own) / origin.RECORD, {origin.KEY: {"stage": "none"}})
    assert content_of(own).protocol.headline.startswith("Not known")
