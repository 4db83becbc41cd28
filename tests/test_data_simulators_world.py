"""The true world of a scene against MuJoCo's own pictures of it, and robots as Gaussians against its id images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("mujoco", reason="MuJoCo is not installed; pip install 'gworld[sim]'")

from gworld.agents.actions import apply_action, rest_agent
from gworld.agents.kinematics import forward_kinematics
from gworld.agents.skeleton import read_robot
from gworld.agents.tree import link_index, subtree
from gworld.data.simulators import open_scene
from gworld.data.simulators_gym import open_simulation
from gworld.data.simulators_models import PosedModel
from gworld.data.simulators_options import SceneOptions
from gworld.data.simulators_world import scene_world, write_models
from gworld.errors import InputError, MissingBackendError
from gworld.geometry import transform_from_pose
from gworld.render.api import RenderOptions
from gworld.render.select import render


@pytest.mark.parametrize("name", ["push", "arms"])
def test_the_true_world_looks_like_the_simulators_pictures(name: str) -> None:
    simulation = open_scene(name, SceneOptions(agents=1, objects=2, cameras=1))
    world = scene_world(simulation)
    assert world.metric and [entity.kind for entity in world.entities] == ["static", "agent", "object", "object"]
    for _ in range(6):
        simulation.step({agent: np.array(actor.spec.high) for agent, actor in simulation.agents.items()})
    poses = transform_from_pose(torch.tensor(simulation.link_poses())).float()
    try:
        truth = simulation.draw(0)
    except MissingBackendError as error:
        pytest.skip(str(error))
    assert world.background is not None and np.abs(np.array(world.background) - 0.5).max() < 0.01
    options = RenderOptions(background=world.background, antialiased=True)
    assert simulation.cameras is not None
    drawn = render(world.gaussians, poses, simulation.cameras, outputs=("rgb", "link_id"), options=options)
    assert drawn.rgb is not None and drawn.link_id is not None
    error = (drawn.rgb[0, 0].numpy() - truth.rgb / 255.0) ** 2
    assert -10 * np.log10(error.mean()) > 24.0
    ours, theirs = drawn.link_id[0, 0].numpy() > 0, truth.links > 0
    assert (ours & theirs).sum() / (ours | theirs).sum() > 0.85


def test_an_agents_own_model_has_the_scenes_links_and_joints(tmp_path: Path) -> None:
    simulation = open_scene("arms")
    written = write_models(simulation, tmp_path)
    assert set(written) == {"left", "right"}
    robot = subtree(read_robot(tmp_path / written["right"], "right"), "base", "right")
    actor = simulation.agents["right"]
    assert [f"right/{link.name}" for link in robot.links] == [simulation.link_names[link] for link in actor.links]
    assert tuple(joint.name for joint in robot.free_joints) == actor.joints
    simulation.reset(5)
    poses = transform_from_pose(torch.tensor(simulation.link_poses()))
    values = torch.tensor(simulation.joints("right"))
    found = forward_kinematics(robot, values, poses[actor.links[0]])
    torch.testing.assert_close(found, poses[list(actor.links)], atol=2e-4, rtol=0)  # the fingers' tie gives a little
    action = torch.tensor(simulation.null_action("right"))
    held = apply_action(robot, actor.spec, rest_agent(robot), action, 0.05, gripper=("finger_left",)).values
    torch.testing.assert_close(held.double()[:6], values[:6], atol=0.02, rtol=0)
    assert link_index(robot, "hand") > 0


def test_shapes_of_other_kinds_are_refused() -> None:
    pytest.importorskip("gymnasium", reason="gymnasium is not installed; pip install 'gworld[sim]'")
    simulation = open_simulation("gym:Ant-v5", SceneOptions(width=64, height=48))
    with pytest.raises(InputError, match="bind it"):
        scene_world(simulation)


def test_silhouettes_of_our_arm_equal_mujocos(tmp_path: Path) -> None:
    from gworld.bench.silhouette import compare

    written = write_models(open_scene("arms", SceneOptions(agents=1, objects=0)), tmp_path)
    try:
        PosedModel(tmp_path / written["left"]).draw(_one_camera(tmp_path / written["left"]), 0)
    except MissingBackendError as error:
        pytest.skip(str(error))
    fits = compare(tmp_path / written["left"], (), poses=1)
    assert np.median([fit.iou for fit in fits]) > 0.97 and min(fit.links for fit in fits) > 0.97


def _one_camera(path: Path):  # type: ignore[no-untyped-def]  # cameras of a small size
    model = PosedModel(path)
    model.pose(0)
    return model.cameras(1, 64, 48)
