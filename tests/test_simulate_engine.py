"""The engine: same bits from saved states, no NaN leaves a step, agents follow what they are told."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import gworld as gw
from gworld.agents.binding import load_robot
from gworld.checkpoint import Checkpoint, save_checkpoint
from gworld.data.toys import tabletop_world
from gworld.dynamics.network import Dynamics, NetworkConfig, save_values
from gworld.dynamics.state import Motion
from gworld.errors import InputError, UsageError
from gworld.scene.links import Link
from gworld.scene.world import ActionSpec, Entity, World, rest_state
from gworld.simulate.engine import Engine, EngineOptions
from gworld.simulate.learned import Learned, open_stepper
from gworld.simulate.stepper import Kinematics, agent_body
from tests.acting import acting_world


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return acting_world(tmp_path_factory.mktemp("world"))


def wave(step: int) -> dict[str, Tensor]:
    """Smooth actions of all three agents."""
    return {
        "left": torch.tensor([math.sin(0.1 * step), math.cos(0.07 * step)]),
        "right": torch.tensor([math.cos(0.2 * step), math.sin(0.15 * step)]),
        "cart": torch.tensor([0.3 * math.sin(0.3 * step), 0.2 * math.cos(0.1 * step), 1.0]),
    }


def same(one: Motion, two: Motion) -> bool:
    return (
        torch.equal(one.world_from_link, two.world_from_link)
        and torch.equal(one.twists, two.twists)
        and all(torch.equal(one.memory[name], two.memory[name]) for name in one.memory)
        and one.time == two.time
    )


@pytest.mark.parametrize("learned", [False, True])
def test_ten_short_runs_are_one_long_one_bit_for_bit(world: World, learned: bool) -> None:
    steps = 3 if learned else 12
    stepper = Learned(world, Dynamics(NetworkConfig()), 1 / 30) if learned else None

    def engine() -> Engine:
        return Engine(world, stepper, EngineOptions(worlds=2, jitter=0.2))

    whole = engine()
    whole.reset(5)
    for step in range(10 * steps):
        whole.step(wave(step))
    parts = engine()
    parts.reset(5)
    for part in range(10):
        if part:
            states = [parts.save(row) for row in range(2)]
            parts = engine() if part == 4 else parts
            parts.reset(0, states)
        for step in range(part * steps, (part + 1) * steps):
            parts.step(wave(step))
    assert same(whole.motion, parts.motion)
    assert torch.equal(whole.save(1).rng, parts.save(1).rng)  # type: ignore[arg-type]  # saved states have one
    assert not torch.equal(whole.motion.world_from_link[0], whole.motion.world_from_link[1])


def test_the_same_seed_starts_the_same_and_another_does_not(world: World) -> None:
    engine = Engine(world, options=EngineOptions(worlds=3, jitter=0.3))
    one = engine.reset(1).world_from_link
    assert torch.equal(one, engine.reset(1).world_from_link)
    two = engine.reset(2).world_from_link
    assert torch.equal(one[1:], two[:2]) and not torch.equal(one, two)
    still = [0, 1, 2]  # static scene, slider (told by velocity), ball
    assert torch.equal(one[:, still], world.rest_poses()[still].expand(3, -1, 4, 4))


def test_restarting_some_worlds_leaves_the_others(world: World) -> None:
    engine = Engine(world, options=EngineOptions(worlds=3, jitter=0.1))
    engine.reset(0)
    for step in range(5):
        engine.step(wave(step))
    before = engine.motion
    after = engine.restart([1])
    assert torch.equal(before.world_from_link[[0, 2]], after.world_from_link[[0, 2]])
    assert not torch.equal(before.world_from_link[1], after.world_from_link[1])
    assert float(after.twists[1].abs().max()) == 0


class Wild:
    """Goes wrong in world 1 at the third step."""

    note = "wild"

    def __init__(self, world: World) -> None:
        self.inner = Kinematics(world)
        self.bodies, self.count = self.inner.bodies, 0

    def start(self, motion: Motion) -> Motion:
        return self.inner.start(motion)

    def hold(self, motion: Motion, agent: str) -> Tensor:
        return self.inner.hold(motion, agent)

    def step(self, motion: Motion, actions: dict[str, Tensor], seconds: float) -> Motion:
        self.count += 1
        after = self.inner.step(motion, actions, seconds)
        if self.count != 3:
            return after
        poses = after.world_from_link.clone()
        poses[1, 4, 0, 3] = math.nan
        return replace(after, world_from_link=poses)


def test_no_nan_leaves_a_step(world: World) -> None:
    engine = Engine(world, Wild(world), EngineOptions(worlds=2))
    engine.reset()
    states = [engine.step(wave(step)) for step in range(5)]
    assert all(bool(torch.isfinite(state.world_from_link).all()) for state in states)
    assert torch.equal(states[2].world_from_link[1], states[1].world_from_link[1])
    assert not torch.equal(states[2].world_from_link[0], states[1].world_from_link[0])
    assert not torch.equal(states[3].world_from_link[1], states[2].world_from_link[1])
    assert engine.stuck.tolist() == [0, 1]


def test_unknown_actions_leave_agents_where_they_are(world: World) -> None:
    engine = Engine(world)
    engine.step({"left": [0.1, 0.0], "right": [1.0, 1.0]})
    before = engine.motion.world_from_link
    after = engine.step({"left": [math.nan, math.nan]}).world_from_link
    torch.testing.assert_close(after, before, atol=1e-6, rtol=0)
    assert float(engine.step({"left": [math.inf, -math.inf]}).world_from_link.abs().max()) < 10
    assert engine.clipped["left"].tolist() == [1, 1]


def test_a_slider_without_a_model_goes_where_its_components_say(world: World) -> None:
    engine = Engine(world, options=EngineOptions(step=0.1))
    for _ in range(10):
        engine.step({"cart": [0.2, -0.1, math.pi / 2]})
    pose = engine.motion.world_from_link[0, 1]
    torch.testing.assert_close(pose[:3, 3], torch.tensor([0.2, -0.4, 0.03]), atol=1e-5, rtol=0)
    torch.testing.assert_close(pose[:2, 0], torch.tensor([0.0, 1.0]), atol=1e-5, rtol=0)
    torch.testing.assert_close(
        engine.motion.twists[0, 1], torch.tensor([0.2, -0.1, 0, 0, 0, math.pi / 2]), atol=1e-4, rtol=0
    )


def test_a_vehicle_without_a_model_drives_and_stays_rigid(world: World) -> None:
    spec = ActionSpec(("vehicle/steer", "vehicle/accelerate"), ("rad", "m/s^2"), (-0.6, -4.0), (0.6, 4.0))
    car = Entity("car", "agent", (1,), spec)
    small = replace(world, links=world.links[:2], entities=(world.entities[0], car), gaussians=part_of(world, 2))
    engine = Engine(small, options=EngineOptions(step=0.05))
    engine.step({"car": [0.0, 2.0]})
    assert engine.motion.world_from_link[0, 1, 0, 3] == pytest.approx(0.5 * 2 * 0.05**2)
    for _ in range(200):
        engine.step({"car": [0.5, 0.0]})
    turn = engine.motion.world_from_link[0, 1, :3, :3]
    torch.testing.assert_close(turn @ turn.T, torch.eye(3), atol=2e-6, rtol=0)


def test_a_vehicle_rolls_on_at_the_speed_it_is_seen_with(world: World) -> None:
    spec = ActionSpec(("vehicle/steer", "vehicle/accelerate"), ("rad", "m/s^2"), (-0.6, -4.0), (0.6, 4.0))
    entities = tuple(replace(e, action=spec) if e.name == "cart" else e for e in world.entities)
    engine = Engine(replace(world, entities=entities), options=EngineOptions(step=0.1))
    twists = torch.zeros(len(world.links), 6)
    twists[1, 0] = 2.0
    engine.reset(0, replace(rest_state(world), velocities=twists))
    moved = engine.step({"cart": [0.0, 0.0]}).world_from_link[0, 1, 0, 3] - world.rest_poses()[1, 0, 3]
    assert float(moved) == pytest.approx(0.2, abs=1e-5)


def part_of(world: World, links: int) -> gw.Gaussians:
    from gworld.scene.gaussians import select_gaussians

    return select_gaussians(world.gaussians, world.gaussians.links < links)


def test_agents_that_cannot_be_moved_are_named() -> None:
    world = tabletop_world(0.08)
    engine = Engine(world)
    assert "left, right cannot be moved" in engine.stepper.note
    rest = engine.motion.world_from_link
    assert torch.equal(engine.step({"left": [0.3, 0.3, 0.3]}).world_from_link, rest)


def test_what_does_not_fit_is_one_sentence(world: World) -> None:
    engine = Engine(world)
    with pytest.raises(InputError, match="no agent `middle`; it has cart, left, right"):
        engine.step({"middle": [0.0]})
    with pytest.raises(InputError, match=r"of shape \[3\]; \[1, 2\] is needed"):
        engine.step({"left": [0.0, 0.0, 0.0]})
    with pytest.raises(InputError, match="2 states"):
        engine.restore([engine.save(), engine.save()])
    with pytest.raises(UsageError, match="0 worlds"):
        EngineOptions(worlds=0)
    with pytest.raises(UsageError, match="a step of 0"):
        EngineOptions(step=0)


def test_dynamics_are_found_beside_the_world_or_by_name(world: World, tmp_path: Path) -> None:
    assert isinstance(open_stepper(world, 1 / 30), Kinematics)
    model = Dynamics(NetworkConfig(seed=3))
    tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
    save_checkpoint(tmp_path / "run", Checkpoint(7, tensors, save_values(model)))
    stepper = open_stepper(world, 1 / 30, tmp_path / "run")
    assert isinstance(stepper, Learned) and set(stepper.drives) == {"cart", "left", "right"}
    engine = Engine(world, stepper)
    with pytest.raises(InputError, match="were set up for steps of"):
        Engine(world, stepper, EngineOptions(step=0.1)).step()
    for step in range(3):
        engine.step(wave(step))
    direct = Engine(world, Learned(world, model, 1 / 30))
    for step in range(3):
        direct.step(wave(step))
    assert same(engine.motion, direct.motion)
    with pytest.raises(InputError, match="no dynamics checkpoint"):
        open_stepper(world, 1 / 30, tmp_path)


def test_a_joint_may_carry_its_agents_name_in_the_model(world: World) -> None:
    skeleton = load_robot(world, "left")
    joints = tuple(replace(joint, name=f"left/{joint.name}") for joint in skeleton.joints)
    body = agent_body(world, world.agents[1], replace(skeleton, joints=joints))
    assert body is not None and body.spec.names == ("left/yaw/position", "left/elbow/position")
    engine = Engine(world, Kinematics(world, {"left": body}))
    plain = Engine(world)
    one, two = engine.step({"left": [0.05, 0.05]}), plain.step({"left": [0.05, 0.05]})
    assert torch.equal(one.world_from_link[:, 3:6], two.world_from_link[:, 3:6])


def test_what_learned_dynamics_do_not_drive_follows_its_kinematics(world: World) -> None:
    spec = ActionSpec(("vehicle/steer", "vehicle/accelerate"), ("rad", "m/s^2"), (-0.6, -4.0), (0.6, 4.0))
    entities = tuple(replace(e, action=spec) if e.name == "cart" else e for e in world.entities)
    car = replace(world, entities=entities)
    engine = Engine(car, Learned(car, Dynamics(NetworkConfig()), 1 / 30))
    assert engine.stepper.note.endswith("cart follow their kinematics")
    engine.step({"cart": [0.0, 2.0], "left": [0.5, 0.5]})
    alone = Engine(car)
    alone.step({"cart": [0.0, 2.0]})
    assert torch.equal(engine.motion.world_from_link[0, 1], alone.motion.world_from_link[0, 1])
    assert float(engine.motion.twists[0, 1, 0]) > 0


def test_simulate_in_one_call(world: World) -> None:
    actions = {"left": np.array([[0.1, 0.0], [0.2, 0.0], [0.3, 0.1]])}
    rollout = gw.simulate(world, actions, seed=4)
    assert len(rollout) == 4 and rollout.seeds == (4,)
    assert rollout.actions["left"][:3].numpy() == pytest.approx(actions["left"])
    assert bool(torch.isnan(rollout.actions["left"][3]).all()) and bool(torch.isnan(rollout.actions["right"]).all())
    again = gw.simulate(world.folder, actions)  # type: ignore[arg-type]  # it was read from disk
    assert torch.equal(rollout.link_poses, again.link_poses)
    with pytest.raises(UsageError, match="either actions or a policy"):
        gw.simulate(world)


def test_a_link_without_gaussians_is_no_trouble() -> None:
    spec = ActionSpec(("x/position",), ("m",), (-1.0,), (1.0,))
    world = tabletop_world(0.08)
    links = (*world.links, Link("ghost", (0.2, 0.1, 0.0, 1, 0, 0, 0), 0))
    world = replace(world, links=links, entities=(*world.entities, Entity("ghost", "agent", (len(links) - 1,), spec)))
    engine = Engine(world)
    assert float(engine.hold()["ghost"]) == pytest.approx(0.2)
    assert float(engine.step({"ghost": [0.5]}).world_from_link[0, -1, 0, 3]) == pytest.approx(0.5)
