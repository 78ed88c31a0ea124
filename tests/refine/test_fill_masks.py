"""``python -m uss masks``: resumed, stopped and killed, several at a time, on broken files."""

from __future__ import annotations

import contextlib
import io
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from core.data.imagenet_s import list_images
from core.errors import StopWork, UserError
from core.synthetic.imagenet_s import make_dataset
from refine import fill_masks as stage
from refine.mask_sources import ImageMasks
from tests.conftest import ROOT
from tests.helpers.processes import PATIENCE_S, wait_until
from tests.helpers.quarter_masks import QuarterMasks, write_photographs
from uss.__main__ import main
from uss.paths import RunFolder
from uss.presets import preset

IMAGES = 12
_LAUNCHERS = ("OMPI_", "SLURM_", "PMIX_")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("generated") / "data"
    return make_dataset(root, seed=4, classes=2, train=IMAGES // 2, validation=1, test=1)


@pytest.fixture(scope="module")
def quiet(data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of one run that nobody disturbed."""
    run = tmp_path_factory.mktemp("quiet")
    done = finish(data, run)
    assert made_found_failed(done) == (IMAGES, 0, 0)
    return content(run)


def arguments(data: Path, run: Path, *more: str) -> list[str]:
    """With superpixels, which need no weights and are the same every time."""
    command = ["masks", "--preset", "small", "--set", "masks.source=superpixels"]
    return [*command, "--data", str(data), "--run", str(run), *more]


def start(data: Path, run: Path, launcher: tuple[str, ...] = (), **environment: str):
    """The command in a process of its own."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(_LAUNCHERS)}
    return subprocess.Popen(
        [*launcher, sys.executable, "-m", "uss", *arguments(data, run)],
        cwd=ROOT,
        env={**inherited, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def end_of(process: subprocess.Popen, code: int = 0) -> str:
    """What a process wrote to stderr until its end."""
    _, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == code, err
    return err


def finish(data: Path, run: Path, *more: str, code: int = 0) -> str:
    """Run the command in this process, undisturbed; returns what it wrote to stderr."""
    err = io.StringIO()
    with contextlib.redirect_stderr(err):
        assert main(arguments(data, run, *more)) == code, err.getvalue()
    return err.getvalue()


def made_found_failed(err: str) -> tuple[int, ...]:
    """Counts of the summary lines, added up over the processes that wrote to ``err``."""
    lines = re.findall(r"(\d+) made, (\d+) found, (\d+) failed", err)
    assert lines, err
    return tuple(sum(int(line[column]) for line in lines) for column in range(3))


def content(run: Path) -> dict[str, bytes]:
    """The store's files and folders, half-written ones of killed processes left out."""
    store = run / "masks"
    return {
        str(path.relative_to(store)): path.read_bytes() if path.is_file() else b"folder"
        for path in store.rglob("*")
        if not path.name.startswith(".")
    }


def stored(run: Path) -> int:
    return len(list((run / "masks").glob("*/*/??/[!.]*.gz")))


def wait_until_stored(process: subprocess.Popen, run: Path, count: int) -> None:
    wait_until(lambda: stored(run) >= count or process.poll() is not None)


def test_made_once_then_found(data: Path, tmp_path: Path, quiet: dict[str, bytes]) -> None:
    finish(data, tmp_path)
    assert content(tmp_path) == quiet
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "masks").rglob("*.gz")}
    again = finish(data, tmp_path)
    assert made_found_failed(again) == (0, IMAGES, 0)
    assert f"{IMAGES} of {IMAGES} are there already" in again
    assert before == {path: path.stat().st_mtime_ns for path in before}
    other = finish(data, tmp_path, "--set", "masks.min_mask_region_area=50")
    assert made_found_failed(other) == (IMAGES, 0, 0), "other settings never read these"


def test_broken_images_are_named_and_the_rest_is_made(data: Path, tmp_path: Path) -> None:
    broken = tmp_path / "data"
    shutil.copytree(data, broken)
    image = next((broken / "train" / "n00000001").iterdir())
    image.write_bytes(image.read_bytes()[:200])
    done = finish(broken, tmp_path / "run", code=1)
    assert made_found_failed(done) == (IMAGES - 1, 0, 1)
    key = f"n00000001/{image.name.split('.')[0]}"
    assert f"1 failed ({key})" in done and f"{image} cannot be read" in done
    again = finish(broken, tmp_path / "run", code=1)
    assert made_found_failed(again) == (0, IMAGES - 1, 1)


def test_check_names_and_removes_what_is_broken(
    data: Path, tmp_path: Path, quiet: dict[str, bytes]
) -> None:
    finish(data, tmp_path)
    first, second, third = sorted((tmp_path / "masks").rglob("*.gz"))[:3]
    first.write_bytes(first.read_bytes()[:-9])
    second.write_bytes(third.read_bytes())
    third.unlink()
    checked = finish(data, tmp_path, "--check", code=1)
    assert f"{IMAGES - 3} whole, 2 broken" in checked and "1 not there" in checked
    assert f"{first} is broken" in checked and f"{second} is broken" in checked
    assert made_found_failed(finish(data, tmp_path)) == (3, IMAGES - 3, 0)
    assert content(tmp_path) == quiet
    assert f"{IMAGES} whole, 0 broken, 0 not" in finish(data, tmp_path, "--check")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_says_that_work_is_kept(
    data: Path, tmp_path: Path, quiet: dict[str, bytes], number: signal.Signals
) -> None:
    process = start(data, tmp_path)
    wait_until_stored(process, tmp_path, 2)
    process.send_signal(number)
    done = end_of(process, 130)
    assert done.splitlines()[-1].startswith("interrupted: finished work is kept")
    assert "Traceback" not in done
    kept = content(tmp_path)
    assert kept.items() < quiet.items(), "whole files, and no claim left"
    made = made_found_failed(finish(data, tmp_path))[0]
    assert made == IMAGES - sum(name.endswith(".gz") for name in kept)
    assert content(tmp_path) == quiet


# Several processes -------------------------------------------------------------------------------


def test_processes_started_by_hand_make_each_image_once(
    data: Path, tmp_path: Path, quiet: dict[str, bytes]
) -> None:
    ends = [end_of(process) for process in [start(data, tmp_path) for _ in range(3)]]
    counts = [made_found_failed(end) for end in ends]
    assert sum(made for made, _, _ in counts) == IMAGES
    assert not any("has taken over" in end for end in ends), "computed twice, kept once"
    assert all(made + found == IMAGES and not failed for made, found, failed in counts)
    assert content(tmp_path) == quiet


def test_mpi_ranks_share_the_images(data: Path, tmp_path: Path, quiet: dict[str, bytes]) -> None:
    if shutil.which("mpirun") is None:
        pytest.skip("needs mpirun (Debian: apt-get install openmpi-bin)")
    root = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    launcher = ("mpirun", "-np", "2", "--oversubscribe")
    done = end_of(start(data, tmp_path, launcher=launcher, **root))
    assert made_found_failed(done) == (IMAGES, IMAGES, 0)
    assert content(tmp_path) == quiet


def test_an_array_task_begins_with_its_part_and_helps(
    data: Path, tmp_path: Path, quiet: dict[str, bytes]
) -> None:
    """The other task never runs; the numbers come without SLURM_ARRAY_TASK_MIN."""
    array = {"SLURM_ARRAY_TASK_ID": "1", "SLURM_ARRAY_TASK_COUNT": "2"}
    done = end_of(start(data, tmp_path, **array))
    assert made_found_failed(done) == (IMAGES, 0, 0)
    by_time = sorted((tmp_path / "masks").rglob("*.gz"), key=lambda path: path.stat().st_mtime_ns)
    first = {path.name.split(".")[0].replace("%2F", "/") for path in by_time[: IMAGES // 2]}
    assert first == {item.key for item in list_images(data / "train")[1::2]}
    assert content(tmp_path) == quiet


STOPPED = """
import sys, time
from pathlib import Path
from core.data.imagenet_s import list_images
from tests.helpers.quarter_masks import QuarterMasks
from refine import fill_masks
from refine.mask_sources import ImageMasks

class Slow(QuarterMasks):
    def generate(self, rgb):
        print("ready", flush=True)
        while not (folder / "go").exists():
            time.sleep(0.05)
        return super().generate(rgb)[:1]

folder = Path(sys.argv[1])
images = ImageMasks(Slow(), folder / "store")
limit = float(sys.argv[2])
tally = fill_masks.fill(list_images(folder / "train"), images, "masks", 1.0, limit)
print(tally.made, flush=True)
"""


@pytest.mark.parametrize("stopped", [True, False], ids=["suspended", "hung"])
def test_a_stopped_process_does_not_overwrite_who_took_over(tmp_path: Path, stopped: bool) -> None:
    """Suspended, it gives no sign of life; hung, its heartbeat goes on until the deadline."""
    (key,) = write_photographs(tmp_path, "train", 1)
    with subprocess.Popen(
        [sys.executable, "-c", STOPPED, str(tmp_path), "600" if stopped else "0.5"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT)])},
        stdout=subprocess.PIPE,
        text=True,
    ) as old:
        assert old.stdout is not None and old.stdout.readline() == "ready\n"
        if stopped:
            os.kill(old.pid, signal.SIGSTOP)
        images = ImageMasks(QuarterMasks(), tmp_path / "store")
        items = list_images(tmp_path / "train")
        assert stage.fill(items, images, "masks", timeout_s=1.0).made == 1
        kept = images.store.path(key).read_bytes()
        (tmp_path / "go").touch()
        os.kill(old.pid, signal.SIGCONT)
        assert old.stdout.readline() == "0\n" and old.wait(timeout=PATIENCE_S) == 0
    assert images.store.path(key).read_bytes() == kept


def test_what_concerns_all_images_ends_the_run_at_the_first(tmp_path: Path) -> None:
    class Broken(QuarterMasks):
        def generate(self, rgb):
            self.generated.append(rgb.shape[:2])
            raise StopWork("the weights are damaged")

    write_photographs(tmp_path / "data", "train", 3)
    images = ImageMasks(Broken(), tmp_path / "store")
    with pytest.raises(StopWork, match="the weights are damaged"):
        stage.fill(list_images(tmp_path / "data" / "train"), images, "masks")
    assert len(images.source.generated) == 1


def test_a_store_that_cannot_be_written_ends_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_photographs(tmp_path, "train", 3)
    source = QuarterMasks()
    monkeypatch.setattr(stage, "mask_source", lambda config: source)
    (tmp_path / "full").symlink_to("/dev/full")
    monkeypatch.setattr(
        "core.work.mask_store.atomic_write", lambda path: open(tmp_path / "full", "wb", buffering=0)
    )
    with pytest.raises(UserError, match="cannot write masks to .*No space left"):
        stage.run(preset("small", "resnet18"), tmp_path, RunFolder(tmp_path / "run"))
    assert len(source.generated) == 1, "not image after image in vain"


# Kills -------------------------------------------------------------------------------------------


def check_kills(data: Path, run: Path, quiet: dict[str, bytes], kills: int) -> None:
    """Kill runs, one or two at a time, at random moments: while they start, work or end.

    A store that was finished in between is compared and begun anew.
    """
    rng = random.Random(kills)
    killed = 0
    while killed < kills:
        processes = [start(data, run) for _ in range(rng.choice((1, 1, 2)))]
        for process in processes:
            if rng.random() < 0.2:
                time.sleep(rng.uniform(0, 1))
            else:
                wait_until_stored(process, run, stored(run) + rng.randint(0, 2))
                time.sleep(rng.uniform(0, 0.15))
            process.kill()
        for process in processes:
            process.communicate(timeout=PATIENCE_S)
            killed += process.returncode == -signal.SIGKILL
        if stored(run) == IMAGES:
            finish(data, run)
            assert content(run) == quiet
            shutil.rmtree(run / "masks")
    finish(data, run)
    assert content(run) == quiet
    finish(data, run, "--check")


def test_four_kills_leave_the_content_of_a_quiet_run(
    data: Path, tmp_path: Path, quiet: dict[str, bytes]
) -> None:
    check_kills(data, tmp_path, quiet, kills=4)


@pytest.mark.slow
def test_sixty_kills_leave_the_content_of_a_quiet_run(
    data: Path, tmp_path: Path, quiet: dict[str, bytes]
) -> None:
    check_kills(data, tmp_path, quiet, kills=60)
