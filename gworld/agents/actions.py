"""What an agent can be told, and what it does when only its kinematics are known.

Components of an action are named `part/quantity`, and the quantity says what it means:
`elbow/position` (rad or m, a joint's target), `elbow/velocity` (rad/s or m/s), `gripper/opening` (0 shut, 1 open),
`hand/x hand/y hand/z` (m) and `hand/roll hand/pitch hand/yaw` (rad; a step of link `hand` along and about the axes of
the robot's base), `vehicle/steer` (rad, left positive) and `vehicle/accelerate` (m/s^2).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from gworld.agents.inverse import InverseOptions, solve_inverse
from gworld.agents.kinematics import clamp_values, forward_kinematics, rest_values, value_limits
from gworld.agents.tree import WIDTHS, Joint, Skeleton, link_index, value_slots
from gworld.errors import InputError
from gworld.geometry import matrix_from_quat, quat_from_rotvec, transform_from
from gworld.scene.world import ActionSpec

ControlKind = Literal["joint_targets", "joint_velocities", "hand_step", "vehicle"]
STEP = ("x", "y", "z", "roll", "pitch", "yaw")
DRIVE = ("steer", "accelerate")


@dataclass(frozen=True)
class Control:
    """How an agent is driven."""

    kind: ControlKind = "joint_targets"
    """What the action sets: joints' targets, joints' velocities, a step of the hand, or a vehicle's wheel and pedal."""
    joints: tuple[str, ...] = ()
    """Joints that are driven; all that have one value of their own when empty."""
    gripper: tuple[str, ...] = ()
    """Joints that open and shut together as the component `gripper/opening`."""
    hand: str = ""
    """The link that `hand_step` moves; the deepest one when empty."""
    reach: tuple[float, float] = (0.05, 0.2)
    """The largest step of the hand, in metres and radians."""
    speed: float = math.pi
    """The largest joint velocity (rad/s, m/s) where the model states none."""
    steer: float = 0.6
    """The largest steering angle of a vehicle, in radians."""
    accelerate: float = 4.0
    """The largest acceleration of a vehicle, in m/s^2."""


@dataclass(frozen=True)
class AgentState:
    """A robot at one instant: joint values [*B,V], base pose [*B,4,4], forward speed [*B] of a vehicle in m/s."""

    values: Float[Tensor, "*B V"]
    base: Float[Tensor, "*B 4 4"]
    speed: Float[Tensor, "*B"]


def action_spec(skeleton: Skeleton, control: Control = Control()) -> ActionSpec:
    """The named, bounded components of an agent's action.

    Every limit is finite: turning joints without limits take one turn either way, sliding ones one metre. Raises
    `InputError` for a joint or a link that the robot does not have, and for a robot with nothing to drive.
    """
    rows: list[tuple[str, str, float, float]] = []
    if control.kind == "vehicle":
        rows = [
            ("vehicle/steer", "rad", -control.steer, control.steer),
            ("vehicle/accelerate", "m/s^2", -control.accelerate, control.accelerate),
        ]
    elif control.kind == "hand_step":
        hand = control.hand or deepest_link(skeleton)
        link_index(skeleton, hand)
        metres, radians = control.reach
        rows = [(f"{hand}/{key}", "m", -metres, metres) for key in STEP[:3]]
        rows += [(f"{hand}/{key}", "rad", -radians, radians) for key in STEP[3:]]
    else:
        for joint in _driven(skeleton, control):
            unit = "m" if joint.kind == "prismatic" else "rad"
            if control.kind == "joint_targets":
                rows.append((f"{joint.name}/position", unit, *_finite_limits(skeleton, joint)))
            else:
                limit = joint.velocity if math.isfinite(joint.velocity) else control.speed
                rows.append((f"{joint.name}/velocity", f"{unit}/s", -limit, limit))
    if control.gripper:
        _known(skeleton, control.gripper)
        rows.append(("gripper/opening", "1", 0.0, 1.0))
    if not rows:
        raise InputError(f"robot `{skeleton.name}` has no joint to drive; choose control `vehicle`, or bind an object.")
    names, units, low, high = zip(*rows, strict=True)
    return ActionSpec(names, units, low, high)


