"""The networks against outputs of the reference on the same weights and inputs."""

from __future__ import annotations

import numpy as np
import pytest

from core.nn.layers import adaptive_avg_pool2d, cross_entropy, resize_bilinear
from core.runtime import jt
from models.pass_net import PixelAttentionNet, PlainSegmenter, PretrainNet
from models.upernet import UPerHead
from tests.conftest import golden_values, relative_error
from tests.helpers.golden_models import fill, set_batch_norms, state

ARCHS = ("resnet18", "resnet50")
HIDDEN, DIM, PROTOTYPES = 256, 128, 100
EVAL = 2e-5


def _crops(recipe, seed: int, sizes: list[int]) -> list[np.ndarray]:
    return [recipe.normal(seed + i, (3, 3, size, size)) for i, size in enumerate(sizes)]


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("shallow", [(3,), (3, 2)])
@pytest.mark.parametrize("mode", ["eval", "train"])
def test_golden_pretrain(goldens, recipe, arch, shallow, mode):
    arrays = goldens(f"A_pass_{arch}_pretrain")
    case = f"s{''.join(map(str, shallow))}.{mode}"
    model = PretrainNet(arch, HIDDEN, DIM, PROTOTYPES, shallow)
    fill(model, recipe)
    set_batch_norms(model, mode == "train")
    crops = _crops(recipe, int(arrays["seed"]), [96, 96, 48, 48, 48])

    with jt.no_grad():
        out = model(crops, arrays["gridq"], arrays["gridk"])

    tolerance = EVAL if mode == "eval" else {"resnet18": 1e-3, "resnet50": 3e-3}[arch]
    embedding = jt.concat([out.embedding, *out.shallow_embedding]).numpy()
    logits = jt.concat([out.logits, *out.shallow_logits]).numpy()
    got = {
        "embedding": embedding,
        "output": logits,
        "pixel_embedding": out.pixel_z.numpy(),
        "pixel_output": out.pixel_p.numpy(),
    }
    for name, value in got.items():
        assert relative_error(arrays, f"{case}.{name}", value) < tolerance, name
    statistics = [key for key in arrays if key.startswith(f"{case}.after:") and "__" not in key]
    after = state(model)
    for key in statistics:
        assert relative_error(arrays, key, after[key.split(":")[1]]) < tolerance, key


@pytest.mark.parametrize("arch", ARCHS)
def test_golden_pixel_attention(goldens, recipe, arch):
    arrays = goldens(f"A_pass_{arch}_pixelattn")
    seed = int(arrays["seed"])
    model = PixelAttentionNet(arch, HIDDEN, DIM, PROTOTYPES)
    fill(model, recipe)
    crops = _crops(recipe, seed, [96, 96])
    wide = jt.array(recipe.normal(seed + 5, (1, 3, 96, 160)))

    with jt.no_grad():
        set_batch_norms(model, False)
        first = jt.array(crops[0])
        embedding, logits = model(crops)
        feature, attention = model.features(wide)
        got = {
            "embedding": embedding,
            "output": logits,
            "cluster": model.cluster_feature(first),
            "forward_pixel_attention_layer4": model.pooled_feature(first),
            "infer_feature": feature,
            "infer_attention": attention.mean(1, keepdims=True),
            "infer_cluster": model.cluster_feature(wide),
        }
        for name, value in got.items():
            assert relative_error(arrays, f"eval.{name}", value.numpy()) < EVAL, name
        # Zeroing below the threshold is a step: rounding moves single values across it.
        halved = model.cluster_feature(first, 0.5).numpy()
        assert relative_error(arrays, "eval.cluster_threshold_0.5", halved) < 2e-2
        np.testing.assert_allclose(
            model.attention_map(wide).numpy(), got["infer_attention"].numpy(), rtol=1e-6
        )
        set_batch_norms(model, True)
        embedding, logits = model(crops)
    assert relative_error(arrays, "train.embedding", embedding.numpy()) < 3e-3
    assert relative_error(arrays, "train.output", logits.numpy()) < 3e-3


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("mode", ["eval", "train"])
def test_golden_finetune(goldens, recipe, arch, mode):
    arrays = goldens(f"A_pass_{arch}_finetune")
    model = PlainSegmenter(arch, 50)
    fill(model, recipe)
    set_batch_norms(model, mode == "train")
    tolerance = EVAL if mode == "eval" else 1e-3

    logits = model(jt.array(recipe.normal(int(arrays["seed"]), (2, 3, 96, 128))))
    labels = arrays["labels"]
    loss = cross_entropy(resize_bilinear(logits, labels.shape[1:]), labels)

    assert relative_error(arrays, f"{mode}.logits", logits.numpy()) < tolerance
    assert abs(loss.item() - arrays[f"{mode}.loss"]) < tolerance * abs(arrays[f"{mode}.loss"])
    if mode == "eval":
        return
    parameters = dict(model.named_parameters())
    names = ["last_layer.weight", "layer4.1.conv2.weight", "conv1.weight"]
    gradients = jt.grad(loss, [parameters[name] for name in names])
    for name, gradient in zip(names[:2], gradients):
        assert relative_error(arrays, f"train.grad:{name}", gradient.numpy()) < 5e-3, name
    assert _cosine(arrays, "train.grad:conv1.weight", gradients[2].numpy()) > 0.99


