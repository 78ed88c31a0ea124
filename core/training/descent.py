"""What all optimisers share: groups of parameters, and gradients that are averaged over processes
and batches and clipped before they are used.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from core import distributed
from core.errors import UserError
from core.nn import cpp
from core.runtime import jt

Var = Any
Parameters = Mapping[str, Var] | Sequence["Group"]

#: The C++ of all updates.
UPDATES = Path(__file__).with_name("kernels") / "updates.h"
# In a state: the sums of gradients that wait for further batches, and of how many batches they are.
_SUMS, _BATCHES = "gradient_sum", "/batches"
_CLIP_EPSILON = 1e-6  # as in torch.nn.utils.clip_grad_norm_


class Optimizer(Protocol):
    """What the training loop asks of an optimiser."""

    def step(self, loss: Var, rate: float, frozen: Collection[str] = ()) -> None:
        """Take one step of learning rate ``rate`` down the gradient of ``loss``, (1,) float32; the
        parameters named in ``frozen`` stay as they are.
        """

    def state(self) -> dict[str, np.ndarray]:
        """Everything that a later step depends on, beside the parameters."""

    def load_state(self, state: Mapping[str, np.ndarray], where: str) -> None:
        """Take over what :meth:`state` gave.

        Raises:
            UserError: it is the state of another optimiser or network; ``where`` names its source.
        """


@dataclass(frozen=True)
class Group:
    """Parameters that learn at the same rate and with the same weight decay."""

    parameters: Mapping[str, Var]
    """By name; the Vars are updated in place."""
    rate: float = 1.0
    """Multiplies the rate of each step. New layers on a pretrained trunk often want 10 here: the
    trunk must not lose what it knows while they learn from nothing."""
    weight_decay: float | None = None
    """None: the optimiser's. Biases and norms often get 0, as small values of theirs explain
    nothing more simply."""


class Descent:
    """Base of the optimisers: from a loss to the gradient of each parameter.

    Args:
        parameters: name -> Var of everything to train, or groups of these.
        weight_decay: of all groups that state none.
        slots: names of the arrays that the optimiser keeps for each parameter, zero at first. The
            arrays of the slot "" are recorded under the parameters' own names, those of others
            under ``slot/name``.
        accumulate: batches whose gradients are averaged for one update: memory for a batch of a
            quarter of the size suffices with 4. The parameters change with every
            ``accumulate``-th step only, at its rate; the batches behind the last whole update of a
            run change nothing.
        clip: largest norm of all gradients taken together; larger ones are scaled down to it, so
            that one odd batch cannot throw the weights off. None: no limit.

    Raises:
        ValueError: a parameter in two groups, ``accumulate`` below 1 or ``clip`` not above 0.
    """

    def __init__(
        self,
        parameters: Parameters,
        weight_decay: float,
        slots: Sequence[str],
        accumulate: int = 1,
        clip: float | None = None,
    ) -> None:
        if accumulate < 1 or (clip is not None and not clip > 0):
            raise ValueError(f"accumulate={accumulate} and clip={clip} must be positive")
        groups = [Group(parameters)] if isinstance(parameters, Mapping) else list(parameters)
        self.parameters: dict[str, Var] = {}
        self._scale: dict[str, float] = {}
        self._decay: dict[str, float] = {}
        for group in groups:
            twice = self.parameters.keys() & group.parameters.keys()
            if twice:
                raise ValueError(f"{sorted(twice)[0]} is in two groups of parameters")
            decay = weight_decay if group.weight_decay is None else group.weight_decay
            self.parameters.update(group.parameters)
            self._scale.update(dict.fromkeys(group.parameters, group.rate))
            self._decay.update(dict.fromkeys(group.parameters, decay))
        self._accumulate, self._clip, self._batches = accumulate, clip, 0
        kept = [*slots, _SUMS] if accumulate > 1 else slots
        self._slots = {slot: self._zeros() for slot in kept}

    def step(self, loss: Var, rate: float, frozen: Collection[str] = ()) -> None:
        """Take one step of learning rate ``rate`` down the gradient of ``loss``, averaged over all
        processes.

        Args:
            loss: (1,) float32.
            rate: learning rate of this iteration.
            frozen: names whose value and state stay as they are.
        """
        names = [name for name in self.parameters if name not in frozen]
        found = jt.grad(loss, [self.parameters[name] for name in names], retain_graph=False)
        gradients = dict(zip(names, _averaged(found)))
        if self._accumulate > 1:
            gradients = self._collected(gradients)
        if self._clip is not None:
            gradients = clipped(gradients, self._clip)
        for name, gradient in gradients.items():
            self._update(name, gradient.detach(), rate * self._scale[name], self._decay[name])

    def state(self) -> dict[str, np.ndarray]:
        """The arrays of all slots, float32 of the parameters' shapes, and what is counted."""
        arrays = {
            _key(slot, name): var.numpy()
            for slot, kept in self._slots.items()
            for name, var in kept.items()
        }
        counted = {_BATCHES: self._batches} if self._accumulate > 1 else {}
        return {
            **arrays,
            **{key: np.array([n]) for key, n in {**counted, **self._counts()}.items()},
        }

    def load_state(self, state: Mapping[str, np.ndarray], where: str) -> None:
        """Take over what :meth:`state` gave.

        Raises:
            UserError: other names or shapes; ``where`` names the source.
        """
        own = {name: tuple(value.shape) for name, value in self.state().items()}
        found = {name: tuple(np.shape(value)) for name, value in state.items()}
        if own != found:
            different = sorted(n for n in own.keys() | found.keys() if own.get(n) != found.get(n))
            raise UserError(
                f"{where}: the optimiser's state does not fit this network ({different[0]}: "
                f"expected {own.get(different[0])}, found {found.get(different[0])}; "
                f"{len(different)} differ)"
            )
        for slot, kept in self._slots.items():
            for name, var in kept.items():
                var.update(jt.array(state[_key(slot, name)]).stop_grad())
        if self._accumulate > 1:
            self._batches = int(state[_BATCHES][0])
        self._take_counts({key: int(state[key][0]) for key in self._counts()})

    def _update(self, name: str, gradient: Var, rate: float, decay: float) -> None:
        """Change a parameter and its arrays: what makes an optimiser."""
        raise NotImplementedError

    def _counts(self) -> dict[str, int]:
        """What the optimiser counts, for its state."""
        return {}

    def _take_counts(self, counts: Mapping[str, int]) -> None:
        """Take over what :meth:`_counts` gave."""

    def _zeros(self) -> dict[str, Var]:
        return {
            name: jt.zeros(var.shape, var.dtype).stop_grad()
            for name, var in self.parameters.items()
        }

    def _collected(self, gradients: dict[str, Var]) -> dict[str, Var]:
        """The means over the last ``accumulate`` batches; {} while there are fewer."""
        sums = self._slots[_SUMS]
        self._batches += 1
        for name, gradient in gradients.items():
            sums[name].update(sums[name] + gradient.detach())
        if self._batches < self._accumulate:
            return {}
        means = {name: sums[name] / self._accumulate for name in gradients}
        self._batches, self._slots[_SUMS] = 0, self._zeros()
        return means


