"""The examples in the docstrings of public things give the output that stands there."""

from __future__ import annotations

import doctest
import importlib
import sys
from pathlib import Path
from types import ModuleType

import pytest

# Public thing -> its module. The first two start Jittor, with a small network of random weights.
EXAMPLES = {
    "SamPredictor": "sam.predictor",
    "SamAutomaticMaskGenerator": "sam.mask_generator",
    "Worklist": "core.work.worklist",
    "evaluate": "tools.evaluate.folder",
    "override": "core.config",
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_example_gives_its_output(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    module = importlib.import_module(EXAMPLES[name])
    # An example runs as a reader would paste it: what it uses, it imports.
    pasted = ModuleType("pasted")
    monkeypatch.setitem(sys.modules, "pasted", pasted)
    finder = doctest.DocTestFinder(recurse=False)
    tests = finder.find(getattr(module, name), name, module, globs=vars(pasted))
    assert [len(test.examples) > 2 for test in tests] == [True], f"{name} has no example"
    runner = doctest.DocTestRunner(optionflags=doctest.REPORT_NDIFF)
    assert runner.run(tests[0]).failed == 0, "the differences are printed above"
