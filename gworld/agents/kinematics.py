"""Where a robot's links stand for given joint values: forward kinematics, its Jacobian, and the way back.

Joint values are `[*B, V]`, V as `tree.value_slots` lays them out (followers have none); poses are `[*B, L, 4, 4]`.
Everything is batched, differentiable, and works in float32 and float64; constants are kept per robot.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from gworld.agents.tree import WIDTHS, Skeleton, link_index, value_slots
from gworld.errors import InputError
from gworld.geometry import matrix_from_quat, normalize_quat, transform_from


@dataclass(frozen=True, eq=False)
class Chain:
    """A robot's constants as tensors: nodes with at most one joint each, sorted by depth.

    levels: per depth (parents [n] in the order of all nodes so far, rows [n] of the motion table, node transforms
    [n,4,4]); link_node [L] the node that is link l; S single-valued joints with axis and anchor [S,3], slides [S],
    node [S]; their values are `mix [S,V] @ values + shift [S]`, before which nothing is displaced; others: (start,
    kind) of ball and free joints. above [S,nodes]: joint s moves node n.
    """

    levels: tuple[tuple[Int[Tensor, " _"], Int[Tensor, " _"], Float[Tensor, "_ 4 4"]], ...]
    link_node: Int[Tensor, " L"]
    axis: Float[Tensor, "S 3"]
    anchor: Float[Tensor, "S 3"]
    slides: Bool[Tensor, " S"]
    node: Int[Tensor, " S"]
    mix: Float[Tensor, "S V"]
    shift: Float[Tensor, " S"]
    others: tuple[tuple[int, str, Float[Tensor, " 3"]], ...]
    above: Bool[Tensor, "S nodes"]


def forward_kinematics(
    skeleton: Skeleton, values: Float[Tensor, "*B V"], base: Float[Tensor, "*#B 4 4"] | None = None
) -> Float[Tensor, "*B L 4 4"]:
    """`world_from_link` of every link for joint values (rad, m) and the root's pose `base` (identity when None).

    Raises `InputError` when the number of values does not fit the robot.
    """
    chain = chain_of(skeleton, values.dtype, values.device)
    return _nodes(skeleton, chain, values, base).index_select(-3, chain.link_node)


def rest_values(skeleton: Skeleton, dtype: torch.dtype = torch.float32) -> Float[Tensor, " V"]:
    """The joint values at rest."""
    return torch.tensor([value for joint in skeleton.free_joints for value in joint.default], dtype=dtype)


def value_limits(skeleton: Skeleton, dtype: torch.dtype = torch.float32) -> Float[Tensor, "2 V"]:
    """Lower and upper limit of each value; followers' limits bound their leader too."""
    low, high = [], []
    for joint in skeleton.free_joints:
        bounds = [(joint.low, joint.high)] if WIDTHS[joint.kind] == 1 else [(-float("inf"), float("inf"))]
        for other in skeleton.joints:
            if other.mimic and other.mimic.joint == joint.name and abs(other.mimic.multiplier) > 1e-9:
                ends = [(end - other.mimic.offset) / other.mimic.multiplier for end in (other.low, other.high)]
                bounds.append((min(ends), max(ends)))
        lowest, highest = max(b[0] for b in bounds), min(b[1] for b in bounds)
        if lowest > highest:  # limits that contradict each other: the joint's own hold
            lowest, highest = bounds[0]
        low += [lowest] * WIDTHS[joint.kind]
        high += [highest] * WIDTHS[joint.kind]
    return torch.tensor([low, high], dtype=dtype)


def clamp_values(skeleton: Skeleton, values: Float[Tensor, "*B V"]) -> Float[Tensor, "*B V"]:
    """Values within the limits."""
    low, high = value_limits(skeleton, values.dtype).to(values.device)
    return torch.minimum(torch.maximum(values, low), high)


