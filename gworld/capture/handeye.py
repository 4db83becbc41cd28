"""Hand-eye: where a camera sits on a robot's hand, and with it the metric scale and frame of a reconstruction.

For every picture `base_from_hand @ hand_from_camera = base_from_world(world_from_camera)` holds, where the world is a
reconstruction of unknown scale and frame, and the mount `hand_from_camera` does not change. Sources: Tsai and Lenz 1989
(the equation), Park and Martin 1994 (rotation from pairs), Andreff, Horaud and Espiau 2001 (the unknown scale is linear
beside the translations). With the scale held at 1 this is the general AX = YB, which also places a fixed camera that
sees a marker on the hand.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from gworld.capture.similarity import Similarity
from gworld.errors import InputError
from gworld.geometry import invert_transform

MIN_POSES = 6
TRIALS = 150
QUICK_TRIALS = 25
BLOCKS = 5
_ROUNDS = 4


@dataclass(frozen=True)
class HandEyeOptions:
    """How a wrist camera is related to its robot."""

    position_tolerance: float = 0.03
    """A picture whose hand lies further off than this many metres is left out."""
    rotation_tolerance: float = 0.1
    """A picture whose hand is turned further off than this many radians is left out."""
    min_turn: float = 0.035
    """The hand must turn about a second axis by at least this many radians (root mean square)."""
    min_travel: float = 0.02
    """The hand must spread over at least this many metres (root mean square)."""
    min_share: float = 0.6
    """At least this share of the pictures must agree."""
    seed: int = 0
    """Seed of the random trials."""


DEFAULTS = HandEyeOptions()


@dataclass(frozen=True)
class HandEye:
    """A solved mount: hand_from_camera [4,4] metres, float64, and the frame it implies for the reconstruction.

    `base_from_world` takes the reconstruction to the robot's base in metres; `agree` marks the N pictures that fit;
    position_rms metres and rotation_rms radians are theirs. `scale_spread` (relative) and `mount_spread` (metres) are
    standard errors by leaving out each fifth of the recording in turn, so that slow drift counts. `second_turn` is the
    hand's turning about its second axis, radians; `time_offset` seconds are added to the pictures' times to find the
    hand.
    """

    hand_from_camera: Float[Tensor, "4 4"]
    base_from_world: Similarity
    agree: Bool[Tensor, " N"]
    position_rms: float
    rotation_rms: float
    scale_spread: float
    mount_spread: float
    second_turn: float
    time_offset: float = 0.0


@dataclass(frozen=True)
class _Poses:
    """Hand rotations and positions in the base, camera rotations and positions in the world, numpy, one row each."""

    hand_turn: np.ndarray
    hand_at: np.ndarray
    camera_turn: np.ndarray
    camera_at: np.ndarray

    def rows(self, keep: np.ndarray) -> _Poses:
        return _Poses(self.hand_turn[keep], self.hand_at[keep], self.camera_turn[keep], self.camera_at[keep])


@dataclass(frozen=True)
class _Guess:
    """Mount rotation and translation; base_from_world rotation, translation and scale."""

    mount_turn: np.ndarray
    mount_at: np.ndarray
    turn: np.ndarray
    at: np.ndarray
    scale: float


def solve_hand_eye(
    world_from_camera: Float[Tensor, "N 4 4"],
    base_from_hand: Float[Tensor, "N 4 4"],
    options: HandEyeOptions = DEFAULTS,
    hand_from_camera: Float[Tensor, "4 4"] | None = None,
    fixed_scale: bool = False,
) -> HandEye:
    """Mount, scale and base frame from camera poses and the hand poses of the same moments.

    Rows with NaN in either are left out. `hand_from_camera` is given where the mount is known: then one axis of turning
    is enough. `fixed_scale` holds the scale at 1, for cameras that are metric already. Robust: random triples, then
    least squares with a soft loss over what agrees. Raises `InputError` where the motion cannot tell (turning about
    fewer than two axes, hardly any travel) and where too few pictures agree.
    """
    poses, usable = _gather(world_from_camera, base_from_hand)
    second = _check_motion(poses, options, hand_from_camera is not None)
    known = None if hand_from_camera is None else hand_from_camera.double().numpy()
    guess, agree = _fit(poses, options, known, fixed_scale, TRIALS)
    if agree.sum() < max(MIN_POSES, options.min_share * len(agree)):
        raise InputError(
            f"the camera's path and the robot's hand agree in {agree.sum()} of {len(agree)} pictures within "
            f"{options.position_tolerance * 100:g} cm; {options.min_share:.0%} are needed. Check that log and video "
            "are of one clock and one episode, and that the camera is mounted on this hand."
        )
    turns, shifts = _residuals(poses.rows(agree), guess)
    spread = _spreads(poses.rows(agree), guess, known, fixed_scale)
    marked = torch.zeros(len(usable), dtype=torch.bool)
    marked[usable] = torch.from_numpy(agree)
    mount = np.eye(4)
    mount[:3, :3], mount[:3, 3] = guess.mount_turn, guess.mount_at
    return HandEye(
        hand_from_camera=torch.from_numpy(mount),
        base_from_world=Similarity(torch.from_numpy(guess.turn), torch.from_numpy(guess.at), float(guess.scale)),
        agree=marked,
        position_rms=_rms(shifts),
        rotation_rms=_rms(turns),
        scale_spread=spread[0],
        mount_spread=spread[1],
        second_turn=second,
    )


def solve_fixed_camera(
    camera_from_marker: Float[Tensor, "N 4 4"],
    base_from_hand: Float[Tensor, "N 4 4"],
    options: HandEyeOptions = DEFAULTS,
) -> tuple[Float[Tensor, "4 4"], HandEye]:
    """`base_from_camera [4,4]` of a fixed camera that sees a marker on the hand, and the solution behind it.

    The same equation with the roles changed: the marker is the mounted thing (`HandEye.hand_from_camera` is
    hand_from_marker), and the camera's frame is the world of scale 1. Raises as `solve_hand_eye`.
    """
    found = solve_hand_eye(camera_from_marker, base_from_hand, options, fixed_scale=True)
    pose = torch.eye(4, dtype=torch.float64)
    pose[:3, :3], pose[:3, 3] = found.base_from_world.rotation, found.base_from_world.translation
    return pose, found


def hand_positions(found: HandEye, world_from_camera: Float[Tensor, "N 4 4"]) -> Float[Tensor, "N 3"]:
    """Where the reconstruction says the hand was, metres in the robot's base."""
    from gworld.capture.similarity import move_poses

    base_from_camera = move_poses(found.base_from_world, world_from_camera.double())
    return (base_from_camera @ invert_transform(found.hand_from_camera))[:, :3, 3]


