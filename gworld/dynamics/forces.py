"""Forces across a distance: a learned power of it, equal and opposite, along the line between two bodies."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gworld.dynamics.free import Free
from gworld.dynamics.layers import coefficient
from gworld.dynamics.materials import Materials
from gworld.dynamics.recordings import Recordings
from gworld.dynamics.tokens import Scene, shape_values

LEAST = 64
"""Accelerations below which no force can be fitted."""
WIDTHS = (1.0, 0.03)
"""Errors, in parts of a usual acceleration, above which they count ever less: what is struck must not count."""


class PairForces(nn.Module):
    """Attraction `strength * m_a m_b (r / length)^exponent`; the strength carries the unit and begins near nothing."""

    def __init__(self, length: float, generator: torch.Generator) -> None:
        super().__init__()
        self.length = length
        self.strength = coefficient(0.0, 0.05, generator)
        self.exponent = coefficient(-1.0, 0.1, generator)

    def forward(self, scene: Scene, place: Tensor, mass: Tensor) -> Tensor:
        """Accelerations [W,L,3] of bodies at `place` [W,L,3] with relative masses [W,L] (0: absent)."""
        i, j = scene.pairs[:, 0], scene.pairs[:, 1]
        line = place[:, j] - place[:, i]
        far = line.norm(dim=-1).clamp_min(1e-3 * self.length)
        pull = self.strength * self.length * (far / self.length) ** self.exponent
        along = pull[..., None] * line / far[..., None]
        zero = torch.zeros_like(place)
        return zero.index_add(1, i, along * mass[:, j, None]).index_add(1, j, -along * mass[:, i, None])


def fit_forces(forces: PairForces, materials: Materials, free: Free, data: Recordings) -> int:
    """Fit strength, exponent, the power of volume in mass, the fall and the drag to accelerations in recordings.

    A strength and an exponent look alike where distances hardly differ, so they are sought as the force at the usual
    distance and its slope there, once attracting and once repelling. Returns how many accelerations there were; with
    fewer than 64 nothing is changed.
    """
    design = _design(forces, materials, data)
    count = int((data.scene.free & data.scene.present).sum()) * design.truth.shape[1]
    if count < LEAST or not len(data.scene.pairs):
        return 0
    usual = float(design.truth.square().sum(-1).mean().sqrt().clamp_min(1e-9))
    found = []
    for sign in (1.0, -1.0):
        start = [math.log(usual), float(forces.exponent.detach()), float(materials.power.detach()), 0.0, 0.0]
        own = torch.tensor(start, dtype=design.truth.dtype, device=design.truth.device, requires_grad=True)

        def predict(own: Tensor = own, sign: float = sign) -> Tensor:
            return sign * design.pull(own) + design.fly(own)

        for width in WIDTHS:
            error = _descend(own, predict, design, width * usual)
        found.append((error, sign, own.tolist()))
    _, sign, (size, exponent, mass, down, drag) = min(found)
    with torch.no_grad():
        whole = math.exp(size - exponent * design.middle - mass * design.bulk)
        forces.strength.fill_(sign * whole / forces.length)
        forces.exponent.fill_(exponent)
        materials.power.fill_(mass)
        free.fall.fill_(down / forces.length)
        free.drag.fill_(max(drag, 0.0))
    return count


@dataclass(frozen=True)
class _Design:
    """Unit lines [E,T,P,3] of pairs, logarithms of their distances [E,T,P] and of volumes [E,1,L], both about their
    means `middle` and `bulk`, of densities [E,1,L], and the true velocities and accelerations of objects [E,T,L,3]."""

    scene: Scene
    line: Tensor
    logs: Tensor
    volume: Tensor
    density: Tensor
    speed: Tensor
    truth: Tensor
    middle: float
    bulk: float

    def pull(self, own: Tensor) -> Tensor:
        """Accelerations by the masses of the others, of the size exp(own[0]) at the usual distance."""
        i, j = self.scene.pairs[:, 0], self.scene.pairs[:, 1]
        pull = (own[0] + own[1] * self.logs).exp()[..., None] * self.line
        mass = (own[2] * self.volume + self.density).exp().expand(*self.line.shape[:2], -1)[..., None]
        zero = torch.zeros_like(self.truth)
        told = zero.index_add(2, i, pull * mass[:, :, j]).index_add(2, j, -pull * mass[:, :, i])
        return told * (self.scene.free & self.scene.present)[:, None, :, None]

    def fly(self, own: Tensor) -> Tensor:
        """Accelerations along gravity's direction and against the motion."""
        free = (self.scene.free & self.scene.present)[:, None, :, None]
        return (own[3] * self.scene.down[:, None, None] - own[4] * self.speed) * free


@torch.no_grad()
def _design(forces: PairForces, materials: Materials, data: Recordings) -> _Design:
    scene, place = data.scene, data.poses[..., :3].double()
    free = (scene.free & scene.present)[:, None, :, None]
    truth = (place[:, 2:] - 2 * place[:, 1:-1] + place[:, :-2]) / scene.dt**2 * free
    speed = (place[:, 2:] - place[:, :-2]) / (2 * scene.dt)
    i, j = scene.pairs[:, 0], scene.pairs[:, 1]
    line = place[:, 1:-1, j] - place[:, 1:-1, i]
    far = line.norm(dim=-1).clamp_min(1e-3 * forces.length)
    there = (scene.present[:, i] & scene.present[:, j])[:, None].expand_as(far)
    logs = (far / forces.length).log()
    volume = shape_values(scene, "volume").clamp_min(1e-9).log().double()
    own = volume - 3.0 * scene.scale.log()[:, None]
    blank = torch.zeros(*scene.solid.shape, 1, device=place.device)
    density = materials(scene, blank).log_mass - materials.power * own
    volume = (volume - 3.0 * math.log(forces.length))[:, None]
    middle = float(logs[there].mean()) if bool(there.any()) else 0.0
    bulk = float(volume[scene.present[:, None]].mean())
    lines = line / far[..., None] * there[..., None]
    return _Design(scene, lines, logs - middle, volume - bulk, density[:, None], speed, truth, middle, bulk)


def _descend(own: Tensor, predict: Callable[[], Tensor], design: _Design, width: float) -> float:
    """Fit a few numbers to all accelerations at once; errors beyond `width` count ever less."""
    optimiser = torch.optim.LBFGS([own], max_iter=60, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimiser.zero_grad()
        value = torch.log1p((predict() - design.truth).square().sum(-1) / width**2).mean()
        value.backward()
        return value

    optimiser.step(loss)
    return float(loss().detach())
