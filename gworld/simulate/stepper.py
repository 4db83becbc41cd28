"""What carries a step: the agents' kinematics alone, or a learned dynamics network; both behind one small face."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from gworld.agents.actions import DRIVE, STEP, AgentState, apply_action, gripper_joints
from gworld.agents.binding import load_robot
from gworld.agents.inverse import joints_from_poses
from gworld.agents.kinematics import forward_kinematics, value_limits
from gworld.agents.tree import Body, Joint, JointKind, Skeleton, value_slots
from gworld.dynamics.state import Motion, straighten, twists_between
from gworld.errors import InputError
from gworld.geometry import invert_transform, quat_from_matrix, rotvec_from_quat
from gworld.scene.world import ActionSpec, Entity, World

NO_SPEC = ActionSpec((), (), (), ())
ROUNDING = 1e-6
"""By how much numbers of a pose (metres; parts of a rotation) may differ for rounding alone."""


@runtime_checkable
class Stepper(Protocol):
    """What an engine asks of whatever moves the world: `note` says in one line what that is, `bodies` whom it moves."""

    note: str
    bodies: dict[str, AgentBody]

    def start(self, motion: Motion) -> Motion:
        """The motion with everything that a step needs and that it lacks: joint values, beliefs."""

    def step(self, motion: Motion, actions: Mapping[str, Tensor], seconds: float) -> Motion:
        """The motion `seconds` later, actions {agent: [W,A]} with NaN where unknown."""

    def hold(self, motion: Motion, agent: str) -> Float[Tensor, "W A"]:
        """The action under which an agent keeps what it has; NaN where nothing is known to do so."""


@dataclass(frozen=True, eq=False)
class AgentBody:
    """How an agent moves by itself: its chain, the chain's link that carries each of its own links, what it is told.

    carriers [n] index the skeleton's links; `spec` names its joints. `stand_in` is True where the chain was made from
    the action's names because the world holds no model.
    """

    entity: Entity
    skeleton: Skeleton
    spec: ActionSpec
    carriers: tuple[int, ...]
    stand_in: bool = False

    @property
    def width(self) -> int:
        """Joint values of the chain: the first numbers of an agent's memory, whatever steps it."""
        return sum(place.stop - place.start for place in value_slots(self.skeleton).values())


class Kinematics:
    """Agents follow their actions as far as joints allow; objects stay where they are.

    The memory of an agent is [W, V + 17]: joint values, its base's pose row by row, its forward speed.
    """

    def __init__(self, world: World, bodies: Mapping[str, AgentBody] | None = None) -> None:
        self.world = world
        self.bodies = agent_bodies(world) if bodies is None else dict(bodies)
        lame = [entity.name for entity in world.agents if entity.name not in self.bodies]
        self.note = "kinematics only: no dynamics is bound, agents follow their joints and objects stay"
        if lame:
            self.note += f"; {', '.join(lame)} cannot be moved (no robot model)"

    def start(self, motion: Motion) -> Motion:
        """The motion with the joint values of agents that have none, read from where their links stand."""
        memory, poses = dict(motion.memory), motion.world_from_link
        for name, body in self.bodies.items():
            known = memory.get(name)
            if known is None or known.shape[-1] != body.width + 17:
                state = read_state(body, poses[:, list(body.entity.links)])
                poses = rest_on_chain(body, poses, state)
                moving = motion.twists[:, body.entity.links[0], :3]  # a vehicle rolls on at the speed it is seen with
                memory[name] = _pack(replace(state, speed=(moving * state.base[:, :3, 0]).sum(-1)))
        return replace(motion, world_from_link=poses, memory=memory)

    def step(self, motion: Motion, actions: Mapping[str, Tensor], seconds: float) -> Motion:
        """Every agent's own step; one that is told nothing stays as it is (a vehicle rolls on)."""
        before = motion.world_from_link
        poses, memory = before.clone(), dict(motion.memory)
        for name, body in self.bodies.items():
            told = actions.get(name)
            action = poses.new_full((len(motion), len(body.spec)), math.nan) if told is None else told.to(poses)
            grip = gripper_joints(body.skeleton)
            state = apply_action(body.skeleton, body.spec, _unpack(body, memory[name]), action, seconds, gripper=grip)
            if any(part.rpartition("/")[2] in DRIVE for part in body.spec.names):
                state = replace(state, base=_straight(state.base))
            poses[:, list(body.entity.links)] = links_of(body, state)
            memory[name] = _pack(state)
        twists = torch.zeros_like(motion.twists)
        links = [link for body in self.bodies.values() for link in body.entity.links]
        twists[:, links] = twists_between(before[:, links], poses[:, links], seconds)
        return replace(motion, world_from_link=poses, twists=twists, memory=memory, time=motion.time + seconds)

    def hold(self, motion: Motion, agent: str) -> Float[Tensor, "W A"]:
        """Targets where the joints are, no speed, no step."""
        body = self.bodies.get(agent)
        if body is None:
            spec = next((e.action for e in self.world.agents if e.name == agent), None)
            return motion.world_from_link.new_full((len(motion), len(spec or NO_SPEC)), math.nan)
        return hold_action(body.skeleton, body.spec, motion.memory[agent][:, : body.width])