def jacobian(
    skeleton: Skeleton,
    values: Float[Tensor, "*B V"],
    links: Sequence[str],
    base: Float[Tensor, "*#B 4 4"] | None = None,
) -> Float[Tensor, "*B E 6 V"]:
    """How each of E links' origins moves (m, world axes) and turns (rad, world axes) per unit of each value.

    Columns of ball and free joints are zero: they have no single axis. Source: Siciliano et al., Robotics, 2009, 3.1.
    """
    chain = chain_of(skeleton, values.dtype, values.device)
    nodes = _nodes(skeleton, chain, values, base)
    ends = chain.link_node[[link_index(skeleton, link) for link in links]]
    return _jacobian(chain, nodes, ends)


def _jacobian(chain: Chain, nodes: Float[Tensor, "*B N 4 4"], ends: Int[Tensor, " E"]) -> Float[Tensor, "*B E 6 V"]:
    frames = nodes.index_select(-3, chain.node)
    axis = (frames[..., :3, :3] @ chain.axis[:, :, None])[..., 0]
    anchor = (frames[..., :3, :3] @ chain.anchor[:, :, None])[..., 0] + frames[..., :3, 3]
    lever = nodes.index_select(-3, ends)[..., :, None, :3, 3] - anchor[..., None, :, :]
    axis = axis[..., None, :, :].expand_as(lever)
    slides = chain.slides[:, None]
    moving = torch.where(slides, axis, torch.linalg.cross(axis, lever))
    turning = torch.where(slides, torch.zeros_like(axis), axis)
    columns = torch.cat([moving, turning], dim=-1) * chain.above[:, ends].T[:, :, None]
    return columns.transpose(-1, -2) @ chain.mix


@lru_cache(maxsize=64)
def chain_of(skeleton: Skeleton, dtype: torch.dtype, device: torch.device) -> Chain:
    """The robot's constants of one type on one device, made once."""
    slots = value_slots(skeleton)
    scalars = [joint for joint in skeleton.joints if WIDTHS[joint.kind] == 1]
    others = [joint for joint in skeleton.joints if WIDTHS[joint.kind] != 1]
    row_of = {joint.name: 1 + row for row, joint in enumerate((*scalars, *others))}  # row 0: no motion
    nodes, last, node_of = _unfold(skeleton, row_of)
    depth: list[int] = []
    for parent, _, _ in nodes:
        depth.append(depth[parent] + 1 if parent >= 0 else 0)
    order = sorted(range(len(nodes)), key=depth.__getitem__)
    place = {node: position for position, node in enumerate(order)}
    levels = []
    for level in range(max(depth) + 1):
        rows = [node for node in order if depth[node] == level]
        levels.append(
            (
                torch.tensor([place[nodes[node][0]] if level else 0 for node in rows], device=device),
                torch.tensor([nodes[node][1] for node in rows], device=device),
                torch.stack([nodes[node][2] for node in rows]).to(device, dtype),
            )
        )
    mix, shift = torch.zeros(len(scalars), sum(WIDTHS[j.kind] for j in skeleton.free_joints)), []
    above = torch.zeros(len(scalars), len(nodes), dtype=torch.bool)
    for row, joint in enumerate(scalars):
        follow = joint.mimic
        mix[row, slots[follow.joint if follow else joint.name].start] = follow.multiplier if follow else 1.0
        shift.append((follow.offset if follow else 0.0) - joint.reference)
        for node in range(len(nodes)):
            up = node
            while up >= 0 and up != node_of[joint.name]:
                up = nodes[up][0]
            above[row, place[node]] = up >= 0
    return Chain(
        tuple(levels),
        torch.tensor([place[node] for node in last], device=device),
        _rows([joint.axis for joint in scalars]).to(device, dtype),
        _rows([joint.anchor for joint in scalars]).to(device, dtype),
        torch.tensor([joint.kind == "prismatic" for joint in scalars], dtype=torch.bool, device=device),
        torch.tensor([place[node_of[joint.name]] for joint in scalars], dtype=torch.long, device=device),
        mix.to(device, dtype),
        torch.tensor(shift, dtype=torch.float64).to(device, dtype),
        tuple(
            (slots[j.name].start, j.kind, torch.tensor(j.anchor, dtype=torch.float64).to(device, dtype)) for j in others
        ),
        above.to(device),
    )


