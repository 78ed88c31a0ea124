"""Whether Jittor can use this machine's GPU: driver, toolkit, cuDNN and host compiler together.

Jittor 1.3.11 is built for CUDA 12.2 with cuDNN 8 (11.2 with 8 and 10.2 with 7 on older drivers).
It looks for cuDNN's libraries beside nvcc, in the toolkit's ``targets`` folder and in /usr/lib, by
names that only cuDNN 8 has from CUDA 11 on.
"""

from __future__ import annotations

import ctypes
import os
import platform
import re
import shutil
from pathlib import Path

from core import runtime
from core.cuda import cuda_devices, usable_nvcc
from core.errors import UserError
from tools.doctor.checks import FAIL, OK, WARN, Check, output

# Driver's CUDA version at least -> (CUDA, cuDNN) that fit Jittor 1.3.11, best first.
_FITTING = (((12, 2), "12.2", 8), ((11, 2), "11.2", 8), ((10, 2), "10.2", 7))
# The newest g++ that nvcc takes, by CUDA version up to and including.
_HOST_COMPILERS = (((11, 4), 10), ((11, 8), 11), ((12, 3), 12), ((12, 8), 13))
_NEWEST_ARCH = 90  # compute capability times ten that Jittor 1.3.11 builds for
_FAST_GPU_GIB = 8.0
_CPU_INSTEAD = "USS_DEVICE=cpu runs without it"


def gpu() -> Check:
    """The GPU and everything that Jittor needs to use it; no GPU is no fault."""
    if os.environ.get("USS_DEVICE") == "cpu":
        return Check("GPU", OK, "not looked for: USS_DEVICE=cpu")
    cards = _cards()
    if not cards:
        return _without_cards()
    listed = ", ".join(f"{name} ({gib:.0f} GiB)" for name, gib, _ in cards)
    fits = _fitting(driver_cuda())
    if fits is None:
        text = f"{listed}: its driver knows CUDA {_dotted(driver_cuda())}, expected 10.2 or later"
        return Check("GPU", FAIL, text, "install NVIDIA's driver 535 or later, then reboot")
    cuda, cudnn = fits
    nvcc, why = usable_nvcc()
    install = (
        f"install the CUDA {cuda} toolkit with cuDNN {cudnn} "
        f"(conda install -c conda-forge cuda-toolkit={cuda} cudnn={cudnn}), then: "
        f"export nvcc_path=.../bin/nvcc; {_CPU_INSTEAD}"
    )
    if not nvcc:
        return Check("GPU", FAIL, f"{listed}: {why}; driver for CUDA {cuda}", install)
    version = _version_of(nvcc)
    problem = _host_problem(version) or _cudnn_problem(Path(nvcc), version)
    if problem:
        return Check("GPU", FAIL, f"{listed}, CUDA {_dotted(version)}: {problem}", install)
    if version > driver_cuda():
        text = f"{listed}: CUDA {_dotted(version)} is newer than the driver's"
        return Check("GPU", FAIL, f"{text} ({_dotted(driver_cuda())})", install)
    text = f"{listed}, driver for CUDA {_dotted(driver_cuda())}, CUDA {_dotted(version)}, {nvcc}"
    if max(arch for _, _, arch in cards) > _NEWEST_ARCH:
        return Check("GPU", FAIL, f"{text}: newer than Jittor 1.3.11 builds for", _CPU_INSTEAD)
    if min(gib for _, gib, _ in cards) < _FAST_GPU_GIB:
        mend = "smaller batches: --set pretrain.batch_size=16 --set masks.points_per_batch=16"
        return Check("GPU", WARN, f"{text}: little memory", mend)
    return Check("GPU", OK, text)


