"""Standing cameras brought to agree on the static scene: patches of a common plane, matched between one picture each.

Every picture is laid flat on the plane; where two cameras disagree about their poses, their flat pictures are shifted
against each other. First one shift for a pair, from the sum of all patches' correlations (a lattice of holes alone
would fit at every pitch), then one per patch, from which all poses are solved together.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float
from numpy import ndarray
from torch import Tensor

from gworld.errors import InputError
from gworld.geometry import se3_exp
from gworld.reconstruct.motion_dots import find_dots, shared_places
from gworld.reconstruct.motion_lens import FREE, bent, unbent
from gworld.scene.cameras import Cameras

LEAST_CORRELATION = 0.55
FEWEST_MATCHES = 8
ROUNDS = 3
NOISE = 0.5
"""Pixels: how exactly a patch is found."""
LARGEST_PICTURE = 1400
DOT_ROUNDS = 2
DOT_NOISE = 0.25
"""Pixels: how exactly a dot is found."""
LENS_SIGMA, LENS_ROUNDS = (0.1, 0.1, 0.0005, 0.0005, 0.1, 0.003, 0.003), 6
"""How far off a lens is believed to be (its numbers as in `motion_lens`, its middle in widths of the picture: what a
calibration knows best); rounds with finer patches."""


@dataclass(frozen=True)
class RigOptions:
    """How standing cameras are brought to agree on the static scene."""

    plane: tuple[float, float, float, float] = (0.0, 0.0, 1.0, 0.0)
    """The static plane a b c d, a x + b y + c z + d = 0 (metres) with a unit normal: a table, a floor."""
    reach: float = 0.03
    """How far flat pictures of two cameras may be shifted against each other (metres)."""
    patch: float = 0.12
    """Side of a matched patch (metres)."""
    distance_sigma: float = 0.02
    """How far off a given camera position is believed to be (metres)."""
    angle_sigma: float = 0.02
    """How far off a given camera rotation is believed to be (radians)."""
    lens: bool = False
    """Find the lenses too, which a calibration without distortion leaves out: bending, and the picture's middle."""
    dots: float = 0.0
    """Spacing of a square lattice of dark dots on the plane (the holes of an optical table; metres), 0 for none: with
    it, distances and lenses are much surer."""


@dataclass(frozen=True)
class RigFit:
    """Refined cameras, lenses [C,7] (as in `motion_lens`; zeros unless asked for), and how well the flat pictures
    agree: matches, median disagreement before and after (pixels)."""

    cameras: Cameras
    lenses: Float[Tensor, "C 7"]
    matches: int
    before: float
    after: float


@dataclass(frozen=True, eq=False)
class _Guess:
    """K [C,3,3], world_from_camera [C,4,4] and lenses [C,7] as far as they are known."""

    K: Tensor
    poses: Tensor
    lenses: Tensor


@dataclass(frozen=True)
class _Match:
    """Pixels [M,2] of two cameras that show the same points of the plane."""

    first: int
    second: int
    pixels: tuple[ndarray, ndarray]


def refine_rig(pictures: Float[ndarray, "C H W 3"], cameras: Cameras, options: RigOptions = RigOptions()) -> RigFit:
    """Refine the poses of standing cameras from one picture each, all of one moment.

    What stands above the plane, or moves, is left out by its poor correlation and by a robust solution. Poses stay
    near the given ones where nothing binds them: the frame of the world is theirs. Raises `InputError` when the plane
    is not seen by two cameras.
    """
    guess = _Guess(cameras.K.double(), cameras.world_from_camera.double(), torch.zeros(len(cameras), FREE).double())
    before, matches = np.inf, list[_Match]()
    # Dots tell the lenses so much better than patches that these are left to find the poses alone.
    rough = replace(options, lens=options.lens and not options.dots)
    for number in range(LENS_ROUNDS if rough.lens else ROUNDS):
        fine = replace(rough, patch=options.patch / 2) if number >= ROUNDS else rough
        matches = _match(pictures, cameras, guess, fine, options.reach if number == 0 else fine.patch / 12)
        if sum(len(match.pixels[0]) for match in matches) < FEWEST_MATCHES:
            raise InputError(
                "the cameras share too little of the plane to be refined on it. Give the plane of a textured table or "
                "floor that at least two cameras see, or leave the cameras as they are."
            )
        if number == 0:
            before = _disagreement(matches, guess, options.plane)
        guess = _solve(matches, cameras, guess, rough)
    if options.dots:
        guess = _solve_dots(pictures, cameras, guess, options)
        matches = _match(pictures, cameras, guess, options, options.patch / 12)
    after = _disagreement(matches, guess, options.plane)
    count = sum(len(match.pixels[0]) for match in matches)
    refined = replace(cameras, world_from_camera=guess.poses.to(cameras.world_from_camera))
    return RigFit(refined, guess.lenses, count, before, after)


