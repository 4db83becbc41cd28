"""The attribute streams of SPZ: how positions, opacities, colours, scales, rotations and harmonics become bytes.

Layouts and constants are those of nianticlabs/spz (MIT): 24-bit fixed-point positions, log scales in sixteenths,
colours as wide RGB, quaternions as xyz bytes (versions 1 and 2) or as the smallest three of 10 bits each (version 3
up), harmonics of degree 1 and up in buckets around 128.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from gworld.formats.axes import rotate_sh_rows
from gworld.formats.smallest_three import drop_largest, restore_largest
from gworld.formats.table import SplatTable, empty_table

COLOR_SCALE = 0.15  # of a degree-0 coefficient per unit of stored colour: leaves room beyond 0..1
REST_COUNTS = (0, 3, 8, 15, 24)  # coefficients per channel above degree 0, by degree
MAX_FRACTION_BITS = 30
_BLOCK = 1 << 15  # rows worked on at once, so that intermediate columns stay in the processor's cache
_LARGEST = 1 << 23  # positions are signed 24-bit numbers
_OPACITY = np.clip(np.arange(256) / 255.0, 1e-6, 1 - 1e-6)  # bytes 0 and 255 would be infinite logits
_LOGITS = np.log(_OPACITY / (1 - _OPACITY)).astype(np.float32)


def stream_widths(version: int, sh_degree: int) -> tuple[int, ...]:
    """Bytes per Gaussian of the streams, in file order: positions, alphas, colours, scales, rotations, harmonics."""
    return (6 if version == 1 else 9, 1, 3, 3, 4 if version >= 3 else 3, 3 * REST_COUNTS[sh_degree])


def decode_streams(
    streams: list[np.ndarray], version: int, sh_degree: int, fraction_bits: int, signs: np.ndarray
) -> SplatTable:
    """A table of the uint8 streams `[N * width]`; harmonics beyond degree 3 are dropped.

    `signs` [3] are those of a half turn (or none), which is applied on the way: a second pass would double the time.
    """
    positions, alphas, colors, scales, rotations, rest = streams
    count, degree = len(alphas), min(sh_degree, 3)
    table = empty_table(count, degree)
    flat_sh = table.sh.reshape(count, table.sh.shape[1] * 3)
    turn = np.diag(signs)
    rest_signs = rotate_sh_rows(np.ones((1, table.sh.shape[1], 3), np.float32), turn).reshape(-1)[3:]
    quat_signs = np.array([1, *signs], np.float32)
    units = (signs * 2.0**-fraction_bits).astype(np.float32)
    rest = rest.reshape(count, 3 * REST_COUNTS[sh_degree])[:, : 3 * REST_COUNTS[degree]]

    def decode(rows: slice) -> None:
        if version == 1:
            np.multiply(positions.view("<f2").reshape(-1, 3)[rows], signs.astype(np.float32), out=table.means[rows])
        else:
            np.multiply(_widen(positions.reshape(-1, 3, 3)[rows]), units, out=table.means[rows])
        np.multiply(scales.reshape(count, 3)[rows], np.float32(1 / 16), out=table.log_scales[rows])
        np.multiply(colors.reshape(count, 3)[rows], np.float32(1 / (255 * COLOR_SCALE)), out=flat_sh[rows, :3])
        np.multiply(rest[rows], rest_signs / 128, out=flat_sh[rows, 3:])
        table.log_scales[rows] -= 10
        flat_sh[rows, :3] -= np.float32(0.5 / COLOR_SCALE)
        flat_sh[rows, 3:] -= rest_signs
        unpack = _unpack_smallest_three if version >= 3 else _unpack_first_three
        xyzw = unpack(rotations.reshape(count, 4 if version >= 3 else 3)[rows])
        np.multiply(xyzw[:, [3, 0, 1, 2]], quat_signs, out=table.quats_wxyz[rows])
        np.take(_LOGITS, alphas[rows], out=table.opacity_logits[rows])

    with ThreadPoolExecutor(2) as pool:  # numpy's arithmetic runs outside the interpreter's lock
        for _ in pool.map(decode, _blocks(count)):
            pass
    return table


def encode_positions(table: SplatTable, fraction_bits: int) -> np.ndarray:
    """Positions as signed 24-bit fixed-point numbers `[N, 9]`."""

    def pack(rows: slice, out: np.ndarray) -> None:
        fixed = np.rint(table.means[rows] * np.float32(2.0**fraction_bits)).astype("<i4")
        out[:] = fixed.view(np.uint8).reshape(-1, 3, 4)[:, :, :3].reshape(-1, 9)

    return _encode(len(table), 9, pack)


def encode_alphas(table: SplatTable) -> np.ndarray:
    """Opacities `[N, 1]`, 255 for solid."""

    def pack(rows: slice, out: np.ndarray) -> None:
        logits = np.clip(table.opacity_logits[rows], -30, 30)
        out[:, 0] = np.rint(255 / (1 + np.exp(-logits)))

    return _encode(len(table), 1, pack)


def encode_colors(table: SplatTable) -> np.ndarray:
    """Degree-0 coefficients as wide RGB `[N, 3]`."""

    def pack(rows: slice, out: np.ndarray) -> None:
        _to_bytes(table.sh[rows, 0] * np.float32(255 * COLOR_SCALE) + np.float32(127.5), out)

    return _encode(len(table), 3, pack)


def encode_scales(table: SplatTable) -> np.ndarray:
    """Log scales `[N, 3]` in sixteenths above -10; what lies outside -10..5.94 is clamped."""

    def pack(rows: slice, out: np.ndarray) -> None:
        _to_bytes((table.log_scales[rows] + np.float32(10)) * np.float32(16), out)

    return _encode(len(table), 3, pack)


def encode_rotations(table: SplatTable, version: int) -> np.ndarray:
    """Rotations `[N, 4]` (version 3 up) or `[N, 3]`."""

    def pack(rows: slice, out: np.ndarray) -> None:
        xyzw = table.quats_wxyz[rows][:, [1, 2, 3, 0]].astype(np.float64)
        if version >= 3:
            _pack_smallest_three(xyzw, out)
        else:
            xyzw /= np.linalg.norm(xyzw, axis=1, keepdims=True)
            _to_bytes(xyzw[:, :3] * np.where(xyzw[:, 3:] < 0, -127.5, 127.5) + 127.5, out)

    return _encode(len(table), 4 if version >= 3 else 3, pack)


def encode_rest(table: SplatTable) -> np.ndarray:
    """Harmonics above degree 0 `[N, 3 * count]`, colour innermost: 5 bits for degree 1, 4 bits beyond.

    Fewer bits than the byte holds make the stream compress; the value 128 (zero) is always the centre of a bucket.
    """
    width = 3 * (table.sh.shape[1] - 1)
    bucket = np.where(np.arange(width) < 9, 8, 16).astype(np.float32)
    flat = table.sh.reshape(len(table), width + 3)

    def pack(rows: slice, out: np.ndarray) -> None:
        steps = np.clip(flat[rows, 3:], -1, 1) * (np.float32(128) / bucket)
        _to_bytes(np.rint(steps, out=steps) * bucket + np.float32(128), out)

    return _encode(len(table), width, pack)


def choose_fraction_bits(means: np.ndarray) -> int | None:
    """Fractional bits for positions: 12 as other writers use (a quarter of a millimetre), more for small scenes.

    Small means that 1/4096 is coarser than 1/32768 of the scene's extent. Fewer are returned for coordinates beyond
    2047, and None where even whole units do not fit into 24 bits.
    """
    if not len(means):
        return 12
    low, high = means.min(axis=0).astype(np.float64), means.max(axis=0).astype(np.float64)
    extent, reach = float((high - low).max()), float(np.abs([low, high]).max())
    bits = 12
    while bits < MAX_FRACTION_BITS and 0 < extent < 2.0 ** (15 - bits):
        bits += 1
    while bits >= 0 and reach * 2.0**bits >= _LARGEST - 1:
        bits -= 1
    return bits if bits >= 0 else None


def _blocks(count: int) -> Iterator[slice]:
    return (slice(start, min(start + _BLOCK, count)) for start in range(0, count, _BLOCK))


def _encode(count: int, width: int, pack: Callable[[slice, np.ndarray], None]) -> np.ndarray:
    result = np.empty((count, width), np.uint8)
    for rows in _blocks(count):
        pack(rows, result[rows])
    return result


def _to_bytes(values: np.ndarray, out: np.ndarray) -> None:
    np.copyto(out, np.rint(np.clip(values, 0, 255)), casting="unsafe")


def _widen(packed: np.ndarray) -> np.ndarray:
    """Signed integers [n,3] as float32 (24 bits fit exactly) from bytes [n,3,3]."""
    wide = np.zeros((*packed.shape[:2], 4), np.uint8)
    wide[..., 1:] = packed  # the 24 bits on top of a 32-bit word: shifting them down extends the sign
    return (wide.view("<i4")[..., 0] >> 8).astype(np.float32)


def _unpack_first_three(packed: np.ndarray) -> np.ndarray:
    xyz = packed * np.float32(1 / 127.5) - np.float32(1)
    w = np.sqrt(np.maximum(0, 1 - (xyz * xyz).sum(axis=1, keepdims=True)))
    return np.concatenate([xyz, w], axis=1)


def _unpack_smallest_three(packed: np.ndarray) -> np.ndarray:
    words = np.ascontiguousarray(packed).view("<u4")[:, 0]
    fields = np.stack([words >> 20, words >> 10, words], axis=1)
    values = (fields & 511) * np.float32(np.sqrt(0.5) / 511)
    values[(fields & 512) != 0] *= -1
    return restore_largest(words >> 30, values)


def _pack_smallest_three(xyzw: np.ndarray, out: np.ndarray) -> None:
    largest, others = drop_largest(xyzw)
    sizes = np.minimum(np.rint(np.abs(others) * (511 * np.sqrt(2))), 511).astype(np.uint32)
    fields = sizes | ((others < 0).astype(np.uint32) << 9)
    words = (largest.astype(np.uint32) << 30) | (fields[:, 0] << 20) | (fields[:, 1] << 10) | fields[:, 2]
    out[:] = words.astype("<u4")[:, None].view(np.uint8)
