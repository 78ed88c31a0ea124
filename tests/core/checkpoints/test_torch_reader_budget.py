"""Files of a few bytes to a few megabytes that describe more than any memory holds, or something
that takes for ever: each ends in one line at once, and real files that look alike are read.
"""

from __future__ import annotations

import pickle
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from core.checkpoints.torch_reader import read_checkpoint, state_dict_of
from core.data.image_labels import read_label_file
from core.errors import UserError
from tests.conftest import ROOT
from tests.helpers import torch_files as files

_SECONDS = 10  # of the processor, most of them for machines that are busy
_MEBIBYTES = 500

_READ = """
import resource, sys
from core.checkpoints.torch_reader import state_dict_of
from core.errors import UserError
from core.memory import resident_mib
resource.setrlimit(resource.RLIMIT_CPU, (10, 10))
resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))
try:
    state_dict_of(sys.argv[1])
except UserError as error:
    print(str(error).replace("\\n", "NEWLINE"))
else:
    print("read")
print(int(resident_mib("VmHWM")))
"""


def read_in_process(path: Path) -> str:
    """What came of reading a file, in a process that is ended when it takes too long."""
    done = subprocess.run(
        [sys.executable, "-c", _READ, str(path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60 * _SECONDS,
        check=False,
    )
    assert done.returncode == 0, (done.returncode, done.stderr[-2000:])
    line, peak = done.stdout.splitlines()
    assert int(peak) < _MEBIBYTES, (line, peak)
    return line


def put(number: int) -> bytes:
    return pickle.LONG_BINPUT + struct.pack("<I", number)


def get(number: int) -> bytes:
    return pickle.LONG_BINGET + struct.pack("<I", number)


def text(value: str) -> bytes:
    return pickle.BINUNICODE + struct.pack("<I", len(value)) + value.encode()


def name(module: str, attribute: str) -> bytes:
    return pickle.GLOBAL + f"{module}\n{attribute}\n".encode()


def doubled(levels: int, pair: bytes = pickle.TUPLE2) -> bytes:
    """A tuple of twice the tuple of twice ...: 2 ** levels entries on paper, on the stack."""
    return pickle.EMPTY_TUPLE + b"".join(put(level) + get(level) + pair for level in range(levels))


def called(function: bytes, arguments: bytes) -> bytes:
    return function + arguments + pickle.TUPLE1 + pickle.REDUCE


def jittor(path: Path, body: bytes) -> Path:
    return files.write_jittor(path, b"\x80\x02" + body + pickle.STOP)


def nested_entries(path: Path, count: int, size: int) -> Path:
    """A zip with many names for the same bytes: each entry holds the header of the next one."""
    content = files.dumps(
        {str(i): files.tensor(files.Storage(str(i), "ByteStorage", 8), (8,)) for i in range(count)}
    )
    body, places = bytearray(), {}

    def header(entry: str, length: int, crc: int) -> bytes:
        return (
            struct.pack("<4s5H3L2H", b"PK\3\4", 20, 0, 0, 0, 33, crc, length, length, len(entry), 0)
            + entry.encode()
        )

    places["a/data.pkl"] = (0, len(content))
    body += header("a/data.pkl", len(content), zipfile.crc32(content)) + content
    names = [f"a/data/{i}" for i in range(count)]
    # From the innermost one outwards, for each one's checksum is over all that it holds.
    inner, tail = bytes(size), []
    for entry in reversed(names):
        tail.append((entry, len(inner), zipfile.crc32(inner)))
        inner = header(entry, len(inner), zipfile.crc32(inner)) + inner
    place = len(body)
    for entry, length, _crc in reversed(tail):
        places[entry] = (place, length)
        place += 30 + len(entry)
    body += inner
    checksums = {entry: crc for entry, _length, crc in tail}
    checksums["a/data.pkl"] = zipfile.crc32(content)
    directory = bytearray()
    for entry, (start, length) in places.items():
        directory += struct.pack(
            "<4s6H3L5H2L",
            *(b"PK\1\2", 20, 20, 0, 0, 0, 33, checksums[entry], length, length, len(entry)),
            *(0, 0, 0, 0, 0, start),
        )
        directory += entry.encode()
    end = struct.pack(
        "<4s4H2LH", b"PK\5\6", 0, 0, len(places), len(places), len(directory), len(body), 0
    )
    path.write_bytes(bytes(body + directory) + end)
    return path


def repeated(path: Path, count: int, size: tuple[int, ...]) -> Path:
    """Many tensors of one number each, by strides of 0."""
    one = files.Storage("0", "FloatStorage", 1)
    stride = (0,) * len(size)
    content = {f"layer{i}.weight": files.tensor(one, size, stride) for i in range(count)}
    return files.write_zip(path, content, {"0": b"\0\0\x80\x3f"})


_TENSOR = name("torch._utils", "_rebuild_tensor_v2")
_PATH = name("pathlib", "PosixPath")
_DICT = name("collections", "OrderedDict")

BOMBS: dict[str, Callable[[Path], Path]] = {
    # 1. Text made of nested lists.
    "lists in a device": lambda p: jittor(p, called(name("torch", "device"), doubled(40))),
    "lists in a path": lambda p: jittor(p, called(_PATH, doubled(40))),
    # 2. Text of whole values in messages.
    "storage of nested lists": lambda p: jittor(p, _TENSOR + b"(" + doubled(40) + b"K\0))tR"),
    "size of nested lists": lambda p: jittor(p, called(name("torch", "Size"), doubled(40))),
    "encoding of nested lists": lambda p: jittor(
        p, name("_codecs", "encode") + text("a") + doubled(40) + pickle.TUPLE2 + pickle.REDUCE
    ),
    "byte order of nested lists": lambda p: jittor(
        p,
        called(name("numpy", "dtype"), text("f4")) + b"(K\3" + doubled(40) + b"NNNtb",
    ),
    "reference of nested lists": lambda p: files.write_zip(
        p, b"\x80\x02(" + text("storage") + doubled(40) + b"NNNtQ.", {}
    ),
    # 3. Keys whose hash takes for ever.
    "tuple as a key": lambda p: jittor(p, b"}" + doubled(40) + b"K\1s"),
    "tuple as one of the keys": lambda p: jittor(p, b"}(" + doubled(40) + b"K\1u"),
    "tuple as a key of a dict": lambda p: jittor(p, b"(" + doubled(40) + b"K\1d"),
    "tuple in a set": lambda p: jittor(p, b"\x8f(" + doubled(40) + b"\x90"),
    "tuple in a frozen set": lambda p: jittor(p, b"(" + doubled(40) + b"\x91"),
    "tuple in a called set": lambda p: jittor(
        p, called(name("builtins", "set"), doubled(40) + pickle.TUPLE1)
    ),
    "tuple in an ordered dict": lambda p: jittor(
        p, called(_DICT, b"]" + doubled(40) + b"K\1" + pickle.TUPLE2 + b"a")
    ),
    # 4. Large tensors of one number.
    "thousands of repeated tensors": lambda p: repeated(p, 3000, (1 << 12, 1 << 12)),
    "one huge repeated tensor": lambda p: repeated(p, 1, (1 << 20, 1 << 10)),
    # 5. Archive entries within each other.
    "nested entries": lambda p: nested_entries(p, 300, 2 << 20),
    # Their neighbours.
    "array of elements without bytes": lambda p: jittor(
        p,
        name("numpy.core.multiarray", "_reconstruct")
        + b")R(K\1"
        + pickle.LONG1
        + b"\5\0\0\0\0\4"
        + b"\x85"
        + called(name("numpy", "dtype"), text("S0"))
        + b"\x89C\0tb",
    ),
    "millions of empty sets": lambda p: jittor(p, b"(" + b"\x8f" * 4_000_000 + b"l"),
    "millions of open marks": lambda p: jittor(p, b"(" * 8_000_000),
    "millions of calls": lambda p: jittor(p, _DICT + put(0) + b"(" + b"h\0)R" * 2_000_000 + b"l"),
    "a long text copied": lambda p: jittor(
        p,
        _PATH
        + put(0)
        + text("x" * 4_000_000)
        + put(1)
        + b"("
        + (get(0) + get(1) + get(1) + b"\x86R") * 100_000
        + b"l",
    ),
    "a long list copied": lambda p: jittor(
        p,
        name("builtins", "set")
        + put(0)
        + b"("
        + b"K\1" * 1_000_000
        + b"l"
        + put(1)
        + b"("
        + (get(0) + get(1) + b"\x85R") * 100_000
        + b"l",
    ),
    "a long integer as keys": lambda p: jittor(
        p,
        pickle.LONG4
        + struct.pack("<i", 4_000_000)
        + b"\1" * 4_000_000
        + put(0)
        + b"}("
        + (get(0) + b"N") * 500_000
        + b"u",
    ),
    "a list that holds a list that ...": lambda p: jittor(p, b"]" * 500_000 + b"a" * 499_999),
    "a prefix without end": lambda p: files.write_jittor(
        p, {"module." * 1_000_000 + "weight": np.zeros(2, np.float32)}
    ),
    "one array under many names": lambda p: files.write_jittor(
        p, dict.fromkeys(map(str, range(50_000)), np.zeros(1 << 16, np.float16))
    ),
    "one storage as many types": lambda p: files.write_zip(
        p,
        {
            f"{kind}{i}": files.tensor(files.Storage("0", "BFloat16Storage", i), (i,))
            for i in range(1 << 19, (1 << 19) + 500)
            for kind in ("a", "b")
        },
        {"0": bytes(1 << 21)},
    ),
}


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(kind, marks=pytest.mark.slow) if kind.startswith("millions") else kind
        for kind in BOMBS
    ],
)
def test_small_files_cannot_unfold(tmp_path: Path, kind: str) -> None:
    path = BOMBS[kind](tmp_path / "bomb.pth")
    assert path.stat().st_size < 9 << 20
    line = read_in_process(path)
    assert line == "read" or line.startswith(f"{path}: "), line
    assert len(line) < 600 and "NEWLINE" not in line