def plane_points(
    pixels: Float[Tensor, "M 2"], K: Float[Tensor, "3 3"], world_from_camera: Float[Tensor, "4 4"], plane: Tensor
) -> Float[Tensor, "M 3"]:
    """Where the rays through pixels meet a plane `[4]`; points behind the camera come out with a negative depth."""
    local = torch.stack([(pixels[:, 0] - K[0, 2]) / K[0, 0], (pixels[:, 1] - K[1, 2]) / K[1, 1]], dim=-1)
    rays = torch.cat([local, torch.ones_like(local[:, :1])], dim=-1) @ world_from_camera[:3, :3].T
    eye = world_from_camera[:3, 3]
    return eye - rays * ((plane[:3] @ eye + plane[3]) / (rays @ plane[:3]))[:, None]


def _match(pictures: ndarray, cameras: Cameras, guess: _Guess, options: RigOptions, reach: float) -> list[_Match]:
    """Patches of each pair of cameras whose flat pictures correlate; the pair's own shift is searched first."""
    sheet, pitch = _sheet(cameras, guess.poses, options.plane)
    flat, seen, pixels = zip(*(_flatten(pictures[c], guess, c, sheet) for c in range(len(cameras))), strict=True)
    side, far = max(8, round(options.patch / pitch)), max(2, round(reach / pitch))
    matches = []
    for first in range(len(cameras)):
        for second in range(first + 1, len(cameras)):
            centres, maps = _correlate(flat[first], flat[second], seen[first] & seen[second], side, far)
            if not len(centres):
                continue
            top = np.unravel_index(np.clip(maps, 0, 1).mean(0).argmax(), maps.shape[1:])
            near = max(2, round(options.patch / 15 / pitch))
            offsets, score = _peaks(maps, (int(top[0]), int(top[1])), near)
            good = score > LEAST_CORRELATION
            here = centres[good]
            there = here + offsets[good] - far
            matches.append(_Match(first, second, (_sample(pixels[first], here), _sample(pixels[second], there))))
    return matches


def _sheet(cameras: Cameras, poses: Tensor, plane: tuple[float, ...]) -> tuple[Float[ndarray, "R S 3"], float]:
    """A grid of points on the part of the plane that two cameras see, and its pitch: about a pixel's size there."""
    level = torch.tensor(plane, dtype=torch.float64)
    grid = torch.meshgrid(
        *(torch.linspace(0.5, n - 0.5, 13, dtype=torch.float64) for n in (cameras.width, cameras.height)), indexing="xy"
    )
    pixels = torch.stack([part.flatten() for part in grid], dim=-1)
    found, sizes = [], []
    for K, pose in zip(cameras.K.double(), poses, strict=True):
        points = plane_points(pixels, K, pose, level)
        depth = (points - pose[:3, 3]) @ pose[:3, 2]
        near = (depth > 0) & (depth < 3 * depth[depth > 0].min() if bool((depth > 0).any()) else depth > 0)
        found.append(points[near])
        sizes.append(depth[near] / K[0, 0])
    if not all(map(len, found)):
        raise InputError("a camera does not see the plane on which the cameras are to be refined. Check its sign.")
    pitch = 0.8 * float(torch.cat(sizes).median())
    normal, axes = level[:3], _axes(level)
    flat = [points @ axes.T for points in found]
    low = torch.stack([part.amin(0) for part in flat]).sort(dim=0).values[1 if len(flat) > 1 else 0]
    high = torch.stack([part.amax(0) for part in flat]).sort(dim=0).values[-2 if len(flat) > 1 else -1]
    pitch = max(pitch, float((high - low).amax()) / LARGEST_PICTURE)
    steps = [torch.arange(float(a), float(b), pitch, dtype=torch.float64) for a, b in zip(low, high, strict=True)]
    if min(map(len, steps)) < 4:
        raise InputError("the cameras see different parts of the plane. Give one that they share.")
    u, v = torch.meshgrid(*steps, indexing="ij")
    return (u[..., None] * axes[0] + v[..., None] * axes[1] - normal * level[3]).numpy(), pitch


