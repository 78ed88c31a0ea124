"""Keep a small run folder of the present code, which later code must be able to continue.

``python -m tests.kept_runs.make NAME`` trains the smallest run that goes through every stage and
writes ``tests/kept_runs/NAME.tar.xz``; ``test_kept_runs.py`` continues every archive that is there.
An archive is never made again: one is added when what is recorded has changed. It holds ::

    data/            eight training images, three of validation with masks, three of test
    run/             all stages finished, up to the segmenter
    result/          what test.py left of the test split
    stopped/         a run that was killed in the pretraining, a step before its end
    commands.json    the arguments of the commands, with {root} for the folder of all this

Weights are made periodic as soon as a stage has written them, so that 45 MB pack into 20 kB: what
follows is trained from, and records the checksums of, what is kept.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from core.checkpoints.files import LATEST, PREVIOUS, write_pickle
from core.checkpoints.torch_reader import read_checkpoint
from tests.conftest import ROOT
from tests.helpers.quarter_masks import write_photographs
from uss.paths import RunFolder

HERE = Path(__file__).parent
_PERIOD = 64
_SETTINGS = {
    "num_classes": 2,
    "heads.hidden_mlp": 16,
    "heads.feat_dim": 8,
    "heads.prototypes": 6,
    "pretrain.epochs": 2,
    "pretrain.batch_size": 4,
    "pretrain.crop_sizes": "64,32",
    "pretrain.crop_counts": "2,1",
    "pretrain.queue_length": 8,
    "pretrain.queue_start_epoch": 1,
    "pretrain.freeze_prototypes_steps": 3,
    "pixel_attention.epochs": 1,
    "pixel_attention.batch_size": 4,
    "pixel_attention.crop_size": 64,
    "pixel_attention.queue_length": 8,
    "cluster.batch_size": 4,
    "cluster.resize": 40,
    "cluster.crop": 32,
    "pseudo_labels.resize": 64,
    "masks.source": "superpixels",
    "finetune.epochs": 1,
    "finetune.batch_size": 4,
    "finetune.crop_size": 64,
    "finetune.head_width": 16,
    "predict.resize": 64,
}
_TRAINING = ("pretrain", "pixel-attention", "finetune")
_STAGES = ("pretrain", "pixel-attention", "cluster", "pseudo-labels", "finetune")


def main(name: str) -> None:
    """Make ``NAME.tar.xz``; an archive that is there stays."""
    target = HERE / f"{name}.tar.xz"
    if target.exists():
        sys.exit(f"error: {target} is there already; an archive is never made again")
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        commands = _commands()
        for split, count in (("train", 8), ("validation", 3), ("test", 3)):
            write_photographs(root / "data", split, count, masks=split == "validation")
        run = RunFolder(root / "run")
        folders = {
            "pretrain": run.pretrain("resnet18"),
            "pixel-attention": run.pixel_attention("resnet18"),
            "finetune": run.segmenter,
        }
        for command in [*_STAGES, "test.py"]:
            _call(root, commands[command])
            if command == "pretrain":
                _keep_stopped(folders[command], RunFolder(root / "stopped").pretrain("resnet18"))
            if command in folders:
                (folders[command] / PREVIOUS).unlink(missing_ok=True)
                _make_periodic(folders[command] / LATEST)
        (root / "commands.json").write_text(json.dumps(commands, indent=2) + "\n")
        with tarfile.open(target, "w:xz", preset=9) as archive:
            for path in sorted(root.iterdir()):
                archive.add(path, path.name, filter=_anonymous)


def _commands() -> dict[str, list[str]]:
    """Stage -> arguments of the interpreter."""
    settings = [part for key, value in _SETTINGS.items() for part in ("--set", f"{key}={value}")]
    shared = ["--preset", "demo", "--arch", "resnet18", "--data", "{root}/data", "--workers", "0"]
    often = ["--log-steps", "1", "--checkpoint-minutes", "0"]

    def stage(command: str, run: str) -> list[str]:
        options = often if command in _TRAINING else []
        return ["-m", "uss", command, *shared, "--run", f"{{root}}/{run}", *options, *settings]

    refine = ["test.py", "--run", "{root}/run", "--data_path", "{root}/data", "--mode", "test"]
    refine += ["--dump_path", "{root}/result", "--masks", "superpixels"]
    return {
        **{command: stage(command, "run") for command in _STAGES},
        "test.py": refine,
        "stopped": stage("pretrain", "stopped"),
    }


def _call(root: Path, arguments: list[str]) -> None:
    filled = [argument.replace("{root}", str(root)) for argument in arguments]
    subprocess.run([sys.executable, *filled], cwd=ROOT, check=True)


def _keep_stopped(finished: Path, stopped: Path) -> None:
    """The folder of a training that was killed after its last step and before its checkpoint."""
    shutil.copytree(finished, stopped)
    (stopped / PREVIOUS).replace(stopped / LATEST)
    _make_periodic(stopped / LATEST)


def _make_periodic(path: Path) -> None:
    write_pickle(path, _periodic(dict(read_checkpoint(path))))


def _periodic(value: Any) -> Any:
    """Nested values with each long array of fractions made of copies of its first numbers."""
    if isinstance(value, dict):
        return {key: _periodic(entry) for key, entry in value.items()}
    if isinstance(value, np.ndarray) and value.dtype.kind == "f" and value.size > _PERIOD:
        return np.resize(value.ravel()[:_PERIOD], value.shape).astype(value.dtype)
    return value


def _anonymous(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = ""
    return entry


if __name__ == "__main__":
    main(sys.argv[1])