def _without_cards() -> Check:
    """No CUDA device is visible: fine, unless there is one."""
    if Path("/proc/driver/nvidia/gpus").is_dir() or shutil.which("nvidia-smi"):
        hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
        if hidden is not None:
            text = f"none is visible: CUDA_VISIBLE_DEVICES is {hidden!r}"
            return Check("GPU", WARN, text, "unset CUDA_VISIBLE_DEVICES")
        said = output(["nvidia-smi", "-L"]) or "nvidia-smi answers nothing"
        text = f"the driver shows no CUDA device ({said.splitlines()[0]})"
        return Check("GPU", WARN, text, "nvidia-smi (a container needs --gpus all)")
    if os.environ.get("USS_DEVICE") == "cuda":
        return Check("GPU", FAIL, "USS_DEVICE=cuda, but there is none", "unset USS_DEVICE")
    _, cuda, cudnn = _FITTING[0]
    text = f"none: everything runs on the CPU (a GPU would want CUDA {cuda} with cuDNN {cudnn})"
    return Check("GPU", OK, text)


def _cards() -> list[tuple[str, float, int]]:
    """(name, memory in GiB, compute capability times ten) of each visible CUDA device."""
    cards = []
    for index in range(cuda_devices()):
        driver = ctypes.CDLL("libcuda.so.1")
        name, size = ctypes.create_string_buffer(128), ctypes.c_size_t()
        major, minor = ctypes.c_int(), ctypes.c_int()
        driver.cuDeviceGetName(name, len(name), index)
        driver.cuDeviceTotalMem_v2(ctypes.byref(size), index)
        driver.cuDeviceGetAttribute(ctypes.byref(major), 75, index)
        driver.cuDeviceGetAttribute(ctypes.byref(minor), 76, index)
        text = name.value.decode(errors="replace")
        cards.append((text, size.value / (1 << 30), 10 * major.value + minor.value))
    return cards


def driver_cuda() -> tuple[int, int]:
    """Newest CUDA version that the driver knows; (0, 0) without a driver."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return 0, 0
    version = ctypes.c_int(0)
    driver.cuDriverGetVersion(ctypes.byref(version))
    return version.value // 1000, version.value % 1000 // 10


def _fitting(driver: tuple[int, int]) -> tuple[str, int] | None:
    """(CUDA, cuDNN) to install for a driver; None for one that is too old."""
    return next(((cuda, cudnn) for least, cuda, cudnn in _FITTING if driver >= least), None)


def _version_of(nvcc: str) -> tuple[int, int]:
    found = re.search(r"release (\d+)\.(\d+)", output([nvcc, "--version"]))
    return (int(found.group(1)), int(found.group(2))) if found else (0, 0)


def _host_problem(cuda: tuple[int, int]) -> str:
    """Why nvcc would refuse the C++ compiler; "" where it takes it."""
    try:
        compiler = runtime.check_compiler()
    except UserError:
        return ""  # named by the check of the compiler
    text = output([compiler, "-dumpversion"]).split(".")[0]
    newest = next((most for last, most in _HOST_COMPILERS if cuda <= last), None)
    if newest is None or not text.isdecimal() or int(text) <= newest:
        return ""
    return f"its nvcc takes g++ up to {newest}, here is {text} (export cc_path=g++-{newest})"


def _cudnn_problem(nvcc: Path, cuda: tuple[int, int]) -> str:
    """Why Jittor would not find its cuDNN; "" where it does."""
    root, machine = nvcc.parent.parent, platform.machine()
    machine = "x86_64" if machine in ("x86_64", "AMD64") else "aarch64"
    target = root / "targets" / f"{machine}-linux"
    includes = (root / "include", target / "include", Path("/usr/include"))
    if not any((folder / "cudnn.h").is_file() for folder in includes):
        return "cudnn.h was not found beside it or in /usr/include"
    places = (
        *(nvcc.parent, root / "lib64", root / "lib", target / "lib"),
        *(Path("/usr/lib") / f"{machine}-linux-gnu", Path("/usr/lib")),
    )
    wanted = "libcudnn_ops_infer.so" if cuda >= (11, 0) else "libcudnn.so"
    for folder in places:
        if (folder / wanted).is_file() or (folder / f"{wanted}.8").is_file():
            return ""
    if any(any(folder.glob("libcudnn.so.9*")) for folder in places if folder.is_dir()):
        return "cuDNN 9 is there, but Jittor 1.3.11 needs cuDNN 8"
    return f"{wanted} of cuDNN 8 was not found"


def _dotted(version: tuple[int, int]) -> str:
    return f"{version[0]}.{version[1]}"
