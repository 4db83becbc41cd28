"""What predictions are compared with: nothing moves, everything goes on as it did, agents move alone, a plain network.

All have the face of the network, `step`, so that the same rollouts, benches and training serve them. The oracle is the
generator or simulator that made the data, and stands with it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from gworld.dynamics.actuation import Actuation, Drive
from gworld.dynamics.layers import perceptron
from gworld.dynamics.state import Motion, move_frames
from gworld.dynamics.tokens import Scene, shape_values


class Copy(nn.Module):
    """Everything stays where it was seen last."""

    belief = 1

    def step(
        self,
        scene: Scene,
        motion: Motion,
        actions: Mapping[str, Tensor] | None = None,
        drives: Mapping[str, Drive] = {},
    ) -> Motion:
        """The same poses `scene.dt` later."""
        return replace(motion, time=motion.time + scene.dt)


class ConstantVelocity(nn.Module):
    """Everything goes on with the velocity and the spin it had."""

    belief = 1

    def step(
        self,
        scene: Scene,
        motion: Motion,
        actions: Mapping[str, Tensor] | None = None,
        drives: Mapping[str, Drive] = {},
    ) -> Motion:
        """Links displaced by their twists."""
        shift, turn = (part * scene.dt for part in motion.twists.split(3, dim=-1))
        return replace(
            motion, world_from_link=move_frames(motion.world_from_link, shift, turn), time=motion.time + scene.dt
        )


class KinematicsOnly(nn.Module):
    """Agents follow their actions, as a trained model's actuation has it; objects stay."""

    belief = 1

    def __init__(self, actuation: Actuation) -> None:
        super().__init__()
        self.actuation = actuation

    def step(
        self,
        scene: Scene,
        motion: Motion,
        actions: Mapping[str, Tensor] | None = None,
        drives: Mapping[str, Drive] = {},
    ) -> Motion:
        """Agents' links moved, nothing else."""
        moved, _ = self.actuation(scene, motion, actions or {}, drives, True)
        return replace(moved, time=motion.time + scene.dt)


@dataclass(frozen=True)
class PlainConfig:
    """Size of the plain network."""

    links: int = 3
    """Links it is made for; it serves no other number."""
    actions: int = 0
    """Components of all agents' actions together."""
    width: int = 192
    """Hidden units of each of two layers."""
    length: float = 1.0
    """Metres by which places and velocities are divided."""
    seed: int = 0


class Plain(nn.Module):
    """A perceptron on the true state of all links, without frames, pairs, ratios or symmetries.

    Of the size and the budget of the network it is compared with; it predicts the change of every link's twist.
    """

    belief = 1

    def __init__(self, config: PlainConfig) -> None:
        super().__init__()
        self.config = config
        inputs = config.links * 20 + 2 * config.actions
        generator = torch.Generator().manual_seed(config.seed)
        self.net = perceptron((inputs, config.width, config.width, config.links * 6), generator)

    def step(
        self,
        scene: Scene,
        motion: Motion,
        actions: Mapping[str, Tensor] | None = None,
        drives: Mapping[str, Drive] = {},
    ) -> Motion:
        """The motion `scene.dt` later."""
        length = self.config.length
        poses, twists = motion.world_from_link, motion.twists
        scaled = twists * torch.tensor([scene.dt / length] * 3 + [scene.dt] * 3, dtype=twists.dtype)
        size = torch.stack([shape_values(scene, name) for name in ("bound", "volume")], dim=-1)
        size = size / size.new_tensor([length, length**3]) * scene.present[..., None]
        parts = [poses[..., :3, 3] / length, poses[..., :3, :3].flatten(-2), scaled, size]
        told = []
        for agent in scene.agents:
            action = (actions or {}).get(agent.name)
            action = poses.new_full((len(scene), len(agent.action)), torch.nan) if action is None else action
            told += [torch.nan_to_num(action), torch.isfinite(action).to(poses)]
        change = self.net(torch.cat([torch.cat(parts, dim=-1).flatten(1), *told], dim=-1)).view_as(twists)
        change = 0.1 * change / scene.dt * change.new_tensor([length] * 3 + [1.0] * 3)
        later = twists + torch.where(scene.present[..., None], change, torch.zeros_like(change))
        shift, turn = (part * scene.dt for part in later.split(3, dim=-1))
        moved = move_frames(poses, shift, turn)
        return replace(motion, world_from_link=moved, twists=later, time=motion.time + scene.dt)
