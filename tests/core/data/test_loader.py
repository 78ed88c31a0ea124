"""The loader: order, determinism, sharing, resuming, broken images, shutdown."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from core.data.loader import Loader
from core.errors import UserError
from tests.conftest import ROOT
from tests.helpers.processes import PATIENCE_S, wait_until


class Numbers:
    """Samples (index, random number); those in ``bad`` are broken."""

    def __init__(self, count: int, bad: tuple[int, ...] = (), delay: float = 0.0) -> None:
        self.count = count
        self.bad = bad
        self.delay = delay

    def __len__(self) -> int:
        return self.count

    def path(self, index: int) -> Path:
        return Path(f"{index}.jpg")

    def get(self, index: int, rng: np.random.Generator) -> tuple[np.ndarray, ...]:
        if index in self.bad:
            raise UserError(f"image {index}.jpg cannot be read: no good")
        time.sleep(self.delay * (index % 3))
        return np.asarray(index), rng.random(2)


class Buggy(Numbers):
    """A bug at every sample."""

    def get(self, index: int, rng: np.random.Generator) -> tuple[np.ndarray, ...]:
        raise ZeroDivisionError("by nought")


class Witness(Numbers):
    """Leaves a file for each sample, named after the process that made it."""

    def __init__(self, count: int, folder: Path) -> None:
        super().__init__(count)
        self.folder = folder

    def get(self, index: int, rng: np.random.Generator) -> tuple[np.ndarray, ...]:
        assert "jittor" not in sys.modules
        (self.folder / f"{os.getpid()}.{index}").touch()
        return super().get(index, rng)


class Deadly(Numbers):
    """Sample 5 kills the process that makes it."""

    def get(self, index: int, rng: np.random.Generator) -> tuple[np.ndarray, ...]:
        if index == 5:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().get(index, rng)


def batches(loader: Loader, epoch: int = 0, start_step: int = 0) -> list[list[np.ndarray]]:
    return [list(batch) for batch in loader.epoch(epoch, start_step)]


def indices(loader: Loader, epoch: int = 0, start_step: int = 0) -> list[int]:
    return [int(i) for batch in batches(loader, epoch, start_step) for i in batch[0]]


def same(first: list[list[np.ndarray]], second: list[list[np.ndarray]]) -> bool:
    return len(first) == len(second) and all(
        np.array_equal(a, b) for x, y in zip(first, second) for a, b in zip(x, y)
    )


@pytest.mark.parametrize("workers", [1, 2, 7])
def test_workers_change_nothing(workers: int) -> None:
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


def test_other_errors_are_bugs_and_pass_through() -> None:
    with pytest.raises(ZeroDivisionError):
        next(Loader(Buggy(6), 2, 0, 0).epoch(0))
    with pytest.raises(RuntimeError, match=r"sample of \d.jpg(.|\n)*ZeroDivisionError: by nought"):
        next(Loader(Buggy(6), 2, 0, 2).epoch(0))


@pytest.fixture
def seen(tmp_path: Path) -> Path:
    """Folder of a :class:`Witness`."""
    return tmp_path


def makers(seen: Path) -> set[int]:
    return {int(path.name.partition(".")[0]) for path in seen.iterdir()}


def alive(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False


def test_other_processes_make_the_samples_and_only_a_few_ahead(seen: Path) -> None:
    loader = Loader(Witness(400, seen), 4, 0, 2)
    epoch = loader.epoch(0)
    next(epoch)
    # Two batches are made ahead although nobody takes them: no answer waits for this process.
    wait_until(lambda: len(list(seen.iterdir())) == 3 * 4)
    time.sleep(0.1)
    assert len(list(seen.iterdir())) == 3 * 4
    pids = makers(seen)
    assert len(pids) == 2 and os.getpid() not in pids
    epoch.close()
    assert indices(loader, 1) == indices(Loader(Numbers(400), 4, 0, 0), 1)
    assert makers(seen) == pids  # the same workers went on with the next epoch
    loader.close()
    assert not any(map(alive, pids))


def test_workers_end_with_the_loader(seen: Path) -> None:
    next(Loader(Witness(40, seen), 4, 0, 2).epoch(0))
    wait_until(lambda: not any(map(alive, makers(seen))))


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("workers", [1, 3])
def test_a_killed_worker_is_an_error_that_names_the_file(workers: int, late: bool) -> None:
    epoch = Loader(Deadly(24), 4, 0, workers, shuffle=False).epoch(0)
    assert next(epoch)[0].tolist() == [0, 1, 2, 3]
    if late:  # it is dead before it gets its next task
        time.sleep(1.0)
    with pytest.raises(UserError, match=r"ended \(SIGKILL\) while .*\b5\.jpg.*--workers"):
        list(epoch)


def test_a_data_set_that_a_worker_cannot_read_is_an_error() -> None:
    dataset = Numbers(6)
    dataset.delay = _Unreadable()
    with pytest.raises(RuntimeError, match=r"sample of \d.jpg(.|\n)*no such thing here"):
        next(Loader(dataset, 2, 0, 1).epoch(0))


class _Unreadable:
    def __reduce__(self):
        return _refuse, ()


def _refuse():
    raise ValueError("no such thing here")


TRAINING = """
import sys, time
from pathlib import Path
from core.data.loader import Loader
from core.errors import main_guard
from test_loader import Witness

@main_guard
def main():
    for _ in Loader(Witness(4000, Path(sys.argv[1])), 4, 0, 2).epoch(0):
        time.sleep(0.05)
    return 0

sys.exit(main())
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_no_worker_outlives_the_training_process(seen: Path, number: signal.Signals) -> None:
    path = os.pathsep.join([str(ROOT), str(Path(__file__).parent)])
    process = subprocess.Popen(
        [sys.executable, "-c", TRAINING, str(seen)],
        env={**os.environ, "PYTHONPATH": path},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    wait_until(lambda: len(makers(seen)) == 2)
    os.killpg(process.pid, number) if number == signal.SIGINT else process.send_signal(number)
    _, shown = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == (-9 if number == signal.SIGKILL else 130), shown
    assert "Traceback" not in shown
    wait_until(lambda: not any(map(alive, makers(seen))))


def test_large_batches_do_not_block_each_other() -> None:
    """More answers than a socket holds, and larger ones, before the first is taken."""
    loader = Loader(Numbers(6000), 2000, 0, 2, shuffle=False)
    epoch = loader.epoch(0)
    next(epoch)
    time.sleep(0.2)
    assert sum(len(batch[0]) for batch in epoch) == 4000


def test_a_data_set_may_collate_its_own_way() -> None:
    class Lists(Numbers):
        def collate(self, samples: list[tuple[np.ndarray, ...]]) -> list[int]:
            return [int(sample[0]) for sample in samples]

    assert list(Loader(Lists(4), 2, 0, 0, shuffle=False).epoch(0)) == [[0, 1], [2, 3]]