def _flatten(picture: ndarray, guess: _Guess, camera: int, sheet: ndarray) -> tuple[ndarray, ndarray, ndarray]:
    """A picture laid on the sheet (float32, 0..1), where it is seen, and the pixel of each point."""
    import cv2

    K, pose = guess.K[camera], guess.poses[camera]
    local = (sheet - pose[:3, 3].numpy()) @ pose[:3, :3].numpy()
    image = local @ K.numpy().T
    flat = image[..., :2] / np.where(np.abs(image[..., 2:]) < 1e-9, 1e-9, image[..., 2:])
    pixels = bent(torch.from_numpy(flat), K, guess.lenses[camera]).numpy()
    height, width = picture.shape[:2]
    seen = (local[..., 2] > 0) & (pixels > 0.5).all(-1) & (pixels < (width - 0.5, height - 0.5)).all(-1)
    where = np.where(seen[..., None], pixels - 0.5, -1).astype(np.float32)
    return cv2.remap(picture.astype(np.float32), where[..., 0], where[..., 1], cv2.INTER_LINEAR), seen, pixels


def _correlate(
    first: ndarray, second: ndarray, seen: ndarray, side: int, far: int
) -> tuple[Float[ndarray, "M 2"], Float[ndarray, "M D D"]]:
    """Correlation of patches of the first picture with the second one, shifted by up to `far` each way."""
    import cv2

    centres, maps, half = [], [], side // 2
    for row in range(half + far, seen.shape[0] - half - far, half):
        for column in range(half + far, seen.shape[1] - half - far, half):
            rows, columns = slice(row - half, row + half), slice(column - half, column + half)
            wide = (slice(row - half - far, row + half + far), slice(column - half - far, column + half + far))
            if not seen[wide].all() or first[rows, columns].std() < 0.01:
                continue
            centres.append((row, column))
            maps.append(cv2.matchTemplate(second[wide], first[rows, columns], cv2.TM_CCOEFF_NORMED))
    return np.array(centres, float).reshape(-1, 2), np.array(maps).reshape(-1, 2 * far + 1, 2 * far + 1)


def _peaks(maps: ndarray, about: tuple[int, int], near: int) -> tuple[Float[ndarray, "M 2"], Float[ndarray, " M"]]:
    """Each map's peak around one shift, to a fraction of a step, and its height (0 where it lies on the rim)."""
    offsets, score = np.zeros((len(maps), 2)), np.zeros(len(maps))
    last = maps.shape[1] - 1
    low = [max(0, place - near) for place in about]
    for index, full in enumerate(maps):
        part = full[low[0] : about[0] + near + 1, low[1] : about[1] + near + 1]
        row, column = (int(a) + b for a, b in zip(np.unravel_index(part.argmax(), part.shape), low, strict=True))
        if not (0 < row < last and 0 < column < last):
            continue
        if abs(row - about[0]) == near or abs(column - about[1]) == near:
            continue
        for axis, trio in enumerate((full[row - 1 : row + 2, column], full[row, column - 1 : column + 2])):
            bend = trio[0] - 2 * trio[1] + trio[2]
            offsets[index, axis] = (row, column)[axis] + (0.5 * (trio[0] - trio[2]) / bend if bend < 0 else 0.0)
        score[index] = full[row, column]
    return offsets, score


def _sample(values: ndarray, places: ndarray) -> ndarray:
    """Bilinear values at fractional rows and columns."""
    corner = np.clip(np.floor(places).astype(int), 0, np.array(values.shape[:2]) - 2)
    weight = (places - corner)[..., None]
    row, column = corner.T
    top = values[row, column] * (1 - weight[:, 1]) + values[row, column + 1] * weight[:, 1]
    low = values[row + 1, column] * (1 - weight[:, 1]) + values[row + 1, column + 1] * weight[:, 1]
    return top * (1 - weight[:, 0]) + low * weight[:, 0]


def _gaps(matches: list[_Match], guess: _Guess, plane: tuple[float, ...]) -> Float[Tensor, "M 2"]:
    """Each match carried by the plane from one camera to the other, minus where it was found there (pixels).

    Pixels, not metres on the plane: those shrink when all cameras come nearer to it.
    """
    level, gaps = torch.tensor(plane, dtype=torch.float64), []
    for match in matches:
        ends = [
            (camera, torch.from_numpy(pixels))
            for camera, pixels in zip((match.first, match.second), match.pixels, strict=True)
        ]
        for (one, here), (two, there) in (ends, ends[::-1]):
            points = plane_points(unbent(here, guess.K[one], guess.lenses[one]), guess.K[one], guess.poses[one], level)
            local = (points - guess.poses[two][:3, 3]) @ guess.poses[two][:3, :3] @ guess.K[two].T
            gaps.append(bent(local[:, :2] / local[:, 2:], guess.K[two], guess.lenses[two]) - there)
    return torch.cat(gaps)


