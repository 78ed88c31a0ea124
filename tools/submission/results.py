"""What becomes of finished label maps: a score where there are masks, a match, and the archive.

Label maps hold cluster ids. A *match* names them, and can only be found on a split with masks; it
is kept in a folder as ``match.json`` with ``match_origin.json`` beside it, which states the
checkpoint that it is for, because the ids of another checkpoint mean other classes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from core import log
from core.data.items import ImageItem
from core.data.layout import open_layout
from core.errors import UserError
from core.files import number, read_json, write_json
from core.scoring.matching import read_match, write_match
from core.text import named
from core.version import VERSION
from core.work.worklist import Worklist
from tools.evaluate.table import EvaluationResult, match_words
from tools.submission.archive import Method, build_zip
from tools.submission.check import check_zip

STAGE = "result"
MATCH = "match.json"
ORIGIN = "match_origin.json"
_CLUSTER_IDS = "the ids are cluster ids: no match to classes was found or given"
_SHOWN_PROBLEMS = 5

Match = dict[int, int]


def has_masks(data: Path, split: str) -> bool:
    """True where the ground truth of a split is at hand."""
    return open_layout(data).has_truth(split)


def require_finished(work: Worklist, items: Sequence[ImageItem]) -> None:
    """Complain unless each item has an intact result.

    Raises:
        UserError: names those that have none.
    """
    pending = [item.key for item in work.pending(items)]
    if pending:
        raise UserError(
            f"no archive: {len(pending)} of {len(items)} images have no label map "
            f"({named(pending)}); mend or remove them and run the same command again"
        )


def evaluation_path(folder: Path, split: str) -> Path:
    """Where :func:`keep_evaluation` leaves the scores of a split."""
    return folder / f"evaluation_{split}.json"


def keep_evaluation(
    folder: Path, split: str, checkpoint_sha256: str, results: dict[str, EvaluationResult]
) -> None:
    """Write the results by name into ``folder/evaluation_<split>.json``.

    The match of the last result is kept too, unless it was given rather than found here.
    """
    *_, last = results.values()
    if last.matched_here:
        write_match(folder / MATCH, last.match)
        origin = {
            "split": split,
            "chosen_by": f"{split} masks",
            "checkpoint_sha256": checkpoint_sha256,
        }
        write_json(folder / ORIGIN, origin)
    content = {name: {**result.to_dict(), "split": split} for name, result in results.items()}
    write_json(evaluation_path(folder, split), content)


def read_evaluation(folder: Path, split: str, *needed: str) -> dict[str, Any]:
    """What :func:`keep_evaluation` left: name -> ``EvaluationResult.to_dict()``, of which ``miou``
    is a fraction in [0, 1] or NaN, and ``iou`` a list.

    Args:
        needed: names that must be there.

    Raises:
        UserError: the file is missing or broken, or such a value is missing or something else.
    """
    path = evaluation_path(folder, split)
    content = read_json(path, f"the scores of the {split} split")
    for name in (*needed, *content):
        found = content.get(name)
        result: dict[str, Any] = found if isinstance(found, dict) else {}
        miou = result.get("miou")
        # NaN: no pixel was judged.
        if not isinstance(miou, (int, float)) or not (miou != miou or 0 <= miou <= 1):
            raise UserError(
                f"expected in {path} an `miou` from 0 to 1 of {name[:40]!r}, found "
                f"{str(miou)[:40]!r}; remove the file and run the command that scores {split} again"
            )
        if not isinstance(result.get("iou"), list):
            raise UserError(
                f"expected in {path} a list `iou` of {name[:40]!r}; remove the file and run the "
                f"command that scores {split} again"
            )
    return content


def print_scores(folder: Path, split: str) -> None:
    """Print the mIoUs that :func:`keep_evaluation` left, and what they are to be compared with."""
    content = read_evaluation(folder, split)
    for name, result in sorted(content.items(), reverse=True):  # "before" first
        title = f"mIoU {name.replace('_', ' ')} ({split})"
        print(f"{title}: {100 * result['miou']:.2f}", flush=True)
    for line in baseline_lines(content):
        print(line, flush=True)


def baseline_lines(content: Mapping[str, Any]) -> list[str]:
    """What the mIoUs of an evaluation file are to be compared with, and how clusters were named for
    them; earlier versions kept less.
    """
    entries = [entry for entry in content.values() if isinstance(entry, dict)]
    trivial = next((number(entry.get("background_miou")) for entry in entries), None)
    lines = [] if trivial is None else [f"mIoU of background everywhere: {100 * trivial:.2f}"]
    ways = dict.fromkeys(entry.get("matched_here") is True for entry in entries)
    return lines + [f"match: {match_words(way)}" for way in ways]


def matched_by(split: str | None) -> str:
    """That masks of a split named the clusters, in words for ``method.txt``; "" for None."""
    return "" if split is None else f"{split} masks matched clusters to classes"


def kept_match(
    folders: Iterable[Path], checkpoint_sha256: str, num_classes: int
) -> tuple[Match, str] | None:
    """The first match that :func:`keep_evaluation` left in one of ``folders`` for this checkpoint,
    and the split whose masks it was found on.
    """
    for folder in folders:
        if not (folder / MATCH).is_file() or not (folder / ORIGIN).is_file():
            continue
        origin = read_json(folder / ORIGIN, "where the match beside it comes from")
        if origin.get("checkpoint_sha256") == checkpoint_sha256:
            log.info(STAGE, f"using the match found on {origin.get('split')}: {folder / MATCH}")
            return read_match(folder / MATCH, num_classes), str(origin.get("split"))
        log.warn(STAGE, f"{folder / MATCH} belongs to another checkpoint and is not used")
    return None


def pack(
    labels: Path,
    data: Path,
    split: str,
    archive: Path,
    match: Match | None,
    num_classes: int,
    method: Method,
    substitutes: Mapping[str, bytes] | None = None,
) -> None:
    """Zip the label maps of a split with the match and ``method.txt``, then check the archive.

    Args:
        labels: folder of ``<key>.png``.
        data, split: the images.
        match: None leaves ``match.json`` out, which the log and ``method.txt`` then say.
        substitutes: key -> PNG for images without label map.

    Raises:
        UserError: the archive has a problem; the first ones are named and the archive is removed.
    """
    method = method.with_notes(f"made by version {VERSION}")
    tolerated = set()
    if match is None:
        log.warn(STAGE, f"{_CLUSTER_IDS}; {archive} has no {MATCH}")
        method = method.with_notes(_CLUSTER_IDS)
        tolerated.add(f"{MATCH}: missing")
    items = open_layout(data).images(split)
    build_zip(labels, items, archive, match, method, substitutes=substitutes)
    problems = [p for p in check_zip(archive, data, split, num_classes) if p not in tolerated]
    if problems:
        archive.unlink()
        raise UserError(
            f"the archive has {len(problems)} problems and was removed: "
            + "; ".join(problems[:_SHOWN_PROBLEMS])
        )
