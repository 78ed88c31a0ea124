"""The house rules that can be checked: who may import whom, who starts Jittor, what scripts say."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from core.version import VERSION

ROOT = Path(__file__).resolve().parent.parent
PIPELINES = tuple(sorted(path.parent.name for path in ROOT.glob("*/pipeline.py")))
PACKAGES = ("core", "models", "sam", "refine", "tools", *PIPELINES, "benchmarks")
# Which packages of ours a package may import; `test` is test.py.
MAY_IMPORT = {
    "core": {"core"},
    "models": {"models", "core"},
    "sam": {"sam", "core"},
    "refine": {"refine", "sam", "core"},
    "tools": {"tools", "refine", "sam", "core"},
    # Never each other.
    **{name: {name, "tools", "refine", "sam", "models", "core"} for name in PIPELINES},
    "benchmarks": {*PACKAGES},
    "test": {"uss", "tools", "core"},
}
# Used where nobody wants to wait for Jittor: command line, data threads, metrics, label tools.
NUMPY_ONLY = {
    "core.checkpoints.files",
    "core.checkpoints.torch_reader",
    "core.config",
    "core.data.label_maps",
    "core.data.loader",
    "core.distributed",
    "core.pictures",
    "core.pipeline.stage",
    "core.scoring.matching",
    "core.scoring.metrics",
    "core.work.child",
    "core.work.ledger",
    "core.work.mask_store",
    "core.work.sharing",
    "core.work.worklist",
    "refine.one_image",
    "refine.superpixels",
    "refine.vote",
    "sam.masks",
    "tools.evaluate.compare",
    "tools.evaluate.folder",
    "tools.submission.archive",
    "uss.__main__",
    "uss.config",
    "uss.paths",
    "uss.pipeline",
    "uss.predict_refined",
    "uss.presets",
    "wsss.__main__",
    "wsss.pipeline",
}


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


SOURCES = [ROOT / "test.py"] + sorted(
    path for package in PACKAGES for path in (ROOT / package).rglob("*.py")
)
TREES = {name_of(path): ast.parse(path.read_text(encoding="utf-8")) for path in SOURCES}


def imports(tree: ast.AST, inside_functions: bool) -> Iterator[tuple[str, str]]:
    """(module, name) of each import; name is "" for a plain ``import module``."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            yield from ((module, alias.name) for alias in node.names)
        elif inside_functions or not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield from imports(node, inside_functions)


def all_imports(module: str) -> list[tuple[str, str]]:
    return list(imports(TREES[module], inside_functions=True))


@pytest.mark.parametrize("module", sorted(TREES))
def test_arrows_point_one_way(module: str) -> None:
    package = module.partition(".")[0]
    for imported, _name in all_imports(module):
        assert not imported.startswith("."), f"{module} imports {imported} relatively"
        target = imported.partition(".")[0]
        if target in (*PACKAGES, "test", "tests"):
            assert target in MAY_IMPORT[package], f"{module} imports {imported}"


def room(module: str) -> str:
    """The folder of a module: "core.work", "tools.report", "sam"."""
    parts = module.split(".")
    return ".".join(parts[:2]) if parts[0] in ("core", "tools") and len(parts) > 2 else parts[0]


@pytest.mark.parametrize("of", [str, room], ids=["modules", "rooms"])
def test_imports_go_round_in_no_circle(of: Callable[[str], str]) -> None:
    """Of what is imported at the top of modules; rooms within core or tools count as well."""
    arrows: dict[str, set[str]] = {}
    for module, tree in TREES.items():
        for imported, name in imports(tree, inside_functions=False):
            target = f"{imported}.{name}" if f"{imported}.{name}" in TREES else imported
            if target in TREES and of(target) != of(module):
                arrows.setdefault(of(module), set()).add(of(target))
    if of is room:  # what lies in core's and tools' own folder serves and uses their rooms
        arrows = {a: b - {"core", "tools"} for a, b in arrows.items() if a not in ("core", "tools")}
    while arrows:
        ends = {name for name in arrows if not arrows[name] & arrows.keys()}
        assert ends, f"a circle among {sorted(arrows)}"
        arrows = {name: to for name, to in arrows.items() if name not in ends}


def test_only_the_runtime_imports_jittor() -> None:
    users = {
        module
        for module in TREES
        for imported, _name in all_imports(module)
        if imported.partition(".")[0] in ("jittor", "jittor_utils", "jittor_core")
    }
    assert users == {"core.runtime"}
    for path in SOURCES:
        assert not re.search(r"(__import__|import_module)\(\s*[\"']jittor", path.read_text()), path


