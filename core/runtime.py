"""The one place that imports Jittor: offline, quiet, with oneDNN, and without side effects on the
process.

``jt = runtime.start()`` at the top of a function (never at import time of a numpy-only module)
gives the Jittor module. Modules that define networks write ``from core.runtime import jt, nn``
instead, which starts it on first access. Nobody else imports ``jittor``; a test holds that.

When it is imported, Jittor 1.3.11 downloads oneDNN, lets SIGINT kill the process, turns TLS
verification off for urllib, raises the recursion and stack limits, and writes its cache location
into a file that every other project reads. This module prevents or undoes each of these.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import os
import resource
import shlex
import shutil
import signal
import ssl
import sys
import sysconfig
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from core.cuda import choose_cuda
from core.errors import UserError, under_mpi
from core.files import private_folder

# Jittor looks for exactly this folder name below <home>/.cache/jittor/mkl before it tries to
# download.
_ONEDNN_FOLDER = "dnnl_lnx_2.2.0_cpu_gomp"
_ONEDNN_WHEEL = "onednn-devel-cpu-gomp"

# Signals that Jittor answers by ending the process, whatever the program wants.
_JITTOR_SIGNALS = (
    signal.SIGINT,
    signal.SIGCHLD,
    signal.SIGQUIT,
    signal.SIGSEGV,
    signal.SIGFPE,
    signal.SIGILL,
    signal.SIGBUS,
)
_SIGACTION_BYTES = 512  # room for a `struct sigaction`, 152 bytes on x86-64

_lock = threading.RLock()
_jittor: Any = None


def cache_dir() -> Path:
    """Folder for everything this project caches per user: compiled kernels and fetched weights.

    ``USS_CACHE`` overrides the default ``$XDG_CACHE_HOME/uss-jittor`` (``~/.cache/uss-jittor``).
    """
    override = os.environ.get("USS_CACHE")
    if override:
        return Path(override).expanduser().absolute()
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base).absolute() / "uss-jittor"


def own_cache_dir() -> Path:
    """:func:`cache_dir`, made where it is missing, without links and safe to load code from: nobody
    else can write into it.

    Raises:
        UserError: it belongs to another user, or others can write into it; says how to mend that.
    """
    try:
        return private_folder(cache_dir())
    except UserError as error:
        raise UserError(f"cache folder {error} (USS_CACHE names it)") from error


def start() -> Any:
    """Import Jittor (once per process) and return the module.

    The device is chosen by ``USS_DEVICE``: ``auto`` (default: CUDA where a usable one is found,
    else CPU), ``cpu``, or ``cuda`` (an error where none is usable).

    Raises:
        UserError: no C++ compiler, no Python headers, no oneDNN wheel, no usable CUDA when it was
            asked for, or a cache folder that others can write.
    """
    global _jittor
    with _lock:
        if _jittor is None:
            if "jittor" in sys.modules:
                raise RuntimeError(
                    "jittor was imported before core.runtime.start(); import it from core.runtime"
                )
            _jittor = _import_jittor()
            # Its kernels flush subnormal numbers to zero, which numpy remarks upon once.
            warnings.filterwarnings("ignore", "The value of the smallest subnormal", UserWarning)
        return _jittor


def started() -> bool:
    """True once :func:`start` has imported Jittor in this process."""
    return _jittor is not None


def __getattr__(name: str) -> Any:
    """``from core.runtime import jt, nn``: the Jittor module and its ``nn``, started on first
    access.
    """
    if name == "jt":
        return start()
    if name == "nn":
        return start().nn
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def onednn_flags() -> str:
    """Compiler flags with which a ``jt.code`` kernel includes ``dnnl.h`` and links the oneDNN that
    Jittor uses.
    """
    root = _onednn_shim()
    return f"-I{root / 'include'} -L{root / 'lib'} -Wl,-rpath,{root / 'lib'} -lmkldnn"


def _import_jittor() -> Any:
    check_compiler()
    if under_mpi():
        check_mpicc()
    check_headers()
    cuda = choose_cuda()
    home = _jittor_home()
    _lay_out_onednn()
    _set_environment(cuda)
    if not any((home / ".cache" / "jittor").glob("jt*")):
        print(
            "compiling Jittor (first start on this machine, about two minutes) ...",
            file=sys.stderr,
            flush=True,
        )
    with _process_state_kept(), _home(home):
        try:
            import jittor
        except SystemExit as ended:
            # Jittor leaves with code 0 after rebuilding its loader, as if the work had been done.
            raise UserError(
                f"Jittor rebuilt a part of itself in {home}; run the same command again"
            ) from ended
        _end_compile_processes()
    # Each kernel is compiled through a script that makes Jittor's cache folders below HOME again.
    jittor.flags.python_path = f"HOME={shlex.quote(str(home))} {shlex.quote(sys.executable)}"
    if cuda:
        jittor.flags.use_cuda = 1
    return jittor


def _end_compile_processes() -> None:
    """End the processes that Jittor forked to compile its core and would keep until the exit.

    They have nothing left to do, and on Ctrl-C each would print a traceback. Jittor forks new ones
    when it needs them.
    """
    import jittor_utils

    if jittor_utils.pool_size:
        atexit.unregister(jittor_utils.pool_cleanup)
        # Not terminate(), as Jittor does: a worker killed while it holds the queue's lock hangs us.
        jittor_utils.p.close()
        jittor_utils.p.join()
        del jittor_utils.p
        jittor_utils.pool_size = 0


def check_compiler() -> str:
    """Path of the C++ compiler, by which Jittor compiles its core and kernels.

    Raises:
        UserError: there is none.
    """
    compiler = os.environ.get("cc_path", "g++")
    found = shutil.which(compiler)
    if found is None:
        raise UserError(
            f"Jittor needs a C++ compiler and {compiler!r} is not on PATH; "
            "install it (Debian: apt-get install g++)"
        )
    return found


def check_mpicc() -> str:
    """Path of MPI's compiler, which Jittor needs in processes that mpirun started.

    Raises:
        UserError: there is none.
    """
    found = shutil.which(os.environ.get("mpicc_path", "mpicc"))
    if found is None:
        raise UserError(
            "started by mpirun, Jittor needs mpicc and it is not on PATH; "
            "install it (Debian: apt-get install libopenmpi-dev)"
        )
    return found


def check_headers() -> Path:
    """Folder of the headers of this Python.

    Raises:
        UserError: they, or ``python3.X-config``, are missing.
    """
    include = Path(sysconfig.get_paths()["include"])
    if not (include / "Python.h").is_file() or _python_config() is None:
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        raise UserError(
            f"Jittor needs the headers of Python {version} and {include}/Python.h or "
            f"python{version}-config is missing; install them "
            f"(Debian: apt-get install python{version}-dev)"
        )
    return include


def check_onednn() -> tuple[Path, Path]:
    """(library, include folder) of the pinned oneDNN wheel.

    Raises:
        UserError: it is not installed.
    """
    library, include = Path(sys.prefix) / "lib" / "libdnnl.so.2", Path(sys.prefix) / "include"
    if not library.exists() or not (include / "dnnl.h").exists():
        raise UserError(
            f"oneDNN is missing from {sys.prefix}; run: make setup (it installs {_ONEDNN_WHEEL})"
        )
    return library, include


def _python_config() -> str | None:
    """``python3.X-config`` of the interpreter behind this (virtual) environment."""
    name = f"python{sys.version_info.major}.{sys.version_info.minor}-config"
    folders = [
        sysconfig.get_config_var("BINDIR"),
        os.path.dirname(os.path.realpath(sys.executable)),
        "/usr/bin",
    ]
    for folder in folders:
        if folder and os.path.isfile(os.path.join(folder, name)):
            return os.path.join(folder, name)
    return None


def _jittor_home() -> Path:
    return own_cache_dir() / "jittor"


def _onednn_shim() -> Path:
    return _jittor_home() / ".cache" / "jittor" / "mkl" / _ONEDNN_FOLDER


def _lay_out_onednn() -> None:
    """Put the pinned oneDNN wheel where Jittor would have downloaded its own."""
    library, include = check_onednn()
    shim = _onednn_shim()
    for link, target in {
        shim / "include": include,
        shim / "lib" / "libmkldnn.so": library,
        shim / "lib" / "libdnnl.so.2": library,
    }.items():
        link.parent.mkdir(parents=True, exist_ok=True)
        if link.is_symlink() and os.readlink(link) == str(target):
            continue
        fresh = link.with_name(f"{link.name}.{os.getpid()}")
        fresh.symlink_to(target)
        os.replace(fresh, link)


def _set_environment(cuda: str) -> None:
    """Jittor reads its settings from the environment; a value that the user set is kept."""
    defaults = {
        "log_silent": "1",
        "use_parallel_op_compiler": "0",
        "gdb_path": "",
        "FIX_TORCH_ERROR": "0",
        "OMP_WAIT_POLICY": "passive",
        "cache_name": "default",
        "python_config_path": _python_config() or "",
    }
    for key, value in defaults.items():
        os.environ.setdefault(key, value)
    os.environ["nvcc_path"] = cuda
    os.environ["use_mpi"] = "1" if under_mpi() else "0"
    os.environ.pop("JITTOR_HOME", None)


@contextlib.contextmanager
def _home(folder: Path) -> Iterator[None]:
    """HOME is ``folder`` inside the block: Jittor's cache lands there and ~/.cache/jittor is never
    touched.
    """
    before = os.environ.get("HOME")
    folder.mkdir(parents=True, exist_ok=True)
    os.environ["HOME"] = str(folder)
    try:
        yield
    finally:
        if before is None:
            del os.environ["HOME"]
        else:
            os.environ["HOME"] = before


@contextlib.contextmanager
def _process_state_kept() -> Iterator[None]:
    """Undo what importing Jittor does to signals, TLS, limits and the interpreter's hooks."""
    handlers = _signal_handlers()
    context, recursion = ssl._create_default_https_context, sys.getrecursionlimit()
    stack = resource.getrlimit(resource.RLIMIT_STACK)
    hooks = sys.exit, sys.excepthook
    try:
        yield
    finally:
        ssl._create_default_https_context = context
        sys.setrecursionlimit(recursion)
        sys.exit, sys.excepthook = hooks
        with contextlib.suppress(ValueError):
            resource.setrlimit(resource.RLIMIT_STACK, stack)
        for number, handler in handlers.items():
            _libc().sigaction(number, handler, None)


def _signal_handlers() -> dict[int, Any]:
    """The C library's record of each handler that Jittor replaces, behind Python's back."""
    handlers = {}
    for number in _JITTOR_SIGNALS:
        handlers[int(number)] = ctypes.create_string_buffer(_SIGACTION_BYTES)
        _libc().sigaction(number, None, handlers[int(number)])
    return handlers


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None)
