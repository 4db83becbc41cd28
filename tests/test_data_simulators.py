"""Simulated scenes: state in and out, rest at rest, actions through their own agent alone, pictures against poses."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest
import torch

pytest.importorskip("mujoco", reason="MuJoCo is not installed; pip install 'gworld[sim]'")

from gworld.data.behaviours import NAMES, draw_behaviours, make_source, parse_policy
from gworld.data.simulated import restore_step, run_trace, simulate_episode, trace_episode
from gworld.data.simulators import Simulation, open_scene
from gworld.data.simulators_options import SceneOptions
from gworld.errors import InputError, MissingBackendError, UsageError
from gworld.geometry import invert_transform, transform_from_pose
from gworld.scene.episode import Behaviour

SCENES = ("push", "arms", "street")


@pytest.fixture(scope="module", params=SCENES)
def scene(request: pytest.FixtureRequest) -> Simulation:
    return open_scene(request.param, SceneOptions(width=160, height=120, ego=True))


def everyone(simulation: Simulation, word: str) -> dict[str, str]:
    return dict.fromkeys(simulation.agents, word)


def moved(trace_poses: np.ndarray, simulation: Simulation) -> np.ndarray:
    rows = [simulation.link_names.index(name) for name in simulation.objects]
    return np.linalg.norm(trace_poses[:, rows, :3] - trace_poses[:1, rows, :3], axis=2).max(axis=0)


def test_bodies_at_rest_stay_at_rest(scene: Simulation) -> None:
    trace, _ = simulate_episode(scene, everyone(scene, "null"), seed=3, seconds=6.0)
    size = 10.0 if scene.name == "street" else 1.0
    assert np.abs(trace.link_poses - trace.link_poses[:1]).max() < 1e-4 * size


def test_a_small_push_still_moves_an_object() -> None:
    simulation = open_scene("push")
    disc = simulation.link_names.index("disc0")
    body = simulation.data.joint("disc0")
    body.qvel[:3] = (0.3, 0, 0)
    before = simulation.link_poses()[disc, 0]
    for _ in range(10):
        simulation.step({})
    assert 0.005 < simulation.link_poses()[disc, 0] - before < 0.05  # v^2 / (2 mu g) is 11 mm


def test_the_same_seed_repeats_and_another_does_not(scene: Simulation) -> None:
    first, again, other = (simulate_episode(scene, everyone(scene, "mixed"), seed, 1.5)[0] for seed in (5, 5, 6))
    np.testing.assert_array_equal(first.qpos, again.qpos)
    assert np.abs(first.qpos - other.qpos).max() > 1e-3


def test_a_restored_state_goes_on_bit_for_bit(scene: Simulation) -> None:
    scene.reset(2)
    rng = np.random.default_rng(0)
    plan = [{n: rng.uniform(a.spec.low, a.spec.high) for n, a in scene.agents.items()} for _ in range(20)]
    for actions in plan[:10]:
        scene.step(actions)
    kept, ends = scene.state(), []
    for _ in range(2):
        scene.restore(kept)
        for actions in plan[10:]:
            scene.step(actions)
        ends.append(scene.link_poses())
    np.testing.assert_array_equal(*ends)
    scene.restore(kept._replace(qpos=kept.qpos + 1e-3))
    assert np.abs(scene.state().qpos - kept.qpos - 1e-3).max() < 1e-12


def test_an_action_enters_through_its_own_agent_alone(scene: Simulation) -> None:
    name = next(iter(scene.agents))
    poses = []
    for high in (False, True):
        scene.reset(4)
        actor = scene.agents[name]
        scene.step({name: np.array(actor.spec.high if high else actor.spec.low)})
        poses.append(scene.link_poses())
    changed = np.abs(poses[0] - poses[1]).max(axis=1) > 1e-9
    assert set(np.flatnonzero(changed)) <= set(scene.agents[name].links) and changed.any()


def test_every_behaviour_acts_within_limits_and_nothing_flies_away(scene: Simulation) -> None:
    for word in ("expert", "random", "extreme", "adversarial"):
        trace, behaviours = simulate_episode(scene, everyone(scene, word), seed=1, seconds=3.0)
        assert set(behaviours.values()) == {word}
        for name, actor in scene.agents.items():
            actions = trace.actions[name]
            assert (actions >= np.array(actor.spec.low) - 1e-9).all()
            assert (actions <= np.array(actor.spec.high) + 1e-9).all()
            if word == "extreme":
                assert np.isin(actions, [actor.spec.low, actor.spec.high]).all()
        limit = {"push": 1.0, "arms": 1.6, "street": 40.0}[scene.name]
        assert np.isfinite(trace.link_poses).all() and np.abs(trace.link_poses[..., :3]).max() < limit


@pytest.mark.parametrize(("name", "seconds", "share"), [("push", 10.0, 0.7), ("arms", 8.0, 0.7)])
def test_experts_bring_things_to_their_goals(name: str, seconds: float, share: float) -> None:
    simulation = open_scene(name)
    met = []
    for seed in range(2):
        simulate_episode(simulation, everyone(simulation, "expert"), seed, seconds)
        met += [simulation.reached(agent) for agent in simulation.goals]
    assert np.mean(met) >= share


def test_adversaries_make_contact() -> None:
    simulation = open_scene("push")
    pushed = []
    for seed in range(2):
        trace, _ = simulate_episode(simulation, everyone(simulation, "adversarial"), seed, 4.0)
        pushed.append(moved(trace.link_poses, simulation))
    assert (np.stack(pushed).max(axis=1) > 0.01).all()


def test_contacts_carry_the_weight_of_what_lies_there() -> None:
    simulation = open_scene("push")
    simulation.reset(0)
    for _ in range(5):
        simulation.step({})
    forces = simulation.contacts()
    for name in simulation.objects:
        index = simulation.link_names.index(name)
        weight = 9.81 * float(simulation.model.body_mass[index])
        assert abs(forces[0, index] - weight) < 0.02 * weight and forces[0, index] == forces[index, 0]


def test_a_recorded_episode_is_replayed_exactly(scene: Simulation) -> None:
    trace, behaviours = simulate_episode(scene, everyone(scene, "random"), seed=9, seconds=2.0)
    episode = trace_episode(scene, trace, behaviours)
    assert episode.behaviours == behaviours and episode.behaviour == "random"
    again, words = simulate_episode(scene, everyone(scene, "replay"), seed=77, seconds=2.0, replayed=episode)
    assert set(words.values()) == {"replay"}
    np.testing.assert_array_equal(again.link_poses, trace.link_poses)
    restore_step(scene, episode, 20)
    np.testing.assert_allclose(scene.link_poses(), trace.link_poses[20], atol=1e-12)
    other = open_scene("push" if scene.name != "push" else "arms")
    with pytest.raises(InputError, match="no state of"):
        restore_step(other, episode, 0)


def test_unknown_components_hold_still_and_wrong_ones_are_refused(scene: Simulation) -> None:
    scene.reset(0)
    before = scene.link_poses()
    name, actor = next(iter(scene.agents.items()))
    scene.step({name: np.full(len(actor.spec), np.nan)})
    assert np.abs(scene.link_poses() - before).max() < 1e-4
    with pytest.raises(InputError, match="are needed"):
        scene.step({name: np.zeros(len(actor.spec) + 1)})
    with pytest.raises(InputError, match="no agent"):
        scene.step({"nobody": np.zeros(1)})


@pytest.mark.parametrize("name", SCENES)
@pytest.mark.parametrize("count", [1, 6])
def test_any_number_of_agents_and_objects(name: str, count: int) -> None:
    simulation = open_scene(name, SceneOptions(agents=count, objects=8 - count, layout=count, vary=0.5))
    simulation.reset(1)
    assert len(simulation.agents) == count and len(simulation.objects) == 8 - count
    owned = [link for entity in simulation.entities for link in entity.links]
    assert sorted(owned) == list(range(len(simulation.link_names)))
    depth = [float(c.dist) for c in simulation.data.contact]
    assert min(depth, default=0.0) > (-0.02 if name == "street" else -0.003)  # nothing starts inside another


def test_policies_are_read_and_drawn() -> None:
    assert parse_policy("left=expert,right=random", ["left", "right"]) == {"left": "expert", "right": "random"}
    assert parse_policy("left=expert", ["left", "right"])["right"] == "null"
    for wrong in ("clever", "up=expert", "left=clever"):
        with pytest.raises(UsageError):
            parse_policy(wrong, ["left", "right"])
    drawn = [draw_behaviours({"left": "mixed", "right": "mixed"}, seed) for seed in range(60)]
    assert {word for each in drawn for word in each.values()} == set(NAMES) - {"replay"}
    assert sum(each["left"] != each["right"] for each in drawn) > 20
    assert set(NAMES) <= set(get_args(Behaviour))


def test_what_no_scene_can_be_is_refused() -> None:
    with pytest.raises(UsageError, match="no scene"):
        open_scene("kitchen")
    with pytest.raises(UsageError, match="1 to 6"):
        SceneOptions(agents=7)
    simulation = open_scene("push", SceneOptions(agents=1, objects=0))
    with pytest.raises(UsageError, match="alone"):
        make_source("adversarial", simulation, "left", 0)
    with pytest.raises(UsageError, match="replay"):
        make_source("replay", simulation, "left", 0)
    trace = run_trace(simulation, {"left": make_source("expert", simulation, "left", 0)}, 3)
    assert trace.success is None


def test_pictures_show_links_where_their_poses_say(scene: Simulation) -> None:
    try:
        scene.draw(0)
    except MissingBackendError as error:
        pytest.skip(str(error))
    scene.reset(1)
    assert scene.cameras is not None
    for index in range(len(scene.cameras)):
        picture = scene.draw(index)
        assert picture.rgb.std() > 20
        pose = scene.cameras.world_from_camera[index].double()
        link = scene.cameras.links[index]
        if link:
            pose = transform_from_pose(torch.tensor(scene.link_poses()[link])) @ pose
        rows, columns = np.nonzero(picture.links > 0)
        depth = torch.tensor(picture.depth[rows, columns]).double()
        rays = (
            torch.tensor(np.stack([columns + 0.5, rows + 0.5, np.ones(len(rows))], 1))
            @ torch.linalg.inv(scene.cameras.K[index].double()).T
        )
        points = (rays * depth[:, None]) @ pose[:3, :3].T + pose[:3, 3]
        worst = 0.0
        for name in scene.objects:  # every pixel of an object lies within its own cylinder
            number = scene.link_names.index(name)
            seen = torch.tensor(picture.links[rows, columns] == number)
            if int(seen.sum()) > 5:
                link_from_world = invert_transform(transform_from_pose(torch.tensor(scene.link_poses()[number])))
                local = points[seen] @ link_from_world[:3, :3].T + link_from_world[:3, 3]
                worst = max(worst, float(local[:, :2].norm(dim=1).max()) / scene.radius(name))
        assert worst < 1.04
