"""Typed configuration: nested frozen dataclasses, overridden by ``section.field=value``, kept as
JSON.

Every value is checked against the field's annotation; an unknown key or a wrong type is a
:class:`UserError`. Supported annotations: ``int``, ``float``, ``bool``, ``str``, ``tuple[int,
...]`` and ``tuple[float, ...]``. A field may also state a rule for its values (:func:`setting`),
which is checked when the setting is given, and by :func:`check` for a whole configuration.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import math
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

from core.errors import UserError

Config = TypeVar("Config")

_SHOWN = 40  # characters of a bad value
_MOST = 2**63 - 1  # of an integer in an array
_BEFORE = "before"  # in the metadata of an added field


def override(config: Config, assignments: Iterable[str]) -> Config:
    """Apply ``["pretrain.epochs=3", "seed=1"]`` in order and return a new configuration.

    Raises:
        UserError: not of the form ``key=value``, an unknown key, or a value of the wrong type or
            against the rule of its setting.

    Example::

        >>> from dataclasses import dataclass
        >>> from core.config import override
        >>> @dataclass(frozen=True)
        ... class Train:
        ...     epochs: int = 200
        ...     crop_sizes: tuple[int, ...] = (224, 96)
        >>> @dataclass(frozen=True)
        ... class Settings:
        ...     seed: int = 31
        ...     train: Train = Train()
        >>> override(Settings(), ["train.epochs=3", "train.crop_sizes=64,32"])
        Settings(seed=31, train=Train(epochs=3, crop_sizes=(64, 32)))
        >>> override(Settings(), ["train.epochs=many"])
        Traceback (most recent call last):
            ...
        core.errors.UserError: train.epochs expects int, not 'many'
    """
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals:
            raise UserError(f"--set expects section.field=value, not {assignment!r}")
        config = _replace(config, key.strip().split("."), text.strip(), key.strip())
    return config


def to_dict(config: Any) -> dict[str, Any]:
    """Plain nested dict of a configuration, ready for JSON."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def from_dict(kind: type[Config], values: dict[str, Any], where: str) -> Config:
    """Rebuild a configuration of class ``kind`` from :func:`to_dict`'s output.

    Raises:
        UserError: keys are missing or unknown, or a value has the wrong type; ``where`` names the
            source. Fields that were :func:`added` may be missing.
    """
    hints = typing.get_type_hints(kind)
    fields = {field.name: field for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    names = set(fields)
    if isinstance(values, dict):
        later = {
            name: field.metadata for name, field in fields.items() if _BEFORE in field.metadata
        }
        absent = {name: later[name][_BEFORE] for name in later.keys() - values.keys()}
        values = {**{name: _plain(value) for name, value in absent.items()}, **values}
    if not isinstance(values, dict) or set(values) != names:
        found = sorted(values) if isinstance(values, dict) else values
        raise UserError(f"{where}: expected the settings {sorted(names)}, found {found}")
    arguments: dict[str, Any] = {}
    for name in names:
        hint, value = hints[name], values[name]
        if dataclasses.is_dataclass(hint):
            arguments[name] = from_dict(typing.cast(type, hint), value, f"{where}.{name}")
        else:
            arguments[name] = _checked(hint, value, f"{where}.{name}")
    return kind(**arguments)


def _plain(value: Any) -> Any:
    """A value as :func:`to_dict` has it."""
    return to_dict(value) if dataclasses.is_dataclass(value) else json.loads(json.dumps(value))


def _replace(config: Any, keys: list[str], text: str, full: str) -> Any:
    hints = typing.get_type_hints(type(config))
    if keys[0] not in hints:
        raise UserError(f"unknown setting {full!r}: expected one of {', '.join(sorted(hints))}")
    current = getattr(config, keys[0])
    if dataclasses.is_dataclass(current):
        if len(keys) == 1:
            fields = ", ".join(field.name for field in dataclasses.fields(current))
            raise UserError(f"{full!r} is a section; set one of its fields: {fields}")
        value = _replace(current, keys[1:], text, full)
    elif len(keys) > 1:
        raise UserError(f"unknown setting {full!r}: {keys[0]!r} has no fields")
    else:
        value = _checked(hints[keys[0]], _parsed(hints[keys[0]], text), full)
        if not all(map(_is_usable, value if isinstance(value, tuple) else (value,))):
            raise UserError(f"{full} must be a finite number of usual size, is {text[:_SHOWN]}")
        _require(type(config).__dataclass_fields__[keys[0]], full, value)
    return dataclasses.replace(config, **{keys[0]: value})


def _parsed(hint: Any, text: str) -> Any:
    """Text of the command line as a JSON-like value for ``hint``; left as text where it does not
    parse.
    """
    if hint is str:
        return text
    if typing.get_origin(hint) is tuple and not text.startswith("["):
        text = f"[{text}]"
    try:
        return json.loads(text.lower() if hint is bool else text)
    except (ValueError, RecursionError):  # ValueError: no JSON, or thousands of digits
        return text


def _is_usable(value: Any) -> bool:
    """False of infinities, NaN, and integers that no array could hold."""
    if isinstance(value, float):
        return math.isfinite(value)
    return not isinstance(value, int) or -_MOST - 1 <= value <= _MOST


def _checked(hint: Any, value: Any, key: str) -> Any:
    """``value`` as an instance of ``hint``."""
    if typing.get_origin(hint) is tuple:
        if isinstance(value, (list, tuple)):
            return tuple(_checked(typing.get_args(hint)[0], entry, key) for entry in value)
    elif hint is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        with contextlib.suppress(OverflowError):  # of an integer larger than any float
            return float(value)
    elif isinstance(value, hint) and not (hint is int and isinstance(value, bool)):
        return value
    name = getattr(hint, "__name__", str(hint)) if typing.get_origin(hint) is None else str(hint)
    shown = repr(value)
    shown = shown if len(shown) <= 2 * _SHOWN else f"{shown[: 2 * _SHOWN]}..."
    raise UserError(f"{key} expects {name}, not {shown}")


def require_positive(settings: Mapping[str, float]) -> None:
    """Refuse settings (name -> value) of 0 and below, and NaN, for which every comparison is false.

    Raises:
        UserError: names the setting to change.
    """
    for name, value in settings.items():
        positive().require(name, value)


# Rules --------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Rule:
    """What the values of one setting must be."""

    words: str
    """What a good value is, to go on after "must be"."""
    holds: Callable[[Any], bool]
    complaint: Callable[[str, Any], str] | None = None
    """(name, bad value) -> the text of the error; None: "<name> must be <words>, is <value>"."""

    def require(self, name: str, value: Any) -> None:
        """Complain where ``value`` of the setting ``name`` breaks the rule.

        Raises:
            UserError: one line with the name, the expected range and the value.
        """
        if not self.holds(value):
            usual = f"{name} must be {self.words}, is {value}"
            raise UserError(self.complaint(name, value) if self.complaint else usual)


# Comparisons are written so that NaN, for which every one is false, breaks each rule.


def at_least(least: float) -> Rule:
    """``least`` or more."""
    return Rule(f"at least {least}", lambda value: value >= least)


def positive() -> Rule:
    """Above 0."""

    def complaint(name: str, value: Any) -> str:
        return f"{name} must be positive, is {value}; use --set {name}=..."

    return Rule("positive", lambda value: value > 0, complaint)


def between(least: float, most: float) -> Rule:
    """From ``least`` to ``most``, both included."""
    return Rule(f"{least} to {most}", lambda value: least <= value <= most)


def fraction() -> Rule:
    """From 0 to 1, both included."""
    words = "a fraction between 0 and 1"
    return Rule(
        words,
        lambda value: 0 <= value <= 1,
        lambda name, value: f"{name} is {words}, not {value:g}",
    )


def positive_fraction() -> Rule:
    """Above 0 and up to 1."""
    return Rule("above 0 and at most 1", lambda value: 0 < value <= 1)


def no_percentage() -> Rule:
    """Below 2: for thresholds of fractions that may lie out of reach on purpose, on either side,
    but are not meant in percent.
    """
    return Rule(
        "a fraction, not a percentage",
        lambda value: value < 2,
        lambda name, value: f"{name} is a fraction, not {value:g}; did you mean {value / 100:g}?",
    )


def seconds(most: float = 30 * 86400) -> Rule:
    """A time above 0 that the system's clocks can wait for; a month at most."""
    return Rule(f"positive and at most {most:.0f} seconds", lambda value: 0 < value <= most)


def one_of(*choices: Any) -> Rule:
    """One of a few values."""
    words = f"one of {', '.join(map(str, choices))}"
    return Rule(
        words,
        lambda value: value in choices,
        lambda name, value: f"{name} must be {words}, not {value!r}",
    )


def each(rule: Rule) -> Rule:
    """Every entry of a tuple keeps ``rule``."""
    return Rule(f"{rule.words} each", lambda values: all(map(rule.holds, values)))


def number(kind: type[int] | type[float], rule: Rule | None = None) -> Callable[[str], Any]:
    """The ``type`` of a flag of argparse that takes a finite number which keeps a rule."""
    wanted = "a whole number" if kind is int else "a finite number"
    words = f"{wanted}, {rule.words}" if rule else wanted

    def parsed(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:  # also of thousands of digits
            raise argparse.ArgumentTypeError(f"must be {words}, is {text[:_SHOWN]!r}") from None
        if rule is not None and not rule.holds(value):
            raise argparse.ArgumentTypeError(f"must be {rule.words}, is {str(value)[:_SHOWN]}")
        if not _is_usable(value):
            raise argparse.ArgumentTypeError(f"must be {words}, is {str(value)[:_SHOWN]}")
        return value

    return parsed


def setting(default: Any, rule: Rule | None = None, help: str = "") -> Any:
    """A field of a section: its default, the rule that its values keep, and what it is for.

    >>> @dataclasses.dataclass(frozen=True)
    ... class Train:
    ...     epochs: int = setting(200, at_least(1), "passes over the training images")
    """
    return dataclasses.field(default=default, metadata={"rule": rule, "help": help})


def added(default: Any, before: Any, rule: Rule | None = None, help: str = "") -> Any:
    """A field that came after runs had been recorded without it.

    Those runs go on: where the field is absent it has the value ``before``, with which everything
    behaves as it did without the field, and :func:`recorded` leaves it out where it has that value.
    A section may be added as well; its own fields count as before.
    """
    return dataclasses.field(
        default=default, metadata={"rule": rule, "help": help, _BEFORE: before}
    )


def recorded(config: Any) -> dict[str, Any]:
    """:func:`to_dict` without the added fields that behave as before they existed: what decides a
    result, as ledgers, checkpoints and fingerprints record it.
    """
    values = to_dict(config)
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if _BEFORE in field.metadata and value == field.metadata[_BEFORE]:
            del values[field.name]
        elif dataclasses.is_dataclass(value):
            values[field.name] = recorded(value)
    return values


def check(config: Any, name: str = "") -> None:
    """Check every value of a configuration, or of the section ``name``, against its rule.

    Raises:
        UserError: names the first setting that breaks its rule.
    """
    for key, field in _fields(config, name):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            check(value, key)
        else:
            _require(field, key, value)


def describe(config: Any, name: str = "") -> list[str]:
    """A line for each setting of a configuration, or of the section ``name``: as ``--set`` takes
    it with the present value, what it is for, and its rule.

    >>> describe(Train(), "train")
    ['train.epochs=200  passes over the training images (at least 1)']
    """
    lines: list[str] = []
    for key, field in _fields(config, name):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            lines += describe(value, key)
            continue
        rule: Rule | None = field.metadata.get("rule")
        about = field.metadata.get("help", "") + (f" ({rule.words})" if rule else "")
        lines.append(f"{key}={_spelt(value)}  {about.strip()}".rstrip())
    return lines


def _fields(config: Any, name: str) -> list[tuple[str, dataclasses.Field[Any]]]:
    """(dotted name, field) of a configuration's or a section's fields."""
    return [
        (f"{name}.{field.name}" if name else field.name, field)
        for field in dataclasses.fields(config)
    ]


def _require(field: dataclasses.Field[Any], key: str, value: Any) -> None:
    rule: Rule | None = field.metadata.get("rule")
    if rule is not None:
        rule.require(key, value)


def _spelt(value: Any) -> str:
    """A value as ``--set`` takes it."""
    if isinstance(value, tuple):
        return ",".join(map(_spelt, value))
    return str(value).lower() if isinstance(value, bool) else str(value)