def _unfold(
    skeleton: Skeleton, row_of: dict[str, int]
) -> tuple[list[tuple[int, int, Tensor]], list[int], dict[str, int]]:
    """Nodes (parent node, motion row, parent_from_node) with one joint at most, each link's last, each joint's own."""
    nodes: list[tuple[int, int, Tensor]] = []
    last: list[int] = []
    node_of = {}
    for index, link in enumerate(skeleton.links):
        moved_by = [joint for joint in skeleton.joints if joint.link == index]
        origin = torch.tensor(link.parent_from_link, dtype=torch.float64)
        parent = last[link.parent] if link.parent >= 0 else -1
        for joint in (*moved_by, *([] if moved_by else [None])):
            if joint is not None and joint.kind == "free":
                origin = torch.eye(4, dtype=torch.float64)
            nodes.append((parent, row_of[joint.name] if joint else 0, origin))
            parent, origin = len(nodes) - 1, torch.eye(4, dtype=torch.float64)
            if joint is not None:
                node_of[joint.name] = parent
        last.append(parent)
    return nodes, last, node_of


def _rows(vectors: Sequence[np.ndarray]) -> Tensor:
    rows = [torch.as_tensor(vector, dtype=torch.float64) for vector in vectors]
    return torch.stack(rows) if rows else torch.zeros(0, 3, dtype=torch.float64)


def _nodes(
    skeleton: Skeleton, chain: Chain, values: Float[Tensor, "*B V"], base: Float[Tensor, "*#B 4 4"] | None
) -> Float[Tensor, "*B N 4 4"]:
    """World poses of all nodes, level by level."""
    count = chain.mix.shape[1]
    if values.shape[-1] != count:
        raise InputError(f"robot `{skeleton.name}` was given {values.shape[-1]} joint values; {count} are needed.")
    motions = _motions(chain, values)
    above = torch.eye(4, dtype=values.dtype, device=values.device) if base is None else base.to(values)
    known = above.expand(*values.shape[:-1], 4, 4)[..., None, :, :]
    for level, (parents, rows, origins) in enumerate(chain.levels):
        here = known.index_select(-3, parents) @ origins @ motions.index_select(-3, rows)
        known = here if level == 0 else torch.cat([known, here], dim=-3)
    return known


def _motions(chain: Chain, values: Float[Tensor, "*B V"]) -> Float[Tensor, "*B M 4 4"]:
    """What each joint does to its node: nothing, then single-valued joints (Rodrigues), then balls and free ones."""
    batch = values.shape[:-1]
    eye = torch.eye(4, dtype=values.dtype, device=values.device)
    amount = values @ chain.mix.T + chain.shift
    x, y, z = chain.axis.unbind(-1)
    zero = torch.zeros_like(x)
    cross = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], dim=-1).reshape(-1, 3, 3)
    angle = torch.where(chain.slides, torch.zeros_like(amount), amount)[..., None, None]
    rotation = eye[:3, :3] + angle.sin() * cross + (1 - angle.cos()) * (cross @ cross)
    slide = torch.where(chain.slides, amount, torch.zeros_like(amount))[..., None] * chain.axis
    offset = slide + chain.anchor - (rotation @ chain.anchor[:, :, None])[..., 0]
    parts = [eye.expand(*batch, 1, 4, 4), transform_from(rotation, offset)]
    for start, kind, anchor in chain.others:
        quat = values[..., start : start + 4] if kind == "ball" else values[..., start + 3 : start + 7]
        turn = matrix_from_quat(normalize_quat(quat))
        shift = anchor - turn @ anchor if kind == "ball" else values[..., start : start + 3]
        parts.append(transform_from(turn, shift)[..., None, :, :])
    return torch.cat(parts, dim=-3)
