"""The doctor: what it finds on machines that lack something, and on this one."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from core import cuda, runtime
from core.config import override
from core.memory import machine_bytes
from core.text import duration
from core.version import VERSION
from sam import weights
from tests.conftest import ROOT
from tests.helpers.processes import only
from tools.doctor import checks as checks
from tools.doctor import data, estimate, gpu, measure
from tools.doctor.checks import FAIL, OK, WARN
from uss.pipeline import PIPELINE
from uss.presets import PUBLISHED, preset


def program(path: Path, text: str) -> Path:
    """A shell script."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def test_on_this_machine(tmp_path: Path) -> None:
    """Everything that the tests need is here, so nothing fails; the data set is missing."""
    command = [sys.executable, "-m", "uss", "doctor", "--preset", "demo", "--json"]
    places = ["--run", str(tmp_path / "run"), "--result", str(tmp_path / "result")]
    done = subprocess.run(
        [*command, *places, "--data", str(tmp_path / "none")],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1, done.stderr
    content = json.loads(done.stdout)
    found = {check["name"]: check for check in content["checks"]}
    assert content["ok"] is False and content["estimate"] == []
    for name in ("python", "compiler", "python headers", "oneDNN", "Jittor"):
        assert found[name]["state"] == OK, found[name]
    assert re.fullmatch(r"1\.3\.11\.0 on the .PU", found["Jittor"]["found"])
    assert found["oneDNN"]["found"].startswith("2.6")
    assert found["data"]["state"] == FAIL and "DATA=" in found["data"]["mend"]
    assert all(check["mend"] for check in content["checks"] if check["state"] != OK)
    assert not (tmp_path / "run").exists()


def test_no_compiler_and_one_that_cannot_compile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = program(tmp_path / "broken" / "g++", "echo no omp.h >&2; exit 1")
    monkeypatch.setenv("cc_path", str(broken))
    check = checks.compiler()
    assert check.state == FAIL and "cannot make a library: no omp.h" in check.found
    monkeypatch.delenv("cc_path")
    monkeypatch.setenv("PATH", only(tmp_path / "bin"))
    check = checks.compiler()
    assert check.state == FAIL and check.mend.endswith("apt-get install g++")


def test_no_headers_and_no_onednn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "_python_config", lambda: None)
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    check = checks.headers()
    assert check.state == FAIL and check.mend.endswith(f"apt-get install python{version}-dev")
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    check = checks.onednn()
    assert check.state == FAIL and check.mend.endswith(checks._lock().name)


def test_the_program_states_its_version() -> None:
    assert checks.program() == checks.Check("program", OK, f"{VERSION}, {ROOT}")


def test_packages_of_other_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    pins = re.findall(r"^([\w.-]+)==([\w.]+)", checks._lock().read_text(), re.MULTILINE)
    installed: dict[str, str | None] = dict(pins)
    names = re.findall(r"^[\w-]+", (ROOT / "requirements.txt").read_text(), re.MULTILINE)
    monkeypatch.setattr(checks, "_version", installed.get)
    assert checks.packages() == checks.Check(
        "packages", OK, f"{len(names)} as in requirements/{checks._lock().name}"
    )
    installed.update({"numpy": "2.0.0", "faiss-cpu": None, "faiss-gpu-cu12": "1.10.0"})
    check = checks.packages()
    assert (check.state, check.found) == (FAIL, "numpy 1.26.4 is 2.0.0")
    assert "pip install -r" in check.mend
    installed["faiss-gpu-cu12"] = None
    assert f"faiss-cpu {dict(pins)['faiss-cpu']} is missing" in checks.packages().found
    monkeypatch.setattr(checks, "_lock", lambda: ROOT / "requirements" / "lock-py314.txt")
    assert (checks.packages().state, "lock-py314.txt" in checks.packages().found) == (WARN, True)


@pytest.mark.parametrize(
    ("mpirun", "state", "text"),
    [
        (None, WARN, "no mpirun"),
        ("echo 'mpirun (Open MPI) 4.1.4'", OK, "Open MPI"),
        ("echo 'HYDRA build details'", FAIL, "is not OpenMPI"),
        ('[ "$1" = --version ] && echo "mpirun (Open MPI) 4" || exit 3', FAIL, "cannot start two"),
        (
            '[ "$1" = --version ] && echo "mpirun (Open MPI) 4" && exit\n'
            "echo set OMPI_ALLOW_RUN_AS_ROOT >&2; exit 1",
            WARN,
            "as root",
        ),
    ],
)
def test_mpi(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mpirun: str | None, state: str, text: str
) -> None:
    program(tmp_path / "bin" / "mpicc", "true")
    if mpirun is not None:
        program(tmp_path / "bin" / "mpirun", mpirun)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    check = checks.mpi()
    assert check.state == state and text in check.found
    assert bool(check.mend) == (state != OK)


