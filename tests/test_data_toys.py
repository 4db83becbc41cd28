"""Generated scenes: closed surfaces that face outward, kinematics that agree with an independent formula."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from gworld.data import toys
from gworld.data.shapes import box, checker, cylinder, plain, sphere
from gworld.errors import InputError
from gworld.geometry import matrix_from_quat
from gworld.render.select import render
from gworld.scene.cameras import resize_cameras


def test_world_is_whole() -> None:
    world = toys.tabletop_world(0.03)
    assert [entity.name for entity in world.agents] == ["left", "right"]
    assert world.metric and len(world.links) == 12
    assert set(world.gaussians.links.tolist()) == set(range(12))
    for agent in world.agents:
        assert agent.action is not None and len(agent.action) == 3
        assert agent.action.units == ("rad",) * 3
    with pytest.raises(InputError, match="is needed"):
        toys.tabletop_world(0.5)


@pytest.mark.parametrize("shape", ["box", "cylinder", "sphere"])
def test_disks_lie_on_their_surface_and_face_outward(shape: str) -> None:
    paint = plain(0.5, 0.5, 0.5)
    made = {
        "box": lambda: box((0.2, 0.4, 0.6), 0.02, paint),
        "cylinder": lambda: cylinder(0.2, 0.5, 0.02, paint),
        "sphere": lambda: sphere(0.3, 0.02, paint),
    }[shape]()
    normals = matrix_from_quat(made.quats_wxyz)[:, :, 2]
    assert ((normals * made.means).sum(-1) > 0).all()
    if shape == "sphere":
        torch.testing.assert_close(made.means.norm(dim=-1), torch.full((len(made),), 0.3))
    if shape == "box":
        on_face = (made.means.abs() / torch.tensor([0.1, 0.2, 0.3])).amax(-1)
        torch.testing.assert_close(on_face, torch.ones(len(made)))
    assert (made.log_scales.argmin(-1) == 2).all()


def test_checker_alternates() -> None:
    points = np.array([[0.05, 0.05, 0.05], [0.15, 0.05, 0.05], [0.15, 0.15, 0.05]])
    np.testing.assert_array_equal(checker((1, 1, 1), (0, 0, 0), 0.1)(points)[:, 0], [1, 0, 1])


def test_arm_kinematics_agree_with_a_product_of_rotations() -> None:
    joints = torch.tensor([0.4, 0.7, -1.2], dtype=torch.float64)
    tip = toys.arm_poses(joints, 0.1, -0.2)[3] @ torch.tensor([0, 0, toys.FORE, 1.0], dtype=torch.float64)
    yaw, shoulder, elbow = joints.tolist()
    turn = Rotation.from_euler("z", yaw)
    upper = turn * Rotation.from_euler("x", -shoulder)
    fore = upper * Rotation.from_euler("x", -elbow)
    base = np.array([0.1, -0.2, toys.TABLE + toys.HEIGHT]) + turn.apply([0, 0, 0.03])
    expected = base + upper.apply([0, 0, toys.UPPER]) + fore.apply([0, 0, toys.FORE])
    np.testing.assert_allclose(tip[:3].numpy(), expected, atol=1e-9)


def test_waving_moves_arms_only_within_limits() -> None:
    world = toys.tabletop_world(0.05)
    rollout = toys.waving_rollout(world, seconds=1.0)
    poses = toys.poses_of(rollout)
    moved = (poses[0] - poses[7]).abs().amax((-1, -2)) > 1e-3
    names = [name for name, moves in zip(rollout.link_names, moved.tolist(), strict=True) if moves]
    assert names == [f"{arm}/{part}" for arm in ("left", "right") for part in ("turret", "upper", "fore")]
    low, high = torch.tensor(toys.LIMITS).unbind(-1)
    for actions in rollout.actions.values():
        assert ((actions >= low) & (actions <= high)).all()


def test_picture_shows_table_and_arms_where_they_are() -> None:
    world = toys.tabletop_world(0.03)
    assert world.cameras is not None
    camera = resize_cameras(world.cameras, 64, 48)[0]
    output = render(world.gaussians, world.rest_poses(), camera, outputs=("rgb", "link_id", "alpha"))
    assert output.link_id is not None and output.alpha is not None
    owners = output.link_id[0, 0]
    left = [link for link, name in enumerate(world.links) if name.name.startswith("left/")]
    right = [link for link, name in enumerate(world.links) if name.name.startswith("right/")]
    columns = torch.arange(64).expand(48, 64)
    assert columns[torch.isin(owners, torch.tensor(left))].float().mean() < 28
    assert columns[torch.isin(owners, torch.tensor(right))].float().mean() > 36
    assert output.alpha[0, 0, 30:].mean() > 0.95
