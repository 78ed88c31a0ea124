"""Make the compact golden files of this folder from the full ones.

    python -m tests.goldens.compact FOLDER

FOLDER holds the full ``*.npz``. A compact file has the same keys and is read by the same code; what
is left out stands in MANIFEST.md.
"""

from __future__ import annotations

import io
import sys
import zipfile
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent

#: Places of an array that are kept where the full file samples more.
PLACES = 2000

#: Full files that show photographs, which are not ours to hand on.
PHOTOGRAPHS = ("G_mobilesam_amg", "G_photos_rgb")

#: (file, key) -> seed, height, width of ``recipe.image_u8``: images that are drawn when read.
DRAWN = {
    ("F_sam_small_predictor", "img0"): (3020, 217, 333),
    ("F_sam_small_predictor", "img1"): (3021, 333, 217),
}

#: Evaluators' levels. Only whole hundredths are ever compared with them.
LEVELS = "logit_flat_f32"


def main(arguments: list[str]) -> int:
    """Write the compact files; returns 0, or 2 where the folder has no golden files."""
    paths = sorted(Path(arguments[0]).glob("*.npz")) if len(arguments) == 1 else []
    if not paths:
        print("error: expected the one folder that holds the full golden files", file=sys.stderr)
        return 2
    for path in paths:
        if path.stem not in PHOTOGRAPHS:
            with np.load(path, allow_pickle=False) as file:
                arrays = {key: file[key] for key in file.files}
            write(HERE / path.name, compact(path.stem, arrays))
    return 0


def compact(name: str, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The compact form of the golden file ``name``."""
    kept = {}
    for key, value in arrays.items():
        if key.endswith(("__stats", "__f64")):
            continue
        key_of_values = key[: -len("__idx")] if key.endswith("__idx") else key
        if (name, key) in DRAWN:
            kept[f"{key}__image_u8"] = np.array(DRAWN[name, key], np.int32)
            continue
        value = value if key.endswith("__idx") else arrays.get(f"{key}__f64", value)
        if key == LEVELS:
            value = coarse_levels(value)
        if f"{key_of_values}__idx" in arrays:
            value = value[places(arrays[key_of_values])]
        kept[key] = value
    return kept


def places(values: np.ndarray) -> np.ndarray:
    """Indices of the stored ``values`` (N,) to keep: evenly spread, and that of the largest one, so
    that an error relative to it means the same.
    """
    spread = np.linspace(0, len(values) - 1, min(len(values), PLACES)).astype(np.int64)
    return np.union1d(spread, [int(np.abs(values).argmax())])


def coarse_levels(levels: np.ndarray) -> np.ndarray:
    """Each level in [0, 1] moved to the middle between two hundredths, unless it is a hundredth."""
    steps = (np.arange(102) / 100).astype(np.float32)
    below = np.searchsorted(steps, levels, side="right") - 1
    middle = ((below + 0.5) / 100).astype(np.float32)
    return np.where(levels == steps[below], levels, middle)


def write(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Write ``arrays`` as ``np.savez_compressed`` would, without the time of writing."""
    with zipfile.ZipFile(path, "w") as archive:
        for key, value in arrays.items():
            content = io.BytesIO()
            np.lib.format.write_array(content, np.asanyarray(value), allow_pickle=False)
            info = zipfile.ZipInfo(f"{key}.npy")
            archive.writestr(info, content.getvalue(), zipfile.ZIP_DEFLATED, 9)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
