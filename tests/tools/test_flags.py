"""Each flag has one spelling everywhere, and every command takes the ones that it took before."""

from __future__ import annotations

import argparse
import importlib.util
from pathlib import Path

import pytest

from core.errors import UserError
from tests.conftest import ROOT
from tools import flags, summary, visualize
from tools.command_line import stage_parser
from tools.doctor import command as doctor
from tools.evaluate import command as evaluate
from tools.report import command as report
from tools.submission import command as submission
from tools.watch import command as watch
from uss.pipeline import PIPELINE

OLD = {
    "pretrain": "--shallow 3 2 --weights 1 1 1",
    "pixel-attention": "-t 0.3 --pretrained a",
    "cluster": "--threshold 0.3 --pretrained a",
    "masks": "--check --split test",
    "pseudo-labels": "-t 0.3 --centroids a --mode train --pretrained a",
    "finetune": "--pretrained a --checkpoint-minutes 1 --log-steps 2 --sink tensorboard",
    "predict": "--mode test --match_file a --pretrained a",
    "distance-matching": "--mode validation --pretrained a",
}
COMMON = "--preset demo --arch resnet18 --set seed=1 --data d --run r --workers 0"


@pytest.mark.parametrize("command", sorted(OLD))
def test_stages_take_their_old_flags(command: str) -> None:
    parser = stage_parser(PIPELINE, PIPELINE.stage(command))
    options = parser.parse_args([*COMMON.split(), *OLD[command].split()])
    assert (options.data, options.run) == (Path("d"), Path("r"))
    assert set(OLD) == set(PIPELINE.commands)


def test_tools_take_their_old_flags() -> None:
    words = "--data d --predictions p --mode test -c 3 --match_file m --write-match w --output o"
    options = evaluate.build_parser(PIPELINE).parse_args(words.split())
    assert (options.split, options.match_file, options.num_classes) == ("test", Path("m"), 3)
    words = "check a.zip --data_path d --mode test --num-classes 3"
    options = submission.build_parser(PIPELINE).parse_args(words.split())
    assert (options.data, options.split, options.num_classes) == (Path("d"), "test", 3)
    words = "run --data d --result r --mode test --images 3 --attention -c 2 --output o"
    options = report._parser(PIPELINE).parse_args(words.split())
    assert (options.split, options.maps, options.result) == ("test", "attention", Path("r"))
    options = watch._parser(PIPELINE).parse_args("run --data d --result r --once".split())
    assert options.result == Path("r")
    words = "a.png --show attention --run r --preset demo --arch resnet50 --match-file m --data d"
    assert visualize._parser(PIPELINE).parse_args(words.split()).arch == "resnet50"
    words = "--preset demo --data d --run r --result x --json --estimate --seconds 3 --set seed=1"
    assert doctor._parser(PIPELINE).parse_args(words.split()).result == Path("x")
    assert callable(summary.main)


def test_test_py_takes_both_spellings() -> None:
    spec = importlib.util.spec_from_file_location("test_py", ROOT / "test.py")
    assert spec is not None and spec.loader is not None
    program = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(program)
    parser: argparse.ArgumentParser = program._parser()
    rest = (
        "--pretrained a --pretrained_sam b -a resnet50 -c 3 --max_res 9 --run r --preset demo "
        "--masks sam --set seed=1 --allow-missing --keep-stale --image-timeout 3 --max-pixels 9 "
        "--unmatched --method m --train_data t --train_scheme s --link l --description d"
    )
    old = f"--mode test --data_path d --dump_path r --match_file m {rest}"
    new = f"--split test --data d --result r --match-file m {rest}"
    assert parser.parse_args(old.split()) == parser.parse_args(new.split())


def test_a_spelling_stands_in_one_place() -> None:
    """Sources name these flags by their constants."""
    spelt = {
        spelling
        for group in (flags.DATA, flags.SPLIT, flags.RESULT, flags.MATCH_FILE)
        for spelling in group
    } - {"--mode"}  # of pseudo-labels it is something else
    for folder in ("tools", "uss", "wsss"):
        for path in (ROOT / folder).rglob("*.py"):
            if path.name != "flags.py":
                text = path.read_text(encoding="utf-8")
                assert not [flag for flag in spelt if f'("{flag}"' in text], path


@pytest.mark.parametrize("text", ["inf", "nan", "0", "-3", "1e300", "soon"])
def test_the_time_of_an_image_is_finite_and_positive(text: str) -> None:
    for name in ("masks", "pseudo-labels", "predict"):
        parser = stage_parser(PIPELINE, PIPELINE.stage(name))
        assert parser.parse_args(["--image-timeout", "90"]).image_timeout_s == 90
        with pytest.raises(UserError, match="--image-timeout must be .*positive"):
            parser.parse_args(["--image-timeout", text])
