"""The compact golden files are complete, small, documented, and made of the full ones as their
manifest says; a full one may be missing.
"""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from itertools import product
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from tests.conftest import COMPACT_GOLDENS, GOLDENS, ROOT, load_golden
from tests.goldens import compact, recipe
from tests.helpers.processes import PATIENCE_S

FILES = sorted(COMPACT_GOLDENS.glob("*.npz"))
needs_full = pytest.mark.skipif(not GOLDENS.is_dir(), reason=f"{GOLDENS} is not there")


def test_every_kind_is_there_and_all_are_small() -> None:
    assert {path.name[0] for path in FILES} == set("ABCDEFGH")
    assert sum(path.stat().st_size for path in COMPACT_GOLDENS.rglob("*")) < 8e6
    assert not [path.stem for path in FILES if path.stem in compact.PHOTOGRAPHS]


def test_the_manifest_names_each_file() -> None:
    named = re.findall(r"^\| `([^`]+)` \|", (COMPACT_GOLDENS / "MANIFEST.md").read_text(), re.M)
    assert sorted(name for text in named for name in spelt_out(text)) == [p.stem for p in FILES]


def spelt_out(text: str) -> list[str]:
    """The names that ``a{1,2}b`` stands for."""
    parts = [part.split(",") for part in re.split(r"[{}]", text)]
    return ["".join(choice) for choice in product(*parts)]


@needs_full
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_compact_files_are_made_of_the_full_ones(path: Path) -> None:
    wanted = compact.compact(path.stem, load_golden(GOLDENS / path.name))
    with np.load(path, allow_pickle=False) as file:
        assert set(file.files) == set(wanted)
        for key in file.files:
            assert file[key].dtype == wanted[key].dtype, key
            np.testing.assert_array_equal(file[key], wanted[key], err_msg=key)


@needs_full
def test_images_that_are_drawn_are_the_stored_ones() -> None:
    for (name, key), arguments in compact.DRAWN.items():
        stored = load_golden(GOLDENS / f"{name}.npz")[key]
        assert (recipe.image_u8(*arguments) == stored).all()


@needs_full
@pytest.mark.parametrize("name", [path.stem for path in FILES if path.stem.startswith("D_")])
def test_no_threshold_lies_between_a_level_and_its_coarse_one(name: str) -> None:
    levels = load_golden(GOLDENS / f"{name}.npz")[compact.LEVELS]
    coarse = compact.coarse_levels(levels)
    for percent in range(102):
        threshold = np.float32(percent / 100)
        assert ((coarse < threshold) == (levels < threshold)).all(), percent


def test_a_sampled_array_keeps_its_largest_value() -> None:
    values = np.zeros(9999, np.float32)
    values[4321] = -3
    kept = compact.places(values)
    assert 4321 in kept and compact.PLACES <= len(kept) <= compact.PLACES + 1
    assert compact.places(values[:7]).tolist() == list(range(7))


@pytest.fixture(scope="module")
def official_recipe() -> ModuleType:
    """The recipe with which the full files were made."""
    path = GOLDENS / "recipe.py"
    if not path.is_file():
        pytest.skip(f"{path} is not there")
    spec = importlib.util.spec_from_file_location("official_recipe", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("key", "shape"),
    [
        ("layer1.0.conv1.weight", (4, 3, 3, 3)),
        ("last_layer.bias", (5,)),
        ("bn1.weight", (6,)),
        ("bn1.running_mean", (6,)),
        ("bn1.running_var", (6,)),
        ("bn1.num_batches_tracked", ()),
        ("fbg.threshold", (1, 8, 1, 1)),
        ("fbg.atten.0.weight", (8, 8, 1, 1)),
        ("image_encoder.pos_embed", (1, 4, 4, 8)),
        ("image_encoder.blocks.0.attn.rel_pos_h", (7, 8)),
        ("image_encoder.layers.1.blocks.0.attn.attention_biases", (4, 9)),
        ("prompt_encoder.pe_layer.positional_encoding_gaussian_matrix", (2, 8)),
        ("prompt_encoder.point_embeddings.0.weight", (1, 8)),
        ("mask_decoder.iou_token.weight", (1, 8)),
    ],
)
def test_weights_are_those_of_the_full_files(
    official_recipe: ModuleType, key: str, shape: tuple[int, ...]
) -> None:
    wanted, got = official_recipe.weight(key, shape), recipe.weight(key, shape)
    if wanted is None:
        assert got is None
    else:
        assert got is not None and got.dtype == wanted.dtype == np.float32
        np.testing.assert_array_equal(got, wanted)


def test_inputs_are_those_of_the_full_files(official_recipe: ModuleType) -> None:
    for name, arguments in (
        ("normal", (3, (2, 5), 3.0)),
        ("uniform", (4, (2, 5), -1.0, 7.0)),
        ("varied", (5, (2, 3, 40, 50))),
        ("image_u8", (6, 70, 90)),
    ):
        wanted = getattr(official_recipe, name)(*arguments)
        got = getattr(recipe, name)(*arguments)
        assert got.dtype == wanted.dtype
        np.testing.assert_array_equal(got, wanted, err_msg=name)


@pytest.mark.parametrize(("required", "result"), [("", "1 skipped"), ("1", "1 failed")])
def test_a_full_file_that_is_missing(tmp_path: Path, required: str, result: str) -> None:
    words = ["tests/core/data/test_crops.py", "-k", "golden and full", "-p", "no:cacheprovider"]
    settings = {"USS_GOLDENS": str(tmp_path), "USS_REQUIRE_GOLDENS": required}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-rs", *words],
        cwd=ROOT,
        env={**os.environ, **settings},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    assert result in done.stdout, done.stdout
    assert f"{tmp_path}/C_get_grid.npz is not there; set USS_GOLDENS" in done.stdout