def compare_distances(
    first: Float[Tensor, "N 3"], second: Float[Tensor, "N 3"], shortest: float = 0.05
) -> Float[Tensor, " P"]:
    """Relative errors of the distances between all pairs of positions that are `shortest` metres or more apart.

    `second` is the truth: the errors are | |a - b| / |A - B| - 1 |. Empty where no pair is that far apart.
    """
    rows, columns = torch.triu_indices(len(first), len(first), 1)
    truth = (second[rows] - second[columns]).norm(dim=1)
    far = truth >= shortest
    return ((first[rows] - first[columns]).norm(dim=1)[far] / truth[far] - 1).abs()


def misfit(
    world_from_camera: Float[Tensor, "N 4 4"],
    base_from_hand: Float[Tensor, "N 4 4"],
    options: HandEyeOptions = DEFAULTS,
    hand_from_camera: Float[Tensor, "4 4"] | None = None,
) -> float:
    """How badly the two motions fit under the best mount found in a few trials: 0 exact, 1 not at all.

    The mean error in tolerances, each cut at 1; rows with NaN count 1. Cheap, for searching over clocks.
    """
    poses, usable = _gather(world_from_camera, base_from_hand)
    known = None if hand_from_camera is None else hand_from_camera.double().numpy()
    guess, _ = _fit(poses, options, known, False, QUICK_TRIALS)
    return (_cost(poses, guess, options) + float((~usable).sum())) / len(usable)


def _fit(
    poses: _Poses, options: HandEyeOptions, known: np.ndarray | None, fixed_scale: bool, trials: int
) -> tuple[_Guess, np.ndarray]:
    """The best guess, refined over the pictures that agree with it until these do not change; and those."""
    guess = _best_guess(poses, options, known, fixed_scale, trials)
    agree = _agreeing(poses, guess, options)
    for _ in range(_ROUNDS):
        if agree.sum() < MIN_POSES:
            break
        guess = _refine(poses.rows(agree), guess, known, fixed_scale)
        before, agree = agree, _agreeing(poses, guess, options)
        if (agree == before).all():
            break
    return guess, agree


def _gather(world_from_camera: Tensor, base_from_hand: Tensor) -> tuple[_Poses, Tensor]:
    usable = torch.isfinite(world_from_camera).all((1, 2)) & torch.isfinite(base_from_hand).all((1, 2))
    cameras, hands = (poses[usable].double().cpu().numpy() for poses in (world_from_camera, base_from_hand))
    if len(cameras) < MIN_POSES:
        raise InputError(
            f"{len(cameras)} pictures have both a camera pose and a hand pose; {MIN_POSES} are needed. Record longer, "
            "or check that the log covers the video."
        )
    return _Poses(hands[:, :3, :3], hands[:, :3, 3], cameras[:, :3, :3], cameras[:, :3, 3]), usable


