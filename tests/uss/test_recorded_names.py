"""What is recorded lasts: run folders and data sets of earlier versions are continued, not remade.

``recorded_settings.json`` holds what the demo's stages recorded before modules and settings moved
to their present places (checksums left out). A name or value that changes here makes every run
folder stale.
"""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from core import config as core_config
from core.data.imagenet_s import list_images
from core.data.label_maps import save_label
from core.training import loop
from refine.segmenter import decisive_settings
from uss import cluster, finetune, pixel_attention, presets, pretrain
from uss.config import Config
from uss.paths import RunFolder
from uss.presets import preset

RECORDED = json.loads(Path(__file__).with_name("recorded_settings.json").read_text())


class Planned(Exception):
    """Ends a stage where it looks for an earlier run of its plan."""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return presets.demo_data(tmp_path_factory.mktemp("demo") / "data", 0)


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "weights.pth.tar"
    path.write_bytes(b"only its checksum is recorded")
    return path


def without_checksums(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    return {k: "..." if "sha256" in k else without_checksums(v) for k, v in value.items()}


def plan_of(
    stage: Any, config: Config, data: Path, run: RunFolder, patch: pytest.MonkeyPatch
) -> loop.Plan:
    """The plan with which a training stage looks for an earlier run."""
    plans: list[loop.Plan] = []

    def previous_run(plan: loop.Plan) -> None:
        plans.append(plan)
        raise Planned

    patch.setattr(loop, "previous_run", previous_run)
    with pytest.raises(Planned):
        stage.run(config, data, run)
    return plans[0]


@pytest.mark.parametrize(
    ("stage", "name", "arch"),
    [
        (pretrain, "pretrain", "resnet18"),
        (pixel_attention, "pixel_attention", "resnet18"),
        (finetune, "finetune", "resnet50"),
    ],
)
def test_a_training_run_is_continued(
    stage: Any,
    name: str,
    arch: str,
    data: Path,
    weights: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = RunFolder(tmp_path / "run", given_checkpoint=weights)
    if stage is finetune:
        for item in list_images(data / "train"):
            save_label(run.pseudo_labels("train") / f"{item.key}.png", np.ones((8, 8), np.int32))
    plan = plan_of(stage, preset("demo", arch), data, run, monkeypatch)
    recorded = RECORDED[name]
    assert plan.stage == recorded["stage"] == name
    found = json.loads(json.dumps(plan.settings))
    assert without_checksums(found) == without_checksums(recorded["settings"])
    # Checkpoints hold at least what they held.
    assert loop._KEYS <= set(recorded["keys"])


def test_a_configuration_is_read(data: Path) -> None:
    """Every setting has the name under which configurations beside checkpoints have it."""
    for arch in ("resnet18", "resnet50"):
        config = preset("demo", arch)
        whole = core_config.to_dict(config)
        assert core_config.from_dict(Config, whole, "here") == config
        for name in ("pretrain", "pixel_attention", "finetune"):
            section = RECORDED[name]["settings"][name]
            assert set(whole[name]) == set(section)
            assert asdict(replace(getattr(config, name))).keys() == section.keys()


def test_a_clustering_is_continued(data: Path, weights: Path) -> None:
    splits = {split: list_images(data / split) for split in ("train", "validation")}
    found = cluster._settings(preset("demo", "resnet18"), weights, splits)
    assert without_checksums(found) == RECORDED["cluster"]


def test_label_maps_count_as_finished(weights: Path) -> None:
    config = preset("demo", "resnet50")
    predicted = without_checksums(decisive_settings(weights, config.predict))
    assert predicted == RECORDED["predictions/test"]
    refined = RECORDED["result/test"]
    assert {**predicted, "refine": asdict(config.refine), "masks": refined["masks"]} == refined
    # The mask store's own fingerprint is the same as that of label maps.
    assert (
        RECORDED["masks"]["masks"] == refined["masks"] == RECORDED["pseudo_labels/train"]["masks"]
    )
    generator = asdict(config.masks)
    assert {name: generator[name] for name in refined["masks"]["generator"]} == (
        refined["masks"]["generator"]
    )


def test_a_data_set_is_not_made_again(data: Path) -> None:
    assert json.loads((data / "dataset.json").read_text()) == RECORDED["dataset.json"]
