"""Hungarian matching against munkres and stored optima; match files."""

from __future__ import annotations

import json

import numpy as np
import pytest

from core.errors import UserError
from core.scoring.matching import (
    apply_match,
    hungarian,
    identity_match,
    match_clusters,
    match_single_labels,
    read_match,
    write_match,
)


def total(cost, pairs):
    return sum(cost[row, column] for row, column in pairs.items())


def test_golden_matching_totals(goldens):
    golden = goldens("E_matching")
    names = [key for key in golden if key.startswith("cost") and "." not in key]
    assert names
    for name in names:
        pairs = hungarian(golden[name])
        assert len(pairs) == min(golden[name].shape) == len(set(pairs.values()))
        assert total(golden[name], pairs) == pytest.approx(float(golden[f"{name}.total"]), abs=1e-9)


def test_golden_matching_single_labels(goldens):
    golden = goldens("E_matching")
    stored = golden["single.map_label_to_target"]
    match, accuracy = match_single_labels(
        golden["single.label"], golden["single.target"], len(stored)
    )
    assert accuracy == pytest.approx(float(golden["single.acc"]))
    assert sorted(match.values()) == list(range(len(stored)))


def test_munkres_agrees():
    munkres = pytest.importorskip("munkres")
    rng = np.random.default_rng(0)
    for rows, columns in ((4, 4), (6, 9), (9, 6), (12, 12)):
        cost = rng.integers(-9, 10, (rows, columns)).astype(float)
        padded = munkres.Munkres().pad_matrix(cost.tolist(), pad_value=0)
        judge = sum(
            cost[row, column]
            for row, column in munkres.Munkres().compute(padded)
            if row < rows and column < columns
        )
        assert total(cost, hungarian(cost)) == pytest.approx(judge)


def test_clusters_are_matched_one_based_with_background():
    cooccurrence = np.array([[0, 5, 1], [4, 4, 0], [0, 2, 3]])
    assert match_clusters(cooccurrence) == {0: 0, 1: 2, 2: 1, 3: 3}
    with pytest.raises(ValueError, match="square"):
        match_clusters(cooccurrence[:2])


def test_match_file_round_trip(tmp_path):
    match = {0: 0, 2: 1, 1: 3, 3: 2, **{label: label for label in range(4, 12)}}
    write_match(tmp_path / "match.json", match)
    stored = json.loads((tmp_path / "match.json").read_text())
    assert list(stored) == [str(label) for label in range(12)] and stored["1"] == 3
    assert read_match(tmp_path / "match.json", 11) == match


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "not JSON"),
        ("[" * 100000, "not JSON"),
        ("[1, 2]", "not a JSON object"),
        ('{"0": 0, "1": 1}', "1 ids but there are 2 classes"),
        ('{"0": 0, "1": 1, "2": 2, "3": 3}', "3 ids but there are 2 classes"),
        ('{"0": 0, "1": 1, "2": 1}', "class 2 is matched by no id"),
        ('{"0": 0, "1": 1, "3": 2}', "id 2 has no entry"),
        ('{"1": 1, "2": 2}', '"0": 0'),
        ('{"0": 0, "1": "1", "2": 2}', "not an integer"),
        ('{"0": 0, "1": 1.0, "2": 2}', "not an integer"),
        ('{"0": 0, "1": true, "2": 2}', "not an integer"),
        ('{"0": 0, "01": 1, "2": 2}', "'01' is not an id"),
        ('{"0": 0, "1": 1, "1": 2, "2": 2}', "occurs twice"),
        ('{"0": 0, "1": [1], "2": {}}', "not an integer"),
    ],
)
def test_match_files_that_do_not_fit(tmp_path, text, reason):
    path = tmp_path / "match.json"
    path.write_text(text)
    with pytest.raises(UserError, match=reason) as caught:
        read_match(path, 2)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_missing_match_file(tmp_path):
    with pytest.raises(UserError, match="nothing.json"):
        read_match(tmp_path / "nothing.json", 2)


def test_match_is_applied_to_every_pixel():
    label = np.array([[0, 1], [2, 3]], np.uint16)
    matched = apply_match(label, {0: 0, 1: 3, 2: 1, 3: 2})
    assert matched.dtype == np.int32 and matched.tolist() == [[0, 3], [1, 2]]
    assert np.array_equal(apply_match(label, identity_match(3)), label)


@pytest.mark.parametrize("unknown", [4, 1000, -1])
def test_unknown_ids_are_not_matched(unknown):
    with pytest.raises(UserError, match=f"id {unknown}"):
        apply_match(np.array([[1, unknown]]), identity_match(3))
