"""The state of W worlds at once, and the way from and to the `WorldState` of one."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float
from torch import Tensor

from gworld.geometry import matrix_from_quat, pose_from_transform, quat_from_rotvec, transform_from, transform_from_pose
from gworld.scene.world import WorldState

BELIEF = "dynamics/belief"
"""Name under which what was inferred about bodies is kept among a state's actuators."""


@dataclass(frozen=True)
class Motion:
    """What moves in W worlds of L links.

    world_from_link [W,L,4,4] m; twists [W,L,6] linear velocity of the link's origin (m/s) and angular (rad/s), world
    axes; belief [W,L,B] what was inferred about each link from its history; memory {agent: [W,S]} the actuators' own
    state; time in seconds.
    """

    world_from_link: Float[Tensor, "W L 4 4"]
    twists: Float[Tensor, "W L 6"]
    belief: Float[Tensor, "W L B"]
    memory: dict[str, Tensor] = field(default_factory=dict)
    time: float = 0.0

    def __len__(self) -> int:
        return len(self.world_from_link)


def still_motion(world_from_link: Float[Tensor, "W L 4 4"], beliefs: int = 1) -> Motion:
    """Links at these poses, at rest, nothing known about them."""
    worlds, links = world_from_link.shape[:2]
    zeros = world_from_link.new_zeros
    return Motion(world_from_link, zeros(worlds, links, 6), zeros(worlds, links, beliefs))


def twists_between(first: Tensor, second: Tensor, seconds: float) -> Float[Tensor, "*B 6"]:
    """Mean twist that takes poses [*B,4,4] `first` to `second`, as `Motion.twists` holds it."""
    from gworld.geometry import quat_from_matrix, rotvec_from_quat

    turn = rotvec_from_quat(quat_from_matrix(second[..., :3, :3] @ first[..., :3, :3].transpose(-1, -2)))
    return torch.cat([second[..., :3, 3] - first[..., :3, 3], turn], dim=-1) / seconds


def motion_from_poses(poses: Float[Tensor, "W T L 7"], seconds: float, beliefs: int = 1) -> Motion:
    """The motion at the last of T poses `seconds` apart; velocity from the last two, corrected by half their change
    where there are three: exact for constant acceleration."""
    chain = transform_from_pose(poses)
    if chain.shape[1] < 2:
        return still_motion(chain[:, -1], beliefs)
    twist = twists_between(chain[:, -2], chain[:, -1], seconds)
    if chain.shape[1] > 2:
        before = twists_between(chain[:, -3], chain[:, -2], seconds)
        twist = twist + 0.5 * (twist - before)
    return replace(still_motion(chain[:, -1], beliefs), twists=twist)


def motion_from_states(states: list[WorldState], beliefs: int = 1) -> Motion:
    """One batch of worlds' states; where a state has no belief, nothing is known."""
    first = states[0]
    blank = torch.zeros(len(first.world_from_link), beliefs)
    agents = [name for name in first.actuators if name != BELIEF]
    return Motion(
        torch.stack([state.world_from_link for state in states]),
        torch.stack([state.velocities for state in states]),
        torch.stack([state.actuators.get(BELIEF, blank).reshape(blank.shape) for state in states]),
        {name: torch.stack([state.actuators[name] for state in states]) for name in agents},
        first.time,
    )


def state_from_motion(motion: Motion, row: int, before: WorldState | None = None, window: int = 0) -> WorldState:
    """World `row` of a batch; the pose `before` joins the last `window` poses of its history."""
    memory = {name: value[row] for name, value in motion.memory.items()}
    memory[BELIEF] = motion.belief[row].reshape(-1)
    poses = motion.world_from_link[row]
    history = poses.new_zeros(0, len(poses), 7)
    if before is not None and window:
        history = torch.cat([before.history, pose_from_transform(before.world_from_link)[None]])[-window:]
    return WorldState(poses, motion.twists[row], history, memory, None if before is None else before.rng, motion.time)


def move_frames(
    world_from_link: Float[Tensor, "*B 4 4"], shift: Float[Tensor, "*B 3"], turn: Float[Tensor, "*B 3"]
) -> Float[Tensor, "*B 4 4"]:
    """Poses displaced by `shift` metres and then turned in place by a rotation vector, rotations kept orthonormal."""
    rotation = matrix_from_quat(quat_from_rotvec(turn)) @ world_from_link[..., :3, :3]
    return transform_from(straighten(rotation), world_from_link[..., :3, 3] + shift)


def straighten(rotation: Float[Tensor, "*B 3 3"]) -> Float[Tensor, "*B 3 3"]:
    """The nearest rotation to a nearly orthonormal matrix, by one Newton step of its polar decomposition."""
    return 1.5 * rotation - 0.5 * rotation @ (rotation.transpose(-1, -2) @ rotation)
