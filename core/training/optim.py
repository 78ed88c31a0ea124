"""SGD with momentum and layer-wise adaptive rate scaling (LARC), and its cosine schedule."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from core import distributed
from core.errors import UserError
from core.runtime import jt

Var = Any

_EPSILON = 1e-8  # keeps LARC's ratio finite, as published

# One parameter of any shape: in0 value, in1 gradient, in2 velocity; out0 new value, out1 new
# velocity. Two passes over memory and all cores, where composed operations take a dozen passes on
# one core.
_STEP = """
    const int64 n = in0->num;
    const bool larc = data["larc"];
    const float rate = data["rate"], momentum = data["momentum"];
    float decay = data["decay"], scale = 1;
    if (larc) {
        // Sums of blocks, added in order: the same to the last bit for any number of threads.
        const int64 blocks = (n + 1023) / 1024;
        std::vector<float> sums(2 * blocks);
        #pragma omp parallel for schedule(static) if (n > 16384)
        for (int64 block = 0; block < blocks; block++) {
            float a = 0, b = 0;
            for (int64 i = block * 1024; i < std::min(block * 1024 + 1024, n); i++) {
                a += in0_p[i] * in0_p[i]; b += in1_p[i] * in1_p[i];
            }
            sums[2 * block] = a; sums[2 * block + 1] = b;
        }
        double values = 0, gradients = 0;
        for (int64 block = 0; block < blocks; block++) {
            values += sums[2 * block]; gradients += sums[2 * block + 1];
        }
        values = std::sqrt(values); gradients = std::sqrt(gradients);
        if (values != 0 && gradients != 0)
            scale = data["trust"] * values / (gradients + decay * values + data["epsilon"]);
        else decay = 0;
    }
    #pragma omp parallel for schedule(static) if (n > 16384)
    for (int64 i = 0; i < n; i++) {
        const float velocity = momentum * in2_p[i] + scale * (in1_p[i] + decay * in0_p[i]);
        out1_p[i] = velocity;
        out0_p[i] = in0_p[i] - rate * velocity;
    }
"""


def cosine_lr(step: int, total: int, base: float, final: float) -> float:
    """Rate of iteration ``step`` of ``total``: from ``base`` at 0 to ``final``, half a cosine."""
    return final + 0.5 * (base - final) * (1 + math.cos(math.pi * step / total))


class LarcSGD:
    """SGD with momentum whose gradients, weight decay included, LARC scales per tensor.

    With LARC (trust t, clipping off), where neither norm is zero: g <- (g + wd*p) * t*|p| / (|g| +
    wd*|p| + 1e-8); where one is zero, g is left alone. Then v <- momentum*v + g and p <- p - lr*v.
    Without LARC g <- g + wd*p.

    Args:
        parameters: name -> Var of everything to train; the Vars are updated in place.
        momentum: share of the velocity that is kept, 0..1.
        weight_decay: wd above.
        trust: t above.
        larc: False for plain SGD.
    """

    def __init__(
        self,
        parameters: Mapping[str, Var],
        momentum: float,
        weight_decay: float,
        trust: float = 0.001,
        larc: bool = True,
    ) -> None:
        self.parameters = dict(parameters)
        self._momentum, self._decay = momentum, weight_decay
        self._trust, self._larc = trust, larc
        self._velocity = {
            name: jt.zeros(var.shape, var.dtype).stop_grad()
            for name, var in self.parameters.items()
        }

    def step(self, loss: Var, rate: float, frozen: Collection[str] = ()) -> None:
        """Take one step of learning rate ``rate`` down the gradient of ``loss``, averaged over all
        processes.

        Args:
            loss: (1,) float32.
            rate: learning rate of this iteration.
            frozen: names whose value and velocity stay as they are.
        """
        names = [name for name in self.parameters if name not in frozen]
        gradients = jt.grad(loss, [self.parameters[name] for name in names], retain_graph=False)
        for name, gradient in zip(names, _averaged(gradients)):
            value, velocity = self.parameters[name], self._velocity[name]
            update = self._on_gpu if jt.flags.use_cuda else self._on_cpu
            new_value, new_velocity = update(value.detach(), gradient.detach(), velocity, rate)
            value.update(new_value)
            velocity.update(new_velocity)

    def state(self) -> dict[str, np.ndarray]:
        """Name -> velocity, float32 of the parameter's shape."""
        return {name: velocity.numpy() for name, velocity in self._velocity.items()}

    def load_state(self, state: Mapping[str, np.ndarray], where: str) -> None:
        """Take over what :meth:`state` gave.

        Raises:
            UserError: other names or shapes; ``where`` names the source.
        """
        own = {name: tuple(velocity.shape) for name, velocity in self._velocity.items()}
        found = {name: tuple(np.shape(value)) for name, value in state.items()}
        if own != found:
            different = sorted(n for n in own.keys() | found.keys() if own.get(n) != found.get(n))
            raise UserError(
                f"{where}: the optimiser's state does not fit this network ({different[0]}: "
                f"expected {own.get(different[0])}, found {found.get(different[0])}; "
                f"{len(different)} differ)"
            )
        for name, value in state.items():
            self._velocity[name].update(jt.array(value).stop_grad())

    def _on_cpu(self, value: Var, gradient: Var, velocity: Var, rate: float) -> list[Var]:
        settings = {
            "larc": int(self._larc),
            "rate": rate,
            "momentum": self._momentum,
            "decay": self._decay,
            "trust": self._trust,
            "epsilon": _EPSILON,
        }
        return jt.code(
            [value.shape] * 2,
            [value.dtype] * 2,
            [value, gradient, velocity],
            cpu_src=_STEP,
            data=settings,
        )

    def _on_gpu(self, value: Var, gradient: Var, velocity: Var, rate: float) -> list[Var]:
        if self._larc:
            size, slope = value.sqr().sum().sqrt(), gradient.sqr().sum().sqrt()
            active = (size * slope > 0).float32()
            scale = self._trust * size / (slope + self._decay * size + _EPSILON)
            gradient = (gradient + self._decay * active * value) * (scale * active + 1 - active)
        else:
            gradient = gradient + self._decay * value
        velocity = self._momentum * velocity + gradient
        return [value - rate * velocity, velocity]


def _averaged(gradients: list[Var]) -> list[Var]:
    """Mean of each gradient over all processes, in one message so that no two can be mixed up."""
    if distributed.world_size() == 1:
        return gradients
    total = distributed.all_reduce_mean(jt.concat([g.reshape(-1) for g in gradients], 0))
    averaged, start = [], 0
    for gradient in gradients:
        count = gradient.numel()
        averaged.append(total[start : start + count].reshape(gradient.shape))
        start += count
    return averaged
