"""Where this pipeline's products come from: records of clusters and labels, and what they say.

A chain (``core.pipeline.origin``) is kept by checkpoints themselves. Clusters and pseudo labels
have an ``origin.json`` in their folder instead, and label maps one in their ledger
(``core.pipeline.label_origin``).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from core.data.items import ImageItem
from core.errors import UserError
from core.files import json_or_empty, read_json, sha256_of, sha256_of_json
from core.pipeline import label_origin, origin
from core.pipeline.folders import TRAIN
from core.pipeline.stage import Stage
from core.work.ledger import SETTINGS_FILE
from tools.submission import disclosure
from tools.submission.archive import Method
from tools.submission.results import matched_by
from uss import paths
from uss.config import Config
from uss.paths import CENTROIDS, RunFolder
from uss.pipeline import CLUSTER, PSEUDO_LABELS

_LABELS = "labels"  # in the record of pseudo labels: names and sizes of their files
_CHECKPOINT = "checkpoint_sha256"


# Clusters -----------------------------------------------------------------------------------------


def record_clustering(
    run: RunFolder, config: Config, data: Path, checkpoint: Path, settings: Mapping[str, Any]
) -> None:
    """Write the record of the finished ``centroids.npy`` of a run.

    Args:
        checkpoint: whose features were clustered.
        settings: everything that decides the centres.
    """
    folder = run.cluster(config.arch)
    images = origin.images_of(data, TRAIN, settings["images"][TRAIN])
    digest = sha256_of_json(settings)
    link = origin.Link(CLUSTER.command, origin.NONE, digest, config.seed, images)
    chain = origin.made_from(link, [origin.source_of(checkpoint, run.root)])
    origin.write_record(folder, {CENTROIDS: sha256_of(folder / CENTROIDS)}, chain)


def label_inputs(run: RunFolder, arch: str) -> tuple[Path, Path]:
    """The pixel-attention network and the cluster centres that pseudo labels are made with.

    Centres mean something only to the network whose features were clustered. Both come from the
    run, with centres that were made of this very network; both are published; both were named by
    the user; or the settings beside the centres state the network.

    Raises:
        UserError: one of them is missing, or they come from different networks.
    """
    checkpoint = paths.pixel_attention_input(run, arch)
    centroids = paths.centroids_input(run, arch)
    stated = json_or_empty(centroids.parent / SETTINGS_FILE).get(_CHECKPOINT)
    if stated is None and _place(checkpoint, run) == _place(centroids, run):
        return checkpoint, centroids
    if stated is not None and stated == sha256_of(checkpoint):
        return checkpoint, centroids
    reason = "no record says that they were" if stated is None else "another one is recorded"
    raise UserError(
        f"cluster centres {centroids} must be made of the features of {checkpoint}, but {reason}; "
        "cluster with this network, or name both files of one origin by --pretrained and "
        "--centroids"
    )


def _place(path: Path, run: RunFolder) -> str:
    if path.is_relative_to(run.root):
        return "own"
    if path in (run.given_checkpoint, run.given_centroids):
        return "given"
    return "published"


# Pseudo labels ------------------------------------------------------------------------------------


class LabelsMade:
    """What pseudo labels are made with.

    Args:
        sources: network and centres.
        masks: fingerprint of the masks, None without.
    """

    def __init__(
        self, run: RunFolder, config: Config, data: Path, sources: Iterable[Path], masks: Any
    ) -> None:
        self._data, self._masks = data, masks
        self._support = config.masks.source if config.pseudo_labels.per_mask else None
        self._sources = [origin.source_of(path, run.root) for path in sources]

    def chain(
        self, split: str, images: int, settings: str, ground_truth: tuple[str, ...] = ()
    ) -> origin.Chain:
        """Of the labels of a split; ``settings`` is a checksum of what else decides them."""
        supervision, made_by = origin.masks_made_by(self._masks)
        learnt_from = origin.images_of(self._data, split, images) if split == TRAIN else ""
        link = origin.Link(
            PSEUDO_LABELS.command,
            supervision,
            settings,
            learnt_from=learnt_from,
            masks=made_by,
            notes=(f"pseudo labels: {label_support(self._support)}",),
            ground_truth=ground_truth,
        )
        return origin.made_from(link, self._sources)


class LabelRecord:
    """The record of the labels of the training images, true at every moment: while labels are made
    over, it names both what made the old ones and what makes the new ones.

    The threshold has been chosen before: what it was chosen on has a part in the labels.
    """

    def __init__(
        self, run: RunFolder, made: LabelsMade, settings: str, items: Sequence[ImageItem]
    ) -> None:
        self._run, self._items = run, items
        chosen = chosen_by_masks(run.threshold, None)
        self._chain = made.chain(TRAIN, len(items), settings, (chosen,) if chosen else ())
        choice = json_or_empty(run.threshold)
        if choice.get("chosen_by") != "setting":
            stated = origin.parsed(choice.get(origin.KEY), run.threshold.name)
            self._chain = origin.merged(stated, self._chain)

    def begin(self) -> None:
        """Before the first label is made: keep what is known of those that are there already."""
        if next(self._run.pseudo_labels(TRAIN).glob("**/*.png"), None) is None:
            return
        earlier = _recorded(self._run)
        if earlier != self._chain:
            self._write(origin.merged(earlier, self._chain), "")

    def finish(self, done: Sequence[ImageItem]) -> None:
        """After the last one; ``done`` have a label of these inputs, others may have an old one."""
        folder, made = self._run.pseudo_labels(TRAIN), {item.key for item in done}
        others = [item for item in self._items if item.key not in made]
        old = [item for item in others if _size(folder, item) is not None]
        chain = origin.merged(_recorded(self._run), self._chain) if old else self._chain
        self._write(chain, _digest(folder, [*done, *old]))

    def _write(self, chain: origin.Chain, digest: str) -> None:
        origin.write_record(self._run.threshold.parent, {_LABELS: digest}, chain)


def of_labels(run: RunFolder, items: Iterable[ImageItem]) -> origin.Source:
    """The pseudo labels of these training images as something that a segmenter starts from."""
    folder = run.pseudo_labels(TRAIN)
    digest = _digest(folder, items)
    recorded = origin.read_record(folder.parent, {_LABELS: digest})
    name = str(folder.relative_to(run.root))
    if recorded is None:
        # An earlier version kept no more than the source of the masks.
        by_sam = json_or_empty(run.threshold).get("masks") == origin.SAM
        recorded = [origin.unrecorded(name, digest)]
        if by_sam:
            recorded = [origin.unrecorded(name, digest, origin.SAM), *recorded]
    return origin.Source(name, digest, recorded)


def _recorded(run: RunFolder) -> origin.Chain:
    """Whatever the record says, of whichever labels."""
    folder = run.pseudo_labels(TRAIN)
    content = json_or_empty(folder.parent / origin.RECORD)
    return origin.parsed(content.get(origin.KEY), f"earlier labels in {folder.name}")


def _size(folder: Path, item: ImageItem) -> int | None:
    try:
        return (folder / f"{item.key}.png").stat().st_size
    except OSError:
        return None


def _digest(folder: Path, items: Iterable[ImageItem]) -> str:
    """Checksum of the names and sizes of the label files."""
    digest = hashlib.sha256()
    for item in sorted(items, key=lambda item: item.key):
        digest.update(f"{item.key} {_size(folder, item)}\n".encode())
    return digest.hexdigest()


# In words -----------------------------------------------------------------------------------------


def chosen_by_masks(threshold_file: Path | None, match_split: str | None) -> str:
    """What masks decided, in words for ``method.txt``; "" where they decided nothing.

    Args:
        threshold_file: what the pseudo labels left about their threshold; None or a missing file
            where it is not known.
        match_split: split whose masks named the clusters; None where they did not.
    """
    parts = []
    if threshold_file is not None and threshold_file.is_file():
        choice = read_json(threshold_file, "the threshold of the pseudo labels")
        if choice.get("chosen_by") == "validation masks":
            threshold = choice.get("threshold", "of an unknown value")
            parts.append(f"validation masks chose the pseudo labels' threshold {threshold}")
    return "; ".join(filter(None, (*parts, matched_by(match_split))))


def label_support(masks: str | None) -> str:
    """What a pseudo label is taken over, in words: ``masks.source``, or None without any masks."""
    if masks is None:
        return "of each pixel by itself"
    return f"averaged over {'the masks of SAM' if masks == 'sam' else masks}"


# Label maps ---------------------------------------------------------------------------------------


def of_label_maps(
    stage: Stage,
    segmenter: Path,
    run: RunFolder,
    settings: Mapping[str, Any],
    supervision: str | None = None,
) -> origin.Chain:
    """The chain of label maps that ``segmenter`` makes under settings as their ledger has them.

    Args:
        supervision: what people's knowledge enters here; None: that of the masks in ``settings``.
    """
    link = label_origin.refinement_link(stage.command, settings)
    link = replace(link, settings=sha256_of_json(settings))
    if supervision is not None:
        link = replace(link, supervision=supervision)
    return origin.made_from(link, [origin.source_of(segmenter, run.root)])


def disclosed(
    method: Method,
    chain: origin.Chain,
    segmenter: Path,
    run: RunFolder,
    match_split: str | None,
    match_given: bool = False,
) -> Method:
    """``method`` with what the chain of the label maps says where the user has said nothing, and
    with notes of what made them and of what ground-truth masks decided on the way.

    Args:
        match_split: split whose masks named the clusters; None where they did not.
        match_given: a match that the user gave names them.
    """
    notes, decided = disclosure.notes(chain), disclosure.ground_truth(chain)
    unrecorded = len(chain) == 2 and chain[0].stage == origin.FILE  # and its label maps
    if unrecorded and segmenter.is_relative_to(run.root):
        # Made by an earlier version: no more is known than what its run folder states.
        notes += filter(None, [_made_labels(run.threshold)])
        decided += filter(None, [chosen_by_masks(run.threshold, None)])
    decided += filter(None, [matched_by(match_split)])
    used = [f"label maps by {disclosure.inputs(chain[-1])}"]
    if match_given:
        used.append("clusters are named by a match that was given, found in a way not known here")
    all_notes = dict.fromkeys([*used, *notes, *filter(None, ["; ".join(dict.fromkeys(decided))])])
    return disclosure.completed(method, chain).with_notes(*all_notes)


def _made_labels(threshold_file: Path) -> str:
    """The masks of the pseudo labels; "" where there is no record of them."""
    facts = json_or_empty(threshold_file)
    return f"pseudo labels: {label_support(facts['masks'])}" if "masks" in facts else ""
