"""Settings: overridden by text, checked against their annotations, kept as JSON without loss."""

from __future__ import annotations

import json
from dataclasses import dataclass, field

import pytest

from core.config import (
    Rule,
    added,
    at_least,
    between,
    check,
    describe,
    each,
    fraction,
    from_dict,
    no_percentage,
    one_of,
    override,
    positive,
    positive_fraction,
    recorded,
    setting,
    to_dict,
)
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


# Rules ------------------------------------------------------------------------------------------

NAN = float("nan")


@pytest.mark.parametrize(
    ("rule", "good", "bad", "text"),
    [
        (at_least(1), [1, 9], [0, NAN], "x.y must be at least 1, is 0"),
        (positive(), [1, 0.1], [0, -1, NAN], "x.y must be positive, is 0; use --set x.y=..."),
        (between(32, 4096), [32, 4096], [31, 4097], "x.y must be 32 to 4096, is 31"),
        (
            fraction(),
            [0, 0.5, 1],
            [24.0, -0.1, NAN],
            "x.y is a fraction between 0 and 1, not 24",
        ),
        (positive_fraction(), [0.1, 1], [0.0, 2, NAN], "x.y must be above 0 and at most 1, is 0.0"),
        (no_percentage(), [-1, 0.3, 1.5], [41, NAN], "x.y is a fraction, not 41; did you mean"),
        (one_of("a", "b"), ["a", "b"], ["c"], "x.y must be one of a, b, not 'c'"),
        (each(at_least(2)), [(), (2, 3)], [(2, 1)], "x.y must be at least 2 each, is (2, 1)"),
    ],
)
def test_what_a_rule_takes_and_says(rule: Rule, good: list, bad: list, text: str) -> None:
    for value in good:
        rule.require("x.y", value)
    for value in bad:
        with pytest.raises(UserError) as caught:
            rule.require("x.y", value)
        assert "\n" not in str(caught.value)
        if value is bad[0]:
            assert text in str(caught.value)


@dataclass(frozen=True)
class Ruled:
    epochs: int = setting(200, at_least(1), "passes over the images")
    sizes: tuple[int, ...] = setting((8, 4), each(positive()), "sides")
    larc: bool = setting(True, help="scale the rate")
    plain: float = 0.5


@dataclass(frozen=True)
class RuledRun:
    train: Ruled = Ruled()
    seed: int = setting(0, at_least(0))


def test_a_setting_is_checked_when_it_is_given() -> None:
    assert override(RuledRun(), ["train.epochs=1"]).train.epochs == 1
    with pytest.raises(UserError, match=r"^train\.epochs must be at least 1, is 0$"):
        override(RuledRun(), ["seed=3", "train.epochs=0"])
    with pytest.raises(UserError, match=r"^seed must be at least 0, is -1$"):
        override(RuledRun(), ["seed=-1"])
    with pytest.raises(UserError, match=r"^train\.sizes must be positive each, is \(8, 0\)$"):
        override(RuledRun(), ["train.sizes=8,0"])


def test_a_configuration_built_in_code_is_checked_as_a_whole() -> None:
    check(RuledRun())
    with pytest.raises(UserError, match=r"^train\.epochs must be at least 1, is 0$"):
        check(RuledRun(train=Ruled(epochs=0)))
    with pytest.raises(UserError, match=r"^train\.epochs must be"):
        check(Ruled(epochs=0), "train")
    with pytest.raises(UserError, match=r"^epochs must be"):
        check(Ruled(epochs=0))


def test_settings_are_described_as_they_are_set() -> None:
    lines = describe(RuledRun(seed=7))
    assert lines == [
        "train.epochs=200  passes over the images (at least 1)",
        "train.sizes=8,4  sides (positive each)",
        "train.larc=true  scale the rate",
        "train.plain=0.5",
        "seed=7  (at least 0)",
    ]
    assert describe(Ruled(), "train") == lines[:4]
    given = [line.partition("  ")[0] for line in lines]
    assert override(RuledRun(), given) == RuledRun(seed=7)


def test_rules_change_nothing_that_is_recorded() -> None:
    assert to_dict(RuledRun())["train"] == {
        "epochs": 200,
        "sizes": [8, 4],
        "larc": True,
        "plain": 0.5,
    }
    assert Ruled.epochs == 200


# Settings that came later ------------------------------------------------------------------------


@dataclass(frozen=True)
class Later:
    epochs: int = setting(3, at_least(1), "passes")
    smooth: float = added(0.2, before=0.0, rule=fraction(), help="label smoothing")


@dataclass(frozen=True)
class Section:
    size: int = 4


@dataclass(frozen=True)
class Grown:
    seed: int = 0
    train: Later = Later()
    more: Section = added(Section(), before=Section())


def test_a_later_setting_leaves_what_was_recorded_before_as_it_was() -> None:
    old = {"seed": 0, "train": {"epochs": 3}}
    read = from_dict(Grown, old, "config.json")
    assert read.train.smooth == 0.0 and read.more == Section()
    # The same record, so that no run and no fingerprint becomes stale.
    assert recorded(read) == old and recorded(Later(smooth=0.0)) == {"epochs": 3}
    # With another value it counts.
    assert recorded(Grown())["train"] == {"epochs": 3, "smooth": 0.2}
    assert recorded(Grown(more=Section(5)))["more"] == {"size": 5}
    assert from_dict(Grown, to_dict(Grown()), "here") == Grown()
    with pytest.raises(UserError, match="config.json.train: expected the settings"):
        from_dict(Grown, {"seed": 0, "train": {}}, "config.json")
    with pytest.raises(UserError, match="train.smooth is a fraction"):
        override(Grown(), ["train.smooth=7"])


def test_without_later_settings_the_record_is_everything() -> None:
    assert recorded(Run()) == to_dict(Run())
