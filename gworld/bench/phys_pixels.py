"""From pixels to pixels: balls found in rendered frames, and measured in them.

A ball is seen in its own colour. Its centre is the centroid of that colour's light, its radius the one at which the
renderer draws as much of it; what is predicted is drawn again and measured by the same meter as the true film.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from gworld.data.laws import Trial, law_camera, law_world
from gworld.geometry import transform_from_pose
from gworld.render.api import RenderOptions
from gworld.render.select import render

CONTEXT = 3
PIXELS = 12.8
"""Pixels per unit of length."""


@dataclass(frozen=True)
class Seen:
    """What was found in the first frames of a film: a trial with these sizes, and poses [3,L,7] of its links."""

    trial: Trial
    poses: Float[Tensor, "K L 7"]


def film(trial: Trial, poses: Float[Tensor, "T L 4 4"], pixels: float = PIXELS) -> Float[Tensor, "T H W 3"]:
    """The frames of a trial's balls (without walls, which would hide nothing) standing at `poses`, on black."""
    world = law_world(replace(trial, walls=False))
    camera = law_camera(trial.width, round(pixels * trial.width))
    drawn = render(world.gaussians, poses.float(), camera, outputs=("rgb",), options=RenderOptions(antialiased=True))
    assert drawn.rgb is not None
    return drawn.rgb[:, 0]


def measure(frames: Float[Tensor, "T H W 3"], width: float, balls: int, *, hard: bool = False) -> tuple[Tensor, Tensor]:
    """Centres [T,N,2] in units and light [T,N] in square units of the first `balls` colours (three at most).

    `hard` counts a pixel wholly when its colour passes a half, as a mask from a video file would.
    """
    size = frames.shape[1]
    unit = width / size
    light = frames[..., :balls].double()
    light = (light > 0.5).double() if hard else light
    ticks = (torch.arange(size, dtype=torch.float64) + 0.5) * unit - width / 2
    total = light.sum(dim=(1, 2))
    x = torch.einsum("thwn,w->tn", light, ticks) / total.clamp_min(1e-9)
    z = torch.einsum("thwn,h->tn", light, -ticks) / total.clamp_min(1e-9)
    return torch.stack([x, z], dim=-1), total * unit**2


def see(trial: Trial, frames: Float[Tensor, "T H W 3"]) -> Seen:
    """Sizes and poses of balls from the first frames of a film; of `trial` only the view and colours are used."""
    balls = trial.centers.shape[1]
    centers, light = measure(frames[:CONTEXT], trial.width, balls)
    radii = radius_of(light.mean(dim=0).numpy(), trial.width, frames.shape[1] / trial.width)
    poses = torch.zeros(CONTEXT, balls + 1, 7)
    poses[..., 3] = 1.0
    poses[:, 1:, 0], poses[:, 1:, 2] = centers[..., 0].float(), centers[..., 1].float()
    found = replace(trial, centers=centers.numpy(), velocities=np.zeros((CONTEXT, balls, 2)), radii=radii)
    return Seen(found, poses)


def radius_of(light: np.ndarray, width: float, pixels: float) -> np.ndarray:
    """Radii of balls that give this much light (square units) in a view of this width, by `pixels` per unit."""
    radii, lights = _light_table(width, pixels)
    return np.interp(np.sqrt(light), np.sqrt(lights), radii)


@lru_cache(maxsize=8)
def _light_table(width: float, pixels: float) -> tuple[np.ndarray, np.ndarray]:
    """How much light the renderer draws for balls of known radii, the mean over sub-pixel places."""
    radii = np.geomspace(0.2, 2.4, 40)
    unit = 1.0 / pixels
    lights = []
    for radius in radii:
        trial = Trial(np.zeros((1, 1, 2)), np.zeros((1, 1, 2)), np.array([radius]), np.ones(1), width)
        poses = torch.zeros(4, 2, 7)
        poses[..., 3] = 1.0
        poses[:, 1, 0] = unit * torch.tensor([0.0, 0.25, 0.5, 0.75])
        poses[:, 1, 2] = unit * torch.tensor([0.0, 0.5, 0.25, 0.75])
        lights.append(float(measure(film(trial, transform_from_pose(poses), pixels), width, 1)[1].mean()))
    return radii, np.array(lights)
