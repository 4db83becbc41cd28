"""Edits of worlds in the viewer: pictures tell whether a scaled, turned or re-owned world is still the same."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from gworld.data.shapes import plain, sphere
from gworld.errors import InputError
from gworld.formats.world import load_world, save_world
from gworld.geometry import transform_from, transform_from_pose
from gworld.render.paths import read_camera_path
from gworld.render.select import render
from gworld.scene.cameras import Cameras, intrinsics, look_at
from gworld.scene.gaussians import Gaussians, join_gaussians
from gworld.scene.links import Link
from gworld.scene.world import Entity, World
from gworld.simulate.engine import Engine
from gworld.viewer.app import Subject, Viewer, ViewOptions
from gworld.viewer.camera_path import CameraPath, write_camera_path
from gworld.viewer.driver import Driver
from gworld.viewer.edit import (
    assigned,
    in_box,
    keep_rows,
    normal_of,
    pick,
    places_of,
    scaled,
    turned_up,
    without_floaters,
)
from tests.acting import acting_world


def ball(x: float, link: int, radius: float = 0.3) -> Gaussians:
    part = sphere(radius, 0.06, plain(0.8, 0.3, 0.2))
    shiny = torch.zeros(len(part), 9, 3)
    shiny[:, :1] = part.sh[:, :1]
    shiny[:, 1:] = torch.randn(8, 3, generator=torch.Generator().manual_seed(link)) * 0.15  # colour by direction
    means = part.means + torch.tensor([x, 0.0, 0.0])
    return replace(part, means=means, sh=shiny, links=torch.full_like(part.links, link))


@pytest.fixture
def world() -> World:
    """A static ball at x = -1 and one on a link that stands turned at x = 1."""
    links = (Link("world"), Link("ball", (1.0, 0.2, 0.0, 0.8, 0.0, 0.6, 0.0), 0))
    entities = (Entity("scene", "static", (0,)), Entity("ball", "object", (1,)))
    gaussians = join_gaussians([ball(-1.0, 0), ball(0.0, 1)])
    return World(gaussians, links, entities, cameras=eye((0.0, -4.0, 1.0)))


def eye(place: tuple[float, float, float]) -> Cameras:
    pose = look_at(torch.tensor([place]), torch.zeros(1, 3))
    return Cameras(intrinsics(96, 64, 0.8)[None], pose, 96, 64)


def seen(world: World, cameras: Cameras | None = None) -> torch.Tensor:
    """The picture of a world at rest, from its own camera."""
    cameras = cameras or world.cameras
    assert cameras is not None
    rgb = render(world.gaussians, world.rest_poses(), cameras, outputs=("rgb",), backend="reference").rgb
    assert rgb is not None
    return rgb[0, 0]


def test_a_larger_world_looks_the_same_from_its_own_cameras(world: World) -> None:
    large = scaled(world, 2.5)
    assert large.metric and not world.metric
    np.testing.assert_allclose(places_of(large), 2.5 * places_of(world), atol=1e-5)
    assert float((seen(large) - seen(world)).abs().max()) < 2e-3
    with pytest.raises(InputError, match="times as large"):
        scaled(world, float("nan"))


def test_a_turned_world_looks_the_same_from_its_own_cameras(world: World) -> None:
    for up in ([0.0, 0.6, 0.8], [1.0, -2.0, 0.5], [0.0, 0.0, -1.0], [0.0, 0.0, 3.0]):
        turned = turned_up(world, np.array(up))
        assert turned.cameras is not None and world.cameras is not None
        turn = turned.cameras.world_from_camera[0, :3, :3] @ world.cameras.world_from_camera[0, :3, :3].T
        aim = turn @ torch.tensor(up) / float(np.linalg.norm(up))
        torch.testing.assert_close(aim, torch.tensor([0.0, 0.0, 1.0]), atol=1e-5, rtol=0)
        assert float((seen(turned) - seen(world)).abs().max()) < 2e-3
    with pytest.raises(InputError, match="line"):
        turned_up(world, np.zeros(3))


def test_what_is_given_to_a_link_stays_and_moves_with_it(world: World) -> None:
    rows = in_box(world, (-1.1, -2, -2), (-0.9, 2, 2))
    assert 0 < rows.sum() < len(rows) / 2
    for name in ("ball", "new"):
        given = assigned(world, rows, name)
        number = [link.name for link in given.links].index(name)
        assert (given.gaussians.links.numpy()[rows] == number).all() and len(given.links) == 2 + (name == "new")
        assert float((seen(given) - seen(world)).abs().max()) < 2e-3
        assert given.entities[-1].kind == "object"
    poses = given.rest_poses()
    poses[2, :3, 3] += torch.tensor([0.0, 0.0, 0.5])
    moved = poses[2] @ torch.cat([given.gaussians.means[rows].T, torch.ones(1, int(rows.sum()))])
    np.testing.assert_allclose(moved[:3].T.numpy(), places_of(world)[rows] + [0, 0, 0.5], atol=1e-5)
    with pytest.raises(InputError, match="link"):
        assigned(world, np.zeros(len(rows), bool), "ball")


def test_a_ray_meets_the_near_side(world: World) -> None:
    found = pick(world, np.array([-1.0, -4.0, 0.0]), np.array([0.0, 2.0, 0.0]))
    assert found is not None and abs(found[0] + 1) < 1e-4 and -0.42 < found[1] < -0.25
    other = transform_from_pose(torch.tensor(world.links[1].pose))[:3, 3].numpy()  # the ball on the turned link
    found = pick(world, other + np.array([0.0, 0.0, 3.0]), np.array([0.0, 0.0, -1.0]))
    assert found is not None and 0.2 < found[2] - other[2] < 0.42
    assert pick(world, np.array([0.0, -4.0, 3.0]), np.array([0.0, 1.0, 0.0])) is None
    assert pick(world, np.array([-1.0, -4.0, 0.0]), np.array([0.0, -1.0, 0.0])) is None


def test_planes_tell_which_way_is_up() -> None:
    points = np.array([[0, 0, 1.0], [1, 0, 1], [0, 1, 1], [1, 1, 1]])
    assert normal_of(points, np.array([0, 0, 5.0])).tolist() == pytest.approx([0, 0, 1])
    assert normal_of(points, np.array([0, 0, -5.0])).tolist() == pytest.approx([0, 0, -1])
    assert normal_of(np.array([[0.0, 0, 0], [1, 0, 0], [2, 0, 0]]), np.zeros(3)).tolist() == [0, 0, 0]


def test_floaters_and_boxes_are_cut(world: World) -> None:
    speck = replace(ball(0.0, 0, 0.05), means=ball(0.0, 0, 0.05).means * 0 + torch.tensor([0.0, 0.0, 9.0]))
    speck = replace(speck, log_scales=speck.log_scales - 3)
    rows = torch.zeros(len(speck), dtype=torch.bool)
    rows[0] = True
    one = Gaussians(**{name: getattr(speck, name)[rows] for name in
                       ("means", "quats_wxyz", "log_scales", "opacity_logits", "sh", "links")})  # fmt: skip
    dirty = replace(world, gaussians=join_gaussians([world.gaussians, one]))
    assert len(without_floaters(dirty).gaussians) == len(world.gaussians)
    assert len(keep_rows(dirty, in_box(dirty, (-3, -3, -3), (3, 3, 3))).gaussians) == len(world.gaussians)
    with pytest.raises(InputError, match="empty"):
        in_box(world, (0, 0, 0), (1, 0, 1))
    with pytest.raises(InputError, match="left"):
        keep_rows(world, np.zeros(len(world.gaussians), bool))


def test_a_path_is_read_back_as_it_was_flown(tmp_path: Path) -> None:
    path = CameraPath(seconds=1.0)
    with pytest.raises(InputError, match="two views"):
        path.cameras()
    for place in ((0.0, -4.0, 1.0), (3.0, -3.0, 2.0), (4.0, 0.0, 1.0)):
        path.add(eye(place))
    flown = path.cameras()
    write_camera_path(flown, 30.0, tmp_path / "path.json")
    found, fps = read_camera_path(tmp_path / "path.json")
    assert len(found) == 30 and fps == 30.0 and (found.width, found.height) == (1280, 720)
    torch.testing.assert_close(found.world_from_camera, flown.world_from_camera, atol=1e-5, rtol=0)
    torch.testing.assert_close(found.K, flown.K, rtol=1e-4, atol=1e-3)
    assert float((flown.world_from_camera[0] - eye((0.0, -4.0, 1.0)).world_from_camera[0]).abs().max()) < 1e-5


@pytest.fixture
def viewer(world: World, tmp_path: Path) -> Iterator[Viewer]:
    save_world(world, tmp_path / "kept-as-it-was")
    made = Viewer(Subject(load_world(tmp_path / "kept-as-it-was")), ViewOptions(port=0, keep=tmp_path / "kept"))
    yield made
    made.close()


def test_edits_are_shown_undone_and_saved(viewer: Viewer, world: World, tmp_path: Path) -> None:
    edit, whole = viewer.edit, len(world.gaussians)
    edit.low.value, edit.high.value, edit.shown.value = (-1.1, -2.0, -2.0), (-0.9, 2.0, 2.0), True
    edit.draw_box()
    inside = int(edit.rows(world).sum())
    edit.apply("deleted the box", lambda w: keep_rows(w, ~edit.rows(w)))
    viewer.run(0.05)
    assert (
        viewer.stage.shown == len(viewer.world.gaussians) == whole - inside
        and f"{inside:,} Gaussians" in viewer.message
    )
    edit.take_back()
    assert len(viewer.world.gaussians) == whole and edit.undo.disabled
    edit.picked([-1.0, -4.0, 0.0], [0.0, 1.0, 0.0])
    edit.picked([1.0, -4.0, 0.2], [0.0, 1.0, 0.0])
    assert len(edit.points) == 2
    apart = float(np.linalg.norm(edit.points[1] - edit.points[0]))
    edit.length.value = 2 * apart
    edit.apply("set the scale", edit.rescale)
    assert viewer.world.links[1].pose[0] == pytest.approx(2.0, abs=1e-4) and viewer.world.metric
    assert viewer.stage.poses[1, 0] == pytest.approx(2.0, abs=1e-4)
    edit.keep()
    saved = load_world(tmp_path / "kept" / "world-001")
    assert saved.links[1].pose == pytest.approx(viewer.world.links[1].pose) and saved.metric
    assert not load_world(tmp_path / "kept-as-it-was").metric


def test_an_edit_that_cannot_be_done_leaves_a_sentence(viewer: Viewer) -> None:
    before = viewer.world
    viewer.edit._edit("set the scale", viewer.edit.rescale)
    viewer.edit._edit("cut", lambda world: keep_rows(world, np.zeros(len(world.gaussians), bool)))
    viewer.run(0.05)
    assert viewer.world is before and "move the box" in viewer.message


def test_a_world_that_was_edited_is_not_driven(tmp_path: Path) -> None:
    world = acting_world(tmp_path)
    viewer = Viewer(Subject(world, "t", {}, Driver(Engine(world))), ViewOptions(port=0, keep=tmp_path / "kept"))
    try:
        viewer.edit.apply("cut", lambda w: keep_rows(w, np.arange(len(w.gaussians)) % 2 == 0))
        assert viewer.drives is not None and not viewer.live
        viewer.drives.reset()
        assert "save it and open it again" in viewer.message and not viewer.live
        viewer.edit._edit("set the scale", lambda w: scaled(w, 2.0))
        viewer.run(0.05)
        assert "robots" in viewer.message and len(viewer.world.gaussians) == (len(world.gaussians) + 1) // 2
    finally:
        viewer.close()


def test_what_a_camera_sees_upwards_can_be_up(viewer: Viewer) -> None:
    pose = transform_from(torch.eye(3), torch.zeros(3))
    viewer.edit.apply("set up", lambda w: viewer.edit.raise_up(w, np.zeros(3), -pose[:3, 1].numpy()))
    assert viewer.world.links[1].pose[2] == pytest.approx(-0.2, abs=1e-5)  # y went down
