"""Where a robot stands in a world: by markers of known place on it, by its own motion, or by looking (`base_look`).

Every way ends in `world_from_base`, the pose of the robot's root, with what is left over and how sure it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from gworld.capture.boards import Board, Corners, board_points, detect_board, pose_from_board
from gworld.capture.handeye import HandEye, HandEyeOptions, solve_fixed_camera, solve_hand_eye
from gworld.capture.rays import pixel_rays
from gworld.errors import InputError
from gworld.geometry import invert_transform, se3_exp
from gworld.reconstruct.base_look import LookFit, LookOptions, base_from_pictures
from gworld.reconstruct.motion_film import Plates
from gworld.render.api import RenderOptions
from gworld.render.select import render
from gworld.scene.cameras import Cameras
from gworld.scene.gaussians import select_gaussians
from gworld.scene.views import View
from gworld.scene.world import World

__all__ = [
    "BaseFit", "LookFit", "LookOptions", "Sight", "base_from_hand_eye", "base_from_marked_hand", "base_from_markers",
    "base_from_pictures", "world_plates",
]  # fmt: skip

MOST_ERROR = 3.0
"""Pixels by which a marker's corners may be off its pose."""
FLIPPED = 1.5
"""A flat marker's mirrored pose must fit this much worse, where one picture alone tells."""
SPREAD = 0.05
"""Metres and radians by which a hand-eye solution's mount and scale may be unsure."""


@dataclass(frozen=True, eq=False)
class BaseFit:
    """A root: world_from_base [4,4]; how it was found, in words; standard deviations in metres and radians."""

    world_from_base: Float[Tensor, "4 4"]
    how: str
    position_sigma: float
    rotation_sigma: float


@dataclass(frozen=True, eq=False)
class Sight:
    """A picture in which a marker may be seen: the number of its camera, and where the marker was then: base_from_board
    [4,4], or base_from_hand of the link it sits on where its place there is unknown."""

    camera: int
    picture: UInt8[Tensor, "H W 3"]
    base_from_board: Float[Tensor, "4 4"]


def base_from_markers(cameras: Cameras, sights: Sequence[Sight], board: Board) -> BaseFit:
    """The root from pictures of fixed cameras that show a marker of known place on the robot, all solved together.

    Raises `InputError` when no picture shows the marker, when its corners do not fit one root, and when a single view
    leaves open which way a flat marker is tilted.
    """
    seen = _seen(cameras, sights, board)
    if not seen:
        raise InputError(
            f"none of {len(sights)} pictures shows the marker. Check its family, number and size, and the light."
        )
    starts = [view.world_from_camera @ pose.camera_from_board @ invert_transform(sight.base_from_board.double())
              for sight, view, _, pose in seen]  # fmt: skip
    solved = [_solve_markers(start, seen, board) for start in starts[:6]]
    base, error, covariance = min(solved, key=lambda one: one[1])
    if error > MOST_ERROR:
        raise InputError(
            f"the marker's corners are {error:.1f} pixels off the best base; {MOST_ERROR:g} are allowed. Check the "
            "marker's size, its place on the robot (`--find.marker-offset`), the calibration and the joint values."
        )
    flipped = min(pose.flipped_error / max(pose.error, 0.05) for _, _, _, pose in seen)
    if len(seen) == 1 and flipped < FLIPPED:
        raise InputError("one picture of the marker leaves open which way it is tilted. Bring it nearer, or add views.")
    how = f"{len(seen)} pictures of the marker ({error:.2f} pixels off)"
    turn = float(covariance[3:, 3:].trace().sqrt())
    return BaseFit(base, how, float(covariance[:3, :3].trace().sqrt()), turn)


def base_from_marked_hand(
    cameras: Cameras,
    sights: Sequence[Sight],
    board: Board,
    options: HandEyeOptions = HandEyeOptions(),  # noqa: B008 (frozen)
) -> BaseFit:
    """The root from a fixed camera that sees a marker somewhere on a moving link (`Sight.base_from_board` is that
    link's pose in the root): where the marker sits on it comes out too.

    The camera that sees it most often is used. Raises `InputError` when it moves too little (see `solve_fixed_camera`).
    """
    seen = _seen(cameras, sights, board)
    numbers = [sight.camera for sight, _, _, _ in seen]
    if not numbers:
        raise InputError("no picture shows the marker on the link. Check its family, number and size, and the light.")
    most = max(set(numbers), key=numbers.count)
    rows = [one for one in seen if one[0].camera == most]
    markers = torch.stack([pose.camera_from_board for _, _, _, pose in rows])
    hands = torch.stack([sight.base_from_board.double() for sight, _, _, _ in rows])
    base_from_camera, found = solve_fixed_camera(markers, hands, options)
    base = rows[0][1].world_from_camera.double() @ invert_transform(base_from_camera)
    return _from_hand_eye(base, found, f"a marker on the moving link in {int(found.agree.sum())} pictures")