def _check_motion(poses: _Poses, options: HandEyeOptions, known: bool) -> float:
    """The hand's turning about its second axis; raises where turning or travel leave something open."""
    from scipy.spatial.transform import Rotation

    turns = Rotation.from_matrix(poses.hand_turn)
    vectors = (turns.mean().inv() * turns).as_rotvec()
    sizes = np.linalg.svd(vectors - vectors.mean(0), compute_uv=False) / np.sqrt(len(vectors))
    travel = float(np.sqrt(((poses.hand_at - poses.hand_at.mean(0)) ** 2).sum(1).mean()))
    if travel < options.min_travel:
        raise InputError(
            f"the hand spreads over {travel * 100:.1f} cm; {options.min_travel * 100:g} cm are needed to tell the "
            "scale. Move the hand further while recording."
        )
    if not known and sizes[1] < options.min_turn:
        raise InputError(
            f"the hand turns by {np.degrees(sizes[0]):.1f} degrees about one axis but {np.degrees(sizes[1]):.1f} about "
            f"any second one; {np.degrees(options.min_turn):.1f} are needed to find the camera's mount. Tilt the hand "
            "both ways while recording, or give the mount."
        )
    return float(sizes[1])


def _best_guess(
    poses: _Poses, options: HandEyeOptions, known: np.ndarray | None, fixed_scale: bool, trials: int
) -> _Guess:
    """The guess from random triples of pictures, or from the two paths alone, that fits the most pictures best."""
    random = np.random.default_rng(options.seed)
    count = len(poses.hand_at)
    guesses = [_guess_from_paths(poses, known, fixed_scale)]
    for _ in range(trials):
        rows = random.choice(count, 3, replace=False)
        guesses.append(_guess_from_turns(poses.rows(rows), known, fixed_scale))
    guesses.append(_guess_from_turns(poses, known, fixed_scale))
    whole = [guess for guess in guesses if guess is not None]
    costs = [_cost(poses, guess, options) for guess in whole]
    best = sorted(range(len(whole)), key=costs.__getitem__)[: 3 if trials == TRIALS else 1]
    refined = [_refine(poses, whole[index], known, fixed_scale) for index in best]
    return min([whole[best[0]], *refined], key=lambda guess: _cost(poses, guess, options))


def _guess_from_turns(poses: _Poses, known: np.ndarray | None, fixed_scale: bool) -> _Guess | None:
    """Rotation of the mount from the relative turns to the first picture, then all lengths by linear least squares."""
    from scipy.spatial.transform import Rotation

    if known is not None:
        mount = known[:3, :3]
    else:
        hand = Rotation.from_matrix(poses.hand_turn[0].T @ poses.hand_turn[1:]).as_rotvec()
        camera = Rotation.from_matrix(poses.camera_turn[0].T @ poses.camera_turn[1:]).as_rotvec()
        sizes = np.linalg.svd(hand, compute_uv=False)
        if sizes[1] < 1e-2:
            return None
        mount = _nearest_rotation(hand.T @ camera)
    turn = _nearest_rotation(np.einsum("nij,jk,nlk->il", poses.hand_turn, mount, poses.camera_turn))
    return _solve_lengths(poses, mount, turn, known, fixed_scale)


def _guess_from_paths(poses: _Poses, known: np.ndarray | None, fixed_scale: bool) -> _Guess | None:
    """World rotation from the shapes of the two paths (the lever of the mount neglected), then as above."""
    p, q = poses.camera_at - poses.camera_at.mean(0), poses.hand_at - poses.hand_at.mean(0)
    turn = _nearest_rotation(q.T @ p)
    mount = _nearest_rotation(np.einsum("nji,jk,nkl->il", poses.hand_turn, turn, poses.camera_turn))
    return _solve_lengths(poses, mount if known is None else known[:3, :3], turn, known, fixed_scale)


def _solve_lengths(
    poses: _Poses, mount: np.ndarray, turn: np.ndarray, known: np.ndarray | None, fixed_scale: bool
) -> _Guess | None:
    """Mount translation, scale and base translation: R_hand t_mount - s R c - t = -t_hand, linear in all three."""
    count = len(poses.hand_at)
    moved = poses.camera_at @ turn.T
    right = -poses.hand_at.copy()
    columns = [poses.hand_turn, -np.tile(np.eye(3), (count, 1, 1)), -moved[:, :, None]]
    if fixed_scale:
        right += moved
        columns.pop()
    if known is not None:
        right -= poses.hand_turn @ known[:3, 3]
        columns.pop(0)
    matrix = np.concatenate(columns, axis=2).reshape(3 * count, -1)
    solution = np.linalg.lstsq(matrix, right.reshape(-1), rcond=1e-9)[0].tolist()
    scale = 1.0 if fixed_scale else solution.pop()
    at = np.array(solution[-3:])
    if not scale > 1e-9:
        return None
    return _Guess(mount, np.array(solution[:3]) if known is None else known[:3, 3], turn, at, scale)


