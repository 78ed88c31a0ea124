"""Label maps and their PNG form: red + 256 * green is the id of a pixel, blue is 0.

Masks, pseudo labels and predictions of ImageNet-S all use this encoding. 0 is background (or
another class), 1..C are ids, 1000 is ignored.
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from core.data.images import opened
from core.errors import UserError
from core.files import atomic_write

IGNORE = 1000
MAX_ID = 0xFFFF

# Level 1 is twice as fast as the default and costs label maps, which are mostly runs, next to
# nothing.
_PNG_LEVEL = 1
_PNG_START = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"
_PNG_RGB = b"\x08\x02"  # 8 bits a channel, red, green and blue
_PNG_END = b"\0\0\0\0IEND\xaeB`\x82"
_FAST_PIXELS = 1 << 26
# Modes in which an optimiser may have stored an RGB mask without loss; any other is not a label
# map.
_LOSSLESS_MODES = ("RGB", "RGBA", "P", "L", "1")


def require_class_count(count: int) -> int:
    """``count`` where label maps can hold as many classes.

    Raises:
        UserError: not 1 to 999.
    """
    if not 0 < count < IGNORE:
        raise UserError(f"-c must be 1 to {IGNORE - 1}, is {count}")
    return count


def encode(ids: np.ndarray) -> np.ndarray:
    """uint8 RGB (H, W, 3) of an integer label map (H, W).

    Raises:
        ValueError: not a 2-D integer array, or an id outside 0..65535.
    """
    ids = np.asarray(ids)
    if ids.ndim != 2 or ids.dtype.kind not in "iu":
        raise ValueError(f"expected integer ids of shape (H, W), got {ids.dtype} {ids.shape}")
    if ids.size and (int(ids.min()) < 0 or int(ids.max()) > MAX_ID):
        raise ValueError(f"ids must lie in 0..{MAX_ID}, got {int(ids.min())}..{int(ids.max())}")
    wide = ids.astype(np.int32)
    rgb = np.zeros((*ids.shape, 3), np.uint8)
    rgb[..., 0] = wide & 0xFF
    rgb[..., 1] = wide >> 8
    return rgb


def decode(rgb: np.ndarray) -> np.ndarray:
    """int32 label map (H, W) of a uint8 RGB (H, W, 3) array.

    Raises:
        ValueError: another shape or dtype, or a blue value that is not 0.
    """
    rgb = np.asarray(rgb)
    if rgb.ndim != 3 or rgb.shape[2] != 3 or rgb.dtype != np.uint8:
        raise ValueError(f"expected uint8 of shape (H, W, 3), got {rgb.dtype} {rgb.shape}")
    return _ids(*(np.asarray(channel) for channel in cv2.split(rgb)))


def _ids(red: np.ndarray, green: np.ndarray, blue: np.ndarray) -> np.ndarray:
    """int32 ids of three uint8 channels (H, W)."""
    if blue.any():
        raise ValueError("expected id = red + 256 * green with blue 0, found blue above 0")
    ids = red.astype(np.int32)
    # uint8 * 256 would wrap to 0 (numpy 1) or raise (numpy 2): widen first.
    return ids + 256 * green.astype(np.int32) if green.any() else ids


def png_of_label(ids: np.ndarray) -> bytes:
    """The PNG file content of a label map (H, W).

    Raises:
        ValueError: see :func:`encode`.
    """
    bgr = np.ascontiguousarray(encode(ids)[..., ::-1])
    done, data = cv2.imencode(".png", bgr, [cv2.IMWRITE_PNG_COMPRESSION, _PNG_LEVEL])
    if not done:
        raise ValueError(f"a label map of shape {ids.shape} cannot be written as PNG")
    return data.tobytes()


def save_label(path: Path, ids: np.ndarray) -> None:
    """Write a label map (H, W) as PNG, atomically; the folder is made when missing.

    Raises:
        ValueError: see :func:`encode`.
    """
    content = png_of_label(ids)
    with atomic_write(path) as file:
        file.write(content)


def load_label(path: Path) -> np.ndarray:
    """int32 label map (H, W) of a PNG file.

    Raises:
        UserError: missing, unreadable or truncated file, or one that is no label map; names the
            file.
    """
    try:
        channels = _fast_channels(path)
        if channels is not None:
            return _ids(*channels)
        return decode(_rgb_of(path))
    except ValueError as error:
        raise UserError(f"label map {path}: {error}") from error


def label_of_png(content: bytes) -> np.ndarray:
    """int32 label map (H, W) of the content that :func:`png_of_label` gave."""
    bgr = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
    return decode(np.ascontiguousarray(bgr[..., ::-1]))


def _fast_channels(path: Path) -> list[np.ndarray] | None:
    """Red, green and blue of a whole PNG of 8-bit RGB, a third faster than by Pillow.

    None for everything else, cut files included, about which Pillow has more to say; a file of this
    kind that does not match its checksums is a ValueError, for Pillow does not compare them all.
    """
    try:
        data = path.read_bytes()
    except OSError:
        return None
    width, height = int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")
    usual = data.startswith(_PNG_START) and data[24:26] == _PNG_RGB and data.endswith(_PNG_END)
    if not usual or width * height > _FAST_PIXELS:
        return None
    bgr = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if bgr is None:
        raise ValueError("the PNG is damaged; make it again")
    if bgr.shape != (height, width, 3) or bgr.dtype != np.uint8:
        return None
    return [np.asarray(channel) for channel in cv2.split(bgr)][::-1]


def _rgb_of(path: Path) -> np.ndarray:
    with opened(path, "label map") as image:
        if image.format != "PNG" or image.mode not in _LOSSLESS_MODES:
            raise UserError(
                f"label map {path}: expected a PNG with 8 bits a channel, "
                f"found {image.format} in mode {image.mode}"
            )
        return np.asarray(_without_alpha(image))


def _without_alpha(image: Image.Image) -> Image.Image:
    return image if image.mode == "RGB" else image.convert("RGB")
