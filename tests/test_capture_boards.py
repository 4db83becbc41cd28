"""Boards: what is drawn and filmed at a known pose is found at that pose; what cannot be told is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from gworld.capture.boards import (
    Board,
    board_points,
    calibrate_from_board,
    detect_board,
    draw_board,
    frame_from_board,
    parse_board,
    pose_from_board,
    poses_from_board,
)
from gworld.capture.rays import meet_rays, pixel_rays, project_into
from gworld.capture.similarity import Similarity, apply_similarity, invert_similarity
from gworld.errors import InputError, UsageError
from gworld.geometry import invert_transform, quat_from_matrix, rotvec_from_quat
from gworld.scene.cameras import look_at
from gworld.scene.views import View, Views

cv2 = pytest.importorskip("cv2")

CHARUCO = "charuco:5x7:0.04m:0.03m:4x4_50"
GRID = "grid:4x3:0.05m:0.012m:36h11"
TAG = "tag:36h11:7:0.12m"
SIZES = {CHARUCO: (0.2, 0.28), GRID: (0.236, 0.174), TAG: (0.12, 0.12)}
K = torch.tensor([[520.0, 0, 322], [0, 515, 238], [0, 0, 1]], dtype=torch.float64)


def film(board: Board, size: tuple[float, float], pose: Tensor, lens: Tensor = K) -> Tensor:
    """A picture [480,640,3] of the printed board as a camera at world_from_camera `pose` sees it, drawn 3x finer."""
    finer, density = 3, 4000.0
    printed = draw_board(board, density).numpy()
    margin = round(0.2 * board.size * density)
    corner = np.array([-size[0] / 2, size[1] / 2]) if board.kind == "tag" else np.array([0, size[1]])
    paper = np.array(
        [[1 / density, 0, corner[0] - margin / density], [0, -1 / density, corner[1] + margin / density], [0, 0, 1]]
    )
    camera = invert_transform(pose).numpy()
    plane = lens.numpy() @ camera[:3][:, [0, 1, 3]]
    half = np.array([[1, 0, 0.5], [0, 1, 0.5], [0, 0, 1.0]])  # OpenCV's pixel centres lie at whole numbers
    warp = np.linalg.inv(half) @ np.diag([finer, finer, 1.0]) @ plane @ paper @ half
    drawn = cv2.warpPerspective(printed, warp, (640 * finer, 480 * finer), flags=cv2.INTER_AREA, borderValue=170)
    drawn = drawn.reshape(480, finer, 640, finer).mean((1, 3))
    return torch.from_numpy(np.repeat(np.rint(drawn).astype(np.uint8)[:, :, None], 3, 2))


def poses_around(size: tuple[float, float], centred: bool) -> Tensor:
    middle = torch.tensor([0, 0, 0] if centred else [size[0] / 2, size[1] / 2, 0], dtype=torch.float64)
    eyes = torch.tensor(
        [[0.25, -0.35, 0.4], [-0.3, -0.15, 0.45], [0.05, 0.3, 0.5], [0.4, 0.1, 0.3]], dtype=torch.float64
    )
    return look_at(eyes + middle, middle)


@pytest.mark.parametrize("text", [CHARUCO, GRID, TAG])
def test_a_filmed_board_is_found_where_it_was(text: str, tmp_path: Path) -> None:
    board, size = parse_board(text), SIZES[text]
    poses = poses_around(size, board.kind == "tag")
    views, seen = [], {}
    for index, pose in enumerate(poses):
        view = View(f"{index}.png", 640, 480, K, torch.eye(4, dtype=torch.float64), image=tmp_path / f"{index}.png")
        picture = film(board, size, pose)
        Image.fromarray(picture.numpy()).save(tmp_path / f"{index}.png")
        corners = detect_board(picture, board)
        assert len(corners.ids) == len(board_points(board))
        truth, _ = project_into(
            replace(view, world_from_camera=pose), torch.tensor(np.array([board_points(board)[i] for i in corners.ids]))
        )
        assert (corners.pixels - truth).norm(dim=1).max() < 0.2, "pixel centres lie at +0.5"
        assert (corners.pixels - truth).mean(0).abs().max() < 0.1
        found = pose_from_board(corners, view, board)
        assert found.error < 0.3 < found.flipped_error
        views.append(view)
        seen[view.name] = corners
    posed = poses_from_board(Views(tuple(views)), board)
    assert posed.metric and len(posed) == 4
    for view, pose in zip(posed.views, poses, strict=True):
        assert (view.world_from_camera - pose)[:3, 3].norm() < 0.0006
        turned = view.world_from_camera[:3, :3].T @ pose[:3, :3]
        assert rotvec_from_quat(quat_from_matrix(turned[None]))[0].norm() < 0.003
    elsewhere = Similarity(
        look_at(torch.ones(3).double(), torch.zeros(3).double())[:3, :3], torch.ones(3).double(), 3.7
    )
    truly = Views(
        tuple(replace(view, world_from_camera=pose) for view, pose in zip(views, poses, strict=True)), metric=True
    )
    scene = apply_similarity(truly, invert_similarity(elsewhere))
    frame, spread = frame_from_board(scene, seen, board)
    assert frame.scale == pytest.approx(3.7, rel=0.001) and spread < 0.002
    back = apply_similarity(scene, frame, metric=True)
    assert (
        torch.stack([a.world_from_camera - b for a, b in zip(back.views, poses, strict=True)])[:, :3, 3]
        .norm(dim=1)
        .max()
        < 0.006
    )


def test_a_lens_is_calibrated_from_a_board() -> None:
    board = parse_board(CHARUCO)
    eyes = torch.tensor(
        [[x, y, z] for x, y in ((-0.1, -0.1), (0.3, 0.0), (0.0, 0.35), (0.25, 0.3)) for z in (0.25, 0.4)]
    )
    poses = look_at(eyes.double(), torch.tensor([0.1, 0.14, 0], dtype=torch.float64))
    found, terms, error = calibrate_from_board([film(board, SIZES[CHARUCO], pose) for pose in poses], board)
    assert error < 0.3 and max(map(abs, terms)) < 0.02
    assert torch.allclose(found, K, atol=4.0)
    with pytest.raises(InputError, match="0 of 2 pictures"):
        calibrate_from_board([torch.zeros(48, 64, 3, dtype=torch.uint8)] * 2, board)


def test_a_far_tag_whose_tilt_cannot_be_told_is_refused(tmp_path: Path) -> None:
    board = parse_board("tag:36h11:3:0.04m")
    pose = look_at(torch.tensor([[0.02, -0.05, 0.7]]).double(), torch.zeros(3).double())[0]
    Image.fromarray(film(board, (0.04, 0.04), pose).numpy()).save(tmp_path / "a.png")
    view = View("a.png", 640, 480, K, torch.eye(4).double(), image=tmp_path / "a.png")
    with pytest.raises(InputError, match=r"tilted the other way|shows 0 corners"):
        poses_from_board(Views((view,)), board)
    with pytest.raises(InputError, match="shows 0 corners of the board; 6 are needed"):
        poses_from_board(Views((view,)), parse_board(CHARUCO))
    with pytest.raises(InputError, match="no picture"):
        poses_from_board(Views((replace(view, image=None),)), board)


@pytest.mark.parametrize(
    "text",
    [
        "", "charuco", "charuco:5x7:0.04:0.03:4x4_50", "charuco:5x7:0.04m:0.05m:4x4_50", "tag:36h12:1:0.1m",
        "charuco:99x99:0.04m:0.03m:4x4_50", "tag:36h11:999:0.1m", "tag:36h11:1:1.2.3m", "grid:4x3:0.05m:0m:36h11",
    ],
)  # fmt: skip
def test_a_board_that_cannot_be_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="Write `charuco"):
        parse_board(text)


def test_rays_meet_where_the_point_is_and_lens_errors_are_undone() -> None:
    pose = poses_around((0.2, 0.2), True)
    point = torch.tensor([[0.03, -0.02, 0.05]], dtype=torch.float64)
    lens = (-0.2, 0.05, 0.001, -0.002, 0.01, 0.0, 0.0, 0.0)
    origins, directions = [], []
    for one in pose:
        view = View("a", 640, 480, K, one, "opencv", lens)
        camera = invert_transform(one).numpy()
        pixel, _ = cv2.projectPoints(
            point.numpy(), cv2.Rodrigues(camera[:3, :3])[0], camera[:3, 3], K.numpy(), np.array(lens)
        )
        origin, direction = pixel_rays(view, torch.from_numpy(pixel[0]))
        origins.append(origin)
        directions.append(direction)
    found, miss, widest = meet_rays(torch.cat(origins), torch.cat(directions))
    assert torch.allclose(found, point[0], atol=1e-7) and miss < 1e-7 and 0.5 < widest < 3
    with pytest.raises(InputError, match="parallel"):
        meet_rays(torch.zeros(2, 3), torch.ones(2, 3))
    with pytest.raises(InputError, match="behind"):
        meet_rays(torch.cat(origins), -torch.cat(directions))
    with pytest.raises(InputError, match="1 picture shows"):
        meet_rays(torch.zeros(1, 3), torch.ones(1, 3))
