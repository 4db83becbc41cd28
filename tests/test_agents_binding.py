"""Robots and objects in worlds: names, files taken along, actions by kinematics alone."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh

from gworld.agents.actions import Control, action_spec, apply_action, deepest_link, gripper_joints, rest_agent
from gworld.agents.binding import agent_poses, bind_object, bind_robot, cut_object, load_robot, save_bound
from gworld.agents.kinematics import forward_kinematics, value_limits
from gworld.agents.segment import hole_shares, mask_shares, rows_in_box, rows_in_masks
from gworld.agents.skeleton import read_robot
from gworld.agents.skinning import SkinOptions
from gworld.agents.tree import Skeleton, link_index
from gworld.cli import bind
from gworld.data.shapes import box, plain
from gworld.errors import InputError, UsageError
from gworld.formats.registry import write
from gworld.formats.world import load_world, save_world
from gworld.render.select import render
from gworld.scene.cameras import Cameras, intrinsics, look_at
from gworld.scene.gaussians import Gaussians, join_gaussians
from gworld.scene.world import World

COARSE = SkinOptions(per_square_metre=4000.0)
ARM = """<?xml version="1.0"?>
<robot name="arm">
  <material name="red"><color rgba="0.8 0.1 0.1 1"/></material>
  <link name="foot"><visual><geometry><cylinder radius="0.1" length="0.05"/></geometry></visual></link>
  <link name="upper"><visual><origin xyz="0 0 0.25"/><geometry><box size="0.06 0.06 0.5"/></geometry>
    <material name="red"/></visual></link>
  <link name="fore"><visual><origin xyz="0 0 0.2"/><geometry><mesh filename="package://arm/meshes/fore.obj"/></geometry>
    </visual></link>
  <link name="left"><visual><geometry><sphere radius="0.02"/></geometry></visual></link>
  <link name="right"><visual><geometry><sphere radius="0.02"/></geometry></visual></link>
  <joint name="shoulder" type="revolute"><parent link="foot"/><child link="upper"/><axis xyz="0 1 0"/>
    <limit lower="-1.5" upper="1.5" velocity="2" effort="10"/></joint>
  <joint name="elbow" type="revolute"><parent link="upper"/><child link="fore"/><origin xyz="0 0 0.5"/>
    <axis xyz="0 1 0"/><limit lower="-2" upper="2" velocity="4" effort="10"/></joint>
  <joint name="finger" type="prismatic"><parent link="fore"/><child link="left"/><origin xyz="0 0 0.42"/>
    <axis xyz="0 1 0"/><limit lower="0" upper="0.04" velocity="0.2" effort="10"/></joint>
  <joint name="other" type="prismatic"><parent link="fore"/><child link="right"/><origin xyz="0 0 0.42"/>
    <axis xyz="0 -1 0"/><limit lower="0" upper="0.04" velocity="0.2" effort="10"/><mimic joint="finger"/></joint>
