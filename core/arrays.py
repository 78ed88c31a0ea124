"""NumPy's own files, read as data: nothing in them is unpickled, and what they claim is not
reserved before it is there.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np


def read_array(path: Path) -> np.ndarray:
    """The array of a ``.npy`` file of numbers or text.

    Raises:
        ValueError: unreadable, or another kind of file; says why, in one line.
    """
    try:
        # A map of the file cannot be larger than the file.
        found = np.load(path, mmap_mode="r", allow_pickle=False)
        if isinstance(found, np.ndarray):
            return np.array(found)
    # A damaged file can be wrong in more ways than NumPy has exceptions for.
    except Exception as error:
        raise ValueError(_reason(error)) from error
    found.close()
    raise ValueError("an archive instead of one array")


def read_arrays(path: Path, names: Sequence[str], max_bytes: int) -> list[np.ndarray]:
    """Arrays of a ``.npz`` archive, by their names.

    Args:
        max_bytes: what they may take together; a small archive can unfold to any size.

    Raises:
        ValueError: unreadable, one is missing, or they are larger; says why, in one line.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            size = sum(arrays.zip.getinfo(f"{name}.npy").file_size for name in names)
            if size > max_bytes:
                raise ValueError(f"it would unfold to {size} bytes, expected at most {max_bytes}")
            found = [arrays[name] for name in names]
            if not all(isinstance(array, np.ndarray) for array in found):
                raise ValueError("an entry that is no array")
            return found
    except Exception as error:
        raise ValueError(_reason(error)) from error


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = " ".join(str(error).split())[:200]
    return text if text and not isinstance(error, MemoryError) else type(error).__name__