def _disagreement(matches: list[_Match], guess: _Guess, plane: tuple[float, ...]) -> float:
    return float(_gaps(matches, guess, plane).norm(dim=-1).median())


def _solve(matches: list[_Match], cameras: Cameras, guess: _Guess, options: RigOptions) -> _Guess:
    def residual(guess: _Guess, _: Tensor) -> ndarray:
        return _gaps(matches, guess, options.plane).numpy().ravel()

    return _least(residual, cameras, guess, options)


def _solve_dots(pictures: ndarray, cameras: Cameras, guess: _Guess, options: RigOptions) -> _Guess:
    """Poses and lenses at which the dots of all cameras are one lattice; raises `InputError` where there is none."""
    level = torch.tensor(options.plane, dtype=torch.float64)
    axes = _axes(level)
    pixels = [torch.from_numpy(find_dots(picture)) for picture in pictures]
    for _ in range(DOT_ROUNDS):
        flat = []
        for camera, spots in enumerate(pixels):
            K, pose = guess.K[camera], guess.poses[camera]
            points = plane_points(unbent(spots, K, guess.lenses[camera]), K, pose, level)
            ahead = ((points - pose[:3, 3]) @ pose[:3, 2] > 0)[:, None]
            flat.append(torch.where(ahead, points @ axes.T, 1e3).numpy())
        found, placed = shared_places(flat, options.dots)
        if sum(len(rows) > 0 for rows, _ in found) < 2:
            raise InputError(
                f"no lattice of dots {1000 * options.dots:g} mm apart is seen by two cameras. Check --rig.dots, or "
                "leave it out."
            )

        def residual(guess: _Guess, shift: Tensor, found: list = found, placed: Tensor = placed) -> ndarray:
            angle, gaps = placed[0] + shift[0] / 10, []
            turn = torch.stack([angle.cos(), angle.sin(), -angle.sin(), angle.cos()]).reshape(2, 2) * options.dots
            for camera, (rows, places) in enumerate(found):
                spots = torch.from_numpy(places) @ turn + placed[1:] + shift[1:] / 100
                local = (spots @ axes - level[:3] * level[3] - guess.poses[camera][:3, 3]) @ guess.poses[camera][:3, :3]
                local = local @ guess.K[camera].T
                shown = bent(local[:, :2] / local[:, 2:], guess.K[camera], guess.lenses[camera])
                gaps.append((shown - pixels[camera][rows]).numpy().ravel())
            return np.concatenate(gaps)

        guess = _least(residual, cameras, guess, options, 3, DOT_NOISE)
    return guess


def _axes(level: Tensor) -> Float[Tensor, "2 3"]:
    """Two directions along a plane."""
    normal = level[:3]
    across = torch.linalg.cross(normal, torch.eye(3, dtype=torch.float64)[int(normal.abs().argmin())])
    return torch.stack([across / across.norm(), torch.linalg.cross(normal, across / across.norm())])


def _least(
    gaps: Callable[[_Guess, Tensor], ndarray],
    cameras: Cameras,
    guess: _Guess,
    options: RigOptions,
    more: int = 0,
    noise: float = NOISE,
) -> _Guess:
    """The poses, and lenses if they are to be found, of the least gaps (pixels), near the given ones; `more` numbers
    are free."""
    from scipy.optimize import least_squares

    sigma = torch.tensor([options.distance_sigma] * 3 + [options.angle_sigma] * 3, dtype=torch.float64)
    lens_sigma = torch.tensor(LENS_SIGMA).double()
    lens_sigma[2:4] *= cameras.width
    given, count = cameras.world_from_camera.double(), 6 * len(cameras)
    lenses = FREE * len(cameras) if options.lens else 0

    def moved(free: Tensor) -> _Guess:
        bend = free[count : count + lenses].reshape(-1, FREE) * lens_sigma if options.lens else guess.lenses
        return _Guess(guess.K, given @ se3_exp(free[:count].reshape(-1, 6) * sigma), bend)

    def residual(flat: ndarray) -> ndarray:
        free = torch.from_numpy(flat)
        off = gaps(moved(free), free[count + lenses :]) / noise
        # least_squares is robust on each number; what binds the poses to the given ones must stay quadratic.
        return np.concatenate([np.sign(off) * np.sqrt(2 * (np.sqrt(1 + np.square(off) / 4) - 1)) * 2, flat])

    found = least_squares(residual, np.zeros(count + lenses + more), x_scale=1.0, max_nfev=60)
    return moved(torch.from_numpy(found.x))
