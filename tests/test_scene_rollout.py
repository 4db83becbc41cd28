"""Rollouts: shapes are checked, poses between instants follow the arc, actions hold until the next."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from jaxtyping import TypeCheckError
from scipy.spatial.transform import Rotation, Slerp

from gworld.errors import InputError
from gworld.scene.rollout import Rollout, link_motion, poses_at, resample_rollout


def make_rollout(count: int = 6) -> Rollout:
    times = torch.cumsum(torch.linspace(0.1, 0.3, count, dtype=torch.float64), 0)
    spin = Rotation.from_rotvec(np.linspace(0, 7, count)[:, None] * [0, 0.6, 0.8]).as_quat(canonical=True)
    poses = torch.zeros(count, 2, 7)
    poses[..., 3] = 1.0
    poses[:, 1, :3] = torch.linspace(0, 1, count)[:, None] * torch.tensor([1.0, -2, 3])
    poses[:, 1, 3:] = torch.from_numpy(spin[:, [3, 0, 1, 2]]).float()
    return Rollout(times, poses, ("world", "arm"), {"left": torch.arange(2.0 * count).reshape(count, 2)}, (7,))


def test_poses_between_instants_agree_with_scipy() -> None:
    rollout = make_rollout()
    times, arm = rollout.times.numpy(), rollout.link_poses[:, 1].double().numpy()
    arc = Slerp(times, Rotation.from_quat(arm[:, [4, 5, 6, 3]]))
    for time in np.linspace(times[0], times[-1], 23):
        pose = poses_at(rollout, float(time))
        place = [np.interp(time, times, arm[:, axis]) for axis in range(3)]
        np.testing.assert_allclose(pose[1, :3].numpy(), place, atol=1e-6)
        found = Rotation.from_quat(pose[1, [4, 5, 6, 3]].double().numpy())
        assert (arc(time).inv() * found).magnitude() < 2e-6
        np.testing.assert_allclose(pose[0].numpy(), [0, 0, 0, 1, 0, 0, 0], atol=1e-7)


def test_outside_the_rollout_the_nearest_pose_holds() -> None:
    rollout = make_rollout()
    assert torch.equal(poses_at(rollout, -5.0), rollout.link_poses[0])
    assert torch.equal(poses_at(rollout, 99.0), rollout.link_poses[-1])
    with pytest.raises(InputError, match="NaN"):
        poses_at(rollout, float("nan"))


def test_resampling_keeps_instants_and_holds_actions() -> None:
    rollout = make_rollout()
    same = resample_rollout(rollout, rollout.times)
    torch.testing.assert_close(same.link_poses, rollout.link_poses, atol=1e-6, rtol=0)
    assert torch.equal(same.actions["left"], rollout.actions["left"])
    late = resample_rollout(rollout, rollout.times + 0.01)
    assert torch.equal(late.actions["left"], rollout.actions["left"])
    assert torch.equal(link_motion(rollout, "arm"), rollout.link_poses[:, 1])
    with pytest.raises(InputError, match="leg"):
        link_motion(rollout, "leg")


def test_what_does_not_fit_is_refused() -> None:
    rollout = make_rollout()
    faults = (
        {"times": rollout.times.flip(0)},
        {"times": rollout.times.float()},
        {"times": rollout.times[:0], "link_poses": rollout.link_poses[:0]},
        {"link_poses": rollout.link_poses[:, :1]},
        {"link_poses": rollout.link_poses * torch.nan},
        {"actions": {"left": torch.zeros(2, 3)}},
    )
    for fault in faults:
        with pytest.raises((InputError, TypeCheckError), match="Rollout"):  # the latter while shapes are checked
            replace(rollout, **fault)
    unknown = replace(rollout, actions={"left": torch.full((6, 3), torch.nan)})  # unknown actions are NaN, and allowed
    assert len(unknown) == 6
