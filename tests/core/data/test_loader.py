"""The loader: order, determinism, sharing, resuming, broken images, shutdown."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import numpy as np
import pytest

from core.data.loader import Loader
from core.errors import UserError


class Numbers:
    """Samples (index, random number); those in ``bad`` are broken."""

    def __init__(self, count: int, bad: tuple[int, ...] = (), delay: float = 0.0) -> None:
        self.count = count
        self.bad = bad
        self.delay = delay
        self.made: list[int] = []

    def __len__(self) -> int:
        return self.count

    def path(self, index: int) -> Path:
        return Path(f"{index}.jpg")

    def get(self, index: int, rng: np.random.Generator) -> tuple[np.ndarray, ...]:
        self.made.append(index)
        if index in self.bad:
            raise UserError(f"image {index}.jpg cannot be read: no good")
        time.sleep(self.delay * (index % 3))
        return np.asarray(index), rng.random(2)


def batches(loader: Loader, epoch: int = 0, start_step: int = 0) -> list[list[np.ndarray]]:
    return [list(batch) for batch in loader.epoch(epoch, start_step)]


def indices(loader: Loader, epoch: int = 0, start_step: int = 0) -> list[int]:
    return [int(i) for batch in batches(loader, epoch, start_step) for i in batch[0]]


def same(first: list[list[np.ndarray]], second: list[list[np.ndarray]]) -> bool:
    return len(first) == len(second) and all(
        np.array_equal(a, b) for x, y in zip(first, second) for a, b in zip(x, y)
    )


@pytest.mark.parametrize("workers", [1, 2, 7])
def test_threads_change_nothing(workers: int) -> None:
    expected = batches(Loader(Numbers(23, bad=(4, 5)), 4, 3, 0), epoch=2)
    got = batches(Loader(Numbers(23, bad=(4, 5), delay=0.002), 4, 3, workers), epoch=2)
    assert same(expected, got)


def test_epochs_differ_and_seeds_differ() -> None:
    loader = Loader(Numbers(20), 5, 0, 0)
    assert sorted(indices(loader, 0)) == sorted(indices(loader, 1)) == list(range(20))
    assert indices(loader, 0) != indices(loader, 1)
    assert indices(loader, 0) != indices(Loader(Numbers(20), 5, 1, 0), 0)
    assert indices(loader, 0) == indices(loader, 0)


def test_a_sample_depends_on_seed_epoch_and_index_alone() -> None:
    by_index = {}
    for size in (3, 6):
        for batch in batches(Loader(Numbers(18), size, 9, 0), epoch=4):
            for index, number in zip(*batch):
                assert by_index.setdefault(int(index), number.tolist()) == number.tolist()
    expected = np.random.default_rng([9, 4, 7]).random(2)
    assert by_index[7] == expected.tolist()


@pytest.mark.parametrize("workers", [0, 2])
def test_resuming_inside_an_epoch_continues_it(workers: int) -> None:
    loader = Loader(Numbers(23), 4, 0, workers)
    assert loader.steps == 5
    whole = batches(loader, 1)
    assert same(whole[3:], batches(loader, 1, start_step=3))
    assert batches(loader, 1, start_step=5) == []


def test_ranks_share_each_batch() -> None:
    whole = batches(Loader(Numbers(26), 6, 0, 0), epoch=1)
    parts = [batches(Loader(Numbers(26), 6, 0, 0, rank, 3), epoch=1) for rank in range(3)]
    joined = [
        [np.concatenate([part[step][field] for part in parts]) for field in range(2)]
        for step in range(len(whole))
    ]
    assert same(whole, joined)


def test_kept_last_batches_reach_every_image_once() -> None:
    loader = Loader(Numbers(11), 4, 0, 2, drop_last=False, shuffle=False)
    assert loader.steps == 3
    assert indices(loader) == list(range(11))
    shares = [indices(Loader(Numbers(9), 4, 0, 0, rank, 2, drop_last=False)) for rank in range(2)]
    assert sorted(shares[0] + shares[1]) == list(range(9))


def test_impossible_batches_are_refused() -> None:
    with pytest.raises(UserError, match="3 images"):
        Loader(Numbers(3), 4, 0, 0)
    with pytest.raises(UserError, match="split over 3"):
        Loader(Numbers(30), 4, 0, 0, 0, 3)
    with pytest.raises(UserError):
        Loader(Numbers(0), 4, 0, 0, drop_last=False)
    assert Loader(Numbers(3), 4, 0, 0, drop_last=False).steps == 1


@pytest.mark.parametrize("workers", [0, 3])
def test_broken_images_are_replaced_and_named_once(
    workers: int, capsys: pytest.CaptureFixture[str]
) -> None:
    loader = Loader(Numbers(8, bad=(2, 3, 7)), 4, 0, workers, shuffle=False)
    for epoch in range(2):
        assert indices(loader, epoch) == [0, 1, 4, 4, 4, 5, 6, 0]
    assert loader.broken == {
        f"{i}.jpg": f"image {i}.jpg cannot be read: no good" for i in (2, 3, 7)
    }
    said = capsys.readouterr().err
    for index in (2, 3, 7):
        assert said.count(f"image {index}.jpg") == 1


def test_a_replacement_is_another_view() -> None:
    loader = Loader(Numbers(3, bad=(1,)), 3, 0, 0, shuffle=False)
    (batch,) = batches(loader)
    assert batch[0].tolist() == [0, 2, 2] and batch[1][1].tolist() != batch[1][2].tolist()


@pytest.mark.parametrize("workers", [0, 2])
def test_nothing_but_broken_images_ends_the_run(workers: int) -> None:
    loader = Loader(Numbers(6, bad=tuple(range(6))), 2, 0, workers)
    with pytest.raises(UserError, match="none of the 6 images.*no good"):
        next(loader.epoch(0))


@pytest.mark.parametrize("workers", [0, 2])
def test_other_errors_are_bugs_and_pass_through(workers: int) -> None:
    class Buggy(Numbers):
        def get(self, index: int, rng: np.random.Generator) -> tuple[np.ndarray, ...]:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        next(Loader(Buggy(6), 2, 0, workers).epoch(0))


def loader_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("loader")]


def test_stopping_early_ends_the_threads_and_prefetch_is_bounded() -> None:
    dataset = Numbers(400)
    epoch = Loader(dataset, 4, 0, 2).epoch(0)
    next(epoch)
    time.sleep(0.05)
    assert len(dataset.made) <= 4 * 4
    assert loader_threads()
    epoch.close()
    assert not loader_threads()


def test_a_data_set_may_collate_its_own_way() -> None:
    class Lists(Numbers):
        def collate(self, samples: list[tuple[np.ndarray, ...]]) -> list[int]:
            return [int(sample[0]) for sample in samples]

    assert list(Loader(Lists(4), 2, 0, 0, shuffle=False).epoch(0)) == [[0, 1], [2, 3]]