@pytest.mark.parametrize("arch", ARCHS)
def test_golden_pretrain_gradients(goldens, recipe, arch):
    """The whole step from the reference's own assignments, batch norms on running statistics."""
    arrays = goldens(f"B_step_{arch}")
    seed = int(arrays["seed"])
    model = PretrainNet(arch, HIDDEN, DIM, PROTOTYPES)
    fill(model, recipe)
    model.normalise_prototypes()
    set_batch_norms(model, False)
    crops = [
        recipe.varied(seed + i, (6, 3, size, size)) for i, size in enumerate([96, 96, 48, 48, 48])
    ]

    out = model(crops, arrays["gridq0"], arrays["gridk0"])
    loss = _loss(out, arrays["evalbn.labels0"], arrays["evalbn.labels1"])

    total = float(arrays["evalbn.loss_total"])
    assert abs(loss.item() - total) < 1e-4 * abs(total)
    keys = [key for key in arrays if key.startswith("evalbn.grad:") and "__" not in key]
    parameters = dict(model.named_parameters())
    gradients = jt.grad(loss, [parameters[key.split(":")[1]] for key in keys])
    for key, gradient in zip(keys, gradients):
        stored, got = golden_values(arrays, key, gradient.numpy())
        expected = arrays.get(f"{key}__f64", stored)
        noise = max(5 * float(arrays[f"{key}__noise"]), 1e-4)
        assert np.abs(expected - got).max() < noise * np.abs(expected).max(), key


def _loss(out, labels0: np.ndarray, labels1: np.ndarray):
    """The three losses for given assignments: 6 images, 5 crops, temperature 0.1."""

    def swapped(q: np.ndarray, logits):
        return (
            -(jt.array(q.astype(np.float32)) * jt.nn.log_softmax(logits / 0.1, dim=1)).sum(1).mean()
        )

    views = [out.logits[i * 6 : (i + 1) * 6] for i in range(5)]
    i2i = 0.0
    for crop, q in enumerate((labels0, labels1)):
        others = [swapped(q, views[v]) for v in range(5) if v != crop]
        i2i = i2i + sum(others) / len(others) / 2
    d2s = 0.0
    for stage in out.shallow_logits:
        d2s = d2s + (swapped(labels0, stage[6:]) + swapped(labels1, stage[:6])) / 2
    p, z = out.pixel_p, out.pixel_z.detach()

    def cosine(a, b):
        return ((a * b).sum(1) / jt.sqrt((a * a).sum(1) * (b * b).sum(1))).mean()

    return (i2i + d2s) / 2 - (cosine(p[:6], z[6:]) + cosine(p[6:], z[:6])) / 2


