"""Codebooks for SOG: 256 values for scalars, and a palette of up to 65,536 vectors for spherical harmonics."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np

CODES = 256
MAX_PALETTE = 1 << 16
_BINS = 1 << 16
_EVEN_SHARE = 0.7  # of the codes is spread evenly: no error beyond 1/360 of the range, at 20 % more on average
_SPLIT = 256  # palettes larger than this are found in two steps: groups first, then vectors within each group
_SCORES = 1 << 18  # distances computed at once: 1 MB, which stays in the processor's cache
# Multiplications per matrix product: BLAS keeps products up to this size on the calling thread. Its own threads spin
# while they wait, which on a busy machine costs ten times what they bring; groups are shared out to threads instead.
_PRODUCT = 1 << 18
_THREADED = 1 << 16  # points from which on groups are worth threads; below, a group is itself done on one
_WORKERS = min(8, os.cpu_count() or 1)


def fit_codebook(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Codebook [256] float32, ascending, for any array of finite values, and each value's code (uint8, same shape).

    Up to 256 distinct values are kept exactly. Otherwise codes lie with a density of p^(1/3) (Panter and Dite, 1951:
    least squared error for many codes), mixed with an even one; Lloyd's iteration was tried and gains nothing.
    """
    flat = values.reshape(-1).astype(np.float32, copy=False)
    codebook = np.zeros(CODES, np.float32)
    if not flat.size:
        return codebook, np.zeros(values.shape, np.uint8)
    if len(np.unique(flat[:4096])) <= CODES:
        distinct = np.unique(flat)
        if len(distinct) <= CODES:
            codebook[: len(distinct)], codebook[len(distinct) :] = distinct, distinct[-1]
            return codebook, np.searchsorted(distinct, values).astype(np.uint8)
    low, high = float(flat.min()), float(flat.max())
    step = (high - low) / (_BINS - 1)
    bins = np.rint((flat.astype(np.float64) - low) / step).astype(np.int32)
    counts = np.bincount(bins, minlength=_BINS).astype(np.float64)
    codes = _spread(counts)
    codebook[:] = low + codes * step
    nearest = np.searchsorted((codes[1:] + codes[:-1]) / 2, np.arange(_BINS)).astype(np.uint8)
    return codebook, nearest[bins].reshape(values.shape)


def fit_palette(points: np.ndarray, size: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Palette [K,D] of at most `size` vectors for points [N,D] float32, and each point's entry [N] int64.

    K-means in a tree: groups, then vectors within each group in proportion to its share of the total error. A million
    points cost two assignments to 256 centres per iteration instead of one to 65,536.
    """
    if len(points) <= size:
        return points, np.arange(len(points))
    rng = np.random.default_rng(seed)
    if size <= _SPLIT:
        return _lloyd(points, size, rng)
    groups, owners = _lloyd(points, int(np.sqrt(size)), rng)
    order = np.argsort(owners.astype(np.uint16), kind="stable")
    counts = np.bincount(owners, minlength=len(groups))
    sizes = _shares(points, groups, owners, counts, size)
    members = np.split(order, np.cumsum(counts)[:-1])
    seeds = rng.integers(1 << 31, size=len(groups)).tolist()

    def refine(index: int) -> tuple[np.ndarray, np.ndarray]:
        return fit_palette(points[members[index]], int(sizes[index]), seeds[index])

    used = np.flatnonzero(counts).tolist()
    if len(points) > _THREADED:
        with ThreadPoolExecutor(_WORKERS) as pool:
            parts = list(pool.map(refine, used))
    else:
        parts = [refine(index) for index in used]
    labels, filled = np.empty(len(points), np.int64), 0
    for index, (vectors, local) in zip(used, parts, strict=True):
        labels[members[index]] = local + filled
        filled += len(vectors)
    return np.concatenate([vectors for vectors, _ in parts]), labels


def _spread(counts: np.ndarray) -> np.ndarray:
    """Codes, in bins: quantiles of a density of p^(1/3) with an even part."""
    width = _BINS // 1024
    smooth = np.repeat(counts.reshape(-1, width).mean(axis=1), width)  # single bins are too noisy for a density
    density = np.cbrt(smooth)
    density = (1 - _EVEN_SHARE) * density / density.sum() + _EVEN_SHARE / _BINS
    return np.interp((np.arange(CODES) + 0.5) / CODES, np.cumsum(density), np.arange(_BINS))


def _shares(points: np.ndarray, groups: np.ndarray, owners: np.ndarray, counts: np.ndarray, size: int) -> np.ndarray:
    """Vectors for each group: in proportion to its squared error, at least one, at most one per member."""
    squared = np.einsum("nd,nd->n", points, points) - 2 * np.einsum("nd,nd->n", points, groups[owners])
    squared += np.einsum("kd,kd->k", groups, groups)[owners]
    error = np.bincount(owners, np.maximum(squared, 0), minlength=len(groups)) + 1e-30
    shares = np.ones(len(groups), np.int64)
    for _ in range(4):  # what full groups cannot take goes to the others
        free, open_groups = size - int(shares.sum()), shares < counts
        if free <= 0 or not open_groups.any():
            break
        weights = error * open_groups
        shares = np.minimum(shares + np.floor(free * weights / weights.sum()).astype(np.int64), np.maximum(counts, 1))
    return shares


def _lloyd(
    points: np.ndarray, size: int, rng: np.random.Generator, iterations: int = 10
) -> tuple[np.ndarray, np.ndarray]:
    """Plain k-means; trained on 64 points per centre where there are more."""
    size = min(size, len(points))
    train = points
    if len(points) > 64 * size:
        train = points[rng.choice(len(points), 64 * size, replace=False)]
    centres = train[rng.choice(len(train), size, replace=False)]
    for _ in range(iterations):
        labels = _assign(train, centres)
        order = np.argsort(labels.astype(np.uint16), kind="stable")
        counts = np.bincount(labels, minlength=size)
        used = np.flatnonzero(counts)
        starts = (np.cumsum(counts) - counts)[used]
        centres[used] = np.add.reduceat(train[order], starts, axis=0) / counts[used, None].astype(np.float32)
    return centres, _assign(points, centres)


def _assign(points: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """Nearest centre of each point: the largest of `p.c - |c|^2 / 2`, by matrix products on blocks."""
    offset = np.einsum("kd,kd->k", centres, centres) / 2
    transposed = np.ascontiguousarray(centres.T)
    labels = np.empty(len(points), np.int64)
    rows = max(1, _PRODUCT // centres.size)
    block = rows * max(1, _SCORES // (rows * len(centres)))
    start = 0
    while start < len(points):
        part = points[start : start + block]
        if len(part) > rows:
            part = part[: len(part) // rows * rows]
        stacked = part.reshape(-1, min(rows, len(part)), part.shape[1])
        scores = np.matmul(stacked, transposed).reshape(len(part), -1)
        scores -= offset
        labels[start : start + len(part)] = scores.argmax(axis=1)
        start += len(part)
    return labels
