"""The commands that documents tell their readers to type, and what each of them asks of the
project: a parser that takes its flags, files, settings, targets.

A document's shell is kept simple on purpose: assignments, one command a line, ``for`` over words,
comments, a redirected output. What is not understood is an error.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import re
import shlex
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from core.data.imagenet_s import list_images

ROOT = Path(__file__).resolve().parents[2]
# Programs that are started by ``python -m``.
MODULES = ("uss", "wsss", "benchmarks")
# Fences whose content nobody types.
PROSE_FENCES = ("text", "json", "bibtex")
# Its commands run in a copy of the project that its code has changed: tests/test_extending.py.
_EXTENDING = ROOT / "docs" / "extending.md"
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_SPAN = re.compile(r"(?<!`)`([^`]+)`(?!`)")
_LOOP = re.compile(r"^for (\w+) in ([\w ./-]+); do (.+?);? done$")
_ASSIGNMENT = re.compile(r"^[A-Z_]+=")
_PROGRAMS = ("python", ".venv/bin/python", "bash", "make", "time", "mpirun", "sbatch", "conda")
_INLINE = (*_PROGRAMS, "apt-get", "export")
# Nothing of these is expected; should one appear inside a sentence, it is noticed.
_STRANGE = ("pip", "npm", "git", "cd", "curl", "wget", "docker", "rm", "cp", "unzip", "srun")


@dataclass(frozen=True)
class Command:
    """``line`` as a reader would type it, and the variables that earlier lines exported."""

    line: str
    exported: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.line


@dataclass(frozen=True)
class Invocation:
    """A call of one of the project's own programs, after the shell has read it."""

    program: str
    """"uss", "wsss", "benchmarks", "test.py", a script such as "train_1.sh", "make", or "other"."""
    arguments: tuple[str, ...]
    variables: dict[str, str]


@dataclass(frozen=True)
class Places:
    """What the documents' words for folders and files mean where their commands are executed."""

    data: Path
    photos: Path
    run: Path
    result: Path

    def of(self, words: Iterable[str]) -> list[str]:
        """``words`` with the documents' names replaced."""
        meant = {"DATA": self.data, "$DATA": self.data, "PHOTOS": self.photos}
        meant["IMAGE..."] = list_images(self.photos)[0].path
        meant |= {name: self.run for name in ("RUN", "$RUN", "runs/mine", "runs/demo")}
        results = ("result", "/shared/result", "runs/mine/result", "$RUN/result")
        meant |= {name: self.result for name in results}
        for name in ("result.zip", "validation", "validation_unrefined"):
            meant[f"result/{name}"] = self.result / name
        meant["result.zip"] = self.result / "result.zip"
        return [str(meant.get(word, word)) for word in words]


class Unclassified(AssertionError):
    """A command that no rule of this file understands."""


def commanding() -> list[Path]:
    """The documents whose commands are for the project as it is."""
    return [path for path in documents() if path != _EXTENDING]


def documents() -> list[Path]:
    """Every document that is held to the truth."""
    names = ("README.md", "README.zh.md", "benchmarks/README.md", "weights/README.md")
    return [*(ROOT / name for name in names), *sorted((ROOT / "docs").glob("*.md"))]


def fences(text: str) -> list[tuple[str, str]]:
    """(language, content) of each fenced block."""
    return [(match[1], match[2]) for match in _FENCE.finditer(text)]


def without_fences(text: str) -> str:
    """What is left of a document when its fenced blocks are taken out."""
    return _FENCE.sub("", text)


def spans(text: str) -> list[str]:
    """Inline code outside of fences, each on one line."""
    return [" ".join(span.split()) for span in _SPAN.findall(without_fences(text))]


def commands(text: str) -> list[Command]:
    """Every command of a document: the lines of its bash blocks, then those inside sentences."""
    found: list[Command] = []
    for language, content in fences(text):
        if language == "bash":
            found += _of_block(content)
        elif language not in PROSE_FENCES:
            raise Unclassified(f"a fenced block of language {language!r}")
    return found + [Command(span) for span in spans(text) if is_command(span)]


def is_command(span: str) -> bool:
    """Whether inline code is a command, not a name, flag or path."""
    words = span.split()
    while words and _ASSIGNMENT.match(words[0]):
        words = words[1:]
    if len(words) < 2 or words[0].startswith("-"):
        return False
    flagged = any(word.startswith("-") for word in words[1:])
    return words[0] in _INLINE or flagged or words[0] in _STRANGE


def _of_block(content: str) -> Iterator[Command]:
    exported: dict[str, str] = {}
    for line in content.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if not words:
            continue
        command = Command(_bare(line), dict(exported))
        if words[0] == "export":
            exported.update(_assignments(words[1:]))
        yield command


def _bare(line: str) -> str:
    """``line`` without its comment and outer blanks."""
    lexer = shlex.shlex(line, posix=False, punctuation_chars=False)
    lexer.whitespace_split, lexer.commenters = True, "#"
    return " ".join(lexer)


def _assignments(words: list[str]) -> dict[str, str]:
    pairs = [word.partition("=") for word in words]
    if any(not equals for _, equals, _ in pairs):
        raise Unclassified(f"not assignments: {words}")
    return {name: value for name, _, value in pairs}


# Classification --------------------------------------------------------------------------------


