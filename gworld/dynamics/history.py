"""What was seen of bodies, read through the network's own laws: their velocities, and what no picture shows of them.

One way for all: the places, velocities and hidden traits with which the network, rolled out from the first frame, best
explains the poses that were observed. Traits are pulled towards what shape alone tells as firmly as they are seldom
off it; what the history says nothing about stays there. Nothing is kept per identity, and bodies may be in any order.
Source: Levenberg-Marquardt; the spread is that of Laplace's approximation at the best explanation.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from gworld.dynamics.actuation import Drive
from gworld.dynamics.network import Model
from gworld.dynamics.rollout import roll_motion
from gworld.dynamics.state import Motion, motion_from_poses
from gworld.dynamics.tokens import Scene, select_worlds
from gworld.errors import InputError

STEP = 1e-2
"""By how much places (radii), velocities (radii per step) and traits are changed to see what follows."""
FIRST, MORE = 6, 4
"""Frames that are explained first, and how many more are taken in at a time."""
LOST = 20.0
"""Misfit, in standard deviations, beyond which places and velocities are taken as they are seen."""
WORLDS = 4096
"""Worlds rolled out together."""


@dataclass(frozen=True)
class HistoryConfig:
    """How a history is read."""

    rounds: int = 5
    """Improvements at most, each time more frames are taken in."""
    noise: float = 1e-3
    """Standard deviation of observed places, radii."""
    traits: tuple[float, ...] = (0.7, 0.5)
    """Usual spread of hidden traits about what shape tells: logarithm of density, restitution; 0: none is hidden."""


@dataclass(frozen=True)
class Reading:
    """What a history told: the motion at its last frame, beliefs included, the beliefs' standard deviations [W,L,B],
    and the root mean square of what is left unexplained [W] in radii."""

    motion: Motion
    spread: Float[Tensor, "W L B"]
    misfit: Float[Tensor, " W"]


@torch.no_grad()
def read_history(
    model: Model,
    scene: Scene,
    poses: Float[Tensor, "W K L 7"],
    actions: Mapping[str, Float[Tensor, "W K A"]] = {},
    drives: Mapping[str, Drive] = {},
    memory: Mapping[str, Tensor] = {},
    config: HistoryConfig = HistoryConfig(),
) -> Reading:
    """Read K observed frames, `scene.dt` apart; `memory` holds the actuators' state at the first.

    Raises `InputError` for fewer than 4 frames: three tell a velocity, what they hide needs more.
    """
    if poses.shape[1] < 4:
        raise InputError(f"a history of {poses.shape[1]} frames was given; at least 4 are needed to read it.")
    first = motion_from_poses(poses[:, [2, 1, 0]], scene.dt, model.belief)
    first = replace(first, twists=-first.twists, memory=dict(memory))
    guess = torch.zeros(
        len(scene), int(scene.free.sum()) * (6 + first.belief.shape[-1]), dtype=torch.float64, device=poses.device
    )
    frames = [*range(min(FIRST, poses.shape[1]), poses.shape[1], MORE), poses.shape[1]]
    for count in frames:  # a contact is understood before what follows from it is looked at
        told = _Told(model, scene, first, poses[:, :count], actions, drives, config)
        guess, off, slope = _explain(told, guess, config.rounds)
    square = slope.transpose(1, 2) @ slope + torch.diag_embed(told.firmness().clamp_min(1e-9))
    return told.reading(guess, torch.linalg.inv(square).diagonal(dim1=1, dim2=2), off)


def _explain(told: _Told, guess: Tensor, rounds: int) -> tuple[Tensor, Tensor, Tensor]:
    """The numbers [W,N] that explain best, what they leave [W,R], and how that changes with them [W,R,N]."""
    rows = torch.arange(len(guess), device=guess.device)
    firm, off = told.firmness(), told.residuals(guess, rows)
    cost, damp = _cost(off, guess, firm), torch.full_like(guess[:, 0], 1e-3)
    slope = off.new_zeros(*off.shape, guess.shape[1])
    for _ in range(rounds):
        slope = told.slopes(guess, off)
        square = slope.transpose(1, 2) @ slope + torch.diag_embed(firm)
        pull = (slope.transpose(1, 2) @ off[..., None])[..., 0] + firm * guess
        ridge = damp[:, None] * square.diagonal(dim1=1, dim2=2) + 1e-9
        tried = guess - torch.linalg.solve(square + torch.diag_embed(ridge), pull)
        found = told.residuals(tried, rows)
        better = _cost(found, tried, firm)
        gained = better < cost
        damp = torch.where(gained, 0.1 * damp, 10.0 * damp).clamp(1e-9, 1e6)
        settled = bool((~(better < 0.99 * cost)).all())
        guess, off = torch.where(gained[:, None], tried, guess), torch.where(gained[:, None], found, off)
        cost = torch.where(gained, better, cost)
        if settled:
            break
    return guess, off, slope


def _cost(off: Tensor, guess: Tensor, firm: Tensor) -> Tensor:
    value = off.square().sum(-1) + (firm * guess.square()).sum(-1)
    return torch.nan_to_num(value, nan=torch.inf)


@dataclass(frozen=True)
class _Told:
    """A history and what explains it: per object three numbers of place, three of velocity, then its traits."""

    model: Model
    scene: Scene
    first: Motion
    poses: Tensor
    actions: Mapping[str, Tensor]
    drives: Mapping[str, Drive]
    config: HistoryConfig

    @property
    def free(self) -> Tensor:
        return self.scene.free.nonzero()[:, 0]

    @property
    def links(self) -> int:
        return len(self.free)

    @property
    def width(self) -> int:
        return 6 + self.first.belief.shape[-1]

    def firmness(self) -> Tensor:
        """Inverse variance [W,N] of each number before anything is seen."""
        spread = [*self.config.traits, *[0.0] * self.width][: self.width - 6]
        firm = [0.0] * 6 + [1e12 if value <= 0 else value**-2 for value in spread]
        one = self.poses.new_tensor(firm, dtype=torch.float64).expand(len(self.scene), self.links, -1)
        absent = ~self.scene.present[:, self.free, None]
        return torch.where(absent, torch.full_like(one, 1e12), one).flatten(1)

    def start(self, guess: Tensor, rows: Tensor) -> Motion:
        """Motions at the first frame, of the worlds `rows`, changed by `guess`."""
        part = guess.to(self.poses).view(len(guess), self.links, self.width)
        unit = self.scene.scale[rows, None, None]
        frames, twists = self.first.world_from_link[rows].clone(), self.first.twists[rows].clone()
        belief = self.first.belief[rows].clone()
        frames[:, self.free, :3, 3] += part[..., :3] * unit
        twists[:, self.free, :3] += part[..., 3:6] * unit / self.scene.dt
        belief[:, self.free] += part[..., 6:]
        memory = {name: value[rows] for name, value in self.first.memory.items()}
        return replace(self.first, world_from_link=frames, twists=twists, belief=belief, memory=memory)

    def roll(self, guess: Tensor, rows: Tensor) -> tuple[Tensor, Motion]:
        """Places [N,K,F,3] of objects in all frames, and the motion at the last."""
        motion = start = self.start(guess, rows)
        places = [start.world_from_link[:, self.free, :3, 3]]
        scene = select_worlds(self.scene, rows)
        actions = {name: value[rows] for name, value in self.actions.items()}
        for motion in roll_motion(self.model, scene, start, actions, self.poses.shape[1] - 1, self.drives):
            places.append(motion.world_from_link[:, self.free, :3, 3])
        return torch.stack(places, dim=1), motion

    def residuals(self, guess: Tensor, rows: Tensor) -> Tensor:
        """What is left unexplained [N,R] in standard deviations; absent objects leave nothing."""
        found = torch.cat([self.roll(g, r)[0] for g, r in zip(guess.split(WORLDS), rows.split(WORLDS), strict=True)])
        off = (found - self.poses[rows][:, :, self.free, :3]) / self.scene.scale[rows, None, None, None]
        return (off * self.scene.present[rows][:, None, self.free, None]).flatten(1).double() / self.config.noise

    def slopes(self, guess: Tensor, off: Tensor) -> Tensor:
        """How residuals change with each number [W,R,N]."""
        count = guess.shape[1]
        step = guess.new_tensor([STEP] * 6 + [-STEP] * (self.width - 6)).repeat(self.links)
        tried = (guess[:, None] + torch.diag(step)).flatten(0, 1)  # traits downward: restitution begins at its bound
        rows = torch.arange(len(guess), device=guess.device).repeat_interleave(count)
        found = self.residuals(tried, rows).view(len(guess), count, -1)
        return torch.nan_to_num((found - off[:, None]) / step[:, None]).transpose(1, 2).double()

    def reading(self, guess: Tensor, variance: Tensor, off: Tensor) -> Reading:
        """The motion at the last frame; orientations and spins of objects, and all agents' links, as observed."""
        _, last = self.roll(guess, torch.arange(len(guess), device=guess.device))
        seen = motion_from_poses(self.poses[:, -3:], self.scene.dt, self.first.belief.shape[-1])
        free = self.scene.free
        misfit = off.square().mean(-1).sqrt() * self.config.noise
        taken = free[:, None] & (misfit < LOST * self.config.noise)[:, None, None]
        frames = seen.world_from_link.clone()
        frames[..., :3, 3] = torch.where(taken, last.world_from_link[..., :3, 3], frames[..., :3, 3])
        twists = torch.where(taken, torch.cat([last.twists[..., :3], seen.twists[..., 3:]], -1), seen.twists)
        spread = torch.zeros_like(last.belief)
        misfit = misfit.to(seen.twists)
        traits = variance.to(spread).clamp_min(0).sqrt().view(len(guess), self.links, self.width)[..., 6:]
        spread[:, self.free] = traits
        return Reading(replace(last, world_from_link=frames, twists=twists), spread, misfit)
