"""Starting Jittor, in real processes: what it leaves alone, what it says when it cannot."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from core import cuda, runtime
from tests.conftest import ROOT
from tests.helpers.leftovers import TOKEN
from tests.helpers.processes import GUARDED, PATIENCE_S, killed_at_the_end, only

WORK = "(jt.rand(4, 5) @ jt.rand(5, 6)).sum().numpy()"


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The environment of a fresh login that finds the kernels compiled already."""
    cache = str(runtime.cache_dir())
    keep = ("HOME", "PATH", "LANG", "LD_LIBRARY_PATH", "TMPDIR", TOKEN)
    variables = {key: os.environ[key] for key in keep if key in os.environ}
    return {**variables, "USS_CACHE": cache}


def python(
    code: str, environment: dict[str, str], *arguments: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )


def assert_user_error(done: subprocess.CompletedProcess[str], *texts: str) -> None:
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    for text in texts:
        assert text in done.stderr


STATE = """
import json, os, resource, signal, ssl, sys, threading
from core import cuda, runtime

def caught():
    lines = dict(line.split(":", 1) for line in open("/proc/self/status"))
    # Realtime signals 32 and 33 belong to the C library's threads.
    return [int(lines[key], 16) & 0x7FFFFFFF for key in ("SigCgt", "SigIgn", "SigBlk")]

def state():
    return {
        "caught": caught(),
        "handlers": [str(signal.getsignal(n)) for n in range(1, 32)],
        "recursion": sys.getrecursionlimit(),
        "stack": resource.getrlimit(resource.RLIMIT_STACK),
        "tls": str(ssl._create_default_https_context),
        "hooks": [str(sys.exit), str(sys.excepthook)],
        "home": os.environ.get("HOME"),
        "folder": os.getcwd(),
    }

signal.signal(signal.SIGUSR1, lambda *_: None)
before = state()
assert not runtime.started()
if sys.argv[1] == "thread":
    thread = threading.Thread(target=runtime.start)
    thread.start()
    thread.join()
jt = runtime.start()
assert runtime.started() and runtime.start() is jt and runtime.nn is jt.nn
imported = state()
WORK
print(json.dumps([before, imported, state()]))
""".replace("WORK", WORK)


@pytest.mark.parametrize("where", ["main", "thread"])
def test_the_process_stays_as_it_was(environment: dict[str, str], where: str) -> None:
    done = python(STATE, environment, where)
    assert done.returncode == 0, done.stderr
    before, imported, worked = json.loads(done.stdout)
    assert imported == before
    assert worked == before
    assert done.stderr == ""


def test_a_home_without_a_name_stays_without(environment: dict[str, str]) -> None:
    del environment["HOME"]
    code = "import os; from core.runtime import jt; print(os.environ.get('HOME'))"
    assert python(code, environment).stdout.strip() == "None"


def test_importing_the_module_starts_nothing(environment: dict[str, str]) -> None:
    code = "import sys, core.runtime; print('jittor' in sys.modules, core.runtime.started())"
    assert python(code, environment).stdout.split() == ["False", "False"]


def test_an_import_behind_its_back_is_a_bug(environment: dict[str, str]) -> None:
    code = "import sys; sys.modules['jittor'] = sys; from core import runtime; runtime.start()"
    assert "RuntimeError: jittor was imported before" in python(code, environment).stderr


def test_nothing_is_written_into_the_home(environment: dict[str, str], tmp_path: Path) -> None:
    """Jittor keeps ~/.cache/jittor/config.json, which moves every other project's cache."""
    home = tmp_path / "home"
    home.mkdir()
    environment["HOME"] = str(home)
    # A kernel that no cache has: compiling it must not touch the home folder either.
    fresh = f"jt.code([1], 'float32', cpu_src='out0_p[0] = {random.random()};').numpy()"
    done = python(f"from core.runtime import jt\n{WORK}\n{fresh}", environment)
    assert done.returncode == 0, done.stderr
    assert list(home.iterdir()) == []


