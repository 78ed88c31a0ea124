"""Weights go into models completely or not at all; checkpoints survive crashes and damage."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from core.checkpoints import files as checkpoint
from core.checkpoints.files import load_latest, load_state, model_state, save_checkpoint
from core.checkpoints.torch_reader import read_checkpoint, state_dict_of
from core.errors import UserError
from core.runtime import jt, nn


class Small(nn.Module):
    """A trunk, a batch norm and an output layer named as in the segmentation networks."""

    def __init__(self, width: int = 4, classes: int = 3) -> None:
        self.conv1 = nn.Conv(3, width, 3, bias=False)
        self.bn1 = nn.BatchNorm(width)
        self.last_layer = nn.Conv(width, classes + 1, 1)


class WithPrototypes(nn.Module):
    def __init__(self, count: int) -> None:
        self.prototypes = nn.Linear(8, count, bias=False)


def changed(state: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {key: (value + 1).astype(value.dtype) for key, value in state.items()}


def assert_state(model: nn.Module, state: dict[str, np.ndarray]) -> None:
    for key, value in model_state(model).items():
        np.testing.assert_array_equal(value, state[key], err_msg=key)


def test_round_trip_with_running_statistics() -> None:
    model = Small()
    state = model_state(model)
    assert {"bn1.running_mean", "bn1.running_var", "conv1.weight"} <= state.keys()
    load_state(model, changed(state), "memory")
    assert_state(model, changed(state))
    # Learned weights still learn, running statistics still do not.
    stopped = {key for key, var in model.state_dict().items() if var.is_stop_grad()}
    assert stopped == {"bn1.running_mean", "bn1.running_var"}
    before = model.conv1.weight.numpy()
    optimizer = jt.optim.SGD(model.parameters(), 0.1)
    optimizer.step(model.conv1(jt.ones((1, 3, 4, 4))).sum())
    assert np.abs(model.conv1.weight.numpy() - before).max() > 0


def test_other_element_types_and_layouts_are_converted() -> None:
    model = Small()
    state = changed(model_state(model))
    stored = {key: np.asfortranarray(value.astype(np.float64)) for key, value in state.items()}
    load_state(model, stored, "memory")
    assert_state(model, state)
    assert all(str(var.dtype) == "float32" for var in model.state_dict().values())


@pytest.mark.parametrize(
    "damage,texts",
    [
        (lambda s: s.pop("bn1.weight"), ["1 missing: bn1.weight", "another architecture"]),
        (lambda s: s.update(extra=s["bn1.bias"]), ["1 unexpected: extra"]),
        (
            lambda s: s.update({"conv1.weight": np.zeros((8, 3, 3, 3), np.float32)}),
            [
                "1 of another shape: conv1.weight is (8, 3, 3, 3), expected (4, 3, 3, 3)",
                "-a/--arch",
            ],
        ),
        (
            lambda s: s.update({"bn1.bias": np.full(4, np.nan, np.float32)}),
            ["not finite in bn1.bias"],
        ),
    ],
)
def test_a_misfit_changes_nothing(damage, texts: list[str]) -> None:
    model = Small()
    before = model_state(model)
    state = changed(before)
    damage(state)
    with pytest.raises(UserError) as caught:
        load_state(model, state, "run/a.pth")
    for text in ["run/a.pth", *texts]:
        assert text in str(caught.value)
    assert "\n" not in str(caught.value)
    assert_state(model, before)


def test_wrong_class_count_is_named() -> None:
    with pytest.raises(UserError, match=r"class count: 6 outputs .*not 4"):
        load_state(Small(classes=3), model_state(Small(classes=5)), "a.pth")
    with pytest.raises(UserError, match="trained with 20 prototypes, not 10"):
        load_state(WithPrototypes(10), model_state(WithPrototypes(20)), "a.pth")
    with pytest.raises(UserError, match="another architecture"):  # widths differ as well
        load_state(Small(width=4), model_state(Small(width=6, classes=5)), "a.pth")


def test_long_lists_are_cut() -> None:
    model = Small()
    state = {**model_state(model), **{f"head.{n}": np.zeros(1) for n in range(30)}}
    with pytest.raises(UserError, match=r"30 unexpected: head.0, .*head.7, and 22 more\."):
        load_state(model, state, "a.pth")


def test_allowed_prefixes() -> None:
    model = Small()
    before = model_state(model)
    state = {key: value for key, value in changed(before).items() if key.startswith("conv1.")}
    state["projection_head.0.weight"] = np.zeros(3)
    load_state(
        model, state, "a", missing_ok=("bn1.", "last_layer."), unexpected_ok=("projection_",)
    )
    after = model_state(model)
    np.testing.assert_array_equal(after["conv1.weight"], state["conv1.weight"])
    np.testing.assert_array_equal(after["bn1.weight"], before["bn1.weight"])
    with pytest.raises(UserError, match="missing: last_layer"):
        load_state(model, state, "a", missing_ok=("bn1.",), unexpected_ok=("projection_",))


def payload(epoch: int) -> dict:
    return {
        "epoch": epoch,
        "state_dict": {"weight": np.full((2, 3), epoch, np.float32)},
        "queue": np.zeros((0, 4), np.float32),
        "rng": np.random.default_rng(0).bit_generator.state,
        "config": {"seed": 1, "sizes": [1, 2], "name": "demo", "none": None},
    }


def test_save_and_load(tmp_path: Path) -> None:
    folder = tmp_path / "run" / "pretrain"
    assert load_latest(folder) is None
    for epoch in range(3):
        assert save_checkpoint(folder, payload(epoch)) == folder / "checkpoint.pth.tar"
    got = load_latest(folder)
    assert got is not None and got["epoch"] == 2
    assert got["rng"] == payload(2)["rng"] and got["config"] == payload(2)["config"]
    assert got["queue"].shape == (0, 4)
    got["state_dict"]["weight"] += 1  # its own memory
    assert read_checkpoint(folder / "previous.pth.tar")["epoch"] == 1
    assert sorted(path.name for path in folder.iterdir()) == [
        "checkpoint.pth.tar",
        "previous.pth.tar",
    ]
    np.testing.assert_array_equal(
        state_dict_of(folder / "checkpoint.pth.tar")["weight"], np.full((2, 3), 2)
    )
    assert jt.load(str(folder / "checkpoint.pth.tar"))["epoch"] == 2


def test_damage_falls_back_to_previous(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    save_checkpoint(tmp_path, payload(1))
    save_checkpoint(tmp_path, payload(2))
    latest = tmp_path / "checkpoint.pth.tar"
    data = bytearray(latest.read_bytes())
    data[len(data) // 2] ^= 1
    latest.write_bytes(data)
    got = load_latest(tmp_path)
    assert got is not None and got["epoch"] == 1
    assert "warning" in (error := capsys.readouterr().err) and "previous.pth.tar" in error
    latest.write_bytes(data[:50])
    assert load_latest(tmp_path)["epoch"] == 1  # type: ignore[index]
    latest.unlink()
    assert load_latest(tmp_path)["epoch"] == 1  # type: ignore[index]
    (tmp_path / "previous.pth.tar").write_bytes(b"")
    with pytest.raises(UserError, match="no readable checkpoint"):
        load_latest(tmp_path)


@pytest.mark.parametrize("damage", ["bit", "cut", "empty"])
def test_a_broken_checkpoint_does_not_take_the_place_of_a_whole_one(
    tmp_path: Path, damage: str
) -> None:
    save_checkpoint(tmp_path, payload(1))
    save_checkpoint(tmp_path, payload(2))
    latest = tmp_path / "checkpoint.pth.tar"
    data = latest.read_bytes()
    flipped = bytes([data[0] ^ 1]) + data[1:]
    latest.write_bytes({"bit": flipped, "cut": data[:-1], "empty": b""}[damage])
    save_checkpoint(tmp_path, payload(3))
    assert load_latest(tmp_path)["epoch"] == 3  # type: ignore[index]
    assert read_checkpoint(tmp_path / "previous.pth.tar")["epoch"] == 1


def test_unwritable_content_leaves_the_old_checkpoint(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, payload(1))
    for bad in (jt.ones(2), np.array([{}]), Path("x"), lambda: 0):
        with pytest.raises(TypeError, match=r"payload\['a'\]"):
            save_checkpoint(tmp_path, {"a": bad})
    got = load_latest(tmp_path)
    assert got is not None and got["epoch"] == 1
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("call", ["os.fsync", "os.link", "os.replace"])
def test_killed_while_saving(tmp_path: Path, call: str) -> None:
    """The process dies at any step of the second save: a whole checkpoint is still there."""
    save_checkpoint(tmp_path, payload(1))
    code = f"""
import os, sys
from pathlib import Path
from core.checkpoints.files import save_checkpoint
{call} = lambda *a, **k: os._exit(9)
save_checkpoint(Path(sys.argv[1]), {{"epoch": 2}})
"""
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    assert done.returncode == 9
    got = load_latest(tmp_path)
    assert got is not None and got["epoch"] == 1
    save_checkpoint(tmp_path, payload(3))
    save_checkpoint(tmp_path, payload(4))
    assert load_latest(tmp_path)["epoch"] == 4  # type: ignore[index]
    assert read_checkpoint(tmp_path / "previous.pth.tar")["epoch"] == 3
    assert len(list(tmp_path.iterdir())) == 2  # what the killed process left is gone


def test_file_systems_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_links(*_arguments: object) -> None:
        raise PermissionError("hard links are not supported here")

    monkeypatch.setattr(checkpoint.os, "link", no_links)
    for epoch in range(3):
        save_checkpoint(tmp_path, payload(epoch))
    assert read_checkpoint(tmp_path / "previous.pth.tar")["epoch"] == 1
    assert len(list(tmp_path.iterdir())) == 2