</robot>
"""


@pytest.fixture
def arm(tmp_path: Path) -> Skeleton:
    folder = tmp_path / "arm"
    (folder / "meshes").mkdir(parents=True)
    mesh = trimesh.creation.box(extents=(0.05, 0.05, 0.4))
    (folder / "meshes" / "fore.obj").write_text(f"mtllib fore.mtl\nusemtl blue\n{mesh.export(file_type='obj')}")
    (folder / "meshes" / "fore.mtl").write_text("newmtl blue\nKd 0.1 0.2 0.9\n")
    (folder / "arm.urdf").write_text(ARM)
    return read_robot(folder / "arm.urdf", "arm", [tmp_path])


def table_world() -> World:
    top = box((1.0, 1.0, 0.02), 0.03, plain(0.7, 0.7, 0.6), (0, 0, -0.01))
    cube = box((0.1, 0.1, 0.1), 0.012, plain(0.9, 0.2, 0.2), (0.3, 0.2, 0.05))
    return World(join_gaussians([top, cube]), metric=True)


def at(x: float, y: float, z: float = 0.0) -> torch.Tensor:
    pose = torch.eye(4)
    pose[:3, 3] = torch.tensor([x, y, z])
    return pose


def test_two_robots_in_one_world_survive_the_disk(arm: Skeleton, tmp_path: Path) -> None:
    world = bind_robot(table_world(), arm, "left", at(-0.3, 0), torch.tensor([0.3, -0.5, 0.02]), skin=COARSE)
    world = bind_robot(world, arm, "right", at(0.3, 0), action=Control("joint_velocities"), skin=COARSE)
    save_bound(world, {"left": arm, "right": arm}, tmp_path / "world")
    again = load_world(tmp_path / "world")
    assert [agent.name for agent in again.agents] == ["left", "right"]
    assert again.links == world.links and again.entities == world.entities
    assert again.agents[0].source == "left/arm.urdf"
    assert again.agents[0].action is not None and again.agents[0].action.names == (
        "shoulder/position", "elbow/position", "finger/position",
    )  # fmt: skip
    assert again.agents[1].action is not None and again.agents[1].action.units == ("rad/s", "rad/s", "m/s")
    loaded = load_robot(again, "left")
    assert [link.name for link in loaded.links] == [link.name for link in arm.links]
    values = torch.tensor([0.3, -0.5, 0.02])
    poses = forward_kinematics(loaded, values, at(-0.3, 0))
    torch.testing.assert_close(poses, again.rest_poses()[list(again.agents[0].links)], atol=1e-5, rtol=0)
    # Bound once more from the world itself, the first robots' files stay.
    third = bind_robot(again, loaded, "third", at(0, 0.4), skin=COARSE)
    save_bound(third, {"third": loaded}, tmp_path / "world", overwrite=True)
    assert load_robot(load_world(tmp_path / "world"), "third").links[0].name == "foot"
    assert load_robot(load_world(tmp_path / "world"), "right").meshes


def test_gaussians_move_with_their_links(arm: Skeleton) -> None:
    world = bind_robot(table_world(), arm, "arm", at(0, 0), skin=COARSE)
    start = len(table_world().gaussians)
    owners = world.gaussians.links[start:]
    assert set(owners.tolist()) == {1, 2, 3, 4, 5}
    poses = agent_poses(world, arm, "arm", torch.tensor([math.pi / 2, 0.0, 0.0]), at(0, 0, 0.1))
    fore = world.gaussians.means[world.gaussians.links == 3]
    moved = fore @ poses[3, :3, :3].T + poses[3, :3, 3]
    assert float(moved[:, 0].min()) > 0.49 and float(moved[:, 0].max()) < 0.91
    torch.testing.assert_close(poses[0], torch.eye(4))


def test_a_mesh_keeps_its_own_colour_and_materials_are_looked_up(arm: Skeleton) -> None:
    flat = replace(COARSE, headlight=0.0)
    world = bind_robot(World(_none()), arm, "arm", at(0, 0), skin=flat)
    colors = world.gaussians.sh[:, 0] * 0.28209479 + 0.5
    upper, fore = (colors[world.gaussians.links == link].mean(0) for link in (2, 3))
    torch.testing.assert_close(upper, torch.tensor([0.8, 0.1, 0.1]), atol=1e-3, rtol=0)
    torch.testing.assert_close(fore, torch.tensor([0.1, 0.2, 0.9]), atol=5e-3, rtol=0)


def _none() -> Gaussians:
    whole = box((1.0, 1.0, 1.0), 0.5, plain(0, 0, 0))
    return Gaussians(
        *(getattr(whole, f)[:0] for f in ("means", "quats_wxyz", "log_scales", "opacity_logits", "sh", "links"))
    )


@pytest.mark.parametrize("name", ["", "scene", "world", ".."])
def test_taken_names_are_refused(arm: Skeleton, name: str) -> None:
    with pytest.raises(InputError, match="cannot be given"):
        bind_robot(table_world(), arm, name, at(0, 0), skin=COARSE)


def test_action_specs_are_named_and_bounded(arm: Skeleton) -> None:
    assert gripper_joints(arm) == ("finger",) and deepest_link(arm) == "fore"
    spec = action_spec(arm, Control("joint_targets", gripper=("finger",)))
    assert spec.names == ("shoulder/position", "elbow/position", "gripper/opening")
    assert (spec.low, spec.high) == ((-1.5, -2.0, 0.0), (1.5, 2.0, 1.0))
    step = action_spec(arm, Control("hand_step", gripper=("finger",)))
    assert step.names[:4] == ("fore/x", "fore/y", "fore/z", "fore/roll") and step.units[0] == "m"
    assert action_spec(arm, Control("vehicle")).names == ("vehicle/steer", "vehicle/accelerate")
    with pytest.raises(InputError, match="no joint `wrist`"):
        action_spec(arm, Control(joints=("wrist",)))


def test_joint_targets_keep_limits_and_speeds_and_unknown_is_no_motion(arm: Skeleton) -> None:
    spec = action_spec(arm, Control(gripper=("finger",)))
    state = rest_agent(arm)
    after = apply_action(arm, spec, state, torch.tensor([9.0, math.nan, 1.0]), 0.1)
    torch.testing.assert_close(after.values, torch.tensor([0.2, 0.0, 0.02]))  # 2 rad/s, unknown, 0.2 m/s
    for _ in range(20):
        after = apply_action(arm, spec, after, torch.tensor([9.0, -9.0, 1.0]), 0.1)
    torch.testing.assert_close(after.values, torch.tensor([1.5, -2.0, 0.04]))
    with pytest.raises(InputError, match="3 are needed"):
        apply_action(arm, spec, state, torch.zeros(2), 0.1)


def test_joint_velocities_integrate_in_batches(arm: Skeleton) -> None:
    spec = action_spec(arm, Control("joint_velocities"))
    state = rest_agent(arm, torch.eye(4).repeat(3, 1, 1))
    action = torch.tensor([[1.0, 0.0, 0.0], [-1.0, 2.0, 0.0], [0.0, 0.0, 0.1]])
    after = apply_action(arm, spec, state, action, 0.25)
    torch.testing.assert_close(after.values, action * 0.25)


def test_a_step_of_the_hand_moves_it_so_far(arm: Skeleton) -> None:
    spec = action_spec(arm, Control("hand_step", hand="left"))
    bent = replace(rest_agent(arm), values=torch.tensor([0.4, 0.9, 0.0]))
    step = torch.tensor([0.02, 0.0, -0.01, 0.0, math.nan, 0.0])
    free = action_spec(arm, Control("hand_step", hand="left", reach=(0.05, 1.0)))
    assert spec.names == free.names
    before = forward_kinematics(arm, bent.values)[link_index(arm, "left"), :3, 3]
    after = apply_action(arm, spec, bent, step, 1.0)
    moved = forward_kinematics(arm, after.values)[link_index(arm, "left"), :3, 3] - before
    assert float((moved - step[:3]).norm()) < 0.01  # two joints cannot keep the facing as well
    low, high = value_limits(arm)
    assert bool(((after.values >= low) & (after.values <= high)).all())


def test_a_vehicle_drives_a_circle(arm: Skeleton) -> None:
    spec = action_spec(arm, Control("vehicle"))
    state = replace(rest_agent(arm), speed=torch.tensor(2.0))
    steer, wheelbase = 0.3, 1.5
    radius = wheelbase / math.tan(steer)
    steps = 200
    seconds = 2 * math.pi * radius / 2.0 / steps
    for _ in range(steps):
        state = apply_action(arm, spec, state, torch.tensor([steer, 0.0]), seconds, wheelbase=wheelbase)
    torch.testing.assert_close(state.base, torch.eye(4), atol=1e-3, rtol=0)
    state = apply_action(arm, spec, state, torch.tensor([0.0, 1.0]), 2.0, wheelbase=wheelbase)
    torch.testing.assert_close(state.base[:3, 3], torch.tensor([6.0, 0.0, 0.0]), atol=5e-3, rtol=0)
    assert float(state.speed) == 4.0
    still = apply_action(arm, spec, state, torch.tensor([math.nan, math.nan]), 0.0, wheelbase=wheelbase)
    torch.testing.assert_close(still.base, state.base)


def test_objects_come_from_meshes_and_splat_files(tmp_path: Path) -> None:
    trimesh.creation.box(extents=(100, 200, 300)).export(tmp_path / "crate.stl")
    world = bind_object(table_world(), tmp_path / "crate.stl", "crate", at(0, 0, 0.5), scale=1e-3, skin=COARSE)
    means = world.gaussians.means[world.gaussians.links == 1]
    extent = means.amax(0) - means.amin(0)
    torch.testing.assert_close(extent, torch.tensor([0.1, 0.2, 0.3]), atol=0.02, rtol=0)
    assert world.links[1].pose[:3] == pytest.approx((0, 0, 0.5)) and world.entities[-1].kind == "object"
    write(box((0.1, 0.1, 0.1), 0.02, plain(0, 1, 0)), tmp_path / "splats.ply")
    world = bind_object(world, tmp_path / "splats.ply", "cube", at(0.2, 0, 0), scale=2.0)
    means = world.gaussians.means[world.gaussians.links == 2]
    assert 0.18 < float((means.amax(0) - means.amin(0)).max()) < 0.21
    with pytest.raises(InputError, match="scale of 0"):
        bind_object(world, tmp_path / "crate.stl", "other", at(0, 0), scale=0.0)


def views() -> Cameras:
    eyes = torch.tensor([[0.9, -0.6, 0.8], [-0.4, 1.1, 0.7], [1.0, 0.9, 0.9]])
    K = intrinsics(96, 72, 0.7).expand(3, 3, 3).clone()
    return Cameras(K, look_at(eyes, torch.tensor([0.2, 0.1, 0.0]).expand_as(eyes)), 96, 72)


def test_cutting_changes_no_picture_and_reports_the_hole() -> None:
    world = table_world()
    truth = torch.arange(len(world.gaussians)) >= len(box((1.0, 1.0, 0.02), 0.03, plain(0, 0, 0)))
    rows = rows_in_box(world, (0.24, 0.14, 0.001), (0.36, 0.26, 0.12))
    assert int((rows != truth).sum()) <= 0.2 * int(truth.sum())  # all but the cube's underside on the table
    cut = cut_object(world, "cube", truth)
    before = render(world.gaussians, world.rest_poses(), views(), backend="reference")
    after = render(cut.gaussians, cut.rest_poses(), views(), backend="reference")
    assert before.rgb is not None and after.rgb is not None
    changed = (before.rgb - after.rgb).abs() > 2e-3  # rounding may swap Gaussians of equal depth
    assert float(changed.float().mean()) < 0.005
    assert cut.entities[-1].kind == "object" and int((cut.gaussians.links == 1).sum()) == int(truth.sum())
    holes = hole_shares(world, truth, views(), backend="reference")
    assert holes.shape == (3,) and float(holes.max()) < 0.1
    with pytest.raises(InputError, match="no Gaussian"):
        cut_object(world, "nothing", torch.zeros(len(world.gaussians), dtype=torch.bool))


def test_masks_in_several_views_find_the_object() -> None:
    world = table_world()
    count = len(box((1.0, 1.0, 0.02), 0.03, plain(0, 0, 0)))
    truth = torch.arange(len(world.gaussians)) >= count
    marked = cut_object(world, "cube", truth)
    ids = render(marked.gaussians, marked.rest_poses(), views(), outputs=("link_id",), backend="reference").link_id
    assert ids is not None
    shares = mask_shares(world.gaussians, world.rest_poses(), views(), ids[0] == 1, backend="reference")
    alpha = render(world.gaussians, world.rest_poses(), views(), outputs=("alpha",), backend="reference").alpha
    assert alpha is not None
    np.testing.assert_allclose(float(shares.total.sum()), float(alpha.sum()), rtol=1e-3)
    rows = rows_in_masks(world, shares)
    judged = shares.total > 0.05
    assert float((rows == truth)[judged].float().mean()) > 0.97
    assert int(rows.sum()) > 0.5 * int(truth.sum())


def test_the_command_binds_saves_and_refuses(arm: Skeleton, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    world, out = tmp_path / "world", tmp_path / "out"
    save_world(replace(table_world(), cameras=views()), world)
    assert arm.path is not None
    coarse = SkinOptions(per_square_metre=2000.0)
    common = bind.Options(world, "left", out, robot=arm.path, package=(tmp_path,), skin=coarse, json=True)
    bind.run(replace(common, joints=("elbow=0.5",), base=(0, 0, 0.1, 1, 0, 0, 0)))
    facts = json.loads(capsys.readouterr().out)
    assert facts["action"] == ["shoulder/position", "elbow/position", "gripper/opening"]
    again = load_world(out)
    assert [agent.name for agent in again.agents] == ["left"] and again.links[1].pose[2] == pytest.approx(0.1)
    bind.run(bind.Options(out, "cube", overwrite=True, cut=(0.24, 0.14, 0.001, 0.36, 0.26, 0.12)))
    again = load_world(out)
    assert again.entities[-1].name == "cube" and load_robot(again, "left").links[0].name == "foot"
    assert "holes" in capsys.readouterr().err
    with pytest.raises(UsageError, match="one of --robot"):
        bind.run(bind.Options(world, "x", tmp_path / "y"))
    with pytest.raises(UsageError, match="exists already"):
        bind.run(replace(common, name="right"))
    with pytest.raises(UsageError, match="--joints wrist=1"):
        bind.run(replace(common, out=tmp_path / "y", joints=("wrist=1",)))
    with pytest.raises(UsageError, match="is no pose"):
        bind.run(replace(common, out=tmp_path / "y", base=(0, 0, 0, 0, 0, 0, 0)))
