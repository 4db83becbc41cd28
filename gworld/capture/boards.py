"""Printed boards and tags: AprilTag, ArUco and ChArUco patterns of known size give poses, metric scale and a frame.

A board's frame: x to the right and y up as it is printed, z out of the paper towards the viewer, so that a board that
lies on a table has +Z up; metres. The origin is a board's lower left corner, a tag's middle.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from gworld.capture.quads import refine_quads
from gworld.capture.rays import meet_rays, pixel_rays
from gworld.capture.similarity import Similarity, fit_similarity
from gworld.errors import InputError, UsageError
from gworld.geometry import invert_transform
from gworld.scene.views import View, Views

if TYPE_CHECKING:
    import cv2

MIN_CORNERS = 6
MIN_PICTURES = 5
_SPEC = re.compile(
    r"(?P<kind>charuco|grid):(?P<columns>\d{1,2})x(?P<rows>\d{1,2}):(?P<size>[\d.]+)m:(?P<inner>[\d.]+)m:(?P<family>\w+)"
    r"|tag:(?P<tag>\w+):(?P<id>\d{1,4}):(?P<side>[\d.]+)m"
)
_FAMILIES = {
    "36h11": "APRILTAG_36h11", "36h10": "APRILTAG_36h10", "25h9": "APRILTAG_25h9", "16h5": "APRILTAG_16h5",
    **{f"{n}x{n}_{count}": f"{n}X{n}_{count}" for n in (4, 5, 6, 7) for count in (50, 100, 250, 1000)},
    "original": "ARUCO_ORIGINAL",
}  # fmt: skip


@dataclass(frozen=True)
class Board:
    """A pattern: a `charuco` chessboard or a `grid` of tags of columns x rows, or one `tag` of the number `id`.

    `size` is the side of a chessboard square, or of a tag with its black border, in metres; `inner` the side of the
    tags in a chessboard's squares, or the gap between the tags of a grid. Other tags of the family and size may lie
    about: they help to find the scale.
    """

    kind: str
    family: str
    size: float
    columns: int = 1
    rows: int = 1
    inner: float = 0.0
    id: int = 0


@dataclass(frozen=True)
class Corners:
    """Corners of a pattern seen in one picture: their numbers [N], pixels [N,2] with centres at +0.5.

    A chessboard's inner corners count from its upper left; corner c (clockwise from the upper left) of tag t is 4t + c.
    """

    ids: tuple[int, ...]
    pixels: Float[Tensor, "N 2"]


@dataclass(frozen=True)
class BoardPose:
    """A camera before a board: camera_from_board [4,4] float64, reprojection error in pixels, corners used.

    `flipped_error` is the error of the mirrored pose that a flat pattern also allows; the further above `error`, the
    surer the pose.
    """

    camera_from_board: Float[Tensor, "4 4"]
    error: float
    flipped_error: float
    corners: int


def parse_board(text: str) -> Board:
    """A board from text; raises `UsageError` for anything else.

    `charuco:COLUMNSxROWS:SQUAREm:TAGm:FAMILY` (`charuco:5x7:0.04m:0.03m:4x4_50`), `grid:COLUMNSxROWS:TAGm:GAPm:FAMILY`
    (`grid:4x3:0.05m:0.01m:36h11`) or `tag:FAMILY:NUMBER:SIDEm` (`tag:36h11:7:0.12m`).
    """
    found = _SPEC.fullmatch(text.strip())
    try:
        if found and found["kind"]:
            board = Board(
                found["kind"], found["family"], float(found["size"]), int(found["columns"]), int(found["rows"]),
                float(found["inner"]),
            )  # fmt: skip
        elif found:
            board = Board("tag", found["tag"], float(found["side"]), id=int(found["id"]))
        else:
            raise ValueError("it is none of the three forms")
        _check_board(board)
    except ValueError as error:
        raise UsageError(
            f"the board {text!r:.80} cannot be used: {error}. Write `charuco:5x7:0.04m:0.03m:4x4_50` (square, tag), "
            "`grid:4x3:0.05m:0.01m:36h11` (tag, gap) or `tag:36h11:7:0.12m` (number, side)."
        ) from error
    return board


def draw_board(board: Board, pixels_per_metre: float) -> UInt8[Tensor, "H W"]:
    """The pattern to print, grey, with a white margin of one fifth of a square or tag around it."""
    import cv2

    margin = round(0.2 * board.size * pixels_per_metre)
    width, height = (round(side * pixels_per_metre) for side in _extent(board))
    if board.kind == "tag":
        drawn = cv2.aruco.generateImageMarker(_dictionary(board), board.id, width)
    else:
        drawn = _cv_board(board).generateImage((width, height), marginSize=0, borderBits=1)
    return torch.from_numpy(np.pad(drawn, margin, constant_values=255))


def detect_board(picture: UInt8[Tensor, "H W 3"] | UInt8[Tensor, "H W"], board: Board) -> Corners:
    """The corners of a pattern that a picture shows; none where it is not seen.

    For a `tag`, the corners of all tags of its family are returned.
    """
    import cv2

    grey = picture.numpy() if picture.ndim == 2 else cv2.cvtColor(picture.numpy(), cv2.COLOR_RGB2GRAY)
    if board.kind == "charuco":
        found = [_detect_chessboard(grey, board, legacy) for legacy in (False, True)]
        return max(found, key=lambda corners: len(corners.ids))
    quads, numbers, _ = cv2.aruco.ArucoDetector(_dictionary(board)).detectMarkers(grey)
    if numbers is None or not len(numbers):
        return Corners((), torch.zeros(0, 2, dtype=torch.float64))
    pixels = refine_quads(grey, np.stack([quad.reshape(4, 2) for quad in quads]).astype(np.float64) + 0.5).reshape(
        -1, 2
    )
    ids = tuple(4 * int(number) + corner for number in np.ravel(numbers) for corner in range(4))
    return Corners(ids, torch.from_numpy(pixels))


def board_points(board: Board) -> dict[int, np.ndarray]:
    """The corners of a pattern in its frame [3] metres, by their numbers (see `Corners`)."""
    height = _extent(board)[1]
    if board.kind == "tag":
        half = board.size / 2
        return {4 * board.id + c: np.array([x * half, y * half, 0]) for c, (x, y) in enumerate(_SQUARE)}
    printed: Any = _cv_board(board)
    if board.kind == "charuco":
        flat = dict(enumerate(np.asarray(printed.getChessboardCorners())))
    else:
        quads = zip(np.ravel(printed.getIds()), printed.getObjPoints(), strict=True)
        flat = {4 * int(tag) + c: np.asarray(quad)[c] for tag, quad in quads for c in range(4)}
    # OpenCV counts y downward from the upper left corner, which leaves z into the paper.
    return {number: np.array([point[0], height - point[1], 0.0]) for number, point in flat.items()}


def pose_from_board(corners: Corners, view: View, board: Board) -> BoardPose:
    """Where the board is before a camera of known lens; only `view`'s K and distortion are used.

    Both poses that a flat pattern allows are refined. Source: Collins and Bartoli, IJCV 2014 (IPPE). Raises
    `InputError` when fewer corners are seen than are needed (4 of a tag, else 6), or for a lens that is neither pinhole
    nor opencv.
    """
    import cv2

    points = board_points(board)
    rows = [row for row, number in enumerate(corners.ids) if number in points]
    least = 4 if board.kind == "tag" else MIN_CORNERS
    if len(rows) < least:
        raise InputError(
            f"`{view.name}` shows {len(rows)} corners of the board; {least} are needed. Bring the board nearer, light "
            "it evenly, and check its family and size."
        )
    object_points = np.array([points[corners.ids[row]] for row in rows])
    _, directions = pixel_rays(replace(view, world_from_camera=torch.eye(4).double()), corners.pixels[rows])
    seen = directions[:, :2].numpy() * float(view.K[0, 0])  # an ideal camera of the same focal length, centred
    K = np.diag([float(view.K[0, 0])] * 2 + [1.0])
    solved = cv2.solvePnPGeneric(object_points, seen[:, None], K, None, flags=cv2.SOLVEPNP_IPPE)
    fits = []
    for turn, shift in zip(solved[1], solved[2], strict=True):
        turn, shift = cv2.solvePnPRefineLM(object_points, seen[:, None], K, None, turn, shift)
        pose = np.eye(4)
        pose[:3, :3], pose[:3, 3] = cv2.Rodrigues(turn)[0], np.ravel(shift)
        local = object_points @ pose[:3, :3].T + pose[:3, 3]
        if local[:, 2].min() > 0:
            error = local[:, :2] / local[:, 2:] * K[0, 0] - seen
            fits.append((float(np.sqrt((error**2).sum(1).mean())), pose))
    if not fits:
        raise InputError(f"`{view.name}`: no pose of the board explains its corners. Check the lens and the board.")
    fits.sort(key=lambda fit: fit[0])
    other = fits[1][0] if len(fits) > 1 else float("inf")
    return BoardPose(torch.from_numpy(fits[0][1]), fits[0][0], other, len(rows))


def poses_from_board(views: Views, board: Board, most_error: float = 2.0, least_ratio: float = 1.5) -> Views:
    """Views of known lens posed in the board's frame, metric; those whose pictures do not tell are left out.

    A view is left out when its corners are off by more than `most_error` pixels, or when the mirrored pose fits nearly
    as well (less than `least_ratio` times worse). Raises `InputError`, with the first reason, when none is left.
    """
    posed, reasons = [], []
    for view in views.views:
        try:
            pose = pose_from_board(detect_board(read_picture(view), board), view, board)
            if pose.error > most_error:
                raise InputError(f"`{view.name}`: the board fits to {pose.error:.1f} pixels only; check size and lens.")
            if pose.flipped_error < least_ratio * max(pose.error, 0.05):
                raise InputError(
                    f"`{view.name}`: the board may also be tilted the other way ({pose.error:.2f} against "
                    f"{pose.flipped_error:.2f} pixels); bring it nearer, or tilt it."
                )
            posed.append(replace(view, world_from_camera=invert_transform(pose.camera_from_board)))
        except InputError as error:
            reasons.append(str(error))
    if not posed:
        raise InputError(reasons[0] if reasons else "there are no views in which a board could be seen.")
    none = torch.zeros(0, 3, dtype=torch.float64)
    return Views(tuple(posed), none, torch.zeros(0, 3, dtype=torch.uint8), metric=True)


def frame_from_board(views: Views, seen: dict[str, Corners], board: Board) -> tuple[Similarity, float]:
    """The board's metric frame from the frame of posed views, and the relative spread of the scale.

    `seen` holds corners by the name of their view; each is triangulated from all views that show it. Of a `tag`, other
    tags of its size help with the scale. Raises `InputError` when fewer than four corners can be placed.
    """
    placed = _triangulate(views, seen)
    known = board_points(board)
    shared = sorted(set(placed) & set(known))
    if len(shared) < 4:
        raise InputError(
            f"{len(shared)} corners of the board are seen from two places or more; four are needed. Film the board "
            "from several sides."
        )
    source = torch.stack([placed[number] for number in shared])
    target = torch.from_numpy(np.stack([known[number] for number in shared]))
    frame, misses = fit_similarity(source, target)
    spread = float(misses.square().mean().sqrt()) / max(_extent(board))
    if board.kind != "tag":
        return frame, spread
    scales = torch.tensor(_tag_scales(placed, board.size), dtype=torch.float64)
    spread = float((scales - scales.median()).abs().median()) / float(scales.median()) if len(scales) > 1 else spread
    scale = float(scales.median())
    middle = source.mean(0)
    return Similarity(frame.rotation, target.mean(0) - scale * frame.rotation @ middle, scale), spread


def calibrate_from_board(
    pictures: Sequence[Tensor], board: Board
) -> tuple[Float[Tensor, "3 3"], tuple[float, ...], float]:
    """K, OpenCV distortion (k1 k2 p1 p2) and reprojection error (pixels) of a camera that saw a board many times.

    Source: Zhang, PAMI 2000. Raises `InputError` when fewer than five pictures show eight corners or more.
    """
    import cv2

    points = board_points(board)
    objects, images = [], []
    for picture in pictures:
        corners = detect_board(picture, board)
        rows = [row for row, number in enumerate(corners.ids) if number in points]
        if len(rows) >= 8:
            objects.append(np.array([points[corners.ids[row]] for row in rows], np.float32))
            images.append((corners.pixels[rows].numpy() - 0.5).astype(np.float32)[:, None])
    if len(objects) < MIN_PICTURES:
        raise InputError(
            f"{len(objects)} of {len(pictures)} pictures show eight corners of the board; {MIN_PICTURES} are needed. "
            "Show the board near, tilted and in all parts of the picture."
        )
    height, width = pictures[0].shape[:2]
    guess = np.array([[width, 0, width / 2 - 0.5], [0, width, height / 2 - 0.5], [0, 0, 1.0]])
    flags = cv2.CALIB_USE_INTRINSIC_GUESS | cv2.CALIB_FIX_K3
    error, K, terms, _, _ = cv2.calibrateCamera(objects, images, (width, height), guess, np.zeros(5), flags=flags)
    lens = np.array([[K[0, 0], 0, K[0, 2] + 0.5], [0, K[1, 1], K[1, 2] + 0.5], [0, 0, 1]])
    return torch.from_numpy(lens), tuple(np.ravel(terms)[:4].tolist()), float(error)


def read_picture(view: View) -> UInt8[Tensor, "H W 3"]:
    """A view's picture as 8-bit RGB; raises `InputError` when it has none or it cannot be read."""
    from PIL import Image

    if view.image is None:
        raise InputError(f"view `{view.name}` has no picture; one is needed.")
    try:
        with Image.open(view.image) as picture:
            return torch.from_numpy(np.array(picture.convert("RGB")))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise InputError(f"`{view.image}` cannot be read as a picture: {error!s:.200}. Replace it.") from error


