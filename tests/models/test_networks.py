"""Shapes, keys, gradients and start values of the networks."""

from __future__ import annotations

import numpy as np
import pytest

from core.errors import UserError
from core.runtime import jt
from models.pass_net import PixelAttentionNet, PlainSegmenter, PretrainNet
from models.resnet import TRUNKS, ResNet
from models.upernet import UPerNet
from tests.helpers.golden_models import state


def _images(seed: int, batch: int, height: int, width: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(batch, 3, height, width)).astype(np.float32)


def _grids(batch: int) -> tuple[np.ndarray, np.ndarray]:
    return tuple(
        np.random.default_rng(seed).uniform(-1, 1, (batch, 7, 7, 2)).astype(np.float32)
        for seed in (1, 2)
    )


@pytest.mark.parametrize(("arch", "entries"), [("resnet18", 100), ("resnet50", 265)])
def test_trunk_keys_and_sizes(arch, entries):
    model = ResNet(arch)
    keys = set(model.state_dict())
    assert len(keys) == entries
    assert {
        "conv1.weight",
        "bn1.running_var",
        "layer4.1.bn2.bias",
        "layer2.0.downsample.1.weight",
    } <= keys
    with jt.no_grad():
        maps = model.trunk(jt.array(_images(0, 2, 64, 72)))
    assert [tuple(m.shape) for m in maps] == [
        (2, channels, *size)
        for channels, size in zip(TRUNKS[arch].channels, [(16, 18), (8, 9), (4, 5), (2, 3)])
    ]


def test_trunk_starts_kaiming_normal_and_repeats_with_the_seed():
    def weights(seed: int) -> dict[str, np.ndarray]:
        jt.set_global_seed(seed)
        return state(ResNet("resnet18"))

    first, again, other = weights(1), weights(1), weights(2)
    for key, value in first.items():
        np.testing.assert_array_equal(value, again[key])
        if ".conv" in key:
            outputs, _, rows, cols = value.shape
            assert value.std() == pytest.approx(np.sqrt(2 / (outputs * rows * cols)), rel=0.05), key
            assert np.abs(value.mean()) < value.std() / 20
            assert not np.array_equal(value, other[key])


def test_an_unknown_arch_is_refused():
    with pytest.raises(UserError, match="resnet18, resnet50"):
        ResNet("resnet101")


def test_pretraining_keys_are_those_of_the_reference():
    keys = set(PretrainNet("resnet18", 32, 16, 10, (3, 2)).state_dict())
    heads = keys - set(ResNet("resnet18").state_dict())
    norm = ("running_mean", "running_var")
    full = ("weight", "bias", *norm)
    image = {f"0.{k}" for k in ("weight", "bias")} | {f"1.{k}" for k in full}
    image |= {f"3.{k}" for k in ("weight", "bias")} | {f"4.{k}" for k in norm}
    pixel = {"0.weight", "3.weight", "6.weight"} | {f"{i}.{k}" for i in (1, 4) for k in full}
    pixel |= {f"7.{k}" for k in norm}
    expected = {"prototypes.weight"} | {f"projection_head.{k}" for k in image}
    expected |= {f"projection_head_pixel.{k}" for k in pixel}
    expected |= {f"predictor_head_pixel.{k}" for k in ("0.weight", "3.weight", "3.bias")}
    expected |= {f"predictor_head_pixel.1.{k}" for k in full}
    for stage in (2, 3):
        group = "projection_head_shallow.projection_head_shallow"
        expected |= {f"{group}{stage}.{k}" for k in image}
        group = "projection_head_pixel_shallow.projection_head_pixel"
        expected |= {f"{group}{stage}.{k}" for k in pixel}
    assert heads == expected


@pytest.mark.parametrize("shallow", [(1,), (2, 1), (1, 2, 3), (3, 1), ()])
def test_any_shallow_stages_in_any_order(shallow):
    model = PretrainNet("resnet18", 32, 16, 10, shallow)
    for stage in shallow:
        head = getattr(model.projection_head_shallow, f"projection_head_shallow{stage}")
        assert head[0].weight.shape[1] == 512 // 2 ** (4 - stage)
    with jt.no_grad():
        out = model([_images(i, 2, 32, 32) for i in range(2)], *_grids(2))
    assert [tuple(rows.shape) for rows in out.shallow_logits] == [(4, 10)] * len(shallow)
    assert tuple(out.logits.shape) == (4, 10) and tuple(out.pixel_p.shape) == (4, 16, 7, 7)


