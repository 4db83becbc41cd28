"""The images of SOG: Gaussians as pixels, lossless WebP in and out."""

from __future__ import annotations

import io
import struct

import numpy as np

from gworld.errors import InputError
from gworld.formats.smallest_three import drop_largest, restore_largest
from gworld.formats.table import SplatTable

MAX_SIDE = 16383  # of a WebP image
PALETTE_COLUMNS = 64  # entries of the harmonics' palette per row of its image
_BLOCK = 1 << 15
_FIRST_TAG = 252  # the alpha of a rotation's pixel: 252 and the index of the component left out
_MORTON_STEPS = ((32, 0x1F00000000FFFF), (16, 0x1F0000FF0000FF), (8, 0x100F00F00F00F00F), (4, 0x10C30C30C30C30C3))


def morton_order(means: np.ndarray) -> np.ndarray:
    """Rows of `means` [N,3] along a Z-order curve, so that neighbouring pixels are neighbours in space."""
    if not len(means):
        return np.zeros(0, np.int64)
    low = means.min(axis=0)
    span = np.maximum((means.max(axis=0) - low).astype(np.float64), 1e-30)
    code = np.zeros(len(means), np.uint64)
    for axis in range(3):
        bits = ((means[:, axis].astype(np.float64) - low[axis]) * ((2**21 - 1) / span[axis])).astype(np.uint64)
        for shift, mask in (*_MORTON_STEPS, (2, 0x1249249249249249)):
            bits = (bits | bits << np.uint64(shift)) & np.uint64(mask)
        code |= bits << np.uint64(axis)
    return np.argsort(code, kind="stable")


