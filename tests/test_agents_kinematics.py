"""Kinematics against MuJoCo on other people's robots, against autograd, and back again."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gworld.agents.inverse import InverseOptions, joints_from_poses, solve_inverse
from gworld.agents.kinematics import clamp_values, forward_kinematics, jacobian, rest_values, value_limits
from gworld.agents.skeleton import Skeleton, read_robot
from gworld.agents.tree import Mimic, link_index, subtree, value_slots
from gworld.errors import InputError

# robot -> (package, model, folder that may be read besides the model's own)
ROBOTS = {
    "two ViperX 300": ("gym_aloha", "assets/bimanual_viperx_transfer_cube.xml", None),
    "Fetch": ("gymnasium_robotics", "envs/assets/fetch/pick_and_place.xml", "envs/assets"),
    "Shadow hand": ("gymnasium_robotics", "envs/assets/hand/manipulate_block.xml", "envs/assets"),
    "Adroit hand": ("gymnasium_robotics", "envs/assets/adroit_hand/adroit_hammer.xml", "envs/assets"),
    "Franka in a kitchen": (
        "gymnasium_robotics", "envs/assets/kitchen_franka/kitchen_assets/kitchen_env_model.xml", "envs/assets",
    ),
    "Jaco arm": ("dm_control", "third_party/kinova/jaco_arm.xml", None),
    "ant": ("dm_control", "third_party/ant/ant.xml", None),
    "humanoid": ("dm_control", "suite/humanoid.xml", None),
    "CMU humanoid": ("dm_control", "suite/humanoid_CMU.xml", None),
    "quadruped": ("dm_control", "suite/quadruped.xml", None),
    "manipulator": ("dm_control", "suite/manipulator.xml", None),
    "walker": ("dm_control", "suite/walker.xml", None),
    "cheetah": ("dm_control", "suite/cheetah.xml", None),
    "finger": ("dm_control", "suite/finger.xml", None),
    "fish": ("dm_control", "suite/fish.xml", None),
}  # fmt: skip


def robot_file(robot: str) -> tuple[Path, tuple[Path, ...]]:
    package, model, folder = ROBOTS[robot]
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        pytest.skip(f"{package} is not installed; pip install 'gworld[sim]'")
    root = Path(spec.submodule_search_locations[0])
    return root / model, (root / folder,) if folder else ()


def random_values(skeleton: Skeleton, count: int, seed: int) -> torch.Tensor:
    low, high = value_limits(skeleton, torch.float64).clamp(-1.5, 1.5)
    share = torch.rand(count, low.shape[0], dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    values = low + (high - low) * share
    for joint in skeleton.free_joints:
        if joint.kind in ("ball", "free"):
            slot = value_slots(skeleton)[joint.name]
            quat = values[:, slot.stop - 4 : slot.stop]
            values[:, slot.stop - 4 : slot.stop] = quat / quat.norm(dim=-1, keepdim=True) * quat[:, :1].sign()
    return values


def mujoco_positions(model: Any, skeleton: Skeleton, values: torch.Tensor) -> np.ndarray:
    """The simulator's joint vector of our values, followers filled in."""
    slots, qpos = value_slots(skeleton), np.array(model.qpos0)
    for joint in skeleton.joints:
        address = int(np.ravel(model.joint(joint.name).qposadr)[0])
        if joint.mimic is not None:
            qpos[address] = joint.mimic.multiplier * values[slots[joint.mimic.joint]].item() + joint.mimic.offset
        else:
            slot = slots[joint.name]
            qpos[address : address + slot.stop - slot.start] = values[slot].numpy()
    return qpos


@pytest.mark.parametrize("robot", ROBOTS)
def test_link_poses_equal_mujocos(robot: str) -> None:
    mujoco = pytest.importorskip("mujoco", reason="MuJoCo is not installed; pip install 'gworld[sim]'")
    path, folders = robot_file(robot)
    skeleton = read_robot(path, robot, folders)
    model = mujoco.MjModel.from_xml_path(str(path))
    data = mujoco.MjData(model)
    values = random_values(skeleton, 3, seed=1)
    poses = forward_kinematics(skeleton, values)
    for row in range(3):
        data.qpos[:] = mujoco_positions(model, skeleton, values[row])
        mujoco.mj_kinematics(model, data)
        np.testing.assert_allclose(poses[row, :, :3, 3], data.xpos, atol=1e-6)
        np.testing.assert_allclose(poses[row, :, :3, :3], data.xmat.reshape(-1, 3, 3), atol=1e-6)