def clipped(gradients: Mapping[str, Var], limit: float) -> dict[str, Var]:
    """The gradients, all scaled by one factor where their norm, taken together, exceeds ``limit``.

    The factor is limit / (norm + 1e-6) and at most 1, as in ``torch.nn.utils.clip_grad_norm_``.
    """
    if not gradients:
        return {}
    sums = jt.concat([_square_sum(gradient.detach()) for gradient in gradients.values()], 0)
    factor = jt.minimum(limit / (sums.sum().sqrt() + _CLIP_EPSILON), 1.0)
    return {name: gradient.detach() * factor for name, gradient in gradients.items()}


def _key(slot: str, name: str) -> str:
    return f"{slot}/{name}" if slot else name


def _square_sum(x: Var) -> Var:
    """(1,) float32."""
    if not cpp.on_cpu():
        return x.sqr().sum().reshape(1)
    # One shape for all: each number of dimensions would be compiled anew.
    call = "out0_p[0] = square_sum(in0_p, in0->num);"
    return cpp.run(UPDATES, call, [1], [x.reshape(-1)])


def _averaged(gradients: list[Var]) -> list[Var]:
    """Mean of each gradient over all processes, in one message so that no two can be mixed up."""
    if distributed.world_size() == 1:
        return gradients
    total = distributed.all_reduce_mean(jt.concat([g.reshape(-1) for g in gradients], 0))
    # Where several optimisers take turns, all processes must add up the same one at a time.
    total.sync()
    averaged, start = [], 0
    for gradient in gradients:
        count = gradient.numel()
        averaged.append(total[start : start + count].reshape(gradient.shape))
        start += count
    return averaged
