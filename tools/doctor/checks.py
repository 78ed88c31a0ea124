"""What a machine must have for this project: each check looks for real, and names what mends it.

Nothing here is changed on the machine, but for temporary files.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from core import runtime
from core.checkpoints.files import is_whole
from core.errors import UserError
from core.files import sha256_of
from core.memory import machine_bytes
from core.pipeline.folders import PROJECT_ROOT
from core.version import VERSION
from core.work.pool import usable_cores
from sam import weights

OK, WARN, FAIL = "ok", "warn", "fail"

GIB = 1 << 30
_PYTHONS = ((3, 10), (3, 12))
_LEAST_MEMORY, _ENOUGH_MEMORY = 3 * GIB, 8 * GIB
_CACHE_BYTES = 2 * GIB  # Jittor's core, every kernel of the pipeline, and the fetched SAM
_RUN_BYTES = 2 * GIB  # the checkpoints of a run, the latest two of each stage
# Masks and label maps of an image; its features in the clustering, twice while these are joined.
_IMAGE_BYTES, _IMAGE_FILES = 50_000 + 2 * 8192, 4
_START_S, _TOOL_S = 1200, 60
_PROGRAM = """#include <omp.h>
#include <vector>
int threads() { return std::vector<int>(1, omp_get_max_threads())[0]; }
"""
_START = """from core import runtime
jt = runtime.start()
assert (jt.array([1.0, 2.0]) * 2).numpy().tolist() == [2.0, 4.0]
print(jt.__version__, "on the GPU" if jt.flags.use_cuda else "on the CPU")
"""
# A package that another may stand in for.
_STAND_INS = {"faiss-cpu": ("faiss-gpu-cu12", "faiss-gpu")}


@dataclass(frozen=True)
class Check:
    """What was looked at, what was found, and the command that mends it."""

    name: str
    state: str
    """ok, warn (works, with a limit), or fail."""
    found: str
    mend: str = ""


def apt(*packages: str) -> str:
    """The command that installs Debian packages, for this user."""
    return f"{'' if os.geteuid() == 0 else 'sudo '}apt-get install {' '.join(packages)}"


def reason(error: UserError) -> str:
    """What was wrong, without what to do about it."""
    return str(error).split("; ", 1)[0]


# Python and the toolchain -----------------------------------------------------------------------


def program() -> Check:
    """The version of this program, and where it lies."""
    return Check("program", OK, f"{VERSION}, {PROJECT_ROOT}")


def python() -> Check:
    """The interpreter's version, which Jittor and its numpy must have builds for."""
    text = f"{platform.python_version()}, {sys.executable}"
    if _PYTHONS[0] <= sys.version_info[:2] <= _PYTHONS[1]:
        return Check("python", OK, text)
    mend = f"{apt('python3.11', 'python3.11-venv', 'python3.11-dev')}, then: "
    mend += "rm -rf .venv && PYTHON=python3.11 make setup"
    return Check("python", FAIL, f"{text}; expected 3.10 to 3.12", mend)


def packages() -> Check:
    """Whether the packages that requirements.txt names have the versions of this Python's lock."""
    lock = _lock()
    if not lock.is_file():
        return Check("packages", WARN, f"not compared: there is no {lock.name} for this Python")
    pins = dict(re.findall(r"^([\w.-]+)==([\w.]+)", _text(lock), re.MULTILINE))
    names = re.findall(r"^[\w.-]+", _text(PROJECT_ROOT / "requirements.txt"), re.MULTILINE)
    wrong = []
    for name in names:
        wanted = pins[name]
        found = _version(name)
        if found is None and any(_version(other) for other in _STAND_INS.get(name, ())):
            continue
        if found != wanted:
            wrong.append(f"{name} {wanted} is {found or 'missing'}")
    if not wrong:
        return Check("packages", OK, f"{len(names)} as in {lock.relative_to(PROJECT_ROOT)}")
    mend = f"{sys.executable} -m pip install -r {lock}"
    return Check("packages", FAIL, ", ".join(wrong), mend)


def _lock() -> Path:
    """What ``make setup`` installs for this Python."""
    major, minor = sys.version_info[:2]
    return PROJECT_ROOT / "requirements" / f"lock-py{major}{minor}.txt"