@pytest.mark.parametrize("shallow", [(3, 3), (4,), (0,)])
def test_shallow_stages_that_make_no_sense_are_refused(shallow):
    with pytest.raises(ValueError, match="shallow"):
        PretrainNet("resnet18", 32, 16, 10, shallow)


def test_crops_of_one_size_share_a_forward_wherever_they_stand():
    model = PretrainNet("resnet18", 32, 16, 10)
    crops = [_images(i, 2, size, size) for i, size in enumerate((48, 48, 32, 32))]
    calls = []
    trunk = model.trunk
    model.trunk = lambda x: (calls.append(tuple(x.shape)), trunk(x))[1]
    with jt.no_grad():
        plain = model(crops, *_grids(2)).embedding.numpy()
        extra = [*crops[:2], crops[2], _images(9, 2, 48, 48), crops[3]]
        mixed = model(extra, *_grids(2))
    assert calls == [(4, 3, 48, 48), (4, 3, 32, 32), (6, 3, 48, 48), (4, 3, 32, 32)]
    assert np.allclose(np.linalg.norm(plain, axis=1), 1, atol=1e-5)
    # Without batch statistics each row is that of its own crop, wherever the crop stands.
    model.eval()
    with jt.no_grad():
        rows = model(crops, *_grids(2)).embedding.numpy().reshape(4, 2, 16)
        moved = model(extra, *_grids(2)).embedding.numpy().reshape(5, 2, 16)
    np.testing.assert_allclose(moved[[0, 1, 2, 4]], rows, atol=1e-5)
    assert tuple(mixed.embedding.shape) == (10, 16) and tuple(mixed.pixel_z.shape) == (4, 16, 7, 7)


def test_the_first_two_crops_must_be_of_one_size():
    model = PretrainNet("resnet18", 32, 16, 10)
    with pytest.raises(ValueError, match="first two crops"):
        model([_images(0, 2, 48, 48), _images(1, 2, 32, 32)], *_grids(2))


@pytest.mark.parametrize("network", ["pretrain", "attention"])
def test_prototypes_learn_after_they_were_normalised(network):
    """Normalised prototypes once came out of the loss without gradient, and never moved."""
    crops = [_images(i, 2, 32, 32) for i in range(2)]
    if network == "pretrain":
        model = PretrainNet("resnet18", 32, 16, 10)
        logits = lambda: model(crops, *_grids(2)).logits  # noqa: E731
    else:
        model = PixelAttentionNet("resnet18", 32, 16, 10)
        logits = lambda: model(crops)[1]  # noqa: E731
    optimiser = jt.optim.SGD([model.prototypes.weight], 0.5)
    losses = []
    for _ in range(3):
        model.normalise_prototypes()
        before = model.prototypes.weight.numpy()
        np.testing.assert_allclose(np.linalg.norm(before, axis=1), 1, rtol=1e-5)
        loss = -jt.nn.log_softmax(logits() / 0.1, dim=1)[:, 0].mean()
        gradient = jt.grad(loss, model.prototypes.weight).numpy()
        assert np.abs(gradient).max() > 1e-3
        optimiser.step(loss)
        assert np.abs(model.prototypes.weight.numpy() - before).max() > 1e-3
        losses.append(loss.item())
    assert losses[2] < losses[0]


def test_shallow_logits_do_not_move_the_prototypes():
    model = PretrainNet("resnet18", 32, 16, 10, (3, 2))
    out = model([_images(i, 2, 32, 32) for i in range(2)], *_grids(2))
    loss = sum((logits * logits).mean() for logits in out.shallow_logits)
    weight = model.projection_head_shallow.projection_head_shallow2[0].weight
    prototypes, head, trunk = jt.grad(loss, [model.prototypes.weight, weight, model.conv1.weight])
    assert not prototypes.numpy().any()
    assert head.numpy().any() and trunk.numpy().any()


