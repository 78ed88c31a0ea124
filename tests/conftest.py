"""Fixtures shared by all tests: golden files, their recipe, real photographs."""

from __future__ import annotations

import importlib.util
import os
import signal
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent
GOLDENS = Path(os.environ.get("USS_GOLDENS", ROOT.parent / "shared" / "goldens"))
DATA = ROOT.parent / "shared" / "data"
VOC_MINI = Path(os.environ.get("USS_VOC_MINI", DATA / "voc_mini"))
COCO_MINI = Path(os.environ.get("USS_COCO_MINI", DATA / "coco_mini"))
CALTECH4 = Path(os.environ.get("USS_CALTECH4", ROOT.parent / "shared" / "data" / "caltech4"))


def pytest_configure() -> None:
    """Take Ctrl-C: a shell that starts the tests in the background lets them ignore it, which their
    child processes would inherit.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def goldens() -> Callable[[str], dict[str, np.ndarray]]:
    """Function from a file's name without suffix to its arrays; skips where the file is not at
    hand.
    """

    def load(name: str) -> dict[str, np.ndarray]:
        path = GOLDENS / f"{name}.npz"
        if not path.is_file():
            pytest.skip(
                f"golden file {path} is not there; set USS_GOLDENS to the folder that has it"
            )
        with np.load(path, allow_pickle=False) as file:
            return {key: file[key] for key in file.files}

    return load


@pytest.fixture(scope="session")
def recipe() -> ModuleType:
    """The module ``recipe.py`` of the golden folder: weights and inputs from keys and seeds."""
    path = GOLDENS / "recipe.py"
    if not path.is_file():
        pytest.skip(f"{path} is not there; set USS_GOLDENS to the folder that has it")
    spec = importlib.util.spec_from_file_location("golden_recipe", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def caltech4() -> Path:
    """Folder of real photographs with masks; skips where it is not at hand."""
    if not CALTECH4.is_dir():
        pytest.skip(f"{CALTECH4} is not there; set USS_CALTECH4 to an ImageNet-S-shaped folder")
    return CALTECH4


@pytest.fixture(scope="session")
def voc_mini() -> Path:
    """Folder of real photographs in VOC form; skips where it is not at hand."""
    if not VOC_MINI.is_dir():
        pytest.skip(f"{VOC_MINI} is not there; set USS_VOC_MINI to a VOC-shaped folder")
    return VOC_MINI


@pytest.fixture(scope="session")
def coco_mini() -> Path:
    """Folder of real photographs in COCO 2014's form; skips where it is not at hand."""
    if not COCO_MINI.is_dir():
        pytest.skip(f"{COCO_MINI} is not there; set USS_COCO_MINI to a COCO-shaped folder")
    return COCO_MINI


@pytest.fixture(scope="session")
def plain_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ResNet18 segmenter of two classes, plain head, random weights."""
    from core.checkpoints.files import model_state, save_checkpoint
    from core.runtime import jt
    from models.pass_net import PlainSegmenter

    jt.sync_all()  # what other tests still have to draw must not draw from this seed
    jt.set_global_seed(3)
    model = PlainSegmenter("resnet18", 2)
    folder = tmp_path_factory.mktemp("plain")
    return save_checkpoint(folder, {"state_dict": model_state(model)})


@pytest.fixture(scope="session")
def attention_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ResNet18 pixel-attention network with random weights."""
    from core.checkpoints.files import model_state, save_checkpoint
    from core.runtime import jt
    from models.pass_net import PixelAttentionNet

    jt.sync_all()  # what other tests still have to draw must not draw from this seed
    jt.set_global_seed(5)
    model = PixelAttentionNet("resnet18", hidden_mlp=8, feat_dim=4, prototypes=6)
    folder = tmp_path_factory.mktemp("attention")
    return save_checkpoint(folder, {"state_dict": model_state(model)})


def golden_values(
    arrays: dict[str, np.ndarray], key: str, got: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(expected, got) at the stored places of array ``key``, which may be stored sparsely."""
    if f"{key}__idx" in arrays:
        assert tuple(arrays[f"{key}__shape"]) == got.shape
        return arrays[key], got.reshape(-1)[arrays[f"{key}__idx"]]
    assert arrays[key].shape == got.shape
    return arrays[key], got


def relative_error(arrays: dict[str, np.ndarray], key: str, got: np.ndarray) -> float:
    """Largest absolute difference from golden ``key``, relative to its largest absolute value."""
    expected, values = golden_values(arrays, key, np.asarray(got))
    scale = float(np.abs(expected).max()) or 1.0
    return float(np.abs(expected.astype(np.float64) - values).max()) / scale
