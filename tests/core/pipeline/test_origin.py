"""Chains of origin: kept in files, moved with them, and unknown where nothing is recorded."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from core.checkpoints.files import save_checkpoint, write_pickle
from core.files import sha256_of, write_json
from core.pipeline import origin
from core.pipeline.origin import LABELS, NONE, SAM, UNKNOWN, Link, chain_of, parsed, plain

FIRST = Link("first", NONE, "ab" * 32, 3, "8 images of data/train")
SECOND = Link(
    "second",
    SAM,
    inputs=(("first/checkpoint.pth.tar", "cd" * 32),),
    masks={"source": SAM, "model": "vit_t", "sha256": "ef" * 32},
    notes=("a note",),
    ground_truth=("validation masks chose something",),
)
WEIGHTS = {"state_dict": {"a": np.ones(2, np.float32)}}


def test_a_checkpoint_keeps_its_chain_wherever_it_is_moved(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path / "run", {**WEIGHTS, origin.KEY: plain([FIRST, SECOND])})
    moved = shutil.move(path, tmp_path / "elsewhere.pth.tar")
    assert chain_of(Path(moved)) == [FIRST, SECOND]
    assert json.loads(json.dumps(plain([FIRST, SECOND]))) == plain([FIRST, SECOND])


def test_a_file_without_a_record_is_not_known(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path / "run", WEIGHTS)
    (link,) = chain_of(path)
    assert (link.stage, link.supervision) == (origin.FILE, UNKNOWN)
    assert link.name == f"checkpoint.pth.tar (sha256 {sha256_of(path)[:12]})"
    (damaged := tmp_path / "damaged.pth").write_bytes(b"no checkpoint")
    assert [each.supervision for each in chain_of(damaged)] == [UNKNOWN]


def test_a_published_trunk_is_told_by_its_checksum(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "any_name.pth"
    write_pickle(path, WEIGHTS)
    monkeypatch.setitem(origin._KNOWN, sha256_of(path)[:8], LABELS)
    assert [link.supervision for link in chain_of(path)] == [LABELS]


def test_a_record_speaks_of_one_content_only(tmp_path: Path) -> None:
    path = tmp_path / "centroids.npy"
    np.save(path, np.ones((2, 3), np.float32))
    origin.write_record(tmp_path, {path.name: sha256_of(path)}, [FIRST])
    assert chain_of(path) == [FIRST]
    np.save(path, np.zeros((2, 3), np.float32))
    assert [link.supervision for link in chain_of(path)] == [UNKNOWN]


@pytest.mark.parametrize(
    "chain, told, whole",
    [
        ([], {UNKNOWN}, False),
        ([FIRST], {NONE}, True),
        ([FIRST, SECOND], {NONE, SAM}, False),
        ([FIRST, origin.unrecorded("file.pth")], {NONE, UNKNOWN}, False),
        ([replace(FIRST, supervision=LABELS)], {LABELS}, False),
    ],
)
def test_unsupervised_is_what_every_link_says(
    chain: list[Link], told: set[str], whole: bool
) -> None:
    assert origin.supervisions(chain) == told
    assert origin.is_unsupervised(chain) is whole


def changed(**values: Any) -> list[dict[str, Any]]:
    return [{**plain([FIRST])[0], **values}]


@pytest.mark.parametrize(
    "value",
    [
        None,
        [],
        "first",
        {"stage": "first"},
        [["first"]],
        changed(supervision="surely none"),
        changed(stage=7),
        changed(stage="x" * 100_000),
        changed(stage="two\nlines"),
        changed(seed="3"),
        changed(seed=True),
        changed(inputs=[["one"]]),
        changed(inputs=[["a", "b", "c"]]),
        changed(inputs=7),
        changed(masks=[]),
        changed(masks={"source": ["sam"]}),
        changed(notes=["note"] * 1000),
        changed(notes="note"),
        changed(more=1),
        plain([FIRST]) * 1000,
        [*plain([FIRST]), None],
    ],
)
def test_what_is_no_chain_is_not_known(value: Any) -> None:
    (link,) = parsed(value, "some file")
    assert (link.supervision, link.name) == (UNKNOWN, "some file")


def test_a_training_that_goes_on_keeps_what_its_checkpoint_records() -> None:
    assert origin.continued([FIRST], None) == [FIRST]
    assert origin.continued([FIRST], {origin.KEY: plain([SECOND])}) == [SECOND, FIRST]
    assert origin.continued([FIRST], {origin.KEY: plain([FIRST])}) == [FIRST]
    # Begun by a version that recorded nothing.
    assert not origin.is_unsupervised(origin.continued([FIRST], {"epoch": 1}))


def test_a_stage_adds_its_link_behind_those_of_its_sources(tmp_path: Path) -> None:
    own = save_checkpoint(tmp_path / "run" / "first", {**WEIGHTS, origin.KEY: plain([FIRST])})
    write_pickle(foreign := tmp_path / "foreign.pth", WEIGHTS)
    sources = [origin.source_of(path, tmp_path / "run") for path in (own, foreign)]
    chain = origin.made_from(Link("third", NONE), sources)
    assert [link.stage for link in chain] == ["first", origin.FILE, "third"]
    assert chain[-1].inputs == (
        ("first/checkpoint.pth.tar", sha256_of(own)),
        ("foreign.pth", sha256_of(foreign)),
    )
    assert origin.merged(chain, chain) == chain


def test_masks_are_told_from_their_fingerprint() -> None:
    from refine.superpixels import SuperpixelMaskGenerator

    superpixels = SuperpixelMaskGenerator().settings
    assert origin.masks_made_by(None) == (NONE, {})
    assert origin.masks_made_by(superpixels) == (NONE, {"source": "superpixels"})
    sam = {"weights": {"model": "vit_b", "sha256": "0" * 64}, "generator": {}}
    assert origin.masks_made_by(sam)[0] == SAM
    for other in ({}, {"weights": {}}, {"masks": "quarters"}, "sam", 3):
        assert origin.masks_made_by(other)[0] == UNKNOWN


def test_names_from_outside_are_one_short_line(tmp_path: Path) -> None:
    folder = tmp_path / ("data\nFully unsupervised" + "x" * 200)
    words = origin.images_of(folder, "train", 3)
    assert words.startswith("3 images of data?Fully") and "\n" not in words
    content = {origin.KEY: plain([Link("s", NONE, learnt_from=words)])}
    write_json(tmp_path / "a.json", content)
    digest = hashlib.sha256(b"").hexdigest()
    assert parsed(content[origin.KEY], digest)[0].learnt_from == words
