"""Checkpoint files that Jittor and PyTorch themselves wrote."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from core.checkpoints.torch_reader import read_checkpoint, state_dict_of
from core.errors import UserError


def test_files_of_jittor(tmp_path: Path) -> None:
    """What jt.save writes: variables, a model's weights, an optimiser's state."""
    from core.runtime import jt, nn

    model = nn.Linear(3, 2)
    optimizer = jt.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    optimizer.step(model(jt.ones((4, 3))).sum())
    path = tmp_path / "a.pth.tar"
    content = {"state_dict": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 3}
    jt.save(content, str(path))
    np.testing.assert_array_equal(state_dict_of(path)["weight"], model.weight.numpy())
    read = read_checkpoint(path)
    assert read["epoch"] == 3 and read["optimizer"]["defaults"]["momentum"] == 0.9
    values = read["optimizer"]["defaults"]["param_groups"][0]["values"]
    assert [value.shape for value in values] == [(2, 3), (2,)]
    model.save(str(tmp_path / "b.pkl"))
    np.testing.assert_array_equal(state_dict_of(tmp_path / "b.pkl")["bias"], model.bias.numpy())


@pytest.mark.torch
@pytest.mark.parametrize("legacy", [False, True])
def test_files_of_torch(tmp_path: Path, legacy: bool) -> None:
    torch = pytest.importorskip("torch")
    block = torch.arange(24.0).reshape(2, 3, 4)
    tensors = {
        "module.whole": block,
        "module.transposed": block.transpose(0, 2),
        "module.slice": block[1, :, 1:3],
        "module.scalar": torch.tensor(2.5),
        "module.expanded": torch.ones(1).expand(4, 5),
        "module.parameter": torch.nn.Parameter(torch.randn(2, 2)),
        "bool": torch.tensor([True, False]),
        "bfloat": torch.randn(5).bfloat16(),
        "half": torch.randn(5).half(),
    }
    if not legacy:
        tensors["uint16"] = torch.tensor([1, 60000], dtype=torch.uint16)
    model = torch.nn.Sequential(torch.nn.Conv2d(2, 3, 1), torch.nn.BatchNorm2d(3))
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    model(torch.randn(2, 2, 4, 4)).sum().backward()
    optimizer.step()
    content = {
        "state_dict": tensors,
        "net": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "size": block.shape,
    }
    path = tmp_path / "a.pth.tar"
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    read = read_checkpoint(path)
    assert read["size"] == (2, 3, 4)
    assert read["optimizer"]["param_groups"][0]["lr"] == 0.1
    for key, value in {**tensors, **model.state_dict()}.items():
        got = read["state_dict"].get(key, read["net"].get(key))
        wanted = value.detach()
        wanted = (wanted.float() if wanted.dtype == torch.bfloat16 else wanted).numpy()
        assert got.dtype == wanted.dtype and got.shape == wanted.shape
        np.testing.assert_array_equal(got, wanted)
    torch.save(model, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(UserError, match="refused: it wants to call torch.nn.modules"):
        read_checkpoint(path)
