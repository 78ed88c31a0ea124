"""The optimisers against a restatement of their rules in float64, and against PyTorch's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pytest

from core.errors import UserError
from core.nn import cpp
from core.runtime import jt
from core.training.descent import Group, clipped
from core.training.optim import AdamW, LarcSGD

MOMENTUM, DECAY, TRUST = 0.9, 0.01, 0.001


def _expected(values, slopes, rates, larc, frozen_first=()):
    """The update rule in float64, for losses linear in the parameters."""
    values = [value.astype(np.float64) for value in values]
    velocity = [np.zeros_like(value) for value in values]
    for step, rate in enumerate(rates):
        for i, slope in enumerate(slopes):
            if step == 0 and i in frozen_first:
                continue
            gradient, size = slope + DECAY * values[i], np.linalg.norm(values[i])
            if larc:
                steepness = np.linalg.norm(slope)
                gradient = slope.astype(np.float64)
                if size and steepness:
                    scale = TRUST * size / (steepness + DECAY * size + 1e-8)
                    gradient = (slope + DECAY * values[i]) * scale
            velocity[i] = MOMENTUM * velocity[i] + gradient
            values[i] = values[i] - rate * velocity[i]
    return values, velocity


@pytest.mark.parametrize("composed", [False, True])
@pytest.mark.parametrize("larc", [True, False])
def test_update_rule(larc, composed, monkeypatch):
    if composed:  # the form that runs on a GPU
        monkeypatch.setattr(LarcSGD, "_on_cpu", LarcSGD._on_gpu)
    rng = np.random.default_rng(0)
    # Large enough for several threads; small; a zero parameter; a parameter without gradient.
    values = [rng.normal(size=s).astype(np.float32) for s in ((90, 200), (2, 3, 1, 1), (5,), (4,))]
    slopes = [rng.normal(size=value.shape).astype(np.float32) for value in values]
    values[2][:], slopes[3][:] = 0, 0
    parameters = {str(i): jt.array(value) for i, value in enumerate(values)}
    optimizer = LarcSGD(parameters, MOMENTUM, DECAY, TRUST, larc)
    rates = (0.5, 0.3, 0.1)
    for step, rate in enumerate(rates):
        terms = [(p * jt.array(s)).sum() for p, s in zip(parameters.values(), slopes)]
        optimizer.step(sum(terms), rate, frozen=("1",) if step == 0 else ())
    wanted, velocity = _expected(values, slopes, rates, larc, frozen_first=(1,))
    state = optimizer.state()
    for i in range(len(values)):
        np.testing.assert_allclose(parameters[str(i)].numpy(), wanted[i], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(state[str(i)], velocity[i], rtol=1e-5, atol=1e-6)


def test_optimiser_refuses_the_state_of_another_network():
    optimizer = LarcSGD({"a": jt.ones((2,)), "b": jt.ones((3,))}, MOMENTUM, DECAY)
    with pytest.raises(UserError, match=r"run/x: .*\(b: expected \(3,\), found None; 1 differ\)"):
        optimizer.load_state({"a": np.zeros(2, np.float32)}, "run/x")


# Groups, accumulation, clipping, AdamW ----------------------------------------------------------

# Large enough for several threads; of four dimensions; a bias; one that has no gradient.
SHAPES = {"wide": (90, 200), "kernel": (3, 2, 3, 3), "bias": (5,), "idle": (4,)}
GROUPS = ((("wide", "idle"), 1.0, None), (("kernel",), 10.0, 0.2), (("bias",), 20.0, 0.0))
BATCHES = 8
Arrays = Mapping[str, np.ndarray]


def _rates(step: int) -> float:
    return 0.01 * (1 - step / 20)


def _start() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in SHAPES.items()}


def _slope(name: str, batch: int) -> np.ndarray:
    """The gradient that a batch gives a parameter."""
    rng = np.random.default_rng([sum(map(ord, name)), batch])
    return rng.normal(size=SHAPES[name]).astype(np.float32) * (name != "idle")


def _groups(values: Mapping[str, object], grouped: bool) -> list[tuple[dict, float, float]]:
    """(parameters, factor of the rate, decay) of each group."""
    if not grouped:
        return [(dict(values), 1.0, 0.05)]
    return [
        ({name: values[name] for name in names}, rate, 0.05 if decay is None else decay)
        for names, rate, decay in GROUPS
    ]


@dataclass(frozen=True)
class Case:
    kind: str
    momentum: float = 0.0
    grouped: bool = False
    clip: float | None = None
    accumulate: int = 1


CASES = {
    "sgd": Case("sgd"),
    "momentum": Case("sgd", momentum=0.9),
    "adamw": Case("adamw"),
    "sgd in groups": Case("sgd", momentum=0.9, grouped=True),
    "adamw in groups": Case("adamw", grouped=True),
    "sgd clipped": Case("sgd", momentum=0.9, clip=20.0),
    "sgd below the limit": Case("sgd", momentum=0.9, clip=1e4),
    "sgd of three batches": Case("sgd", momentum=0.9, accumulate=3),
    "all at once": Case("adamw", grouped=True, clip=20.0, accumulate=3),
}


def _ours(case: Case) -> dict[str, np.ndarray]:
    """Parameters after all batches."""
    values = {name: jt.array(value) for name, value in _start().items()}
    parameters: object = values
    if case.grouped:
        parameters = [
            Group({name: values[name] for name in names}, rate, decay)
            for names, rate, decay in GROUPS
        ]
    if case.kind == "sgd":
        optimizer = LarcSGD(
            parameters, case.momentum, 0.05, larc=False, accumulate=case.accumulate, clip=case.clip
        )
    else:
        optimizer = AdamW(parameters, 0.05, (0.9, 0.95), accumulate=case.accumulate, clip=case.clip)
    for batch in range(BATCHES):
        terms = [(value * jt.array(_slope(name, batch))).sum() for name, value in values.items()]
        optimizer.step(sum(terms), _rates(batch))
        jt.sync_all()
    return {name: value.numpy() for name, value in values.items()}


def _restated(case: Case) -> dict[str, np.ndarray]:
    """The same in float64."""
    values = {name: value.astype(np.float64) for name, value in _start().items()}
    first = {name: np.zeros_like(value) for name, value in values.items()}
    second = {name: np.zeros_like(value) for name, value in values.items()}
    for update in range(1, BATCHES // case.accumulate + 1):
        batches = range((update - 1) * case.accumulate, update * case.accumulate)
        slopes = {name: np.mean([_slope(name, b) for b in batches], 0) for name in values}
        if case.clip is not None:
            norm = np.sqrt(sum((slope.astype(np.float64) ** 2).sum() for slope in slopes.values()))
            slopes = {
                name: slope * min(1, case.clip / (norm + 1e-6)) for name, slope in slopes.items()
            }
        for parameters, factor, decay in _groups(values, case.grouped):
            rate = factor * _rates(batches[-1])
            for name in parameters:
                g, p = slopes[name], values[name]
                if case.kind == "sgd":
                    first[name] = case.momentum * first[name] + g + decay * p
                    values[name] = p - rate * first[name]
                    continue
                first[name] = 0.9 * first[name] + 0.1 * g
                second[name] = 0.95 * second[name] + 0.05 * g**2
                size = np.sqrt(second[name] / (1 - 0.95**update)) + 1e-8
                step = first[name] / (1 - 0.9**update) / size
                values[name] = p * (1 - rate * decay) - rate * step
    return values


def _torch(case: Case) -> dict[str, np.ndarray]:
    """The same by PyTorch."""
    torch = pytest.importorskip("torch")
    values = {name: torch.nn.Parameter(torch.from_numpy(v)) for name, v in _start().items()}
    factors = [factor for _, factor, _ in _groups(values, case.grouped)]
    groups = [
        {"params": list(parameters.values()), "weight_decay": decay}
        for parameters, _, decay in _groups(values, case.grouped)
    ]
    if case.kind == "sgd":
        optimizer = torch.optim.SGD(groups, lr=1.0, momentum=case.momentum)
    else:
        optimizer = torch.optim.AdamW(groups, lr=1.0, betas=(0.9, 0.95))
    for batch in range(BATCHES):
        terms = [(v * torch.from_numpy(_slope(name, batch))).sum() for name, v in values.items()]
        (sum(terms) / case.accumulate).backward()
        if (batch + 1) % case.accumulate:
            continue
        for group, factor in zip(optimizer.param_groups, factors):
            group["lr"] = factor * _rates(batch)
        if case.clip is not None:
            torch.nn.utils.clip_grad_norm_(values.values(), case.clip)
        optimizer.step()
        optimizer.zero_grad()
    return {name: value.detach().numpy() for name, value in values.items()}


def _assert_close(got: Arrays, wanted: Arrays) -> None:
    for name, value in wanted.items():
        assert np.abs(value - _start()[name]).max() > 1e-4 or name == "idle"
        np.testing.assert_allclose(got[name], value, rtol=2e-5, atol=2e-6, err_msg=name)


@pytest.mark.parametrize("composed", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_optimisers_follow_their_rules(case, composed, monkeypatch):
    if composed:  # the form that runs on a GPU
        monkeypatch.setattr(cpp, "on_cpu", lambda: False)
    _assert_close(_ours(CASES[case]), _restated(CASES[case]))


@pytest.mark.torch
@pytest.mark.parametrize("case", CASES)
def test_optimisers_do_what_those_of_pytorch_do(case):
    _assert_close(_ours(CASES[case]), _torch(CASES[case]))


@pytest.mark.torch
@pytest.mark.parametrize("limit", [0.5, 1e6])
def test_clipping_is_that_of_pytorch(limit):
    torch = pytest.importorskip("torch")
    slopes = {name: _slope(name, 0) for name in SHAPES}
    parameters = [torch.nn.Parameter(torch.zeros(slope.shape)) for slope in slopes.values()]
    for parameter, slope in zip(parameters, slopes.values()):
        parameter.grad = torch.from_numpy(slope.copy())
    torch.nn.utils.clip_grad_norm_(parameters, limit)
    got = clipped({name: jt.array(slope) for name, slope in slopes.items()}, limit)
    for name, parameter in zip(slopes, parameters):
        np.testing.assert_allclose(got[name].numpy(), parameter.grad.numpy(), rtol=1e-6)


def test_a_frozen_parameter_counts_no_updates():
    """Its first step after the thaw is corrected as a first one, which moves it by the rate."""
    values = {"a": jt.ones((2,)), "b": jt.ones((2,))}
    optimizer = AdamW(values, weight_decay=0.0)
    for step in range(3):
        loss = (values["a"] + 2 * values["b"]).sum()
        optimizer.step(loss, 0.1, frozen=("b",) if step < 2 else ())
    state = optimizer.state()
    assert (state["step/a"].tolist(), state["step/b"].tolist()) == ([3], [1])
    np.testing.assert_allclose(values["a"].numpy(), 0.7, rtol=1e-5)
    np.testing.assert_allclose(values["b"].numpy(), 0.9, rtol=1e-5)


@pytest.mark.parametrize("accumulate", [1, 3])
def test_a_state_goes_on_in_another_optimiser(accumulate):
    """Also between the batches of one update."""

    def run(stop: int | None) -> np.ndarray:
        value = jt.ones((3,))
        optimizer = AdamW({"a": value}, accumulate=accumulate, clip=0.5)
        for step in range(7):
            if step == stop:
                state = optimizer.state()
                value = jt.array(value.numpy())
                optimizer = AdamW({"a": value}, accumulate=accumulate, clip=0.5)
                optimizer.load_state(state, "run/x")
            optimizer.step((value * jt.array(np.float32([step, 1, -step]))).sum(), 0.1)
        return value.numpy()

    whole = run(None)
    for stop in range(1, 7):
        np.testing.assert_array_equal(run(stop), whole)


def test_an_optimiser_refuses_the_state_of_another_kind():
    values = {"a": jt.ones((2,))}
    velocity = LarcSGD(values, MOMENTUM, DECAY).state()
    with pytest.raises(UserError, match=r"run/x: the optimiser's state does not fit .*\(a: exp"):
        AdamW(values).load_state(velocity, "run/x")
    with pytest.raises(UserError, match=r"/batches: expected \(1,\), found None"):
        LarcSGD(values, MOMENTUM, DECAY, accumulate=2).load_state(velocity, "run/x")


def test_what_makes_no_optimiser():
    values = {"a": jt.ones((2,))}
    with pytest.raises(ValueError, match="a is in two groups"):
        AdamW([Group(values), Group(values)])
    for wrong in ({"accumulate": 0}, {"clip": 0.0}, {"clip": float("nan")}):
        with pytest.raises(ValueError, match="must be positive"):
            AdamW(values, **wrong)