@pytest.mark.parametrize("case", ["narrow.s48_12", "narrow.s96_12", "wide.s48_6"])
def test_golden_upernet(goldens, recipe, case):
    """Sizes that 1, 2, 3 and 6 divide: elsewhere that Jittor version pools by another rule."""
    arrays = goldens("H_upernet_head")
    head, maps = _upernet_case(arrays, recipe, case, int(arrays["seed"]))
    assert set(state(head)) == set(arrays[f"{case.split('.')[0]}.keys"].tolist())
    head.eval()

    with jt.no_grad():
        logits, psp = head(maps).numpy(), head.pyramid(maps[-1]).numpy()
        pooled = {bins: adaptive_avg_pool2d(maps[-1], bins).numpy() for bins in (1, 2, 3, 6)}

    assert relative_error(arrays, f"{case}.logits", logits) < EVAL
    assert relative_error(arrays, f"{case}.psp", psp) < EVAL
    for bins, value in pooled.items():
        assert relative_error(arrays, f"{case}.ppm_pool{bins}", value) < EVAL


@pytest.mark.parametrize("case", ["narrow.s64_8", "narrow.s56_7", "narrow.rect96x64_12x8"])
def test_golden_upernet_of_fixed_windows(goldens, recipe, case):
    """Sizes that 1, 2, 3 and 6 do not divide, by the rule of the Jittor that made the golden."""
    arrays = goldens("H_upernet_head")
    head, maps = _upernet_case(arrays, recipe, case, int(arrays["seed"]), fixed_pool=True)
    head.eval()
    with jt.no_grad():
        logits = head(maps).numpy()
        psp = head.pyramid(maps[-1]).numpy()
        pooled = {bins: adaptive_avg_pool2d(maps[-1], bins, True).numpy() for bins in (1, 2, 3, 6)}
    assert relative_error(arrays, f"{case}.logits", logits) < EVAL
    assert relative_error(arrays, f"{case}.psp", psp) < EVAL
    for bins, value in pooled.items():
        assert relative_error(arrays, f"{case}.ppm_pool{bins}", value) < EVAL


def test_golden_upernet_train(goldens, recipe):
    arrays = goldens("H_upernet_head")
    case = "narrow.s48_12"
    head, maps = _upernet_case(arrays, recipe, case, int(arrays["seed"]) + 20)
    head.dropout.is_train = False
    before = state(head)

    with jt.no_grad():
        logits = head(maps).numpy()

    case = f"{case}.train_nodropout"
    assert relative_error(arrays, f"{case}.logits", logits) < 1e-4
    after = state(head)
    for key in (key.split(":")[1] for key in arrays if key.startswith(f"{case}.after:")):
        got = after[key]
        if key.endswith("running_var"):
            # That Jittor version stores the biased variance.
            level = maps[-1] if key.startswith("bottleneck") else maps[0]
            count = level.numel() // level.shape[1]
            got = 0.9 * before[key] + (got - 0.9 * before[key]) * (count - 1) / count
        assert relative_error(arrays, f"{case}.after:{key}", got) < 1e-4, key


def _upernet_case(arrays, recipe, case: str, seed: int, fixed_pool: bool = False):
    kind = case.split(".")[0]
    channels = arrays[f"{kind}.in_channels"].tolist()
    head = UPerHead(channels, {"narrow": 32, "wide": 512}[kind], 51, fixed_pool)
    fill(head, recipe, "last_layer.")
    batch = {"narrow": 2, "wide": 1}[kind]
    shapes = [(batch, c, *hw) for c, hw in zip(channels, arrays[f"{case}.sizes"].tolist())]
    return head, [jt.array(recipe.normal(seed + i, shape)) for i, shape in enumerate(shapes)]


def test_golden_resize(goldens):
    arrays = goldens("H_upernet_head")
    source = jt.array(arrays["resize_in"])
    for key in (key for key in arrays if key.startswith("resize_") and key != "resize_in"):
        h, w = map(int, key.split("_")[1].split("x"))
        assert relative_error(arrays, key, resize_bilinear(source, (h, w)).numpy()) < 1e-6, key


def _cosine(arrays, key: str, got: np.ndarray) -> float:
    expected, values = golden_values(arrays, key, got)
    a, b = expected.astype(np.float64).ravel(), values.astype(np.float64).ravel()
    return float(a @ b / np.sqrt((a @ a) * (b @ b)))
