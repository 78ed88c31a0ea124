"""Where the products of a run come from, from its first stage to ``method.txt`` and the report."""

from __future__ import annotations

import shutil
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from core.checkpoints import files as checkpoint
from core.checkpoints.files import model_state, save_checkpoint
from core.checkpoints.torch_reader import read_checkpoint
from core.data.label_maps import save_label
from core.errors import UserError
from core.files import read_json, sha256_of, write_json
from core.pipeline import origin
from core.pipeline.folders import CHECKPOINT
from models.pass_net import PlainSegmenter
from tests.helpers.quarter_masks import QuarterMasks, write_photographs
from tests.uss.test_unsupervised import ARCH, config
from tools.report.collect import collect
from tools.report.run_files import Request
from uss import cluster, finetune, origins, pixel_attention, predict, pretrain, pseudo_labels
from uss.paths import RunFolder
from uss.pipeline import PIPELINE

SUPERPIXELS = "masks.source=superpixels"


class SamQuarters(QuarterMasks):
    """Masks under the name of SAM's."""

    def __init__(self) -> None:
        super().__init__()
        self.fingerprint = {"weights": {"model": "vit_t", "sha256": "ab" * 32}, "generator": {}}


def by_superpixels() -> Any:
    base = config(2)
    return replace(
        base,
        masks=replace(base.masks, source="superpixels"),
        pseudo_labels=replace(base.pseudo_labels, per_mask=True, threshold=0.1),
        pretrain=replace(base.pretrain, epochs=1),
        finetune=replace(base.finetune, epochs=1),
    )


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("photographs")
    for split, count in (("train", 8), ("validation", 4), ("test", 2)):
        write_photographs(root, split, count, masks=split == "validation")
    return root


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, data: Path) -> RunFolder:
    """A whole run from random weights, with superpixels."""
    settings, run = by_superpixels(), RunFolder(tmp_path_factory.mktemp("runs") / "run")
    for stage in (pretrain, pixel_attention, cluster, pseudo_labels, finetune):
        stage.run(settings, data, run)
    predict.run(settings, data, run, "test")
    return run


@pytest.fixture
def run(finished: RunFolder, tmp_path: Path) -> RunFolder:
    """A copy of the whole run."""
    shutil.copytree(finished.root, tmp_path / "run")
    return RunFolder(tmp_path / "run")


def method_of(run: RunFolder, split: str = "test") -> str:
    with zipfile.ZipFile(run.predictions(split).with_name(f"{split}.zip")) as archive:
        return archive.read("method.txt").decode()


def headline_of(run: RunFolder, data: Path) -> str:
    found = collect(Request(run.root, data, split="test"), PIPELINE, limit=1, workers=1)
    return found.protocol.headline


def without_record(path: Path) -> Path:
    """The checkpoint as an earlier version wrote it."""
    content = read_checkpoint(path)
    del content[origin.KEY]
    checkpoint.write_pickle(path, content)
    return path


def test_superpixels_and_a_trunk_of_its_own_are_unsupervised(
    finished: RunFolder, data: Path
) -> None:
    chain = origin.chain_of(finished.segmenter / CHECKPOINT)
    stages = ["pretrain", "pixel-attention", "cluster", "pseudo-labels", "finetune"]
    assert [link.stage for link in chain] == stages
    assert headline_of(finished, data).startswith("Fully unsupervised")
    method = method_of(finished)
    assert "Training scheme: unsupervised\n" in method
    assert f"Training data: 8 images of {data.name}/train, no labels\n" in method
    assert "ImageNet" not in method and "pseudo labels: averaged over superpixels" in method
    digest = sha256_of(finished.segmenter / CHECKPOINT)[:12]
    assert f"segmenter/checkpoint.pth.tar (sha256 {digest})" in method


