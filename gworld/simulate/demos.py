"""What generated episodes may begin from: moments of demonstrations, or of episodes that were hard, disturbed."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from gworld.dynamics.state import twists_between
from gworld.errors import InputError
from gworld.geometry import matrix_from_quat, quat_from_rotvec, transform_from_pose
from gworld.scene.episode import Episode
from gworld.scene.world import World, WorldState
from gworld.simulate.engine import Engine

PACE = (0.8, 1.25)
"""How much slower or faster a demonstration is done again."""
NOISE = 0.1
"""Standard deviation of what is added to actions, as a part of their range."""
KEEP = 0.5
"""Seconds over which that noise keeps its sign, about."""
SHIFT, TURN = 0.01, 0.15
"""Standard deviation by which objects begin elsewhere, metres and radians."""


@dataclass(frozen=True)
class Material:
    """A moment of an episode and what was done from it on.

    link_poses [2,L,7] before and at the moment, `link_names` in their order; actions {agent: [T,A]}; `step` seconds
    per row; `source` says which episode it was; `seed` draws the world it was in, where worlds vary.
    """

    link_poses: np.ndarray
    link_names: tuple[str, ...]
    actions: Mapping[str, np.ndarray]
    step: float
    source: str
    seed: int | None = None


def cut_material(episode: Episode, start: int, source: str, seed: int | None = None) -> Material:
    """The moment `start` of an episode; raises `InputError` when its links were not tracked there."""
    if episode.link_poses is None or len(episode) < 2:
        raise InputError(f"{source} has no link poses; it cannot be begun from. Track it, or record with poses.")
    start = min(max(start, 0), len(episode) - 2)
    poses = episode.link_poses[[max(start - 1, 0), start]].double().numpy()
    if not np.isfinite(poses).all():
        raise InputError(f"{source} has unknown link poses at step {start}; it cannot be begun from there.")
    step = float((episode.times[-1] - episode.times[0]) / (len(episode) - 1))
    actions = {name: values[start:].double().numpy() for name, values in episode.actions.items()}
    return Material(poses, episode.link_names, actions, step, source, seed)


def material_state(world: World, material: Material, rng: np.random.Generator) -> WorldState:
    """The world as it was at the moment, its objects a little off; links that were not there are as they rest."""
    names = [link.name for link in world.links]
    poses, before = world.rest_poses().clone(), world.rest_poses().clone()
    known = [index for index, name in enumerate(names) if name in material.link_names]
    if len(known) < 2:
        raise InputError(f"{material.source} has none of the world's links; it was recorded in another world.")
    rows = [material.link_names.index(names[index]) for index in known]
    both = transform_from_pose(torch.from_numpy(material.link_poses[:, rows]).float())
    before[known], poses[known] = both[0], both[1]
    twists = twists_between(before, poses, material.step)
    for entity in world.entities:
        if entity.kind == "object":
            links = list(entity.links)
            shift = torch.from_numpy(rng.normal(0.0, SHIFT, 2)).float()
            turn = matrix_from_quat(quat_from_rotvec(torch.tensor([0.0, 0.0, rng.normal(0.0, TURN)]).float()))
            root = poses[links[0], :3, 3].clone()
            poses[links, :3, 3] = (turn @ (poses[links, :3, 3] - root)[..., None])[..., 0] + root
            poses[links, :3, :3] = turn @ poses[links, :3, :3]
            poses[links, :2, 3] += shift
    return WorldState(poses, twists, torch.zeros(0, len(names), 7))


def disturbed(engine: Engine, material: Material, rng: np.random.Generator) -> Callable[[int], dict[str, Tensor]]:
    """What agents do: as in the material, slower or faster, with noise; holding where nothing is known."""
    pace, step = float(rng.uniform(*PACE)), engine.options.step
    keep = math.exp(-step / KEEP)
    drift = {name: np.zeros(len(spec)) for name, spec in engine.specs.items()}

    def act(number: int) -> dict[str, Tensor]:
        told = {}
        for name, spec in engine.specs.items():
            hold = torch.nan_to_num(engine.stepper.hold(engine.motion, name))
            size = NOISE * (np.array(spec.high) - np.array(spec.low))
            shock = rng.standard_normal(len(spec))
            drift[name] = keep * drift[name] + math.sqrt(1 - keep**2) * shock
            known = material.actions.get(name)
            row = int(number * step * pace / material.step)
            told[name] = hold
            if known is not None and row < len(known) and known.shape[1] == len(spec):
                action: Float[Tensor, "1 A"] = torch.from_numpy(known[row] + size * drift[name]).float()[None]
                told[name] = torch.where(action.isfinite(), action, hold)
        return told

    return act
