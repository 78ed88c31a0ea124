"""One line where packages are missing. Every entry point imports this module first: it ends the
program before any other import can end in a traceback, as with another Python than the project's.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

from core.errors import UserError

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


def extra(name: str, purpose: str, group: str) -> ModuleType:
    """The module of a package that not everything needs.

    Args:
        name: the module, "onnx".
        purpose: what it is for, as the beginning of the error.
        group: the file of requirements/ that names the package, "convert".

    Raises:
        UserError: it is not installed; with the command that installs it.
    """
    if importlib.util.find_spec(name) is None:
        file = Path(__file__).resolve().parents[1] / "requirements" / f"{group}.txt"
        raise UserError(
            f"{purpose} needs the package {name}, which is not installed; "
            f"run: {sys.executable} -m pip install -r {file}"
        )
    return importlib.import_module(name)
