"""Generated episodes: the same whoever makes them, in the shares asked for, disturbed demonstrations, diversity."""

from __future__ import annotations

import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from gworld.errors import InputError, UsageError
from gworld.formats.world import load_world, save_world
from gworld.scene.episode import Episode
from gworld.simulate.cast import CHOICES, draw_kind, parse_mix
from gworld.simulate.demos import SHIFT, cut_material, material_state
from gworld.simulate.diversity import Tally, cells_of, empty_spots, make_gauge, measure_episodes
from gworld.simulate.generate import Job, Maker, Recipe, hardest_step, recipe_digest
from gworld.simulate.options import Limits
from gworld.simulate.plausible import Clearance
from gworld.simulate.variation import Look, Physics, Variation
from tests.test_simulate_plausible import table_world

VARIED = Variation(looks=(Look("objects", scale=(0.9, 1.1), hue=(-90, 90)),))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("worlds") / "world"
    save_world(table_world(), place)
    return place


def recipe(folder: Path, **more: object) -> Recipe:
    return Recipe(folder, **{"seconds": 0.5, "policy": "random", **more})  # type: ignore[arg-type]  # fields by name


def same(one: Episode, two: Episode) -> None:
    assert one.origin == two.origin and one.link_names == two.link_names and one.behaviours == two.behaviours
    assert one.link_poses is not None and two.link_poses is not None and torch.equal(one.link_poses, two.link_poses)
    assert all(torch.equal(one.actions[name], two.actions[name]) for name in one.actions)


def test_an_episode_is_decided_by_its_number_alone(folder: Path, tmp_path: Path) -> None:
    first = Maker(recipe(folder, variation=VARIED), tmp_path / "a")
    second = Maker(recipe(folder, variation=VARIED), tmp_path / "b")
    made = {number: first.make(Job(number)).episode for number in (3, 1)}
    again = {number: second.make(Job(number)).episode for number in (1, 3)}
    for number in made:
        same(made[number], again[number])
    assert made[1].link_poses is not None and made[3].link_poses is not None
    assert not torch.equal(made[1].link_poses, made[3].link_poses)
    episode = made[1]
    assert len(episode) == 10 and episode.names["actions/cart"] == ("x/velocity", "y/velocity")
    assert set(episode.origin["drawn"]["looks"]) == {"ball", "brick"} and episode.behaviour == "random"
    assert episode.origin["figures"]["penetration"] <= Limits().penetration and episode.origin["kind"] == "policy"
    assert bool(torch.isfinite(episode.actions["cart"]).all()) and episode.joints["cart"].shape == (10, 2)


def test_experts_plan_toward_their_goals(folder: Path, tmp_path: Path) -> None:
    episode = Maker(recipe(folder, policy="expert"), tmp_path).make(Job(0)).episode
    assert episode.behaviours == {"cart": "expert"} and episode.success is False
    assert episode.task.startswith("cart: bring b")
    seeking = Maker(recipe(folder, policy="adversarial", seconds=1.5), tmp_path).make(Job(2)).episode
    assert seeking.link_poses is not None
    apart = (seeking.link_poses[:, 1, :2] - seeking.link_poses[:, 2:, :2].mean(1)).norm(dim=-1)
    nearest = (seeking.link_poses[:, 1:2, :2] - seeking.link_poses[:, 2:, :2]).norm(dim=-1).amin(1)
    assert float(nearest[-1]) < float(nearest[0]) - 0.05 or float(nearest[0]) < 0.2, (apart, nearest)


def test_what_cannot_be_made_is_said(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"episode 0 was rejected 2 times \(speed 2x\)"):
        Maker(recipe(folder, limits=Limits(speed=1e-6), tries=2), tmp_path).make(Job(0))
    with pytest.raises(InputError, match="changes physics, but no dynamics"):
        Maker(recipe(folder, variation=Variation(physics=Physics(mass=(0.5, 2)))), tmp_path)
    with pytest.raises(UsageError, match="2 to 100000 steps"):
        recipe(folder, seconds=0.01)


def test_digests_change_with_what_decides_an_episode(folder: Path, tmp_path: Path) -> None:
    old = recipe_digest(recipe(folder))
    assert old == recipe_digest(recipe(folder))
    other = tmp_path / "world"
    shutil.copytree(folder, other)
    assert recipe_digest(recipe(other)) == old, "where the world lies does not matter"
    changed = [recipe(folder, seed=1), recipe(folder, policy="null"), recipe(folder, variation=VARIED)]
    assert len({old, *map(recipe_digest, changed)}) == 4


