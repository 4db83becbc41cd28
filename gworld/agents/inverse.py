"""From link poses back to joint values: damped least squares within the joints' limits, batched."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from gworld.agents.kinematics import clamp_values, forward_kinematics, jacobian, rest_values, value_limits
from gworld.agents.tree import WIDTHS, Skeleton, link_index, value_slots
from gworld.errors import InputError
from gworld.geometry import invert_transform, pose_from_transform, quat_from_matrix, rotvec_from_quat


@dataclass(frozen=True)
class InverseOptions:
    """How joint values are searched."""

    iterations: int = 60
    """Steps at most; each costs one forward pass and one Jacobian."""
    position_weight: float = 1.0
    """Weight of a metre of position error."""
    rotation_weight: float = 0.3
    """Weight of a radian of rotation error: how many metres it counts as."""
    damping: float = 1e-3
    """Damping at the start (weighted units squared); it adapts to each problem."""
    tolerance: float = 1e-6
    """Stop when no weighted residual norm exceeds this."""


@dataclass(frozen=True)
class Inverse:
    """Joint values [*B,V] within limits; what is left: position_error [*B,E] metres, rotation_error [*B,E] radians."""

    values: Float[Tensor, "*B V"]
    position_error: Float[Tensor, "*B E"]
    rotation_error: Float[Tensor, "*B E"]


def solve_inverse(
    skeleton: Skeleton,
    links: Sequence[str],
    world_from_target: Float[Tensor, "*B E 4 4"],
    start: Float[Tensor, "*#B V"] | None = None,
    *,
    base: Float[Tensor, "*#B 4 4"] | None = None,
    hold: Sequence[str] = (),
    options: InverseOptions = InverseOptions(),
) -> Inverse:
    """Joint values that bring E links as near to their target poses as the limits allow, from `start` (rest when None).

    Joints named in `hold`, balls and free joints stay where `start` has them. The result is a local optimum, no worse
    than the start. Not differentiable. Source: Levenberg-Marquardt with an adaptive damping per problem and columns of
    joints that push against a limit set aside (Buss, Introduction to Inverse Kinematics, 2004).
    """
    if world_from_target.shape[-3] != len(links):
        raise InputError(
            f"{len(links)} links were named with {world_from_target.shape[-3]} targets; one each is needed."
        )
    unknown = set(hold) - set(value_slots(skeleton))
    if unknown:
        raise InputError(f"robot `{skeleton.name}` has no joint {', '.join(sorted(unknown))} to hold.")
    target = world_from_target.detach()
    batch = target.shape[:-3]
    values = rest_values(skeleton) if start is None else start.detach()
    values = clamp_values(skeleton, values.to(target)).expand(*batch, -1).reshape(-1, values.shape[-1]).clone()
    flat = target.reshape(-1, len(links), 4, 4)
    root = None if base is None else base.detach().to(target).expand(*batch, 4, 4).reshape(-1, 4, 4)
    with torch.no_grad():
        values = _descend(skeleton, links, flat, values, root, _free_mask(skeleton, hold, values.device), options)
        moved, turned = _errors(skeleton, links, flat, values, root)
    shape = (*batch, len(links))
    return Inverse(values.reshape(*batch, -1), moved.norm(dim=-1).reshape(shape), turned.norm(dim=-1).reshape(shape))


def joints_from_poses(
    skeleton: Skeleton, world_from_link: Float[Tensor, "*B L 4 4"]
) -> tuple[Float[Tensor, "*B V"], Float[Tensor, "*B 4 4"]]:
    """Joint values and base pose that explain the poses of all links (rigid, from the same robot).

    Closed form where a link has one joint; links with several are refined by least squares. Joints of no visible
    effect and angles beyond half a turn are not to be known; values may leave the limits only where poses do not.
    """
    poses = world_from_link.detach()
    base = poses[..., 0, :, :] @ torch.tensor(skeleton.links[0].parent_from_link).to(poses).inverse()
    if any(joint.link == 0 for joint in skeleton.joints):
        base = torch.eye(4).to(poses).expand_as(base)
    values = rest_values(skeleton).to(poses).expand(*poses.shape[:-3], -1).clone()
    slots = value_slots(skeleton)
    several = False
    for index, link in enumerate(skeleton.links):
        own = [joint for joint in skeleton.joints if joint.link == index]
        several = several or len(own) > 1
        if len(own) != 1 or own[0].mimic is not None:
            continue
        joint = own[0]
        above = base if link.parent < 0 else poses[..., link.parent, :, :]
        origin = torch.eye(4).to(poses) if joint.kind == "free" else torch.tensor(link.parent_from_link).to(poses)
        motion = invert_transform(above @ origin) @ poses[..., index, :, :]
        axis = torch.tensor(joint.axis).to(poses)
        if joint.kind == "free":
            value = pose_from_transform(motion)
        elif joint.kind == "ball":
            value = quat_from_matrix(motion[..., :3, :3])
        elif joint.kind == "prismatic":
            value = (motion[..., :3, 3] @ axis)[..., None] + joint.reference
        else:
            value = (rotvec_from_quat(quat_from_matrix(motion[..., :3, :3])) @ axis)[..., None] + joint.reference
            value = _into_range(value, joint.low, joint.high)
        values[..., slots[joint.name]] = value
    values = clamp_values(skeleton, values)
    if several:
        names = [link.name for link in skeleton.links]
        exact = InverseOptions(tolerance=10 * torch.finfo(poses.dtype).eps)
        values = solve_inverse(skeleton, names, poses, values, base=base, options=exact).values
    return values, base


def _into_range(angle: Float[Tensor, "*B 1"], low: float, high: float) -> Float[Tensor, "*B 1"]:
    """The same angle by whole turns within the limits, if there is such a one."""
    turn = 2 * math.pi
    angle = torch.where(angle < low - 1e-4, angle + turn * torch.ceil((low - 1e-4 - angle) / turn), angle)
    return torch.where(angle > high + 1e-4, angle - turn * torch.ceil((angle - high - 1e-4) / turn), angle)


def _free_mask(skeleton: Skeleton, hold: Sequence[str], device: torch.device) -> Bool[Tensor, " V"]:
    free = [joint.name not in hold and WIDTHS[joint.kind] == 1 for joint in skeleton.free_joints
            for _ in range(WIDTHS[joint.kind])]  # fmt: skip
    return torch.tensor(free, dtype=torch.bool, device=device)


def _errors(
    skeleton: Skeleton,
    links: Sequence[str],
    target: Float[Tensor, "B E 4 4"],
    values: Float[Tensor, "B V"],
    base: Float[Tensor, "B 4 4"] | None,
) -> tuple[Float[Tensor, "B E 3"], Float[Tensor, "B E 3"]]:
    """What is still to move (m) and to turn (rotation vector, rad), in world axes."""
    rows = torch.tensor([link_index(skeleton, link) for link in links], device=values.device)
    poses = forward_kinematics(skeleton, values, base).index_select(-3, rows)
    turn = target[..., :3, :3] @ poses[..., :3, :3].transpose(-1, -2)
    return target[..., :3, 3] - poses[..., :3, 3], rotvec_from_quat(quat_from_matrix(turn))


def _descend(
    skeleton: Skeleton,
    links: Sequence[str],
    target: Float[Tensor, "B E 4 4"],
    values: Float[Tensor, "B V"],
    base: Float[Tensor, "B 4 4"] | None,
    free: Bool[Tensor, " V"],
    options: InverseOptions,
) -> Float[Tensor, "B V"]:
    weights = values.new_tensor([options.position_weight] * 3 + [options.rotation_weight] * 3)

    def residual(at: Tensor) -> Tensor:
        errors = torch.cat(_errors(skeleton, links, target, at, base), dim=-1)
        return (errors * weights).flatten(1)

    low, high = value_limits(skeleton, values.dtype).to(values.device)
    eye = torch.eye(values.shape[-1], dtype=values.dtype, device=values.device)
    damping = values.new_full((len(values), 1, 1), options.damping)
    left = residual(values)
    for _ in range(options.iterations):
        if bool((left.norm(dim=-1) <= options.tolerance).all()) or not bool(free.any()):
            break
        columns = jacobian(skeleton, values, links, base) * weights[:, None]
        columns = columns.flatten(1, 2) * free
        gradient = (columns.transpose(1, 2) @ left[..., None])[..., 0]
        # A joint that stands at a limit and is pushed outward takes no part in this step.
        stuck = ((values <= low) & (gradient < 0)) | ((values >= high) & (gradient > 0))
        columns = columns * ~stuck[:, None, :]
        gradient = gradient * ~stuck
        square = columns.transpose(1, 2) @ columns
        step = torch.linalg.solve(square + damping * eye, gradient[..., None])[..., 0]
        tried = torch.minimum(torch.maximum(values + step, low), high)
        now = residual(tried)
        better = now.norm(dim=-1) < left.norm(dim=-1)
        values = torch.where(better[:, None], tried, values)
        left = torch.where(better[:, None], now, left)
        damping = torch.where(better[:, None, None], damping * 0.3, damping * 4.0).clamp(1e-9, 1e3)
    return values
