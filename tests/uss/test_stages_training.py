"""The three training stages on a few small images: what learns, what is kept, what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from core.checkpoints import files as checkpoint
from core.data.imagenet_s import list_images
from core.data.label_maps import save_label
from core.errors import UserError
from core.files import write_json
from core.runtime import jt, nn
from tools.doctor.measure import measure_step
from uss import finetune, pixel_attention, pretrain
from uss.config import Assignment, Config, Heads
from uss.paths import RunFolder
from uss.pipeline import FINETUNE, PIXEL_ATTENTION, PRETRAIN
from uss.presets import preset
from uss.views import MultiCrop, MultiCropDataset

CLASSES, IMAGES = ("n01", "n02"), 4  # images a class


def _config(**stages) -> Config:
    """Small stages on ResNet18, with changed fields per stage."""
    config = preset("demo", "resnet18")
    changes = {
        "pretrain": {
            "epochs": 3,
            "batch_size": 4,
            "crop_sizes": (64, 32),
            "crop_counts": (2, 1),
            "queue_length": 9,
            "queue_start_epoch": 1,
            "freeze_prototypes_steps": 2,
        },
        "pixel_attention": {"epochs": 2, "batch_size": 4, "crop_size": 64, "queue_length": 4},
        "finetune": {"epochs": 4, "batch_size": 4, "crop_size": 64},
    }
    for name, fields in changes.items():
        section = replace(getattr(config, name), **{**fields, **stages.get(name, {})})
        config = replace(config, **{name: section})
    heads = Heads(hidden_mlp=16, feat_dim=8, prototypes=6)
    return replace(config, heads=heads, **{"num_classes": len(CLASSES), **stages.get("config", {})})


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Eight images of two colours in two class folders."""
    root = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    for number, name in enumerate(CLASSES):
        for index in range(IMAGES):
            rgb = rng.integers(0, 120, (70, 90, 3)).astype(np.uint8)
            rgb[20:60, 20:60, number] = 250
            path = root / "train" / name / f"{name}_{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rgb).save(path)
    return root


@pytest.fixture(scope="module")
def run(data, tmp_path_factory) -> RunFolder:
    """A run folder after all three stages."""
    run = RunFolder(tmp_path_factory.mktemp("run"))
    _write_labels(run)
    pretrain.run(_config(), data, run)
    pixel_attention.run(_config(), data, run)
    finetune.run(_config(), data, run)
    return run


def _write_labels(run: RunFolder) -> None:
    for number, name in enumerate(CLASSES):
        for index in range(IMAGES):
            ids = np.zeros((70, 90), np.int32)
            ids[20:60, 20:60] = number + 1
            save_label(run.pseudo_labels("train") / name / f"{name}_{index}.png", ids)


def _payload(folder: Path) -> dict:
    payload = checkpoint.load_latest(folder)
    assert payload is not None
    return payload


def _unit_rows(weight: np.ndarray) -> np.ndarray:
    return weight / np.linalg.norm(weight, axis=1, keepdims=True)


def test_prototypes_learn_after_they_were_frozen(run):
    """They stood still in the reference's port, whose normalisation cut them off from the loss."""
    folder = run.pretrain("resnet18")
    after = {
        name: checkpoint.read_checkpoint(folder / name)["state_dict"]["prototypes.weight"]
        for name in ("previous.pth.tar", "checkpoint.pth.tar")
    }
    start = _unit_rows(checkpoint.model_state(pretrain.build(_config()))["prototypes.weight"])
    moved = np.abs(_unit_rows(after["checkpoint.pth.tar"]) - _unit_rows(after["previous.pth.tar"]))
    assert moved.max() > 1e-6
    assert np.abs(_unit_rows(after["checkpoint.pth.tar"]) - start).max() > 1e-6


def test_frozen_prototypes_stand_still(data, tmp_path):
    frozen = {"epochs": 1, "freeze_prototypes_steps": 99}
    config = _config(pretrain=frozen)
    pretrain.run(config, data, RunFolder(tmp_path))
    after = _payload(RunFolder(tmp_path).pretrain("resnet18"))["state_dict"]
    start = checkpoint.model_state(pretrain.build(config))
    np.testing.assert_allclose(
        after["prototypes.weight"], _unit_rows(start["prototypes.weight"]), atol=1e-6
    )
    assert np.abs(after["conv1.weight"] - start["conv1.weight"]).max() > 1e-6


