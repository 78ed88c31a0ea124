"""Where everything lies in a run folder of this pipeline.

::

    RUN/classifier/    checkpoint.pth.tar, log.jsonl, config.json; scores.json of the val split
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from core.pipeline import folders

DEFAULT_DATA = Path("/data/VOC2012")


@dataclass(frozen=True)
class RunFolder(folders.RunFolder):
    """Paths of one run; nothing is created by asking."""

    @property
    def classifier(self) -> Path:
        """Folder of the classifier's training."""
        return self.root / "classifier"
