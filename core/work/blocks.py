"""Rows of features of many items, on disk in blocks: made once, by any number of processes, resumed
after a kill, and never all in memory.

::

    <folder>/<fingerprint of the settings>/settings.json  with the schema
    <folder>/<fingerprint of the settings>/000000.npy     rows of the first ``size`` items, etc.
    <folder>/<fingerprint of the settings>/features.npy   the rows of all blocks, one after another
    <folder>/<fingerprint of the settings>/tags.npy       and their tags

A block is an array of pairs (``tag`` int64, ``feature`` float32 of the same width everywhere); an
item may have any number of rows. Every file is written whole and renamed. Nothing of this is needed
once the product of the stage is there, so :func:`remove` takes it all away.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from core import log
from core.data.items import ImageItem
from core.errors import UserError
from core.files import atomic_write, json_or_empty, sha256_of_json, write_json
from core.schema import stamped, unstamped
from core.work.claims import CLAIMS_FOLDER, Claims
from core.work.ledger import SETTINGS_FILE
from core.work.sharing import make_once, work_together

FEATURES, TAGS = "features.npy", "tags.npy"
_PACKED = "packed"

#: Rows (n, D) float32 and their tags (n,) int64.
Rows = tuple[np.ndarray, np.ndarray]


class Blocks:
    """The rows of one list of items under one set of settings.

    Args:
        folder: holds blocks of any settings, each in a folder of its own, made when needed.
        settings: everything that decides a row: weights, settings, the list of items (see
            :func:`sha256_of_items`); JSON values.
        count: items of the list.
        size: items of a block. It bounds what a kill costs, and the memory of a process.

    Raises:
        UserError: a newer version of the project has made what is there.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any], count: int, size: int) -> None:
        whole = {**settings, "items": count, "block": size}
        self.folder = Path(folder) / sha256_of_json(whole)[:16]
        self._count, self._size, self._settings = count, size, whole
        path = self.folder / SETTINGS_FILE
        unstamped(json_or_empty(path), path)

    def fill(
        self,
        make: Callable[[int, int], Rows],
        stage: str,
        needless: Callable[[], bool] = lambda: False,
    ) -> None:
        """Return when the rows of all items are on disk, made here or by another process.

        Args:
            make: (start, stop) -> rows and tags of items ``start`` to ``stop - 1``; whatever it
                raises ends the work, and finished blocks stay.
            stage: name in the log and the progress bar.
            needless: whether what the rows are for is there already, made by another process, which
                may have removed the blocks; then nothing is made.
        """
        if needless() or self._is_packed():
            return
        write_json(self.folder / SETTINGS_FILE, stamped(self._settings))
        numbers = {f"{number:06}": number for number in range(-(-self._count // self._size))}

        def is_done(key: str) -> bool:
            return needless() or self._is_packed() or _load(self.folder / f"{key}.npy") is not None

        def make_block(key: str) -> None:
            start = numbers[key] * self._size
            block = _block(*make(start, min(start + self._size, self._count)))
            if claims.still_mine(key):
                with atomic_write(self.folder / f"{key}.npy", sync=True) as file:
                    np.save(file, block)

        def settle(key: str) -> bool:
            if is_done(key):
                return True
            if not claims.claim(key):
                return False
            try:
                if not is_done(key):
                    make_block(key)
            finally:
                claims.release(key)
            return is_done(key)

        with Claims(self.folder / CLAIMS_FOLDER) as claims:
            earlier = sum(map(is_done, numbers))
            if earlier:
                log.info(stage, f"{earlier} of {len(numbers)} blocks of features finished earlier")
            work_together(
                list(numbers),
                lambda: [key for key in numbers if not is_done(key)],
                settle,
                stage,
                unit="block",
            )
            make_once(
                claims,
                _PACKED,
                lambda: needless() or self._is_packed(),
                lambda: self._pack(list(numbers)),
                stage,
            )

    def rows(self) -> Rows:
        """All rows (N, D) float32 in the order of the items, as a file mapped into memory, of which
        the system keeps as much as there is room for; and their tags (N,) int64.

        Raises:
            UserError: the items have no rows.
        """
        features, tags = (_load(self.folder / name) for name in (FEATURES, TAGS))
        if features is None or tags is None or not len(features):
            raise UserError(f"expected features in {self.folder}, but there are none")
        return features, np.array(tags)

    def _is_packed(self) -> bool:
        return _load(self.folder / FEATURES) is not None

    def _pack(self, keys: list[str]) -> None:
        """Write all rows into one file, a block at a time, and remove the blocks."""
        count, width = 0, 0
        tags = []
        for block in self._blocks(keys):
            count += len(block)
            width = max(width, block.dtype["feature"].shape[0])
            tags.append(np.array(block["tag"]))
        with atomic_write(self.folder / TAGS, sync=True) as file:
            np.save(file, np.concatenate(tags))
        header = {"descr": "<f4", "fortran_order": False, "shape": (count, width)}
        with atomic_write(self.folder / FEATURES, sync=True) as file:
            np.lib.format.write_array_header_1_0(file, header)
            for block in self._blocks(keys):
                file.write(np.ascontiguousarray(block["feature"]).tobytes())
        for key in keys:
            (self.folder / f"{key}.npy").unlink(missing_ok=True)

    def _blocks(self, keys: list[str]) -> Iterator[np.ndarray]:
        # One at a time: an open file each would be too many.
        for key in keys:
            block = _load(self.folder / f"{key}.npy")
            if block is None:
                raise UserError(
                    f"{self.folder / key}.npy has vanished or is damaged; run the same command "
                    "again"
                )
            yield block


def remove(folder: Path) -> None:
    """Remove the blocks of all settings that lie in a folder, if there are any."""
    shutil.rmtree(folder, ignore_errors=True)


def sha256_of_items(
    items: Iterable[ImageItem], more: Callable[[ImageItem], Any] = lambda item: None
) -> str:
    """Hex SHA-256 of a list of images: key and size in bytes of each, and what else there is to say
    of it (JSON); where an image cannot be read, that stands for its size.
    """
    digest = hashlib.sha256()
    for item in items:
        try:
            size = os.stat(item.path).st_size
        except OSError:
            size = -1
        digest.update(json.dumps([item.key, size, more(item)]).encode())
    return digest.hexdigest()


def _block(features: np.ndarray, tags: np.ndarray) -> np.ndarray:
    width = features.shape[1]
    block = np.empty(len(tags), [("tag", "<i8"), ("feature", "<f4", (width,))])
    block["tag"], block["feature"] = tags, features
    return block


def _load(path: Path) -> np.ndarray | None:
    """A file of this module, mapped where it has rows; None where it is missing or damaged."""
    try:
        try:
            return np.load(path, mmap_mode="r", allow_pickle=False)
        except ValueError:
            # Nothing can be mapped of an array without rows.
            found = np.load(path, allow_pickle=False)
            return None if len(found) else found
    except (OSError, ValueError, EOFError, TypeError):
        return None
