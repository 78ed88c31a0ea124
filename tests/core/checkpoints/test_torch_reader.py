"""Checkpoint files of every kind are read right."""

from __future__ import annotations

import argparse
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from core.checkpoints.torch_reader import read_checkpoint, state_dict_of
from core.errors import UserError
from tests.helpers import torch_files as files
from tests.helpers.torch_files import NUMBERS, write_state


@pytest.mark.parametrize("suffix", [".pth", ".pth.tar", ".pkl", ""])
@pytest.mark.parametrize("kind", ["zip", "legacy", "jittor"])
def test_kind_is_told_from_content(tmp_path: Path, kind: str, suffix: str) -> None:
    path = write_state(tmp_path / f"checkpoint{suffix}", kind)
    assert read_checkpoint(path)["epoch"] == 7
    state = state_dict_of(path)
    block = NUMBERS.reshape(2, 3, 4)
    expected = {
        "whole": block,
        "transposed": block.transpose(2, 1, 0),
        "slice": block[1, :, 1:3],
        "scalar": np.float32(5),
        "empty": np.zeros((0, 3)),
        "expanded": [[3] * 5, [4] * 5],
    }
    assert state.keys() == expected.keys()
    for key, value in expected.items():
        assert state[key].dtype == np.float32
        assert state[key].flags.c_contiguous and state[key].flags.writeable
        np.testing.assert_array_equal(state[key], value, strict=False)
        assert state[key].shape == np.shape(value)


@pytest.mark.parametrize("kind", sorted(files.TORCH_NAMES))
@pytest.mark.parametrize("container", ["zip", "legacy"])
def test_element_types(tmp_path: Path, container: str, kind: str) -> None:
    values = np.array([0, 1, 1, 0, 1]) if kind == "bool" else np.array([0, 1, 2, 100, 3])
    values = values.astype(kind)
    content = {"x": files.tensor(files.storage_of("0", values), (5,))}
    if container == "zip":
        path = files.write_zip(tmp_path / "a.pth", content, {"0": values.tobytes()})
    else:
        path = files.write_legacy(tmp_path / "a.pth", content, {"0": values})
    got = read_checkpoint(path)["x"]
    assert got.dtype == values.dtype
    np.testing.assert_array_equal(got, values)


def test_bfloat16_becomes_float32(tmp_path: Path) -> None:
    values = np.array([1.0, -2.5, 3e38, 0.0], np.float32)
    upper = (values.view(np.uint32) >> 16).astype("<u2")
    storage = files.Storage("0", "BFloat16Storage", 4)
    path = files.write_zip(
        tmp_path / "a.pth", {"x": files.tensor(storage, (4,))}, {"0": upper.tobytes()}
    )
    got = read_checkpoint(path)["x"]
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, values, rtol=2**-7)


def test_half_precision_weights_become_float32(tmp_path: Path) -> None:
    values = np.array([0.5, 2], np.float16)
    content = {"x": files.tensor(files.storage_of("0", values), (2,))}
    path = files.write_zip(tmp_path / "a.pth", content, {"0": values.tobytes()})
    assert state_dict_of(path)["x"].dtype == np.float32


def test_untyped_storage_with_its_own_element_type(tmp_path: Path) -> None:
    values = np.array([1, 2, 70000], np.uint32)
    rebuild = files.Global("torch._utils", "_rebuild_tensor_v3")
    storage = files.Storage("0", "UntypedStorage", values.nbytes)
    kind = files.Global("torch", "uint32")
    content = {"x": files.Call(rebuild, (storage, 1, (2,), (1,), False, {}, kind))}
    path = files.write_zip(tmp_path / "a.pth", content, {"0": values.tobytes()})
    np.testing.assert_array_equal(read_checkpoint(path)["x"], values[1:])


def test_legacy_views_of_a_storage(tmp_path: Path) -> None:
    """Old files say by reference which part of a storage a tensor's storage is."""
    part = files.Storage("0", "FloatStorage", 24, ("view", 6, 10))
    content = {"x": files.tensor(part, (2, 3), (4, 1), 1)}
    path = files.write_legacy(tmp_path / "a.pth", content, {"0": NUMBERS})
    np.testing.assert_array_equal(read_checkpoint(path)["x"], [[7, 8, 9], [11, 12, 13]])


def test_other_values_survive(tmp_path: Path) -> None:
    """What optimisers and logs put into checkpoints besides tensors."""
    content = {
        "best": np.float64(61.5),
        "steps": np.int64(12),
        "order": np.arange(6, dtype=">i4").reshape(2, 3, order="F"),
        "nested": [{"lr": 0.1, "betas": (0.9, 0.999)}, None, True, b"raw", "text", {1, 2}],
        "names": np.array(["ab", "c"]),
    }
    for protocol in (2, 3, 4):
        path = files.write_jittor(tmp_path / "a.pkl", pickle.dumps(content, protocol))
        got = read_checkpoint(path)
        assert got["best"] == 61.5 and got["steps"] == 12 and got["nested"] == content["nested"]
        np.testing.assert_array_equal(got["order"], content["order"])
        assert list(got["names"]) == ["ab", "c"]
    path = files.write_zip(tmp_path / "a.pth", pickle.dumps(content, 2), {})
    assert read_checkpoint(path)["best"] == 61.5


