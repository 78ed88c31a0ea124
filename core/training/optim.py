"""The optimisers: SGD, with or without momentum and LARC, and AdamW.

Each takes a learning rate with every step; :mod:`core.training.schedules` has the ways in which it
may change. Both take groups of parameters, gradients averaged over several batches, and clipping:
see :class:`core.training.descent.Descent`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from core.nn import cpp
from core.training.descent import UPDATES, Descent, Parameters
from core.training.schedules import cosine_lr as cosine_lr

Var = Any

_EPSILON = 1e-8  # keeps LARC's ratio finite, as published
_VELOCITY = ""  # recorded under the parameters' own names
_FIRST, _SECOND = "exp_avg", "exp_avg_sq"
_SGD = """
    const int64 n = in0->num;
    float decay = data["decay"], scale = 1;
    if (data["larc"]) scale = larc_scale(in0_p, in1_p, n, decay, data["trust"], data["epsilon"]);
    sgd(in0_p, in1_p, in2_p, out0_p, out1_p, n, data["rate"], data["momentum"], decay, scale);
"""
_ADAMW = """
    adamw(in0_p, in1_p, in2_p, in3_p, out0_p, out1_p, out2_p, in0->num, data["pace"], data["root"],
          data["keep"], data["beta1"], data["beta2"], data["epsilon"]);
"""


class LarcSGD(Descent):
    """SGD with momentum whose gradients, weight decay included, LARC scales per tensor.

    With LARC (trust t, clipping off), where neither norm is zero: g <- (g + wd*p) * t*|p| / (|g| +
    wd*|p| + 1e-8); where one is zero, g is left alone. Then v <- momentum*v + g and p <- p - lr*v.
    Without LARC g <- g + wd*p. The velocity v is what is recorded, under the parameter's name.

    Args:
        parameters: name -> Var of everything to train, or groups of these; the Vars are updated in
            place.
        momentum: share of the velocity that is kept, 0..1; 0 follows each batch's gradient alone.
        weight_decay: wd above.
        trust: t above.
        larc: False for plain SGD. LARC lets layers whose gradients differ by orders of magnitude
            learn at one pace, which large batches need; its rates are about a hundred times those
            of plain SGD.
        accumulate, clip: as in :class:`core.training.descent.Descent`.
    """

    def __init__(
        self,
        parameters: Parameters,
        momentum: float,
        weight_decay: float,
        trust: float = 0.001,
        larc: bool = True,
        accumulate: int = 1,
        clip: float | None = None,
    ) -> None:
        super().__init__(parameters, weight_decay, (_VELOCITY,), accumulate, clip)
        self._momentum, self._trust, self._larc = momentum, trust, larc

    def _update(self, name: str, gradient: Var, rate: float, decay: float) -> None:
        value, velocity = self.parameters[name], self._slots[_VELOCITY][name]
        update = self._on_cpu if cpp.on_cpu() else self._on_gpu
        new_value, new_velocity = update(value.detach(), gradient, velocity, rate, decay)
        value.update(new_value)
        velocity.update(new_velocity)

    def _on_cpu(
        self, value: Var, gradient: Var, velocity: Var, rate: float, decay: float
    ) -> list[Var]:
        return cpp.run_all(
            UPDATES,
            _SGD,
            [value.shape] * 2,
            [value, gradient, velocity],
            larc=self._larc,
            rate=rate,
            momentum=self._momentum,
            decay=decay,
            trust=self._trust,
            epsilon=_EPSILON,
        )

    def _on_gpu(
        self, value: Var, gradient: Var, velocity: Var, rate: float, decay: float
    ) -> list[Var]:
        if self._larc:
            size, slope = value.sqr().sum().sqrt(), gradient.sqr().sum().sqrt()
            active = (size * slope > 0).float32()
            scale = self._trust * size / (slope + decay * size + _EPSILON)
            gradient = (gradient + decay * active * value) * (scale * active + 1 - active)
        else:
            gradient = gradient + decay * value
        velocity = self._momentum * velocity + gradient
        return [value - rate * velocity, velocity]


class AdamW(Descent):
    """Adam with decoupled weight decay, as ``torch.optim.AdamW``.

    m <- b1*m + (1-b1)*g and v <- b2*v + (1-b2)*g^2; then p <- (1 - lr*wd)*p - lr * m' / (sqrt(v') +
    epsilon), where m' = m / (1 - b1^t) and v' = v / (1 - b2^t) at the t-th update of the parameter.

    Args:
        parameters: name -> Var of everything to train, or groups of these; the Vars are updated in
            place.
        weight_decay: wd above. The gradient's size does not matter to it, which makes it far larger
            than that of SGD: 0.01 to 0.1.
        betas: (b1, b2), the shares of both moments that are kept. A b2 of 0.95 instead of 0.999
            forgets a sudden large gradient sooner.
        epsilon: keeps the step finite where a parameter has had no gradient yet.
        accumulate, clip: as in :class:`core.training.descent.Descent`.
    """

    def __init__(
        self,
        parameters: Parameters,
        weight_decay: float = 0.01,
        betas: tuple[float, float] = (0.9, 0.999),
        epsilon: float = 1e-8,
        accumulate: int = 1,
        clip: float | None = None,
    ) -> None:
        super().__init__(parameters, weight_decay, (_FIRST, _SECOND), accumulate, clip)
        self._betas, self._epsilon = betas, epsilon
        self._updates = dict.fromkeys(self.parameters, 0)

    def _update(self, name: str, gradient: Var, rate: float, decay: float) -> None:
        self._updates[name] += 1
        beta1, beta2 = self._betas
        settings = {
            "pace": rate / (1 - beta1 ** self._updates[name]),
            "root": math.sqrt(1 - beta2 ** self._updates[name]),
            "keep": 1 - rate * decay,
            "beta1": beta1,
            "beta2": beta2,
            "epsilon": self._epsilon,
        }
        kept = [self.parameters[name], *(self._slots[slot][name] for slot in (_FIRST, _SECOND))]
        update = self._on_cpu if cpp.on_cpu() else self._on_gpu
        for var, new in zip(kept, update(kept[0].detach(), gradient, *kept[1:], **settings)):
            var.update(new)

    def _counts(self) -> dict[str, int]:
        return {f"step/{name}": count for name, count in self._updates.items()}

    def _take_counts(self, counts: Mapping[str, int]) -> None:
        self._updates = {name: counts[f"step/{name}"] for name in self.parameters}

    @staticmethod
    def _on_cpu(value: Var, gradient: Var, first: Var, second: Var, **settings: float) -> list[Var]:
        inputs = [value, gradient, first, second]
        return cpp.run_all(UPDATES, _ADAMW, [value.shape] * 3, inputs, **settings)

    @staticmethod
    def _on_gpu(value: Var, gradient: Var, first: Var, second: Var, **settings: float) -> list[Var]:
        beta1, beta2 = settings["beta1"], settings["beta2"]
        first = beta1 * first + (1 - beta1) * gradient
        second = beta2 * second + (1 - beta2) * gradient * gradient
        step = first / (second.sqrt() / settings["root"] + settings["epsilon"])
        return [settings["keep"] * value - settings["pace"] * step, first, second]