def invocations(command: Command) -> list[Invocation]:
    """What a command calls; loops are unrolled, launchers and redirections taken off.

    Raises:
        Unclassified: a command of a kind that documents are not known to use.
    """
    loop = _LOOP.match(command.line)
    if loop:
        name, values, body = loop.groups()
        bodies = [body.replace(f"${name}", value) for value in values.split()]
        return [each for body in bodies for each in invocations(Command(body, command.exported))]
    return [_invocation(shlex.split(command.line), command)]


def _invocation(words: list[str], command: Command) -> Invocation:
    variables = dict(command.exported)
    if words[0] == "time":
        words = words[1:]
    if words[0] == "export":
        return Invocation("export", (), _assignments(words[1:]))
    while words and _ASSIGNMENT.match(words[0]):
        variables.update(_assignments(words[:1]))
        words = words[1:]
    if len(words) > 2 and words[-2] == ">":
        words = words[:-2]
    if words[0] == "mpirun":
        words = _launched(words)
        if not words:
            return Invocation("mpirun", (), variables)
    if words[0] == "sbatch":
        return _wrapped(words, command)
    if words[0] in ("python", ".venv/bin/python"):
        return _python(words[1:], variables, command)
    if words[0] == "bash":
        return Invocation(words[1], tuple(words[2:]), variables)
    if words[0] == "test.py":  # inside a sentence
        return _python(words, variables, command)
    if words[0] in ("make", "conda", "apt-get"):
        return Invocation(words[0], tuple(words[1:]), variables)
    raise Unclassified(f"no rule for the command {command.line!r}")


def _launched(words: list[str]) -> list[str]:
    """What mpirun starts; of its own flags only those with one value are known."""
    rest = words[1:]
    while rest and rest[0].startswith("-"):
        if rest[0] not in ("-np", "--host") or len(rest) < 2:
            raise Unclassified(f"unknown flag of mpirun: {rest[0]}")
        rest = rest[2:]
    return rest


def _wrapped(words: list[str], command: Command) -> Invocation:
    """What an sbatch line runs."""
    known = ("--array=", "--gres=", "--nodes=", "--ntasks=", "--wrap=")
    for word in words[1:]:
        if not word.startswith(known):
            raise Unclassified(f"unknown argument of sbatch: {word}")
    inner = [word.partition("=")[2] for word in words[1:] if word.startswith("--wrap=")]
    if len(inner) != 1:
        raise Unclassified(f"sbatch without one --wrap: {command.line!r}")
    return _invocation(shlex.split(inner[0]), command)


def _python(words: list[str], variables: dict[str, str], command: Command) -> Invocation:
    if words[:1] == ["-m"] and words[1] in MODULES:
        return Invocation(words[1], tuple(words[2:]), variables)
    if words[0] == "test.py" or words[0] == "docs/stages.py":
        return Invocation(words[0], tuple(words[1:]), variables)
    raise Unclassified(f"no rule for the command {command.line!r}")


def is_cheap(arguments: tuple[str, ...]) -> bool:
    """Whether ``python -m uss ARGUMENTS`` needs no network, no training and no kernel."""
    if arguments[-1] == "--help":
        return True
    costly = {"doctor": "--estimate", "report": "--attention", "watch": "--serve"}
    if arguments[0] in costly:
        return costly[arguments[0]] not in arguments
    return arguments[0] in ("data", "evaluate", "submission")


# Parsing with the real parsers -----------------------------------------------------------------


class Parsed(BaseException):
    """Leaves a program as soon as it has read its arguments."""

    def __init__(self, options: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
        super().__init__()
        self.options, self.parser = options, parser


Parse = Callable[[str, list[str]], Parsed]


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> Parse:
    """Function of (program, arguments) that returns what the program's own parser made of them."""
    parse = argparse.ArgumentParser.parse_args

    def stop(
        self: argparse.ArgumentParser, args: Any = None, namespace: Any = None
    ) -> argparse.Namespace:
        raise Parsed(parse(self, args, namespace), self)

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", stop)

    def start(program: str, arguments: list[str]) -> Parsed:
        try:
            main_of(program)(arguments)
        except Parsed as found:
            return found
        raise AssertionError(f"{program} {arguments} reads no arguments")

    return start


def main_of(program: str) -> Callable[[list[str]], int]:
    """The entry point of one of :data:`MODULES` or of "test.py"."""
    if program == "test.py":
        spec = importlib.util.spec_from_file_location("test_py_of_documents", ROOT / "test.py")
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module.main
    return importlib.import_module(f"{program}.__main__").main


def stages_of(script: str) -> list[str]:
    """The stages that a script of the project runs, in order."""
    text = (ROOT / script).read_text()
    if "pass_steps.sh" in text:
        text = (ROOT / "scripts" / "pass_steps.sh").read_text()
    return re.findall(r"^uss_(?:parallel|single) (\S+)", text, re.MULTILINE)


def option_strings(parser: argparse.ArgumentParser) -> set[str]:
    """Every flag of a parser and of its sub-commands."""
    flags: set[str] = set()
    for action in parser._actions:
        flags.update(action.option_strings)
        if isinstance(action, argparse._SubParsersAction):
            for each in action.choices.values():
                flags |= option_strings(each)
    return flags
