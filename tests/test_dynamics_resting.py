"""What stands, slides, tips, falls and is held: friction against gravity, who lies, what recordings tell of a fall."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from gworld.agents.tree import Body, Joint, Skeleton
from gworld.data.shapes import box, cylinder, plain
from gworld.dynamics.actuation import KINDS, Actuation, Drive
from gworld.dynamics.contact import Contacts, body_shapes, near_pairs
from gworld.dynamics.impulses import Matter, pressed
from gworld.dynamics.linkage import Linkage
from gworld.dynamics.network import Dynamics, NetworkConfig, bodies_of
from gworld.dynamics.recordings import Recordings, select_recordings
from gworld.dynamics.rollout import predict_poses
from gworld.dynamics.stages import _slides, fit_fall
from gworld.dynamics.state import still_motion
from gworld.dynamics.support import lifted
from gworld.dynamics.tokens import Agent, Scene, compile_scene
from gworld.geometry import quat_from_rotvec, transform_from_pose
from gworld.scene.gaussians import Gaussians, join_gaussians
from gworld.scene.world import ActionSpec, Entity, Link, World

GREY, WIDE = plain(0.5, 0.5, 0.5), 0.1


def alone(shape: Gaussians, slope: float = 0.0) -> Scene:
    """One object over a plane along which gravity pulls by sin(slope)."""
    world = World(
        replace(shape, links=torch.ones_like(shape.links)), (Link("world"), Link("thing")),
        (Entity("scene", "static", (0,)), Entity("thing", "object", (1,))), metric=True,
    )  # fmt: skip
    scene = compile_scene([world], 0.05)
    down = torch.tensor([[math.sin(slope), 0.0, -math.cos(slope)]])
    return replace(scene, planes=torch.tensor([[[0.0, 0.0, 1.0, 0.0]]]), down=down)


def cube_scene(slope: float = 0.0) -> Scene:
    return alone(box((WIDE,) * 3, 0.01, GREY), slope)


def heavy(support: bool, grip: float) -> Dynamics:
    model = Dynamics(NetworkConfig(support=support, residual=False, substeps=4, sweeps=32))
    with torch.no_grad():
        for parameter, value in (
            (model.free.fall, 9.81), (model.free.drag, 0.0), (model.free.spin_drag, 0.0), (model.materials.grip, grip),
            (model.materials.bounce, 0.0), (model.materials.skin, 0.0), (model.support.brake, math.log(3.9)),
        ):  # fmt: skip
            parameter.fill_(value)
        for parameter in model.materials.shape.parameters():
            parameter.zero_()
    return model


def pose(height: float, turn: tuple[float, float, float] = (0.0, 0.0, 0.0)) -> torch.Tensor:
    poses = torch.zeros(1, 2, 7)
    poses[..., 3] = 1.0
    poses[0, 1, 2] = height
    poses[0, 1, 3:] = quat_from_rotvec(torch.tensor(turn))
    return transform_from_pose(poses)


@pytest.mark.parametrize("grip", [0.7, 0.0])
def test_what_friction_holds_on_a_slope_does_not_creep(grip: float) -> None:
    """A contact withstands gravity all along a substep; without friction the slope is fallen down freely."""
    slope, steps = math.radians(20.0), 10
    scene, start = cube_scene(slope), still_motion(pose(WIDE / 2))
    with torch.no_grad():
        way = predict_poses(heavy(False, grip), scene, start, {}, steps)[0, -1, 1, :3, 3] - torch.tensor([0, 0, 0.05])
    slides = 0.5 * 9.81 * math.sin(slope) * (steps * scene.dt) ** 2
    assert float(way[0]) == pytest.approx(0.0 if grip else slides, abs=1e-3 if grip else 0.02 * slides)
    assert way[1:].abs().max() < 1e-3


def test_what_falls_lands_and_lies() -> None:
    with torch.no_grad():
        way = predict_poses(heavy(True, 0.7), cube_scene(), still_motion(pose(0.25)), {}, 30)[0, :, 1, 2, 3]
    falls = 0.25 - 0.5 * 9.81 * (0.05 * torch.arange(1, 4)) ** 2
    assert torch.allclose(way[:3], falls, atol=1e-4)
    assert way[-10:].numpy() == pytest.approx(WIDE / 2, abs=0.016)  # near enough counts as lying
    assert float(way[-10:].diff().abs().max()) < 1e-6


def test_only_what_stands_broadly_lies() -> None:
    """Not a cube on an edge, not a can on its side, not what turns over."""
    model, up = heavy(True, 0.7), pose(WIDE / 2)
    can = alone(cylinder(0.03, 0.1, 0.004, GREY))
    cases = ((cube_scene(), up, True), (cube_scene(), pose(0.06, (0.3, 0, 0)), False), (can, up, True))
    for scene, poses, lies in (*cases, (can, pose(0.03, (math.pi / 2, 0, 0)), False)):
        motion = still_motion(poses)
        shapes = body_shapes(scene, model.materials.skin.detach())
        found = model.support.find(scene, shapes, bodies_of(scene, motion, motion.twists))
        assert found.lies.tolist() == [False, lies]
        turns = replace(motion, twists=motion.twists + torch.tensor([0, 0, 0, 0, 2.0, 0]))
        assert not model.support.find(scene, shapes, bodies_of(scene, turns, turns.twists)).lies.any()


def test_what_is_pushed_high_up_tips_and_what_is_pushed_low_slides() -> None:
    """A cube with friction mu tips where it is pushed higher than half its width over mu."""
    model, scene, motion = heavy(True, 0.7), cube_scene(), still_motion(pose(WIDE / 2))
    bodies = bodies_of(scene, motion, motion.twists)
    found = model.support.find(scene, body_shapes(scene, model.materials.skin.detach()), bodies)
    one, none, seconds = torch.tensor([1]), torch.tensor([0]), 0.01
    matter = Matter(torch.tensor([0.0, 2.0]), torch.zeros(2, 3, 3))
    weight = torch.tensor([0.0, 0.0, -9.81 * seconds]).expand(2, 3)
    for mu, above, lies in ((0.8, 0.005, True), (0.8, 0.02, False), (0.4, 0.045, True), (0.8, -0.04, True)):
        arm = torch.tensor([[-WIDE / 2, 0.0, above]])
        contacts = Contacts(one, none, torch.tensor([[1.0, 0, 0]]), arm, arm, *torch.zeros(3, 1))
        pushed = torch.tensor([[3.0, 0.0, 0.0]])  # far more than it takes to slide
        after = lifted(found, contacts, pushed, weight, matter, torch.tensor(mu * 9.81 * seconds))
        assert after.lies.tolist() == [False, lies]


def test_a_blocked_servo_aims_where_it_was_told_and_a_free_one_where_its_motion_tells() -> None:
    actuation = Actuation(torch.Generator().manual_seed(0))
    joint = Joint("x", "prismatic", 1, np.array([1.0, 0, 0]), np.zeros(3), (0.0,), -1.0, 1.0)
    skeleton = Skeleton("slider", (Body("base", -1, np.eye(4)), Body("cart", 0, np.eye(4))), (joint,))
    drive = Drive(skeleton, torch.eye(4), (1,), (0,), (0,), (0,), (KINDS.index("position"),), (1.0,), (0.0,))
    agent = Agent("one", (1,), ActionSpec(("x/position",), ("m",), (-1.0,), (1.0,)))
    with torch.no_grad():
        for name, value in (("swing", 40.0), ("damp", 1.0), ("pace", 0.2), ("lead", 0.15)):
            getattr(actuation, name).fill_(math.log(value))
    still, moves = torch.full((1, 9, 1), 0.1), 0.02 * torch.arange(9.0)[None, :, None]
    told = torch.full((1, 8, 1), 0.5)
    cases = (
        (still, told, 0.1 + 8 * 0.05 * 0.2 * 2.0, 1e-6),  # at its pace, in parts of a range of two
        (still, told - 0.45, 0.05, 1e-6),
        (moves, told, 0.16 + 0.4 * 2.0 / 40.0, 1e-3),  # behind by twice the damping over the frequency
        (still, torch.full((1, 8, 1), torch.nan), 0.1, 1e-6),
    )
    for values, asked, aim, off in cases:
        with torch.no_grad():
            found = actuation.unpack(drive, actuation.recall(agent, drive, values, asked, 0.05))
        assert float(found.aims) == pytest.approx(aim, abs=off)
        assert float(found.values) == float(values[0, -1])


def test_a_fall_is_found_from_the_few_instants_that_agree() -> None:
    """Three frames of a drop in each of five recordings, and things that are lifted every which way."""
    scene, generator = cube_scene(), torch.Generator().manual_seed(1)
    poses = pose_table(9, 6)
    fast = 0.3 + 0.05 * torch.arange(6.0) * torch.linspace(-2, 2, 4)[:, None]
    poses[:4, :, 1, 2] = fast + 0.01 * torch.rand(4, 6, generator=generator)
    seconds = 0.05 * torch.arange(3.0)
    poses[4:, :3, 1, 2] = 0.6 - 0.5 * 7.0 * seconds**2
    poses[4:, 3:, 1, 2] = WIDE / 2
    data = Recordings(
        replace(scene, **{n: getattr(scene, n).expand(9, *getattr(scene, n).shape[1:]) for n in WORLD}), poses
    )
    model = heavy(True, 0.7)
    assert fit_fall(model, data, torch.full((9, 6, 2), torch.inf)) >= 5
    assert float(model.free.fall.detach()) == pytest.approx(7.0, abs=0.05)
    assert fit_fall(model, select_recordings(data, torch.arange(3)), torch.full((3, 6, 2), torch.inf)) == 0


def test_what_rolls_tells_nothing_of_friction_under_flat_bodies() -> None:
    poses = pose_table(2, 6)
    poses[..., 1, 0] = torch.tensor([0.0, 0.05, 0.09, 0.12, 0.14, 0.15])
    poses[1, :, 1, 3:] = quat_from_rotvec(torch.arange(6.0)[:, None] * torch.tensor([0.0, 0.3, 0.0]))
    scene = cube_scene()
    data = Recordings(
        replace(scene, **{n: getattr(scene, n).expand(2, *getattr(scene, n).shape[1:]) for n in WORLD}), poses
    )
    room = (0.1 * torch.arange(1.0, 7.0))[None, :, None].expand(2, 6, 2)
    rows, link = _slides(data, room)
    assert set(rows[:, 0].tolist()) == {0} and set(link.tolist()) == {1}


def test_what_is_squeezed_between_a_link_and_a_wall_does_not_bounce() -> None:
    """Bodies 0 (a wall), 1 (a link), 2 squeezed between them, 3 struck by the link alone, 4 on the wall alone."""
    reach = torch.zeros(5, 6, 1)
    reach[1, 0, 0] = 1.0
    linkage = Linkage(reach, torch.ones(1, 1), torch.ones(1, 1), torch.arange(5))
    matter = Matter(torch.tensor([0.0, 0, 1, 1, 1]), torch.zeros(5, 3, 3), linkage=linkage)
    a, b = torch.tensor([2, 2, 3, 4]), torch.tensor([0, 1, 1, 0])
    contacts = Contacts(a, b, *torch.zeros(3, 4, 3), *torch.zeros(3, 4))
    assert pressed(matter, contacts).tolist() == [True, True, False, False]
    assert not pressed(replace(matter, linkage=None), contacts).any()


def test_what_rests_beside_what_strikes_it_is_looked_at_with_all_it_may_be_driven_against() -> None:
    """A cube at rest a few centimetres before a wall, with a fast one behind it: wall and cube are a pair."""
    cube = box((WIDE,) * 3, 0.01, GREY)
    parts = [replace(cube, links=torch.full_like(cube.links, link)) for link in (1, 2)]
    world = World(
        join_gaussians(parts), (Link("world"), Link("one"), Link("two")),
        (Entity("scene", "static", (0,)), Entity("one", "object", (1,)), Entity("two", "object", (2,))), metric=True,
    )  # fmt: skip
    scene = replace(compile_scene([world], 0.05), planes=torch.tensor([[[-1.0, 0.0, 0.0, -0.2]]]))
    for speed, sees in ((2.0, True), (0.0, False)):
        poses = transform_from_pose(FRAME.expand(1, 3, 7)).clone()
        poses[0, :, 0, 3] = torch.tensor([0.0, -0.02, 0.1])
        motion = still_motion(poses)
        motion.twists[0, 1, 0] = speed
        shapes = body_shapes(scene, torch.zeros(()))
        near = near_pairs(scene, shapes, bodies_of(scene, motion, motion.twists), 0.05)
        assert bool(((near.a == 2) & (near.plane >= 0)).any()) == sees


FRAME = torch.tensor([0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0])
WORLD = ("solid", "planes", "down", "scale")


def pose_table(episodes: int, frames: int) -> torch.Tensor:
    poses = torch.zeros(episodes, frames, 2, 7)
    poses[..., 3] = 1.0
    return poses
