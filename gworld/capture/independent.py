"""What moves by itself before a moving camera: what its rigid motion does not explain, grown to regions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float, Float32, UInt8
from numpy import ndarray

from gworld.capture.explain import soften, static_against_flow
from gworld.capture.flow import mask_at, texture_of, texture_spots, track_points
from gworld.capture.regions import clean_regions, guided_mean, hysteresis
from gworld.capture.rigid import Motion, Tracks, best_depth, fit_motion, rays_of, residuals, targets_of

CELL = 4
"""Pixels between the tracks that are judged."""
FOCALS = (0.7, 1.0, 1.4, 2.0)
"""Focal lengths tried where none is known, in widths of the picture."""
FINER = (0.79, 0.85, 0.92, 1.08, 1.17, 1.26)
"""And those tried then, in units of the best."""
STEPS = (-8, -4, -2, 2, 4, 8)
"""Pictures that a window compares with its middle one, in units of `_stride`."""
NOISE = 0.3
"""Pixels: flow is not trusted beyond this."""
PRIOR = 0.25
"""Weight with which a point is static before anything is known; a well textured one weighs 1 per picture."""
BLAND = 0.05
"""Texture below which a point says nothing."""
LIMIT = 3.5
"""Residuals, in units of the noise, at which static turns to moving."""
WORSE = 0.75, 1.05
"""How much worse than its track a static world must explain a point (a ratio) that may move, and that surely does."""


@dataclass(frozen=True)
class Independent:
    """`masks` True where something moves by itself; `explained` the share of followed points, per picture, that the
    dominant motion explains; `focal` in pixels, as given or guessed."""

    masks: Bool[ndarray, "T H W"]
    explained: Float[ndarray, " T"]
    focal: float


@dataclass(frozen=True)
class _Window:
    tracks: Tracks
    depth: ndarray
    evidence: ndarray
    weight: ndarray

    @property
    def explained(self) -> float:
        """The share of textured points that do not move by themselves."""
        solid = self.weight > 0.5
        return float((self.evidence[solid] <= 0).mean()) if solid.any() else 0.0


def find_independent(
    gray: UInt8[ndarray, "T H W"],
    flows: tuple[Float32[ndarray, "P H W 2"], Float32[ndarray, "P H W 2"]],
    ignore: Bool[ndarray, "H W"],
    focal: float = 0.0,
    progress: Callable[[float], None] | None = None,
) -> Independent:
    """Judge every picture against its neighbours; `ignore` is left out of the fit, `focal` 0 where unknown."""
    count, height, width = gray.shape
    offsets = tuple(step * _stride(flows[0], ignore, count) for step in STEPS)
    focal = focal or _guess_focal(gray, flows, ignore, offsets)
    grid = _grid(height, width)
    windows: list[_Window] = []
    soft = soften(gray)
    last: Motion | None = None
    for frame in range(count):
        spots = texture_spots(gray[frame], 8)
        spots = spots[~mask_at(ignore, spots)]
        sparse = track_points(gray, spots[:: max(1, len(spots) // 500)], flows, frame, offsets)
        last = _fit(sparse, focal, (width / 2, height / 2), last)
        tracks = track_points(gray, grid, flows, frame, offsets)
        windows.append(_judge(tracks, gray[frame], ignore, focal, last))
        if last is not None:
            windows[-1] = _acquit(windows[-1], soft, frame, focal, last)
        if progress is not None:
            progress((frame + 1) / count)
    shape = -(-height // CELL), -(-width // CELL)
    masks = [_mask(windows, frame, gray[frame], shape) for frame in range(count)]
    return Independent(np.stack(masks), np.array([window.explained for window in windows]), focal)


def _grid(height: int, width: int) -> ndarray:
    x, y = np.meshgrid(np.arange(CELL / 2, width + CELL / 2, CELL), np.arange(CELL / 2, height + CELL / 2, CELL))
    points = np.stack([np.minimum(x, width - 0.5), np.minimum(y, height - 0.5)], -1)
    return points[: -(-height // CELL), : -(-width // CELL)].reshape(-1, 2)


def _stride(ahead: ndarray, ignore: ndarray, count: int) -> int:
    """Pictures per step, so that the shortest comparison spans about 1 % of the width."""
    speed = np.linalg.norm(ahead[:, ::4, ::4], axis=-1)[:, ~ignore[::4, ::4]]
    typical = float(np.median(speed)) if speed.size else 1.0
    wanted = round(0.01 * ahead.shape[2] / max(2 * typical, 0.1))
    return int(np.clip(wanted, 1, max(1, min(3, count // 20))))


def _guess_focal(gray: ndarray, flows: tuple[ndarray, ndarray], ignore: ndarray, offsets: tuple[int, ...]) -> float:
    """The focal length at which a few windows cost least: first coarsely, then finely around the best."""
    count, height, width = gray.shape
    windows = []
    for frame in np.unique(np.linspace(0.12 * count, 0.88 * count, 5).astype(int)):
        spots = texture_spots(gray[frame], 8)
        spots = spots[~mask_at(ignore, spots)]
        windows.append(track_points(gray, spots[:: max(1, len(spots) // 200)], flows, int(frame), offsets))
    found: list[Motion | None] = [None] * len(windows)
    best, tried = 1.0, {}
    for factors in (FOCALS, FINER):
        for factor in best * np.asarray(factors):
            fits = [_fit(w, factor * width, (width / 2, height / 2), f) for w, f in zip(windows, found, strict=True)]
            tried[float(factor)] = sum(fit.cost for fit in fits if fit is not None)
            found = found if any(found) else fits
        best = min(tried, key=lambda factor: tried[factor])
    return _valley(tried, best) * width


def _valley(costs: dict[float, float], best: float) -> float:
    """The lowest point of the parabola through the best value and its neighbours, in the logarithm of the key."""
    keys = sorted(costs)
    place = keys.index(best)
    if not 0 < place < len(keys) - 1:
        return best
    x = np.log(keys[place - 1 : place + 2])
    curve = np.polyfit(x, [costs[key] for key in keys[place - 1 : place + 2]], 2)
    return float(np.exp(np.clip(-curve[1] / (2 * curve[0]), x[0], x[2]))) if curve[0] > 1e-12 else best


def _fit(tracks: Tracks, focal: float, centre: tuple[float, float], last: Motion | None) -> Motion | None:
    """The window's camera motion, begun from the one before where both have the same neighbours."""
    if tracks.seen.sum() < 60 or not tracks.offsets:
        return None
    same = last is not None and len(last.shift) == len(tracks.offsets)
    return fit_motion(tracks, focal, centre, last if same else None)


