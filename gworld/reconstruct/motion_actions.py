"""What an agent was told, guessed from how it moved: recordings without actions become food for dynamics."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from gworld.agents.actions import gripper_joints
from gworld.agents.kinematics import value_limits
from gworld.agents.tree import Skeleton, value_slots
from gworld.scene.world import ActionSpec


def actions_from_joints(
    spec: ActionSpec, skeleton: Skeleton, times: Float[Tensor, " T"], joints: Float[Tensor, "T V"]
) -> Float[Tensor, "T A"]:
    """The actions that lead from each step to the next, within their limits: the values (or, where velocities are
    told, the rates) that the joints reach there, a gripper's opening as the share of its joints' way.

    At the last step the joints are told to stay. Components that no joint tells of (a hand's steps, a vehicle's) are
    NaN: unknown.
    """
    after = torch.cat([joints[1:], joints[-1:]]).float()
    gaps = times.diff().float()
    rates = torch.cat([(joints[1:] - joints[:-1]).float() / gaps[:, None], torch.zeros_like(joints[-1:]).float()])
    slots, limits = value_slots(skeleton), value_limits(skeleton, torch.float64)
    columns = []
    for name in spec.names:
        joint, _, quantity = name.rpartition("/")
        parts = gripper_joints(skeleton) if quantity == "opening" else (joint,)
        known = next((key for part in parts for key in (part, f"{skeleton.name}/{part}") if key in slots), None)
        if known is None or quantity not in ("position", "velocity", "opening"):
            columns.append(torch.full_like(after[:, 0], torch.nan))
            continue
        at = slots[known].start
        if quantity == "opening":
            shut, wide = sorted(limits[:, at].tolist(), key=abs)
            columns.append((after[:, at] - shut) / max(abs(wide - shut), 1e-9) * (1.0 if wide > shut else -1.0))
        else:
            columns.append((rates if quantity == "velocity" else after)[:, at])
    low, high = torch.tensor(spec.low), torch.tensor(spec.high)
    return torch.minimum(torch.maximum(torch.stack(columns, dim=1), low), high)