def base_from_hand_eye(
    world_from_camera: Float[Tensor, "N 4 4"],
    base_from_hand: Float[Tensor, "N 4 4"],
    options: HandEyeOptions = HandEyeOptions(),  # noqa: B008 (frozen)
) -> tuple[BaseFit, Float[Tensor, "4 4"]]:
    """The root, and hand_from_camera, from the poses of a wrist camera in a metric world and its hand's in the root.

    Rows with NaN are left out. Raises `InputError` where the motion cannot tell, too few pictures agree, or the world's
    metre is not the robot's.
    """
    free = solve_hand_eye(world_from_camera, base_from_hand, options)
    scale = free.base_from_world.scale
    if abs(scale - 1) > SPREAD and abs(scale - 1) > 3 * free.scale_spread:
        raise InputError(
            f"the world's unit is {scale:.3g} m by the robot's motion; a world in metres is needed. Reconstruct it "
            "with the robot's log (`gworld reconstruct --hand-log`)."
        )
    found = solve_hand_eye(world_from_camera, base_from_hand, options, fixed_scale=True)
    base = torch.eye(4, dtype=torch.float64)
    base[:3, :3], base[:3, 3] = found.base_from_world.rotation, found.base_from_world.translation
    how = f"the wrist camera's motion in {int(found.agree.sum())} of {len(found.agree)} pictures"
    return _from_hand_eye(invert_transform(base), found, how), found.hand_from_camera


def world_plates(world: World, cameras: Cameras) -> Plates:
    """What the world's static Gaussians, and its background where it has one, show to fixed cameras, and how far they
    stand; raises `InputError` when there are none."""
    static = select_gaussians(world.gaussians, world.gaussians.links == 0)
    if not len(static):
        raise InputError("the world has no static Gaussians to stand behind the robot; take plates from the video.")
    options = RenderOptions(background=world.background or (0.0, 0.0, 0.0))
    with torch.no_grad():
        shown = render(
            static, None, replace(cameras, names=(), links=()), outputs=("rgb", "alpha", "depth"), options=options
        )
    assert shown.rgb is not None and shown.alpha is not None and shown.depth is not None
    seen = shown.alpha[0] > 0.5
    known = seen if world.background is None else torch.ones_like(seen)
    shield = torch.where(seen, shown.depth[0], torch.inf)
    return Plates(shown.rgb[0].clamp(0, 1).numpy(), known.numpy(), shield.numpy())


def camera_view(cameras: Cameras, index: int) -> View:
    """One fixed camera as a view without a picture."""
    distortion = () if cameras.distortion is None else tuple(cameras.distortion[index].tolist())
    name = cameras.names[index] if cameras.names else f"camera {index}"
    pose = cameras.world_from_camera[index].double()
    return View(name, cameras.width, cameras.height, cameras.K[index].double(), pose, cameras.model, distortion)


def _seen(cameras: Cameras, sights: Sequence[Sight], board: Board) -> list:
    """(sight, view, corners, pose) of every picture that shows the marker well."""
    found = []
    for sight in sights:
        view = camera_view(cameras, sight.camera)
        corners = _own(detect_board(sight.picture, board), board)
        try:
            pose = pose_from_board(corners, view, board)
        except InputError:
            continue
        if pose.error <= MOST_ERROR:
            found.append((sight, view, corners, pose))
    return found


def _own(corners: Corners, board: Board) -> Corners:
    """Corners of the board itself, without others of its family."""
    known = board_points(board)
    rows = [row for row, number in enumerate(corners.ids) if number in known]
    return Corners(tuple(corners.ids[row] for row in rows), corners.pixels[rows])


def _solve_markers(start: Tensor, seen: list, board: Board) -> tuple[Tensor, float, Tensor]:
    """The root that explains all corners best from a start, the error in pixels (rms), the covariance of its twist."""
    from scipy.optimize import least_squares

    points = board_points(board)
    parts = []
    for sight, view, corners, _ in seen:
        local = torch.from_numpy(np.stack([points[number] for number in corners.ids]))
        onto = sight.base_from_board.double()
        focal = float(view.K[0, 0])
        ideal = replace(view, world_from_camera=torch.eye(4, dtype=torch.float64))
        _, rays = pixel_rays(ideal, corners.pixels)
        here = local @ onto[:3, :3].T + onto[:3, 3]
        parts.append((here, invert_transform(view.world_from_camera), rays[:, :2], focal))

    def miss(twist: np.ndarray) -> np.ndarray:
        base = start @ se3_exp(torch.from_numpy(twist))
        off = []
        for here, camera_from_world, rays, focal in parts:
            pose = camera_from_world @ base
            local = here @ pose[:3, :3].T + pose[:3, 3]
            off.append(((local[:, :2] / local[:, 2:].clamp_min(1e-6) - rays) * focal).flatten())
        return torch.cat(off).numpy()

    solved = least_squares(miss, np.zeros(6), loss="soft_l1", f_scale=1.0, method="trf")
    rest = miss(solved.x)
    error = float(np.sqrt(2 * np.mean(rest**2)))
    sigma = max(float(np.mean(rest**2)) * len(rest) / max(len(rest) - 6, 1), 0.05**2)
    covariance = torch.from_numpy(np.linalg.pinv(solved.jac.T @ solved.jac) * sigma)
    return start @ se3_exp(torch.from_numpy(solved.x)), error, covariance


def _from_hand_eye(base: Tensor, found: HandEye, how: str) -> BaseFit:
    count = max(int(found.agree.sum()), 1)
    return BaseFit(
        base,
        f"{how} ({1000 * found.position_rms:.1f} mm and {np.degrees(found.rotation_rms):.2f} degrees off)",
        max(found.mount_spread, found.position_rms / count**0.5),
        found.rotation_rms / count**0.5,
    )
