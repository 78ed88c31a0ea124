"""What the documents say beside commands: settings, flags, files and presets exist, links lead
somewhere, both READMEs say the same, and the figure is its script's.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import re
from pathlib import Path

import pytest

from core import config as core_config
from tests.helpers.document_commands import (
    ROOT,
    Parse,
    commands,
    documents,
    option_strings,
    parsed,
    spans,
    without_fences,
)
from tools.command_line import TOOLS
from uss import pipeline as uss_pipeline
from wsss import pipeline as wsss_pipeline

__all__ = ["parsed"]

NAMES = [str(path.relative_to(ROOT)) for path in documents()]
PIPELINES = (uss_pipeline.PIPELINE, wsss_pipeline.PIPELINE)
# Section of a configuration -> the configuration, with its defaults.
SECTIONS = {
    each.name: pipeline.preset(pipeline.presets[0], None)
    for pipeline in reversed(PIPELINES)
    for each in dataclasses.fields(pipeline.config)
    if dataclasses.is_dataclass(each.default)
}
ENGLISH, CHINESE = ROOT / "README.md", ROOT / "README.zh.md"


# Names inside sentences --------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_settings_and_files_in_the_text_exist(name: str) -> None:
    default = PIPELINES[0].preset("luss50", None)
    for span in spans((ROOT / name).read_text(encoding="utf-8")):
        setting = re.match(r"^(?:--set )?(\w+\.\w+|num_classes)(=\S+)?$", span)
        if setting and setting[1].split(".")[0] in (*SECTIONS, "num_classes"):
            if not setting[1].endswith(".py"):
                value = plain = SECTIONS.get(setting[1].split(".")[0], default)
                for part in setting[1].split("."):
                    assert hasattr(value, part), f"{name}: no setting {span}"
                    value = getattr(value, part)
                if setting[2] and not setting[2].endswith("..."):
                    core_config.override(plain, [setting[1] + setting[2]])


# Those of the project's own folders; the last two are no documents to follow, but name things too.
FOLDERS = "core|models|sam|refine|tools|uss|wsss|scripts|docs|tests|benchmarks"
NAMING = [*NAMES, "CONTRIBUTING.md", "CHANGELOG.md"]


@pytest.mark.parametrize("name", NAMING)
def test_files_and_modules_in_the_text_exist(name: str) -> None:
    for span in spans((ROOT / name).read_text(encoding="utf-8")):
        inside = re.match(rf"^({FOLDERS})/[\w./-]+$", span)
        if inside or re.match(r"^[\w.-]+\.(sh|py|md|yaml|toml)$", span):
            beside = (ROOT / name).parent / span
            assert (ROOT / span).exists() or beside.exists(), f"{name}: no file {span}"
        if re.match(r"^(core|models|sam|refine|tools|uss|wsss)(\.\w+)+$", span):
            module, _, last = span.rpartition(".")
            path = ROOT / span.replace(".", "/")
            if not path.with_suffix(".py").is_file() and not path.is_dir():
                assert hasattr(importlib.import_module(module), last), f"{name}: no module {span}"


def every_flag(parsed: Parse) -> set[str]:
    """The flags of all programs of the project."""
    needed = {"evaluate": ["--data", "x", "--predictions", "x"], "watch": ["x"], "report": ["x"]}
    needed |= {"submission": ["check", "x", "--data_path", "x", "--mode", "x"]}
    needed |= {"data": ["check", "x"], "visualize": ["x"]}
    needed |= {"summary": ["--data", "x", "--run", "x", "--result", "x"]}
    flags = option_strings(parsed("test.py", []).parser)
    flags |= option_strings(parsed("benchmarks", ["sam"]).parser)
    for pipeline in PIPELINES:
        for command in (*pipeline.commands, *TOOLS):
            arguments = [command, *needed.get(command, [])]
            flags |= option_strings(parsed(pipeline.name, arguments).parser)
    return flags


def test_flags_in_the_text_exist(parsed: Parse) -> None:
    flags = every_flag(parsed)
    for path in documents():
        for span in spans(path.read_text(encoding="utf-8")):
            if span.startswith("-"):
                for word in span.split():
                    if word.startswith("-"):
                        assert word in flags, f"{path.name}: no program takes {word} ({span})"


def test_presets_of_the_tables_are_all_presets() -> None:
    for path in (ENGLISH, CHINESE, ROOT / "docs" / "configuration.md"):
        text = path.read_text(encoding="utf-8")
        rows = re.findall(r"^\| ((?:`\w+`(?:, )?)+) \|", text, re.MULTILINE)
        named = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
        expected = {"luss50", "luss300", "luss919", "pass50", "pass300", "pass919"}
        assert expected | {"small", "demo"} <= named, path.name


# Links -------------------------------------------------------------------------------------------


def anchors(path: Path) -> set[str]:
    """What a link may name behind ``#``."""
    titles = re.findall(
        r"^#+ (.+)$", without_fences(path.read_text(encoding="utf-8")), re.MULTILINE
    )
    kept = [re.sub(r"[^\w\- ]", "", title.replace("`", "").lower()) for title in titles]
    return {title.strip().replace(" ", "-") for title in kept}


@pytest.mark.parametrize("name", NAMES)
def test_links_lead_somewhere(name: str) -> None:
    path = ROOT / name
    text = without_fences(path.read_text(encoding="utf-8"))
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith("https://"):
            continue
        place, _, anchor = target.partition("#")
        file = (path.parent / place).resolve() if place else path
        assert file.exists(), f"{name}: {target}"
        assert file == ROOT or ROOT in file.parents, f"{name}: {target} lies outside"
        if anchor:
            assert anchor in anchors(file), f"{name}: {target}"


def test_every_page_is_linked_from_both_readmes() -> None:
    for readme in (ENGLISH, CHINESE):
        text = readme.read_text(encoding="utf-8")
        for page in sorted((ROOT / "docs").glob("*.md")):
            assert f"(docs/{page.name}" in text, f"{readme.name} does not link {page.name}"
    assert "(README.zh.md)" in ENGLISH.read_text(encoding="utf-8")
    assert "(README.md)" in CHINESE.read_text(encoding="utf-8")


# Two languages -----------------------------------------------------------------------------------


def test_both_readmes_have_the_same_commands() -> None:
    blocks, sentences = [], []
    for readme in (ENGLISH, CHINESE):
        text = readme.read_text(encoding="utf-8")
        found = [command.line for command in commands(text)]
        inline = [span for span in spans(text) if span in found]
        blocks.append(found[: len(found) - len(inline)])
        sentences.append(sorted(set(inline)))
    assert len(blocks[0]) > 10 and len(sentences[0]) > 10
    assert blocks[0] == blocks[1]
    assert sentences[0] == sentences[1]


def test_both_readmes_have_the_same_figures() -> None:
    """Every number with a decimal point or a percent sign, as often in one as in the other."""
    figures = []
    for readme in (ENGLISH, CHINESE):
        text = without_fences(readme.read_text(encoding="utf-8"))
        figures.append(sorted(re.findall(r"\d+\.\d+(?: ?%)?|\d+ ?%", text)))
    assert figures[0] == figures[1]


def test_the_figure_of_the_stages_is_what_its_script_draws() -> None:
    spec = importlib.util.spec_from_file_location("stages_figure", ROOT / "docs" / "stages.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.FILE.read_text(encoding="utf-8") == module.drawing()
