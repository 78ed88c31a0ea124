"""Label files: every form, and files that lie or do harm."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from core.data.image_labels import label_vector, read_label_file
from core.data.voc import Voc
from core.errors import UserError
from tests.helpers import voc_sets
from tests.helpers.voc_sets import KEYS

NAMES = ["one", "two", "three"]


def vector(*ids: int) -> np.ndarray:
    return label_vector(ids, len(NAMES))


@pytest.mark.parametrize("form", ["npy", "npy of a list", "npz", "names", "ids"])
def test_every_form_gives_the_same(tmp_path: Path, form: str) -> None:
    labels = {"a": (1, 3), "b": (), "c": (2,)}
    vectors = {key: vector(*ids) for key, ids in labels.items()}
    path = tmp_path / "labels.npy"
    if form == "npy":
        np.save(path, vectors)  # type: ignore[arg-type]
    elif form == "npy of a list":
        np.save(path, np.array([vectors], object))
    elif form == "npz":
        path = path.with_suffix(".npz")
        np.savez(path, keys=np.array(list(vectors)), labels=np.stack(list(vectors.values())))
    else:
        path = path.with_suffix(".json")
        said = {key: list(ids) for key, ids in labels.items()}
        if form == "names":
            path.write_text(json.dumps({key: [NAMES[i - 1] for i in said[key]] for key in said}))
        else:
            path.write_text(json.dumps(said))
    assert read_label_file(path, NAMES) == labels


def test_numbers_become_keys(tmp_path: Path) -> None:
    np.save(tmp_path / "l.npy", {9: vector(1), np.int64(12): vector(2)})  # type: ignore[arg-type]
    found = read_label_file(tmp_path / "l.npy", NAMES, lambda number: f"{number:04d}")
    assert found == {"0009": (1,), "0012": (2,)}
    root = voc_sets.write_voc(tmp_path / "voc")
    (root / "Annotations").rename(root / "elsewhere")
    with pytest.raises(UserError, match="no image labels"):
        Voc(root).image_labels("val")
    np.save(root / "cls_labels.npy", {2007000002: vector(3)})  # type: ignore[arg-type]
    assert Voc(root).image_labels("val") == {KEYS[1]: (3,)}


class Harm:
    """Unpickling it would make a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("where", ["value", "array"])
def test_nothing_in_the_file_is_run(tmp_path: Path, where: str) -> None:
    made = tmp_path / "made"
    content: Any = {"a": Harm(made)} if where == "value" else np.array([Harm(made)], object)
    np.save(tmp_path / "l.npy", content)
    with pytest.raises(UserError, match="l.npy: refused"):
        read_label_file(tmp_path / "l.npy", NAMES)
    assert not made.exists()
    np.load(tmp_path / "l.npy", allow_pickle=True)
    assert made.exists()  # the file would have done it


def test_bytes_do_not_pass_for_objects(tmp_path: Path) -> None:
    """An array of objects whose state is raw bytes would be addresses of objects."""
    np.save(tmp_path / "l.npy", np.zeros(2))
    header = b"\x93NUMPY\x01\x00\x46\x00{'descr': '|O', 'fortran_order': False, 'shape': (1,), }"
    header += b" " * (80 - len(header) - 1) + b"\n"
    program = (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR"
        b"(I1\n(I1\ntcnumpy\ndtype\n(S'O8'\nI0\nI1\ntRI00\nS'AAAAAAAA'\ntb."
    )
    (tmp_path / "l.npy").write_bytes(header + program)
    with pytest.raises(UserError, match="l.npy"):
        read_label_file(tmp_path / "l.npy", NAMES)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ({"a": np.ones(4)}, r"label of a has shape \(4,\), expected \(3,\)"),
        ({"a": np.array([0, 2, 0])}, "other values than 0 and 1"),
        ({"a": np.array([0, np.nan, 0])}, "other values than 0 and 1"),
        ({"a": "one"}, "is str"),
        ({"a": ["dragon"]}, "unknown class 'dragon'"),
        ({"a": [4]}, "unknown class 4"),
        ({"a": [True]}, "unknown class True"),
        ({7: [1], "7": [1]}, "labels 7 twice"),
        ([1, 2], "expected a pickled dict"),
        (None, "expected a pickled dict"),
    ],
)
def test_bad_labels_are_named(tmp_path: Path, content: Any, text: str) -> None:
    array = np.empty((), object)
    array[()] = content
    np.save(tmp_path / "l.npy", array)
    with pytest.raises(UserError, match=text) as caught:
        read_label_file(tmp_path / "l.npy", NAMES)
    assert "l.npy" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["l.npy", "l.npz", "l.json"])
def test_damaged_files_are_named(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    for content in (b"", b"broken", b"\x93NUMPY", b"PK\x03\x04", b"[]", b"[" * 100000):
        path.write_bytes(content)
        with pytest.raises(UserError, match=name):
            read_label_file(path, NAMES)
    path.unlink()
    with pytest.raises(UserError, match=name):
        read_label_file(path, NAMES)


def test_a_cut_pickle_is_named(tmp_path: Path) -> None:
    path = tmp_path / "l.npy"
    np.save(path, {str(index): vector(1) for index in range(20)})  # type: ignore[arg-type]
    whole = path.read_bytes()
    for length in range(100, len(whole), 97):
        path.write_bytes(whole[:length])
        with pytest.raises(UserError, match="l.npy"):
            read_label_file(path, NAMES)
    np.save(path, np.zeros(3))
    with pytest.raises(UserError, match="expected a pickled dict"):
        read_label_file(path, NAMES)
    path.write_bytes(pickle.dumps({"a": [1]}))
    with pytest.raises(UserError, match="l.npy"):
        read_label_file(path, NAMES)