def agent_bodies(world: World, skeletons: Mapping[str, Skeleton] | None = None) -> dict[str, AgentBody]:
    """How each agent moves, without those of whom nothing is known; `skeletons` of robots not saved with the world."""
    given = skeletons or {}
    found = {entity.name: agent_body(world, entity, given.get(entity.name)) for entity in world.agents}
    return {name: body for name, body in found.items() if body is not None}


def agent_body(world: World, entity: Entity, skeleton: Skeleton | None = None) -> AgentBody | None:
    """How an agent moves: by its robot model, else by a chain that its action's names describe; None without either.

    Components `x/position`, `y/velocity`, `yaw/velocity`.. slide and turn such an agent as a whole along the world's
    axes, `vehicle/steer` and `vehicle/accelerate` drive it. Raises `InputError` for a model that is damaged.
    """
    if entity.action is None:
        return None
    if skeleton is None and entity.source is not None and world.folder is not None:
        skeleton = load_robot(world, entity.name)
    if skeleton is not None:
        spec = _named_as(entity.action, skeleton, entity.name)
        return AgentBody(entity, skeleton, spec, tuple(range(len(entity.links))))
    keys = [name.rpartition("/") for name in entity.action.names]
    drives = [key for part, _, key in keys if key in DRIVE]
    axes = {part: part.rpartition("/")[2] for part, _, key in keys if key in ("position", "velocity")}
    planar = [part for part, axis in axes.items() if axis in STEP]
    if not entity.links or len(drives) + len(planar) < len({part for part, _, _ in keys}) or not (drives or planar):
        return None
    return _stand_in(world, entity, entity.action, [] if drives else planar)


def read_state(body: AgentBody, world_from_link: Float[Tensor, "W n 4 4"]) -> AgentState:
    """Joint values and base that put an agent's links where they stand."""
    if not body.stand_in:
        values, base = joints_from_poses(body.skeleton, world_from_link)
    else:
        carrier_from_link = torch.from_numpy(body.skeleton.links[body.carriers[0]].parent_from_link)
        root = world_from_link[:, 0] @ invert_transform(carrier_from_link.to(world_from_link))
        base, values = torch.eye(4).to(root).expand(len(root), 4, 4), root.new_zeros(len(root), body.width)
        if not body.skeleton.joints:
            base = root
        turn = rotvec_from_quat(quat_from_matrix(root[:, :3, :3]))
        for name, place in value_slots(body.skeleton).items():
            axis = STEP.index(name.rpartition("/")[2])
            values[:, place.start] = root[:, axis, 3] if axis < 3 else turn[:, axis - 3]
    return AgentState(values.contiguous(), base.contiguous(), base.new_zeros(len(base)))


def links_of(body: AgentBody, state: AgentState) -> Float[Tensor, "W n 4 4"]:
    """`world_from_link` of an agent's own links."""
    return forward_kinematics(body.skeleton, state.values, state.base)[..., list(body.carriers), :, :]


