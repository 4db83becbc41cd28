"""Up, scale and similarities: turned rooms come back upright, the right way round, and in metres."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from gworld.capture.planes import find_planes
from gworld.capture.rays import project_into
from gworld.capture.scale import (
    KnownLength,
    Spot,
    parse_length,
    scale_from_depth,
    scale_from_length,
    similarity_from_places,
)
from gworld.capture.similarity import (
    Similarity,
    apply_similarity,
    compose_similarity,
    fit_similarity,
    identity_similarity,
    invert_similarity,
    move_points,
)
from gworld.capture.upright import Up, estimate_up, level_similarity, parse_up
from gworld.data.rooms import Room, RoomOptions, film_room
from gworld.errors import InputError, UsageError
from gworld.geometry import matrix_from_quat, normalize_quat, quat_from_rotvec
from gworld.scene.views import View, Views


@pytest.fixture(scope="module")
def room() -> Room:
    return film_room(RoomOptions(frames=16, width=96, height=72, seed=3))


def views_of(room: Room, folder: Path | None = None, every: int = 97) -> Views:
    """The room's true cameras with points of its surfaces, and its depth in millimetres as files."""
    points, views = [], []
    K = torch.from_numpy(room.K)
    down, across = np.mgrid[: room.depth.shape[1], : room.depth.shape[2]] + 0.5
    rays = np.stack(
        [(across - room.K[0, 2]) / room.K[0, 0], (down - room.K[1, 2]) / room.K[1, 1], np.ones_like(down)], -1
    )
    for index, (depth, pose) in enumerate(zip(room.depth, room.world_from_camera, strict=True)):
        local = (rays * depth[..., None]).reshape(-1, 3)[index::every]
        points.append(local @ pose[:3, :3].T + pose[:3, 3])
        file = None
        if folder is not None:
            file = folder / f"{index:03d}.png"
            Image.fromarray(np.rint(depth * 1000).astype(np.uint16)).save(file)
        height, width = depth.shape
        views.append(View(f"{index:03d}.png", width, height, K, torch.from_numpy(pose), depth=file))
    cloud = torch.from_numpy(np.concatenate(points))
    return Views(
        tuple(views), cloud + 0.003 * torch.randn(cloud.shape, generator=torch.Generator().manual_seed(0)).double()
    )


