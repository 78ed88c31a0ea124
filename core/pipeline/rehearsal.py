"""What a stage hands to the doctor, so that it can measure what the stage would cost here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Look:
    """A network that looks at each image once, and what is done with what it saw.

    A stage that states ``Cost.measured`` has a function ``look(config, photo, counts)`` in its
    module, which gives this, with random weights: ``photo`` is an image to work on, ``counts``
    are images by split.
    """

    images: int
    """Images that the network looks at."""
    encode: Callable[[Any], Any]
    """Has the network look at a batch of ``dataset``."""
    dataset: Any
    """Has ``get(index, rng)`` -> sample, of ``photo``; samples are stacked to a batch."""
    batch_size: int
    """Images that it looks at together."""
    finish: Callable[[], float] = lambda: 0.0
    """Does a small part of what else the stage does; returns the seconds that all of it takes."""
    memory_mib: float = 0.0
    """Memory that it takes beside the network's."""
    disk_mib: float = 0.0
    """Disk that it takes while it works, at most."""
