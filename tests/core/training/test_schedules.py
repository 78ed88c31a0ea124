"""The schedules of the learning rate."""

from __future__ import annotations

import numpy as np
import pytest

from core.errors import UserError
from core.training.schedules import cosine, cosine_lr, poly, step_decay, warm_up


def test_cosine_starts_at_base_and_ends_above_final():
    rates = [cosine_lr(step, 4, 1.0, 0.2) for step in range(5)]
    np.testing.assert_allclose(rates, [1.0, 0.8828427, 0.6, 0.3171573, 0.2], rtol=1e-6)


def test_cosine_is_the_formula():
    rate = cosine(0.6, 0.0006)
    assert [rate(step, 9) for step in range(10)] == [
        cosine_lr(step, 9, 0.6, 0.0006) for step in range(10)
    ]


def test_poly_bends_by_its_power():
    line, curve = poly(1.0, 1.0, 0.2), poly(1.0, 0.9)
    np.testing.assert_allclose([line(step, 4) for step in range(5)], [1, 0.8, 0.6, 0.4, 0.2])
    np.testing.assert_allclose(
        [curve(step, 4) for step in range(5)], [1, 0.75**0.9, 0.5**0.9, 0.25**0.9, 0]
    )


def test_steps_fall_at_iterations_or_at_shares_of_the_run():
    wanted = [1, 1, 1, 1, 1, 0.1, 0.1, 0.1, 0.01, 0.01]
    for milestones in ((5, 8), (0.5, 0.8), (0.5, 8)):
        rate = step_decay(1.0, milestones)
        np.testing.assert_allclose([rate(step, 10) for step in range(10)], wanted)
    assert step_decay(1.0, ())(9, 10) == 1.0
    with pytest.raises(UserError, match=r"shares of the run in 0..1, not 1.5"):
        step_decay(1.0, (1.5,))


def test_warm_up_ends_in_the_schedule():
    rate = warm_up(poly(1.0, 1.0), steps=4, start=0.2)
    np.testing.assert_allclose(
        [rate(step, 10) for step in range(6)], [0.2, 0.4 * 0.9, 0.6 * 0.8, 0.8 * 0.7, 0.6, 0.5]
    )
    assert warm_up(poly(1.0, 1.0), steps=0)(0, 10) == 1.0
