"""Batches from a data set, made by worker processes, the same for any number of them.

A sample depends on (seed, epoch, index) alone and the order of an epoch on (seed, epoch), so a
resumed epoch continues with exactly the samples that it would have seen.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from core import log
from core.data.workers import Broken, Request, Sample, Task, WorkerPool
from core.errors import UserError

# Batches in the making ahead of the one in use: hides a slow batch without filling the memory.
_AHEAD = 2


class Dataset(Protocol):
    """What a data set offers; ``get`` raises UserError where the files of a sample are broken.

    A method ``collate(samples)`` may replace the default of stacking field by field. A method
    ``only(index)`` may give a data set that has this one sample, so that not the whole list of
    images goes to a worker with each sample.
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
        workers: processes; 0 makes each sample in this process, when it is asked for. The data set
            must then be of an importable class, as it is pickled.
        rank, world: this process among those that share each batch.
        drop_last: leave a last, smaller batch out. Kept, it may give ranks unequal parts or none.
        shuffle: another order in each epoch; False keeps the data set's.

    A broken image is named once in the log, kept in :attr:`broken`, and replaced by the next sound
    one of the data set, whatever the number of workers.

    Raises:
        UserError: a batch size that ``world`` does not divide, negative workers, or
            (``drop_last``) fewer images than a batch.
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
        if workers < 0:
            raise UserError(f"--workers must be 0 or more, is {workers}")
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
        self._pool: WorkerPool | None = None

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

    def epoch(self, epoch: int, start_step: int = 0, stop_step: int | None = None) -> Iterator[Any]:
        """The batches of an epoch from ``start_step`` on, up to the one before ``stop_step`` (None:
        to the end): tuples of arrays stacked along a new first axis.

        The workers, started with the first epoch, stay for the next one; :meth:`close` ends them.

        Raises:
            UserError: every image of the data set is broken, or a worker was killed.
        """
        collate = getattr(self.dataset, "collate", stack)
        batches = self._batches(epoch, start_step, stop_step)
        if self.workers == 0:
            for indices in batches:
                yield collate([self._sample(epoch, index) for index in indices])
        else:
            yield from self._ahead(epoch, batches, collate)

    def close(self) -> None:
        """End the workers; without it they end with this object."""
        if self._pool is not None:
            self._pool.close()
            self._pool = None

    def _batches(self, epoch: int, start_step: int, stop_step: int | None) -> list[list[int]]:
        """This rank's indices for each step; a last part that is empty is left out."""
        order = self.order(epoch)
        batches = []
        for step in range(self.steps)[start_step:stop_step]:
            batch = order[step * self.batch_size : (step + 1) * self.batch_size]
            first = len(batch) * self.rank // self.world
            last = len(batch) * (self.rank + 1) // self.world
            if last > first:
                batches.append(batch[first:last].tolist())
        return batches

    def _ahead(
        self, epoch: int, batches: list[list[int]], collate: Callable[[list[Sample]], Any]
    ) -> Iterator[Any]:
        """The batches, each asked for while earlier ones are in use."""
        share = self.batch_size // self.world
        ahead = max(_AHEAD, -(-self.workers // share))
        pending: deque[tuple[list[int], Request]] = deque()
        for step in range(len(batches) + ahead):
            # Ask before waiting: the workers go on while the caller uses the batch.
            if step < len(batches):
                pending.append((batches[step], self._ask(epoch, batches[step])))
            if step >= ahead:
                indices, request = pending.popleft()
                yield collate(self._replaced(epoch, indices, request))

    def _ask(self, epoch: int, indices: list[int]) -> Request:
        """Have the workers make a batch, without the images known to be broken."""
        if self._pool is None:
            self._pool = WorkerPool(self.workers)
        candidates = [next(self._candidates(index), index) for index in indices]
        tasks = [self._task(epoch, *pair) for pair in zip(indices, candidates)]
        return self._pool.ask(tasks, [str(self.dataset.path(index)) for index in candidates])

    def _task(self, epoch: int, index: int, candidate: int) -> Task:
        only = getattr(self.dataset, "only", None)
        dataset = self.dataset if only is None else only(candidate)
        return dataset, candidate, (self.seed, epoch, index)

    def _replaced(self, epoch: int, indices: list[int], request: Request) -> list[Sample]:
        """The samples of a request; the next sound image is made here for each broken one."""
        samples = []
        for index, outcome in zip(indices, request.outcomes()):
            if isinstance(outcome, Broken):
                outcome = self._sample(epoch, index)
            samples.append(outcome)
        return samples

    def _candidates(self, index: int) -> Iterator[int]:
        """``index`` and those after it, round the data set, without those known to be broken."""
        count = len(self.dataset)
        for step in range(count):
            candidate = (index + step) % count
            if candidate not in self._broken_indices:
                yield candidate

    def _sample(self, epoch: int, index: int) -> Sample:
        """The sample of ``index`` or the next sound image, drawn by the generator of ``index``."""
        for candidate in self._candidates(index):
            try:
                rng = np.random.default_rng([self.seed, epoch, index])
                return self.dataset.get(candidate, rng)
            except UserError as error:
                self._note_broken(candidate, str(error))
        reason = next(iter(self.broken.values()))
        raise UserError(
            f"none of the {len(self.dataset)} images can be used; the first failed with: {reason}"
        )

    def _note_broken(self, index: int, reason: str) -> None:
        self._broken_indices.add(index)
        self.broken[str(self.dataset.path(index))] = reason
        log.warn("data", f"{reason}; skipped, the next image stands in for it")


def stack(samples: list[Sample]) -> tuple[np.ndarray, ...]:
    """Samples (tuples of arrays of the same shapes) stacked field by field on a new first axis."""
    return tuple(np.stack(field) for field in zip(*samples))
