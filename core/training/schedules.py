"""How the learning rate changes over a training run.

A schedule is a function of (step, total): iterations before this one, and iterations of the whole
run. It depends on nothing else, so that a resumed run goes on at the rate at which it stopped.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from core.errors import UserError

Schedule = Callable[[int, int], float]


def cosine_lr(step: int, total: int, base: float, final: float) -> float:
    """Rate of iteration ``step`` of ``total``: from ``base`` at 0 to ``final``, half a cosine."""
    return final + 0.5 * (base - final) * (1 + math.cos(math.pi * step / total))


def cosine(base: float, final: float = 0.0) -> Schedule:
    """From ``base`` to ``final`` along half a cosine: long at high and at low rates, fast between.

    The usual choice where the length of the run is known.
    """
    return lambda step, total: cosine_lr(step, total, base, final)


def poly(base: float, power: float, final: float = 0.0) -> Schedule:
    """From ``base`` to ``final`` by (1 - step / total) to the ``power``.

    A power of 1 is a straight line; 0.9, usual in segmentation, stays a little above it; larger
    powers spend more of the run at low rates.
    """
    return lambda step, total: final + (base - final) * (1 - step / total) ** power


def step_decay(base: float, milestones: Sequence[float], factor: float = 0.1) -> Schedule:
    """``base``, multiplied by ``factor`` at each milestone: the rate stays high until the loss has
    settled, then drops.

    Args:
        milestones: iterations (int), or shares of the run (float, 0..1), which keep their meaning
            where the run is made longer or shorter.

    Raises:
        UserError: a share that lies outside 0..1.
    """
    for milestone in milestones:
        if isinstance(milestone, float) and not 0 <= milestone <= 1:
            raise UserError(
                f"milestones of a rate are iterations or shares of the run in 0..1, not {milestone}"
            )

    def rate(step: int, total: int) -> float:
        places = (m * total if isinstance(m, float) else m for m in milestones)
        return base * factor ** sum(step >= place for place in places)

    return rate


def warm_up(schedule: Schedule, steps: int, start: float = 0.001) -> Schedule:
    """``schedule``, multiplied by a factor that grows from ``start`` to 1 over the first ``steps``
    iterations.

    Adaptive optimisers and large batches want one: their first steps, taken on few gradients and
    random heads, would otherwise be the largest of the run. 0 steps: none.
    """

    def rate(step: int, total: int) -> float:
        factor = 1.0 if step >= steps else start + (1 - start) * step / steps
        return factor * schedule(step, total)

    return rate