def _judge(tracks: Tracks, gray: ndarray, ignore: ndarray, focal: float, motion: Motion | None) -> _Window:
    height, width = gray.shape
    number = len(tracks.start)
    if motion is None or not tracks.offsets:
        return _Window(tracks, np.ones(number), np.zeros(number), np.zeros(number))
    centre = (width / 2, height / 2)
    rays, target = rays_of(tracks.start, focal, centre), targets_of(tracks, centre)
    seen = tracks.seen.astype(np.float64)
    depth = np.ones(number)
    for _ in range(4):
        depth = best_depth(rays, target, seen, focal, motion, 2.0, depth)
    square = residuals(rays, target, focal, motion, depth)
    enough = (tracks.seen.sum(0) >= 2) & ~mask_at(ignore, tracks.start)
    texture = mask_values(texture_of(gray), tracks.start)
    solid = enough & (texture > 0.5)
    noise = NOISE
    if solid.sum() > 20:
        noise = max(NOISE, float(np.median(np.sqrt(square[tracks.seen & solid]))) / 1.18)
    score = np.sqrt(_one_sided(np.minimum(square, 100.0), tracks)) / noise
    evidence = np.clip((score - LIMIT) / LIMIT, -1, 1)
    return _Window(tracks, depth, evidence, enough * np.where(texture > BLAND, texture, 0))


def _acquit(window: _Window, soft: ndarray, frame: int, focal: float, motion: Motion) -> _Window:
    """A window whose evidence that points move stands only where no static world explains the pictures as well."""
    sure = (window.evidence < 0) & (window.weight > 0)
    accused = np.flatnonzero((window.evidence > 0) & (window.weight > 0))
    if not len(accused) or not sure.any():
        return window
    tracks = window.tracks
    part = Tracks(tracks.start[accused], tracks.at[:, accused], tracks.seen[:, accused], tracks.offsets)
    nearest = 1.5 * float(np.percentile(window.depth[sure], 99))
    ratio = static_against_flow(soft, frame, part, motion, focal, nearest)
    evidence = window.evidence.copy()
    evidence[accused] = np.minimum(evidence[accused], np.clip((ratio - WORSE[0]) / (WORSE[1] - WORSE[0]), 0, 1))
    return replace(window, evidence=evidence)


def mask_values(values: ndarray, points: ndarray) -> ndarray:
    """Nearest values of a map under points."""
    row = np.clip(points[:, 1].astype(int), 0, values.shape[0] - 1)
    return values[row, np.clip(points[:, 0].astype(int), 0, values.shape[1] - 1)]


def _one_sided(square: ndarray, tracks: Tracks) -> ndarray:
    """Mean squares [N] over the better of past and future: what is about to be hidden is still judged by the other."""
    parts = []
    for sign in (-1, 1):
        rows = [index for index, offset in enumerate(tracks.offsets) if offset * sign > 0]
        seen = tracks.seen[rows]
        mean = (square[rows] * seen).sum(0) / np.maximum(seen.sum(0), 1)
        parts.append(np.where(seen.sum(0) >= 2, mean, np.inf))
    whole = (square * tracks.seen).sum(0) / np.maximum(tracks.seen.sum(0), 1)
    better = np.minimum(*parts)
    return np.where(np.isfinite(better), 0.5 * (better + whole), whole)


def _mask(windows: list[_Window], frame: int, gray: ndarray, shape: tuple[int, int]) -> ndarray:
    """Evidence of a picture and, along the tracks, of its neighbours, smoothed within edges and cut by hysteresis."""
    here = windows[frame]
    top, bottom = here.evidence * here.weight, here.weight.copy()
    for row, offset in enumerate(here.tracks.offsets):
        if abs(offset) > abs(STEPS[1]) or not 0 <= frame + offset < len(windows):
            continue
        there = windows[frame + offset]
        spot = np.stack([here.tracks.at[row, :, 0], here.tracks.at[row, :, 1]], -1) // CELL
        index = np.clip(spot[:, 1], 0, shape[0] - 1) * shape[1] + np.clip(spot[:, 0], 0, shape[1] - 1)
        index = index.astype(int)
        share = 0.5 * here.tracks.seen[row] * there.weight[index]
        top, bottom = top + share * there.evidence[index], bottom + share
    mean = guided_mean(gray, top.reshape(shape), (bottom + PRIOR).reshape(shape))
    return clean_regions(hysteresis(mean, 0.05, 0.35))