def a_turn(seed: int, scale: float = 1.0) -> Similarity:
    draw = torch.randn(7, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return Similarity(matrix_from_quat(normalize_quat(draw[:4])), draw[4:], scale)


def angle_to(direction: Tensor, truth: Tensor) -> float:
    return math.degrees(math.acos(max(-1.0, min(1.0, float(direction @ truth)))))


@given(seed=st.integers(0, 999), scale=st.floats(0.01, 50))
@settings(max_examples=20, deadline=None)
def test_similarities_form_a_group(seed: int, scale: float) -> None:
    first, second = a_turn(seed, scale), a_turn(seed + 1, 1.7)
    points = torch.randn(5, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    both = move_points(compose_similarity(second, first), points)
    assert torch.allclose(both, move_points(second, move_points(first, points)))
    assert torch.allclose(move_points(invert_similarity(first), move_points(first, points)), points, atol=1e-9)
    found, misses = fit_similarity(points, both)
    assert found.scale == pytest.approx(1.7 * scale) and misses.max() < 1e-8 * (1 + scale)
    with pytest.raises(InputError, match="on one line"):
        fit_similarity(points[:1] * torch.arange(4.0)[:, None], points[:1] * torch.arange(4.0)[:, None])
    with pytest.raises(InputError, match="scale above 0"):
        Similarity(torch.eye(3), torch.zeros(3), 0.0)


def test_pictures_do_not_move_with_the_frame(room: Room) -> None:
    views = replace(views_of(room), metric=True, depth_scale=0.001)
    moved = apply_similarity(views, a_turn(5, 2.5))
    for before, after in zip(views.views, moved.views, strict=True):
        pixels, depths = project_into(before, views.points)
        again, farther = project_into(after, moved.points)
        front = depths > 0.05
        assert torch.allclose(again[front], pixels[front], atol=1e-6) and torch.allclose(farther, 2.5 * depths)
        assert torch.linalg.det(after.world_from_camera[:3, :3]) == pytest.approx(1.0)
    assert not moved.metric and moved.depth_scale == pytest.approx(0.0025)
    assert apply_similarity(views, a_turn(5)).metric and not apply_similarity(views, a_turn(5), metric=False).metric
    assert apply_similarity(views, a_turn(5, 2.5), metric=True, depth_scale=0.001).depth_scale == 0.001
    assert len(apply_similarity(Views(()), identity_similarity())) == 0


@pytest.mark.parametrize("seed", range(6))
def test_a_turned_room_comes_back_upright(room: Room, seed: int) -> None:
    turn = a_turn(seed, 0.4)
    up = estimate_up(apply_similarity(views_of(room), turn))
    assert angle_to(up.direction, turn.rotation[:, 2]) < 0.5
    assert up.confidence > 0.9 and "floors" in up.how
    level = level_similarity(up)
    back = apply_similarity(apply_similarity(views_of(room), turn), level)
    heights = torch.stack([view.world_from_camera[2, 3] for view in back.views]) / 0.4
    truth = torch.from_numpy(room.world_from_camera[:, 2, 3])
    assert torch.allclose(heights, truth, atol=0.05), "the floor lies at 0"
    assert torch.linalg.det(level.rotation) == pytest.approx(1.0)
    cameras_only = estimate_up(replace(apply_similarity(views_of(room), turn), points=torch.zeros(0, 3)))
    assert angle_to(cameras_only.direction, turn.rotation[:, 2]) < 3 and cameras_only.ground is None


def test_a_camera_held_anyhow_trusts_the_floor_less_surely(room: Room) -> None:
    views = views_of(room)
    random = torch.Generator().manual_seed(1)
    rolls = matrix_from_quat(quat_from_rotvec(torch.randn(len(views), 3, generator=random, dtype=torch.float64) * 2))
    rolled = []
    for view, roll in zip(views.views, rolls, strict=True):
        pose = view.world_from_camera.clone()
        pose[:3, :3] = pose[:3, :3] @ roll
        rolled.append(replace(view, world_from_camera=pose))
    floor = views.points[:, 2] < 0.02
    up = estimate_up(replace(views, views=tuple(rolled), points=views.points[floor]))
    assert angle_to(up.direction, torch.tensor([0, 0, 1.0]).double()) < 1 and up.confidence < 0.9
    with pytest.raises(InputError, match="no views"):
        estimate_up(Views(()))


def test_the_users_word() -> None:
    turn = a_turn(2).rotation
    assert parse_up("-y").direction.tolist() == [0, -1, 0] and parse_up(" Z").direction.tolist() == [0, 0, 1]
    assert parse_up("0,0.5,0").direction.tolist() == [0, 1, 0]
    for text in ("", "up", "1,2", "0,0,0", "nan,0,1", "+w", "1e400,0,0"):
        with pytest.raises(UsageError, match="up direction"):
            parse_up(text)
    for direction in (parse_up("-z"), parse_up("+z"), parse_up("0.3,-0.2,-0.9999"), Up(turn[:, 2], 1.0, "")):
        rotation = level_similarity(direction).rotation
        assert torch.allclose(rotation @ direction.direction, torch.tensor([0, 0, 1.0]).double(), atol=1e-9)
        assert torch.allclose(rotation @ rotation.T, torch.eye(3).double()) and torch.linalg.det(rotation) > 0


def test_planes_are_found_in_order_of_size() -> None:
    random = torch.Generator().manual_seed(0)
    flat = torch.rand(900, 3, generator=random, dtype=torch.float64)
    floor, wall = flat[:500].clone(), flat[500:800].clone()
    floor[:, 2], wall[:, 0] = 0.5, 2.0
    planes = find_planes(torch.cat([floor, wall, 3 * flat[800:]]), 0.01)
    assert [round(plane.share, 1) for plane in planes[:2]] == [0.6, 0.3]
    assert abs(planes[0].normal[2]) > 0.999 and abs(planes[0].offset) == pytest.approx(0.5, abs=0.01)


def test_a_known_length_gives_the_scale(room: Room) -> None:
    views = apply_similarity(views_of(room, every=29), a_turn(7, 0.25))
    truth = views_of(room, every=29)
    ends = truth.points[[100, 900]]
    metres = float((ends[0] - ends[1]).norm())
    moved = move_points(a_turn(7, 0.25), ends)

    def spots(point: Tensor) -> list[str]:
        found = []
        for view in views.views:
            pixel, depth = project_into(view, point[None])
            if depth[0] > 0.01 and 0 < pixel[0, 0] < view.width and 0 < pixel[0, 1] < view.height:
                found.append(f"{view.name}@{pixel[0, 0]:.4f},{pixel[0, 1]:.4f}")
        return found

    first, second = spots(moved[0]), spots(moved[1])
    assert min(len(first), len(second)) >= 2
    text = f"{first[0]}+{first[-1]} to {'+'.join(second)} = {metres * 100:.6f} cm"
    assert scale_from_length(views, parse_length(text)) == pytest.approx(4.0, rel=1e-3)
    places = " to ".join(",".join(f"{value:.9f}" for value in point) for point in moved.tolist())
    assert scale_from_length(views, parse_length(f"{places}={metres}")) == pytest.approx(4.0, rel=1e-6)
    with pytest.raises(InputError, match="do not show one point"):
        wrong = first[-1].replace(first[-1].split("@")[1], "3,70")
        scale_from_length(views, parse_length(f"{first[0]}+{wrong} to 0,0,0 = 1"))
    with pytest.raises(InputError, match="0 views are called"):
        scale_from_length(views, parse_length("other.png@1,1 to 0,0,0 = 1"))
    with pytest.raises(InputError, match="one point"):
        scale_from_length(views, KnownLength(Spot((1, 1, 1)), Spot((1, 1, 1)), 1.0))
    with pytest.raises(InputError, match="lies outside"):
        scale_from_length(views, parse_length("000.png@97,1 to 0,0,0 = 1"))


def test_one_picture_is_enough_where_points_tell_the_depth() -> None:
    grid = torch.cartesian_prod(torch.linspace(-1, 1, 41), torch.linspace(-1, 1, 41)).double()
    points = torch.cat([grid, 2 + 0.1 * grid[:, :1]], dim=1)
    K = torch.tensor([[100.0, 0, 50], [0, 100, 50], [0, 0, 1]]).double()
    views = Views((View("a.b.png", 100, 100, K, torch.eye(4).double()),), points)
    length = parse_length("a.b.png@20,50 to a.b@80,50 = 0.6 m")
    near, far = 2 / (1 + 0.03), 2 / (1 - 0.03)
    truth = math.hypot(0.3 * (near + far), far - near)
    assert scale_from_length(views, length) == pytest.approx(0.6 / truth, rel=0.01)
    cluttered = replace(views, points=torch.cat([points, points * 2 + 0.001]))
    with pytest.raises(InputError, match="second picture"):
        scale_from_length(replace(cluttered, points=cluttered.points[::400]), length)


@pytest.mark.parametrize(
    "text",
    ["", "1 m", "a.png@1,2 = 1 m", "a.png@1,2 to b.png@3 = 1 m", "1,2,3 to 4,5,6 = 1 km", "1,2,3 to 4,5,6 = 0",
     "1,2,3 to 4,5,6 = -1", "1,2 to 4,5,6 = 1", "a@1,2+a@3,4 to 0,0,0 = 1", "1,2,3 to 4,5,6 = inf",
     "@1,2 to 0,0,0 = 1", "a@1,2+ to 0,0,0 = 1"],
)  # fmt: skip
def test_a_length_that_cannot_be_read_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="Write two points"):
        parse_length(text)
    assert parse_length("a b+c.png@1,2+d.png@3.5,4 to 1e-1,-2,3 = 0.42 m") == KnownLength(
        Spot(pixels=(("a b+c.png", 1.0, 2.0), ("d.png", 3.5, 4.0))), Spot((0.1, -2.0, 3.0)), 0.42
    )


def test_known_places_and_measured_depth_give_the_scale(room: Room, tmp_path: Path) -> None:
    truth = views_of(room, tmp_path)
    views = apply_similarity(truth, a_turn(3, 0.31))
    places = {view.name: view.world_from_camera[:3, 3].clone() for view in truth.views[2:]}
    places["005.png"] += 1.0
    found, agree, misses = similarity_from_places(views, places)
    assert found.scale == pytest.approx(1 / 0.31, rel=1e-6) and agree == 13 and misses < 1e-6
    with pytest.raises(InputError, match="3 views have a known place"):
        similarity_from_places(views, dict(list(places.items())[:3]))
    random = torch.Generator().manual_seed(0)
    with pytest.raises(InputError, match="fit their known places"):
        similarity_from_places(views, {name: torch.randn(3, generator=random) for name in places})
    scale, spread = scale_from_depth(views, 0.001)
    assert scale == pytest.approx(1 / 0.31, rel=0.005) and spread < 0.01
    metric = apply_similarity(views, Similarity(torch.eye(3), torch.zeros(3), scale), metric=True, depth_scale=0.001)
    assert metric.metric and metric.depth_scale == 0.001
    Image.new("L", (5, 5)).save(tmp_path / "000.png")
    with pytest.raises(InputError, match="is needed"):
        scale_from_depth(views, 0.001)
    with pytest.raises(InputError, match="0 of 0 depth maps"):
        scale_from_depth(Views(()), 0.001)
