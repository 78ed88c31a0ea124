"""The first import of every entry point: another Python than the project's is told in one line.

Where packages are missing the import of this module ends the program, before any other import can
end it in a traceback.
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
