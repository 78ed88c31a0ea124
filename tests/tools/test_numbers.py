"""Numbers of the command line that nobody can work with: one line and exit code 2, never more."""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import uss.pipeline
import wsss.pipeline
from core import config as core_config
from core.errors import UserError
from core.pipeline.stage import Pipeline
from tests.conftest import ROOT
from tools import flags
from tools.command_line import TOOLS, command_of

PIPELINES = {"uss": uss.pipeline.PIPELINE, "wsss": wsss.pipeline.PIPELINE}

#: What no flag takes.
NEVER = ("nan", "inf", "-inf", "NaN", "Infinity", "1e999", "1" * 5000, "", "many", "0x10")
#: What some flags take, and which.
_LARGE = "9" * 40  # more than an integer of an array, and less than a float
SOME = ("-1", "0", "0.5", _LARGE)
TAKEN = {
    "--workers (stage)": {"0"},
    "--workers": set(),
    "--log-steps": set(),
    "--checkpoint-minutes": {"0", "0.5", _LARGE},
    "--shallow": {"-1", "0"},  # and then the setting's own rule
    "--weights": {"-1", "0", "0.5", _LARGE},
    "--threshold": {"-1", "0", "0.5", _LARGE},
    "--num-classes": set(),
    "--min": {"0"},
    "--max": {"0"},
    "--images": {"0"},
    "--interval": {"0.5"},
    "--port": {"0"},
    "--seconds": {"0.5"},
    "--seed": {"0"},
    "--test": {"0", "0.5"},
    "--max_res": {"0"},
    "--image-timeout": {"0.5"},
    "--max-pixels": set(),
}


class _Seen(Exception):
    """Carries a parser out of the command that was about to use it."""


def parser_of(main: Callable[[], Any], monkeypatch: pytest.MonkeyPatch) -> argparse.ArgumentParser:
    """The parser that a command makes."""

    def seen(parser: argparse.ArgumentParser, *arguments: Any) -> None:
        raise _Seen(parser)

    with monkeypatch.context() as patched:
        patched.setattr(flags.Parser, "parse_args", seen)
        with pytest.raises(_Seen) as found:
            main()
    return found.value.args[0]


def test_py() -> Any:
    """The module test.py."""
    spec = importlib.util.spec_from_file_location("test_py", ROOT / "test.py")
    assert spec is not None and spec.loader is not None
    program = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(program)
    return program


test_py.__test__ = False  # type: ignore[attr-defined]


def commands(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Any, list[str], Any]]:
    """(program, arguments that choose the command, parser) of every command of every program."""
    from tools.command_line import main

    for pipeline in PIPELINES.values():
        run = command_of(pipeline)
        for name in [*pipeline.commands, *TOOLS]:
            parser = parser_of(lambda: main([name], pipeline), monkeypatch)  # noqa: B023
            yield from ((run, [name, *words], each) for words, each in _with_commands(parser))
    program = test_py()
    yield program.main, [], program._parser()


def _with_commands(parser: Any) -> Iterator[tuple[list[str], Any]]:
    nested = [each for each in parser._actions if isinstance(each, argparse._SubParsersAction)]
    if not nested:
        yield [], parser
    for each in nested:
        for word, below in each.choices.items():
            yield [word], below


def is_number_flag(action: argparse.Action) -> bool:
    """Whether ``action`` makes numbers of its text."""
    try:
        return action.type is not None and action.type("7") in (7, 7.0)  # type: ignore[operator]
    except argparse.ArgumentTypeError:
        return True  # 7 may be too many


def takes(action: argparse.Action, text: str) -> bool:
    """Whether a flag takes a text as its value."""
    try:
        action.type(text)  # type: ignore[misc, operator]
    except argparse.ArgumentTypeError:
        return False
    return True


def test_numbers_of_flags(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    met = set()
    for run, words, parser in commands(monkeypatch):
        for action in filter(is_number_flag, parser._actions):
            flag = action.option_strings[0]
            name = f"{flag} (stage)" if takes(action, "0") and flag == "--workers" else flag
            assert {text for text in SOME if takes(action, text)} == TAKEN[name], (words, flag)
            met.add(name)
            for text in (*NEVER, *(set(SOME) - TAKEN[name])):
                assert run([*words, f"{flag}={text}"]) == 2, (words, flag, text)
                said = capsys.readouterr()
                assert said.out == "" and said.err.count("\n") == 1, said.err
                assert said.err.startswith("error: ") and len(said.err) < 300
                assert flag in said.err and "must be" in said.err
    assert met == set(TAKEN)


def test_other_complaints_are_one_line_too(capsys: pytest.CaptureFixture[str]) -> None:
    run = command_of(PIPELINES["uss"])
    for words, said in (
        (["watch"], "required: run; see python -m uss watch --help"),
        (["watch", ".", "--prot"], "unrecognized arguments: --prot"),
        (["watch", ".", "a\nb"], "unrecognized arguments: a\\nb"),
        (["data", "split", "."], "see python -m uss data split --help"),
        (["pretrain", "--preset", "none"], "invalid choice"),
    ):
        assert run(words) == 2
        err = capsys.readouterr().err
        assert err.startswith("error: ") and said in err and err.count("\n") == 1


def number_settings(section: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted name, value) of all settings that are numbers or hold numbers."""
    for field in dataclasses.fields(section):
        value, key = getattr(section, field.name), f"{name}.{field.name}".lstrip(".")
        if dataclasses.is_dataclass(value):
            yield from number_settings(value, key)
        elif isinstance(value, (int, float, tuple)) and not isinstance(value, bool):
            yield key, value


@pytest.mark.parametrize("pipeline", PIPELINES.values(), ids=PIPELINES)
def test_numbers_of_settings(pipeline: Pipeline) -> None:
    config = pipeline.config()
    never = (*NEVER, "-Infinity", "1" * 400, "[" * 100_000, '"1"', "null", "{}")
    for key, value in number_settings(config):
        first = value[0] if isinstance(value, tuple) else value
        for text in never if isinstance(first, float) else (*never, _LARGE, "1" * 200):
            if isinstance(value, tuple) and not text:
                continue  # no numbers are a tuple as well
            with pytest.raises(UserError) as said:
                core_config.override(config, [f"{key}={text}"])
            assert key in str(said.value) and len(str(said.value)) < 300
    for key in ("seed", "num_classes"):
        with pytest.raises(UserError, match=f"{key} must be .*, is -1"):
            core_config.override(config, [f"{key}=-1"])
    for seed in (2**32, 2**62, -(2**62)):
        with pytest.raises(UserError, match="seed must be 0 to 4294967295, is"):
            core_config.override(config, [f"seed={seed}"])
