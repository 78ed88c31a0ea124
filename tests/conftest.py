"""Fixtures shared by all tests: golden files, their recipe, real photographs."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from tests.goldens import recipe as golden_recipe
from tests.helpers import leftovers

ROOT = Path(__file__).resolve().parent.parent
COMPACT_GOLDENS = ROOT / "tests" / "goldens"
GOLDENS = Path(os.environ.get("USS_GOLDENS", ROOT.parent / "shared" / "goldens"))
DATA = ROOT.parent / "shared" / "data"
VOC_MINI = Path(os.environ.get("USS_VOC_MINI", DATA / "voc_mini"))
COCO_MINI = Path(os.environ.get("USS_COCO_MINI", DATA / "coco_mini"))
CALTECH4 = Path(os.environ.get("USS_CALTECH4", ROOT.parent / "shared" / "data" / "caltech4"))


_SESSION = pytest.StashKey[str]()
_LEFT = pytest.StashKey["list[leftovers.Process]"]()


def pytest_configure(config: pytest.Config) -> None:
    """Take Ctrl-C: a shell that starts the tests in the background lets them ignore it, which their
    child processes would inherit. And mark those processes.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)
    config.stash[_SESSION] = leftovers.mark(os.environ)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """The run has failed if a process that it started is alive."""
    left = leftovers.end(session.config.stash[_SESSION])
    session.config.stash[_LEFT] = left
    if left and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """Name the processes that outlived the tests."""
    for process in config.stash.get(_LEFT, []):
        terminalreporter.write_line(f"ERROR outlived the tests and was killed: {process}", red=True)


Load = Callable[[str], dict[str, np.ndarray]]


def load_golden(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a golden file, those included that it only says how to draw."""
    with np.load(path, allow_pickle=False) as file:
        arrays = {key: file[key] for key in file.files}
    drawn = {key: value for key, value in arrays.items() if key.endswith("__image_u8")}
    for key, (seed, height, width) in drawn.items():
        arrays[key[: -len("__image_u8")]] = golden_recipe.image_u8(seed, height, width)
    return arrays


def load_full_golden(name: str) -> dict[str, np.ndarray]:
    """A golden file of the folder ``USS_GOLDENS``. Where it is missing the test skips, or fails if
    ``USS_REQUIRE_GOLDENS`` is 1.
    """
    path = GOLDENS / f"{name}.npz"
    if not path.is_file():
        missing = pytest.fail if os.environ.get("USS_REQUIRE_GOLDENS") == "1" else pytest.skip
        missing(f"golden file {path} is not there; set USS_GOLDENS to the folder that has it")
    return load_golden(path)


@pytest.fixture(params=["compact", "full"])
def goldens(request: pytest.FixtureRequest) -> Load:
    """Function from a golden file's name without suffix to its arrays: of the compact files in
    tests/goldens, and once more of the full ones where they are at hand.
    """
    if request.param == "full":
        return load_full_golden
    return lambda name: load_golden(COMPACT_GOLDENS / f"{name}.npz")


@pytest.fixture
def full_goldens() -> Load:
    """The same for files that show photographs, which have no compact form."""
    return load_full_golden


@pytest.fixture(scope="session")
def recipe() -> ModuleType:
    """The module that makes the golden files' weights and inputs from keys and seeds."""
    return golden_recipe


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