def test_pixel_attention_trains_attention_and_prototypes_only():
    model = PixelAttentionNet("resnet18", 32, 16, 10)
    trainable = model.trainable_parameters()
    assert set(trainable) == {
        "prototypes.weight",
        "fbg.threshold",
        *(f"fbg.atten.{i}.{kind}" for i in (0, 1, 3, 4) for kind in ("weight", "bias")),
    }
    assert (
        tuple(model.fbg.threshold.shape) == (1, 512, 1, 1) and not model.fbg.threshold.numpy().any()
    )
    loss = (model([_images(i, 2, 32, 32) for i in range(2)])[1] ** 2).mean()
    gradients = dict(zip(trainable, jt.grad(loss, list(trainable.values()))))
    # A bias ahead of a batch norm has no influence.
    for key in ("prototypes.weight", "fbg.threshold", "fbg.atten.0.weight", "fbg.atten.4.bias"):
        assert gradients[key].numpy().any(), key
    assert not jt.grad(loss, model.conv1.weight).numpy().any()


def test_attention_below_the_threshold_counts_as_nothing():
    model = PixelAttentionNet("resnet18", 32, 16, 10)
    model.eval()
    image = jt.array(_images(0, 1, 32, 64))
    with jt.no_grad():
        feature, attention = (v.numpy() for v in model.features(image))
        assert feature.shape == attention.shape == (1, 512, 4, 8)
        middle = float(np.median(attention))
        got = model.cluster_feature(image, middle).numpy()
        everything = model.cluster_feature(image).numpy()
        nothing = model.cluster_feature(image, 1.1).numpy()
        channel_mean = model.attention_map(image).numpy()
    kept = np.where(attention >= np.float32(middle), attention, 0)
    np.testing.assert_allclose(got, (feature * kept).mean((2, 3)), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(everything, (feature * attention).mean((2, 3)), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(channel_mean, attention.mean(1, keepdims=True), rtol=1e-5)
    assert not nothing.any()


@pytest.mark.parametrize("arch", sorted(TRUNKS))
def test_plain_segmenter(arch):
    model = PlainSegmenter(arch, 7)
    assert tuple(model.last_layer.weight.shape) == (8, model.channels[3], 1, 1)
    with jt.no_grad():
        assert tuple(model(jt.array(_images(0, 2, 64, 72))).shape) == (2, 8, 2, 3)


@pytest.mark.parametrize(("arch", "classes"), [("resnet50", 50), ("resnet18", 7)])
def test_upernet_fits_trunk_and_classes(arch, classes):
    model = UPerNet(arch, classes)
    model.eval()
    # 64 x 72 leaves a last map of 2 x 3, smaller than the pooling's 6 x 6 cells.
    with jt.no_grad():
        logits = model(jt.array(_images(0, 1, 64, 72)))
    assert tuple(logits.shape) == (1, classes + 1, 16, 18)
    keys = set(model.state_dict())
    assert {
        "last_layer.psp_modules.3.1.conv.weight",
        "last_layer.fpn_bottleneck.bn.running_var",
    } <= keys
    if arch == "resnet50":
        assert len(keys) == 327
        assert tuple(model.last_layer.conv_seg.weight.shape) == (51, 512, 1, 1)


def test_upernet_drops_single_values_in_training_only():
    model = UPerNet("resnet18", 3, head_width=16)
    dropout = model.last_layer.dropout
    ones = jt.ones((1, 16, 20, 20))
    dropped = dropout(ones).numpy()
    assert set(np.unique(dropped.round(4))) == {0, np.float32(1.1111)}
    assert 0.05 < (dropped == 0).mean() < 0.15
    assert 0 < (dropped[0, 0] == 0).mean() < 1
    model.eval()
    assert (dropout(ones).numpy() == 1).all()


def test_upernet_gradients_reach_every_parameter():
    model = UPerNet("resnet18", 3, head_width=16)
    loss = (model(jt.array(_images(0, 2, 64, 64))) ** 2).mean()
    parameters = {k: p for k, p in model.named_parameters() if ".running_" not in f".{k}"}
    for key, gradient in zip(parameters, jt.grad(loss, list(parameters.values()))):
        assert gradient.numpy().any(), key