def test_pretraining_keeps_what_a_resume_needs(run):
    payload = _payload(run.pretrain("resnet18"))
    assert payload["stage"] == "pretrain" and payload["epoch"] == 3 and payload["step"] == 6
    queue = payload["task"]["queue"]
    assert queue.shape == (2, 8, 8)  # 9 rows cut to two batches
    np.testing.assert_allclose(np.linalg.norm(queue, axis=2), 1, rtol=1e-5)
    config = json.loads((run.pretrain("resnet18") / "config.json").read_text())
    assert payload["config"] == config and config["heads"]["prototypes"] == 6
    names = {name for name in payload["state_dict"] if ".running_" not in f".{name}"}
    assert set(payload["optimizer"]) == names


def test_attention_starts_from_step_one_and_trains_only_its_own(run):
    before = _payload(run.pretrain("resnet18"))["state_dict"]
    payload = _payload(run.pixel_attention("resnet18"))
    after = payload["state_dict"]
    for key, value in after.items():
        if key.startswith(("layer", "conv1", "projection_head")) and ".running_" not in key:
            np.testing.assert_array_equal(value, before[key])
    drifted = after["layer4.1.bn2.running_mean"] - before["layer4.1.bn2.running_mean"]
    assert np.abs(drifted).max() > 0
    assert set(payload["optimizer"]) == {
        "fbg.threshold",
        "prototypes.weight",
        *(f"fbg.atten.{layer}.{kind}" for layer in (0, 1, 3, 4) for kind in ("weight", "bias")),
    }
    assert np.abs(payload["optimizer"]["fbg.atten.0.weight"]).max() > 0
    assert np.abs(payload["optimizer"]["prototypes.weight"]).max() > 0


def test_attention_threshold_stays_a_fraction(run):
    source = run.pretrain("resnet18") / "checkpoint.pth.tar"
    crops = np.random.default_rng(0).normal(size=(2, 2, 3, 64, 64)).astype(np.float32)
    losses = {}
    for threshold in (0.0, 0.49):
        config = _config(pixel_attention={"threshold": threshold})
        model = pixel_attention.build(config, source)
        task = pixel_attention.PixelAttentionTask(model, config)
        losses[threshold] = task.loss((*crops, None, None), 0)[0].item()
    assert losses[0.0] != losses[0.49]


def test_attention_refuses_a_checkpoint_that_lacks_a_part(run, data, tmp_path):
    payload = _payload(run.pretrain("resnet18"))
    state = {k: v for k, v in payload["state_dict"].items() if not k.startswith("layer4.1.")}
    other = RunFolder(tmp_path)
    checkpoint.save_checkpoint(other.pretrain("resnet18"), {"state_dict": state})
    with pytest.raises(UserError, match=r"missing: layer4\.1\.conv1\.weight"):
        pixel_attention.run(_config(), data, other)


def test_segmenter_takes_the_trunk_and_learns(run):
    source = run.pretrain("resnet18") / "checkpoint.pth.tar"
    before = _payload(run.pretrain("resnet18"))["state_dict"]
    fresh = checkpoint.model_state(finetune.build(_config(), source))
    for key, value in fresh.items():
        if not key.startswith("last_layer."):
            np.testing.assert_array_equal(value, before[key])
    payload = _payload(run.segmenter)
    assert payload["state_dict"]["last_layer.conv_seg.weight"].shape[0] == len(CLASSES) + 1
    lines = (run.segmenter / "log.jsonl").read_text().splitlines()
    losses = [json.loads(line)["loss"] for line in lines]
    assert losses[0] < 1.5 * np.log(len(CLASSES) + 1) and losses[-1] < 0.9 * losses[0]


def test_the_loss_is_taken_at_every_second_label(run):
    """As PyTorch's nearest interpolation by a half, which the reference takes, picks them."""
    rng = np.random.default_rng(3)
    labels = rng.integers(0, 3, (4, 64, 64)).astype(np.int32)
    logits = rng.normal(size=(4, 3, 32, 32)).astype(np.float32)

    class Given(nn.Module):
        def execute(self, images):
            return jt.array(logits)

    task = finetune.FinetuneTask(Given(), _config(), run.root)
    images = np.zeros((4, 3, 64, 64), np.float32)
    chosen = np.take_along_axis(logits, labels[:, None, ::2, ::2], 1)[:, 0]
    expected = (np.log(np.exp(logits).sum(1)) - chosen).mean()
    assert task.loss((images, labels), 0)[0].item() == pytest.approx(expected, rel=1e-4)


def test_plain_head(run, data, tmp_path):
    other = RunFolder(tmp_path)
    _write_labels(other)
    checkpoint.save_checkpoint(other.pretrain("resnet18"), _payload(run.pretrain("resnet18")))
    finetune.run(_config(finetune={"head": "plain", "epochs": 1}), data, other)
    state = _payload(other.segmenter)["state_dict"]
    assert state["last_layer.weight"].shape == (len(CLASSES) + 1, 512, 1, 1)


