"""What each component of an agent's action moves, read from its robot model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from gworld.agents.actions import gripper_joints
from gworld.agents.binding import load_robot
from gworld.agents.kinematics import forward_kinematics, rest_values, value_limits
from gworld.agents.tree import Skeleton, value_slots
from gworld.dynamics.actuation import KINDS, Drive
from gworld.errors import InputError
from gworld.geometry import invert_transform
from gworld.scene.world import Entity, World


def world_drives(world: World, values: Mapping[str, Tensor] | None = None) -> dict[str, Drive]:
    """The drives of all agents of a world read from disk whose actions move joints.

    `values` {agent: [V]} are the joint values at which the world's links rest (the models' own where not given).
    """
    found = {}
    for entity in world.agents:
        if entity.action is None or any(name.rpartition("/")[2] not in KINDS for name in entity.action.names):
            continue
        skeleton = load_robot(world, entity.name)
        rest = (values or {}).get(entity.name, rest_values(skeleton))
        found[entity.name] = make_drive(world, entity, skeleton, rest)
    return found


def make_drive(
    world: World, entity: Entity, skeleton: Skeleton, values: Tensor, bodies: Sequence[int] | None = None
) -> Drive:
    """The drive of one agent whose links stand at the world's rest poses when its joints have these values [V].

    `bodies` are the chain's bodies that carry its links, in their order (all of them where not given).
    Raises `InputError` when the model has other links, or not the joints that the action names.
    """
    bodies = tuple(range(len(skeleton.links))) if bodies is None else tuple(bodies)
    if entity.action is None or len(entity.links) != len(bodies):
        raise InputError(f"agent `{entity.name}` has {len(entity.links)} links; its model has {len(skeleton.links)}.")
    slots, limits = value_slots(skeleton), value_limits(skeleton, torch.float64)
    rows: list[tuple[int, int, int, float, float]] = []
    for component, name in enumerate(entity.action.names):
        joint, _, kind = name.rpartition("/")
        for part in gripper_joints(skeleton) if kind == "opening" else (joint,):
            known = part if part in slots else f"{entity.name}/{part}"
            if known not in slots:
                raise InputError(f"agent `{entity.name}` is told `{name}` but its model has no joint `{part}`.")
            shut, wide = sorted(limits[:, slots[known].start].tolist(), key=abs) if kind == "opening" else (0.0, 1.0)
            rows.append((slots[known].start, component, KINDS.index(kind), wide - shut, shut))
    slot, components, kinds, slope, offset = zip(*rows, strict=True)
    chain = forward_kinematics(skeleton, values.float())
    base = world.rest_poses()[entity.links[0]] @ invert_transform(chain[bodies[0]])
    return Drive(skeleton, base, entity.links, bodies, slot, components, kinds, slope, offset)
