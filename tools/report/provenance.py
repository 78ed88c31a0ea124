"""How a result came about, in words: what was learnt from what, and which files it rests on."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from typing import Any

from core.files import BROKEN_ZIP, json_or_empty
from core.pipeline.folders import ResultFolder
from core.version import VERSION
from tools.report.extras import LabelOrigin
from tools.report.refinement import RefinementFacts
from tools.report.run_files import RunFiles, setting, short
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
    """What made masks, from their fingerprint: "SAM (vit_t, ec60c0cdc1e6)" or "superpixels"."""
    if fingerprint is None:
        return "masks of unknown origin"
    model, digest = setting(fingerprint, "weights.model"), setting(fingerprint, "weights.sha256")
    return f"SAM ({model}, sha256 {short(digest)})" if model else "superpixels, not SAM"


def protocol(sources: RunFiles, refinement: RefinementFacts, origin: LabelOrigin) -> Protocol:
    """Fully unsupervised, or with SAM, told from the settings of the stages."""
    facts = [origin.words, _about_refinement(sources, refinement)]
    folder = sources.result or sources.after
    matched = json_or_empty(folder / ORIGIN).get("split") if folder else None
    decided = [origin.ground_truth, matched_by(matched)]
    chosen = "; ".join(filter(None, decided))
    facts.append(
        f"Ground truth: {chosen}." if chosen else "Ground truth: no record of a use of masks."
    )
    used = (origin.masks, _masks_of_refinement(sources, refinement))
    if any(use == "sam" for use in used):
        head = "With SAM, which was trained on masks that people made: not fully unsupervised"
    elif any(use is None for use in used):
        head = "Not known: settings are missing that would tell whether SAM took part"
    else:
        head = "Fully unsupervised: neither SAM nor another network trained on people’s labels"
    return Protocol(head, facts)


def provenance(sources: RunFiles, refinement: RefinementFacts) -> list[Fact]:
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


def _masks_of_refinement(sources: RunFiles, refinement: RefinementFacts) -> str | None:
    """What masks the refinement used: "sam", another source, "none", or None: not known."""
    if sources.before is None:
        return "none"
    if "masks" in refinement.settings:
        is_sam = setting(refinement.settings, "masks.weights.model") is not None
        return "sam" if is_sam else "superpixels"
    return setting(sources.settings, "masks.source")


def _about_refinement(sources: RunFiles, refinement: RefinementFacts) -> str:
    if sources.before is None:
        return "Refinement: none; these are the segmenter's own predictions."
    if "masks" in refinement.settings:
        return f"Refinement: by masks of {mask_words(refinement.settings['masks'])}."
    source = setting(sources.settings, "masks.source")
    words = {"sam": "SAM", None: "masks of unknown origin"}.get(source, source)
    return f"Refinement: by {words}, as the run's settings say; the label maps have no record."


def _listed(settings: Any) -> str | None:
    if not isinstance(settings, dict):
        return None
    return ", ".join(f"{name} {value}" for name, value in sorted(settings.items()))