@pytest.mark.parametrize(
    ("stage", "pixels"),
    [(PRETRAIN, 2 * 64**2 + 32**2), (PIXEL_ATTENTION, 2 * 64**2), (FINETUNE, 64**2)],
)
def test_the_doctor_rehearses_a_stage(stage, pixels):
    """Real steps on a photograph, with random weights and nothing of a run."""
    step = measure_step(stage.module, _config(), 0.1)
    assert step.image_pixels == pixels
    assert step.image_s > 0 and step.sample_s > 0 and step.fixed_mib > 50


def test_a_checkpoint_has_the_velocities_under_the_names_of_the_parameters(run):
    """As checkpoints had them when there was no other optimiser: these are still continued."""
    payload = _payload(run.segmenter)
    parameters = finetune.trainable(finetune.network(_config()))
    assert payload["optimizer"].keys() == parameters.keys()
    for name, velocity in payload["optimizer"].items():
        assert velocity.shape == tuple(parameters[name].shape) and velocity.dtype == np.float32


def test_finished_stages_return_at_once(run, data, capsys):
    for stage in (pretrain, pixel_attention, finetune):
        stage.run(_config(), data, run)
    assert capsys.readouterr().err.count("already finished") == 3


def test_a_stage_is_not_continued_from_other_weights(run, data, tmp_path):
    other = RunFolder(tmp_path)
    payload = _payload(run.pretrain("resnet18"))
    checkpoint.save_checkpoint(other.pretrain("resnet18"), {**payload, "seed": 1})
    attention = _payload(run.pixel_attention("resnet18"))
    checkpoint.save_checkpoint(other.pixel_attention("resnet18"), attention)
    with pytest.raises(UserError, match="starts_from_sha256 was"):
        pixel_attention.run(_config(), data, other)


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ({"pretrain": {"epochs": 0}}, "pretrain.epochs must be at least 1"),
        ({"pretrain": {"batch_size": 9}}, "8 training images do not fill one batch of 9"),
        ({"pretrain": {"batch_size": 0}}, "positive multiple of 1"),
        ({"config": {"num_classes": 9}}, "8 training images, fewer than the 9 clusters"),
        ({"pretrain": {"queue_length": 3}}, "queue_length is 3, shorter than one batch of 4"),
        ({"pretrain": {"crop_sizes": (64, 16)}}, "crops of 16 pixels: expected 32"),
        ({"pretrain": {"crop_sizes": (9999, 32)}}, "crops of 9999 pixels: .* to 4096"),
        ({"pretrain": {"min_scales": (0.5, 0.0)}}, "crop scales need 0 < min"),
        ({"config": {"num_classes": 0}}, "num_classes must be positive, is 0"),
        (
            {"config": {"assignment": Assignment(epsilon=0.0)}},
            "assignment.epsilon must be positive",
        ),
        ({"pretrain": {"base_lr": float("nan")}}, "pretrain.base_lr must be positive, is nan"),
        ({"config": {"workers": -1}}, "--workers must be 0 or more, is -1"),
        ({"config": {"workers": 10**9}}, "--workers must be at most 1024, is 1000000000"),
        ({"pretrain": {"crop_counts": (2,)}}, "one entry per crop size"),
        ({"pretrain": {"crop_counts": (1, 2)}}, "must begin with at least 2"),
        ({"pretrain": {"shallow": (3, 4)}}, "distinct stages out of 1, 2, 3"),
        ({"pretrain": {"loss_weights": (1.0,)}}, "loss_weights needs 2 numbers"),
    ],
)
def test_pretraining_refuses_settings_that_cannot_work(stages, message, data, tmp_path):
    with pytest.raises(UserError, match=message):
        pretrain.run(_config(**stages), data, RunFolder(tmp_path))
    assert not any(tmp_path.iterdir())


def test_pretraining_refuses_to_learn_nothing(data, tmp_path):
    config = replace(_config(), heads=Heads(hidden_mlp=16, feat_dim=8, prototypes=0))
    with pytest.raises(UserError, match="heads.prototypes must be positive, is 0"):
        pretrain.run(config, data, RunFolder(tmp_path))
    assert not any(tmp_path.iterdir())