def rest_agent(skeleton: Skeleton, base: Float[Tensor, "*B 4 4"] | None = None) -> AgentState:
    """A robot at its rest values, standing still at `base` (the identity when None)."""
    base = torch.eye(4) if base is None else base
    values = rest_values(skeleton, base.dtype).to(base.device).expand(*base.shape[:-2], -1)
    return AgentState(values, base, base.new_zeros(base.shape[:-2]))


def apply_action(
    skeleton: Skeleton,
    spec: ActionSpec,
    state: AgentState,
    action: Float[Tensor, "*B A"],
    seconds: float,
    *,
    gripper: tuple[str, ...] = (),
    wheelbase: float = 0.0,
) -> AgentState:
    """The state after `seconds` of an action, by kinematics alone: no contact, no inertia, all limits kept.

    The action is clamped to the spec's limits. Joints move no faster than their velocity limits; a component that is
    NaN (unknown) leaves what it drives where it is, a vehicle's at its speed. `gripper` names the joints of
    `gripper/opening` (found by `gripper_joints` when empty). A vehicle of `wheelbase` metres (its longest extent when
    0) rolls forward along its base's x without slip (bicycle model, Rajamani, Vehicle Dynamics and Control, 2012, 2.2).
    Raises `InputError` for an action of the wrong length or components that the robot does not know.
    """
    if action.shape[-1] != len(spec) or seconds < 0:
        raise InputError(
            f"robot `{skeleton.name}` was given an action of {action.shape[-1]} components for {seconds} s; "
            f"{len(spec)} are needed, for 0 s or more."
        )
    low, high = (action.new_tensor(bound) for bound in (spec.low, spec.high))
    parts = dict(zip(spec.names, torch.minimum(torch.maximum(action, low), high).unbind(-1), strict=True))
    hand = {name: value for name, value in parts.items() if name.rpartition("/")[2] in STEP}
    drive = {name: value for name, value in parts.items() if name.rpartition("/")[2] in DRIVE}
    wanted = state.values
    if hand:
        wanted = _step_hand(skeleton, state, hand)
    wanted = _set_joints(skeleton, state.values, wanted, parts, seconds, gripper)
    values = _limit_speed(skeleton, state.values, clamp_values(skeleton, wanted), seconds)
    moved = replace(state, values=values)
    return _drive(moved, drive, seconds, wheelbase or _extent(skeleton)) if drive else moved


def gripper_joints(skeleton: Skeleton) -> tuple[str, ...]:
    """Joints whose names speak of a gripper or fingers, of those that have one value of their own."""
    words = ("finger", "gripper", "knuckle", "jaw")
    return tuple(
        joint.name
        for joint in skeleton.free_joints
        if WIDTHS[joint.kind] == 1 and any(word in joint.name.lower() for word in words)
    )


def deepest_link(skeleton: Skeleton) -> str:
    """The link that the most joints move, the first of several: the hand of an arm, before its fingers."""
    fingers, moved = set(gripper_joints(skeleton)), [0] * len(skeleton.links)
    for index, link in enumerate(skeleton.links):
        own = sum(joint.link == index and joint.name not in fingers for joint in skeleton.joints if not joint.mimic)
        moved[index] = own + (moved[link.parent] if link.parent >= 0 else 0)
    return skeleton.links[moved.index(max(moved))].name


def _driven(skeleton: Skeleton, control: Control) -> list[Joint]:
    if control.joints:
        return _known(skeleton, control.joints)
    return [j for j in skeleton.free_joints if WIDTHS[j.kind] == 1 and j.name not in control.gripper]


def _known(skeleton: Skeleton, names: tuple[str, ...]) -> list[Joint]:
    known = {joint.name: joint for joint in skeleton.free_joints if WIDTHS[joint.kind] == 1}
    for name in names:
        if name not in known:
            raise InputError(f"robot `{skeleton.name}` has no joint `{name}` to drive; it has {', '.join(known)}.")
    return [known[name] for name in names]


def _finite_limits(skeleton: Skeleton, joint: Joint) -> tuple[float, float]:
    low, high = value_limits(skeleton, torch.float64)[:, value_slots(skeleton)[joint.name].start].tolist()
    room = 1.0 if joint.kind == "prismatic" else 2 * math.pi
    return (low if math.isfinite(low) else -room), (high if math.isfinite(high) else room)