def _residuals(poses: _Poses, guess: _Guess) -> tuple[np.ndarray, np.ndarray]:
    """Rotation vectors [N,3] (radians) and positions [N,3] (metres) by which the two sides differ."""
    from scipy.spatial.transform import Rotation

    left = poses.hand_turn @ guess.mount_turn
    turns = Rotation.from_matrix(np.einsum("ij,njk,nlk->nil", guess.turn, poses.camera_turn, left)).as_rotvec()
    shifts = poses.hand_turn @ guess.mount_at + poses.hand_at - guess.scale * poses.camera_at @ guess.turn.T - guess.at
    return turns, shifts


def _errors(poses: _Poses, guess: _Guess, options: HandEyeOptions) -> np.ndarray:
    """How far each picture is off, in tolerances: the worse of turn and position."""
    turns, shifts = _residuals(poses, guess)
    return np.maximum(
        np.linalg.norm(turns, axis=1) / options.rotation_tolerance,
        np.linalg.norm(shifts, axis=1) / options.position_tolerance,
    )


def _agreeing(poses: _Poses, guess: _Guess, options: HandEyeOptions) -> np.ndarray:
    return _errors(poses, guess, options) < 1.0


def _cost(poses: _Poses, guess: _Guess, options: HandEyeOptions) -> float:
    return float(np.minimum(_errors(poses, guess, options), 1.0).sum())


def _refine(poses: _Poses, guess: _Guess, known: np.ndarray | None, fixed_scale: bool) -> _Guess:
    """Least squares with a soft loss over rotations and lengths, each weighed by its own spread."""
    from scipy.optimize import least_squares
    from scipy.spatial.transform import Rotation

    turns, shifts = _residuals(poses, guess)
    sizes = max(float(np.median(np.abs(turns))) * 1.5, 1e-4), max(float(np.median(np.abs(shifts))) * 1.5, 1e-5)
    free = np.ones(13, bool)
    free[:6], free[12] = known is None, not fixed_scale

    def moved(step: np.ndarray) -> _Guess:
        whole = np.zeros(13)
        whole[free] = step
        turn_mount, turn = Rotation.from_rotvec(whole[0:3]).as_matrix(), Rotation.from_rotvec(whole[6:9]).as_matrix()
        return replace(
            guess,
            mount_turn=guess.mount_turn @ turn_mount,
            mount_at=guess.mount_at + whole[3:6],
            turn=turn @ guess.turn,
            at=guess.at + whole[9:12],
            scale=guess.scale * float(np.exp(np.clip(whole[12], -20, 20))),
        )

    def errors(step: np.ndarray) -> np.ndarray:
        turned, shifted = _residuals(poses, moved(step))
        return np.concatenate([turned.ravel() / sizes[0], shifted.ravel() / sizes[1]])

    return moved(least_squares(errors, np.zeros(int(free.sum())), loss="soft_l1", x_scale="jac", max_nfev=50).x)


def _spreads(poses: _Poses, guess: _Guess, known: np.ndarray | None, fixed_scale: bool) -> tuple[float, float]:
    """Standard errors of scale (relative) and mount (metres) by the jackknife over blocks of time."""
    count = len(poses.hand_at)
    block = np.arange(count) * BLOCKS // count
    left = [_refine(poses.rows(block != number), guess, known, fixed_scale) for number in range(BLOCKS)]
    scales = np.array([one.scale for one in left]) / guess.scale
    mounts = np.stack([one.mount_at for one in left])
    factor = (BLOCKS - 1) / BLOCKS
    return (
        float(np.sqrt(factor * ((scales - scales.mean()) ** 2).sum())),
        float(np.sqrt(factor * ((mounts - mounts.mean(0)) ** 2).sum())),
    )


def _nearest_rotation(matrix: np.ndarray) -> np.ndarray:
    """The rotation R that maximises trace(R^T matrix)."""
    left, _, right = np.linalg.svd(matrix)
    signs = np.diag([1.0, 1.0, np.sign(np.linalg.det(left @ right))])
    return left @ signs @ right


def _rms(vectors: np.ndarray) -> float:
    return float(np.sqrt((vectors**2).sum(1).mean()))