def test_torch_values_that_are_no_tensors(tmp_path: Path) -> None:
    call = files.Call
    content = {
        "size": call(files.Global("torch", "Size"), ((2, 3),)),
        "device": call(files.Global("torch", "device"), ("cuda", 0)),
        "dtype": files.Global("torch", "float16"),
        "state": call(
            files.Global("collections", "defaultdict"), (files.Global("__builtin__", "dict"),)
        ),
    }
    got = read_checkpoint(files.write_zip(tmp_path / "a.pth", content, {}))
    assert got == {"size": (2, 3), "device": "cuda:0", "dtype": "float16", "state": {}}


def test_order_of_a_fortran_array_and_one_element(tmp_path: Path) -> None:
    values = np.asfortranarray(np.arange(6.0).reshape(2, 3))
    got = read_checkpoint(files.write_jittor(tmp_path / "a.pkl", {"x": values}))["x"]
    np.testing.assert_array_equal(got, values)


@pytest.mark.parametrize("wrapper", ["state_dict", "model", None])
def test_state_dict_is_unwrapped(tmp_path: Path, wrapper: str | None) -> None:
    weights = {"module.a.weight": NUMBERS, "b.num_batches_tracked": np.int64(2)}
    content = weights if wrapper is None else {wrapper: weights, "epoch": 3}
    state = state_dict_of(files.write_jittor(tmp_path / "a.pkl", content))
    assert list(state) == ["a.weight"]


def test_state_dict_errors(tmp_path: Path) -> None:
    def fails(content: object, text: str) -> None:
        with pytest.raises(UserError, match=text):
            state_dict_of(files.write_jittor(tmp_path / "a.pkl", content))

    fails({"epoch": 3, "args": {}}, "no tensors but: args, epoch")
    fails([NUMBERS], "weights by name, found a list")
    fails({"module.a": NUMBERS, "a": NUMBERS}, "both with and without")


class Settings:
    """Stands for a class of somebody's trainer, which this project does not have."""

    def __init__(self) -> None:
        self.widths = [64, 128]


@pytest.mark.parametrize("protocol", range(6))
def test_parsed_arguments_are_plain_data(tmp_path: Path, protocol: int) -> None:
    """What argparse gave a trainer, as many keep it beside the weights."""
    args = argparse.Namespace(arch="resnet18", data_path=Path("data"), shallow=[3], lr=0.6)
    args.nested = argparse.Namespace(seed=31)
    content = {"state_dict": {"a": NUMBERS}, "args": args}
    path = files.write_jittor(tmp_path / "a.pkl", pickle.dumps(content, protocol))
    read = read_checkpoint(path)
    expected = {"arch": "resnet18", "data_path": "data", "shallow": [3], "lr": 0.6}
    assert read["args"] == {**expected, "nested": {"seed": 31}}
    np.testing.assert_array_equal(read["state_dict"]["a"], NUMBERS)
    assert list(state_dict_of(path)) == ["a"]


@pytest.mark.parametrize("protocol", range(6))
def test_other_objects_do_not_keep_the_weights_from_being_read(
    tmp_path: Path, protocol: int
) -> None:
    content = {"state_dict": {"a": NUMBERS}, "config": Settings(), "kind": Settings}
    path = files.write_jittor(tmp_path / "a.pkl", pickle.dumps(content, protocol))
    assert list(state_dict_of(path)) == ["a"]
    assert read_checkpoint(path, inert_objects=True)["config"] == {"widths": [64, 128]}
    with pytest.raises(UserError, match="refused: it wants to call .*Settings"):
        read_checkpoint(path)


def test_arrays_of_protocol_5(tmp_path: Path) -> None:
    content: dict[str, Any] = {
        "c": np.arange(6.0).reshape(2, 3),
        "fortran": np.asfortranarray(np.arange(6, dtype=np.int16).reshape(2, 3)),
        "strided": np.arange(12)[::2],
        "empty": np.zeros((0, 3), np.float32),
        "scalar": np.array(2.5),
        "frozen": np.frombuffer(b"\x01\x02", np.uint8),
        "bytes": bytearray(b"raw"),
    }
    read = read_checkpoint(files.write_jittor(tmp_path / "a.pkl", pickle.dumps(content, 5)))
    assert bytes(read.pop("bytes")) == bytes(content.pop("bytes"))
    for key, value in content.items():
        assert read[key].dtype == value.dtype and read[key].shape == value.shape
        np.testing.assert_array_equal(read[key], value)


def test_reader_starts_neither_torch_nor_jittor() -> None:
    code = (
        "import sys, core.checkpoints.torch_reader\n"
        "print(sorted({'torch', 'jittor', 'jittor_core'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
