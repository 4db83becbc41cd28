"""Composed and varied worlds: bodies taken, doubled and removed, looks changed exactly, draws that repeat."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from gworld.agents.binding import load_robot
from gworld.dynamics.network import Dynamics, NetworkConfig
from gworld.errors import InputError, UsageError
from gworld.render.select import render
from gworld.scene.cameras import Cameras
from gworld.scene.harmonics import rgb_from_sh, sh_basis
from gworld.scene.world import World
from gworld.simulate.appearance import (
    colour_matrix,
    jitter_cameras,
    recolour,
    relight,
    surface_normals,
    swap_background,
)
from gworld.simulate.compose import find_entity, lowest, remove_entities, rescale_entity, take_entity
from gworld.simulate.stepper import Kinematics, agent_bodies
from gworld.simulate.variation import (
    Backdrop,
    CameraPlay,
    Double,
    Guest,
    Light,
    Look,
    Physics,
    Removal,
    Variation,
    load_variation,
)
from gworld.simulate.vary import circle, keeps_shapes, mass_belief, vary, vary_dynamics
from tests.acting import acting_world, at
from tests.scenes import random_gaussians


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return acting_world(tmp_path_factory.mktemp("world"))


def names(world: World) -> list[str]:
    return [entity.name for entity in world.entities]


def test_what_is_put_in_and_taken_out_leaves_the_world_as_it_was(world: World) -> None:
    more = take_entity(world, world, "ball", "second", at(0.1, -0.2))
    assert names(more)[-1] == "second" and more.links[-1].name == "second"
    assert more.links[-1].pose[:3] == pytest.approx((0.1, 0.05, 0.05), abs=1e-6)
    less = remove_entities(more, ["second"])
    assert less.links == world.links and less.entities == world.entities
    for field in ("means", "sh", "links"):
        assert torch.equal(getattr(less.gaussians, field), getattr(world.gaussians, field))
    with pytest.raises(InputError, match="has a `ball` already"):
        take_entity(world, world, "ball")
    with pytest.raises(InputError, match="no agent or object `scene`"):
        remove_entities(world, ["scene"])


def test_an_agent_that_goes_takes_its_camera_and_renumbers_the_rest(world: World) -> None:
    assert isinstance(world.cameras, Cameras)
    less = remove_entities(world, ["left"])
    assert names(less) == ["scene", "cart", "ball", "right"] and len(less.links) == len(world.links) - 3
    assert less.cameras is not None and less.cameras.names == ("front", "east", "west")
    right = find_entity(less, "right")
    assert [less.links[link].name for link in right.links] == ["right/foot", "right/upper", "right/fore"]
    kept = world.gaussians.links == find_entity(world, "right").links[2]
    assert int((less.gaussians.links == right.links[2]).sum()) == int(kept.sum())
    before = render(world.gaussians, world.rest_poses()[None], world.cameras[0], outputs=("link_id",)).link_id
    after = render(less.gaussians, less.rest_poses()[None], less.cameras[0], outputs=("link_id",)).link_id
    assert before is not None and after is not None
    assert int((before == find_entity(world, "right").links[1]).sum()) > 0
    assert int((after == right.links[1]).sum()) > 0


def test_bodies_grow_on_what_they_stand_on(world: World) -> None:
    big = rescale_entity(world, "ball", 2.0)
    ball = find_entity(big, "ball")
    assert lowest(big, ball) == pytest.approx(lowest(world, find_entity(world, "ball")), abs=1e-6)
    rows = big.gaussians.links == ball.links[0]
    assert float(big.gaussians.means[rows].norm(dim=1).max()) == pytest.approx(0.1, rel=0.02)
    with pytest.raises(InputError, match="robot model"):
        rescale_entity(world, "left", 2.0)


def test_robots_are_doubled_with_their_models(world: World, tmp_path: Path) -> None:
    two = Variation(duplicate=(Double("left", (2, 2), 0.5),), add=(Guest(Path(str(world.folder)), "ball", "extra"),))
    varied, drawn = vary(world, two, 4, tmp_path)
    assert [part["name"] for part in drawn["duplicate"]] == ["left-2", "left-3"]
    bodies = agent_bodies(varied)
    assert {"left", "left-2", "left-3", "right", "cart"} == set(bodies) and not bodies["left-2"].stand_in
    assert load_robot(varied, "left-3").name == "left-3"
    stepper = Kinematics(varied, bodies)
    assert "left-2" in stepper.bodies and "cannot be moved" not in stepper.note
    circles = [circle(varied, find_entity(varied, name)) for name in ("left", "left-2", "left-3", "ball", "extra")]
    for index, (center, radius) in enumerate(circles):
        for other, size in circles[:index]:
            assert float((center - other)[:2].norm()) > radius + size
    with pytest.raises(UsageError, match="give a folder"):
        vary(world, two, 4)
    assert not keeps_shapes(drawn)


def test_colours_change_exactly_from_every_side() -> None:
    rng = torch.Generator().manual_seed(0)
    sh = 0.3 * torch.randn(5, 9, 3, generator=rng)
    matrix = colour_matrix(40.0, 0.7, 1.2)
    old = replace(random_gaussians(0, 5), sh=sh)
    new = recolour(old, matrix)
    sides = torch.nn.functional.normalize(torch.randn(5, 3, generator=rng), dim=-1)
    basis = sh_basis(sides, 2)[:, :, None]
    was, got = (basis * sh).sum(1) + 0.5, (basis * new.sh).sum(1) + 0.5
    torch.testing.assert_close(got, was @ matrix.T, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(
        colour_matrix(120.0) @ torch.tensor([1.0, 0, 0]), torch.tensor([0.0, 1, 0]), atol=1e-6, rtol=0
    )
    torch.testing.assert_close(colour_matrix(saturation=0.0).sum(1), torch.ones(3))


def test_light_from_one_side_brightens_what_faces_it(world: World) -> None:
    twice = relight(world, exposure=1.0)
    old, new = (rgb_from_sh(w.gaussians.sh[:, 0]) for w in (world, twice))
    torch.testing.assert_close(new, 2 * old, atol=1e-5, rtol=1e-5)
    side = relight(world, strength=0.5, toward=(0.0, 0.0, 1.0))
    gain = (rgb_from_sh(side.gaussians.sh[:, 0]) / old).mean(1)
    normals = surface_normals(world)
    ball = world.gaussians.links == find_entity(world, "ball").links[0]
    torch.testing.assert_close(gain[ball], 1 + 0.5 * normals[ball, 2], atol=1e-4, rtol=1e-4)
    assert float(normals[ball, 2].max()) > 0.9 and float(normals[ball, 2].min()) < -0.9
    warm = relight(world, warmth=0.2)
    shift = rgb_from_sh(warm.gaussians.sh[:, 0]) - old
    assert bool((shift[:, 0] > 0).all() and (shift[:, 2] < 0).all())


def test_the_background_of_another_world_stands_behind(world: World) -> None:
    far = replace(world, gaussians=replace(world.gaussians, means=world.gaussians.means + 5.0))
    both = swap_background(world, far, keep=0.3)
    still = both.gaussians.links == 0
    moved = both.gaussians.means[still].amin(1) > 3
    assert int(moved.sum()) == int((world.gaussians.links == 0).sum())
    assert int((still & (both.gaussians.means.amax(1) < 3)).sum()) > 100, "the table under the bodies stays"
    bare = swap_background(world, far)
    assert int((bare.gaussians.links == 0).sum()) == int((world.gaussians.links == 0).sum())


def test_cameras_turn_in_their_own_axes(world: World) -> None:
    assert world.cameras is not None
    count = len(world.cameras)
    turn = torch.tensor([[0.0, 0.1, 0.0]]).expand(count, 3)
    moved = jitter_cameras(
        world.cameras, torch.tensor([[0.0, 0, 0.2]]).expand(count, 3), turn, torch.full((count,), 1.1)
    )
    forward = world.cameras.world_from_camera[:, :3, 2]
    torch.testing.assert_close(
        moved.world_from_camera[:, :3, 3] - world.cameras.world_from_camera[:, :3, 3], 0.2 * forward, atol=1e-6, rtol=0
    )
    cosine = (moved.world_from_camera[:, :3, 2] * forward).sum(-1)
    torch.testing.assert_close(cosine, torch.full((count,), 0.1).cos(), atol=1e-6, rtol=0)
    torch.testing.assert_close(moved.K[:, 0, 0], 1.1 * world.cameras.K[:, 0, 0])


WHOLE = Variation(
    remove=(Removal("right", 0.5),),
    duplicate=(Double("ball", (0, 2)),),
    looks=(Look("objects", scale=(0.8, 1.25), hue=(-90, 90)), Look("cart", brightness=(0.5, 1.5))),
    light=Light(exposure=(-1, 1), strength=(0, 0.3)),
    background=Backdrop(color=((0, 1), (0, 1), (0, 1))),
    cameras=CameraPlay(0.02, 2.0, 0.05),
    physics=Physics(mass=(0.5, 2), friction=(0.5, 2), gravity=(0.9, 1.1)),
)


def test_the_same_seed_draws_the_same_world_and_sections_draw_by_themselves(world: World) -> None:
    one, told = vary(world, WHOLE, 11)
    two, again = vary(world, WHOLE, 11)
    assert told == again and torch.equal(one.gaussians.means, two.gaussians.means)
    assert (
        torch.equal(one.gaussians.sh, two.gaussians.sh) and one.links == two.links and one.background == two.background
    )
    _, other = vary(world, WHOLE, 12)
    assert other != told
    _, darker = vary(world, replace(WHOLE, light=Light(), cameras=CameraPlay()), 11)
    assert {name: told[name] for name in darker} == darker and set(told) - set(darker) == {"light", "cameras"}
    plain, nothing = vary(world, Variation(), 3)
    assert nothing == {} and plain.gaussians is world.gaussians
    counts = {len(vary(world, replace(WHOLE, looks=()), seed)[0].links) for seed in range(12)}
    assert len(counts) > 2


def test_physics_are_factors_on_what_was_learned(world: World) -> None:
    drawn = {"physics": {"mass": {"ball": 2.0}, "friction": 0.5, "restitution": 1.5, "drag": 2.0, "gravity": 0.25}}
    model = Dynamics(NetworkConfig(support=True))
    own, brake = model.free.fall.item(), model.support.brake.item()
    varied = vary_dynamics(model, drawn)
    assert varied.free.fall.item() == pytest.approx(0.25 * own) and model.free.fall.item() == own
    assert varied.support.brake.item() - brake == pytest.approx(math.log(0.125), abs=1e-6)
    belief = mass_belief(world, drawn, 1)
    assert belief[find_entity(world, "ball").links[0], 0].exp() == pytest.approx(2.0) and int((belief != 0).sum()) == 1
    assert vary_dynamics(model, {}) is model
    heavier, told = vary(world, Variation(physics=Physics(gravity=(2.0, 2.0))), 0)
    assert heavier.gravity[2] == pytest.approx(-19.62) and told == {"physics": {"gravity": 2.0}}


FILE = """
remove: [{entity: right, chance: 0.5}]
looks:
  - {entity: objects, scale: [0.8, 1.25], hue: [-180, 180]}
light: {exposure: [-0.5, 0.5]}
background: {worlds: [other/world], keep: 0.2}
"""


def test_files_are_read_strictly(tmp_path: Path) -> None:
    path = tmp_path / "vary.yaml"
    path.write_text(FILE)
    found = load_variation(path)
    assert found.looks[0].scale == (0.8, 1.25) and found.background.worlds == (tmp_path.resolve() / "other/world",)
    for text, fact in (
        ("lite: {exposure: [0, 1]}", "Did you mean `light`"),
        ("light: {exposure: [1, 0]}", "a range 1.0 to 0.0"),
        ("light: {exposure: 1}", "a list is needed"),
        ("looks: [{entity: ball, scale: [0, 1]}]", "a factor of 0.0"),
        ("duplicate: [{entity: ball, count: [0, 1000]}]", "0 to 64"),
        ("remove: [{entity: ball, chance: 2}]", "chances"),
        ("physics: {mass: [-1, 1]}", "a factor of -1.0"),
        ("cameras: {zoom: 1.5}", "less than 1"),
    ):
        path.write_text(text)
        with pytest.raises(UsageError) as error:
            load_variation(path)
        assert fact in str(error.value)
