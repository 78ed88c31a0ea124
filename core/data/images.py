"""The one image decoder of the project: every stage sees the same uint8 RGB pixels of a file.

The pixel grid is the stored one: an EXIF rotation tag is not applied, because masks are drawn on
the stored grid (so does ImageNet-S), and a decoder that turns the image would leave its mask
behind.
"""

from __future__ import annotations

import contextlib
import stat
import struct
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from core.errors import UserError

# By content, not by suffix: ImageNet holds a PNG named .JPEG. Formats that start other programs
# stay out.
_FORMATS = ("JPEG", "PNG", "BMP", "GIF", "WEBP")
# What Pillow raises on broken files, by decoder.
BROKEN = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    KeyError,
    TypeError,
    OverflowError,
    struct.error,
    zlib.error,
    MemoryError,
)
_JPEG_REDUCTIONS = (2, 4, 8)  # that the decoder offers
_WHITE = (255, 255, 255, 255)
MAX_PIXELS = 90_000_000  # of an image: 270 MB when decoded
# Images are measured here, by a limit that the user can raise, and not by Pillow as well.
Image.MAX_IMAGE_PIXELS = None


def load_rgb(
    path: Path,
    max_pixels: int = MAX_PIXELS,
    enough: float | None = None,
    shortest: float = 0.0,
) -> np.ndarray:
    """uint8 RGB (H, W, 3) of an image file, on its stored pixel grid.

    With ``enough`` a JPEG may come at 1/2, 1/4 or 1/8 of its size, decoded in a fraction of the
    time: the smallest that still has ``enough`` ** 2 pixels and no side below ``shortest``.

    Gray is repeated, 16-bit gray divided by 257 (rounded), CMYK (Adobe's inverted form included)
    and palettes converted, transparency laid over white; of an animation the first frame counts.

    Raises:
        UserError: missing, unreadable or truncated file, or one of more than ``max_pixels``, which
            is told from its header; names the file and the reason.
    """
    with opened(path, "image", max_pixels) as image:
        if enough is not None:
            pixels, side = image.width * image.height, min(image.size)
            reduction = 1
            for n in _JPEG_REDUCTIONS:
                if pixels >= (n * enough) ** 2 and side >= n * shortest:
                    reduction = n
            image.draft(image.mode, (image.width // reduction, image.height // reduction))
        return _to_rgb(image)


def image_size(path: Path) -> tuple[int, int]:
    """(height, width) in pixels of the stored grid, read from the header alone.

    Raises:
        UserError: missing or unreadable file.
    """
    with opened(path, "image", sys.maxsize) as image:
        return image.height, image.width


@contextlib.contextmanager
def opened(path: Path, what: str, max_pixels: int = MAX_PIXELS) -> Iterator[Image.Image]:
    """The file as a Pillow image; pixels are decoded on use, inside the block.

    Raises:
        UserError: ``what`` (what the file should be) and ``path`` with the reason, for anything
            that Pillow cannot open or decode inside the block.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # a named pipe would be waited for
            raise UserError(f"{what} {path}: no regular file; remove it or put an image there")
        with Image.open(path, formats=_FORMATS) as image:
            if image.width * image.height > max_pixels:
                raise UserError(
                    f"{what} {path} has {image.width} x {image.height} pixels, more than "
                    f"{max_pixels}; make it smaller or raise --max-pixels"
                )
            yield image
    except UserError:
        raise
    except UnidentifiedImageError as error:
        raise UserError(f"{what} {path}: not a readable {'/'.join(_FORMATS)} file") from error
    except BROKEN as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        reason = reason or type(error).__name__
        raise UserError(f"{what} {path} cannot be read: {reason}") from error


def _to_rgb(image: Image.Image) -> np.ndarray:
    if image.mode.startswith("I"):
        # Pillow's own conversion clips at 255, which turns nearly every 16-bit picture white.
        gray = (np.asarray(image).astype(np.int64) + 128) // 257
        return np.repeat(np.clip(gray, 0, 255).astype(np.uint8)[..., None], 3, axis=2)
    if image.has_transparency_data:
        # A plain conversion would drop alpha and show whatever colour lies hidden under it.
        canvas = Image.new("RGBA", image.size, _WHITE)
        image = Image.alpha_composite(canvas, image.convert("RGBA"))
    return np.array(image if image.mode == "RGB" else image.convert("RGB"))
