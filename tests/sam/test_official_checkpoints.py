"""Keys and shapes of all four models are the official ones, and files that torch wrote load."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from core.checkpoints.torch_reader import state_dict_of
from sam import sam_model_registry

# Entries, and SHA-256 of their sorted lines "key shape": what the official models have, without
# the counters of batch norm and the classifier that MobileSAM's encoder does not run.
OFFICIAL = {
    "vit_b": (314, "86641a8f7847026c348e244c8b41292e85379ae0afd46270cf8c00be56395627"),
    "vit_l": (482, "2782f23acee93d56889efe56a054c2552cf96c4dde5c1b4e99f620171d11cddc"),
    "vit_h": (594, "266c2bcda1f0a23b2632dcaf8a9bed3d40e5b9c9a064d677c86506d1bfe57f7f"),
    "vit_t": (408, "33399317035fcb9b02d035ca315fed4c099d1effe28b5933988637fa59e8d867"),
}
NOT_OURS = ("image_encoder.norm_head.", "image_encoder.head.")


def fingerprint(entries: Iterable[tuple[str, Iterable[int]]]) -> tuple[int, str]:
    """Count and SHA-256 of the sorted lines "key shape"."""
    lines = sorted(f"{key} {'x'.join(map(str, shape))}" for key, shape in entries)
    return len(lines), hashlib.sha256("\n".join(lines).encode()).hexdigest()


@pytest.mark.parametrize("name", sorted(OFFICIAL))
def test_keys_and_shapes_are_the_official_ones(name: str) -> None:
    # Nothing is computed: the weights of ViT-H would be 2.5 GB.
    state = sam_model_registry[name]().state_dict()
    assert fingerprint((key, var.shape) for key, var in state.items()) == OFFICIAL[name]


def test_the_registry_has_the_official_names() -> None:
    assert sorted(sam_model_registry) == ["default", "vit_b", "vit_h", "vit_l", "vit_t"]
    assert sam_model_registry["default"] is sam_model_registry["vit_h"]


def official_sam(name: str, device: str) -> Any:
    """The official model in torch; the device "meta" has shapes and no values."""
    torch = pytest.importorskip("torch")
    from benchmarks import shims

    shims.install()
    official = pytest.importorskip("mobile_sam" if name == "vit_t" else "segment_anything")
    with torch.device(device):
        return official.sam_model_registry[name]()


@pytest.mark.torch
@pytest.mark.parametrize("name", sorted(OFFICIAL))
def test_the_fingerprints_are_those_of_the_official_code(name: str) -> None:
    # TinyViT computes with the values of a tensor while it is built.
    state = official_sam(name, "cpu" if name == "vit_t" else "meta").state_dict()
    kept = {k: v for k, v in state.items() if not k.startswith(NOT_OURS)}
    counted = ((k, v.shape) for k, v in kept.items() if not k.endswith("num_batches_tracked"))
    assert fingerprint(counted) == OFFICIAL[name]


@pytest.mark.torch
def test_the_registry_is_that_of_the_official_code() -> None:
    official_sam("vit_t", "cpu")
    names = set()
    for package in ("segment_anything", "mobile_sam"):
        registry = pytest.importorskip(package).sam_model_registry
        names |= set(registry)
        assert registry["default"] is registry["vit_h"]
    assert names == set(sam_model_registry)


@pytest.mark.torch
@pytest.mark.parametrize("form", ["zip", "legacy"])
@pytest.mark.parametrize("name", ["vit_t", "vit_b"])
def test_files_that_torch_wrote_load(name: str, form: str, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    theirs = official_sam(name, "cpu")
    generator = torch.Generator().manual_seed(0)
    for value in theirs.state_dict().values():
        if value.is_floating_point():
            value.normal_(generator=generator)
    assert name != "vit_t" or any(k.startswith(NOT_OURS) for k in theirs.state_dict())
    path = tmp_path / f"{name}.pth"
    torch.save(theirs.state_dict(), path, _use_new_zipfile_serialization=form == "zip")
    state = sam_model_registry[name](checkpoint=path).state_dict()
    assert len(state) == OFFICIAL[name][0]
    for key, value in theirs.state_dict().items():
        if not key.startswith(NOT_OURS) and not key.endswith("num_batches_tracked"):
            np.testing.assert_array_equal(state[key].numpy(), value.numpy(), err_msg=key)


@pytest.mark.torch
def test_values_are_read_as_torch_holds_them(tmp_path: Path) -> None:
    """Half precision, a transposed view and a slice, as people store weights to save space."""
    torch = pytest.importorskip("torch")
    whole = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    tensors = {"half": whole.half(), "turned": whole.T, "part": whole[2:5, 1:3]}
    for zipped in (True, False):
        path = tmp_path / f"{zipped}.pth"
        torch.save({"model": tensors}, path, _use_new_zipfile_serialization=zipped)
        read = state_dict_of(path)
        for key, tensor in tensors.items():
            assert read[key].dtype == np.float32
            np.testing.assert_array_equal(read[key], tensor.float().numpy())
