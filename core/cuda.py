"""Which CUDA Jittor can use here, if any."""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import subprocess
from pathlib import Path

from core.errors import UserError
from core.log import warn

# CUDA 13 removed fields that Jittor 1.3.11 reads.
_FIRST_UNSUPPORTED_CUDA = 13
# Its documented best case.
_FITTING_CUDA = "a machine with CUDA 12.2 and cuDNN 8"


def choose_cuda() -> str:
    """Path of an nvcc that Jittor can use here, or "" for the CPU: then with a warning if a GPU is
    here and ``USS_DEVICE`` does not ask for the CPU.

    Raises:
        UserError: ``USS_DEVICE`` asks for CUDA, which cannot be used, or for something else.
    """
    wanted = os.environ.get("USS_DEVICE", "auto")
    if wanted not in ("auto", "cpu", "cuda"):
        raise UserError(f"USS_DEVICE must be auto, cpu or cuda, not {wanted!r}")
    if wanted == "cpu":
        return ""
    nvcc, reason = usable_nvcc()
    if not nvcc and wanted == "cuda":
        raise UserError(f"USS_DEVICE=cuda but {reason}; use {_FITTING_CUDA}, or USS_DEVICE=cpu")
    if not nvcc and cuda_devices():
        warn(
            "jittor",
            f"a GPU is here but {reason}: the work runs on the CPU; use {_FITTING_CUDA}, or say so "
            "with USS_DEVICE=cpu",
        )
    return nvcc


def usable_nvcc() -> tuple[str, str]:
    """(path, "") of a usable nvcc, or ("", why not)."""
    if not cuda_devices():
        return "", "no CUDA device is visible"
    found = os.environ.get("nvcc_path") or shutil.which("nvcc") or "/usr/local/cuda/bin/nvcc"
    if not os.path.isfile(found):
        return "", "nvcc was not found"
    answer = subprocess.run(
        [found, "--version"], capture_output=True, text=True, check=False
    ).stdout
    version = re.search(r"release (\d+)\.", answer)
    if version is None:
        return "", f"{found} does not state its version"
    if int(version.group(1)) >= _FIRST_UNSUPPORTED_CUDA:
        return "", f"CUDA {version.group(1)} is newer than Jittor 1.3.11 supports"
    libraries = Path(found).resolve().parent.parent
    if not any(libraries.glob("lib*/libcudart.so*")) and not any(
        libraries.glob("targets/*/lib/libcudart.so*")
    ):
        return "", f"libcudart was not found beside {found}"
    return found, ""


def cuda_devices() -> int:
    """Number of CUDA devices the driver shows; 0 without a driver."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return 0
    count = ctypes.c_int(0)
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return 0
    return count.value
