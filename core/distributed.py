"""Several processes of one run: MPI ranks that train together, or tasks of a SLURM array that share
out images.

Rank and size are read from the environment that ``mpirun`` sets; asking for them starts neither MPI
nor Jittor. Without MPI there is one process, and every function is trivial. All ranks must call the
collective functions (``barrier``, ``all_reduce_…``, ``broadcast``) in the same order.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from core import runtime
from core.errors import UserError

Item = TypeVar("Item")

# The types that Jittor's MPI operators reduce correctly. It passes int64 to MPI as pairs, and
# others not at all.
_REDUCIBLE = ("float32", "float64", "int32")
# A folder for each GPU, where the driver is loaded.
_NVIDIA_GPUS = Path("/proc/driver/nvidia/gpus")


def rank() -> int:
    """Number of this MPI process, 0 without MPI."""
    return _environment_int("OMPI_COMM_WORLD_RANK", 0)


def world_size() -> int:
    """Number of MPI processes, 1 without MPI."""
    return _environment_int("OMPI_COMM_WORLD_SIZE", 1)


def is_main() -> bool:
    """True in the one process that writes what is written once (always True without MPI)."""
    return rank() == 0


def child_environment() -> dict[str, str]:
    """Environment of a process that works for this one and is no rank of the MPI run itself.

    Where several ranks share a machine, each one's child sees one of the GPUs, in turn.
    """
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("OMPI_", "PMIX_", "PMI_"))
    }
    gpus = _visible_gpus()
    if world_size() > 1 and gpus:
        turn = _environment_int("OMPI_COMM_WORLD_LOCAL_RANK", 0)
        environment["CUDA_VISIBLE_DEVICES"] = gpus[turn % len(gpus)]
    return environment


def barrier() -> None:
    """Wait until all ranks are here."""
    if world_size() > 1:
        jt = runtime.start()
        jt.sync_all(True)
        jt.mpi.mpi_barrier()


def all_reduce_sum(var: Any) -> Any:
    """Sum of a Jittor variable over the ranks, differentiable for float32 and float64.

    Integers are added as float64, exact up to 2**53, and keep their type.
    """
    return _reduce(var, "add")


def all_reduce_mean(var: Any) -> Any:
    """Mean of a floating point Jittor variable over the ranks, differentiable."""
    return _reduce(var, "mean")


def broadcast(var: Any) -> Any:
    """The value that a Jittor variable has on rank 0; shape and type must be the same on all
    ranks."""
    if world_size() == 1:
        return var
    kind = str(var.dtype)
    if kind in _REDUCIBLE:
        return var.mpi_broadcast(0)
    return var.float64().mpi_broadcast(0).cast(kind)


def share(items: Sequence[Item]) -> list[Item]:
    """This process's part of ``items``: every n-th one, by MPI rank and SLURM array task.

    The parts of all processes are disjoint and cover ``items``; without MPI and SLURM it is all of
    them.

    Raises:
        UserError: the SLURM array's numbers are not consecutive, so that parts would be left out.
    """
    task, tasks = _array_task()
    return list(items[task * world_size() + rank() :: tasks * world_size()])


def _reduce(var: Any, operation: str) -> Any:
    if world_size() == 1:
        return var
    kind = str(var.dtype)
    if kind in _REDUCIBLE:
        return var.mpi_all_reduce(operation)
    return var.float64().mpi_all_reduce(operation).cast(kind)


def _array_task() -> tuple[int, int]:
    """(position, count) of this SLURM array task; (0, 1) outside of an array."""
    if "SLURM_ARRAY_TASK_ID" not in os.environ or "SLURM_ARRAY_TASK_COUNT" not in os.environ:
        return 0, 1
    first = _environment_int("SLURM_ARRAY_TASK_MIN", 0)
    step = _environment_int("SLURM_ARRAY_TASK_STEP", 1)
    number, count = (
        _environment_int("SLURM_ARRAY_TASK_ID", 0),
        _environment_int("SLURM_ARRAY_TASK_COUNT", 1),
    )
    position, rest = divmod(number - first, max(step, 1))
    if rest or not 0 <= position < count:
        raise UserError(
            f"SLURM array task {number} of {count} from {first}: expected consecutive numbers; "
            f"submit with --array=0-{max(count - 1, 0)}"
        )
    return position, count


def _visible_gpus() -> list[str]:
    """What CUDA_VISIBLE_DEVICES lists, else the numbers of the machine's NVIDIA GPUs."""
    listed = os.environ.get("CUDA_VISIBLE_DEVICES")
    if listed is not None:
        return [name for name in listed.split(",") if name]
    return [str(index) for index, _ in enumerate(_NVIDIA_GPUS.glob("*"))]


def _environment_int(name: str, default: int) -> int:
    text = os.environ.get(name, "")
    if not text:
        return default
    try:
        return int(text)
    except ValueError:
        raise UserError(f"environment variable {name} should be a number, not {text!r}") from None