def _text(file: Path) -> str:
    return file.read_text(encoding="utf-8")


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def compiler() -> Check:
    """A C++ compiler that makes a library with OpenMP."""
    try:
        path = runtime.check_compiler()
    except UserError as error:
        return Check("compiler", FAIL, reason(error), apt("g++"))
    version = output([path, "-dumpfullversion", "-dumpversion"])
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "check.cc")
        source.write_text(_PROGRAM)
        library = str(source.with_suffix(".so"))
        command = [path, "-O1", "-fPIC", "-shared", "-fopenmp", str(source), "-o", library]
        done = _run(command)
    if done.returncode:
        first = (done.stderr.strip().splitlines() or ["no message"])[0]
        return Check("compiler", FAIL, f"{path} cannot make a library: {first}", apt("g++"))
    return Check("compiler", OK, f"{path} {version}")


def headers() -> Check:
    """The headers of this Python."""
    try:
        return Check("python headers", OK, str(runtime.check_headers()))
    except UserError as error:
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        return Check("python headers", FAIL, reason(error), apt(f"python{version}-dev"))


def onednn() -> Check:
    """The pinned oneDNN, loaded."""
    try:
        library, _ = runtime.check_onednn()
        numbers = ctypes.CDLL(str(library)).dnnl_version
    except (UserError, OSError, AttributeError) as error:
        mend = f"{sys.executable} -m pip install -r {_lock()}"
        found = reason(error) if isinstance(error, UserError) else f"it does not load: {error}"
        return Check("oneDNN", FAIL, found, mend)
    numbers.restype = ctypes.POINTER(ctypes.c_int * 3)
    return Check("oneDNN", OK, f"{'.'.join(map(str, numbers().contents))}, {library}")


def jittor() -> Check:
    """Jittor itself, started in another process; compiles it where that was not done yet."""
    try:
        runtime.own_cache_dir()
    except UserError as error:
        return Check("Jittor", FAIL, reason(error), str(error).partition("; ")[2])
    done = _run([sys.executable, "-c", _START], _START_S)
    if done.returncode == 0:
        return Check("Jittor", OK, done.stdout.strip())
    last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
    cache = runtime.cache_dir() / "jittor"
    mend = f"mend what failed above, then: rm -rf {cache} && python -m uss doctor"
    return Check("Jittor", FAIL, f"it does not start: {last}", mend)


def mpi() -> Check:
    """OpenMPI with its compiler, for several processes; started for real."""
    mpirun = shutil.which("mpirun")
    install = apt("openmpi-bin", "libopenmpi-dev")
    if mpirun is None:
        return Check("MPI", WARN, "no mpirun: one process a stage", install)
    try:
        runtime.check_mpicc()
    except UserError as error:
        return Check("MPI", FAIL, reason(error), install)
    version = output([mpirun, "--version"]).splitlines()[:1]
    if not version or "Open MPI" not in version[0]:
        return Check("MPI", FAIL, f"{mpirun} is not OpenMPI ({' '.join(version)})", install)
    done = _run([mpirun, "-np", "2", "--oversubscribe", "true"])
    if done.returncode and "OMPI_ALLOW_RUN_AS_ROOT" in done.stderr + done.stdout:
        mend = "export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1"
        return Check("MPI", WARN, "mpirun refuses to run as root", mend)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        return Check("MPI", FAIL, f"mpirun cannot start two processes: {last}", install)
    return Check("MPI", OK, version[0].strip())


# What the machine has ---------------------------------------------------------------------------


def cpu() -> Check:
    """Cores that may be used, what they can, and whether others use them."""
    cores, load = usable_cores(), os.getloadavg()[0]
    flags = _first_line(Path("/proc/cpuinfo"), "flags").split()
    widest = next((name for name in ("avx512f", "avx2", "avx") if name in flags), "")
    text = f"{cores} cores, {widest.upper() or platform.machine()}, load {load:.1f}"
    if load > 1.5 * cores:
        return Check("CPU", WARN, f"{text}: other programs slow this one down", "top -o %CPU")
    return Check("CPU", OK, text)


def memory() -> Check:
    """Memory that is free now."""
    found = machine_bytes()
    if found is None:
        return Check("memory", WARN, "not known: the system does not say")
    total, free = found
    text = f"{free / GIB:.1f} of {total / GIB:.1f} GiB available"
    if free >= _ENOUGH_MEMORY:
        return Check("memory", OK, text)
    mend = "end other programs (top -o %MEM), or smaller batches: --set pretrain.batch_size=16"
    return Check("memory", WARN if free >= _LEAST_MEMORY else FAIL, text, mend)


