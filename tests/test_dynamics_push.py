"""Agents that push objects on a table: drives, what lies still, what is held up, unknown actions."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from gworld.agents.tree import Body, Joint, Skeleton
from gworld.data.toys import tabletop_world
from gworld.dynamics.actuation import KINDS, Actuation, Drive, Joints, _approach, chain_poses, joint_values
from gworld.dynamics.contact import Bodies, Contacts
from gworld.dynamics.impulses import Matter, Response, gives_along, solve_contacts, spread_impulses
from gworld.dynamics.linkage import Linkage, body_changes, joint_changes
from gworld.dynamics.materials import Nature, friction_of
from gworld.dynamics.network import Dynamics, NetworkConfig, bodies_of
from gworld.dynamics.recordings import Recordings, cut_batch
from gworld.dynamics.rollout import predict_poses, roll_motion
from gworld.dynamics.saved import load_model
from gworld.dynamics.stages import fit_alone
from gworld.dynamics.state import still_motion
from gworld.dynamics.support import Grounded, _sides, lifted
from gworld.dynamics.tokens import Agent, compile_scene
from gworld.geometry import transform_from_pose
from gworld.scene.world import ActionSpec

pytest.importorskip("mujoco")

STEPS = 20


@pytest.fixture(scope="module")
def pushed(tmp_path_factory) -> tuple[Recordings, Dynamics]:
    from gworld.bench.follow_data import act, open_stage, stage_recordings

    folder: Path = tmp_path_factory.mktemp("push")
    stage = open_stage("push", 2, 3, folder)
    data = stage_recordings(stage, act(stage, "expert", [5, 6, 7], 3.0))
    model = Dynamics(NetworkConfig(support=True, residual=False, substeps=4))
    with torch.no_grad():
        model.actuation.gain.fill_(0.968)
        model.actuation.lag.fill_(math.log(0.011))
        model.actuation.thrust.fill_(math.log(25.0))
        model.support.brake.fill_(math.log(3.9))
        model.materials.bounce.fill_(0.0)
    return data, model


def test_links_follow_their_actions_and_pushed_objects_move(pushed: tuple[Recordings, Dynamics]) -> None:
    data, model = pushed
    batch = cut_batch(data, torch.tensor([[0, 4], [1, 4], [2, 4]]), STEPS)
    with torch.no_grad():
        got = predict_poses(model, batch.scene, batch.start, batch.actions, STEPS, data.drives)[..., :3, 3]
    error = (got - batch.poses[..., :3]).norm(dim=-1)
    assert error[:, -1, [2, 4]].median() < 5e-3
    start = batch.start.world_from_link[..., :3, 3]
    copy = (batch.poses[:, -1, 5:, :3] - start[:, 5:]).norm(dim=-1)
    assert error[:, -1, 5:].mean() < copy.mean() or copy.max() < 0.01


def test_nothing_drifts_without_action(pushed: tuple[Recordings, Dynamics]) -> None:
    data, model = pushed
    batch = cut_batch(data, torch.tensor([[0, 2]]), 1)
    null = {name: torch.zeros(1, 100, 2) for name in batch.actions}
    with torch.no_grad():
        first = next(roll_motion(model, batch.scene, batch.start, null, 1, data.drives)).world_from_link
        *_, last = roll_motion(model, batch.scene, batch.start, null, 100, data.drives)
    assert (last.world_from_link - first).abs().max() < 1e-4
    assert torch.isfinite(last.world_from_link).all()


def test_what_is_pressed_against_a_wall_stays_in_front_of_it(pushed: tuple[Recordings, Dynamics]) -> None:
    """A pusher presses a box into the rim: many points touch, and hold each other."""
    data, _ = pushed
    batch = cut_batch(data, torch.tensor([[0, 2]]), 1)
    poses, wall = batch.start.world_from_link.clone(), 0.6
    poses[0, 5:, :3, 3] = torch.tensor([[0.4, 0.0, 0.02], [0.0, wall - 0.0475, 0.02], [-0.4, 0.0, 0.02]])
    poses[0, 5:, :3, :3] = torch.eye(3)
    memory = {name: torch.zeros_like(value) for name, value in batch.start.memory.items()}
    memory["left"][0, :2] = torch.tensor([0.0, 0.471])
    start = replace(batch.start, world_from_link=poses, twists=torch.zeros_like(batch.start.twists), memory=memory)
    told = {"left": torch.tensor([0.0, 0.4]).expand(1, 20, 2), "right": torch.zeros(1, 20, 2)}
    shipped = load_model(Path(__file__).parents[1] / "assets" / "dynamics" / "push")
    with torch.no_grad():
        *_, last = roll_motion(shipped, batch.scene, start, told, 20, data.drives)
    box = last.world_from_link[0, 6, :3, 3]
    assert abs(float(box[1]) - poses[0, 6, 1, 3]) < 5e-3
    assert 0.465 < float(last.world_from_link[0, 2, 1, 3]) < 0.48


def test_of_two_grips_the_learned_mix_says_which_counts() -> None:
    nature = Nature(torch.zeros(1, 2), torch.zeros(1, 2), torch.tensor([[0.1, 0.3]]), torch.zeros(()))
    one, other = torch.tensor([0]), torch.tensor([1])
    for mix, friction in ((0.0, 0.4), (1.0, 0.6), (-1.0, 0.2)):
        told = replace(nature, mix=torch.tensor(mix))
        assert float(friction_of(told, one, other)) == pytest.approx(friction)
        assert float(friction_of(told, other, one)) == pytest.approx(friction)


@pytest.mark.parametrize("floor", [(9e-5, -1e-4, 1.0, 3e-3), (3e-3, -1e-3, 0.999995, 1.4e-3)])
def test_a_table_found_a_little_askew_and_high_throws_nothing(
    pushed: tuple[Recordings, Dynamics], floor: tuple[float, ...]
) -> None:
    """As fits to pictures find it: things begin within it, and can give way along its normal by rounding alone."""
    data, model = pushed
    batch = cut_batch(data, torch.tensor([[0, 2]]), 1)
    null, ends = {name: torch.zeros(1, 10, 2) for name in batch.actions}, []
    start = replace(batch.start, twists=torch.zeros_like(batch.start.twists))
    start.twists[:, 5:, 0] = 0.4
    for plane in (floor, (0.0, 0.0, 1.0, 0.0)):
        scene = replace(batch.scene, planes=torch.tensor(plane).expand(1, 1, 4))
        with torch.no_grad():
            *_, last = roll_motion(model, scene, start, null, 10, data.drives)
        ends.append(last.world_from_link[0, 5:, :3, 3])
    assert (ends[0] - ends[1]).abs().max() < 1e-3
    assert (ends[1] - start.world_from_link[0, 5:, :3, 3]).norm(dim=-1).min() > 0.01


def test_no_impulse_is_asked_of_what_gives_way_by_rounding_alone() -> None:
    up, zero = torch.tensor([0.0, 0.0, 1.0]).expand(2, 3), torch.zeros(2, 3)
    turn = torch.eye(3).expand(2, 3, 3)
    speed = torch.tensor([[0.0, 0.0, 0.0], [0.1, 0.0, -0.3]])
    bodies = Bodies(zero, turn, speed, zero, zero)
    matter = Matter(
        torch.tensor([0.0, 2.0]), torch.zeros(2, 3, 3), torch.tensor([False, True]), up, torch.tensor([0.0, 1.0])
    )
    one, none = torch.tensor([1]), torch.tensor([0])
    for slant in (0.0, 3e-4, 3e-3):
        normal = torch.nn.functional.normalize(torch.tensor([[slant, 0.0, 1.0]]), dim=-1)
        contacts = Contacts(one, none, normal, zero[:1], zero[:1], *torch.zeros(3, 1))
        response = Response(torch.zeros(1), torch.full((1,), 0.5))
        impulse, _ = solve_contacts(bodies, matter, contacts, response, 12)
        change = spread_impulses(bodies, matter, contacts, impulse)
        assert impulse.abs().max() < 1.0 and change.speed.abs().max() < 0.3


def test_an_action_enters_at_its_step_and_through_its_own_agent(pushed: tuple[Recordings, Dynamics]) -> None:
    data, model = pushed
    batch = cut_batch(data, torch.tensor([[0, 4]]), 8)
    other = {name: value.clone() for name, value in batch.actions.items()}
    other["left"][:, 5:] = torch.nan  # unknown from step 5 on
    with torch.no_grad():
        one = predict_poses(model, batch.scene, batch.start, batch.actions, 8, data.drives)
        two = predict_poses(model, batch.scene, batch.start, other, 8, data.drives)
    assert torch.equal(one[:, :5], two[:, :5])
    assert torch.isfinite(two).all()
    assert torch.allclose(one[:, 5:, 4], two[:, 5:, 4], atol=1e-6)  # the right agent does as before


def test_the_shipped_model_found_the_drives_and_friction_where_they_act_alone(
    pushed: tuple[Recordings, Dynamics],
) -> None:
    data, _ = pushed
    assert fit_alone(Dynamics(NetworkConfig(support=True, residual=False)), data, 8).drives > 50
    model = load_model(Path(__file__).parents[1] / "assets" / "dynamics" / "push")
    kind = KINDS.index("velocity")
    # The simulator's drives: 60 N per m/s against 2 N per m/s of damping, and 0.69 kg; its friction: 0.4 of gravity.
    gain, lag = (getattr(model.actuation, name)[kind, :2].detach() for name in ("gain", "lag"))
    assert gain.numpy() == pytest.approx(60 / 62, abs=0.01)
    assert bool((lag.exp() > 0.005).all()) and bool((lag.exp() < 0.02).all())
    speed = torch.tensor(0.2)
    brake = float((model.support.length * model.support.brake.exp() + model.free.drag * speed).detach())
    assert brake == pytest.approx(0.4 * 9.81, rel=0.25)
    batch = cut_batch(data, torch.tensor([[e, 5] for e in range(3)]), 12)
    with torch.no_grad():
        for name, drive in data.drives.items():
            agent = next(a for a in data.scene.agents if a.name == name)
            memory = batch.start.memory[name]
            for step in range(12):
                values, memory = model.actuation.respond(
                    batch.scene, agent, drive, memory, batch.actions[name][:, step]
                )
            truth = data.joints[name][:3, 17]
            assert float((values - truth).abs().median()) < 2e-3


def test_what_slides_stops_where_friction_says() -> None:
    """v^2 / 2b, whatever the substeps: places are exact, and rest is reached in the middle of a step."""
    scene = compile_scene([tabletop_world(0.04)], 0.05)
    rest = transform_from_pose(torch.stack([torch.tensor(link.pose) for link in tabletop_world(0.04).links]))[None]
    motion = still_motion(rest)
    motion.twists[:, scene.free, 0] = 0.31
    up = torch.tensor([0.0, 0.0, 1.0]).expand(rest.shape[1], 3)
    support = Dynamics(NetworkConfig()).support
    for seconds in (0.05, 0.0125):
        with torch.no_grad():
            support.brake.fill_(math.log(2.3))
            first = last = bodies_of(scene, motion, motion.twists)
            for _ in range(round(0.4 / seconds)):
                last = support(scene, _ground(scene.free, up), last, seconds)
                last = replace(last, place=last.place + last.speed * seconds)
        way = (last.place - first.place)[scene.free]
        assert way[:, 0].numpy() == pytest.approx(0.31**2 / 4.6, abs=1e-5)
        assert float(last.speed.abs().max()) == 0.0 and float(way[:, 1:].abs().max()) < 1e-6


def test_a_drive_lags_and_saturates_as_its_equation_says() -> None:
    """Against small Euler steps of dv/dt = clamp((u - v) / lag, +-thrust)."""
    lag, most, dt = 0.03, 9.0, 0.1
    rate, aim = torch.tensor([0.0, 0.5, -0.2, 0.1]), torch.tensor([1.0, -0.9, -0.1, 0.1])
    way, end, _ = _approach(rate, aim, torch.full((4,), lag), torch.full((4,), most), dt)
    place, speed, parts = torch.zeros(4).double(), rate.double(), 20_000
    for _ in range(parts):
        change = ((aim - speed) / lag).clamp(-most, most) * dt / parts
        place += (speed + 0.5 * change) * dt / parts
        speed = speed + change
    assert torch.allclose(way.double(), place, atol=1e-5) and torch.allclose(end.double(), speed, atol=1e-4)


def test_pushers_that_run_into_each_other_hold_each_other_up(pushed: tuple[Recordings, Dynamics]) -> None:
    """Drives of one strength, told opposite velocities, stand still where they meet; unequal ones move at the mean.

    For the first tenths of a second: head-on they stand as on a tip, and slide off each other after a while.
    """
    data, model = pushed
    batch = cut_batch(data, torch.tensor([[0, 2]]), 1)
    memory = {}
    for name, x in (("left", -0.1), ("right", 0.1)):
        values = batch.start.memory[name].clone()
        values[:, :6] = torch.tensor([x, 0.3, 0.0, 0.0, 0.0, 0.0])
        memory[name] = values
    start = replace(batch.start, memory=memory)
    drives = {name: (drive, memory[name]) for name, drive in data.drives.items()}
    poses = start.world_from_link.clone()
    for drive, values in drives.values():
        poses[:, list(drive.links)] = chain_poses(drive, joint_values(values))
    poses[:, 5:, 2, 3] += 1.0  # nothing else is near
    start = replace(start, world_from_link=poses)
    for told, pace in (((0.3, -0.3), 0.0), ((0.3, -0.1), 0.1)):
        actions = {
            name: torch.tensor([told[index], 0.0]).expand(1, 16, 2) for index, name in enumerate(("left", "right"))
        }
        with torch.no_grad():
            way = predict_poses(model, batch.scene, start, actions, 16, data.drives)[0, :, [2, 4], :2, 3]
        gap = (way[:, 1] - way[:, 0])[9:].norm(dim=-1)
        assert gap.numpy() == pytest.approx(0.064, abs=0.012)  # their surfaces are read from Gaussians
        speed = (way[-1, :, 0] - way[9, :, 0]) / (6 * batch.scene.dt)
        assert speed.numpy() == pytest.approx(0.968 * pace, abs=0.03)


def test_a_servo_follows_as_its_equation_says() -> None:
    """Against small Euler steps of q'' = w^2 (a - q) - 2 d w q', an aim that moves no faster than its pace."""
    actuation, skeleton = Actuation(torch.Generator().manual_seed(0)), slider()
    drive = Drive(skeleton, torch.eye(4), (1,), (0,), (0,), (0,), (KINDS.index("position"),), (1.0,), (0.0,))
    agent = Agent("one", (1,), ActionSpec(("x/position",), ("m",), (-1.0,), (1.0,)))
    swing, damp, pace = 18.0, 0.7, 0.4
    with torch.no_grad():
        for name, value in (("swing", swing), ("damp", damp), ("pace", pace / 2.0), ("lead", 10.0)):
            getattr(actuation, name).fill_(math.log(value))
    joints = Joints(torch.tensor([[0.1]]), torch.tensor([[0.3]]), torch.tensor([[0.1]]))
    told, seconds = torch.tensor([[0.5]]), 0.01
    place, speed, aim, parts = 0.1, 0.3, 0.1, 2000
    with torch.no_grad():
        servo = actuation.servo(seconds)
        for _ in range(40):
            joints, _ = actuation.advance(agent, drive, joints, told, seconds, servo)
            for _ in range(parts):
                aim = min(aim + pace * seconds / parts, 0.5)
                push = swing**2 * (aim - place) - 2 * damp * swing * speed
                place, speed = place + speed * seconds / parts, speed + push * seconds / parts
    assert float(joints.values) == pytest.approx(place, abs=1e-4)
    assert float(joints.rates) == pytest.approx(speed, abs=1e-3)
    memory = actuation.pack(drive, joints)
    assert torch.allclose(actuation.unpack(drive, memory).aims, joints.aims, atol=1e-6)


