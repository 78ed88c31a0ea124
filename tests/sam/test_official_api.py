"""A script that was written for the official code runs here after changing its import."""

from __future__ import annotations

import inspect
import json
import os
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.conftest import ROOT
from tests.helpers.official_script import SCRIPT
from tests.helpers.torch_files import storage_of, tensor, write_zip

# What the official classes offer and these do not, and why.
NOT_OFFERED = {
    # Takes the height from the batch axis of its BxCxHxW input.
    "ResizeLongestSide.apply_image_torch",
    # Works on the official code's own container of intermediate results.
    "SamAutomaticMaskGenerator.postprocess_small_regions",
}
RECORD_KEYS = {
    "segmentation",
    "area",
    "bbox",
    "predicted_iou",
    "point_coords",
    "stability_score",
    "crop_box",
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A MobileSAM checkpoint in torch's format with random weights and the unused classifier."""
    from sam import build_sam_vit_t

    shapes = {key: tuple(var.shape) for key, var in build_sam_vit_t().state_dict().items()}
    shapes["image_encoder.norm_head.weight"] = shapes["image_encoder.norm_head.bias"] = (320,)
    shapes["image_encoder.head.weight"], shapes["image_encoder.head.bias"] = (1000, 320), (1000,)
    state, storages = {}, {}
    for number, (key, shape) in enumerate(shapes.items()):
        values = weight(key, shape)
        state[key] = tensor(storage_of(str(number), values), shape)
        storages[str(number)] = values.tobytes()
    return write_zip(tmp_path_factory.mktemp("official") / "mobile_sam.pth", state, storages)


def weight(key: str, shape: tuple[int, ...]) -> np.ndarray:
    """Values that follow from the key and keep activations near one."""
    values = np.random.default_rng(zlib.crc32(key.encode())).standard_normal(shape, np.float32)
    if key.endswith("running_var"):
        return 1 + np.float32(0.1) * np.abs(values)
    if len(shape) < 2:
        return np.float32(key.endswith("weight")) + np.float32(0.1) * values
    return values * np.float32(np.prod(shape[1:]) ** -0.5)


def run(script: str, checkpoint: Path, folder: Path) -> dict[str, Any]:
    """What the script prints, run as a user does."""
    path = folder / "script.py"
    path.write_text(script)
    done = subprocess.run(
        [sys.executable, str(path), str(checkpoint)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "USS_DEVICE": "cpu"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def our_script() -> str:
    return SCRIPT.format(package="sam", setup="from core.runtime import jt", tensor="jt.array")


def test_a_script_for_the_official_code_runs(checkpoint: Path, tmp_path: Path) -> None:
    found = run(our_script(), checkpoint, tmp_path)
    assert found["threshold"] == 0.0 and found["format"] == "RGB" and found["device"] == "cpu"
    assert found["state"] == [True, [90, 120], [768, 1024], [1, 256, 64, 64], "cpu"]
    assert found["point"]["shape"] == [3, 90, 120] and found["point"]["kind"] == "bool"
    assert found["point"]["low_res"][0] == [3, 256, 256]
    assert found["again"]["shape"] == found["box"]["shape"] == [1, 90, 120]
    assert found["boxes"]["shape"] == [2, 1, 90, 120] and found["boxes"]["kind"] == "bool"
    # The first of the boxes, alone, in the batch and through the model itself.
    assert found["boxes"]["areas"][0] == found["box"]["areas"][0]
    assert found["batch0"]["shape"] == [2, 3, 90, 120]
    assert found["batch1"]["shape"] == [2, 3, 120, 90] and found["batch1"]["kind"] == "bool"
    assert found["torch_image"] == found["embedding"]
    assert found["reset"] == [False, True]
    for mode in ("binary_mask", "uncompressed_rle", "coco_rle"):
        assert found[mode], mode
        for record in found[mode]:
            assert set(record) == RECORD_KEYS
            wanted = ["bool", record["area"]]
            if mode != "binary_mask":
                wanted = [["counts", "size"], [90, 120]]
            assert record["segmentation"] == wanted
    plain, rle = ([r["area"] for r in found[m]] for m in ("binary_mask", "uncompressed_rle"))
    assert plain == rle


def test_a_device_that_is_not_there_is_refused() -> None:
    from core.errors import UserError
    from sam import build_sam_vit_t

    sam = build_sam_vit_t()
    assert sam.to(sam.device) is sam
    with pytest.raises(UserError, match="USS_DEVICE"):
        sam.to("tpu:0")


def official(name: str) -> Any:
    """A module of the official code."""
    pytest.importorskip("torch")
    from benchmarks import shims

    shims.install()
    return pytest.importorskip(name)


@pytest.mark.torch
def test_the_same_script_gives_the_same_results(checkpoint: Path, tmp_path: Path) -> None:
    official("mobile_sam")
    (tmp_path / "ours").mkdir()
    ours = run(our_script(), checkpoint, tmp_path / "ours")
    script = SCRIPT.format(package="mobile_sam", setup="import torch", tensor="torch.as_tensor")
    theirs = run(f"from benchmarks import shims\nshims.install()\n{script}", checkpoint, tmp_path)
    assert set(ours) == set(theirs)
    for key, value in theirs.items():
        assert_close(ours[key], value, key)


def assert_close(ours: Any, theirs: Any, where: str) -> None:
    """Equal but for rounding; areas may differ by pixels whose logit is almost zero."""
    if isinstance(theirs, dict):
        assert set(ours) == set(theirs), where
        for key, value in theirs.items():
            assert_close(ours[key], value, f"{where}.{key}")
    elif isinstance(theirs, list):
        assert len(ours) == len(theirs), where
        for number, value in enumerate(theirs):
            assert_close(ours[number], value, f"{where}.{number}")
    elif isinstance(theirs, float):  # officially boxes are floats where a crop had no mask
        assert float(ours) == pytest.approx(theirs, rel=1e-4, abs=1e-4), where
    elif isinstance(theirs, int) and not isinstance(theirs, bool):
        assert abs(ours - theirs) <= 2, f"{where}: {ours} and {theirs}"
    else:
        assert type(ours) is type(theirs) and ours == theirs, where


PAIRS = [
    ("segment_anything.predictor", "SamPredictor", "sam.predictor"),
    (
        "segment_anything.automatic_mask_generator",
        "SamAutomaticMaskGenerator",
        "sam.mask_generator",
    ),
    ("segment_anything.utils.transforms", "ResizeLongestSide", "sam.transforms"),
    ("segment_anything.modeling", "Sam", "sam.build"),
    ("segment_anything.modeling", "PromptEncoder", "sam.prompt_encoder"),
    ("segment_anything.modeling", "MaskDecoder", "sam.mask_decoder"),
]
# Built by `sam_model_registry`, whose signature is compared.
OWN_CONSTRUCTOR = ("PromptEncoder", "MaskDecoder")
# A module's call: `forward` in PyTorch, `execute` in Jittor.
RENAMED = {"forward": "execute"}


@pytest.mark.torch
@pytest.mark.parametrize(("module", "name", "home"), PAIRS, ids=[pair[1] for pair in PAIRS])
def test_methods_and_arguments_are_the_official_ones(module: str, name: str, home: str) -> None:
    theirs = getattr(official(module), name)
    ours = getattr(pytest.importorskip(home), name)
    problems = []
    for method, thing in vars(theirs).items():
        public = not method.startswith("_") or method == "__init__"
        if not public or f"{name}.{method}" in NOT_OFFERED:
            continue
        if method == "__init__" and name in OWN_CONSTRUCTOR:
            continue
        mine = inspect.getattr_static(ours, RENAMED.get(method, method), None)
        if mine is None and not (name == "MaskDecoder" and method == "predict_masks"):
            problems.append(f"{method} is missing")
        elif isinstance(thing, (staticmethod, type(lambda: 0))):
            problems += compared(method, thing, mine)
        elif isinstance(thing, property):
            assert isinstance(mine, property), method
        elif mine is not None:
            assert mine == thing, method
    assert not problems, problems


def compared(method: str, theirs: Any, ours: Any) -> list[str]:
    """Differences of two signatures in names, order and defaults of the arguments."""
    if ours is None:
        return []
    wanted, got = (arguments(function) for function in (theirs, ours))
    # More arguments are welcome where they have defaults and come last.
    extra = got[len(wanted) :]
    if got[: len(wanted)] == wanted and all(d is not inspect.Parameter.empty for _, d in extra):
        return []
    return [f"{method}: {got}, officially {wanted}"]


def arguments(function: Any) -> list[tuple[str, Any]]:
    function = inspect.unwrap(getattr(function, "__func__", function))
    found = []
    for parameter in inspect.signature(function).parameters.values():
        default = parameter.default
        found.append((parameter.name, tuple(default) if isinstance(default, list) else default))
    return found


@pytest.mark.torch
def test_the_package_offers_the_official_names() -> None:
    import sam

    for package in ("segment_anything", "mobile_sam"):
        for name, thing in vars(official(package)).items():
            if callable(thing) or name == "sam_model_registry":
                assert getattr(sam, name, None) is not None, name
            if name.startswith("build_sam"):
                assert arguments(thing) == arguments(getattr(sam, name)), name
