"""How a result came about, in words: what was learnt from what, and which files it rests on."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from typing import Any

from core.files import BROKEN_ZIP, json_or_empty
from core.pipeline import label_origin, origin
from core.pipeline.folders import CHECKPOINT, ResultFolder
from core.version import VERSION
from tools.report.refinement import RefinementFacts
from tools.report.run_files import RunFiles, setting, short
from tools.submission import disclosure
from tools.submission.check import METHOD_NAME
from tools.submission.results import ORIGIN, matched_by

_METHOD_BYTES = 1 << 16


@dataclass(frozen=True)
class Protocol:
    """What kind of result this is: a headline, and the facts that it rests on."""

    headline: str
    facts: list[str]


@dataclass(frozen=True)
class Fact:
    """One line of the table of provenance."""

    name: str
    value: str


def mask_words(fingerprint: Any) -> str:
    """What made masks, from their fingerprint: "SAM (vit_t, sha256 ec60c0cdc1e6)" or "superpixels,
    not SAM".
    """
    return disclosure.masks_words(origin.masks_made_by(fingerprint)[1])


def chain_of_results(sources: RunFiles, refinement: RefinementFacts) -> origin.Chain:
    """The chain of the label maps that are shown; of the run's segmenter where there are none."""
    own: dict[str, origin.Chain] = {}
    if sources.checkpoint_sha256 is not None:
        path = sources.run.segmenter / CHECKPOINT
        own[sources.checkpoint_sha256] = origin.chain_of(path, sources.checkpoint_sha256)
    if sources.after is None:
        return origin.merged(*own.values()) or [origin.unrecorded("the run")]
    looked_at = bool(refinement.images or refinement.unrecorded)
    used = refinement.used if looked_at else label_origin.fingerprints(sources.after)
    chain = label_origin.chain_of_labels(sources.after, used, own)
    if refinement.unrecorded and used:
        chain = [*chain, origin.unrecorded(f"{refinement.unrecorded} label maps without a record")]
    return chain


def protocol(
    sources: RunFiles, refinement: RefinementFacts, chain: origin.Chain, chosen_in_run: str = ""
) -> Protocol:
    """What kind of result it is, told from the chain of its label maps and from nothing else.

    Args:
        chosen_in_run: what ground truth decided in this run folder, which counts where the chain
            does not tell.
    """
    notes = [f"{note[:1].upper()}{note[1:]}." for note in disclosure.notes(chain)]
    facts = [f"Made by: {disclosure.steps(chain)}.", *notes, _about_refinement(sources, refinement)]
    folder = sources.result or sources.after
    matched = json_or_empty(folder / ORIGIN).get("split") if folder else None
    unknown = origin.unknown_links(chain)
    decided = [*disclosure.ground_truth(chain), chosen_in_run if unknown else ""]
    chosen = "; ".join(filter(None, dict.fromkeys([*decided, matched_by(matched)])))
    rest = "what else it chose is not known" if chosen else "what it chose is not known"
    parts = [chosen, rest if unknown else ""]
    words = "; ".join(filter(None, parts)) or "no record of a use of masks"
    return Protocol(disclosure.headline(chain), [*facts, f"Ground truth: {words}."])


def provenance(sources: RunFiles, refinement: RefinementFacts, chain: origin.Chain) -> list[Fact]:
    """Files and settings that decide the result, and what they are."""
    settings, ledger = sources.settings, refinement.settings
    checkpoint = ledger.get("checkpoint_sha256") or sources.checkpoint_sha256
    rows = [
        ("page made by", f"version {VERSION} of this program"),
        ("run", str(sources.run.root)),
        ("data set", str(sources.data) if sources.data else None),
        ("split", sources.split),
        ("label maps", str(sources.after) if sources.after else None),
        ("preset", setting(settings, "preset")),
        ("trunk of the segmenter", setting(settings, "arch")),
        ("segmenter, sha256", short(checkpoint) if checkpoint else None),
        ("seed", setting(settings, "seed")),
        ("runs and seeds", origin.seed_words(chain)),
        ("learnt from", disclosure.training_data(chain)),
        ("masks of refinement", mask_words(ledger["masks"]) if "masks" in ledger else None),
        ("settings of masks", _listed(setting(ledger, "masks.generator"))),
        ("settings of prediction", _listed(ledger.get("predict"))),
        ("settings of refinement", _listed(ledger.get("refine"))),
    ]
    return [Fact(name, str(value)) for name, value in rows if value is not None]


def method_text(sources: RunFiles) -> str:
    """``method.txt`` of the archive beside the label maps; "" where there is none."""
    if sources.result is None:
        return ""
    try:
        with (
            zipfile.ZipFile(ResultFolder(sources.result).archive) as archive,
            archive.open(METHOD_NAME) as file,
        ):
            return file.read(_METHOD_BYTES).decode("utf-8", errors="replace")
    except (*BROKEN_ZIP, KeyError, RuntimeError):  # RuntimeError: an encrypted one
        return ""


def _about_refinement(sources: RunFiles, refinement: RefinementFacts) -> str:
    if sources.before is None:
        return "Refinement: none; these are the segmenter's own predictions."
    if "masks" in refinement.settings:
        return f"Refinement: by masks of {mask_words(refinement.settings['masks'])}."
    return "Refinement: by masks of unknown origin; the label maps have no record."


def _listed(settings: Any) -> str | None:
    if not isinstance(settings, dict):
        return None
    return ", ".join(f"{name} {value}" for name, value in sorted(settings.items()))