def test_a_batch_that_the_ranks_cannot_share_is_refused(data, tmp_path, monkeypatch):
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "3")
    for size in (2, 4):
        config = _config(**{name: {"batch_size": size} for name in ("pretrain", "finetune")})
        _write_labels(RunFolder(tmp_path))
        for stage in (pretrain, finetune):
            with pytest.raises(UserError, match=f"batch_size is {size} over all 3 processes"):
                stage.run(config, data, RunFolder(tmp_path))
    assert not RunFolder(tmp_path).segmenter.exists()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"epochs": 0}, "pixel_attention.epochs must be at least 1"),
        ({"batch_size": 9}, "8 training images do not fill one batch of 9"),
        ({"queue_length": 3}, "queue_length is 3, shorter than one batch of 4"),
        ({"crop_size": 8}, "pixel_attention: crops of 8 pixels"),
        ({"threshold": 24.0}, "pixel_attention.threshold is a fraction .* not 24"),
        ({"threshold": -0.1}, "pixel_attention.threshold is a fraction .* not -0.1"),
    ],
)
def test_attention_refuses_settings_that_cannot_work(fields, message, data, tmp_path):
    with pytest.raises(UserError, match=message):
        pixel_attention.run(_config(pixel_attention=fields), data, RunFolder(tmp_path))


def test_crops_may_be_larger_than_the_image(data):
    """They are cut to a part of the image and enlarged, as in the reference."""
    crop = MultiCrop((128, 96), (2, 1), (0.1, 0.1), (1, 0.2))
    dataset = MultiCropDataset(list_images(data / "train"), crop)
    views = dataset.get(0, np.random.default_rng(0))
    assert [view.shape for view in views[:3]] == [(3, 128, 128), (3, 128, 128), (3, 96, 96)]


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ({"finetune": {"epochs": 0}}, "finetune.epochs must be at least 1"),
        ({"finetune": {"batch_size": 9}}, "8 training images do not fill one batch of 9"),
        ({"finetune": {"crop_size": 8}}, "finetune: crops of 8 pixels"),
        ({"finetune": {"head": "fcn"}}, "finetune.head must be one of upernet, plain"),
        ({"finetune": {"batch_size": 1}}, "batch_size must be at least 2"),
        ({"finetune": {"label_scale": 0.0}}, "label_scale must be in"),
        ({}, "has no label for .*n01_0.png.*bash train_3.sh"),
    ],
)
def test_finetuning_refuses_what_cannot_work(stages, message, data, tmp_path):
    if stages:
        _write_labels(RunFolder(tmp_path))
    with pytest.raises(UserError, match=message):
        finetune.run(_config(**stages), data, RunFolder(tmp_path))


def test_finetuning_refuses_labels_of_more_classes(run, data, tmp_path):
    other = RunFolder(tmp_path)
    _write_labels(other)
    checkpoint.save_checkpoint(other.pretrain("resnet18"), _payload(run.pretrain("resnet18")))
    with pytest.raises(UserError, match="reach 2, but num_classes is 1"):
        finetune.run(_config(config={"num_classes": 1}), data, other)
    assert not other.segmenter.exists()  # refused before anything was trained


def test_finetuning_refuses_labels_of_fewer_classes(data, tmp_path):
    """Such labels hold no id that is too large: only what was noted when they were made tells."""
    run = RunFolder(tmp_path)
    _write_labels(run)
    write_json(run.threshold, {"threshold": 0.3, "chosen_by": "setting", "num_classes": 2})
    with pytest.raises(UserError, match=r"labels of 2 classes, but num_classes is 3.*train_3\.sh"):
        finetune.run(_config(config={"num_classes": 3}), data, run)
    assert not run.segmenter.exists()


def test_the_labels_of_finetuning_are_told_by_their_contents(data, tmp_path):
    """Two labels of the same size are exchanged."""
    run = RunFolder(tmp_path / "run")
    _write_labels(run)
    labels, items = run.pseudo_labels("train"), list_images(data / "train")
    (found, contents, sizes), path = finetune.labelled_images(items, labels), labels / "n01"
    first = sorted(path.iterdir())[0]
    content = first.read_bytes()
    first.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert finetune.labelled_images(items, labels)[0] == found
    assert finetune.labelled_images(items, labels)[1] != contents
    assert finetune.labelled_images(items, labels)[2] == sizes


def test_finetuning_leaves_a_broken_image_without_label_out(data, tmp_path, capsys):
    run = RunFolder(tmp_path / "run")
    _write_labels(run)
    broken = tmp_path / "data" / "n01" / "n01_9.png"
    broken.parent.mkdir(parents=True)
    broken.write_bytes(b"not an image")
    for path in (data / "train" / "n01").iterdir():
        (broken.parent / path.name).write_bytes(path.read_bytes())
    found, *_ = finetune.labelled_images(
        list_images(broken.parent.parent), run.pseudo_labels("train")
    )
    assert [item.key for item in found] == [f"n01/n01_{i}" for i in range(IMAGES)]
    assert "n01_9.png" in capsys.readouterr().err