def disk(run: Path, images: int) -> Check:
    """Room for a run of so many images, and for the cache."""
    wants: dict[int, tuple[Path, int, int]] = {}
    for place, wanted, files in (
        (run, _RUN_BYTES + images * _IMAGE_BYTES, images * _IMAGE_FILES),
        (runtime.cache_dir(), 0 if _is_cached() else _CACHE_BYTES, 0),
    ):
        there = _existing(place)
        device = os.stat(there).st_dev
        _, before, before_files = wants.get(device, (there, 0, 0))
        wants[device] = (there, before + wanted, before_files + files)
    texts, state = [], OK
    for there, wanted, files in wants.values():
        system = os.statvfs(there)
        free = system.f_bavail * system.f_frsize
        text = f"{free / GIB:.1f} GiB free at {there}"
        if free < wanted:
            state, text = FAIL, f"{text}, of {wanted / GIB:.1f} wanted"
        if system.f_files and system.f_favail < files:
            state, text = FAIL, f"{text}, {system.f_favail} free inodes of {files} wanted"
        texts.append(text)
    mend = "RUN=/another/disk/run bash train_1.sh (and USS_CACHE=/another/disk/cache)"
    return Check("disk", state, ", ".join(texts), mend if state != OK else "")


def writing(folders: dict[str, Path]) -> Check:
    """Whether files can be made in (or beside what will be) these folders; name -> folder."""
    wrong, first = [], None
    for name, folder in folders.items():
        there = _existing(folder)
        try:
            with tempfile.TemporaryFile(dir=there):
                pass
        except OSError as error:
            wrong.append(f"{name} {there}: {error.strerror}")
            first = first or there
    if not wrong:
        return Check("write access", OK, ", ".join(str(folder) for folder in folders.values()))
    mend = f"chmod u+w {first}, or name another place: RUN=..., --dump_path ..., USS_CACHE=..."
    return Check("write access", FAIL, ", ".join(wrong), mend)


def sam_weights(folder: Path = weights.WEIGHTS) -> Check:
    """SAM's weights, by their published SHA-256."""
    good: list[Path] = []
    wrong: list[Path] = []
    names: list[str] = []
    for entry in weights.manifest()["by_hand"]:
        path = folder / entry["file"]
        if "sha256" not in entry or not path.is_file():
            continue
        if sha256_of(path) == entry["sha256"]:
            good.append(path)
        else:
            wrong.append(path)
            names.append(entry["name"])
    if wrong:
        listed = " ".join(str(path) for path in wrong)
        text = f"{listed}: not the published file (SHA-256 differs)"
        again = " && ".join(f"python -m uss weights {name}" for name in names)
        return Check("SAM weights", FAIL, text, f"rm {listed} && {again}")
    fetched = weights.fetched_path()
    if fetched.is_file():
        if not is_whole(fetched):
            mend = f"rm {fetched} && python -m uss weights"
            return Check("SAM weights", FAIL, f"{fetched} is damaged", mend)
        good.append(fetched)
    try:
        used = weights.find_sam(folder).path
    except UserError as error:
        mend = "python -m uss weights"
        if shutil.which("npm") is None:
            mend = f"{apt('npm')} && {mend}"
        return Check("SAM weights", FAIL, reason(error), mend)
    note = "intact" if used in good else "not checked: no published SHA-256"
    return Check("SAM weights", OK, f"{used} ({note})")


# Helpers ----------------------------------------------------------------------------------------


def output(command: list[str]) -> str:
    """What a program prints; "" where it cannot be run."""
    try:
        return _run(command).stdout.strip()
    except OSError:
        return ""


def _run(command: list[str], seconds: float = _TOOL_S) -> subprocess.CompletedProcess[str]:
    """The finished command; one that takes too long counts as failed."""
    try:
        return subprocess.run(
            command, cwd=PROJECT_ROOT, capture_output=True, text=True, timeout=seconds, check=False
        )
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(command, 1, "", f"no answer for {seconds:.0f} s")


def _existing(path: Path) -> Path:
    """``path`` or the nearest folder above it that is there."""
    path = path.absolute()
    return next(place for place in (path, *path.parents) if place.is_dir())


def _is_cached() -> bool:
    return any((runtime.cache_dir() / "jittor").glob(".cache/jittor/jt*"))


def _first_line(path: Path, start: str) -> str:
    """The rest of the first line that starts so; "" without one."""
    return next((line[len(start) :].lstrip(" \t:") for line in _lines(path, start)), "")


def _lines(path: Path, start: str) -> Iterator[str]:
    with contextlib.suppress(OSError), open(path, encoding="utf-8", errors="replace") as file:
        yield from (line for line in file if line.startswith(start))
