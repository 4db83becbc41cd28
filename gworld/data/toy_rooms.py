"""Rooms drawn at random: a table, things on it, walls, every size, place and paint from a seed, with exact truth."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from gworld.data.shapes import Paint, box, checker, cylinder, grain, plain, sphere
from gworld.errors import InputError
from gworld.scene.gaussians import Gaussians, join_gaussians

TABLE = 0.72  # metres


def random_room(seed: int, spacing: float = 0.012) -> Gaussians:
    """A furnished room around a table at the origin; metres, +Z up, one link.

    `spacing` is the distance between surface Gaussians in metres. Raises `InputError` outside 0.002 .. 0.1.
    """
    if not 0.002 <= spacing <= 0.1:
        raise InputError(f"a spacing of {spacing} m was asked for; 0.002 to 0.1 m is needed.")
    random = np.random.default_rng([seed, 0x6700])
    wide, deep = random.uniform(1.1, 1.8), random.uniform(0.8, 1.2)
    parts = [
        box((3.2, 3.0, 0.02), 3 * spacing, _paint(random, 0.4), (0, 0.2, -0.01)),
        box((3.2, 0.02, random.uniform(1.0, 1.8)), 3 * spacing, _paint(random, 0.5), (0, 1.7, 0.75)),
        box((wide, deep, 0.04), spacing, _paint(random, 0.15), (0, 0, TABLE - 0.02)),
    ]
    legs = [(x, y, TABLE / 2 - 0.02) for x in (-0.45 * wide, 0.45 * wide) for y in (-0.4 * deep, 0.4 * deep)]
    steel = _paint(random, 0.2)
    parts += [box((0.06, 0.06, TABLE - 0.04), 2 * spacing, steel, leg) for leg in legs]
    for _ in range(int(random.integers(5, 13))):
        parts.append(_thing(random, 0.7 * spacing, 0.42 * wide, 0.4 * deep))
    whole = join_gaussians(parts)
    return replace(whole, means=whole.means.contiguous())


def _thing(random: np.random.Generator, spacing: float, wide: float, deep: float) -> Gaussians:
    """A box, ball, cylinder or tower of these, standing on the table."""
    x, y = random.uniform(-wide, wide), random.uniform(-deep, deep)
    size = random.uniform(0.03, 0.13)
    paint = _paint(random, size)
    kind = random.integers(4)
    if kind == 0:
        edges = size * random.uniform(0.6, 2.0, size=3)
        return box(edges.tolist(), spacing, paint, (x, y, TABLE + edges[2] / 2))
    if kind == 1:
        return sphere(size, spacing, paint, (x, y, TABLE + size))
    height = size * random.uniform(0.8, 4.0)
    column = cylinder(0.6 * size, height, spacing, paint, (x, y, TABLE + height / 2))
    if kind == 2:
        return column
    return join_gaussians([column, sphere(0.8 * size, spacing, _paint(random, size), (x, y, TABLE + height + size))])


def _paint(random: np.random.Generator, size: float) -> Paint:
    """Plain, checkered or striped in random colours; the pattern is finer than the thing."""
    first, second = random.uniform(0.08, 0.95, size=(2, 3)).tolist()
    kind = random.integers(4)
    if kind == 0:
        return plain(*first)
    if kind == 1:
        return grain(first, float(random.uniform(0.05, 0.35)), float(size * random.uniform(0.2, 1.0)))
    return checker(first, second, float(size * random.uniform(0.15, 0.7)))
