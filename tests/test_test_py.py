"""``test.py`` as a user meets it: its flags, its one-line errors, and how it stops and goes on."""

from __future__ import annotations

import json
import os
import random
import shlex
import shutil
import signal
import subprocess
import time
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from core.data.label_maps import load_label, save_label
from tests.helpers.calls_of_test_py import call, command, on_test_split
from tests.helpers.processes import PATIENCE_S, one_line_error, wait_until


def write_images(folder: Path, count: int, size: tuple[int, int] = (48, 64)) -> None:
    rng = np.random.default_rng(count)
    for index in range(count):
        path = folder / f"n{index % 2}" / f"image{index}.JPEG"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (*size, 3), dtype=np.uint8)).save(path)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Validation images with masks, and test images."""
    folder = tmp_path / "data"
    write_images(folder / "validation", 4)
    for path in (folder / "validation").glob("*/*.JPEG"):
        mask = folder / "validation-segmentation" / path.parent.name / f"{path.stem}.png"
        save_label(mask, np.full((48, 64), 1 + int(path.parent.name[1:]), np.int32))
    write_images(folder / "test", 3)
    return folder


def test_validation_then_test(tmp_path: Path, data: Path, plain_checkpoint: Path) -> None:
    where = ["--data_path", "data", "--pretrained", plain_checkpoint, "--run", tmp_path / "run"]
    first = call(tmp_path, "--mode", "validation", "-a", "resnet18", "-c", 2, *where)
    assert first.returncode == 0, first.stderr
    with zipfile.ZipFile(tmp_path / "result" / "result.zip") as archive:
        assert "PASS with superpixel refinement" in archive.read("method.txt").decode()
    assert "mIoU before refinement (validation)" in first.stdout
    assert "mIoU after refinement (validation)" in first.stdout
    second = call(tmp_path, "--mode", "test", "--method", "My Own", *where)
    assert second.returncode == 0, second.stderr
    with zipfile.ZipFile(tmp_path / "result" / "result.zip") as archive:
        assert "n0/image0.png" in archive.namelist()
        assert archive.read("match.json") == (tmp_path / "result" / "match.json").read_bytes()
        method = archive.read("method.txt").decode()
    assert "My Own" in method and "superpixels, not SAM" in method
    assert load_label(tmp_path / "result" / "test" / "n0" / "image2.png").shape == (48, 64)


def test_missing_things_are_named(tmp_path: Path, data: Path, plain_checkpoint: Path) -> None:
    missing = call(
        tmp_path, "--data_path", "nowhere", "--pretrained", plain_checkpoint, "--run", "run"
    )
    assert "nowhere" in one_line_error(missing)
    split = call(tmp_path, "--data_path", "data", "--pretrained", plain_checkpoint, "--run", "run")
    line = one_line_error(split)
    assert "'testB'" in line and "validation" in line
    segmenter = call(tmp_path, "--data_path", "data", "--run", "run")
    assert str(tmp_path / "run" / "segmenter") in one_line_error(segmenter)
    assert not (tmp_path / "result").exists()


def test_help_and_wrong_settings(tmp_path: Path, data: Path, plain_checkpoint: Path) -> None:
    flags = (
        "--mode --dump_path --data_path --match_file --pretrained --pretrained_sam --arch "
        "--num-classes --max_res --method --train_data --train_scheme --link --description --run "
        "--preset --masks --set --allow-missing --unmatched --keep-stale --verify --image-timeout "
        "--max-pixels"
    )
    text = call(tmp_path, "--help").stdout
    assert all(flag in text for flag in flags.split())
    where = [*on_test_split(plain_checkpoint), "--run", "run"]
    assert "3 were asked for" in one_line_error(call(tmp_path, "-c", 3, *where))
    assert "predict.rezise" in one_line_error(call(tmp_path, "--set", "predict.rezise=9", *where))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_run_keeps_its_images_and_goes_on(
    tmp_path: Path, plain_checkpoint: Path, number: signal.Signals
) -> None:
    write_images(tmp_path / "data" / "test", 40, size=(120, 160))
    where = [*on_test_split(plain_checkpoint), "--run", tmp_path / "run"]
    folder = tmp_path / "result" / "test"
    process = subprocess.Popen(
        command(*where), cwd=tmp_path, stderr=subprocess.PIPE, text=True, env=os.environ
    )
    wait_until(lambda: len(list(folder.glob("*/*.png"))) >= 3)
    process.send_signal(number)
    _, stderr = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 130, stderr
    assert stderr.splitlines()[-1].startswith("interrupted:")
    assert "Traceback" not in stderr
    finished = {path: path.stat().st_mtime_ns for path in folder.glob("*/*.png")}
    assert 3 <= len(finished) < 40
    assert not (tmp_path / "result" / "result.zip").exists()
    again = call(tmp_path, *where)
    assert again.returncode == 0, again.stderr
    assert "finished earlier" in again.stderr
    kept = [path for path in finished if path.stat().st_mtime_ns == finished[path]]
    assert len(kept) >= len(finished) - 1  # one may have been stopped before it was recorded
    assert len(list(folder.glob("*/*.png"))) == 40
    assert not list(tmp_path.glob("result/**/.*.tmp"))


# Killed, hung, several at once ------------------------------------------------------------------


def job_of(tmp_path: Path, plain_checkpoint: Path, result: str = "result") -> list[object]:
    """Arguments for the test split of ``tmp_path/data``."""
    run = ["--run", tmp_path / f"run_{result}", "--dump_path", result]
    return [*on_test_split(plain_checkpoint), *run]


def start(cwd: Path, *arguments: object, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command(*arguments),
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
    )


def computed(result: Path) -> Counter[str]:
    """How often each image was recorded as finished, over all processes."""
    lines = [
        json.loads(line)
        for path in result.glob("test/.ledger/*/*.jsonl")
        for line in path.read_text().splitlines()
        if line.endswith("}")
    ]
    return Counter(line["key"] for line in lines if "files" in line)


def child_of(process: subprocess.Popen[str]) -> int | None:
    found = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return int(found[0]) if found else None


@pytest.mark.parametrize("kills", [5, pytest.param(100, marks=pytest.mark.slow)])
def test_killed_at_random_moments(tmp_path: Path, plain_checkpoint: Path, kills: int) -> None:
    write_images(tmp_path / "data" / "test", 40, size=(120, 160))
    quiet = call(tmp_path, *job_of(tmp_path, plain_checkpoint, "quiet"))
    assert quiet.returncode == 0, quiet.stderr
    rng = random.Random(kills)
    killed, moments = 0, []
    arguments = job_of(tmp_path, plain_checkpoint)
    while killed < kills:
        process = start(tmp_path, *arguments)
        begun = len(computed(tmp_path / "result"))
        # Most kills fall into the images: some while the network loads, some at the very end.
        if rng.random() < 0.8:
            more = 1 if kills > 40 else rng.randint(1, 6)
            wait_until(
                lambda p=process, n=begun + more: (
                    p.poll() is not None or len(computed(tmp_path / "result")) >= n
                )
            )
        time.sleep(rng.uniform(0, 0.3))
        process.kill()
        process.communicate()
        moments.append(len(computed(tmp_path / "result")))
        killed += 1
        if moments[-1] == 40 and killed < kills:
            # Everything is finished: go on with a part of it.
            for path in rng.sample(sorted((tmp_path / "result").glob("test/n*/*.png")), 30):
                path.unlink()
            for path in tmp_path.glob("result/test/.ledger/*/*.jsonl"):
                path.unlink()
            (tmp_path / "result" / "result.zip").unlink(missing_ok=True)
    last = call(tmp_path, *arguments)
    assert last.returncode == 0, last.stderr
    once = computed(tmp_path / "result")
    assert len(once) == 40 and set(once.values()) == {1}, "a finished image was computed again"
    whole = (tmp_path / "quiet" / "result.zip").read_bytes()
    assert (tmp_path / "result" / "result.zip").read_bytes() == whole
    assert len(set(moments)) > 1


@pytest.mark.parametrize("how", ["by hand", "array", "mpirun"])
def test_several_at_once_share_the_images(tmp_path: Path, plain_checkpoint: Path, how: str) -> None:
    if how == "mpirun" and shutil.which("mpirun") is None:
        pytest.skip("mpirun is not installed")
    write_images(tmp_path / "data" / "test", 40, size=(120, 160))
    arguments = job_of(tmp_path, plain_checkpoint)
    if how == "mpirun":
        flags = ["--oversubscribe", "--allow-run-as-root", "--bind-to", "none", "-np", "2"]
        done = subprocess.run(
            ["mpirun", *flags, *command(*arguments)],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        said = done.stderr
    else:
        processes = []
        for task in range(3):
            array = {"SLURM_ARRAY_TASK_ID": str(task), "SLURM_ARRAY_TASK_COUNT": "3"}
            processes.append(start(tmp_path, *arguments, **(array if how == "array" else {})))
        wait_until(lambda: len(computed(tmp_path / "result")) >= 5)
        processes[0].kill()  # what it was at is taken over
        outputs = [process.communicate(timeout=PATIENCE_S) for process in processes]
        assert [process.returncode for process in processes[1:]] == [0, 0], outputs
        said = "".join(stderr for _, stderr in outputs)
    once = computed(tmp_path / "result")
    assert len(once) == 40 and set(once.values()) == {1}
    assert said.count("predictions in") == 1, "the archive is made once"
    assert not (tmp_path / "result" / "test" / ".ledger" / "claims").exists()
    quiet = call(tmp_path, *job_of(tmp_path, plain_checkpoint, "quiet"))
    assert quiet.returncode == 0, quiet.stderr
    whole = (tmp_path / "quiet" / "result.zip").read_bytes()
    assert (tmp_path / "result" / "result.zip").read_bytes() == whole


def test_a_hung_process_is_replaced_and_the_image_is_made(
    tmp_path: Path, plain_checkpoint: Path
) -> None:
    write_images(tmp_path / "data" / "test", 12, size=(120, 160))
    process = start(tmp_path, *job_of(tmp_path, plain_checkpoint), "--image-timeout", 5)
    wait_until(lambda: len(computed(tmp_path / "result")) >= 2)
    child = child_of(process)
    assert child is not None
    os.kill(child, signal.SIGSTOP)
    _, stderr = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, stderr
    assert "no answer within 5 s; once more in a new process with smaller batches" in stderr
    assert set(computed(tmp_path / "result").values()) == {1}


def test_a_full_disk_is_one_line(tmp_path: Path, plain_checkpoint: Path) -> None:
    """The limit of a file's size stands for the end of the disk: the archive does not fit."""
    write_images(tmp_path / "data" / "test", 12, size=(240, 320))
    job = job_of(tmp_path, plain_checkpoint)
    whole = call(tmp_path, *job)
    assert whole.returncode == 0, whole.stderr
    archive = tmp_path / "result" / "result.zip"
    content = archive.read_bytes()
    assert len(content) > 8192
    archive.unlink()
    arguments = " ".join(shlex.quote(part) for part in command(*job))
    done = subprocess.run(
        ["bash", "-c", f"ulimit -f 4; exec {arguments}"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    line = one_line_error(done)
    assert "cannot write" in line and "File too large" in line
    assert not list(tmp_path.glob("result/**/.*.tmp")) and not archive.exists()
    again = call(tmp_path, *job)
    assert again.returncode == 0, again.stderr
    assert archive.read_bytes() == content
    nowhere = call(tmp_path, *job, "--dump_path", "/proc/nowhere")
    assert "cannot write results to /proc/nowhere" in one_line_error(nowhere)