def test_a_push_on_a_link_moves_its_chain_and_joint_work_is_kept() -> None:
    """Power at the joints equals power at the links, whatever the reach."""
    generator = torch.Generator().manual_seed(3)
    reach = torch.randn(6, 6, 4, generator=generator)  # two worlds of three bodies, four values
    linkage = Linkage(reach, torch.ones(2, 4), torch.ones(2, 4), torch.arange(6))
    impulse, twist = torch.randn(6, 3, generator=generator), torch.randn(6, 3, generator=generator)
    rates = torch.randn(2, 4, generator=generator)
    speed, spin = body_changes(linkage, rates)
    at_links = (speed * impulse + spin * twist).view(2, -1).sum(1)
    at_joints = (joint_changes(linkage, impulse, twist) * rates).sum(1)
    assert torch.allclose(at_links, at_joints, atol=1e-4)


def test_what_is_drawn_up_by_more_than_its_weight_no_longer_lies() -> None:
    up = torch.tensor([0.0, 0.0, 1.0]).expand(3, 3)
    grounded = _ground(torch.tensor([False, True, True]), up)
    rows, zero = torch.tensor([1, 1, 2]), torch.zeros(3, 3)
    none = torch.zeros(3, dtype=torch.int64)
    contacts = Contacts(rows, none, torch.eye(3)[[0, 0, 0]], zero, zero, *torch.zeros(3, 3))
    matter = Matter(torch.tensor([0.0, 2.0, 2.0]), torch.zeros(3, 3, 3), grounded.lies, up, torch.ones(3))
    fall = torch.tensor([0.0, 0.0, -0.5]).expand(3, 3)
    draws = torch.tensor([[0.7, 0.0, 0.2], [-0.7, 0.0, 0.2], [0.7, 0.0, 0.2]])  # pinched from both sides, and from one
    after = lifted(grounded, contacts, draws, fall, matter, torch.tensor(0.1))
    assert after.lies.tolist() == [False, False, True]
    slanted = torch.tensor([[0.6, 0.0, 0.8]]).expand(3, 3)
    assert gives_along(matter, rows, slanted).numpy() == pytest.approx(2.0 * 0.36)
    assert gives_along(replace(matter, lies=after.lies), rows, slanted).numpy() == pytest.approx([2.0, 2.0, 0.72])


def slider() -> Skeleton:
    bodies = (Body("base", -1, np.eye(4)), Body("cart", 0, np.eye(4)))
    joint = Joint("x", "prismatic", 1, np.array([1.0, 0, 0]), np.zeros(3), (0.0,), -1.0, 1.0)
    return Skeleton("slider", bodies, (joint,))


def _ground(lies: torch.Tensor, up: torch.Tensor) -> Grounded:
    """Cubes a decimetre wide on a plane."""
    side = _sides(up)
    return Grounded(lies, up, torch.full((len(up),), 0.05), side, torch.full(side.shape[:2], 0.05))
