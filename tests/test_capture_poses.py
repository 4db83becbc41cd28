"""From footage to posed pinhole pictures on disk: found poses, known poses, and refusals."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from gworld.bench.pose import score_views
from gworld.capture import poses
from gworld.capture.footage import Footage, FootageCamera, load_footage
from gworld.capture.gate import PoseQuality, check_quality
from gworld.capture.matching import Matched
from gworld.capture.poses import find_poses
from gworld.capture.sfm import STRAIGHT, Solution
from gworld.data.room_files import write_room
from gworld.data.rooms import RoomOptions, film_room
from gworld.errors import InputError
from gworld.formats.transforms import read_transforms
from gworld.geometry import invert_transform
from gworld.scene.views import View, Views

SHORT = {"frames": 12, "width": 240, "height": 180, "length": 1.2, "seed": 5}


@pytest.fixture(scope="module")
def room():
    return film_room(RoomOptions(radial=-0.06, **SHORT))


def test_poses_are_found_and_written(room, tmp_path: Path) -> None:
    write_room(room, tmp_path / "film", depth=True)
    stages = []
    posed = find_poses(load_footage(tmp_path / "film"), tmp_path / "posed", progress=lambda *said: stages.append(said))
    assert posed.how == "incremental: structure from motion of 12 of 12 pictures" and len(posed.views) == 12
    camera, degrees = score_views(posed.views, room)
    assert camera < 4.0 and degrees < 0.5
    assert posed.quality.moving < 0.05 and posed.quality.explained > 0.9 and posed.quality.registered == 12
    written = read_transforms(tmp_path / "posed" / "transforms.json")
    assert len(written) == 12 and len(written.points) == len(posed.views.points) > 300
    for ours, theirs in zip(posed.views.views, written.views, strict=True):
        assert ours.model == theirs.model == "pinhole" and theirs.image == ours.image and theirs.depth == ours.depth
        assert torch.allclose(ours.world_from_camera, theirs.world_from_camera, atol=1e-9)
        with Image.open(ours.image) as picture:
            assert picture.size == (240, 180) and ours.depth.is_file()
    assert {entry.name for entry in (tmp_path / "posed").iterdir()} == {
        "images", "depth", "transforms.json", "sparse_pc.ply"
    }  # fmt: skip
    assert {stage for stage, _ in stages} >= {"features", "matches", "poses", "undistorted pictures"}
    assert all(0 <= share <= 1 for _, share in stages)


def known_views(room, folder: Path) -> Views:
    footage = load_footage(folder)
    K, terms = torch.from_numpy(room.K), (room.radial, *[0.0] * 7)
    views = [
        View(shot.image.name, 240, 180, K, torch.from_numpy(pose), "opencv", terms, shot.image, camera_id=1)
        for shot, pose in zip(footage.shots, room.world_from_camera, strict=True)
    ]
    return Views(tuple(views), metric=True)


def test_known_poses_are_kept_and_points_triangulated(room, tmp_path: Path) -> None:
    write_room(room, tmp_path / "film")
    known = known_views(room, tmp_path / "film")
    posed = find_poses(load_footage(tmp_path / "film"), tmp_path / "posed", known=known)
    assert posed.how == "known poses" and posed.views.metric
    for ours, given in zip(posed.views.views, known.views, strict=True):
        assert torch.equal(ours.world_from_camera, given.world_from_camera) and ours.model == "pinhole"
    assert len(posed.views.points) > 300 and posed.quality.error < 1.5
    # Triangulated points lie on surfaces: their depth in a picture is the true one, in the room's own metres.
    view, depth = posed.views.views[4], torch.from_numpy(room.depth[4])
    local = posed.views.points @ invert_transform(view.world_from_camera)[:3, :3].T
    local = local + invert_transform(view.world_from_camera)[:3, 3]
    flat = local[:, :2] / local[:, 2:]
    bent = flat * (1 + room.radial * flat.square().sum(1, keepdim=True))
    pixel = bent * room.K[0, 0] + torch.from_numpy(room.K[:2, 2])
    inside = ((pixel > 1) & (pixel < torch.tensor([239.0, 179.0]))).all(1) & (local[:, 2] > 0)
    x, y = pixel[inside].long().unbind(1)
    off = (depth[y, x] - local[inside, 2]).abs() / depth[y, x]
    assert inside.sum() > 100 and off.median() < 0.01


def test_known_points_are_kept(room, tmp_path: Path) -> None:
    write_room(room, tmp_path / "film")
    points = torch.rand(5, 3, dtype=torch.float64)
    known = replace(known_views(room, tmp_path / "film"), points=points)
    posed = find_poses(load_footage(tmp_path / "film"), tmp_path / "posed", known=known)
    assert torch.equal(posed.views.points, points) and math.isnan(posed.quality.error)
    with pytest.raises(InputError, match="has a known pose"):
        find_poses(load_footage(tmp_path / "film"), tmp_path / "posed", known=Views(()))


def test_a_refusal_leaves_no_workspace(tmp_path: Path) -> None:
    write_room(film_room(RoomOptions(path="still", **{**SHORT, "frames": 4})), tmp_path / "film")
    with pytest.raises(InputError, match="stands still"):
        find_poses(load_footage(tmp_path / "film"), tmp_path / "posed")
    assert not list((tmp_path / "posed").iterdir())


@pytest.mark.parametrize(
    ("error", "degrees", "registered", "taken"),
    [(1.05, 8.0, 30, True), (1.3, 8.0, 30, False), (1.05, 30.0, 30, False), (1.05, 8.0, 20, False)],
)
def test_a_straight_lens_is_taken_where_it_tells_the_same(
    monkeypatch: pytest.MonkeyPatch, error: float, degrees: float, registered: int, taken: bool
) -> None:
    def solution(how: str, count: int) -> Solution:
        return Solution(SimpleNamespace(num_reg_images=lambda: count), how, 1)

    def quality(found: Solution, _: object) -> PoseQuality:
        off = error if found.how == STRAIGHT else 1.0
        return PoseQuality(50, found.registered, 1, 900, off, 5.0, 6.0, 80.0, 0.0, 0.9)

    monkeypatch.setattr(poses, "measure_quality", quality)
    monkeypatch.setattr(poses, "disagreement", lambda one, two: (min(30, registered), 0.13, degrees))
    matched = Matched(Footage(Path(), (), ()), Path(), {}, 500.0, 0.004)
    best, _ = poses._best([solution("incremental", 30), solution(STRAIGHT, registered)], matched)
    assert (best.how == STRAIGHT) == taken


def test_a_lens_that_the_motion_leaves_open_is_said_so() -> None:
    def found(field: float, error: float, registered: int = 50) -> PoseQuality:
        return PoseQuality(50, registered, 1, 900, error, 5.0, 6.0, field, 0.12, 0.8)

    told = poses._open_lens([found(98, 0.60), found(30, 0.65), found(45, 0.64)])
    assert "30 and 98 degrees" in told and "0.65 and 0.60 px" in told
    assert not poses._open_lens([found(60, 0.6), found(30, 1.4), found(85, 0.9)])
    assert not poses._open_lens([found(60, 0.6), found(30, 0.6, registered=20)])
    assert not poses._open_lens([found(60, float("nan"), registered=0)])
    with pytest.raises(InputError, match="leaves the lens open"):
        check_quality(found(98, 0.6), "film", also=told)


@pytest.mark.parametrize(("errors", "held"), [((0.9, 0.5, 0.9, 1.2), True), ((0.5, 0.5, 0.5, 0.5), False)])
def test_a_lens_is_held_only_where_the_pictures_choose_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, errors: tuple[float, ...], held: bool
) -> None:
    by_field = dict(zip(poses.FIELDS, errors, strict=True))

    def solution(how: str) -> Solution:
        return Solution(SimpleNamespace(num_reg_images=lambda: 20), how, 1)

    def quality(found: Solution, _: object) -> PoseQuality:
        field = int(found.how)
        return PoseQuality(20, 20, 1, 900, by_field[field], 5.0, 6.0, float(field), 0.0, 0.9)

    monkeypatch.setattr(poses, "measure_quality", quality)
    monkeypatch.setattr(poses, "solve_with_field", lambda matched, folder, field, options: solution(f"{field}"))
    monkeypatch.setattr(poses, "replace", lambda found, how: Solution(found.model, how.split(",")[0], 1))
    bad = PoseQuality(20, 20, 1, 900, 3.0, 5.0, 6.0, 178.0, 0.0, 0.9)
    camera = FootageCamera("film", 64, 48)
    matched = Matched(Footage(Path(), (camera,), ()), Path(), {}, 500.0, 0.004)
    found, _, lens = poses._with_held_lens(solution("first"), bad, matched, tmp_path, poses.PoseOptions())
    assert (found.how == "45") == held and bool(lens) != held


@pytest.mark.parametrize("how", ["incremental", f"incremental, {poses.HELD} 85 degrees"])
def test_poses_under_a_guessed_lens_come_with_a_warning(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, how: str
) -> None:
    quality = PoseQuality(20, 20, 1, 900, 0.5, 5.0, 6.0, 85.0, 0.0, 0.9)
    solved = Solution(SimpleNamespace(num_reg_images=lambda: 20), how, 1)
    for name in ("match_footage", "check_motion", "views_of", "write_transforms"):
        monkeypatch.setattr(poses, name, lambda *given, **more: None)
    monkeypatch.setattr(poses, "solve", lambda *given: [])
    monkeypatch.setattr(poses, "_best", lambda *given: (solved, quality))
    monkeypatch.setattr(poses, "_with_held_lens", lambda *given: (solved, quality, ""))
    monkeypatch.setattr(poses, "undistort_views", lambda *given: Views(()))
    found = poses.find_poses(Footage(tmp_path, (FootageCamera("film", 64, 48),), ()), tmp_path)
    assert bool(found.warnings) == (poses.HELD in how)
    assert all("85 degrees" in warning for warning in found.warnings)
