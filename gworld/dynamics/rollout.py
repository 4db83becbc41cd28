"""State in, actions in, poses out: the network's steps one after the other, for any number of worlds at once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from gworld.dynamics.actuation import Drive, rest_memory
from gworld.dynamics.network import Model
from gworld.dynamics.state import Motion, motion_from_states, state_from_motion
from gworld.dynamics.tokens import Scene, compile_scene
from gworld.errors import InputError
from gworld.geometry import pose_from_transform
from gworld.scene.rollout import Rollout
from gworld.scene.world import World, WorldState


def roll_motion(
    model: Model,
    scene: Scene,
    start: Motion,
    actions: Mapping[str, Float[Tensor, "W T A"]],
    steps: int,
    drives: Mapping[str, Drive] | None = None,
) -> Iterator[Motion]:
    """The motion after each of `steps` steps; action t of an agent enters at step t, past its end it is unknown."""
    motion = with_memory(start, drives or {})
    for step in range(steps):
        now = {name: value[:, step] for name, value in actions.items() if step < value.shape[1]}
        motion = model.step(scene, motion, now, drives or {})
        yield motion


def predict_poses(
    model: Model,
    scene: Scene,
    start: Motion,
    actions: Mapping[str, Float[Tensor, "W T A"]],
    steps: int,
    drives: Mapping[str, Drive] | None = None,
) -> Float[Tensor, "W T L 4 4"]:
    """`world_from_link` after each of `steps` steps."""
    moved = roll_motion(model, scene, start, actions, steps, drives)
    return torch.stack([motion.world_from_link for motion in moved], dim=1)


def roll_out(
    model: Model,
    world: World,
    state: WorldState,
    actions: Mapping[str, Float[Tensor, "T A"]],
    steps: int,
    dt: float,
    drives: Mapping[str, Drive] | None = None,
) -> tuple[Rollout, WorldState]:
    """Simulate one world and return its motion (the first instant is `state`) and the state after it.

    Running on from that state gives what one longer run gives, bit for bit. Raises `InputError` when a pose would not
    be finite.
    """
    scene = compile_scene([world], dt)
    motion = motion_from_states([state], model.belief)
    batched = {name: value[None] for name, value in actions.items()}
    poses, last = [motion.world_from_link], motion
    with torch.no_grad():
        for last in roll_motion(model, scene, motion, batched, steps, drives):
            poses.append(last.world_from_link)
    track = pose_from_transform(torch.cat(poses))
    if not bool(torch.isfinite(track).all()):
        raise InputError("the simulated motion is no longer finite; the dynamics checkpoint does not fit this world.")
    times = state.time + dt * torch.arange(steps + 1, dtype=torch.float64)
    told = {name: _held(value, steps + 1) for name, value in actions.items()}
    end = state_from_motion(replace(last, time=float(times[-1])), 0, state, len(state.history))
    return Rollout(times, track, scene.link_names, told, world="gworld dynamics"), end


def with_memory(motion: Motion, drives: Mapping[str, Drive]) -> Motion:
    """The motion with the actuators of agents that have none yet at rest."""
    fresh = {name: rest_memory(drive, len(motion)) for name, drive in drives.items() if name not in motion.memory}
    return replace(motion, memory={**motion.memory, **fresh}) if fresh else motion


def _held(values: Tensor, count: int) -> Tensor:
    """Rows up to `count`, unknown past the end."""
    blank = values.new_full((max(0, count - len(values)), values.shape[1]), torch.nan)
    return torch.cat([values[:count], blank])
