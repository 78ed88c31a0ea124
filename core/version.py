"""The version of this program, here and nowhere else in code; CITATION.cff repeats it."""

from __future__ import annotations

VERSION = "0.1.0"