_SQUARE = ((-1, 1), (1, 1), (1, -1), (-1, -1))


def _check_board(board: Board) -> None:
    if board.family not in _FAMILIES:
        raise ValueError(f"the family {board.family!r} is not known; known are {', '.join(_FAMILIES)}")
    if not 1e-3 <= board.size <= 10 or not 0 <= board.inner <= 10:
        raise ValueError("its sizes are metres from 0.001 to 10")
    if board.kind == "charuco" and not (board.columns >= 3 and board.rows >= 3 and 0 < board.inner < board.size):
        raise ValueError("a chessboard has 3 x 3 squares or more, and tags smaller than its squares")
    if board.kind == "grid" and not (board.columns * board.rows >= 2 and board.inner > 0):
        raise ValueError("a grid has two tags or more, and gaps between them")
    count = len(np.asarray(_dictionary(board).bytesList))
    tags = {"charuco": board.columns * board.rows // 2, "grid": board.columns * board.rows, "tag": board.id + 1}
    if tags[board.kind] > count:
        raise ValueError(f"the family {board.family} has {count} tags, and {tags[board.kind]} are needed")


def _dictionary(board: Board) -> cv2.aruco.Dictionary:
    import cv2

    return cv2.aruco.getPredefinedDictionary(getattr(cv2.aruco, f"DICT_{_FAMILIES[board.family]}"))


def _cv_board(board: Board) -> cv2.aruco.CharucoBoard | cv2.aruco.GridBoard:
    import cv2

    kind = cv2.aruco.CharucoBoard if board.kind == "charuco" else cv2.aruco.GridBoard
    return kind((board.columns, board.rows), board.size, board.inner, _dictionary(board))


def _extent(board: Board) -> tuple[float, float]:
    """Width and height in metres."""
    gap = board.inner if board.kind == "grid" else 0.0
    return tuple(count * (board.size + gap) - gap for count in (board.columns, board.rows))  # type: ignore[return-value] # of two


def _detect_chessboard(grey: np.ndarray, board: Board, legacy: bool) -> Corners:
    """Inner corners of a ChArUco board; `legacy` is the pattern that OpenCV before 4.6 drew for even rows."""
    import cv2

    pattern: Any = _cv_board(board)
    pattern.setLegacyPattern(legacy)
    pixels, numbers, _, _ = cv2.aruco.CharucoDetector(pattern).detectBoard(grey)
    if numbers is None or not len(numbers):
        return Corners((), torch.zeros(0, 2, dtype=torch.float64))
    found = torch.from_numpy(np.asarray(pixels, np.float64).reshape(-1, 2) + 0.5)
    return Corners(tuple(int(number) for number in np.ravel(numbers)), found)


def _triangulate(views: Views, seen: dict[str, Corners]) -> dict[int, Tensor]:
    """Corners that two views or more show, in the views' frame; those whose rays do not meet are left out."""
    rays: dict[int, list[tuple[Tensor, Tensor]]] = {}
    for view in views.views:
        corners = seen.get(view.name)
        if corners is None or not corners.ids:
            continue
        origins, directions = pixel_rays(view, corners.pixels)
        for number, origin, direction in zip(corners.ids, origins, directions, strict=True):
            rays.setdefault(number, []).append((origin, direction))
    placed = {}
    for number, pairs in rays.items():
        try:
            point, miss, _ = meet_rays(*(torch.stack(list(part)) for part in zip(*pairs, strict=True)))
        except InputError:
            continue
        if miss < 0.02:
            placed[number] = point
    return placed


def _tag_scales(placed: dict[int, Tensor], side: float) -> list[float]:
    """Metres per unit from every tag whose four corners are placed."""
    found = []
    for tag in sorted({number // 4 for number in placed}):
        if all(4 * tag + corner in placed for corner in range(4)):
            quad = torch.stack([placed[4 * tag + corner] for corner in range(4)])
            found.append(side / float((quad - quad.roll(1, 0)).norm(dim=1).mean()))
    return found
