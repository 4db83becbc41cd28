"""A square lattice of dark dots on a plane (the holes of an optical table), found in one picture: sharp evidence.

Dots are dark spots of a few pixels. Laid on the plane by a camera that is nearly right, a dot's neighbours lie about
one spacing away, so that the lattice is followed from dot to dot; what is no dot (a shadow, a screw) finds no place.
"""

from __future__ import annotations

from collections import deque

import numpy as np
import torch
from jaxtyping import Float
from numpy import ndarray
from torch import Tensor

SPOT, AROUND, LIGHT = 1.1, 3.2, 4.0
"""Standard deviations (pixels) of the blurs that show a spot, what is around it, and the light it is compared with."""
DARK, FLOOR = 0.05, 0.02
"""Least contrast of a spot with its surroundings; brightness (0..1) that is added to what is compared with."""
RIM = 2
NEAR, BLEND = 0.17, 0.3
"""How far from its place a dot may lie (spacings); how fast a step to the next one follows the last."""
SEEDS, FEWEST, SHARE = 24, 30, 0.3
"""Dots to begin at; fewest dots of a lattice, and fewest of those where it lies: chance finds one in ten."""
NOBODY = np.zeros(0, int)


def find_dots(picture: Float[ndarray, "H W 3"]) -> Float[ndarray, "M 2"]:
    """Pixels of dark spots, to a fraction of one."""
    import cv2

    grey = picture.astype(np.float32).mean(-1)
    spot, around, light = (cv2.GaussianBlur(grey, (0, 0), sigma) for sigma in (SPOT, AROUND, LIGHT))
    dark = (around - spot) / (light + FLOOR)
    top = (dark == cv2.dilate(dark, np.ones((5, 5), np.uint8))) & (dark > DARK)
    top[:RIM], top[-RIM:], top[:, :RIM], top[:, -RIM:] = False, False, False, False
    rows, columns = np.nonzero(top)
    middle = dark[rows, columns]
    places = []
    for before, after in (
        (dark[rows, columns - 1], dark[rows, columns + 1]),
        (dark[rows - 1, columns], dark[rows + 1, columns]),
    ):
        places.append(np.clip(0.5 * (before - after) / np.minimum(before - 2 * middle + after, -1e-6), -1, 1))
    return np.stack([columns + 0.5 + places[0], rows + 0.5 + places[1]], axis=1)


def lattice_places(
    points: Float[ndarray, "M 2"], spacing: float, middle: Float[ndarray, " 2"]
) -> tuple[ndarray, Float[ndarray, "N 2"]]:
    """Rows of the points that form a lattice, and their whole-numbered places [N,2] in it; `middle` is where to begin.

    The largest lattice wins that grows from one of the points nearest to the middle.
    """
    from scipy.spatial import cKDTree

    tree = cKDTree(points)
    first, second = _steps(points, tree, spacing)
    best: dict[int, tuple[int, int]] = {}
    for seed in tree.query(middle, k=min(SEEDS, len(points)))[1]:
        grown = _grown(points, tree, int(seed), (first, second), NEAR * spacing)
        best = max(best, grown, key=len)
    rows = np.array(list(best), int)
    return rows, np.array([best[row] for row in rows], float).reshape(-1, 2)


def _steps(points: ndarray, tree: object, spacing: float) -> tuple[ndarray, ndarray]:
    """The lattice's two steps: its direction is that of most pairs about one spacing apart, modulo a right angle."""
    pairs = tree.query_pairs(1.25 * spacing, output_type="ndarray")  # type: ignore[attr-defined]  # scipy has no types
    apart = points[pairs[:, 1]] - points[pairs[:, 0]]
    apart = apart[np.linalg.norm(apart, axis=1) > 0.75 * spacing]
    angle = float(np.angle(np.exp(4j * np.arctan2(apart[:, 1], apart[:, 0])).sum())) / 4
    first = spacing * np.array([np.cos(angle), np.sin(angle)])
    return first, np.array([-first[1], first[0]])


def _grown(
    points: ndarray, tree: object, seed: int, steps: tuple[ndarray, ndarray], near: float
) -> dict[int, tuple[int, int]]:
    """Places by row of the points reached from one of them; the steps are followed as they change."""
    places, taken, at = {seed: (0, 0)}, {(0, 0)}, {seed: steps}
    queue = deque([seed])
    while queue:
        row = queue.popleft()
        for axis in (0, 1):
            for sign in (1, -1):
                place = (places[row][0] + sign * (axis == 0), places[row][1] + sign * (axis == 1))
                if place in taken:
                    continue
                distance, found = tree.query(points[row] + sign * at[row][axis])  # type: ignore[attr-defined]  # as above
                if distance > near or found in places:
                    continue
                own = list(at[row])
                own[axis] = (1 - BLEND) * own[axis] + BLEND * sign * (points[found] - points[row])
                places[found], at[found] = place, (own[0], own[1])
                taken.add(place)
                queue.append(found)
    return places


def shared_places(flat: list[ndarray], spacing: float) -> tuple[list[tuple[ndarray, ndarray]], Float[Tensor, " 3"]]:
    """Lattices of several cameras' dots, laid on the plane, in one numbering: per camera rows [N] and places [N,2], and
    the lattice's placement on the plane (angle, shift) as the first camera has it; none where too few dots are seen.
    """
    middle = np.median(np.concatenate(flat), axis=0)
    found: list[tuple[ndarray, ndarray]] = []
    placement = None
    for points in flat:
        rows, places = lattice_places(points, spacing, middle) if len(points) > FEWEST else (NOBODY, np.zeros((0, 2)))
        inside = ((points >= points[rows].min(0)) & (points <= points[rows].max(0))).all(1).sum() if len(rows) else 0
        if len(rows) < max(FEWEST, SHARE * inside):
            found.append((rows[:0], places[:0]))
            continue
        if placement is None:
            placement = _placed(points[rows], places, spacing)
        turn = spacing * np.array(
            [[np.cos(placement[0]), np.sin(placement[0])], [-np.sin(placement[0]), np.cos(placement[0])]]
        )
        own = (points[rows] - placement[1:]) @ np.linalg.inv(turn)
        # The camera's own numbering, turned by right angles and shifted by whole steps.
        quarter = np.round(np.linalg.lstsq(places - places.mean(0), own - own.mean(0), rcond=None)[0])
        places = places @ quarter
        found.append((rows, places + np.round(np.median(own - places, axis=0))))
    return found, torch.tensor(np.zeros(3) if placement is None else placement, dtype=torch.float64)


def _placed(points: ndarray, places: ndarray, spacing: float) -> ndarray:
    """Angle and shift of the lattice, the middle of its dots being exact."""
    step = np.linalg.lstsq(places - places.mean(0), points - points.mean(0), rcond=None)[0]
    angle = float(np.arctan2(step[0, 1] - step[1, 0], step[0, 0] + step[1, 1]))
    turn = spacing * np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    return np.concatenate([[angle], points.mean(0) - places.mean(0) @ turn])
