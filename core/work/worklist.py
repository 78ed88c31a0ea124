"""Resumable work on a folder of images: one result file for each, by any number of processes.

A result counts as finished when the ledger (``core.work.ledger``) records it under the present
settings and its file is still the recorded one: by size and modification time, and where those are
others, too new to tell, or not to be trusted (``verify``), by its content. Any other result is made
again. So a stopped run continues, and results of a changed setting never mix with older ones.
"""

from __future__ import annotations

import contextlib
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from core import log
from core.data.imagenet_s import ImageItem
from core.errors import StopWork, UserError
from core.files import atomic_write
from core.text import named
from core.work.claims import IMAGE_TIMEOUT_S, TIMEOUT_S, Claims
from core.work.ledger import Ledger, Record
from core.work.results import Results, source_bytes, times_of
from core.work.settings import differences
from core.work.sharing import work_together

_COMPACTING = "compacting"  # claimed meanwhile, beside the items


@dataclass(frozen=True)
class Made:
    """What work made of an item: the content of each result file, and facts for the ledger."""

    contents: Sequence[bytes]
    facts: Mapping[str, Any] = field(default_factory=dict)


Work = Callable[[ImageItem], bytes | Made]


@dataclass
class WorkResult:
    """What a run found and did: keys, and a reason for each failure."""

    done: list[str] = field(default_factory=list)
    """Made by this process."""
    skipped: list[str] = field(default_factory=list)
    """Finished before this run began."""
    failed: dict[str, str] = field(default_factory=dict)
    """Failed in this run, here or in another process."""
    stale: list[str] = field(default_factory=list)
    """Made under other settings and kept, as the user asked (``keep_stale``)."""

    @property
    def ok(self) -> bool:
        """True when nothing failed."""
        return not self.failed