def test_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("USS_CACHE", str(tmp_path))
    assert runtime.cache_dir() == tmp_path
    monkeypatch.setenv("USS_CACHE", "~/x")
    assert runtime.cache_dir() == Path.home() / "x"
    monkeypatch.delenv("USS_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert runtime.cache_dir() == tmp_path / "uss-jittor"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert runtime.cache_dir() == Path.home() / ".cache" / "uss-jittor"


@pytest.mark.parametrize("variable", ["USS_CACHE", "XDG_CACHE_HOME"])
def test_kernels_of_others_are_not_loaded(
    environment: dict[str, str], tmp_path: Path, variable: str
) -> None:
    """The folder that is advised nowhere: whoever makes it first would run code as all others."""
    del environment["USS_CACHE"]
    environment[variable] = str(tmp_path)
    folder = tmp_path if variable == "USS_CACHE" else tmp_path / "uss-jittor"
    folder.mkdir(exist_ok=True)
    folder.chmod(0o777)
    done = python(GUARDED.format(body="from core.runtime import jt"), environment)
    assert_user_error(done, f"cache folder {folder} can be written by other users", "chmod go-w")
    assert list(folder.iterdir()) == []


LOOP = GUARDED.format(
    body=f"""
    from core.runtime import jt
    {WORK}
    print("working", flush=True)
    try:
        while True:
            {WORK}
    finally:
        print("tidied up", flush=True)"""
)


def test_ctrl_c_during_compiled_work(environment: dict[str, str]) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", LOOP],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with killed_at_the_end(process):
        assert process.stdout is not None
        assert process.stdout.readline() == "working\n"
        time.sleep(0.3)
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 130, errors
    assert output == "tidied up\n"
    assert errors.startswith("interrupted") and errors.count("\n") == 1


def test_a_killed_child_does_not_kill_the_parent(environment: dict[str, str]) -> None:
    code = f"""
import subprocess
from core.runtime import jt
{WORK}
for number in (9, 11, 6):
    child = subprocess.Popen(["sleep", "60"])
    child.send_signal(number)
    assert child.wait() == -number
{WORK}
print("alive")
"""
    done = python(code, environment)
    assert done.stdout == "alive\n", done.stderr


START = GUARDED.format(body="from core import runtime; runtime.start()")


def test_no_compiler(environment: dict[str, str], tmp_path: Path) -> None:
    environment["PATH"] = only(tmp_path / "bin")
    assert_user_error(python(START, environment), "'g++' is not on PATH", "apt-get install g++")


@pytest.mark.parametrize("missing", ["Python.h", "python-config"])
def test_no_python_headers(environment: dict[str, str], tmp_path: Path, missing: str) -> None:
    if missing == "Python.h":
        change = f"import sysconfig; sysconfig.get_paths = lambda: {{'include': {str(tmp_path)!r}}}"
    else:
        change = "runtime._python_config = lambda: None"
    body = f"from core import runtime; {change}; runtime.start()"
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    done = python(GUARDED.format(body=body), environment)
    assert_user_error(done, "Python.h or", f"apt-get install {version}-dev")


def test_no_onednn(environment: dict[str, str], tmp_path: Path) -> None:
    body = f"from core import runtime; sys.prefix = {str(tmp_path)!r}; runtime.start()"
    done = python(GUARDED.format(body=body), environment)
    assert_user_error(done, f"oneDNN is missing from {tmp_path}", "make setup")


def test_mpirun_without_mpicc(environment: dict[str, str], tmp_path: Path) -> None:
    environment.update(PATH=only(tmp_path / "bin", "g++"), OMPI_COMM_WORLD_SIZE="2")
    assert_user_error(python(START, environment), "needs mpicc", "libopenmpi-dev")


def test_device_choice(environment: dict[str, str]) -> None:
    environment["USS_DEVICE"] = "gpu"
    done = python(START, environment)
    assert_user_error(done, "USS_DEVICE must be auto, cpu or cuda, not 'gpu'")
    environment["USS_DEVICE"] = "cpu"
    code = "from core.runtime import jt; print(jt.flags.use_cuda)"
    assert python(code, environment).stdout.split() == ["0"]
    if cuda.usable_nvcc()[0]:
        pytest.skip("a usable CUDA is here, so asking for it is no error")
    environment["USS_DEVICE"] = "cuda"
    assert_user_error(python(START, environment), "USS_DEVICE=cuda but ", "or USS_DEVICE=cpu")


@pytest.mark.parametrize(
    "release,libraries,reason",
    [
        ("V12.2, release 12.2, x", True, ""),
        ("V13.0, release 13.0, x", True, "CUDA 13 is newer than Jittor 1.3.11 supports"),
        ("V12.2, release 12.2, x", False, "libcudart was not found beside"),
        ("no number", True, "does not state its version"),
    ],
)
def test_which_cuda_is_usable(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, release: str, libraries: bool, reason: str
) -> None:
    """A compiler that Jittor cannot use must not be chosen: its import would end in a crash."""
    nvcc = tmp_path / "bin" / "nvcc"
    nvcc.parent.mkdir()
    nvcc.write_text(f"#!/bin/sh\necho '{release}'\n")
    nvcc.chmod(0o755)
    if libraries:
        (tmp_path / "lib64").mkdir()
        (tmp_path / "lib64" / "libcudart.so.12").touch()
    monkeypatch.setattr(cuda, "cuda_devices", lambda: 1)
    monkeypatch.setenv("nvcc_path", str(nvcc))
    found, why = cuda.usable_nvcc()
    assert (found == str(nvcc)) == (reason == "") and reason in why
    monkeypatch.setenv("nvcc_path", str(tmp_path / "none"))
    assert cuda.usable_nvcc() == ("", "nvcc was not found")
    monkeypatch.setattr(cuda, "cuda_devices", lambda: 0)
    assert cuda.usable_nvcc() == ("", "no CUDA device is visible")


@pytest.mark.parametrize(
    "devices,wanted,warns", [(1, "auto", True), (1, "cpu", False), (0, "auto", False)]
)
def test_a_gpu_that_stays_unused_is_no_secret(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    devices: int,
    wanted: str,
    warns: bool,
) -> None:
    monkeypatch.setattr(cuda, "cuda_devices", lambda: devices)
    monkeypatch.setenv("nvcc_path", "/nowhere/nvcc")
    monkeypatch.setenv("USS_DEVICE", wanted)
    assert cuda.choose_cuda() == ""
    said = capsys.readouterr().err
    assert ("warning: a GPU is here but nvcc was not found" in said) == warns
    assert said.count("\n") == warns


def test_onednn_flags_lead_to_the_library() -> None:
    runtime.start()
    flags = runtime.onednn_flags().split()
    include = next(flag[2:] for flag in flags if flag.startswith("-I"))
    library = next(flag[2:] for flag in flags if flag.startswith("-L"))
    assert (Path(include) / "dnnl.h").is_file()
    assert (Path(library) / "libmkldnn.so").is_file()
