"""Settings: overridden by text, checked against their annotations, kept as JSON without loss."""

from __future__ import annotations

import json
from dataclasses import dataclass, field

import pytest

from core.config import from_dict, override, to_dict
from core.errors import UserError


@dataclass(frozen=True)
class Step:
    epochs: int = 10
    rate: float = 0.5
    larc: bool = True
    name: str = "sgd"
    sizes: tuple[int, ...] = (224, 96)
    scales: tuple[float, ...] = (0.14, 1.0)


@dataclass(frozen=True)
class Run:
    step: Step = field(default_factory=Step)
    seed: int = 0


@pytest.mark.parametrize(
    "assignment,key,value",
    [
        ("step.epochs=3", "epochs", 3),
        ("step.rate=1", "rate", 1.0),
        ("step.rate=1e-3", "rate", 0.001),
        ("step.larc=false", "larc", False),
        ("step.larc=True", "larc", True),
        ("step.name=3", "name", "3"),
        ("step.name=a=b", "name", "a=b"),
        (" step.name = adam ", "name", "adam"),
        ("step.sizes=1,2,3", "sizes", (1, 2, 3)),
        ("step.sizes=[7]", "sizes", (7,)),
        ("step.sizes=", "sizes", ()),
        ("step.scales=1,0.5", "scales", (1.0, 0.5)),
    ],
)
def test_override(assignment: str, key: str, value: object) -> None:
    changed = override(Run(), [assignment])
    assert getattr(changed.step, key) == value
    assert type(getattr(changed.step, key)) is type(value)
    assert changed.seed == 0 and Run() == Run()  # the original is untouched


def test_the_last_assignment_wins() -> None:
    assert override(Run(), ["seed=1", "step.epochs=2", "seed=3"]).seed == 3


@pytest.mark.parametrize(
    "assignment,text",
    [
        ("seed", "expects section.field=value, not 'seed'"),
        ("sed=1", "unknown setting 'sed': expected one of seed, step"),
        ("step.epoch=1", "unknown setting 'step.epoch': expected one of epochs,"),
        ("step=1", "'step' is a section; set one of its fields: epochs,"),
        ("seed.value=1", "'seed' has no fields"),
        ("seed=1.5", "seed expects int, not 1.5"),
        ("seed=true", "seed expects int, not True"),
        ("seed=one", "seed expects int, not 'one'"),
        ("step.larc=1", "step.larc expects bool, not 1"),
        ("step.rate=true", "step.rate expects float, not True"),
        ("step.rate=", "step.rate expects float, not ''"),
        ("step.sizes=1,2.5", "step.sizes expects int, not 2.5"),
        ("step.sizes=1,x", "step.sizes expects tuple[int, ...], not '[1,x]'"),
    ],
)
def test_wrong_assignments(assignment: str, text: str) -> None:
    with pytest.raises(UserError) as caught:
        override(Run(), [assignment])
    assert text in str(caught.value)


def test_json_round_trip() -> None:
    run = override(Run(), ["step.sizes=5", "step.rate=0.1", "seed=7"])
    stored = json.loads(json.dumps(to_dict(run)))
    assert from_dict(Run, stored, "config.json") == run


@pytest.mark.parametrize(
    "change,text",
    [
        (lambda d: d.pop("seed"), "config.json: expected the settings ['seed', 'step'], found"),
        (lambda d: d["step"].update(new=1), "config.json.step: expected the settings"),
        (lambda d: d["step"].update(epochs="3"), "config.json.step.epochs expects int, not '3'"),
        (lambda d: d.update(step=[]), "config.json.step: expected the settings"),
    ],
)
def test_stored_settings_are_checked(change, text: str) -> None:
    stored = to_dict(Run())
    change(stored)
    with pytest.raises(UserError) as caught:
        from_dict(Run, stored, "config.json")
    assert text in str(caught.value)
