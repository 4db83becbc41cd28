"""Drawing what moves, for many states at once, in the part of each picture where it stands."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from gworld.errors import InputError
from gworld.reconstruct.motion_bodies import Bodies, moved, poses_of
from gworld.reconstruct.motion_film import Level, Plates, levels_of
from gworld.render.api import RenderOptions
from gworld.render.select import render
from gworld.scene.cameras import Cameras
from gworld.scene.gaussians import select_gaussians
from gworld.scene.world import World

MARGIN = 6
"""Pixels around the bodies that are compared too."""
NEAR = 0.05
BEHIND = 0.02
"""Metres by which a body must be farther than the static scene to be hidden by it."""

Box = tuple[int, int, int, int]


@dataclass(frozen=True, eq=False)
class Drawn:
    """W states in one camera's box (top, left, bottom, right): colours times opacity [W,h,w,3] and opacity [W,h,w]."""

    box: Box
    rgb: Float[Tensor, "W h w 3"]
    alpha: Float[Tensor, "W h w"]


def draw(bodies: Bodies, states: Float[Tensor, "W S"], level: Level, camera: int, box: Box | None = None) -> Drawn:
    """Draw W states as camera `camera` of a level sees them, hidden where the static scene stands before them."""
    return draw_poses(bodies, poses_of(bodies, states), level, camera, box)


def draw_poses(
    bodies: Bodies, poses: Float[Tensor, "W L 4 4"], level: Level, camera: int, box: Box | None = None
) -> Drawn:
    """As `draw`, from poses of the links."""
    top, left, bottom, right = box or (0, 0, level.cameras.height, level.cameras.width)
    K = level.cameras.K[camera : camera + 1].clone()
    K[:, 0, 2] -= left
    K[:, 1, 2] -= top
    view = replace(level.cameras[camera], K=K, width=right - left, height=bottom - top, names=(), links=())
    outputs = ("rgb", "alpha") if level.shield is None else ("rgb", "alpha", "depth")
    with torch.no_grad():
        options = RenderOptions(antialiased=level.sharp)
        shown = render(bodies.gaussians, poses.float(), view, outputs=outputs, options=options)
    assert shown.rgb is not None and shown.alpha is not None
    rgb, alpha = shown.rgb[:, 0], shown.alpha[:, 0]
    if level.shield is not None and shown.depth is not None:
        free = (shown.depth[:, 0] < level.shield[camera, top:bottom, left:right] + BEHIND).float()
        rgb, alpha = rgb * free[..., None], alpha * free
    return Drawn((top, left, bottom, right), rgb, alpha)


def box_of(bodies: Bodies, states: Float[Tensor, "W S"], level: Level, camera: int) -> Box | None:
    """Where some states' bodies stand in a camera's picture, with a margin; None when outside of it."""
    means, links = bodies.gaussians.means[::3].double(), bodies.gaussians.links[::3].long()
    local = (level.eyes[camera] @ poses_of(bodies, states))[:, links]
    points = (local[..., :3, :3] @ means[..., None])[..., 0] + local[..., :3, 3]
    points = points[points[..., 2] > NEAR]
    if not len(points):
        return None
    pixels = points[:, :2] / points[:, 2:] * level.cameras.K[camera].diagonal()[:2] + level.cameras.K[camera, :2, 2]
    width, height = level.cameras.width, level.cameras.height
    inside = ((pixels > -MARGIN) & (pixels < pixels.new_tensor([width, height]) + MARGIN)).all(-1)
    if not bool(inside.any()):
        return None
    low, high = pixels[inside].amin(0), pixels[inside].amax(0)
    left, top = (max(0, int(value) - MARGIN) for value in low)
    right, bottom = (min(end, int(value) + 1 + MARGIN) for value, end in zip(high, (width, height), strict=True))
    return (top, left, bottom, right) if bottom > top and right > left else None


def drifted(
    bodies: Bodies, states: Float[Tensor, "W S"], velocity: Float[Tensor, " P"] | None, late: float
) -> Float[Tensor, "W S"]:
    """The states a moment later, at a constant velocity (per second)."""
    return states if velocity is None or late == 0.0 else moved(bodies, states, velocity * late)


def scene_plates(world: World, cameras: Cameras) -> Plates:
    """What the world's static Gaussians show to each camera, and how far they stand: plates that need no footage.

    Raises `InputError` when the world has no static Gaussians.
    """
    static = select_gaussians(world.gaussians, world.gaussians.links == 0)
    if not len(static):
        raise InputError(
            "the world has no static Gaussians to stand behind the bodies; take the plates from the video."
        )
    with torch.no_grad():
        shown = render(static, None, replace(cameras, names=(), links=()), outputs=("rgb", "alpha", "depth"))
    assert shown.rgb is not None and shown.alpha is not None and shown.depth is not None
    seen = shown.alpha[0] > 0.5
    shield = torch.where(seen, shown.depth[0], torch.inf)
    return Plates(shown.rgb[0].clamp(0, 1).numpy(), seen.numpy(), shield.numpy())


def outlined(
    bodies: Bodies, states: Float[Tensor, "T S"], camera: Cameras, pictures: Iterable[np.ndarray]
) -> Iterator[UInt8[np.ndarray, "H W 3"]]:
    """Pictures [H,W,3] uint8 of one camera with the bodies' outlines in green."""
    blank = np.zeros((1, camera.height, camera.width, 3), np.float32)
    level = levels_of(replace(camera, names=(), links=()), Plates(blank, blank[..., 0] > 0), (1,))[1]
    for state, picture in zip(states, pictures, strict=True):
        alpha = draw(bodies, state[None], level, 0).alpha[0].numpy() > 0.5
        edge = np.zeros_like(alpha)
        edge[1:] |= alpha[1:] != alpha[:-1]
        edge[:, 1:] |= alpha[:, 1:] != alpha[:, :-1]
        shown = np.array(picture)
        shown[edge] = (0, 255, 0)
        yield shown
