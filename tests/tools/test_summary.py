"""The summary of a run: times added up by stage, scores, pictures of the validation split."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from core.data.imagenet_s import list_images, mask_path, split_folder
from core.data.label_maps import load_label, save_label
from core.errors import UserError
from core.pipeline.times import stage_seconds
from core.scoring.matching import write_match
from core.synthetic import imagenet_s
from tools import summary
from tools.evaluate.folder import evaluate
from tools.submission.results import MATCH, keep_evaluation
from uss.pipeline import PIPELINE


def test_times_of_a_resumed_stage_are_added_up(tmp_path: Path) -> None:
    times = tmp_path / "times.jsonl"
    times.write_text(
        '{"stage": "a", "seconds": 1.5}\n{"stage": "b", "seconds": 2}\n'
        '{"stage": "a", "seconds": 1}\n'
    )
    assert stage_seconds(times) == {"a": 2.5, "b": 2.0}


@pytest.mark.parametrize("content", ["not json\n", '{"stage": "a"}\n', "[1]\n"])
def test_broken_times_are_one_line(content: str, tmp_path: Path) -> None:
    times = tmp_path / "times.jsonl"
    times.write_text(content)
    with pytest.raises(UserError, match="expected the times of a run"):
        stage_seconds(times)


def test_scores_times_and_sheet(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = imagenet_s.make_dataset(tmp_path / "data", classes=2, train=1, validation=2, test=1)
    result, run = tmp_path / "result", tmp_path / "run"
    for item in list_images(split_folder(data, "validation")):
        truth = load_label(mask_path(data, "validation", item.key))
        for folder, label in (("validation", truth), ("validation_unrefined", 0 * truth)):
            save_label(result / folder / f"{item.key}.png", label)
    write_match(result / MATCH, {0: 0, 1: 1, 2: 2})
    results = {
        "before_refinement": evaluate(result / "validation_unrefined", data, "validation", 2),
        "after_refinement": evaluate(result / "validation", data, "validation", 2),
    }
    keep_evaluation(result, "validation", "0" * 64, results)
    run.mkdir()
    (run / "times.jsonl").write_text('{"stage": "pretrain resnet50", "seconds": 3}\n')
    arguments = ["--data", str(data), "--run", str(run), "--result", str(result)]
    assert summary.main(arguments, PIPELINE) == 0
    printed = capsys.readouterr().out
    assert "after refinement: 100.00 %" in printed
    assert "pretrain resnet50" in printed
    pixels = np.asarray(Image.open(result / "sheet.png"))
    assert pixels.ndim == 3 and pixels.std() > 0
