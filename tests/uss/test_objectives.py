"""Losses, assignments and queue against the reference's outputs and against their definitions."""

from __future__ import annotations

import numpy as np
import pytest

from core.runtime import jt
from uss import objectives
from uss.config import Assignment
from uss.objectives import Queue

BATCH, CROPS = 4, 5  # of the golden file: 2 large and 3 small crops of 4 images
SETTINGS = Assignment(temperature=0.1, epsilon=0.05, sinkhorn_iterations=3)
CASES = ("noqueue", "zeroqueue", "fullqueue", "partqueue", "firstempty")
TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}


def _golden_queue(arrays, case):
    if case == "noqueue":
        return None
    if case == "zeroqueue":
        return Queue(np.zeros_like(arrays["queue_full"]))
    name = {"fullqueue": "queue_full", "partqueue": "queue_part", "firstempty": "queue_firstempty"}
    return Queue(arrays[name[case]])


@pytest.mark.parametrize("case", CASES)
def test_golden_swapped_and_shallow_losses(goldens, case):
    arrays = goldens("B_losses")
    output = jt.array(arrays["output"])
    rows = BATCH * CROPS
    queue = _golden_queue(arrays, case)

    targets = objectives.assignments(
        output[:rows],
        jt.array(arrays["embedding"][:rows]),
        jt.array(arrays["prototypes"]),
        BATCH,
        SETTINGS,
        queue,
    )
    image = objectives.swapped_loss(output[:rows], targets, SETTINGS.temperature)
    shallow = [
        objectives.deep_to_shallow_loss(
            output[rows + 2 * BATCH * i : rows + 2 * BATCH * (i + 1)],
            targets,
            SETTINGS.temperature,
        )
        for i in range(2)
    ]

    for slot in range(2):
        np.testing.assert_allclose(
            targets[slot].numpy(), arrays[f"{case}.labels{slot}"], **TOLERANCE
        )
    np.testing.assert_allclose(image.numpy()[0], arrays[f"{case}.loss_i2i"], **TOLERANCE)
    got = [term.numpy()[0] for term in shallow]
    np.testing.assert_allclose(got, arrays[f"{case}.loss_d2s_3_2"], **TOLERANCE)
    image_grad = jt.grad(image, output).numpy()
    np.testing.assert_allclose(image_grad, arrays[f"{case}.grad_i2i_output"], **TOLERANCE)
    shallow_grad = jt.grad(shallow[0] + shallow[1], output).numpy()
    np.testing.assert_allclose(shallow_grad, arrays[f"{case}.grad_d2s_output"], **TOLERANCE)
    if queue is not None:
        assert queue.in_use == bool(arrays[f"{case}.use_the_queue"])
        np.testing.assert_allclose(queue.numpy(), arrays[f"{case}.queue_after"], **TOLERANCE)


@pytest.mark.parametrize("index", range(5))
def test_golden_sinkhorn(goldens, index):
    arrays = goldens("B_losses")
    iterations, epsilon = arrays[f"sinkhorn{index}.cfg"]
    got = objectives.sinkhorn(
        jt.array(arrays[f"sinkhorn{index}.in"]), float(epsilon), int(iterations)
    )
    np.testing.assert_allclose(got.numpy(), arrays[f"sinkhorn{index}.out"], **TOLERANCE)


def test_golden_pixel_loss(goldens):
    arrays = goldens("B_losses")
    predicted, projected = jt.array(arrays["p2p.p"]), jt.array(arrays["p2p.z"])
    loss = objectives.pixel_loss(predicted, projected)
    np.testing.assert_allclose(loss.numpy()[0], arrays["p2p.loss"], **TOLERANCE)
    gradient, none = jt.grad(loss, [predicted, projected])
    np.testing.assert_allclose(gradient.numpy(), arrays["p2p.grad_p"], **TOLERANCE)
    assert not none.numpy().any()


def test_sinkhorn_balances_prototypes():
    logits = jt.array(np.random.default_rng(0).uniform(-1, 1, (12, 4)).astype(np.float32))
    got = objectives.sinkhorn(logits, 0.5, 50).numpy()
    np.testing.assert_allclose(got.sum(1), 1, rtol=1e-5)
    np.testing.assert_allclose(got.sum(0), 3, rtol=1e-3)


def test_queue_fills_from_the_front_and_joins_only_when_full():
    queue = Queue.empty(length=7, width=2, global_batch=3)  # cut to 6 rows
    prototypes = jt.array(np.eye(2, dtype=np.float32))
    logits = jt.array(np.zeros((3, 2), np.float32))
    pushed = [np.full((3, 2), value, np.float32) for value in (1, 2, 3)]
    for value in pushed[:2]:
        queue.start_epoch()
        assert queue.extend(0, logits, prototypes).shape == [3, 2]
        queue.push(0, jt.array(value))
    queue.start_epoch()
    assert queue.extend(0, logits, prototypes).shape == [9, 2]
    queue.push(0, jt.array(pushed[2]))
    rows = queue.numpy()
    assert rows.shape == (2, 6, 2)
    np.testing.assert_array_equal(rows[0], np.concatenate([pushed[2], pushed[1]]))
    assert not rows[1].any()
    again = Queue.restored(rows)
    np.testing.assert_array_equal(again.numpy(), rows)
    assert again.extend(0, logits, prototypes).shape == [9, 2]


def test_weights_belong_to_terms_by_position():
    image, first, second, pixel = (jt.array([value]) for value in (1.0, 10.0, 100.0, 0.5))
    total = objectives.weighted_total(image, [first, second], pixel, (2.0, 1.0, 1.0))
    np.testing.assert_allclose(total.numpy(), (2 * 1 + 10 + 100) / 4 + 0.5)
    with pytest.raises(ValueError, match="3 loss weights expected, got 2"):
        objectives.weighted_total(image, [first, second], pixel, (1.0, 1.0))
