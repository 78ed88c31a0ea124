"""What is said about how label maps came about, in ``method.txt`` and in the report: told from
their chain (``core.pipeline.origin``) alone, and "not known" where that does not tell.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from core.pipeline import origin
from core.pipeline.origin import LABELS, NONE, SAM, UNKNOWN, Chain
from tools.submission.archive import NOT_KNOWN, Method

_SAM_WORDS = "SAM, which was trained on masks that people made"


def headline(chain: Chain) -> str:
    """What kind of result it is: fully unsupervised only where every link says so."""
    found = origin.supervisions(chain)
    unknown = "; the rest is not known" if UNKNOWN in found else ""
    if {SAM, LABELS} <= found:
        return f"With labels that people gave and with {_SAM_WORDS}: not unsupervised{unknown}"
    if SAM in found:
        return f"With {_SAM_WORDS}: not fully unsupervised{unknown}"
    if LABELS in found:
        return f"With labels that people gave: not unsupervised{unknown}"
    if origin.is_unsupervised(chain):
        return "Fully unsupervised: neither SAM nor another network trained on people’s labels"
    return f"Not known: no record says what {_names(origin.unknown_links(chain))} learnt from"


def training_scheme(chain: Chain) -> str:
    """For ``method.txt``."""
    found = origin.supervisions(chain)
    parts = []
    if LABELS in found:
        parts.append("supervised by labels that people gave")
    elif UNKNOWN not in found:
        parts.append("unsupervised")
    if SAM in found:
        parts.append(f"with masks of {_SAM_WORDS}")
    if UNKNOWN in found:
        parts.append(f"not known of {_names(origin.unknown_links(chain))}")
    return ", ".join(parts)


def training_data(chain: Chain) -> str:
    """For ``method.txt``: the images that the stages learnt from, and whose labels."""
    images = list(dict.fromkeys(link.learnt_from for link in chain if link.learnt_from))
    found = origin.supervisions(chain)
    if images and LABELS not in found:
        images[-1] += ", no labels"
    labels = ["labels: " + _names([x for x in chain if x.supervision == LABELS])]
    unknown = origin.unknown_links(chain)
    parts = [*images, *(labels if LABELS in found else [])]
    if SAM in found:
        parts.append("masks of SAM, with its own training data")
    if not parts:
        return NOT_KNOWN
    return "; ".join([*parts, *([f"{NOT_KNOWN} of {_names(unknown)}"] if unknown else [])])


def notes(chain: Chain) -> list[str]:
    """What the stages say must be known, each once."""
    return list(dict.fromkeys(note for link in chain for note in link.notes))


def ground_truth(chain: Chain) -> list[str]:
    """What ground-truth masks chose, each once."""
    return list(dict.fromkeys(choice for link in chain for choice in link.ground_truth))


def steps(chain: Chain) -> str:
    """The stages in order, a word each."""
    names = (x.name + (f" ({x.masks['source']})" if "source" in x.masks else "") for x in chain)
    return ", ".join(names)


def completed(method: Method, chain: Chain) -> Method:
    """``method`` with what its chain says where the user has said nothing."""
    return method.filled(train_data=training_data(chain), train_scheme=training_scheme(chain))


def inputs(link: origin.Link) -> str:
    """The files that a link states, with the first digits of their checksums."""
    return ", ".join(f"{name} (sha256 {sha256[:12]})" for name, sha256 in link.inputs)


def _names(links: Iterable[origin.Link]) -> str:
    names = list(dict.fromkeys(link.name for link in links))
    return ", ".join(names) if names else "anything"


def masks_words(masks: Mapping[str, str]) -> str:
    """What made masks, in words, of a link's ``masks``: "SAM (vit_t, sha256 ec60c0cdc1e6)"."""
    source = masks.get("source", NONE)
    if source == SAM:
        return f"SAM ({masks.get('model')}, sha256 {masks.get('sha256', '')[:12]})"
    words = {NONE: "no masks", UNKNOWN: "masks of unknown origin"}
    return words.get(source, f"{source}, not SAM")
