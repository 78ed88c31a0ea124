"""How many points are decoded at once: fewer when memory runs out.

On a CPU it must be seen before: what Linux has promised and cannot give ends the process, and a
kernel does not survive an allocation that failed. So memory is asked for before a batch starts.
"""

from __future__ import annotations

import numpy as np

from core import log
from core.errors import UserError
from core.memory import machine_bytes

# What decoding takes, measured: image places for each of the prompts that the decoder works on at
# once (64 at once gain 4 % of the time), and for each point its masks' logits, twice.
PROMPTS_AT_ONCE = 16
_PROMPT_MIB, _POINT_MIB = 12, 2
_OUT_OF_MEMORY = ("memory", "alloc")


def ask_for(points: int) -> None:
    """Do nothing where memory for a batch of so many points is to be had.

    Raises:
        MemoryError: it is not.
    """
    need = min(points, PROMPTS_AT_ONCE) * _PROMPT_MIB + points * _POINT_MIB
    free = _free_mib()
    if free is not None and free < need:
        raise MemoryError(f"{need} MiB needed, {free:.0f} MiB free")
    # A limit of this process (ulimit) only shows when it is met; untouched, this costs nothing.
    np.empty(need << 20, np.uint8)


def halved(points: int, error: Exception) -> int:
    """The next batch size after ``error`` in a batch of ``points``; says so in the log.

    Raises:
        UserError: even a single point does not fit. Exception: ``error`` itself, where it was not
        about memory.
    """
    text = str(error).lower()
    if not isinstance(error, MemoryError) and not any(word in text for word in _OUT_OF_MEMORY):
        raise error
    if points <= 1:
        raise UserError(
            "out of memory with a single point at a time; close other programs, or use a smaller "
            "model (vit_t)"
        ) from error
    log.warn("masks", f"out of memory with {points} points at a time; going on with {points // 2}")
    return points // 2


def _free_mib() -> float | None:
    """Memory that this process may still take, in MiB; None where the system does not say."""
    found = machine_bytes()
    return None if found is None else found[1] / 2**20