def test_kinds_keep_their_shares() -> None:
    mix = parse_mix("random:3,expert:1", ["a", "b"])
    for agent in ("a", "b"):
        counts = Counter(draw_kind(mix, agent, number, 0) for number in range(400))
        assert counts["random"] == pytest.approx(300, abs=12) and set(counts) == {"random", "expert"}
    mixed = parse_mix("mixed", ["a", "b"])
    pairs = Counter(tuple(draw_kind(mixed, agent, number, 0) for agent in ("a", "b")) for number in range(1000))
    assert len(pairs) >= 20, "agents do not go in step"
    assert {draw_kind(parse_mix("a=null", ["a", "b"]), "a", number, 0) for number in range(9)} == {"null"}
    assert set(CHOICES) == {kind for kind, _ in pairs}
    for text, fact in (("dance", "no kind `dance`"), ("random:x", "gives no share"), ("c=null", "no agent `c`")):
        with pytest.raises(UsageError, match=fact):
            parse_mix(text, ["a", "b"])


def test_demonstrations_are_done_again_disturbed(folder: Path, tmp_path: Path) -> None:
    demo = Maker(recipe(folder), tmp_path).make(Job(5)).episode
    material = cut_material(demo, 4, "demonstration 0")
    world = load_world(folder)
    state = material_state(world, material, np.random.default_rng(0))
    assert demo.link_poses is not None
    torch.testing.assert_close(state.world_from_link[1, :3, 3], demo.link_poses[4, 1, :3], atol=1e-5, rtol=0)
    speed = (demo.link_poses[4, 1, :3] - demo.link_poses[3, 1, :3]) / 0.05
    torch.testing.assert_close(state.velocities[1, :3], speed, atol=1e-4, rtol=0)
    off = float((state.world_from_link[2, :2, 3] - demo.link_poses[4, 2, :2]).norm())
    assert 0 < off < 5 * SHIFT
    again = Maker(recipe(folder), tmp_path).make(Job(6, "demo", None, material)).episode
    assert again.origin["kind"] == "demo" and again.origin["from"] == "demonstration 0" and again.behaviour == "replay"
    near = (again.actions["cart"][:5] - demo.actions["cart"][4:9]).abs().max()
    assert 0 < float(near) < 0.6
    strange = replace(material, link_names=("other", "names", "all", "round"))
    with pytest.raises(InputError, match="none of the world's links"):
        material_state(world, strange, np.random.default_rng(0))


def test_where_runs_grow_apart_most_is_found() -> None:
    doubt = torch.cat([torch.zeros(10), torch.linspace(0, 1, 5), torch.ones(10)])
    assert 8 <= hardest_step(doubt, 5) <= 10


def moved(x: float, y: float, speed: float) -> Episode:
    """The box at a place, the cart told the same all the time."""
    steps = 10
    rest = torch.tensor([link.pose for link in table_world().links], dtype=torch.float32)
    poses = rest.expand(steps, 4, 7).clone()
    poses[:, 3, 0], poses[:, 3, 1] = x, y
    actions = {"cart": torch.full((steps, 2), speed)}
    times = torch.arange(steps, dtype=torch.float64) / 20
    return Episode(times, actions, link_poses=poses, link_names=("world", "cart", "ball", "brick"))


def test_diversity_counts_cells_and_different_episodes() -> None:
    world = table_world()
    gauge = make_gauge(world, Clearance(world))
    alike = measure_episodes(gauge, [moved(0.3, 0.3, 0.1)] * 4)
    assert alike.distinct() == pytest.approx(1.0, abs=1e-6)
    apart = measure_episodes(gauge, [moved(0.3 * a, 0.3 * b, 0.4 * a) for a in (-1, 1) for b in (-1, 1)])
    assert apart.distinct() > 1.5 * alike.distinct()
    assert alike.coverage()["objects"] == pytest.approx(2 / 144) and apart.coverage()["objects"] == pytest.approx(
        5 / 144
    )
    touching = cells_of(moved(-0.3 + 0.11, 0.0, 0.0), gauge)
    assert touching["contacts"].sum() == 10 and cells_of(moved(0.3, 0.3, 0.0), gauge)["contacts"].sum() == 0
    far = Tally()
    far.rows = [np.eye(3)[index] for index in range(3)]
    assert far.distinct() == pytest.approx(3.0)
    spots = empty_spots(apart, gauge)
    assert len(spots) == 144 - 5 and empty_spots(Tally(), gauge) == []
    with pytest.raises(InputError, match="no link poses"):
        cells_of(replace(moved(0.0, 0.3, 0.0), link_poses=None, link_names=()), gauge)
