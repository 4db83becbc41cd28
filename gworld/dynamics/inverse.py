"""What agents were told, from two frames: the actions under which the network takes the first to the second.

What the frames cannot tell (a pusher that is held, a joint at its limit) stays near what agents usually are told.
Source: Gauss-Newton on predicted places, their slopes taken from disturbed copies of each world.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from gworld.dynamics.actuation import Drive
from gworld.dynamics.network import Model
from gworld.dynamics.recordings import Recordings, cut_batch
from gworld.dynamics.state import Motion
from gworld.dynamics.tokens import Scene, select_worlds
from gworld.geometry import transform_from_pose


@dataclass(frozen=True)
class InverseConfig:
    """How actions are sought."""

    rounds: int = 4
    """Improvements."""
    noise: float = 2e-4
    """Standard deviation of places that are seen, m."""
    step: float = 0.02
    """Change of a command, in parts of its range, by which slopes are taken."""


@dataclass(frozen=True)
class Usual:
    """What agents are usually told: mean and standard deviation [A] of each component."""

    mean: Float[Tensor, " A"]
    spread: Float[Tensor, " A"]


def usual_actions(data: Recordings) -> dict[str, Usual]:
    """Of each agent, over recordings; unknown actions are left out."""
    found = {}
    for name, value in data.actions.items():
        rows = value.flatten(0, 1)
        rows = rows[torch.isfinite(rows).all(-1)]
        found[name] = Usual(rows.mean(0), rows.std(0).clamp_min(1e-6))
    return found


def between_frames(
    data: Recordings, windows: Tensor, beliefs: int = 1
) -> tuple[Scene, Motion, Float[Tensor, "N L 4 4"]]:
    """The state that two frames (episode, first) tell, and the second's poses: no frame before or after is used.

    Velocities, those of joints too, are the mean ones between the two.
    """
    episode, first = windows.unbind(1)
    pick = torch.stack([first, first, first, first + 1], dim=1)

    def pair(table: Tensor) -> Tensor:
        return table[episode[:, None], pick]

    blank = {name: torch.full_like(pair(value), torch.nan) for name, value in data.actions.items()}
    two = replace(
        data,
        scene=select_worlds(data.scene, episode),
        poses=pair(data.poses),
        actions=blank,
        joints={name: pair(value) for name, value in data.joints.items()},
    )
    rows = torch.stack([torch.arange(len(windows)), torch.full((len(windows),), 2)], dim=1)
    batch = cut_batch(two, rows, 1, beliefs)
    memory = dict(batch.start.memory)
    for name, values in two.joints.items():
        width = values.shape[-1]
        rates = (values[:, 3] - values[:, 2]) / data.scene.dt
        memory[name] = torch.cat([memory[name][:, :width], rates, memory[name][:, 2 * width :]], dim=-1)
    way = (two.poses[:, 3, :, :3] - two.poses[:, 2, :, :3]) / data.scene.dt
    twists = torch.cat([way, batch.start.twists[..., 3:]], dim=-1)
    return batch.scene, replace(batch.start, memory=memory, twists=twists), transform_from_pose(two.poses[:, 3])


@torch.no_grad()
def infer_actions(
    model: Model,
    scene: Scene,
    start: Motion,
    after: Float[Tensor, "W L 4 4"],
    drives: Mapping[str, Drive],
    usual: Mapping[str, Usual],
    config: InverseConfig = InverseConfig(),
) -> dict[str, Float[Tensor, "W A"]]:
    """The actions of all agents in the step from `start` to the poses `after`, within their limits."""
    agents = [agent for agent in scene.agents if agent.name in drives]
    if not agents:
        return {}
    one = after.new_tensor
    low = one([value for agent in agents for value in agent.action.low])
    high = one([value for agent in agents for value in agent.action.high])
    mean = torch.cat([usual[agent.name].mean for agent in agents]).to(after)
    spread = torch.cat([usual[agent.name].spread for agent in agents]).to(after)
    links = [link for agent in agents for link in agent.links]
    span = torch.where(torch.isfinite(high - low), high - low, 4.0 * spread)
    guess = mean.expand(len(scene), -1).clone()
    sizes = [len(agent.action) for agent in agents]

    def places(tried: Tensor, rows: Tensor) -> Tensor:
        parts = tried.split(sizes, dim=-1)
        told = {agent.name: part for agent, part in zip(agents, parts, strict=True)}
        moved = model.step(select_worlds(scene, rows), _rows(start, rows), told, drives)
        return moved.world_from_link[:, links, :3, 3].flatten(1)

    truth = after[:, links, :3, 3].flatten(1)
    every = torch.arange(len(scene), device=after.device)
    for turn in range(config.rounds):
        step = (config.step if turn else 0.5) * span  # at a limit small changes show nothing: first look far
        inward = torch.where(guess + step > high, -step, step)  # beyond a limit nothing changes
        tried = (guess[:, None] + torch.diag_embed(inward)).flatten(0, 1)
        here = places(guess, every)
        moved = places(tried, every.repeat_interleave(len(mean))).view(len(scene), len(mean), -1)
        slope = ((moved - here[:, None]) / inward[..., None]).transpose(1, 2).double() / config.noise
        off = (truth - here).double() / config.noise
        firm = torch.diag(spread.double() ** -2)
        square = slope.transpose(1, 2) @ slope + firm
        pull = (slope.transpose(1, 2) @ off[..., None])[..., 0] + (mean - guess).double() @ firm
        guess = (guess + torch.linalg.solve(square, pull).to(guess)).clamp(low, high)
    return {agent.name: part for agent, part in zip(agents, guess.split(sizes, dim=-1), strict=True)}


def _rows(motion: Motion, rows: Tensor) -> Motion:
    return replace(
        motion,
        world_from_link=motion.world_from_link[rows],
        twists=motion.twists[rows],
        belief=motion.belief[rows],
        memory={name: value[rows] for name, value in motion.memory.items()},
    )
