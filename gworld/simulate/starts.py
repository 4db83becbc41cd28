"""Where an episode begins: joints and objects put elsewhere, none in another, within the room there is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from gworld.agents.kinematics import clamp_values, value_limits
from gworld.errors import InputError
from gworld.geometry import matrix_from_quat, quat_from_rotvec
from gworld.scene.world import Entity, World
from gworld.simulate.compose import upward
from gworld.simulate.options import StartOptions
from gworld.simulate.plausible import FAR, Clearance
from gworld.simulate.stepper import AgentBody, links_of, read_state

DRAWN = 24
"""Places tried for a body at once."""
AGAIN = 40


def draw_start(
    world: World,
    clearance: Clearance,
    bodies: Mapping[str, AgentBody],
    rng: np.random.Generator,
    options: StartOptions = StartOptions(),  # noqa: B008 (frozen)
    near: tuple[float, float] | None = None,
) -> Float[Tensor, "L 4 4"]:
    """Poses of all links in which no two bodies overlap or are nearer than `options.gap`.

    Agents come first, then objects, each drawn evenly over the room between upright walls (or twice the box of the
    objects where there are none) and turned about the vertical, and drawn again where it does not fit. The first
    object begins at `near` (x, y), where it fits there. Raises `InputError` when no such start is found.
    """
    rest = world.rest_poses()
    objects = [entity for entity in world.entities if entity.kind == "object" and entity.links]
    room = _Room(clearance, *_free_room(clearance, rest, objects), upward(world).float(), options)
    own = {link for entity in world.agents for link in entity.links}
    least = min(options.gap, room.nearest(rest[None], own, own))
    for _ in range(AGAIN):
        poses, placed = _joints(rest, bodies, rng, options), set(own)
        if room.nearest(poses[None], own, own) < least:
            continue
        for number, index in enumerate(rng.permutation(len(objects)).tolist()):
            found = _place(room, poses, objects[index], placed, rng, near if number == 0 else None)
            if found is None:
                break
            poses, placed = found, placed | set(objects[index].links)
        else:
            return poses
    raise InputError(
        f"no start was found in which {len(objects)} objects and {len(world.agents)} agents are {options.gap:g} m "
        "apart; take some out, or lower `--start.objects`, `--start.joints` or `--start.gap`."
    )


@dataclass(frozen=True)
class _Room:
    """Where there is room: the corners [2] on the level, which way is up, and how far apart bodies are."""

    clearance: Clearance
    low: Tensor
    high: Tensor
    up: Tensor
    options: StartOptions

    def gaps(self, poses: Tensor, first: set[int], second: set[int]) -> Float[Tensor, " F"]:
        """The least distance between two sets of links in each of F candidates."""
        pairs = self.clearance.pairs
        rows = [
            k for k, (a, b) in enumerate(pairs.tolist()) if (a in first and b in second) or (b in first and a in second)
        ]
        found = self.clearance.gaps(poses, pairs[rows])
        return found.amin(dim=1) if rows else poses.new_full((len(poses),), FAR)

    def nearest(self, poses: Tensor, first: set[int], second: set[int]) -> float:
        """The same of one candidate."""
        return float(self.gaps(poses, first, second)[0])

    def inside(self, poses: Tensor, links: set[int]) -> Float[Tensor, " F"]:
        """How far inside the half-spaces a body is in each candidate, at its worst, beyond what it is at rest."""
        rows = [index for index, link in enumerate(self.clearance.objects) if link in links]
        if not rows:
            return poses.new_full((len(poses),), FAR)
        return self.clearance.heights(poses)[:, rows].amin(dim=1)


def _free_room(clearance: Clearance, rest: Tensor, objects: list[Entity]) -> tuple[Tensor, Tensor]:
    """Corners on the level: those that upright walls leave, else twice the box of the bodies."""
    low, high = (part[:2].clone() for part in clearance.box)
    planes = clearance.scene.planes[0].float()
    for axis in (0, 1):
        walls = [bool((sign * planes[:, axis] > 0.99).any()) for sign in (1.0, -1.0)]
        places = rest[[link for entity in objects for link in entity.links] or [0], axis, 3]
        middle, half = (places.amax() + places.amin()) / 2, (places.amax() - places.amin()).clamp_min(0.1)
        if not walls[0]:
            low[axis] = torch.maximum(low[axis], middle - half)
        if not walls[1]:
            high[axis] = torch.minimum(high[axis], middle + half)
    return low, high


def _joints(
    rest: Tensor, bodies: Mapping[str, AgentBody], rng: np.random.Generator, options: StartOptions
) -> Float[Tensor, "L 4 4"]:
    poses = rest.clone()
    for body in bodies.values():
        links = list(body.entity.links)
        drawn = torch.from_numpy(rng.uniform(-1, 1, body.width)).float()
        if not options.joints or not body.width:
            continue
        state = read_state(body, rest[None, links])
        low, high = value_limits(body.skeleton)
        room = torch.where((high - low).isfinite(), high - low, torch.full_like(low, 0.2))
        middle = torch.where((high + low).isfinite(), (high + low) / 2, state.values[0])
        about = torch.lerp(state.values[0], middle, options.joints)
        values = clamp_values(body.skeleton, (about + 0.5 * options.joints * room * drawn)[None])
        poses[links] = links_of(body, replace(state, values=values))[0]
    return poses


def _place(
    room: _Room, poses: Tensor, entity: Entity, placed: set[int], rng: np.random.Generator,
    near: tuple[float, float] | None,
) -> Float[Tensor, "L 4 4"] | None:  # fmt: skip
    """The poses with one object somewhere it fits, or None."""
    links, spread = list(entity.links), room.options.objects
    root, size = poses[links[0], :3, 3], room.high - room.low
    arm = poses[links, :3, 3] - root
    held = min(0.0, float(room.inside(poses[None], set(links))[0]))
    for attempt in range(4):
        spots = torch.from_numpy(rng.uniform(0, 1, (DRAWN, 2))).float()
        places = torch.lerp(root[:2].expand(DRAWN, 2), room.low + spots * size, spread)
        if near is not None and attempt == 0:
            places = torch.tensor(near) + (spots - 0.5) * 0.1 * size
        angles = torch.from_numpy(rng.uniform(-np.pi, np.pi, (DRAWN, 1))).float() * float(spread > 0)
        turns = matrix_from_quat(quat_from_rotvec(angles * room.up))[:, None]
        tried = poses.expand(DRAWN, *poses.shape).clone()
        tried[:, links, :3, 3] = (turns @ arm[..., None])[..., 0] + root
        tried[:, links, :2, 3] += (places - root[:2])[:, None]
        tried[:, links, :3, :3] = turns @ poses[links, :3, :3]
        good = room.gaps(tried, set(links), placed) >= room.options.gap
        fits = (good & (room.inside(tried, set(links)) >= held - 1e-3)).nonzero()[:, 0]
        if len(fits):
            return tried[int(fits[0])]
    return None