class Worklist:
    """The results of one stage in one folder.

    Args:
        folder: where results go, as ``<folder>/<key><suffix>``; it is made when missing.
        settings: everything that changes a result (JSON values; nested dicts are fine).
        suffix: end of the names of result files, such as ".png" for label maps.
        also: further folders, each of which gets a result file of every image too.
        keep_stale: count results that were made under other settings as finished.
        verify: read every result that is there, instead of trusting its size and time.

    Example: the size of each image as a text file. The second run finds everything finished, a
    changed setting makes all of it again::

        >>> import tempfile
        >>> from pathlib import Path
        >>> from PIL import Image
        >>> from core.data.imagenet_s import list_images
        >>> from core.work.worklist import Worklist
        >>> folder = Path(tempfile.mkdtemp())
        >>> (folder / "images" / "cat").mkdir(parents=True)
        >>> for name in ("a", "b"):
        ...     Image.new("RGB", (6, 4)).save(folder / "images" / "cat" / f"{name}.JPEG")
        >>> items = list_images(folder / "images")
        >>> def size_of(item):
        ...     with Image.open(item.path) as image:
        ...         return f"{image.width} x {image.height}".encode()
        >>> worklist = Worklist(folder / "sizes", {"unit": "pixels"}, suffix=".txt")
        >>> worklist.run(items, size_of, "sizes").done
        ['cat/a', 'cat/b']
        >>> worklist.path_of(items[0]).read_text()
        '6 x 4'
        >>> worklist.run(items, size_of, "sizes").skipped
        ['cat/a', 'cat/b']
        >>> changed = Worklist(folder / "sizes", {"unit": "inches"}, suffix=".txt")
        >>> changed.run(items, size_of, "sizes").done
        ['cat/a', 'cat/b']
    """

    def __init__(
        self,
        folder: Path,
        settings: Mapping[str, Any],
        suffix: str = ".png",
        also: Sequence[Path] = (),
        keep_stale: bool = False,
        verify: bool = False,
    ) -> None:
        self.folder = Path(folder)
        self._ledger = Ledger(self.folder, settings)
        folders = (self.folder, *map(Path, also))
        self._results = Results(folders, suffix, self._ledger, keep_stale, verify)
        self._keep_stale = keep_stale
        if self._ledger.finished_files():
            self._compact()
        #: Time by the file system's clock (Unix s).
        self.opened_at = self._ledger.open()

    @property
    def fingerprint(self) -> str:
        """Sixteen hex digits of the settings."""
        return self._ledger.fingerprint

    def claims(self, timeout_s: float = TIMEOUT_S, deadline_s: float | None = None) -> Claims:
        """The claims of this folder, on items while they are made."""
        return Claims(self._ledger.claims_folder, timeout_s, deadline_s)

    def path_of(self, item: ImageItem) -> Path:
        """Final place of the item's (first) result."""
        return self._results.paths(item)[0]

    def finished(self, items: Sequence[ImageItem]) -> dict[str, Record]:
        """Key -> what lies on disk, of each finished item, in order. Reads every result file."""
        self._ledger.refresh()
        found = ((item.key, self._results.content(item)) for item in items)
        return {key: record for key, record in found if record is not None}

    def pending(self, items: Sequence[ImageItem]) -> list[ImageItem]:
        """The items that are not finished, in order."""
        self._ledger.refresh()
        return [item for item in items if not self._results.is_finished(item)]

    def run(
        self,
        items: Sequence[ImageItem],
        work: Work,
        stage: str,
        timeout_s: float = TIMEOUT_S,
        image_timeout_s: float = IMAGE_TIMEOUT_S,
    ) -> WorkResult:
        """Make all items that are not finished; return when each is finished, here or in another
        process, or has failed.

        When ``work`` raises a :class:`UserError` (a broken image), the item is reported as failed
        and the run goes on. A :class:`StopWork` ends the run, and so does any other exception,
        which is a bug. What was finished until then is kept.

        Args:
            items: all items of the stage, the same in all processes.
            work: makes the content of an item's result files; bytes, where it is only one.
            stage: name in the log and the progress bar.
            timeout_s: see :class:`core.work.claims.Claims`.
            image_timeout_s: seconds of work on an item after which another process takes it over.

        Raises:
            UserError: a result cannot be written.
        """
        todo, result = self._survey(items, stage)
        left = {item.key: item for item in todo}
        del todo  # with a million items each list counts

        with self.claims(timeout_s, image_timeout_s) as claims:

            def settle(key: str) -> bool:
                if key not in left:
                    return True
                if not claims.claim(key):
                    return False
                try:
                    done = self._settle(left[key], work, claims, result, stage)
                finally:
                    claims.release(key)
                if done:
                    del left[key]
                return done

            def unfinished() -> list[str]:
                return list(left)

            try:
                if left:
                    work_together([item.key for item in items], unfinished, settle, stage)
            finally:
                with self._writing():
                    self._ledger.end()

        if result.failed:
            log.warn(stage, f"{len(result.failed)} of {len(items)} failed: {named(result.failed)}")
        return result

    def _settle(
        self, item: ImageItem, work: Work, claims: Claims, result: WorkResult, stage: str
    ) -> bool:
        """Make a claimed item unless another process has settled it; False where the claim was
        lost.
        """
        self._results.refresh(item)
        if self._results.is_finished(item):
            return True
        reason = self._ledger.failure(item.key, self.opened_at)
        if reason is not None:
            result.failed[item.key] = reason
            return True
        try:
            made = work(item)
        except StopWork:
            raise
        except UserError as error:
            reason = str(error)
            result.failed[item.key] = reason
            log.warn(stage, f"{item.key} failed: {reason}")
            with self._writing():
                self._ledger.fail(item.key, reason)
            return True
        if not claims.still_mine(item.key):
            log.warn(stage, f"{item.key}: this process stood still and another has taken over")
            return False
        with self._writing():
            self._keep(item, made if isinstance(made, Made) else Made([made]))
        result.done.append(item.key)
        return True

    def _keep(self, item: ImageItem, made: Made) -> None:
        paths = self._results.paths(item)
        for path, content in zip(paths, made.contents):
            with atomic_write(path) as file:
                file.write(content)
        files = tuple((len(content), zlib.crc32(content)) for content in made.contents)
        assert len(files) == len(paths), "work must give a content for each result file"
        times = times_of(paths)
        self._ledger.record(item.key, Record(source_bytes(item), files), times, made.facts)

    def _compact(self) -> None:
        """Bring what finished processes have recorded together, unless another process does."""
        with self._writing(), self.claims() as claims:
            if claims.claim(_COMPACTING):
                self._ledger.compact()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise StopWork(
                f"cannot write results to {self.folder}: {error.strerror or error}; what was "
                "finished is kept: mend this and run the same command again"
            ) from error

    def _survey(self, items: Sequence[ImageItem], stage: str) -> tuple[list[ImageItem], WorkResult]:
        """The items to make, and a result that states the others. The log says how many results
        were made under other settings.
        """
        todo, result = [], WorkResult()
        self._ledger.refresh()
        other: Counter[str] = Counter()
        stale = unknown = 0
        for item in items:
            ledger = self._results.recorded(item).ledger
            if ledger is self._ledger:
                result.skipped.append(item.key)
                continue
            if ledger is not None:
                stale += 1
                other.update(differences(ledger.settings, self._ledger.settings))
                if self._keep_stale:
                    result.stale.append(item.key)
                    continue
            else:
                unknown += self.path_of(item).exists()
            todo.append(item)
        if result.skipped:
            log.info(
                stage,
                f"{len(result.skipped)} of {len(items)} finished earlier, {len(todo)} to do",
            )
        if stale:
            action = "are kept, as asked" if self._keep_stale else "are made again"
            log.warn(
                stage,
                f"{stale} of {len(items)} results are stale and {action}: they were made under "
                f"other settings ({named(list(other))})",
            )
        if unknown:
            log.warn(
                stage,
                f"{unknown} results in {self.folder} are damaged, not recorded or of images that "
                "have changed, and are made again",
            )
        return todo, result
