"""Typed configuration: nested frozen dataclasses, overridden by ``section.field=value``, kept as
JSON.

Every value is checked against the field's annotation; an unknown key or a wrong type is a
:class:`UserError`. Supported annotations: ``int``, ``float``, ``bool``, ``str``, ``tuple[int,
...]`` and ``tuple[float, ...]``.
"""

from __future__ import annotations

import dataclasses
import json
import typing
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from core.errors import UserError

Config = TypeVar("Config")


def override(config: Config, assignments: Iterable[str]) -> Config:
    """Apply ``["pretrain.epochs=3", "seed=1"]`` in order and return a new configuration.

    Raises:
        UserError: not of the form ``key=value``, an unknown key, or a value of the wrong type.

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
            source.
    """
    hints = typing.get_type_hints(kind)
    names = {field.name for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
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
    except json.JSONDecodeError:
        return text


def _checked(hint: Any, value: Any, key: str) -> Any:
    """``value`` as an instance of ``hint``."""
    if typing.get_origin(hint) is tuple:
        if isinstance(value, (list, tuple)):
            return tuple(_checked(typing.get_args(hint)[0], entry, key) for entry in value)
    elif hint is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    elif isinstance(value, hint) and not (hint is int and isinstance(value, bool)):
        return value
    name = getattr(hint, "__name__", str(hint)) if typing.get_origin(hint) is None else str(hint)
    raise UserError(f"{key} expects {name}, not {value!r}")


def require_positive(settings: Mapping[str, float]) -> None:
    """Refuse settings (name -> value) of 0 and below, and NaN, for which every comparison is false.

    Raises:
        UserError: names the setting to change.
    """
    for name, value in settings.items():
        if not value > 0:
            raise UserError(f"{name} must be positive, is {value}; use --set {name}=...")
