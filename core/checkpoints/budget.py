"""How much a file may unfold to. A file of a few bytes can describe gigabytes: numbers that repeat,
references to one list from many places, archive entries that lie in each other.
"""

from __future__ import annotations

# Every file may unfold to this much, whatever its size.
_ALWAYS = 64 << 20
#: Bytes of objects that one byte of a pickle may make. Label files of hundreds of thousands of
#: images reach 16.
OBJECTS = 32
#: Bytes of arrays that one byte of a file may make. Half precision is doubled, and weights may have
#: several names.
ARRAYS = 8


class Budget:
    """Bytes that reading a file may still take.

    Args:
        file_bytes: size of the file, or of the part that is read.
        factor: bytes in memory for each byte in the file.
    """

    def __init__(self, file_bytes: int, factor: int) -> None:
        self._limit = self._left = _ALWAYS + factor * file_bytes

    def spend(self, size: int) -> None:
        """Account for ``size`` bytes, before they are reserved.

        Raises:
            ValueError: that is more than what was left.
        """
        self._left -= size
        if self._left < 0:
            raise ValueError(f"it would unfold to more than {self._limit >> 20} MiB")