def _set_joints(
    skeleton: Skeleton,
    now: Float[Tensor, "*B V"],
    wanted: Float[Tensor, "*B V"],
    parts: dict[str, Tensor],
    seconds: float,
    gripper: tuple[str, ...],
) -> Float[Tensor, "*B V"]:
    """Write what the components say of single joints into `wanted`."""
    slots = value_slots(skeleton)
    columns = list(wanted.expand(*torch.broadcast_shapes(wanted.shape[:-1], now.shape[:-1]), -1).unbind(-1))
    for name, value in parts.items():
        joint, _, quantity = name.rpartition("/")
        if quantity in (*STEP, *DRIVE):
            continue
        if quantity == "opening":
            for finger in _known(skeleton, gripper or gripper_joints(skeleton)):
                shut, open_ = _finite_limits(skeleton, finger)
                if abs(shut) > abs(open_):  # fingers that open towards negative values
                    shut, open_ = open_, shut
                place = slots[finger.name].start
                columns[place] = _known_or(shut + value * (open_ - shut), columns[place])
        elif quantity in ("position", "velocity") and joint in slots:
            place = slots[joint].start
            target = value if quantity == "position" else now[..., place] + value * seconds
            columns[place] = _known_or(target, columns[place])
        else:
            raise InputError(f"robot `{skeleton.name}` does not know the action component `{name}`.")
    return torch.stack(torch.broadcast_tensors(*columns), dim=-1) if columns else wanted


def _known_or(value: Tensor, otherwise: Tensor) -> Tensor:
    return torch.where(torch.isnan(value), otherwise, value)


def _step_hand(skeleton: Skeleton, state: AgentState, parts: dict[str, Tensor]) -> Float[Tensor, "*B V"]:
    """Joint values that move the hand by the step, as far as the limits allow."""
    hand = next(iter(parts)).rpartition("/")[0]
    zero = torch.zeros_like(next(iter(parts.values())))
    step = torch.stack([torch.nan_to_num(parts.get(f"{hand}/{key}", zero)) for key in STEP], dim=-1).to(state.values)
    inside = forward_kinematics(skeleton, state.values)[..., link_index(skeleton, hand), :, :]
    turn = matrix_from_quat(quat_from_rotvec(step[..., 3:])) @ inside[..., :3, :3]
    place = inside[..., :3, 3] + step[..., :3]
    target = transform_from(turn, place)
    fingers = tuple(name for name in gripper_joints(skeleton))
    options = InverseOptions(iterations=20)
    return solve_inverse(
        skeleton, [hand], target[..., None, :, :], state.values, hold=fingers, options=options
    ).values.to(state.values)


def _limit_speed(
    skeleton: Skeleton, now: Float[Tensor, "*B V"], wanted: Float[Tensor, "*B V"], seconds: float
) -> Float[Tensor, "*B V"]:
    limits = [joint.velocity for joint in skeleton.free_joints for _ in range(WIDTHS[joint.kind])]
    step = now.new_tensor(limits) * seconds
    step = torch.where(torch.isnan(step), torch.zeros_like(step), step)  # no limit, no time
    return torch.minimum(torch.maximum(wanted, now - step), now + step)


def _drive(state: AgentState, parts: dict[str, Tensor], seconds: float, wheelbase: float) -> AgentState:
    """Roll a vehicle along an arc: exact for constant steering and the mean speed of the step."""
    by_key = {name.rpartition("/")[2]: torch.nan_to_num(value).to(state.speed) for name, value in parts.items()}
    zero = torch.zeros_like(state.speed)
    speed = state.speed + by_key.get("accelerate", zero) * seconds
    length = (state.speed + speed) / 2 * seconds
    bend = torch.tan(by_key.get("steer", zero)) / wheelbase
    turn = length * bend
    # sinc and its like keep straight lines exact: x = length sin(t)/t, y = length (1 - cos t)/t
    ratio = torch.sinc(turn / (2 * math.pi))
    x, y = length * ratio * torch.cos(turn / 2), length * ratio * torch.sin(turn / 2)
    nil = torch.zeros_like(turn)
    rotation = matrix_from_quat(quat_from_rotvec(torch.stack([nil, nil, turn], dim=-1)))
    return replace(state, base=state.base @ transform_from(rotation, torch.stack([x, y, nil], dim=-1)), speed=speed)


def _extent(skeleton: Skeleton) -> float:
    """The longest extent of the links' places at rest, half a metre at least: a stand-in for a wheelbase."""
    places = forward_kinematics(skeleton, rest_values(skeleton))[:, :2, 3]
    return max(0.5, float((places.amax(0) - places.amin(0)).max()))
