"""Morton (Z-order) codes: neighbours in space become neighbours in a list (Morton, IBM, 1966)."""

from __future__ import annotations

import numpy as np

BITS = 21  # per axis, so that three interleaved axes fill 63 bits

_STEPS = (
    (32, 0x001F00000000FFFF),
    (16, 0x001F0000FF0000FF),
    (8, 0x100F00F00F00F00F),
    (4, 0x10C30C30C30C30C3),
    (2, 0x1249249249249249),
)


def morton_codes(cells: np.ndarray) -> np.ndarray:
    """Codes [N] uint64 of integer cells [N,3] below 2^21 per axis; x takes the lowest bit."""
    codes = np.zeros(len(cells), np.uint64)
    for axis in range(3):
        codes |= _spread(cells[:, axis].astype(np.uint64)) << np.uint64(axis)
    return codes


def _spread(cells: np.ndarray) -> np.ndarray:
    """Put two zero bits between the 21 low bits of each number."""
    for shift, mask in _STEPS:
        cells = (cells | (cells << np.uint64(shift))) & np.uint64(mask)
    return cells
