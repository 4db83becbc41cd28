"""Environments: PettingZoo's and gymnasium's own checks, seeds, observations by name, worlds that begin anew."""

from __future__ import annotations

import sys
import warnings

import numpy as np
import pytest

import gworld as gw
from gworld.errors import MissingBackendError, UsageError
from gworld.scene.world import World
from tests.acting import acting_world

gymnasium = pytest.importorskip("gymnasium")
pettingzoo = pytest.importorskip("pettingzoo")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return acting_world(tmp_path_factory.mktemp("world"), 32, 24)


@pytest.mark.parametrize(
    ("task", "observations"), [("keep_apart", ("state",)), ("push_to_goal", ("state", "images", "depth"))]
)
def test_pettingzoo_approves(world: World, task: str, observations: tuple[str, ...]) -> None:
    from pettingzoo.test import parallel_api_test, parallel_seed_test

    def make() -> object:
        return gw.make_env(world, task=task, observations=observations, limit=6, size=(24, 16))

    parallel_api_test(make(), num_cycles=14)
    if observations == ("state",):
        parallel_seed_test(make, num_cycles=8)


@pytest.mark.parametrize("agent", [None, "cart"])
def test_gymnasium_approves(world: World, agent: str | None) -> None:
    from gymnasium.utils.env_checker import check_env

    env = gw.make_env(world, "gym", task="reach", agent=agent, limit=6, render_mode="rgb_array")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*alternative render modes.*")
        check_env(env)
    picture = env.render()
    assert picture.shape == (240, 320, 3) and picture.std() > 5


def test_ids_are_registered_and_vectors_are_batches(world: World) -> None:
    import gworld.simulate.env  # registers the ids

    assert world.folder is not None
    env = gymnasium.make("gworld/PushToGoal-v0", world=world.folder, limit=3)
    observed, _ = env.reset(seed=1)
    assert observed.shape == (13 * 8 + 3,)
    made = gymnasium.make_vec(
        "gworld/Reach-v0", num_envs=3, vectorization_mode="vector_entry_point", world=world.folder
    )
    observed, _ = made.reset(seed=1)
    assert observed.shape == (3, 13 * 8 + 3) and not np.array_equal(observed[0], observed[1])
    assert gworld.simulate.env.IDS.keys() <= set(gymnasium.registry)


def test_a_vector_of_worlds_is_the_worlds_one_by_one(world: World) -> None:
    vector = gw.make_env(world, "vector", worlds=3, task="reach", limit=4)
    observed, _ = vector.reset(seed=11)
    actions = np.random.default_rng(0).uniform(-1, 1, (8, 3, 3)).astype(np.float32)
    singles = []
    for index in range(3):
        single = gw.make_env(world, "gym", task="reach", limit=4)
        single.episodes.reset(11 + index)
        singles.append(single)
        np.testing.assert_allclose(observed[index], single.episodes.observe("cart")["state"][0], atol=1e-6)
    for step in range(4):
        observed, reward, done, cut, _ = vector.step(actions[step])
        for index, single in enumerate(singles):
            alone, score, ended, over, _ = single.step(actions[step, index])
            np.testing.assert_allclose(observed[index], alone, atol=1e-5)
            assert reward[index] == pytest.approx(score, abs=1e-5) and (done[index], cut[index]) == (ended, over)
    assert bool((done | cut).all())
    fresh, reward, done, cut, _ = vector.step(actions[4])
    assert not reward.any() and not done.any() and not cut.any()
    assert not np.allclose(fresh[0], observed[0]) and vector.observation_space.contains(fresh)


def test_actions_are_scaled_and_silent_agents_hold_still(world: World) -> None:
    env = gw.make_env(world, task="keep_apart", limit=50, jitter=0.0)
    env.reset(seed=0)
    before = env.episodes.engine.motion.world_from_link
    env.step({"cart": np.array([1.0, 0.0, 0.0], np.float32)})
    after = env.episodes.engine.motion.world_from_link
    assert float(after[0, 1, 0, 3] - before[0, 1, 0, 3]) == pytest.approx(0.5 / 30, abs=1e-6)
    assert float((after[0, 2:] - before[0, 2:]).abs().max()) < 1e-6
    plain = gw.make_env(world, task="keep_apart", scaled=False)
    assert plain.action_space("left").high.tolist() == [2.0, 2.0]


def test_what_cannot_be_made_is_said(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="no environment of the kind `car`"):
        gw.make_env(world, "car")
    with pytest.raises(UsageError, match="observations"):
        gw.make_env(world, observations=("smell",))
    with pytest.raises(UsageError, match="agent `left` has no part"):
        gw.make_env(world, "gym", task="reach", agent="left")
    monkeypatch.delitem(sys.modules, "gworld.simulate.env")
    monkeypatch.delattr("gworld.simulate.env")
    monkeypatch.setitem(sys.modules, "pettingzoo", None)
    with pytest.raises(MissingBackendError, match="gworld\\[sim\\]"):
        gw.make_env(world)
