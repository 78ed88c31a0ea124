"""Checkpoint files of every kind are read right, and none makes the reader do anything else."""

from __future__ import annotations

import os
import pickle
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch_files as files
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from core.errors import UserError
from core.torch_reader import read_checkpoint, state_dict_of

NUMBERS = np.arange(24, dtype=np.float32)


def state_content(legacy: bool = False) -> dict:
    """Whole, transposed, sliced, scalar, empty and expanded tensors of one storage."""
    whole = files.storage_of("0", NUMBERS)
    counter = files.Storage("1", "LongStorage", 1)
    hooks = files.Call(files.Global("collections", "OrderedDict"), ())
    parameter = files.Global("torch._utils", "_rebuild_parameter")
    return {
        "epoch": 7,
        "state_dict": {
            "module.whole": files.Call(parameter, (files.tensor(whole, (2, 3, 4)), True, hooks)),
            "module.transposed": files.tensor(whole, (4, 3, 2), (1, 4, 12)),
            "module.slice": files.tensor(whole, (3, 2), (4, 1), 13),
            "module.scalar": files.tensor(whole, (), (), 5),
            "module.empty": files.tensor(whole, (0, 3)),
            "module.expanded": files.tensor(whole, (2, 5), (1, 0), 3),
            "module.bn.num_batches_tracked": files.tensor(counter, ()),
        },
    }


def write_state(path: Path, kind: str) -> Path:
    content, counter = state_content(), np.array([3], np.int64)
    if kind == "zip":
        return files.write_zip(path, content, {"0": NUMBERS.tobytes(), "1": counter.tobytes()})
    if kind == "legacy":
        return files.write_legacy(path, content, {"0": NUMBERS, "1": counter})
    block = NUMBERS.reshape(2, 3, 4)
    state = {
        "whole": block,
        "transposed": np.asfortranarray(block).transpose(2, 1, 0),
        "slice": block[1, :, 1:3],
        "scalar": np.array(NUMBERS[5]),
        "empty": np.zeros((0, 3), np.float32),
        "expanded": np.broadcast_to(NUMBERS[3:5, None], (2, 5)),
    }
    return files.write_jittor(path, {"epoch": 7, "state_dict": state})


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


# ---- what is refused


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
        ("core.plain_pickle", "load", ("x",)),
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


def test_reader_starts_neither_torch_nor_jittor() -> None:
    code = (
        "import sys, core.torch_reader\n"
        "print(sorted({'torch', 'jittor', 'jittor_core'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# ---- files of the real programs


def test_files_of_jittor(tmp_path: Path) -> None:
    """What jt.save writes: variables, a model's weights, an optimiser's state."""
    from core.runtime import jt, nn

    model = nn.Linear(3, 2)
    optimizer = jt.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    optimizer.step(model(jt.ones((4, 3))).sum())
    path = tmp_path / "a.pth.tar"
    content = {"state_dict": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 3}
    jt.save(content, str(path))
    np.testing.assert_array_equal(state_dict_of(path)["weight"], model.weight.numpy())
    read = read_checkpoint(path)
    assert read["epoch"] == 3 and read["optimizer"]["defaults"]["momentum"] == 0.9
    values = read["optimizer"]["defaults"]["param_groups"][0]["values"]
    assert [value.shape for value in values] == [(2, 3), (2,)]
    model.save(str(tmp_path / "b.pkl"))
    np.testing.assert_array_equal(state_dict_of(tmp_path / "b.pkl")["bias"], model.bias.numpy())


@pytest.mark.torch
@pytest.mark.parametrize("legacy", [False, True])
def test_files_of_torch(tmp_path: Path, legacy: bool) -> None:
    torch = pytest.importorskip("torch")
    block = torch.arange(24.0).reshape(2, 3, 4)
    tensors = {
        "module.whole": block,
        "module.transposed": block.transpose(0, 2),
        "module.slice": block[1, :, 1:3],
        "module.scalar": torch.tensor(2.5),
        "module.expanded": torch.ones(1).expand(4, 5),
        "module.parameter": torch.nn.Parameter(torch.randn(2, 2)),
        "bool": torch.tensor([True, False]),
        "bfloat": torch.randn(5).bfloat16(),
        "half": torch.randn(5).half(),
    }
    if not legacy:
        tensors["uint16"] = torch.tensor([1, 60000], dtype=torch.uint16)
    model = torch.nn.Sequential(torch.nn.Conv2d(2, 3, 1), torch.nn.BatchNorm2d(3))
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    model(torch.randn(2, 2, 4, 4)).sum().backward()
    optimizer.step()
    content = {
        "state_dict": tensors,
        "net": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "size": block.shape,
    }
    path = tmp_path / "a.pth.tar"
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    read = read_checkpoint(path)
    assert read["size"] == (2, 3, 4)
    assert read["optimizer"]["param_groups"][0]["lr"] == 0.1
    for key, value in {**tensors, **model.state_dict()}.items():
        got = read["state_dict"].get(key, read["net"].get(key))
        wanted = value.detach()
        wanted = (wanted.float() if wanted.dtype == torch.bfloat16 else wanted).numpy()
        assert got.dtype == wanted.dtype and got.shape == wanted.shape
        np.testing.assert_array_equal(got, wanted)
    torch.save(model, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(UserError, match="refused: it wants to call torch.nn.modules"):
        read_checkpoint(path)
