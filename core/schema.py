"""The number of the form in which folders are recorded, so that older code leaves newer ones alone.

A JSON file that says what a folder is (``run.json``, the settings of a ledger, of a mask store, of
blocks, ``result.json``) states the number under ``schema``. Where it is absent it is 1, for folders
were recorded before there was a number. Whoever changes what is recorded in a way that older code
would misread raises :data:`SCHEMA`, and lets this code read what the lower numbers mean.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from core.errors import UserError

SCHEMA = 1
_FIELD = "schema"


def stamped(content: Mapping[str, Any]) -> dict[str, Any]:
    """``content`` with the present number, to be written."""
    return {**content, _FIELD: SCHEMA}


def unstamped(content: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """What was read from ``path``, without its number.

    Raises:
        UserError: the number is higher than this code knows, or none.
    """
    number = content.get(_FIELD, 1)
    if type(number) is not int or number < 1:
        raise UserError(
            f"{path}: expected a whole number from 1 as its schema, found another value; "
            "restore the file, or choose another folder"
        )
    if number > SCHEMA:
        raise UserError(
            f"{path} was made by a newer version of this project (schema {_short(number)}, this "
            f"one knows {SCHEMA}); update this one, or choose another folder"
        )
    return {key: value for key, value in content.items() if key != _FIELD}


def _short(number: int) -> str:
    """Its digits, unless a person could not read them."""
    return str(number) if number < 10**9 else "of many digits"