def starters() -> set[str]:
    """Modules whose import starts Jittor, told from their imports outside of functions."""
    direct: dict[str, set[tuple[str, str]]] = {
        module: set(imports(tree, inside_functions=False)) for module, tree in TREES.items()
    }
    found = {
        module
        for module, names in direct.items()
        if names & {("core.runtime", "jt"), ("core.runtime", "nn")}
    }
    while True:
        more = {
            module
            for module, names in direct.items()
            if any(imported in found or f"{imported}.{name}" in found for imported, name in names)
            or names & {("sam", name) for name in LAZY_SAM}
        }
        if more <= found:
            return found
        found |= more


# The other side of a benchmark: not to be imported where PyTorch is not installed.
NEEDS_TORCH = {"benchmarks.torch_pass"}
LAZY_SAM = ("SamPredictor", "SamAutomaticMaskGenerator", "sam_model_registry")


def test_numpy_only_modules_do_not_start_jittor() -> None:
    """Each is imported in a fresh process, where Jittor's start would show."""
    quiet = sorted(set(TREES) - starters() - NEEDS_TORCH)
    assert set(quiet) >= NUMPY_ONLY, f"start Jittor: {sorted(NUMPY_ONLY - set(quiet))}"
    code = (
        "import importlib, sys\n"
        "for name in sys.argv[1:]:\n"
        "    importlib.import_module(name)\n"
        "    assert 'jittor' not in sys.modules, name\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *quiet], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("package", [name_of(p) for p in SOURCES if p.name == "__init__.py"])
def test_package_files_hold_a_docstring_only(package: str) -> None:
    body = TREES[package].body
    assert ast.get_docstring(TREES[package]), f"{package} has no docstring"
    if package != "sam":  # resolves the official API's names on first use
        assert len(body) == 1


def contents(folder: Path) -> Iterator[str]:
    """Names of a package's modules and sub-packages, and of its other folders with a "/"."""
    for entry in folder.iterdir():
        if entry.suffix == ".py" and entry.stem != "__init__":
            yield entry.stem
        elif entry.is_dir() and any(entry.glob("*.py")):
            yield entry.name
        elif entry.name != "__pycache__" and entry.is_dir():
            # Where a folder has moved away, its compiled files may have stayed.
            yield from {f"{entry.name}/" for path in entry.iterdir() if path.is_file()}


FOLDERS = sorted({path.parent for path in SOURCES if path.parent != ROOT})


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_docstring_of_a_package_is_its_map(folder: Path) -> None:
    """A line for each module, sub-package and other folder, and none for what is not there."""
    package = ".".join(folder.relative_to(ROOT).parts)
    assert package in TREES, f"{package} has no __init__.py"
    text = ast.get_docstring(TREES[package]) or ""
    head, _, lines = text.partition("\n\n")
    assert head.endswith("."), f"{package} does not say what the room is for"
    rows = [re.fullmatch(r"(\w+/?) {2,}(\S.*)", line) for line in lines.splitlines()]
    named = [row[1] for row in rows if row is not None]
    assert len(named) == len(rows), f"{package}: a line of the map is not NAME  WHAT IT IS"
    assert sorted(named) == sorted(contents(folder))


def test_sam_offers_the_official_names() -> None:
    code = (
        "import sys, sam\n"
        "assert 'jittor' not in sys.modules\n"
        f"print([getattr(sam, name) is not None for name in {LAZY_SAM}])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.stdout.strip() == "[True, True, True]", done.stderr


# The homes of path rules: a folder of a run may be called like the stage that fills it.
# Commands that are also what people call the things themselves.
ORDINARY_WORDS = {"masks", "cluster"}
PATH_RULES = ("core.pipeline.folders", *(f"{name}.paths" for name in PIPELINES))


def spelt(pipeline: str) -> set[str]:
    """The names of a pipeline's stages, as they could be spelt in a text."""
    table = importlib.import_module(f"{pipeline}.pipeline").PIPELINE
    names = {stage.command for stage in table.stages}
    spellings = {name.replace("-", mark) for name in names for mark in "- _"}
    return spellings - ORDINARY_WORDS


def plain_strings(tree: ast.AST) -> Iterator[ast.Constant]:
    """String constants that are no docstring and no key of a JSON object or of settings."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            continue
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            if isinstance(tree, ast.Dict) and node in tree.keys:
                continue
            if isinstance(tree, ast.Subscript) or (isinstance(tree, ast.Compare)):
                continue  # record["masks"], "masks" in record
            if isinstance(tree, ast.Call) and getattr(tree.func, "attr", "") == "get":
                continue
            yield node
        else:
            yield from plain_strings(node)


@pytest.mark.parametrize("module", sorted(TREES))
def test_no_stage_is_named_outside_of_its_table(module: str) -> None:
    """The list of stages stands once: in pipeline.py."""
    if module.endswith(".pipeline") or module in PATH_RULES or module.startswith("benchmarks"):
        return
    names = set().union(*map(spelt, PIPELINES))
    found = [f"{n.lineno}: {n.value!r}" for n in plain_strings(TREES[module]) if n.value in names]
    assert not found, f"{module} names a stage in line {', '.join(found)}; ask its table"


@pytest.mark.parametrize("module", sorted(TREES))
def test_no_bare_except(module: str) -> None:
    for node in ast.walk(TREES[module]):
        if isinstance(node, ast.ExceptHandler):
            assert node.type is not None, f"{module}, line {node.lineno}"


@pytest.mark.parametrize("module", sorted(TREES))
def test_annotations_are_not_evaluated(module: str) -> None:
    """So that a signature may name what is imported for type checks only, or defined later."""
    future = ("__future__", "annotations")
    assert len(TREES[module].body) == 1 or future in all_imports(module)


def pins(lines: list[str]) -> dict[str, str]:
    found = {}
    for line in lines:
        match = re.fullmatch(r"([A-Za-z0-9_.-]+)==([A-Za-z0-9_.]+)", line)
        assert match, f"not pinned exactly: {line!r}"
        found[match.group(1)] = match.group(2)
    return found


def named_by(*files: str) -> set[str]:
    """The packages that lists of names ask for."""
    lines = [line for file in files for line in (ROOT / file).read_text().splitlines()]
    return {
        re.split(r"[=<>]", line)[0] for line in lines if line and not line.startswith(("#", "-r "))
    }


def locked(python: str, group: str = "") -> dict[str, str]:
    """The pins of a lock; each must have a hash."""
    text = (ROOT / "requirements" / f"lock-py{python.replace('.', '')}{group}.txt").read_text()
    entries = re.sub(r"\\\n", "", re.sub(r"^#.*\n", "", text, flags=re.MULTILINE)).splitlines()
    assert all(" --hash=sha256:" in entry for entry in entries)
    return pins([entry.split()[0] for entry in entries])


RUN = ("requirements.txt", "requirements/convert.txt")
TEST = (*RUN, "requirements/test.txt")
PYTHONS = ("3.10", "3.11", "3.12")


@pytest.mark.parametrize("python", PYTHONS)
def test_locks_have_what_the_lists_name(python: str) -> None:
    run, test, judge = (locked(python, group) for group in ("", "-test", "-judge"))
    assert named_by(*RUN) <= run.keys() and named_by(*TEST) <= test.keys()
    assert named_by(*TEST, "requirements/judge.txt") <= judge.keys()
    assert run.items() <= test.items() <= judge.items()
    assert run["numpy"].startswith("1.") and not any(n.startswith("nvidia") for n in judge)


def test_lists_and_locks_name_no_registry() -> None:
    for path in (ROOT / "requirements").glob("*.txt"):
        assert not re.search(r"https?:|file:|-index|find-links", path.read_text()), path.name


def test_version_is_stated_alike() -> None:
    citation = (ROOT / "CITATION.cff").read_text()
    assert f"\nversion: {VERSION}\n" in citation


def test_conda_environment_equals_the_lock() -> None:
    conda = (ROOT / "requirement.yaml").read_text().splitlines()
    start = next(number for number, line in enumerate(conda) if line.strip() == "- pip:")
    block = [line.strip() for line in conda[start + 1 :]]
    pinned = pins([line[2:] for line in block if line.startswith("- ")])
    base = [line.strip() for line in conda[:start]]
    python = next(line for line in base if line.startswith("- python="))
    lock = locked(python.partition("=")[2])
    assert pinned == {name: lock[name] for name in named_by(*RUN)}
    # Jittor calls g++, a name that only this package gives its compiler.
    assert any(line.startswith("- gxx=") for line in base)


SCRIPTS = [
    *sorted(ROOT.glob("*.sh")),
    *sorted((ROOT / "scripts").glob("*.sh")),
    ROOT / ".ci" / "run",
]


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_scripts_stop_at_the_first_error(path: Path) -> None:
    lines = path.read_text().splitlines()
    commands = [line for line in lines if line.strip() and not line.startswith("#")]
    if lines[0].startswith("#!"):
        assert commands[0] == "set -euo pipefail"
        assert path.stat().st_mode & 0o111, f"{path.name} is not executable"
    else:  # only sourced, by scripts that set it
        sourced = f"scripts/{path.name}"
        assert any(sourced in other.read_text() for other in SCRIPTS if other != path)
    assert not any(re.match(r"\s*until\b", line) for line in lines), "an unbounded retry"
    done = subprocess.run(["bash", "-n", str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_five_commands_are_there() -> None:
    names = {path.name for path in ROOT.iterdir()}
    assert names >= {"train_1.sh", "train_2.sh", "train_3.sh", "train_4.sh", "test.py"}