def test_labels_by_sam_are_told_whatever_the_flags_of_fine_tuning_say(
    run: RunFolder, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = by_superpixels()
    shutil.rmtree(run.segmenter)
    by_sam = replace(settings, masks=replace(settings.masks, source="sam"))
    with monkeypatch.context() as patch:
        patch.setattr(pseudo_labels, "mask_source", lambda masks: SamQuarters())
        pseudo_labels.run(by_sam, data, run)
    finetune.run(settings, data, run)  # whose flags say superpixels
    assert read_json(run.segmenter / "config.json", "")["masks"]["source"] == "superpixels"
    predict.run(settings, data, run, "test")
    assert headline_of(run, data).startswith("With SAM")
    method = method_of(run)
    assert "pseudo labels: averaged over the masks of SAM" in method
    assert "with masks of SAM" in method and "Training scheme: unsupervised\n" not in method


def test_a_checkpoint_outside_of_the_run_keeps_its_disclosures(
    run: RunFolder, data: Path, tmp_path: Path
) -> None:
    shutil.copy(run.segmenter / CHECKPOINT, moved := tmp_path / "mine.pth.tar")
    chain = origin.chain_of(moved)
    links = [*chain[:-2], replace(chain[-2], ground_truth=("masks chose it",)), chain[-1]]
    content = {**read_checkpoint(moved), origin.KEY: origin.plain(links)}
    checkpoint.write_pickle(moved, content)
    other = RunFolder(tmp_path / "other", given_checkpoint=moved)
    predict.run(by_superpixels(), data, other, "test")
    method = method_of(other)
    assert "label maps by mine.pth.tar (sha256" in method
    assert "pseudo labels: averaged over superpixels" in method
    assert "masks chose it; validation masks matched clusters to classes" in method


def test_a_run_of_before_is_not_known_and_goes_on(run: RunFolder, data: Path) -> None:
    without_record(run.segmenter / CHECKPOINT)
    finetune.run(by_superpixels(), data, run)  # finished, and stays so
    assert origin.KEY not in read_checkpoint(run.segmenter / CHECKPOINT)
    predict.run(by_superpixels(), data, run, "test")
    assert headline_of(run, data).startswith("Not known")
    method = method_of(run)
    assert "Training data: not known\n" in method
    assert "Training scheme: not known of" in method and "unsupervised" not in method
    # What its run folder states is still disclosed.
    assert "pseudo labels: averaged over superpixels" in method


def test_weights_of_unknown_origin_stay_unknown_to_the_end(
    run: RunFolder, data: Path, tmp_path: Path
) -> None:
    shutil.copy(run.pretrain(ARCH) / CHECKPOINT, given := tmp_path / "given.pth.tar")
    without_record(given)
    shutil.rmtree(run.segmenter)
    finetune.run(by_superpixels(), data, replace(run, given_checkpoint=given))
    chain = origin.chain_of(run.segmenter / CHECKPOINT)
    assert [link.inputs[0][0] for link in origin.unknown_links(chain)] == ["given.pth.tar"]
    predict.run(by_superpixels(), data, run, "test")
    assert headline_of(run, data).startswith("Not known: no record says what given.pth.tar")
    assert "Training scheme: not known of given.pth.tar" in method_of(run)


def test_labels_that_came_from_elsewhere_are_not_known(run: RunFolder, data: Path) -> None:
    key = next(run.pseudo_labels("train").glob("*/*.png"))
    save_label(key, np.arange(4000).reshape(40, 100) % 3)
    shutil.rmtree(run.segmenter)
    finetune.run(by_superpixels(), data, run)
    (unknown,) = origin.unknown_links(origin.chain_of(run.segmenter / CHECKPOINT))
    assert unknown.inputs[0][0] == "pseudo_labels/train"


def test_labels_that_are_being_made_over_keep_both_origins(
    run: RunFolder, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Stopped(Exception):
        pass

    def stop(*arguments: Any, **options: Any) -> None:
        raise Stopped

    settings, record = by_superpixels(), run.threshold.parent / origin.RECORD
    before = read_json(record, "")[origin.KEY]
    with monkeypatch.context() as patch:
        patch.setattr(pseudo_labels, "mask_source", lambda masks: SamQuarters())
        patch.setattr(pseudo_labels.Worklist, "run", stop)
        with pytest.raises(Stopped):
            pseudo_labels.run(settings, data, run)
    mixed = origin.parsed(read_json(record, "")[origin.KEY], "")
    assert origin.supervisions(mixed) == {"none", "sam"}
    pseudo_labels.run(settings, data, run)
    assert read_json(record, "")[origin.KEY] == before


def test_a_chosen_threshold_is_part_of_the_chain(run: RunFolder, data: Path) -> None:
    base = by_superpixels()
    chosen = replace(base, pseudo_labels=replace(base.pseudo_labels, threshold=-1.0))
    pseudo_labels.run(chosen, data, run)
    threshold = read_json(run.threshold, "")["threshold"]
    shutil.rmtree(run.segmenter)
    finetune.run(base, data, run)
    chain = origin.chain_of(run.segmenter / CHECKPOINT)
    said = [choice for link in chain for choice in link.ground_truth]
    assert said == [f"validation masks chose the pseudo labels' threshold {threshold}"]
    # Chosen by a version that kept no record: whose labels it was chosen on is not known.
    content = read_json(run.threshold, "")
    del content[origin.KEY]
    write_json(run.threshold, content)
    pseudo_labels.run(chosen, data, run, "train")
    assert origin.unknown_links(origins.of_labels(run, items_of(data)).chain)


def items_of(data: Path) -> list[Any]:
    from core.data.layout import open_layout

    return open_layout(data).images("train")


# One origin ---------------------------------------------------------------------------------------


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of published weights with centres, and no network."""
    folder = tmp_path / "weights"
    folder.mkdir()
    np.save(folder / "centroids.npy", np.ones((2, 512), np.float32))
    monkeypatch.setattr("uss.paths.WEIGHTS", folder)
    return folder


def test_published_centres_do_not_go_with_the_runs_own_network(
    run: RunFolder, data: Path, published: Path
) -> None:
    shutil.rmtree(run.cluster(ARCH))
    with pytest.raises(UserError, match="no record says that they were") as caught:
        pseudo_labels.run(by_superpixels(), data, run)
    assert str(published / "centroids.npy") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_own_centres_do_not_go_with_a_network_that_was_trained_since(
    run: RunFolder, data: Path
) -> None:
    path = run.pixel_attention(ARCH) / CHECKPOINT
    content = read_checkpoint(path)
    checkpoint.write_pickle(path, {**content, "epoch": 7})
    with pytest.raises(UserError, match="another one is recorded"):
        pseudo_labels.run(by_superpixels(), data, run)


def test_files_of_one_origin_go_together(run: RunFolder, published: Path) -> None:
    own = origins.label_inputs(run, ARCH)
    assert own == (run.pixel_attention(ARCH) / CHECKPOINT, run.cluster(ARCH) / "centroids.npy")
    network = published / "infer_pixel_attnetion_checkpoint.pth.tar"
    shutil.copy(own[0], network)
    nothing = RunFolder(run.root.parent / "nothing")
    assert origins.label_inputs(nothing, ARCH) == (network, published / "centroids.npy")
    # Clustered with a network that the user named.
    named = replace(run, given_checkpoint=network)
    assert origins.label_inputs(named, ARCH) == (network, own[1])
    both = replace(nothing, given_checkpoint=own[0], given_centroids=published / "centroids.npy")
    assert origins.label_inputs(both, ARCH)[1] == both.given_centroids
    with pytest.raises(UserError, match="--centroids"):
        origins.label_inputs(replace(both, given_checkpoint=None), ARCH)


def test_segmenter_of_the_run_comes_first(run: RunFolder, published: Path) -> None:
    from uss.paths import segmenter_input

    state = {"state_dict": model_state(PlainSegmenter(ARCH, 2))}
    save_checkpoint(published, state)
    assert segmenter_input(run) == run.segmenter / CHECKPOINT
    assert segmenter_input(RunFolder(run.root / "none")) == published / CHECKPOINT