def test_mpi_without_its_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(tmp_path / "bin" / "mpirun", "echo 'mpirun (Open MPI) 4'")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    check = checks.mpi()
    assert check.state == FAIL and "libopenmpi-dev" in check.mend


def test_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    found = machine_bytes()
    assert found is not None and 0 < found[1] <= found[0]
    for gib, state in ((2, FAIL), (5, WARN), (9, OK)):
        monkeypatch.setattr(checks, "machine_bytes", lambda gib=gib: (16 << 30, gib << 30))
        assert checks.memory().state == state
    monkeypatch.setattr(checks, "machine_bytes", lambda: None)
    assert checks.memory().state == WARN


def test_disk_and_write_access(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("USS_CACHE", str(tmp_path / "cache"))
    assert checks.disk(tmp_path / "a" / "b", 10).state in (OK, FAIL)  # as this disk is
    check = checks.disk(tmp_path, 10**12)
    assert check.state == FAIL and "wanted" in check.found and "RUN=" in check.mend
    assert checks.writing({"run": tmp_path / "new" / "run"}).state == OK
    check = checks.writing({"run": tmp_path, "result": Path("/proc/1/none")})
    assert check.state == FAIL and "result /proc/1" in check.found and "run" not in check.found
    assert list(tmp_path.iterdir()) == []


def test_a_cache_folder_that_others_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("USS_CACHE", str(tmp_path))
    tmp_path.chmod(0o777)
    check = checks.jittor()
    assert check.state == FAIL and "can be written by other users" in check.found
    assert f"chmod go-w {tmp_path}" in check.mend


def test_weights_by_their_checksum(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("USS_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "weights"
    folder.mkdir()
    check = checks.sam_weights(folder)
    assert check.state == FAIL and check.mend.endswith("python -m uss weights")
    fetched = weights.fetched_path()
    fetched.parent.mkdir(parents=True)
    fetched.write_bytes(b"half a file")
    check = checks.sam_weights(folder)
    assert check.state == FAIL and check.mend == f"rm {fetched} && python -m uss weights"
    fetched.unlink()
    official = folder / "sam_vit_b_01ec64.pth"
    official.write_bytes(b"not the published one")
    check = checks.sam_weights(folder)
    assert check.state == FAIL and "SHA-256 differs" in check.found and str(official) in check.mend
    manifest = weights.manifest()
    content = {entry["file"]: entry for entry in manifest["by_hand"]}
    content[official.name]["sha256"] = checks.sha256_of(official)
    monkeypatch.setattr(weights, "manifest", lambda: manifest)
    check = checks.sam_weights(folder)
    assert check.state == OK and "intact" in check.found


# GPU --------------------------------------------------------------------------------------------


def toolkit(root: Path, release: str, cudnn: str | None = "8") -> Path:
    """A folder like a CUDA toolkit's; returns its nvcc."""
    nvcc = program(root / "bin" / "nvcc", f"echo 'Cuda compilation tools, release {release}, V1'")
    (root / "lib64").mkdir()
    (root / "lib64" / "libcudart.so.12").touch()
    if cudnn is not None:
        (root / "include").mkdir()
        (root / "include" / "cudnn.h").touch()
        name = "libcudnn_ops_infer.so" if cudnn == "8" else f"libcudnn.so.{cudnn}"
        (root / "lib64" / name).touch()
    return nvcc


@pytest.mark.parametrize(
    ("driver", "release", "cudnn", "gcc", "card", "state", "text"),
    [
        ((12, 4), "12.2", "8", 12, ("A100", 80.0, 80), OK, "CUDA 12.2"),
        ((12, 4), "12.2", "8", 12, ("old", 4.0, 61), WARN, "little memory"),
        ((12, 4), "12.2", "9", 12, ("A100", 80.0, 80), FAIL, "cuDNN 9 is there"),
        ((12, 4), "12.2", None, 12, ("A100", 80.0, 80), FAIL, "cudnn.h was not found"),
        ((12, 4), "12.2", "8", 13, ("A100", 80.0, 80), FAIL, "g++ up to 12, here is 13"),
        ((13, 0), "13.0", "8", 12, ("A100", 80.0, 80), FAIL, "newer than Jittor"),
        ((11, 4), "12.2", "8", 12, ("A100", 80.0, 80), FAIL, "newer than the driver's (11.4)"),
        ((12, 8), "12.2", "8", 12, ("B200", 180.0, 100), FAIL, "newer than Jittor 1.3.11 builds"),
        ((9, 0), "12.2", "8", 12, ("K40", 12.0, 35), FAIL, "expected 10.2 or later"),
    ],
)
def test_gpu(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    driver: tuple[int, int],
    release: str,
    cudnn: str | None,
    gcc: int,
    card: tuple[str, float, int],
    state: str,
    text: str,
) -> None:
    """Which driver, toolkit, cuDNN, compiler and card fit each other and Jittor."""
    monkeypatch.setenv("nvcc_path", str(toolkit(tmp_path / "cuda", release, cudnn)))
    monkeypatch.setenv("cc_path", str(program(tmp_path / "g++", f"echo {gcc}")))
    monkeypatch.delenv("USS_DEVICE", raising=False)
    monkeypatch.setattr(cuda, "cuda_devices", lambda: 1)
    monkeypatch.setattr(gpu, "_cards", lambda: [card])
    monkeypatch.setattr(gpu, "driver_cuda", lambda: driver)
    check = gpu.gpu()
    assert check.state == state and text in check.found, check
    assert bool(check.mend) == (state != OK)


def test_toolkit_for_an_older_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("nvcc_path", str(tmp_path / "none"))
    monkeypatch.delenv("USS_DEVICE", raising=False)
    monkeypatch.setattr(cuda, "cuda_devices", lambda: 1)
    monkeypatch.setattr(gpu, "_cards", lambda: [("T4", 16.0, 75)])
    for driver, wanted in (((12, 4), "cuda-toolkit=12.2 cudnn=8"), ((11, 6), "=11.2 cudnn=8")):
        monkeypatch.setattr(gpu, "driver_cuda", lambda driver=driver: driver)
        check = gpu.gpu()
        assert check.state == FAIL and wanted in check.mend and "USS_DEVICE=cpu" in check.mend


def test_no_gpu_is_no_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    if cuda.cuda_devices() or Path("/proc/driver/nvidia/gpus").is_dir():
        pytest.skip("there is a GPU")
    monkeypatch.delenv("USS_DEVICE", raising=False)
    assert gpu.gpu().state == OK
    monkeypatch.setenv("USS_DEVICE", "cuda")
    assert gpu.gpu().state == FAIL


# Data -------------------------------------------------------------------------------------------


def imagenet_s(root: Path, train: int, validation: int, test: int) -> Path:
    """Empty files in the layout of ImageNet-S50."""
    for split, count in (("train", train), ("validation", validation), ("testB", test)):
        for index in range(count):
            name = f"n{index % 50:08d}"
            path = root / split / name / f"{index}.JPEG"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
            if split == "validation":
                mask = root / "validation-segmentation" / name / f"{index}.png"
                mask.parent.mkdir(parents=True, exist_ok=True)
                mask.touch()
    return root


def test_counts_of_imagenet_s(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert PUBLISHED[50] == {"train": 64431, "validation": 752, "test": 1682}
    counts = {"train": 200, "validation": 60, "test": 50}
    monkeypatch.setitem(PUBLISHED, 50, counts)
    root = imagenet_s(tmp_path / "set", 200, 60, 50)
    config = preset("luss50")
    found = {check.name: check for check in data.data(root, config, PIPELINE)}
    assert {name: check.state for name, check in found.items()} == {
        "data train": OK,
        "data validation": OK,
        "data testB": OK,  # another number of images is published nowhere
    }
    assert found["data validation"].found == "60 images in 50 class folders, each with a mask"
    (root / "train" / "n00000007" / "7.JPEG").unlink()
    (root / "validation-segmentation" / "n00000003" / "3.png").unlink()
    found = {check.name: check for check in data.data(root, config, PIPELINE)}
    assert found["data train"].state == FAIL
    assert found["data train"].found == "199 images in 50 class folders; published with 200 in 50"
    assert found["data validation"].state == FAIL and "3.png" in found["data validation"].found
    # Another preset expects no numbers, but the clusters must be filled.
    few = data.data(root, preset("luss300"), PIPELINE)
    assert few[0].state == FAIL
    assert data.data(root, preset("small"), PIPELINE)[0].state == OK


def test_own_images_without_masks(tmp_path: Path) -> None:
    for index in range(6):
        path = tmp_path / "train" / f"{index}.jpg"
        path.parent.mkdir(exist_ok=True)
        path.touch()
    found = data.data(tmp_path, preset("small"), PIPELINE)
    assert [check.state for check in found] == [OK, WARN, WARN]
    assert "--threshold" in found[1].mend and "SPLIT=train" in found[2].mend
    (tmp_path / "train" / "5.png").touch()
    check = data.data(tmp_path, preset("small"), PIPELINE)[0]
    assert check.state == FAIL and "data check" in check.mend


# The estimate -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("module", "images", "rows"),
    [("uss.cluster", 1100, 1100), ("uss.distance_matching", 130, 90)],
)
def test_what_a_stage_takes_that_keeps_features(module: str, images: int, rows: int) -> None:
    """Really measured; time, memory and disk grow with the images."""
    settings = ["cluster.resize=40", "cluster.crop=32", "cluster.batch_size=4"]
    small = [*settings, "distance_matching.resize=64", "cluster.redo=1", "cluster.iterations=2"]
    config = override(preset("demo", "resnet18"), small)
    counts = {"train": 1000, "validation": 100, "train-semi": 30}
    found = measure.measure_look(module, config, 0.2, counts)
    assert found.images == images
    assert found.disk_mib == 2 * rows * 512 * 4 / 2**20  # both in blocks and in one file
    more = measure.measure_look(module, config, 0.2, {key: 50 * n for key, n in counts.items()})
    assert more.images == 50 * found.images and more.disk_mib == 50 * found.disk_mib
    assert more.seconds > 5 * found.seconds > 0
    assert more.memory_mib > found.memory_mib > 100


def test_a_stage_beside_is_no_part_of_the_sum() -> None:
    rows = [
        estimate.Row("cluster resnet50", 1100, 60.0, 2048.0, "one pass", 512.0),
        estimate.Row("distance-matching resnet50", 130, 3600.0, 1024.0, "votes", beside=True),
    ]
    head, first, whole, last = estimate.format_rows(rows).splitlines()
    assert head.split() == ["stage", "images", "time", "memory", "disk", "note"]
    assert "2.0 GiB   0.5 GiB  one pass" in first
    assert whole.split()[0] == "all" and duration(60.0) in whole
    assert last.startswith("distance-matching") and last.endswith("votes; no script runs it")


@pytest.mark.slow
def test_estimate_of_a_tiny_preset() -> None:
    """Times of every stage, from real steps."""
    settings = {
        "pretrain.crop_sizes": "64,32",
        "pretrain.crop_counts": "2,1",
        "pixel_attention.crop_size": "64",
        "finetune.crop_size": "64",
        "finetune.head_width": "16",
        "masks.source": "superpixels",
        "cluster.crop": "64",
        "cluster.resize": "64",
        "cluster.batch_size": "8",
        "distance_matching.resize": "64",
    }
    flags = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    command = [sys.executable, "-m", "uss", "doctor", "--preset", "demo", "--json", "--estimate"]
    done = subprocess.run(
        [*command, "--seconds", "6", *flags],
        cwd=ROOT,
        env={**os.environ, "USS_DEVICE": "cpu"},
        capture_output=True,
        text=True,
    )
    rows = {row["stage"]: row for row in json.loads(done.stdout)["estimate"]}
    assert set(rows) == {
        *(
            f"{stage} {arch}"
            for arch in ("resnet50", "resnet18")
            for stage in ("pretrain", "pixel-attention", "cluster")
        ),
        "pseudo-labels resnet18",
        "finetune resnet50",
        "predict resnet50",
        "test.py, both splits",
        "distance-matching resnet50",
    }
    assert [name for name, row in rows.items() if row["beside"]] == ["distance-matching resnet50"]
    for name in ("cluster resnet50", "distance-matching resnet50"):
        assert rows[name]["memory_mib"] > 100 and rows[name]["disk_mib"] > 0
    assert rows["cluster resnet50"]["disk_mib"] == 4 * rows["cluster resnet18"]["disk_mib"]
    assert all(row["seconds"] > 0 for row in rows.values())
    assert rows["pretrain resnet50"]["seconds"] > rows["pretrain resnet18"]["seconds"]
    assert rows["pretrain resnet50"]["memory_mib"] > 300