def pack_means(means: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Low and high bytes [N,3] of positions on a log scale, and the scale's ends [3], [3]."""
    values = means.astype(np.float64)
    values = np.sign(values) * np.log1p(np.abs(values))
    ends = (values.min(axis=0), values.max(axis=0)) if len(values) else (np.zeros(3), np.zeros(3))
    span = np.where(ends[1] > ends[0], ends[1] - ends[0], 1.0)
    codes = np.rint((values - ends[0]) * (65535 / span)).astype(np.uint16)
    return (codes & 255).astype(np.uint8), (codes >> 8).astype(np.uint8), *ends


def unpack_means(low: np.ndarray, high: np.ndarray, mins: np.ndarray, maxs: np.ndarray, means: np.ndarray) -> None:
    """Fill `means` [N,3] from the bytes [N,>=3] of both images."""
    steps = np.arange(65536) / 65535
    for axis in range(3):
        values = mins[axis] + (maxs[axis] - mins[axis]) * steps
        with np.errstate(over="ignore", invalid="ignore"):  # `check_table` refuses what overflows
            places = (np.sign(values) * np.expm1(np.abs(values))).astype(np.float32)
        means[:, axis] = places[low[:, axis] | high[:, axis].astype(np.uint16) << 8]


def pack_quats(quats_wxyz: np.ndarray) -> np.ndarray:
    """Rotations as pixels [N,4]: three components in 8 bits each, and a tag that names the one left out."""
    pixels = np.empty((len(quats_wxyz), 4), np.uint8)
    for start in range(0, len(pixels), _BLOCK):
        rows = slice(start, start + _BLOCK)
        largest, others = drop_largest(quats_wxyz[rows].astype(np.float64))
        pixels[rows, :3] = np.rint(np.clip(others * np.sqrt(0.5) + 0.5, 0, 1) * 255)
        pixels[rows, 3] = _FIRST_TAG + largest
    return pixels


def unpack_quats(pixels: np.ndarray, quats_wxyz: np.ndarray, source: str) -> None:
    """Fill `quats_wxyz` [N,4] from pixels [N,4]; raises `InputError` for a tag that names no component."""
    if len(pixels) and pixels[:, 3].min() < _FIRST_TAG:
        row = int(np.argmax(pixels[:, 3] < _FIRST_TAG))
        raise InputError(
            f"`{source}`: the rotation of Gaussian {row} has the tag {pixels[row, 3]}; 252 to 255 are needed. The "
            "image is damaged or was saved with loss; export it again."
        )
    for start in range(0, len(pixels), _BLOCK):
        rows = slice(start, start + _BLOCK)
        others = (pixels[rows, :3] * np.float32(2 / 255) - np.float32(1)) * np.float32(np.sqrt(0.5))
        quats_wxyz[rows] = restore_largest(pixels[rows, 3] - _FIRST_TAG, others)


def pack_opacities(table: SplatTable) -> np.ndarray:
    """Opacities [N], 255 for solid."""
    return np.rint(255 / (1 + np.exp(-np.clip(table.opacity_logits, -30, 30)))).astype(np.uint8)


def pack_palette(codes: np.ndarray) -> np.ndarray:
    """Image [H, 64 * terms, 3] of palette codes [K, terms, 3], 64 entries to a row."""
    count, terms, _ = codes.shape
    image = np.zeros((-(-count // PALETTE_COLUMNS) * PALETTE_COLUMNS, terms, 3), np.uint8)
    image[:count] = codes
    return image.reshape(-1, PALETTE_COLUMNS * terms, 3)


def to_image(pixels: np.ndarray) -> np.ndarray:
    """Pixels [N,C] as a nearly square image [H,W,C] with sides in fours; raises `InputError` for too many."""
    width = max(4, int(np.ceil(np.sqrt(len(pixels)) / 4)) * 4)
    height = max(4, -(-len(pixels) // (4 * width)) * 4)
    if width > MAX_SIDE:
        raise InputError(
            f"{len(pixels)} Gaussians do not fit into a SOG image of {MAX_SIDE} pixels a side. Split the scene first."
        )
    image = np.zeros((height, width, pixels.shape[1]), np.uint8)
    image.reshape(-1, pixels.shape[1])[: len(pixels)] = pixels
    return image


def encode_webp(image: np.ndarray) -> bytes:
    """A lossless WebP file of [H,W,3] or [H,W,4] uint8, colours kept where alpha is zero."""
    from PIL import Image

    stream = io.BytesIO()
    # More effort takes three times as long and saves less than one in a hundred bytes of such noisy pixels.
    Image.fromarray(image).save(stream, "WEBP", lossless=True, exact=True, quality=20, method=1)
    return stream.getvalue()


def webp_size(data: bytes, source: str) -> tuple[int, int, bytes]:
    """Width, height and a bare file of the one lossless still image that `data` holds, read from its chunks alone.

    Decoders allocate what the header claims, so callers compare the size before they decode the bare file. Raises
    `InputError` for other formats, animations, lossy images, and chunks that are cut off.
    """
    if data[:4] != b"RIFF" or data[8:12] != b"WEBP":
        raise InputError(f"`{source}` is not a WebP image; SOG needs lossless WebP. Export it again.")
    start = 12
    while start + 13 <= len(data):
        kind, size = data[start : start + 4], struct.unpack_from("<I", data, start + 4)[0]
        body = data[start + 8 : start + 8 + size]
        if kind == b"VP8L":
            if len(body) < size or size < 5 or body[0] != 0x2F:
                break
            packed = struct.unpack_from("<I", body, 1)[0]
            chunk = b"VP8L" + struct.pack("<I", size) + body + b"\0" * (size & 1)
            bare = b"RIFF" + struct.pack("<I", 4 + len(chunk)) + b"WEBP" + chunk
            return (packed & 0x3FFF) + 1, (packed >> 14 & 0x3FFF) + 1, bare
        if kind in (b"VP8 ", b"ANIM", b"ANMF"):
            raise InputError(f"`{source}` is a lossy or animated WebP; its values are lost. Export it lossless.")
        start += 8 + size + (size & 1)
    raise InputError(f"`{source}` is a damaged or cut WebP image. Copy or export it again.")


def decode_webp(bare: bytes, width: int, height: int, source: str) -> np.ndarray:
    """Pixels [width * height, 3 or 4] of a bare file from `webp_size`; raises `InputError` when it is damaged."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(bare), formats=("WEBP",)) as image:
            pixels = np.asarray(image)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise InputError(f"`{source}` cannot be decoded ({error}). Copy or export the file again.") from error
    if pixels.shape[:2] != (height, width):
        raise InputError(f"`{source}` decodes to another size than it states. Copy or export the file again.")
    return pixels.reshape(width * height, -1)
