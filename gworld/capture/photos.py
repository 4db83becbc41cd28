"""Single pictures from disk: upright 8-bit RGB, a mask from alpha, the focal length that EXIF tells."""

from __future__ import annotations

import contextlib
import math
import re
import struct
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from gworld.errors import InputError
from gworld.files import existing_file

SUFFIXES = frozenset((".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".pgm"))
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "PPM")
LOSSLESS = frozenset((".png", ".bmp", ".tif", ".tiff", ".ppm", ".pgm"))
MAX_PIXELS = 120_000_000
_DAMAGE = (
    OSError, SyntaxError, ValueError, TypeError, KeyError, IndexError, AttributeError, EOFError, OverflowError,
    ZeroDivisionError, RuntimeError, MemoryError, struct.error,
)  # fmt: skip
_FRAME_DIAGONAL = 43.2666  # millimetres, of 36 x 24 film: CIPA DCG-001 compares diagonals
_ORIENTATION, _EXIF, _FOCAL, _FOCAL35 = 0x0112, 0x8769, 0x920A, 0xA405
_PLANE_X, _PLANE_UNIT, _MAKE, _MODEL = 0xA20E, 0xA210, 0x010F, 0x0110
_UNIT_MM = {2: 25.4, 3: 10.0, 4: 1.0, 5: 0.001}


@dataclass(frozen=True)
class PhotoHeader:
    """A picture's upright size, its focal length in pixels of that size (0 unknown) and the camera it names."""

    width: int
    height: int
    focal: float = 0.0
    model: str = ""


def natural_key(name: str) -> list[tuple[int, int, str]]:
    """A sorting key by which `img9` comes before `img10`."""
    parts = re.split(r"(\d{1,18})", name)
    return [(0, int(part), part) if part.isdigit() else (1, 0, part) for part in parts]


def list_pictures(folder: Path) -> list[Path]:
    """The pictures of a folder by their suffix, hidden ones left out, in natural order."""
    try:
        found = [file for file in folder.iterdir() if file.suffix.lower() in SUFFIXES and not file.name.startswith(".")]
        return sorted((file for file in found if file.is_file()), key=lambda file: natural_key(file.name))
    except OSError as error:
        raise InputError(
            f"`{folder}` cannot be listed: {error.strerror}. Check the path and its permissions."
        ) from error


def read_header(path: Path) -> PhotoHeader:
    """Size, focal length and camera of a picture without decoding it; raises `InputError` where it is none."""
    with _open(path) as image:
        exif = image.getexif()
        width, height = image.size
        if exif.get(_ORIENTATION) in (5, 6, 7, 8):
            width, height = height, width
        model = " ".join(str(exif.get(key, "")).strip("\0 ") for key in (_MAKE, _MODEL)).strip()
        return PhotoHeader(width, height, _focal(exif.get_ifd(_EXIF), width, height), model[:80])


def read_picture(
    path: Path, max_side: int | None = None
) -> tuple[UInt8[np.ndarray, "H W 3"], UInt8[np.ndarray, "H W"] | None]:
    """A picture as upright RGB and, where it has transparent parts, a mask of 255 (opaque) and 0 (transparent).

    Made smaller so that the longer side has at most `max_side` pixels. Raises `InputError` for a damaged picture.
    """
    from PIL import ImageOps

    with _open(path) as image:
        alpha = "A" in image.getbands() or "transparency" in image.info
        if max_side and not alpha:
            # JPEG can halve while it decodes; twice the size asked for leaves the filter enough.
            image.draft("RGB", (2 * max_side, 2 * max_side))
        upright = ImageOps.exif_transpose(image)
        colour = _eight_bits(upright, path).convert("RGBA" if alpha else "RGB")
        width, height = colour.size
        scale = min(1.0, (max_side or math.inf) / max(width, height))
        if scale < 1.0:
            size = (max(1, round(width * scale)), max(1, round(height * scale)))
            if alpha:  # colour under transparent parts must not bleed into the rest, nor the other way round
                return _shrink(colour.convert("RGB"), size), _mask(_shrink(colour.getchannel("A"), size))
            colour = colour.resize(size, _lanczos(), reducing_gap=3.0)
        pixels = np.asarray(colour)
        if alpha:
            return np.ascontiguousarray(pixels[..., :3]), _mask(pixels[..., 3])
        return pixels, None


def read_grey(path: Path) -> np.ndarray:
    """A one-channel picture with the numbers it has, uint8 or uint16 `[H, W]`: depth and masks.

    Raises `InputError` for colour, floats, and damaged files.
    """
    with _open(path) as image:
        if image.mode in ("L", "P", "1"):
            return np.asarray(image if image.mode != "1" else image.convert("L"))
        if image.mode.startswith("I"):
            values = np.asarray(image)
            if values.size and (int(values.min()) < 0 or int(values.max()) > 65535):
                raise InputError(f"`{path}` has values outside 0..65535; 16-bit whole numbers are needed.")
            return values.astype(np.uint16)
        raise InputError(f"`{path}` is a picture of kind {image.mode}; one channel of whole numbers is needed.")


@contextlib.contextmanager
def _open(path: Path) -> Iterator[Any]:
    """A picture of an allowed format and size; what goes wrong while the block reads it becomes `InputError`."""
    from PIL import Image

    Image.init()  # Pillow knows a format only once its module is loaded
    file = existing_file(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(file, formats=FORMATS) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise InputError(
                        f"`{file}` has {image.width} x {image.height} pixels; at most {MAX_PIXELS} are read."
                    )
                yield image
    except Image.DecompressionBombError as error:
        raise InputError(f"`{file}` says it has far more than the {MAX_PIXELS} pixels that are read.") from error
    except _DAMAGE as error:
        reason = str(error).split("\n")[0][:120] or type(error).__name__
        reason = "no picture of a kind that is read" if "cannot identify" in reason else reason
        raise InputError(f"`{file}` cannot be read as a picture ({reason}). Remove it, or export it again.") from error


def _focal(exif: Any, width: int, height: int) -> float:
    """Focal length in pixels, from the 35 mm equivalent or from the sensor's pitch; 0 where EXIF tells neither."""

    def number(key: int) -> float:
        try:
            value = float(exif.get(key, 0))
        except (TypeError, ValueError, ZeroDivisionError, OverflowError):
            return 0.0
        return value if math.isfinite(value) and value > 0 else 0.0

    focal = number(_FOCAL35) * math.hypot(width, height) / _FRAME_DIAGONAL
    if not focal:
        unit = _UNIT_MM.get(int(number(_PLANE_UNIT)), 25.4)
        focal = number(_FOCAL) * number(_PLANE_X) / unit
    plausible = 0.2 * max(width, height) < focal < 50 * max(width, height)
    return focal if plausible else 0.0


def _eight_bits(image: Any, path: Path) -> Any:
    from PIL import Image

    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.int64).clip(0, 65535)
        deep = values.size and values.max() > 255
        return Image.fromarray((values >> 8 if deep else values).astype(np.uint8))
    if image.mode == "F":
        raise InputError(f"`{path}` is a picture of floats; 8 or 16 bits a channel are needed. Export it again.")
    return image


def _shrink(image: Any, size: tuple[int, int]) -> np.ndarray:
    return np.asarray(image.resize(size, _lanczos(), reducing_gap=3.0))


def _lanczos() -> Any:
    from PIL import Image

    return Image.Resampling.LANCZOS


def _mask(alpha: np.ndarray) -> np.ndarray | None:
    return None if alpha.min() >= 128 else np.where(alpha >= 128, 255, 0).astype(np.uint8)
