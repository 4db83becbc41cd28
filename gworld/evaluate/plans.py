"""Where the cameras stood, seen from above and from the side: frusta coloured by time over the points of the scene."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from gworld.evaluate.charts import VIRIDIS, css, nice_length, number, raster_points, scaled_colors
from gworld.evaluate.html import Fragment, text

SIZE, MARGIN = 500, 12
MOST_FRUSTA = 160
"""Frusta that are drawn; of more cameras an even choice."""


@dataclass(frozen=True)
class CameraPlan:
    """Posed cameras of a capture and the points they were posed by, in the world's frame (+Z up where `upright`).

    world_from_camera [C,4,4]; fields [C,2] half angles of view (horizontal, vertical) in radians; rigs [C] which
    physical camera took each view, in order of time within one; held_out [C] those that the fit never saw; points
    [P,3] with colors [P,3]; `metric` is True where lengths are metres.
    """

    world_from_camera: Float[np.ndarray, "C 4 4"]
    fields: Float[np.ndarray, "C 2"]
    rigs: Int[np.ndarray, " C"]
    held_out: Bool[np.ndarray, " C"]
    points: Float[np.ndarray, "P 3"] = field(default_factory=lambda: np.zeros((0, 3)))
    colors: UInt8[np.ndarray, "P 3"] = field(default_factory=lambda: np.zeros((0, 3), np.uint8))
    metric: bool = False
    upright: bool = True


def draw_plan(plan: CameraPlan, *, side: bool = False) -> Fragment:
    """One view of the plan: from above (x right, y up), or from the side (x right, z up); nothing without cameras.

    Where the world is not upright, the axis along which the cameras spread least is taken for the height.
    """
    if not len(plan.world_from_camera):
        return Fragment("")
    axes = _axes(plan)[[0, 2] if side else [0, 1]]
    eyes = plan.world_from_camera[:, :3, 3] @ axes.T
    box = _box(eyes, plan.points @ axes.T)
    scale = (SIZE - 2 * MARGIN) / (box[2] - box[0])
    height = (box[3] - box[1]) * scale + 2 * MARGIN

    def place(points: np.ndarray) -> np.ndarray:
        return np.stack([MARGIN + (points[..., 0] - box[0]) * scale, MARGIN + (box[3] - points[..., 1]) * scale], -1)

    parts = []
    if len(plan.points):
        link = raster_points(plan.points @ axes.T, _colors(plan), box, 400)
        parts.append(
            f'<image x="{MARGIN}" y="{MARGIN}" width="{SIZE - 2 * MARGIN}" height="{height - 2 * MARGIN:.0f}" '
            f'opacity="0.75" preserveAspectRatio="none" href="{link}"/>'
        )
    size = 0.05 * math.hypot(box[2] - box[0], box[3] - box[1])
    parts += _paths(plan, place(eyes)) + _frusta(plan, axes, size, place) + [_scale_bar(plan, scale, height)]
    name = "cameras from the side" if side else "cameras from above"
    return Fragment(
        f'<svg viewBox="0 0 {SIZE} {height + 26:.0f}" width="{SIZE}" height="{height + 26:.0f}" role="img" '
        f'aria-label="{name}">' + "".join(parts) + "</svg>"
    )


def _axes(plan: CameraPlan) -> np.ndarray:
    """Rows: right, away and up of the drawing in the world."""
    if plan.upright:
        return np.eye(3)
    eyes = plan.world_from_camera[:, :3, 3]
    _, vectors = np.linalg.eigh(np.cov(eyes.T) if len(eyes) > 2 else np.eye(3))
    up = vectors[:, 0] * (-1 if plan.world_from_camera[:, :3, 1].mean(0) @ vectors[:, 0] > 0 else 1)
    right = vectors[:, 2]
    return np.stack([right, np.cross(up, right), up])


def _box(eyes: np.ndarray, points: np.ndarray) -> tuple[float, float, float, float]:
    """A box around all cameras and the bulk of the points, at most two to one."""
    low, high = eyes.min(0), eyes.max(0)
    if len(points):
        bulk = np.quantile(points, (0.05, 0.95), axis=0)
        reach = max(float((high - low).max()), 1e-9)
        low = np.minimum(low, np.maximum(bulk[0], low - 2 * reach))
        high = np.maximum(high, np.minimum(bulk[1], high + 2 * reach))
    middle, size = (low + high) / 2, np.maximum((high - low) * 1.12, 1e-9)
    size = np.maximum(size, [size.max() / 1.0, size.max() / 2])
    return (*(middle - size / 2), *(middle + size / 2))


def _colors(plan: CameraPlan) -> np.ndarray:
    return plan.colors if len(plan.colors) == len(plan.points) else np.full(plan.points.shape, 128, np.uint8)


def _paths(plan: CameraPlan, places: np.ndarray) -> list[str]:
    """A thin line through the places of each physical camera."""
    parts = []
    for rig in np.unique(plan.rigs):
        own = places[plan.rigs == rig]
        if len(own) > 1:
            line = " ".join(f"{x:.1f},{y:.1f}" for x, y in own)
            parts.append(f'<polyline points="{line}" fill="none" stroke="var(--s5)" stroke-width="1" opacity="0.7"/>')
    return parts


def _frusta(plan: CameraPlan, axes: np.ndarray, size: float, place: Callable[[np.ndarray], np.ndarray]) -> list[str]:
    """Triangles that open in the direction of view, coloured by order in time; held-out ones are hollow and orange."""
    count = len(plan.world_from_camera)
    colors = scaled_colors(np.arange(count) / max(count - 1, 1), VIRIDIS)
    parts = []
    for index in np.unique(np.linspace(0, count - 1, min(count, MOST_FRUSTA)).round().astype(int)):
        pose, (wide, high) = plan.world_from_camera[index], np.tan(plan.fields[index])
        corners = np.array([[x * wide, y * high, 1.0] for x in (-1, 1) for y in (-1, 1)]) * size
        outline = place((pose[:3, :3] @ corners.T).T @ axes.T + pose[:3, 3] @ axes.T)
        eye = place(pose[:3, 3] @ axes.T)
        hull = _hull(np.concatenate([outline, eye[None]]))
        shape = " ".join(f"{x:.1f},{y:.1f}" for x, y in hull)
        held = bool(plan.held_out[index])
        fill, stroke = ("none", "var(--s2)") if held else (css(colors[index]), css(colors[index]))
        note = " (held out)" if held else ""
        parts.append(
            f'<polygon points="{shape}" fill="{fill}" fill-opacity="0.3" stroke="{stroke}" stroke-width="1.3">'
            f"<title>view {index + 1} of {count}{note}</title></polygon>"
            f'<circle cx="{eye[0]:.1f}" cy="{eye[1]:.1f}" r="1.8" fill="{stroke}"/>'
        )
    return parts


def _hull(points: np.ndarray) -> np.ndarray:
    """The convex outline of a few points in the plane (Andrew's monotone chain)."""
    ordered = sorted(map(tuple, points))

    def half(run: Sequence[tuple[float, ...]]) -> list[tuple[float, ...]]:
        chain: list[tuple[float, ...]] = []
        for point in run:
            while len(chain) > 1 and (chain[-1][0] - chain[-2][0]) * (point[1] - chain[-2][1]) <= (
                chain[-1][1] - chain[-2][1]
            ) * (point[0] - chain[-2][0]):
                chain.pop()
            chain.append(point)
        return chain[:-1]

    return np.array(half(ordered) + half(ordered[::-1]))


def _scale_bar(plan: CameraPlan, scale: float, height: float) -> str:
    """A bar of a round length, in metres where the world is metric."""
    length = nice_length(90 / scale)
    unit = "m" if plan.metric else "units (no metric scale)"
    y, end = height + 8, MARGIN + length * scale
    return (
        f'<line x1="{MARGIN}" x2="{end:.1f}" y1="{y:.0f}" y2="{y:.0f}" stroke="var(--ink)" stroke-width="2"/>'
        f'<text x="{end + 8:.1f}" y="{y + 4:.0f}">{text(number(length))} {unit}</text>'
    )
