"""Whether a motion can be: how deep bodies are in each other, and speed, energy and places that come from nothing.

Shapes are the solids that dynamics read from the Gaussians; everything is measured on poses alone, so that a
prediction and a recording are judged by the same meter.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from gworld.dynamics.tokens import Scene, compile_scene
from gworld.scene.world import World

ALONE = 0.005
"""Metres from everything beyond which a body is alone: only gravity and what it lies on act on it. Counted from where
its Gaussians end: their centres lie within the surface, those of fitted films by some millimetres."""
REST = 2e-3
"""Metres per second below which a body counts as at rest."""


@dataclass(frozen=True)
class Physics:
    """What was found in one motion; NaN where nothing could be measured.

    overlap [pairs deepest] m, and between whom; sunk m below what objects lie on, at most; speed gained by an object
    that was alone from one instant to the next (m/s); energy so gained over the most it had; drift m of objects that
    were at rest and touched by nothing.
    """

    overlap: float
    between: str
    sunk: float
    speed: float
    energy: float
    drift: float


def measure_physics(
    world: World, poses: Float[Tensor, "T L 4 4"], seconds: float, scene: Scene | None = None
) -> Physics:
    """The physics of a motion with an instant every `seconds`; `scene` saves reading the world's shapes again."""
    scene = compile_scene([world], seconds) if scene is None else scene
    gaps, names = link_gaps(scene, world, poses)
    below = plane_gaps(scene, poses)
    flat = gaps.reshape(len(gaps), -1)
    deepest = np.unravel_index(np.argmin(np.where(np.isfinite(gaps), gaps, np.inf)), gaps.shape) if flat.size else None
    worst = float(gaps[deepest]) if deepest is not None else np.inf
    between = f"{names[deepest[1]]} and {names[deepest[2]]}" if deepest is not None and worst < 0 else ""
    speed, energy, drift = _alone(scene, poses, gaps, seconds)
    sunk = float(np.nanmax(np.maximum(0.0, -below))) if np.isfinite(below).any() else np.nan
    return Physics(max(0.0, -worst) if np.isfinite(worst) else np.nan, between, sunk, speed, energy, drift)


def link_gaps(scene: Scene, world: World, poses: Float[Tensor, "T L 4 4"]) -> tuple[np.ndarray, tuple[str, ...]]:
    """Metres between the surfaces of links of different bodies [T,L,L], negative where one is in the other.

    One link's points are looked up in the other's distance field; pairs farther apart than both their sizes have at
    least that distance. NaN where a link has no shape, and within one body.
    """
    solids, present = scene.solids, scene.present[0]
    owner = {link: index for index, entity in enumerate(world.entities) for link in entity.links}
    moving = {link for entity in world.entities if entity.kind != "static" for link in entity.links}
    count = poses.shape[1]
    gaps = np.full((len(poses), count, count), np.nan)
    frames = poses.double().numpy()
    for a in sorted(moving):
        for b in sorted(moving):
            if a >= b or owner[a] == owner[b] or not (present[a] and present[b]):
                continue
            i, j = int(scene.solid[0, a]), int(scene.solid[0, b])
            middle = [
                frames[:, link, :3, :3] @ solids.center[k].double().numpy() + frames[:, link, :3, 3]
                for link, k in ((a, i), (b, j))
            ]
            gap = np.linalg.norm(middle[0] - middle[1], axis=1) - float(solids.bound[i] + solids.bound[j])
            near = np.flatnonzero(gap < ALONE + float(solids.skin[i] + solids.skin[j]))
            if len(near):
                both = [
                    _depth(scene, frames[near][:, [a, b]], i, j),
                    _depth(scene, frames[near][:, [b, a]], j, i),
                ]
                gap[near] = np.min(both, axis=0)
            gaps[:, a, b] = gaps[:, b, a] = gap
    return gaps, scene.link_names