def test_real_files_that_look_alike_are_read(tmp_path: Path) -> None:
    """Names that share weights, views of one flat buffer, repeated numbers, optimisers."""
    buffer = np.arange(1 << 20, dtype=np.float32)
    flat = files.storage_of("0", buffer)
    content = {
        "model": {
            **{f"part{i}": files.tensor(flat, (64, 64), offset=4096 * i) for i in range(256)},
            **{f"tied{i}": files.tensor(flat, (1 << 20,)) for i in range(4)},
            "repeated": files.tensor(files.Storage("1", "FloatStorage", 1), (256, 1024), (0, 0)),
        },
        "steps": {(number): float(number) for number in range(100_000)},
    }
    path = files.write_zip(
        tmp_path / "a.pth", content, {"0": buffer.tobytes(), "1": b"\0\0\x80\x3f"}
    )
    state = state_dict_of(path)
    assert len(state) == 261
    np.testing.assert_array_equal(state["part255"].ravel(), buffer[-4096:])
    assert (state["repeated"] == 1).all() and state["repeated"].shape == (256, 1024)
    half = np.ones((1 << 22), np.float16)
    half_path = files.write_zip(
        tmp_path / "b.pth",
        {f"name{i}": files.tensor(files.storage_of("0", half), (1 << 22,)) for i in range(3)},
        {"0": half.tobytes()},
    )
    assert all(value.dtype == np.float32 for value in state_dict_of(half_path).values())


def test_labels_of_a_large_data_set_are_read(tmp_path: Path) -> None:
    """The smallest vectors make the most objects for each byte of a file."""
    content = {f"2007_{i:06d}": np.zeros(20, np.uint8) for i in range(40_000)}
    array = np.empty((), object)
    array[()] = content
    np.save(tmp_path / "labels.npy", array)
    names = [f"class{i}" for i in range(20)]
    assert len(read_label_file(tmp_path / "labels.npy", names)) == len(content)


def test_memory_that_is_short_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_memory(*_arguments: object) -> None:
        raise MemoryError

    path = files.write_state(tmp_path / "a.pth", "zip")
    monkeypatch.setattr(np, "empty", no_memory)
    with pytest.raises(UserError, match="does not fit into the memory") as caught:
        read_checkpoint(path)
    assert str(caught.value).startswith(f"{path}: ") and str(caught.value).isprintable()
