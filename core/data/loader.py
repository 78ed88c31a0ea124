"""Batches from a data set, made by threads, the same for any number of threads.

Threads suffice: decoding, resizing and blurring release the interpreter lock, and forking after
Jittor has run hangs. A sample depends on (seed, epoch, index) alone and the order of an epoch on
(seed, epoch), so a resumed epoch continues with exactly the samples that it would have seen.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from core import log
from core.errors import UserError

# Batches in the making ahead of the one in use: hides a slow batch without filling the memory.
_AHEAD = 2

Sample = tuple[np.ndarray, ...]


class Dataset(Protocol):
    """What a data set offers; ``get`` raises UserError where the files of a sample are broken.

    A method ``collate(samples)`` may replace the default of stacking field by field.
    """

    def __len__(self) -> int: ...

    def get(self, index: int, rng: np.random.Generator) -> Sample: ...

    def path(self, index: int) -> Path: ...


class Loader:
    """Epochs of batches of a data set, or of this rank's share of them.

    Args:
        dataset: where samples come from.
        batch_size: samples of a batch over all ranks; rank r of ``world`` gets the r-th contiguous
            part.
        seed: of the order and of every sample.
        workers: threads; 0 makes each sample in the caller's thread.
        rank, world: this process among those that share each batch.
        drop_last: leave a last, smaller batch out. Kept, it may give ranks unequal parts or none.
        shuffle: another order in each epoch; False keeps the data set's.

    A broken image is named once in the log, kept in :attr:`broken`, and replaced by the next sound
    one of the data set, whatever the number of threads.

    Raises:
        UserError: a batch size that ``world`` does not divide, or (``drop_last``) fewer images than
            a batch.
    """

    def __init__(
        self,
        dataset: Dataset,
        batch_size: int,
        seed: int,
        workers: int,
        rank: int = 0,
        world: int = 1,
        drop_last: bool = True,
        shuffle: bool = True,
    ) -> None:
        if batch_size < 1 or batch_size % world:
            raise UserError(
                f"batch size {batch_size} cannot be split over {world} processes; "
                f"choose a multiple of {world}"
            )
        if len(dataset) < (batch_size if drop_last else 1):
            raise UserError(
                f"the data set has {len(dataset)} images, fewer than one batch of {batch_size}; "
                f"add images or lower the batch size"
            )
        self.dataset = dataset
        self.batch_size = batch_size
        self.seed = seed
        self.workers = workers
        self.rank = rank
        self.world = world
        self.drop_last = drop_last
        self.shuffle = shuffle
        #: path -> reason of each image found broken so far
        self.broken: dict[str, str] = {}
        self._broken_indices: set[int] = set()
        self._lock = threading.Lock()

    @property
    def steps(self) -> int:
        """Batches of an epoch."""
        whole, rest = divmod(len(self.dataset), self.batch_size)
        return whole + (1 if rest and not self.drop_last else 0)

    def order(self, epoch: int) -> np.ndarray:
        """Indices of the data set in the order of an epoch, all ranks together."""
        if not self.shuffle:
            return np.arange(len(self.dataset))
        return np.random.default_rng([self.seed, epoch]).permutation(len(self.dataset))

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[Any]:
        """The batches of an epoch from ``start_step`` on: tuples of arrays stacked along a new
        first axis.

        Threads end with the iterator, also when the caller stops early.

        Raises:
            UserError: every image of the data set is broken.
        """
        collate = getattr(self.dataset, "collate", stack)
        batches = self._batches(epoch, start_step)
        if self.workers == 0:
            for indices in batches:
                yield collate([self._sample(epoch, index) for index in indices])
        else:
            yield from self._threaded(epoch, batches, collate)

    def _batches(self, epoch: int, start_step: int) -> list[list[int]]:
        """This rank's indices for each step; a last part that is empty is left out."""
        order = self.order(epoch)
        batches = []
        for step in range(start_step, self.steps):
            batch = order[step * self.batch_size : (step + 1) * self.batch_size]
            first = len(batch) * self.rank // self.world
            last = len(batch) * (self.rank + 1) // self.world
            if last > first:
                batches.append(batch[first:last].tolist())
        return batches

    def _threaded(
        self, epoch: int, batches: list[list[int]], collate: Callable[[list[Sample]], Any]
    ) -> Iterator[Any]:
        share = self.batch_size // self.world
        ahead = max(_AHEAD, -(-self.workers // share))
        pool = ThreadPoolExecutor(self.workers, thread_name_prefix="loader")
        pending: deque[list[Future[Sample]]] = deque()
        upcoming = iter(batches)

        def submit() -> None:
            for indices in upcoming:
                pending.append([pool.submit(self._sample, epoch, index) for index in indices])
                return

        try:
            for _ in range(ahead):
                submit()
            while pending:
                samples = [future.result() for future in pending.popleft()]
                submit()
                yield collate(samples)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _sample(self, epoch: int, index: int) -> Sample:
        """The sample of ``index`` or the next sound image, drawn by the generator of ``index``."""
        count = len(self.dataset)
        for step in range(count):
            candidate = (index + step) % count
            if candidate in self._broken_indices:
                continue
            try:
                rng = np.random.default_rng([self.seed, epoch, index])
                return self.dataset.get(candidate, rng)
            except UserError as error:
                self._note_broken(candidate, str(error))
        reason = next(iter(self.broken.values()))
        raise UserError(f"none of the {count} images can be used; the first failed with: {reason}")

    def _note_broken(self, index: int, reason: str) -> None:
        path = str(self.dataset.path(index))
        with self._lock:
            known = index in self._broken_indices
            self._broken_indices.add(index)
            self.broken[path] = reason
        if not known:
            log.warn("data", f"{reason}; skipped, the next image stands in for it")


def stack(samples: list[Sample]) -> tuple[np.ndarray, ...]:
    """Samples (tuples of arrays of the same shapes) stacked field by field on a new first axis."""
    return tuple(np.stack(field) for field in zip(*samples))
