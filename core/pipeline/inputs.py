"""What a stage or a tool starts from: the file that the user named, else the run's own, else a
published one; and the data set that a run notes.
"""

from __future__ import annotations

from pathlib import Path

from core import log
from core.errors import UserError
from core.files import json_or_empty
from core.pipeline.folders import RunFolder
from core.work.ledger import LEDGER_FOLDER, SETTINGS_FILE


def choose(what: str, given: Path | None, own: Path, published: Path | None, command: str) -> Path:
    """``given`` where the user named a file, else ``own`` where it exists, else ``published``; a
    line in the log says which.

    Args:
        what: the product, in words.
        command: what makes ``own``.

    Raises:
        UserError: there is none of them.
    """
    if given is not None:
        if not given.is_file():
            raise UserError(f"{what}: {given} does not exist; name an existing file")
        log.info(what, f"using {given}, as asked")
        return given
    if own.is_file():
        log.info(what, f"using {own}")
        return own
    if published is not None and published.is_file():
        log.info(what, f"using the published {published}, because {own} does not exist")
        return published
    raise UserError(f"{what}: {own} is missing; make it with: {command}")


def noted_data(run: RunFolder) -> Path | None:
    """The data set that the run's own predictions were made of; None where none is noted."""
    for path in sorted(run.root.glob(f"predictions/*/{LEDGER_FOLDER}/*/{SETTINGS_FILE}")):
        named = json_or_empty(path).get("data")
        if isinstance(named, str) and Path(named).is_dir():
            return Path(named)
    return None
