"""What tracking leaves: smooth poses and joints of a world, how sure they are, and what was refined on the way."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from gworld.geometry import pose_from_transform
from gworld.reconstruct.motion_bodies import Bodies, between, moved, poses_of
from gworld.reconstruct.motion_film import Plates
from gworld.reconstruct.motion_follow import Followed
from gworld.reconstruct.motion_smooth import Smooth, smooth_states
from gworld.scene.cameras import Cameras
from gworld.scene.world import World


@dataclass(frozen=True, eq=False)
class Looks:
    """What is learned about looks: cameras, plates, the cameras' gains [C,3], and the bodies with their colours."""

    cameras: Cameras
    plates: Plates
    gains: Float[Tensor, "C 3"]
    bodies: Bodies


@dataclass(frozen=True, eq=False)
class Tracked:
    """The motion of a world.

    times [T] seconds; link_poses [T,L,7] world_from_link of all links of `link_names`; joints {agent: [T,V]} rad, m;
    pose_sigma [T,L,2] standard deviations of each link's place (metres) and turn (radians); joint_sigma {agent:
    [T,V]}, 0 where a joint was held; misfit [T] how badly the pictures were explained (0 perfectly), NaN
    where a time was not fitted; lost [T] where a body had to be searched anew and was not found well. `world` is the
    world with refined roots, colours and cameras, `plates` what stands behind, `gains` [C,3] the cameras' exposures.
    """

    times: Float[Tensor, " T"]
    link_poses: Float[Tensor, "T L 7"]
    link_names: tuple[str, ...]
    joints: dict[str, Float[Tensor, "T V"]]
    pose_sigma: Float[Tensor, "T L 2"]
    joint_sigma: dict[str, Float[Tensor, "T V"]]
    misfit: Float[Tensor, " T"]
    lost: Bool[Tensor, " T"]
    cameras: Cameras
    plates: Plates
    gains: Float[Tensor, "C 3"]
    world: World
    bodies: Bodies
    states: Float[Tensor, "T S"]
    facts: dict[str, float] = field(default_factory=dict)


def tracked_motion(
    world: World,
    looks: Looks,
    clock: Float[np.ndarray, " T"],
    rows: np.ndarray,
    followed: Followed,
    smoothness: float,
    facts: dict[str, float],
) -> Tracked:
    """Smooth what was followed at `rows` of the clock, and say it in the world's terms at all times."""
    bodies = looks.bodies
    fitted = np.zeros(len(clock), bool)
    fitted[rows] = True
    matrices = torch.zeros(len(clock), bodies.size, bodies.size, dtype=torch.float64)
    matrices[rows] = followed.matrices
    states = fill_states(bodies, clock, clock[rows], followed.states)
    smooth = smooth_states(bodies, clock, states, matrices, fitted, smoothness)
    misfit = torch.full((len(clock),), torch.nan)
    misfit[rows] = followed.misfit.float()
    lost = torch.zeros(len(clock), dtype=torch.bool)
    lost[rows] = followed.lost
    joints, spread = _joints(bodies, smooth)
    return Tracked(
        times=torch.from_numpy(clock),
        link_poses=pose_from_transform(poses_of(bodies, smooth.states)).float(),
        link_names=tuple(link.name for link in world.links),
        joints=joints,
        pose_sigma=_pose_sigma(bodies, smooth).float(),
        joint_sigma=spread,
        misfit=misfit,
        lost=lost,
        cameras=looks.cameras,
        plates=looks.plates,
        gains=looks.gains,
        world=_refined(world, bodies, smooth.states[0], looks.cameras),
        bodies=bodies,
        states=smooth.states,
        facts=facts,
    )


def fill_states(
    bodies: Bodies, times: np.ndarray, fitted: np.ndarray, states: Float[Tensor, "F S"]
) -> Float[Tensor, "T S"]:
    """States at all times, on straight steps between the fitted ones."""
    late = np.clip(np.searchsorted(fitted, times, side="right") - 1, 0, max(len(fitted) - 2, 0))
    if len(fitted) == 1:
        return states.expand(len(times), -1).clone()
    share = torch.from_numpy((times - fitted[late]) / (fitted[late + 1] - fitted[late]))
    step = between(bodies, states[late], states[late + 1])
    return moved(bodies, states[late], step * share[:, None])


def _joints(bodies: Bodies, smooth: Smooth) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    values, spread, at = {}, {}, 0
    sigma = smooth.covariance.diagonal(dim1=-2, dim2=-1).clamp_min(0).sqrt()
    for arm in bodies.arms:
        width = len(arm.skeleton.free_joints)
        values[arm.name] = smooth.states[:, arm.start : arm.start + width].float()
        spread[arm.name] = torch.zeros(len(smooth.states), width)
        spread[arm.name][:, arm.free] = sigma[:, at : at + len(arm.free)].float()
        at += len(arm.free)
    return values, spread


def _pose_sigma(bodies: Bodies, smooth: Smooth) -> Float[Tensor, "T L 2"]:
    """How far each link's origin and rotation may be off, from the covariance of the components."""
    step = 1e-5
    eye = step * torch.eye(bodies.size, dtype=torch.float64)
    result = []
    for state, covariance in zip(smooth.states, smooth.covariance, strict=True):
        ahead = poses_of(bodies, moved(bodies, state, eye))
        behind = poses_of(bodies, moved(bodies, state, -eye))
        slope = (ahead - behind)[..., :3, :] / (2 * step)
        place = torch.einsum("plx,pq,qlx->l", slope[..., 3], covariance, slope[..., 3])
        turn = torch.einsum("plxy,pq,qlxy->l", slope[..., :3], covariance, slope[..., :3]) / 2
        result.append(torch.stack([place, turn], dim=-1).clamp_min(0).sqrt())
    return torch.stack(result)


def _refined(world: World, bodies: Bodies, state: Tensor, cameras: Cameras) -> World:
    """The world with the refined colours and cameras, at rest in the first state."""
    rest = pose_from_transform(poses_of(bodies, state))
    moving = torch.isin(world.gaussians.links, bodies.gaussians.links.unique())
    sh = world.gaussians.sh.clone()
    sh[moving] = bodies.gaussians.sh
    links = tuple(
        replace(link, pose=tuple(rest[index].tolist())) if index else link for index, link in enumerate(world.links)
    )
    return replace(world, gaussians=replace(world.gaussians, sh=sh), links=links, cameras=cameras)
