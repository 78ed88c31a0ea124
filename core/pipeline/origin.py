"""Where a product comes from: the stages, weights, masks and ground truth behind it, as plain data.

A *chain* is a list of links, the oldest first, one for each stage that had a part in a product and
one for each file that came from elsewhere. A stage copies the chains of what it starts from and
adds its own link, so that the chain stays whole when a file is moved to another folder. Training
keeps it in its checkpoints (``origin``); a product that can hold nothing beside itself has an
``origin.json`` in its folder, which states the checksum of what it speaks of.

What has no record is a link of supervision :data:`UNKNOWN`: nothing is guessed, and a chain with
such a link is never called unsupervised.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from core.checkpoints.torch_reader import read_checkpoint
from core.errors import UserError
from core.files import json_or_empty, sha256_of, write_json
from core.pipeline.folders import PROJECT_ROOT, WEIGHTS

#: What people's knowledge entered by a link: none (images alone), labels that people gave, masks of
#: SAM (which learnt from masks that people drew); or it is not known.
NONE, LABELS, SAM, UNKNOWN = "none", "labels", "sam", "unknown"
#: A link of this stage stands for a file that no stage of this project has recorded.
FILE = "file"
#: The source of masks that needs no weights.
SUPERPIXELS = "superpixels"
#: Key of the chain in a checkpoint and in a record.
KEY = "origin"
#: Name of the record beside a product.
RECORD = "origin.json"

# Published trunks that were trained on labels. Their authors name them after the first digits of
# their SHA-256, which is what is compared.
_KNOWN = {
    "5c106cde": LABELS,  # torchvision's resnet18, ImageNet
    "f37072fd": LABELS,
    "19c8e357": LABELS,  # torchvision's resnet50, ImageNet
    "0676ba61": LABELS,
    "11ad3fa6": LABELS,
}
_KNOWN_DIGITS = 8
_MAX_LINKS, _MAX_TEXTS, _MAX_TEXT = 200, 50, 500


@dataclass(frozen=True)
class Link:
    """One step on the way to a product.

    Args:
        stage: command of the stage; :data:`FILE` for a file without a record.
        supervision: what people's knowledge entered here, of the constants of this module; that of
            the inputs is in their own links.
        settings: digest of the settings that decide the stage's result.
        seed: None where nothing is drawn.
        learnt_from: images that it learnt from, in words: "800 images of NAME/train".
        inputs: (name, SHA-256) of each file that it started from.
        masks: what made the masks: ``source``, and ``model`` and ``sha256`` of weights; {}: none.
        notes: what else must be known about it, in words for ``method.txt``.
        ground_truth: what ground-truth masks chose, in words for ``method.txt``.
    """

    stage: str
    supervision: str
    settings: str = ""
    seed: int | None = None
    learnt_from: str = ""
    inputs: tuple[tuple[str, str], ...] = ()
    masks: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    ground_truth: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """For people: the stage, or the file with the first digits of its checksum."""
        if self.stage != FILE or not self.inputs:
            return self.stage
        name, sha256 = self.inputs[0]
        return f"{name} (sha256 {sha256[:12]})" if sha256 else name


Chain = list[Link]


@dataclass(frozen=True)
class Source:
    """Something that a product is made from: its name, the SHA-256 of its content, its chain."""

    name: str
    sha256: str
    chain: Chain


# Told from a chain --------------------------------------------------------------------------------


def supervisions(chain: Iterable[Link]) -> set[str]:
    """The supervision of all links; of an empty chain nothing is known."""
    return {link.supervision for link in chain} or {UNKNOWN}


def is_unsupervised(chain: Iterable[Link]) -> bool:
    """True where every link is recorded and none has learnt from what people annotated."""
    return supervisions(chain) == {NONE}


def unknown_links(chain: Iterable[Link]) -> Chain:
    """The links of which it is not known what they learnt from."""
    return [link for link in chain if link.supervision == UNKNOWN]


def seeds(chain: Iterable[Link]) -> list[int]:
    """The seeds that had a part, each once, in order."""
    return sorted({link.seed for link in chain if link.seed is not None})


def seed_words(chain: Iterable[Link]) -> str:
    """Which seeds a score comes from: it is of one run, and says nothing about a spread."""
    found = ", ".join(map(str, seeds(chain)))
    return f"one run, seed {found or 'not known'}: no mean and no spread over seeds"


# Making one ---------------------------------------------------------------------------------------


def merged(*chains: Iterable[Link]) -> Chain:
    """All links in order, each once."""
    found: Chain = []
    for chain in chains:
        found += [link for link in chain if link not in found]
    return found


def made_from(link: Link, sources: Sequence[Source]) -> Chain:
    """The chain of what a stage made from ``sources``; ``link`` is its own, without inputs."""
    inputs = tuple((source.name, source.sha256) for source in sources)
    chains = [source.chain for source in sources]
    return merged(*chains, [replace(link, inputs=(*link.inputs, *inputs))])


def continued(chain: Chain, previous: Mapping[str, Any] | None) -> Chain:
    """``chain`` of a training that goes on from the content of a checkpoint: what that records
    stays in it. None: it begins.
    """
    if previous is None:
        return chain
    stage = chain[-1].stage if chain else FILE
    return merged(parsed(previous.get(KEY), f"an earlier part of {stage}"), chain)


def images_of(data: Path, split: str, count: int) -> str:
    """What a stage learnt from, in words."""
    return _shown(f"{count} images of {data.name}/{split}")


def masks_made_by(fingerprint: Any) -> tuple[str, dict[str, str]]:
    """(supervision, ``masks`` of a :class:`Link`) of masks with this fingerprint, as
    ``refine.mask_sources`` gives it; None: no masks took part.
    """
    if fingerprint is None:
        return NONE, {}
    stated = fingerprint if isinstance(fingerprint, Mapping) else {}
    weights = stated.get("weights")
    if isinstance(weights, Mapping) and weights.get("model"):
        known = {name: _shown(weights.get(name, "")) for name in ("model", "sha256")}
        return SAM, {"source": SAM, **known}
    if stated.get("masks") == SUPERPIXELS:
        return NONE, {"source": SUPERPIXELS}
    return UNKNOWN, {"source": UNKNOWN}


def unrecorded(name: str, sha256: str = "", supervision: str = UNKNOWN) -> Link:
    """The link of a file, or of anything else, that has no record."""
    return Link(FILE, supervision, inputs=((_shown(name), sha256),))


def source_of(path: Path, root: Path) -> Source:
    """A checkpoint, or a product with a record beside it, as something that a stage starts from.

    Args:
        path: the file; one without a record is told by its checksum, or is not known.
        root: run folder; files in it are named relative to it, published ones with their folder,
            others by their name alone.
    """
    places = (root, PROJECT_ROOT) if path.is_relative_to(WEIGHTS) else (root,)
    inside = [place for place in places if path.is_relative_to(place)]
    name = str(path.relative_to(inside[0])) if inside else path.name
    sha256 = sha256_of(path)
    return Source(_shown(name), sha256, chain_of(path, sha256))


def chain_of(path: Path, sha256: str | None = None) -> Chain:
    """The chain of a file: what a checkpoint of this project states itself, else what the record
    beside the file says of a file with this checksum, else one link of an unrecorded file.

    Args:
        sha256: of the file, where it is at hand.
    """
    sha256 = sha256_of(path) if sha256 is None else sha256
    if not path.name.endswith(".npy"):
        try:
            content = read_checkpoint(path, inert_objects=True)
        except UserError:
            content = None  # what is wrong with it says who loads it
        if isinstance(content, dict) and KEY in content:
            return parsed(content[KEY], path.name)
    recorded = read_record(path.parent, {path.name: sha256})
    if recorded is not None:
        return recorded
    known = _KNOWN.get(sha256[:_KNOWN_DIGITS], UNKNOWN)
    return [unrecorded(path.name, sha256, known)]


# As JSON ------------------------------------------------------------------------------------------


def plain(chain: Iterable[Link]) -> list[dict[str, Any]]:
    """JSON values of a chain; fields that say nothing are left out."""
    listed = []
    for link in chain:
        values = {name: value for name, value in asdict(link).items() if value not in ("", None)}
        values["inputs"] = [list(pair) for pair in link.inputs]
        listed.append({key: _listed(value) for key, value in values.items() if value != ()})
    return listed


def parsed(value: Any, name: str) -> Chain:
    """The chain of JSON values that :func:`plain` gave; one unrecorded link, by this name, where
    they are anything else.
    """
    if isinstance(value, list) and 0 < len(value) <= _MAX_LINKS:
        links = [_link(entry) for entry in value]
        whole = [link for link in links if link is not None]
        if len(whole) == len(links):
            return whole
    return [unrecorded(name)]


def write_record(folder: Path, of: Mapping[str, str], chain: Chain) -> None:
    """Write the record of products in a folder.

    Args:
        of: name -> SHA-256 of each product; a record of another content does not count.
    """
    write_json(folder / RECORD, {"of": dict(of), KEY: plain(chain)})


def read_record(folder: Path, of: Mapping[str, str]) -> Chain | None:
    """The chain that :func:`write_record` left for exactly these products; None: there is none."""
    content = json_or_empty(folder / RECORD)
    stated = content.get("of")
    if not isinstance(stated, dict) or KEY not in content:
        return None
    if any(stated.get(name) != sha256 for name, sha256 in of.items()):
        return None
    return parsed(content[KEY], next(iter(of), folder.name))


def _listed(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _link(entry: Any) -> Link | None:
    """A link of JSON values; None where they are none. The file may say anything."""
    if not isinstance(entry, dict) or not entry.keys() <= {each.name for each in fields(Link)}:
        return None
    values = dict(entry)
    try:
        for name in ("notes", "ground_truth"):
            values[name] = tuple(map(_text, _few(values.get(name, []))))
        pairs = [_few(pair) for pair in _few(values.get("inputs", []))]
        values["inputs"] = tuple((_text(name), _text(digest)) for name, digest in pairs)
        masks = values.get("masks", {})
        if not isinstance(masks, dict) or len(masks) > _MAX_TEXTS:
            return None
        values["masks"] = {_text(name): _text(value) for name, value in masks.items()}
        for name in ("stage", "supervision", "settings", "learnt_from"):
            values[name] = _text(values.get(name, ""))
    except ValueError:
        return None
    seed = values.get("seed")
    whole = seed is None or (isinstance(seed, int) and not isinstance(seed, bool))
    if not whole or values["supervision"] not in (NONE, LABELS, SAM, UNKNOWN):
        return None
    return Link(**values)


def _few(value: Any) -> list[Any]:
    if not isinstance(value, (list, tuple)) or len(value) > _MAX_TEXTS:
        raise ValueError("no short list")
    return list(value)


def _text(value: Any) -> str:
    if not isinstance(value, str) or len(value) > _MAX_TEXT or not (value + " ").isprintable():
        raise ValueError("no short line of text")
    return value


def _shown(value: Any) -> str:
    """A name from outside as a short line of text."""
    text = str(value)[:_MAX_TEXT]
    return "".join(each if each.isprintable() else "?" for each in text)
