"""No checkpoint file makes the reader do anything but read, and damaged ones are one line."""

from __future__ import annotations

import os
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from core.checkpoints.torch_reader import read_checkpoint, state_dict_of
from core.errors import UserError
from tests.helpers import torch_files as files
from tests.helpers.torch_files import NUMBERS, state_content, write_state


class _Runs:
    """Pickles as a call of ``os.mkdir``: whoever unpickles it makes a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("kind", ["zip", "legacy", "jittor"])
def test_calls_are_refused_by_name(tmp_path: Path, kind: str) -> None:
    trap = tmp_path / "executed"
    path = tmp_path / "a.pth"
    if kind == "zip":
        files.write_zip(path, pickle.dumps({"x": _Runs(trap)}, 2), {})
    elif kind == "legacy":
        start = b"".join(pickle.dumps(part, 2) for part in (files.MAGIC, 1001, {}))
        path.write_bytes(start + pickle.dumps(_Runs(trap), 2))
    else:
        files.write_jittor(path, {"x": _Runs(trap)})
    with pytest.raises(UserError, match=r"refused: it wants to call (posix|nt)\.mkdir"):
        read_checkpoint(path)
    assert not trap.exists()


@pytest.mark.parametrize(
    "call",
    [
        ("builtins", "eval", ("1",)),
        ("builtins", "getattr", (1, "real")),
        ("torch.storage", "_load_from_bytes", (b"",)),
        ("torch", "load", ("x",)),
        ("numpy", "load", ("x",)),
        ("numpy.core.multiarray", "fromfile", ("x",)),
        ("collections", "namedtuple", ("a", "b")),
        ("jittor", "load", ("x",)),
        ("core.checkpoints.plain_pickle", "load", ("x",)),
    ],
)
def test_only_listed_names_are_called(tmp_path: Path, call: tuple) -> None:
    module, name, arguments = call
    content = {"x": files.Call(files.Global(module, name), arguments)}
    with pytest.raises(UserError, match=f"refused: it wants to call {module}.{name}"):
        read_checkpoint(files.write_zip(tmp_path / "a.pth", content, {}))


def test_names_in_a_file_cannot_break_the_error_line(tmp_path: Path) -> None:
    for module in ("a\nerror: \x1b[2Jall is well", "x" * 5000):
        names = pickle.dumps((module, "b"), 4)[:-3]  # without the tuple
        path = files.write_jittor(tmp_path / "a.pkl", names + pickle.STACK_GLOBAL + b".")
        with pytest.raises(UserError, match="refused: it wants to call") as caught:
            read_checkpoint(path)
        assert str(caught.value).isprintable() and len(str(caught.value)) < 500
    with pytest.raises(UserError) as caught:
        state_dict_of(files.write_jittor(tmp_path / "b.pkl", {"a\nb\x1b": 1}))
    assert str(caught.value).isprintable()


def test_state_cannot_be_written_into_functions(tmp_path: Path) -> None:
    """BUILD sets attributes in plain pickle; through it a file could change the reader itself."""
    rebuild = pickle.GLOBAL + b"torch._utils\n_rebuild_tensor_v2\n"
    state = pickle.dumps((None, {"__defaults__": (1,)}), 2)[2:-1]
    body = b"\x80\x02" + rebuild + state + pickle.BUILD + pickle.STOP
    with pytest.raises(UserError, match="refused: it wants to change a function"):
        read_checkpoint(files.write_zip(tmp_path / "a.pth", body, {}))


def test_functions_and_objects_do_not_come_out(tmp_path: Path) -> None:
    path = files.write_zip(tmp_path / "a.pth", {"x": files.Global("_codecs", "encode")}, {})
    with pytest.raises(UserError, match="holds a function or a class"):
        read_checkpoint(path)
    with pytest.raises(UserError, match="Python objects instead of numbers|element type 'O8'"):
        read_checkpoint(files.write_jittor(tmp_path / "b.pkl", {"x": np.array([None, {}])}))


HEADS = [
    (b"", "an empty file"),
    (b"<!DOCTYPE html><html><body>Sign in", "a web page"),
    (b"\n  <html>", "a web page"),
    (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
    (b"\x93NUMPY\x01\x00v\x00", "a NumPy array"),
    (b"\x1f\x8b\x08\x00", "a gzip archive"),
    (b"\0" * 257 + b"ustar\0", "a tar archive"),
    (pickle.dumps({"a": 1}, 4), "without Jittor's checksum"),
    (b"\x00\x01\x02random bytes", "begins with"),
    (b"PK\x03\x04" + b"\0" * 30, "damaged or incomplete"),
    (b"HCAJSLHD", "checksum does not match"),
    (b"x" * 40 + b"HCAJSLHD", "checksum does not match"),
]


@pytest.mark.parametrize("content,found", HEADS)
def test_other_files_are_told_apart(tmp_path: Path, content: bytes, found: str) -> None:
    path = tmp_path / "checkpoint.pth.tar"
    path.write_bytes(content)
    with pytest.raises(UserError, match=found) as caught:
        read_checkpoint(path)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)
    assert "expected a checkpoint" in str(caught.value)


def test_missing_file_folder_and_ordinary_zip(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        read_checkpoint(tmp_path / "none.pth")
    with pytest.raises(UserError, match="is a folder"):
        read_checkpoint(tmp_path)
    np.savez(tmp_path / "a.npz", x=NUMBERS)
    with pytest.raises(UserError, match=r"zip archive without data.pkl \(it has: x.npy\)"):
        read_checkpoint(tmp_path / "a.npz")


@pytest.mark.parametrize(
    "size,stride,offset",
    [
        ((25,), (1,), 0),
        ((24,), (1,), 1),
        ((2, 3), (24, 1), 0),
        ((2**40,), (0,), 0),
        ((2**20, 2**20), (0, 0), 0),
        ((2,), (-1,), 5),
        ((-1,), (1,), 0),
        ((2,), (1, 1), 0),
        ((2.0,), (1,), 0),
        ((2,), (1,), -1),
        ((2**70,), (1,), 0),
        ((0, 2**70), (1, 1), 0),
    ],
)
def test_tensors_beyond_their_storage(tmp_path: Path, size, stride, offset) -> None:
    content = {"x": files.tensor(files.storage_of("0", NUMBERS), size, stride, offset)}
    path = files.write_zip(tmp_path / "a.pth", content, {"0": NUMBERS.tobytes()})
    with pytest.raises(UserError, match="damaged or incomplete"):
        read_checkpoint(path)


def test_declared_sizes_are_not_believed(tmp_path: Path) -> None:
    huge = files.Storage("0", "FloatStorage", 2**50)
    path = files.write_zip(tmp_path / "a.pth", {"x": files.tensor(huge, (2,))}, {"0": b"\0" * 8})
    with pytest.raises(UserError, match="holds 2 elements, not 1125899906842624"):
        read_checkpoint(path)
    legacy = files.write_legacy(tmp_path / "b.pth", {"x": files.tensor(huge, (2,))}, {})
    data = legacy.read_bytes()[: -len(pickle.dumps([], 2))]
    legacy.write_bytes(data + pickle.dumps(["0"], 2) + struct.pack("<q", 2**50) + b"\0" * 8)
    with pytest.raises(UserError, match="is cut"):
        read_checkpoint(legacy)


def test_nothing_is_reserved_before_it_is_there(tmp_path: Path) -> None:
    """A far memo slot, a giant byte string and a giant byte array, in a file of a few bytes."""
    memo = files.write_jittor(
        tmp_path / "a.pkl", b"\x80\x02N" + pickle.LONG_BINPUT + b"\xff" * 4 + b"."
    )
    assert read_checkpoint(memo) is None
    for opcode in (pickle.BINBYTES8, pickle.BYTEARRAY8, pickle.BINUNICODE8):
        body = b"\x80\x05" + opcode + struct.pack("<Q", 2**46) + b"."
        with pytest.raises(UserError):
            read_checkpoint(files.write_jittor(tmp_path / "b.pkl", body))


def test_lists_that_explode_or_hold_themselves(tmp_path: Path) -> None:
    doubled: list = []
    for _ in range(60):
        doubled = [doubled, doubled]
    read_checkpoint(files.write_jittor(tmp_path / "a.pkl", doubled))  # 2**60 entries on paper
    circle: list = []
    circle.append(circle)
    with pytest.raises(UserError):
        read_checkpoint(files.write_jittor(tmp_path / "b.pkl", circle))


def test_big_endian_is_refused(tmp_path: Path) -> None:
    path = files.write_zip(tmp_path / "a.pth", {"x": 1}, {}, byteorder=b"big")
    with pytest.raises(UserError, match="big endian"):
        read_checkpoint(path)


def _seeds(tmp_path: Path) -> dict[str, bytes]:
    return {
        kind: write_state(tmp_path / kind, kind).read_bytes()
        for kind in ("zip", "legacy", "jittor")
    }


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    kind=st.sampled_from(["zip", "legacy", "jittor", "jittor-signed", "zip-signed"]),
    edits=st.lists(st.tuples(st.integers(0, 10**6), st.binary(max_size=6)), min_size=1, max_size=6),
    keep=st.integers(0, 100),
)
def test_damaged_files_raise_user_errors_only(
    tmp_path: Path, kind: str, edits: list[tuple[int, bytes]], keep: int
) -> None:
    """Bytes overwritten, file cut; also inside a valid container, so that the pickle is parsed."""
    base = kind.partition("-")[0]
    data = bytearray((_seeds(tmp_path))[base])
    signed = kind.endswith("signed")
    if signed:
        body = bytearray(
            pickle.dumps(read_checkpoint(tmp_path / base), 4)
            if base == "jittor"
            else files.dumps(state_content())
        )
        data = body
    for place, patch in edits:
        place %= len(data)
        data[place : place + len(patch)] = patch
    data = data[: len(data) - (100 - keep) if keep < 90 else len(data)]
    path = tmp_path / "mutated"
    if signed and base == "jittor":
        files.write_jittor(path, bytes(data))
    elif signed:
        files.write_zip(path, bytes(data), {"0": NUMBERS.tobytes(), "1": b"\0" * 8})
    else:
        path.write_bytes(bytes(data))
    try:
        read_checkpoint(path)
    except UserError as error:
        assert "\n" not in str(error)


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(body=st.binary(max_size=200))
def test_random_pickles_raise_user_errors_only(tmp_path: Path, body: bytes) -> None:
    path = files.write_jittor(tmp_path / "a", b"\x80\x04" + body)
    try:
        read_checkpoint(path)
    except UserError as error:
        assert "\n" not in str(error)


@pytest.mark.parametrize("protocol", (2, 4, 5))
def test_calls_are_refused_beside_weights_too(tmp_path: Path, protocol: int) -> None:
    """Objects may stand beside the weights, calls may not, whatever made the object."""
    trap = tmp_path / "executed"
    content = {"state_dict": {"a": NUMBERS}, "args": [_Runs(trap)]}
    path = files.write_jittor(tmp_path / "a.pkl", pickle.dumps(content, protocol))
    with pytest.raises(UserError, match=r"refused: it wants to call (posix|nt)\.mkdir"):
        state_dict_of(path)
    assert not trap.exists()


@pytest.mark.parametrize("build", [pickle.NEWOBJ, pickle.REDUCE])
def test_objects_of_listed_functions_are_not_made(tmp_path: Path, build: bytes) -> None:
    """NEWOBJ calls ``cls.__new__`` in plain pickle, of whatever stands on the stack."""
    body = b"\x80\x02" + pickle.GLOBAL + b"torch._utils\n_rebuild_tensor_v2\n)" + build + b"."
    with pytest.raises(UserError):
        state_dict_of(files.write_zip(tmp_path / "a.pth", body, {}))


def test_a_whole_module_is_no_state_dict(tmp_path: Path) -> None:
    body = b"\x80\x02" + pickle.GLOBAL + b"torch.nn.modules.linear\nLinear\n)" + pickle.NEWOBJ
    body += pickle.dumps({"training": True}, 2)[2:-1] + pickle.BUILD + b"."
    with pytest.raises(UserError, match="found no tensors but: training"):
        state_dict_of(files.write_zip(tmp_path / "a.pth", body, {}))
