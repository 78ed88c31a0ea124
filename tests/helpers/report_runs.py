"""A finished run in small, as training and test.py leave it, with labels made by hand."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from core.config import to_dict
from core.data.imagenet_s import ImageItem, list_images, mask_path, split_folder
from core.data.images import load_rgb
from core.data.label_maps import IGNORE, load_label, png_of_label
from core.files import sha256_of, write_json
from core.synthetic import imagenet_s
from core.work.mask_store import ImageIdentity, MaskStore
from core.work.worklist import Made, Worklist
from refine.one_image import PARTS
from refine.settings import Predict, Refine
from tools.evaluate.folder import evaluate
from tools.submission import results
from uss.paths import RunFolder
from uss.presets import preset

CLASSES = 3
WEIGHTS = b"weights of a segmenter"
MASKS = {"weights": {"model": "vit_t", "sha256": "ab" * 32}, "generator": {"points_per_side": 4}}


@dataclass(frozen=True)
class SmallRun:
    """Where it lies."""

    root: Path
    data: Path
    result: Path

    @property
    def folder(self) -> RunFolder:
        """Its path rules."""
        return RunFolder(self.root)


def make_run(folder: Path, split: str = "validation", images: int = 2) -> SmallRun:
    """A run below ``folder`` with data, logs, threshold, masks, label maps and scores.

    Cluster ids are class ids turned by one. Refined label maps equal the truth but for the first
    image of each class, where they are empty; unrefined ones lack the left half of each object.
    """
    root, result = folder / "run", folder / "run" / "result"
    counts = {"validation": 1, "test": 1, split: images}
    data = imagenet_s.make_dataset(root / "data", classes=CLASSES, train=1, **counts)
    run = SmallRun(root, data, result)
    write_training(run.folder)
    items = list_images(split_folder(data, split))
    sha256 = sha256_of(run.folder.segmenter / "checkpoint.pth.tar")
    settings = {
        "checkpoint_sha256": sha256,
        "predict": asdict(Predict()),
        "masks": MASKS,
        "refine": asdict(Refine()),
    }
    work = Worklist(result / split, settings, also=[result / f"{split}_unrefined"])
    firsts = {item.key for item in items if item.key.endswith("_0001")}

    def make(item: ImageItem) -> Made:
        label = clusters(load_label(mask_path(data, split, item.key)))
        refined = np.zeros_like(label) if item.key in firsts else label
        unrefined = label.copy()
        columns = np.flatnonzero(label.any(0))
        unrefined[:, : int(columns.mean())] = 0
        seconds = {part: 0.25 * (place + 1) for place, part in enumerate(PARTS)}
        facts = {"rule": "vote", "seconds": seconds, "resident_mib": 700.5}
        return Made([png_of_label(refined), png_of_label(unrefined)], facts)

    assert work.run(items, make, "test").ok
    store = MaskStore(run.folder.masks(split), MASKS)
    for item in items:
        rgb = load_rgb(item.path)
        store.put(item.key, ImageIdentity.of(rgb), list(map(record, mask_halves(rgb))))
    keep_scores(run, split, sha256)
    return run


def keep_scores(run: SmallRun, split: str, sha256: str) -> None:
    """Score the label maps as test.py does."""
    folders = {"before_refinement": f"{split}_unrefined", "after_refinement": split}
    scores = {
        name: evaluate(run.result / folder, run.data, split, CLASSES)
        for name, folder in folders.items()
    }
    results.keep_evaluation(run.result, split, sha256, scores)


def write_training(run: RunFolder) -> None:
    """Logs, settings, threshold curve and times."""
    for folder, steps in ((run.pretrain("resnet18"), 4), (run.segmenter, 6)):
        folder.mkdir(parents=True)
        lines = [
            {
                "step": 3 * n,
                "epoch": n,
                "lr": 1 / n,
                "loss": 2.0 - n / 10,
                "pixel": n / 7,
                "time": n,
            }
            for n in range(1, steps + 1)
        ]
        (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (run.segmenter / "checkpoint.pth.tar").write_bytes(WEIGHTS)
    config = {**to_dict(preset("demo", "resnet50")), "num_classes": CLASSES}
    write_json(run.segmenter / "config.json", config)
    curve = [[step / 100, 0.3 + 0.001 * min(step, 80 - step)] for step in range(0, 81)]
    chosen = {"threshold": 0.4, "miou": 0.34, "chosen_by": "validation masks", "curve": curve}
    write_json(run.threshold, {**chosen, "arch": "resnet18"})
    run.times.write_text('{"stage": "pretrain resnet18", "seconds": 90}\n')


def clusters(truth: np.ndarray) -> np.ndarray:
    """Cluster ids of a truth: 1 -> 2 -> 3 -> 1."""
    ids = np.where(truth == IGNORE, 0, truth)
    return np.where(ids > 0, ids % CLASSES + 1, 0).astype(np.int32)


def mask_halves(rgb: np.ndarray) -> list[np.ndarray]:
    """Two masks (H, W) bool: the left half and the top quarter."""
    left, top = np.zeros((2, *rgb.shape[:2]), bool)
    left[:, : rgb.shape[1] // 2] = True
    top[: rgb.shape[0] // 4] = True
    return [left, top]


def record(mask: np.ndarray) -> dict[str, object]:
    """A mask as the store keeps it."""
    return {"segmentation": mask, "area": int(mask.sum()), "predicted_iou": 0.9}
