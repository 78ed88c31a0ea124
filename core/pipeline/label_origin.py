"""Where label maps come from: their chain (``core.pipeline.origin``), kept in their ledger beside
the settings that they were made under.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from core.errors import UserError
from core.files import json_or_empty, write_json
from core.pipeline import origin
from core.pipeline.origin import Chain
from core.work.ledger import LEDGER_FOLDER, SETTINGS_FILE
from core.work.worklist import Worklist


def record(work: Worklist, chain: Chain) -> None:
    """Keep the chain of all label maps of a worklist's settings, in its ledger.

    Raises:
        UserError: it cannot be written.
    """
    path = _record_path(work.folder, work.fingerprint)
    content = {origin.KEY: origin.plain(chain)}
    if json_or_empty(path) == content:
        return
    try:
        write_json(path, content)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}; make room") from error


def fingerprints(labels: Path) -> list[str]:
    """Those of all settings that label maps of a folder were made under."""
    found = (labels / LEDGER_FOLDER).glob(f"*/{SETTINGS_FILE}")
    return sorted(path.parent.name for path in found)


def chain_of_labels(
    labels: Path, used: Iterable[str], segmenters: Mapping[str, Chain] | None = None
) -> Chain:
    """The chain of label maps that were made under settings with these fingerprints.

    Args:
        labels: their folder.
        used: none of them: nothing is known.
        segmenters: chains of checkpoints by SHA-256, for label maps without a record, whose
            settings state their checkpoint and masks.
    """
    chains = [_chain_under(labels, name, segmenters or {}) for name in used]
    return origin.merged(*chains) or [origin.unrecorded(f"label maps in {labels.name}")]


def _chain_under(labels: Path, name: str, segmenters: Mapping[str, Chain]) -> Chain:
    stated = json_or_empty(_record_path(labels, name)).get(origin.KEY)
    if stated is not None:
        return origin.parsed(stated, f"label maps in {labels.name}")
    settings = json_or_empty(labels / LEDGER_FOLDER / name / SETTINGS_FILE)
    digest = str(settings.get("checkpoint_sha256", ""))
    chain = segmenters.get(digest) or [origin.unrecorded("segmenter", digest)]
    return origin.merged(chain, [refinement_link("refinement", settings)])


def refinement_link(stage: str, settings: Mapping[str, Any]) -> origin.Link:
    """The link of label maps from the settings of their ledger: which masks had a part in them."""
    supervision, masks = origin.masks_made_by(settings.get("masks"))
    return origin.Link(stage, supervision, masks=masks)


def _record_path(labels: Path, fingerprint: str) -> Path:
    return labels / LEDGER_FOLDER / fingerprint / origin.RECORD