def franka(real_data: Path) -> Skeleton:
    return read_robot(real_data / "embodied_gaussians" / "robot" / "panda.urdf", "panda")


def test_urdf_poses_equal_mujocos_reading_of_it(real_data: Path, tmp_path: Path) -> None:
    mujoco = pytest.importorskip("mujoco", reason="MuJoCo is not installed; pip install 'gworld[sim]'")
    skeleton = franka(real_data)
    folder = real_data / "embodied_gaussians" / "robot"
    keep = '<mujoco><compiler fusestatic="false" strippath="false" discardvisual="false"/></mujoco></robot>'
    text = (folder / "panda.urdf").read_text().replace("</robot>", keep)
    meshes = {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*.stl")}
    model = mujoco.MjModel.from_xml_string(text, meshes)
    data = mujoco.MjData(model)
    values = random_values(skeleton, 4, seed=2)
    poses = forward_kinematics(skeleton, values)
    known = {model.body(i).name for i in range(model.nbody)}
    assert len(known & {link.name for link in skeleton.links}) >= 11
    for row in range(4):
        data.qpos[:] = mujoco_positions(model, skeleton, values[row])
        mujoco.mj_kinematics(model, data)
        for index, link in enumerate(skeleton.links):
            if link.name in known:
                np.testing.assert_allclose(poses[row, index, :3, 3], data.body(link.name).xpos, atol=1e-6)
                np.testing.assert_allclose(poses[row, index, :3, :3].ravel(), data.body(link.name).xmat, atol=1e-6)


def test_a_finger_follows_the_other(real_data: Path) -> None:
    skeleton = franka(real_data)
    assert skeleton.joints[-1].mimic == Mimic("panda_finger_joint1")
    assert [joint.name for joint in skeleton.free_joints][-1] == "panda_finger_joint1"
    values = rest_values(skeleton, torch.float64)
    values[-1] = 0.03
    poses = forward_kinematics(skeleton, values)
    left, right, hand = (
        poses[link_index(skeleton, f"panda_{name}"), :3, 3] for name in ("leftfinger", "rightfinger", "hand")
    )
    assert torch.allclose((left - right).norm(), torch.tensor(0.06, dtype=torch.float64), atol=1e-9)
    assert torch.allclose((left - hand).norm(), (right - hand).norm(), atol=1e-9)


def test_jacobian_equals_autograd(real_data: Path) -> None:
    skeleton = franka(real_data)
    values = random_values(skeleton, 2, seed=3)
    base = torch.eye(4, dtype=torch.float64)
    base[:3, :3] = torch.tensor([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    base[:3, 3] = torch.tensor([0.3, -0.2, 0.5])
    link = "panda_leftfinger"
    found = jacobian(skeleton, values, [link], base)[:, 0]
    for row in range(2):

        def pose(at: torch.Tensor) -> torch.Tensor:
            return forward_kinematics(skeleton, at, base)[link_index(skeleton, link), :3]

        slope = torch.autograd.functional.jacobian(pose, values[row])
        rotation = pose(values[row])[:, :3]
        spin = torch.einsum("ijv,kj->ikv", slope[:, :3], rotation)  # dR R^T, a cross-product matrix per value
        turning = torch.stack([spin[2, 1], spin[0, 2], spin[1, 0]])
        torch.testing.assert_close(found[row, :3], slope[:, 3], atol=1e-10, rtol=0)
        torch.testing.assert_close(found[row, 3:], turning, atol=1e-10, rtol=0)


def test_batches_of_any_shape_and_bases_broadcast(real_data: Path) -> None:
    skeleton = franka(real_data)
    values = random_values(skeleton, 6, seed=4).reshape(2, 3, -1)
    base = torch.eye(4, dtype=torch.float64).repeat(2, 3, 1, 1)
    base[1, :, 0, 3] = 2.0
    poses = forward_kinematics(skeleton, values, base)
    assert poses.shape == (2, 3, len(skeleton.links), 4, 4)
    single = forward_kinematics(skeleton, values[1, 2])
    single[:, 0, 3] += 2.0
    torch.testing.assert_close(poses[1, 2], single)
    with pytest.raises(InputError, match="8 are needed"):
        forward_kinematics(skeleton, values[..., :3])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_inverse_kinematics_reaches_reachable_poses_within_limits(real_data: Path, dtype: torch.dtype) -> None:
    skeleton = franka(real_data)
    goal = random_values(skeleton, 40, seed=5).to(dtype)
    target = forward_kinematics(skeleton, goal)[:, [link_index(skeleton, "panda_hand")]]
    noise = torch.randn(goal.shape, generator=torch.Generator().manual_seed(6)).to(dtype)
    found = solve_inverse(skeleton, ["panda_hand"], target, clamp_values(skeleton, goal + 0.2 * noise))
    reached = (found.position_error < 1e-4) & (found.rotation_error < 1e-3)
    assert reached.float().mean() >= 0.95
    low, high = value_limits(skeleton, dtype)
    assert bool(((found.values >= low) & (found.values <= high)).all())


def test_inverse_kinematics_stops_at_limits_and_holds_what_it_is_told(real_data: Path) -> None:
    skeleton = franka(real_data)
    start = rest_values(skeleton, torch.float64)
    target = torch.eye(4, dtype=torch.float64)[None].clone()
    target[0, :3, 3] = torch.tensor([5.0, 0.0, 0.0])  # out of reach
    found = solve_inverse(
        skeleton, ["panda_hand"], target, start, hold=["panda_joint2"], options=InverseOptions(rotation_weight=0.01)
    )
    low, high = value_limits(skeleton, torch.float64)
    assert bool(((found.values >= low) & (found.values <= high)).all())
    assert found.values[1] == start[1]
    assert bool(found.position_error.isfinite().all())
    before = forward_kinematics(skeleton, start)[link_index(skeleton, "panda_hand"), :3, 3]
    assert found.position_error[0] < (target[0, :3, 3] - before).norm()
    with pytest.raises(InputError, match="no joint elbow to hold"):
        solve_inverse(skeleton, ["panda_hand"], target, hold=["elbow"])


@pytest.mark.parametrize("robot", ["two ViperX 300", "humanoid", "quadruped"])
def test_joint_values_come_back_from_poses(robot: str) -> None:
    pytest.importorskip("mujoco", reason="MuJoCo is not installed; pip install 'gworld[sim]'")
    path, folders = robot_file(robot)
    skeleton = read_robot(path, robot, folders)
    values = random_values(skeleton, 5, seed=7)
    found, base = joints_from_poses(skeleton, forward_kinematics(skeleton, values))
    torch.testing.assert_close(found, values, atol=1e-6, rtol=0)
    torch.testing.assert_close(base, torch.eye(4, dtype=torch.float64).expand(5, 4, 4), atol=1e-9, rtol=0)


def test_one_arm_of_two_is_cut_out() -> None:
    pytest.importorskip("mujoco", reason="MuJoCo is not installed; pip install 'gworld[sim]'")
    path, folders = robot_file("two ViperX 300")
    both = read_robot(path, "both", folders)
    right = subtree(both, "vx300s_right", "right")
    assert right.links[0].name == "vx300s_right" and right.links[0].parent == -1
    assert len(right.free_joints) == 8 and {shape.link for shape in right.shapes} <= set(range(len(right.links)))
    values = random_values(both, 1, seed=8)[0]
    slots = value_slots(both)
    own = torch.cat([values[slots[joint.name]] for joint in right.free_joints])
    whole = forward_kinematics(both, values)
    alone = forward_kinematics(right, own, whole[link_index(both, "vx300s_right")])
    for index, link in enumerate(right.links):
        torch.testing.assert_close(alone[index], whole[link_index(both, link.name)])
