"""The official SAM files: whether a file is the published one, and fetching it from its authors.

``weights/manifest.json`` lists them with their addresses and checksums.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from core.checkpoints.torch_reader import state_dict_of
from core.checksums import remembered_sha256
from core.download import fetch
from core.errors import UserError
from core.files import sha256_of
from core.log import info, warn
from core.pipeline.folders import WEIGHTS

STAGE = "weights"
#: Environment variable: a folder on the web that has the official files, such as a mirror.
MIRROR = "USS_WEIGHTS_URL"


def published(listed: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The entries of the manifest that can be fetched, by the names that users give them."""
    return {entry["name"]: entry for entry in listed["by_hand"] if "name" in entry}


def require_published(path: Path, listed: dict[str, Any]) -> None:
    """Compare a file under an official name with the published checksum; other names pass.

    A readable file of other content is used with a warning, for people re-save weights.

    Raises:
        UserError: it is another one and cannot be read, as where a download was cut.
    """
    entries = {entry["file"]: entry for entry in published(listed).values()}
    entry = entries.get(path.name)
    if entry is None or remembered_sha256(path) == entry["sha256"]:
        return
    try:
        state_dict_of(path)
    except UserError as error:
        raise UserError(
            f"{path} is not the published {path.name} (SHA-256 differs) and cannot be read: "
            f"it was cut or damaged; {_command(entry, path.parent)} fetches it again"
        ) from error
    warn(
        STAGE,
        f"{path} is not the published {path.name} (SHA-256 differs); it is used as it is",
    )


def fetch_published(name: str, folder: Path, listed: dict[str, Any]) -> Path:
    """Fetch the official file ``name`` of the manifest into ``folder``, unless it is there.

    Raises:
        UserError: see :func:`core.download.fetch`; or another readable file has its name.
    """
    entry = published(listed)[name]
    path, url = folder / entry["file"], entry["url"]
    if path.is_file():
        if sha256_of(path) == entry["sha256"]:
            info(STAGE, f"{path} is there, with the published checksum")
            return path
        _require_damaged(path)
        info(STAGE, f"{path} is damaged and will be replaced")
    mirror = os.environ.get(MIRROR)
    if mirror:
        url = f"{mirror.rstrip('/')}/{entry['file']}"
    info(STAGE, f"fetching {url} to {path} ({entry['what']})")
    fetch(url, path, entry["sha256"], name, f"put {entry['file']} into {folder}")
    info(STAGE, f"{path} is there, with the published checksum")
    return path


def _require_damaged(path: Path) -> None:
    try:
        state_dict_of(path)
    except UserError:
        return
    raise UserError(
        f"{path} holds other weights than the published ones; move it away, or give another folder "
        "(--weights-dir)"
    )


def _command(entry: dict[str, Any], folder: Path) -> str:
    where = "" if folder.resolve() == WEIGHTS.resolve() else f" --weights-dir {folder}"
    return f"`python -m uss weights {entry['name']}{where}`"
