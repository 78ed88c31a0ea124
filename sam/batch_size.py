"""How many points are decoded at once: fewer where memory is short.

On a CPU a lack of memory must be noticed before it happens. Linux grants more memory than there is
and kills the process that uses it, and a kernel does not survive a failed allocation. So
:func:`ask_for` looks for free memory before each batch starts.
"""

from __future__ import annotations

import numpy as np

from core import log
from core.errors import UserError
from core.memory import machine_bytes

# What decoding takes, as measured. The decoder works on 16 prompts at once, each with its own copy
# of the image places (64 at once would save 4 % of the time). Each point then has the logits of its
# masks, twice.
PROMPTS_AT_ONCE = 16
_PROMPT_MIB, _POINT_MIB = 12, 2
_OUT_OF_MEMORY = ("memory", "alloc")
_IMAGES_PER_TRY = 8


def ask_for(points: int) -> None:
    """Check that there is memory for a batch of so many points.

    Raises:
        MemoryError: there is not enough.
    """
    need = min(points, PROMPTS_AT_ONCE) * _PROMPT_MIB + points * _POINT_MIB
    free = _free_mib()
    if free is not None and free < need:
        raise MemoryError(f"{need} MiB needed, {free:.0f} MiB free")
    # A limit of this process (ulimit) shows only when an allocation meets it. Memory that is never
    # written to costs nothing.
    np.empty(need << 20, np.uint8)


def halved(points: int, error: Exception) -> int:
    """Half of ``points``, the size of a batch that ended in ``error``; a warning says so.

    Raises:
        UserError: even a single point does not fit.
        Exception: ``error`` itself, where it is not about memory.
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


class Recovery:
    """The way back from halved batches, for what was short may be free again.

    Args:
        asked: points of a batch that the user asked for.
    """

    def __init__(self, asked: int) -> None:
        self._asked = asked
        self._images = 0

    def begin(self) -> None:
        """A batch was halved just now."""
        self._images = 0

    def after_an_image(self, points: int) -> int:
        """The size of the next batches after an image with batches of ``points``: twice as large,
        up to what was asked for, after every eighth image since the last shortage.
        """
        if points >= self._asked:
            return points
        self._images += 1
        if self._images % _IMAGES_PER_TRY:
            return points
        return min(2 * points, self._asked)


def _free_mib() -> float | None:
    """Memory that this process may still take, in MiB; None where the system does not say."""
    found = machine_bytes()
    return None if found is None else found[1] / 2**20