def plane_gaps(scene: Scene, poses: Float[Tensor, "T L 4 4"]) -> np.ndarray:
    """Height of every object's lowest point over each half-space of the scene [T,L,Q]; NaN for what is no object."""
    planes = scene.planes[0].double().numpy()
    planes = planes[np.abs(planes[:, 3]) < 1e6]
    found = np.full((len(poses), poses.shape[1], max(len(planes), 1)), np.nan)
    frames = poses.double().numpy()
    for link in torch.nonzero(scene.free & scene.present[0])[:, 0].tolist():
        kind = int(scene.solid[0, link])
        places = _points(scene, kind) + scene.solids.center[kind].double().numpy()
        world = places @ frames[:, link, :3, :3].transpose(0, 2, 1) + frames[:, link, None, :3, 3]
        for number, plane in enumerate(planes):
            found[:, link, number] = (world @ plane[:3]).min(1) - plane[3] - float(scene.solids.radius[kind])
    return found


def _alone(
    scene: Scene, poses: Float[Tensor, "T L 4 4"], gaps: np.ndarray, seconds: float
) -> tuple[float, float, float]:
    """Speed (m/s) and energy (share) gained by objects that nothing touches, and how far such drift from rest (m)."""
    free = torch.nonzero(scene.free & scene.present[0])[:, 0].tolist()
    if len(poses) < 3 or not free:
        return np.nan, np.nan, np.nan
    skin = np.where(scene.present[0], scene.solids.skin[scene.solid[0].clamp_min(0)], 0.0)
    near = np.where(np.isnan(gaps), np.inf, gaps - skin[:, None] - skin).min(2)
    frames = poses.double()
    centre = scene.solids.center[scene.solid[0].clamp_min(0)].double()
    place = (frames[..., :3, 3] + (frames[..., :3, :3] @ centre[:, :, None])[..., 0]).numpy()
    velocity = np.diff(place, axis=0) / seconds
    up = -scene.down[0].double().numpy()
    speeds, energies, drifts = [0.0], [0.0], [0.0]
    for link in free:
        alone = near[:, link] > ALONE
        quiet = alone[:-2] & alone[1:-1] & alone[2:]
        level = velocity[:, link] - (velocity[:, link] @ up)[:, None] * up
        pace = np.linalg.norm(level, axis=1)
        gain = np.diff(pace)[quiet]
        speeds.append(float(gain.max(initial=0.0)))
        energy = 0.5 * (velocity[:, link] ** 2).sum(1) + 9.81 * 0.5 * ((place[1:] + place[:-1])[:, link] @ up)
        energy = energy - energy.min()
        energies.append(float(np.diff(energy)[quiet].max(initial=0.0)) / max(float(energy.max()), 1e-9))
        if alone[0] and pace[0] < REST:
            until = int(np.argmin(alone)) if not alone.all() else len(alone)
            drifts.append(float(np.linalg.norm(place[:until, link] - place[0, link], axis=1).max()))
    return max(speeds), max(energies), max(drifts)


def _points(scene: Scene, kind: int) -> np.ndarray:
    """Points on a solid's surface about its centre; a ball's centre alone."""
    row = int(scene.solids.row[kind])
    return np.zeros((1, 3)) if row < 0 else scene.solids.points[row].double().numpy()


def _depth(scene: Scene, frames: np.ndarray, first: int, second: int) -> np.ndarray:
    """Least gap [T] of the first solid's points to the second's surface, frames [T,2,4,4]."""
    from scipy import ndimage

    solids = scene.solids
    places = _points(scene, first) + solids.center[first].double().numpy()
    world = places @ frames[:, 0, :3, :3].transpose(0, 2, 1) + frames[:, 0, None, :3, 3]
    local = (world - frames[:, 1, None, :3, 3]) @ frames[:, 1, :3, :3] - solids.center[second].double().numpy()
    row = int(solids.row[second])
    if row < 0:
        value = np.linalg.norm(local, axis=-1) - float(solids.radius[second])
    else:
        field, cell = solids.fields[row].double().numpy(), solids.cell[row].double().numpy()
        at = (local - solids.low[row].double().numpy()) / cell
        value = ndimage.map_coordinates(field, at.reshape(-1, 3).T, order=1, mode="nearest").reshape(at.shape[:-1])
        outside = np.maximum(np.maximum(-at, at - (np.array(field.shape) - 1)), 0.0)
        value = value + np.linalg.norm(cell * outside, axis=-1)
    return value.min(1) - float(solids.radius[first])
