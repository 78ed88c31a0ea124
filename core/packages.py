"""Ends the program with one line where packages are missing, as with another Python than the
project's. Every entry point imports this module first, before any other import can end in a
traceback.
"""

from __future__ import annotations

import importlib.util
import sys

# What modules import at their top; the doctor looks for all that requirements.txt names.
_NEEDED = ("numpy", "PIL", "tqdm", "cv2")

_missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
if _missing:
    print(
        f"error: {sys.executable} lacks {', '.join(_missing)}; use .venv/bin/python, "
        "which `make setup` makes, or install requirements.txt",
        file=sys.stderr,
    )
    sys.exit(2)
