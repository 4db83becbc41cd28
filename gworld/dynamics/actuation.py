"""How an agent's action moves its own links: joints follow their commands with a learned gain and lag.

Components of an action drive the joints of the agent's kinematic chain; what kind a component is (`position`,
`velocity`) chooses which learned response it shares with every other agent. An unknown component (NaN) leaves its
joint to a learned fading of its present motion.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from gworld.agents.kinematics import clamp_values, forward_kinematics, rest_values
from gworld.agents.tree import Skeleton
from gworld.dynamics.layers import clamp_through, coefficient
from gworld.dynamics.state import Motion, twists_between
from gworld.dynamics.tokens import Agent, Scene

KINDS = ("position", "velocity", "opening")


@dataclass(frozen=True)
class Drive:
    """The kinematics of one agent: its chain, where it stands, and what each action component moves.

    `links` are scene links in the order of the chain's bodies `bodies`; `values` [A] the joint value that component
    drives (or several, one row each in `targets`), `kinds` [A] an index into `KINDS`.
    Where the joints only slide one link, `carried`, `slides` [3,V] says where to: what it meets can hold it up.
    """

    skeleton: Skeleton
    base: Tensor
    links: tuple[int, ...]
    bodies: tuple[int, ...]
    values: tuple[int, ...]
    components: tuple[int, ...]
    kinds: tuple[int, ...]
    slope: tuple[float, ...]
    offset: tuple[float, ...]
    slides: Tensor | None = None
    carried: int = 0


class Actuation(nn.Module):
    """Learned response of joints to commands; one set of numbers per kind of command.

    A joint's rate nears `gain` times the rate that is told with the time constant exp(`lag`) seconds, as a motor's does
    that is driven in proportion to its error, and changes by at most exp(`thrust`) per second.
    """

    def __init__(self, generator: torch.Generator) -> None:
        super().__init__()
        count = len(KINDS)
        self.gain = nn.Parameter(0.3 + 0.05 * torch.randn(count, generator=generator))
        self.lag = nn.Parameter(-2.0 + 0.05 * torch.randn(count, generator=generator))
        self.thrust = nn.Parameter(torch.full((count,), 2.0))
        self.fade = coefficient(0.5, 0.05, generator)
        self.heft = coefficient(1.0, 0.1, generator)

    def forward(
        self, scene: Scene, motion: Motion, actions: Mapping[str, Tensor], drives: Mapping[str, Drive], used: bool
    ) -> tuple[Motion, Tensor]:
        """The motion with agents' links where this step takes them, and the twists [W,L,6] they have on the way.

        Objects are untouched; link 0 and agents without a drive stand still.
        """
        poses, twists = motion.world_from_link, motion.twists
        held = torch.where(scene.free[:, None], twists, torch.zeros_like(twists))
        before = poses
        memory = dict(motion.memory)
        for agent in scene.agents:
            drive = drives.get(agent.name)
            if drive is None or not used:
                continue
            told = actions.get(agent.name)
            action = poses.new_full((len(scene), len(agent.action)), torch.nan) if told is None else told
            values, memory[agent.name] = self.respond(scene, agent, drive, memory[agent.name], action)
            chain = forward_kinematics(drive.skeleton, values, drive.base.to(values))[..., list(drive.bodies), :, :]
            links = torch.tensor(drive.links, device=poses.device)
            poses = poses.index_copy(1, links, chain)
            move = twists_between(before[:, links], chain, scene.dt)
            held = held.index_copy(1, links, move)
        moved = replace(motion, world_from_link=poses, twists=held, memory=memory)
        return moved, held

    def yielding(self, scene: Scene, drives: Mapping[str, Drive], used: bool) -> Tensor | None:
        """Inverse masses [L] of links that what they meet can hold up (others 0), or None where there are none."""
        links = [d.carried for d in drives.values() if d.slides is not None] if used else []
        if not links:
            return None
        zero = torch.zeros(scene.solid.shape[1], dtype=self.heft.dtype, device=self.heft.device)
        rows = torch.tensor(links, device=zero.device)
        return zero.index_put((rows,), (-self.heft.clamp(-5, 10)).exp().expand(len(links)))

    def settle(self, scene: Scene, start: Motion, moved: Motion, drives: Mapping[str, Drive], place: Tensor) -> Motion:
        """The motion with sliding agents where contact let them come: `place` [W,L,3] of links that it held up."""
        poses, twists, memory = moved.world_from_link, moved.twists, dict(moved.memory)
        for name, drive in drives.items():
            if drive.slides is None or name not in memory:
                continue
            before = start.memory[name].chunk(2, dim=-1)[0]
            way = place[:, drive.carried] - start.world_from_link[:, drive.carried, :3, 3]
            values = before + way @ torch.linalg.pinv(drive.slides.to(way)).T
            values = clamp_values(drive.skeleton, values)
            meant, rates = memory[name].chunk(2, dim=-1)
            memory[name] = torch.cat([values, rates + (values - meant) / scene.dt], dim=-1)
            chain = forward_kinematics(drive.skeleton, values, drive.base.to(values))[..., list(drive.bodies), :, :]
            links = torch.tensor(drive.links, device=poses.device)
            twists = twists.index_copy(1, links, twists_between(start.world_from_link[:, links], chain, scene.dt))
            poses = poses.index_copy(1, links, chain)
        return replace(moved, world_from_link=poses, twists=twists, memory=memory)

    def respond(
        self, scene: Scene, agent: Agent, drive: Drive, memory: Tensor, action: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Joint values [W,V] after the step, and the new memory [W,2V] (values, rates)."""
        values, rates = memory.chunk(2, dim=-1)
        low, high = (action.new_tensor(limit) for limit in (agent.action.low, agent.action.high))
        clamped = torch.minimum(torch.maximum(action, low), high)[:, list(drive.components)]
        kind = torch.tensor(drive.kinds, device=values.device)
        slot = torch.tensor(drive.values, device=values.device)
        told = clamped * action.new_tensor(drive.slope) + action.new_tensor(drive.offset)
        known = torch.isfinite(told)
        told = torch.where(known, told, torch.zeros_like(told))
        aimed = torch.where(kind == KINDS.index("velocity"), told, (told - values[:, slot]) / scene.dt)
        aimed = clamp_through(self.gain, 0.0, 2.0)[kind] * aimed
        way, rate = self._approach(rates[:, slot], aimed, kind, scene.dt)
        faded = clamp_through(self.fade, 0.0, 1.0) * rates[:, slot]
        rate, way = torch.where(known, rate, faded), torch.where(known, way, faded * scene.dt)
        blank = torch.zeros_like(rates)
        free = values + blank.index_copy(1, slot, way)
        reached = clamp_values(drive.skeleton, free)
        stopped = blank.index_copy(1, slot, rate) + (reached - free) / scene.dt
        return reached, torch.cat([reached, stopped], dim=-1)

    def _approach(self, rate: Tensor, aim: Tensor, kind: Tensor, seconds: float) -> tuple[Tensor, Tensor]:
        """The way gone in `seconds` and the rate at their end: the error shrinks evenly while it asks for more than
        there is, exponentially afterwards."""
        lag = clamp_through(self.lag, -8.0, 3.0).exp()[kind]
        most = clamp_through(self.thrust, -5.0, 12.0).exp()[kind]
        error = aim - rate
        evenly = ((error.abs() - most * lag) / most).clamp(0.0, seconds)
        later = error - error.sign() * most * evenly
        left = (-(seconds - evenly) / lag).exp()
        lost = 0.5 * (error + later) * evenly + later * lag * (1.0 - left)
        return aim * seconds - lost, aim - later * left


def rest_memory(drive: Drive, worlds: int) -> Tensor:
    """Joint values at rest, standing still [W,2V]."""
    values = rest_values(drive.skeleton).expand(worlds, -1)
    return torch.cat([values, torch.zeros_like(values)], dim=-1)