def rest_on_chain(body: AgentBody, poses: Float[Tensor, "W L 4 4"], state: AgentState) -> Float[Tensor, "W L 4 4"]:
    """Poses of all links, an agent's own as its chain puts them in worlds where that changes them by rounding alone.

    What a recording or a file says comes by other arithmetic; a step under which nothing moves then changes no bit.
    """
    links = list(body.entity.links)
    before, after = poses[:, links], links_of(body, state)
    near = ((after - before).abs() <= ROUNDING).flatten(1).all(1)
    found = poses.clone()
    found[:, links] = torch.where(near[:, None, None, None], after, before)
    return found


def hold_action(skeleton: Skeleton, spec: ActionSpec, values: Float[Tensor, "W V"]) -> Float[Tensor, "W A"]:
    """The action that keeps joints at `values`: targets there, no speed, no step."""
    slots, limits = value_slots(skeleton), value_limits(skeleton, values.dtype)
    columns = []
    for name in spec.names:
        joint, _, quantity = name.rpartition("/")
        if quantity == "position" and joint in slots:
            columns.append(values[:, slots[joint].start])
        elif quantity == "opening" and gripper_joints(skeleton):
            place = slots[gripper_joints(skeleton)[0]].start
            ends = sorted(limits[:, place].tolist(), key=abs)
            columns.append(((values[:, place] - ends[0]) / (ends[1] - ends[0] or 1.0)).clamp(0, 1))
        else:
            columns.append(torch.zeros_like(values[:, 0]) if values.shape[1] else values.new_zeros(len(values)))
    return torch.stack(columns, dim=1) if columns else values.new_zeros(len(values), 0)


def _stand_in(world: World, entity: Entity, spec: ActionSpec, planar: list[str]) -> AgentBody:
    """A chain of sliding and turning joints along the world's axes that carries all links of an agent rigidly."""
    order = sorted(planar, key=lambda part: STEP.index(part.rpartition("/")[2]))
    links = [Body("root", -1, np.eye(4))] + [Body(part, index, np.eye(4)) for index, part in enumerate(order)]
    low, high = dict(zip(spec.names, spec.low, strict=True)), dict(zip(spec.names, spec.high, strict=True))
    joints = []
    for index, part in enumerate(order, 1):
        axis = STEP.index(part.rpartition("/")[2])
        kind: JointKind = "prismatic" if axis < 3 else "revolute"
        name = f"{part}/position"
        bounds = (low.get(name, -math.inf), high.get(name, math.inf))
        joints.append(Joint(part, kind, index, np.eye(3)[axis % 3], np.zeros(3), (0.0,), *bounds))
    count, rest = len(links), world.rest_poses()[list(entity.links)]

    def carrying(offsets: Tensor) -> AgentBody:
        hung = [
            Body(f"link{index}", len(order), offset.double().numpy()) for index, offset in enumerate(offsets.unbind(0))
        ]
        skeleton = Skeleton(entity.name, (*links, *hung), tuple(joints))
        return AgentBody(entity, skeleton, spec, tuple(range(count, count + len(hung))), True)

    bare = carrying(torch.eye(4).expand(len(rest), 4, 4))
    carrier = links_of(bare, read_state(bare, rest[None]))[0, 0]
    return carrying(invert_transform(carrier) @ rest)


def _named_as(spec: ActionSpec, skeleton: Skeleton, agent: str) -> ActionSpec:
    """The spec with the joints called as the model calls them: models made for several agents say `agent/joint`."""
    slots = value_slots(skeleton)
    names = []
    for name in spec.names:
        joint, _, quantity = name.rpartition("/")
        longer = f"{agent}/{joint}"
        names.append(f"{longer}/{quantity}" if joint not in slots and longer in slots else name)
    return replace(spec, names=tuple(names))


def _straight(base: Tensor) -> Tensor:
    """A pose whose rotation stays one, however many steps it is multiplied."""
    fixed = base.clone()
    fixed[..., :3, :3] = straighten(base[..., :3, :3])
    return fixed


def _pack(state: AgentState) -> Tensor:
    return torch.cat([state.values, state.base.flatten(-2), state.speed[..., None]], dim=-1)


def _unpack(body: AgentBody, memory: Tensor) -> AgentState:
    width = body.width
    if memory.shape[-1] != width + 17:
        raise InputError(f"the state of agent `{body.entity.name}` has {memory.shape[-1]} numbers, not {width + 17}.")
    return AgentState(memory[:, :width], memory[:, width : width + 16].reshape(-1, 4, 4), memory[:, -1])
