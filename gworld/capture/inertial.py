"""An IMU beside a video: which way is down, how long a metre is, the clock's offset, and how the sensor is mounted."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from jaxtyping import Float
from numpy import ndarray
from torch import Tensor

from gworld.capture.handlog import HandLog, find_time_offset, hand_at_times
from gworld.errors import InputError
from gworld.geometry import matrix_from_quat, quat_from_matrix, quat_from_rotvec, rotvec_from_quat, transform_from

GRAVITY = 9.80665
MOST_MOUNT = 0.1
"""Radians to which the camera's turning must tell how the IMU is mounted."""
_MOST_GAP = 1.0  # seconds between pictures over which the gyroscope carries the turn
_STRIDES = (1, 2, 4, 8)
_SPANS = (0.4, 0.8, 1.6)  # seconds on either side of the instant whose acceleration is compared
_ARM, _BIAS = 0.15, 0.1  # metres from lens to sensor, m/s^2 of constant error: how large they may well be
_BLOCKS = 5


@dataclass(frozen=True)
class ImuLog:
    """Readings in the sensor's axes: times [T] seconds, rising; turn [T,3] rad/s; force [T,3] m/s^2, at rest up."""

    times: Float[Tensor, " T"]
    turn: Float[Tensor, "T 3"]
    force: Float[Tensor, "T 3"]

    def __post_init__(self) -> None:
        if not len(self.times) == len(self.turn) == len(self.force) or len(self.times) < 2:
            raise InputError(
                f"an IMU's log has {len(self.times)} times, {len(self.turn)} rates of turn and {len(self.force)} "
                "accelerations; two or more, in equal numbers, are needed."
            )
        if not bool((self.times[1:] > self.times[:-1]).all()):
            raise InputError("the times of an IMU's log do not rise; each entry must be later than the one before it.")


@dataclass(frozen=True)
class Inertial:
    """What an IMU tells of posed pictures.

    up [3] unit, in the frame of the poses, float64; metres per unit of the poses; `scale_spread`, its relative
    standard error by leaving out each fifth of the film in turn, so that drift counts; `time_offset` seconds are added
    to the pictures' times to find the readings; camera_from_imu [3,3]; `turn_rms` radians is what is left between the
    gyroscope's turns and the poses', `lean` radians the standard error of up.
    """

    up: Float[Tensor, " 3"]
    metres: float
    scale_spread: float
    time_offset: float
    camera_from_imu: Float[Tensor, "3 3"]
    turn_rms: float
    lean: float


def align_imu(
    world_from_camera: Float[Tensor, "N 4 4"], times: Float[Tensor, " N"], log: ImuLog, max_offset: float = 0.0
) -> Inertial:
    """Find gravity, scale, clock offset and mount that make a film's poses and an IMU's readings one motion.

    The gyroscope's turns against the poses' give offset, mount and its own bias. Then, for the film's times t0 < t1 <
    t2, the difference of mean velocities after and before t1 is the acceleration's integral under a hat from t0 over t1
    to t2; with the readings turned into the world that is linear in scale, gravity (of 9.81 m/s^2), the
    accelerometer's bias and the lever arm from lens to sensor. With `max_offset` 0 the clocks are taken as one. Raises
    `InputError` where log and film do not overlap, or the camera turns about one axis only, which leaves the mount
    open.
    """
    order = torch.argsort(times.double())
    poses, instants = world_from_camera.double()[order], times.double()[order]
    shortest = float(log.times.double().diff().median())
    if float(instants[-1] - instants[0]) < 2 * _SPANS[0] or shortest > 0.1:
        raise InputError(
            f"the posed film lasts {float(instants[-1] - instants[0]):.2f} s and the IMU reads every {shortest:.3f} s; "
            f"{2 * _SPANS[0]:g} s or more and 10 readings a second or more are needed."
        )
    offset = find_time_offset(poses, instants, _turned(log, np.zeros(3)), max_offset) if max_offset > 0 else 0.0
    mount, offset = _fit_mount(poses, instants, log, offset, search=max_offset > 0)
    hats = _hats(poses, instants, log, mount, offset)
    scale, up = _solve(hats)
    edges = np.linspace(float(instants[0]), float(instants[-1]), _BLOCKS + 1)
    without = [_solve(hats.outside(*block)) for block in pairwise(edges.tolist())]
    spread = _jackknife(np.array([[one] for one, _ in without])) / abs(scale)
    if scale <= 0:
        raise InputError(
            "the IMU's accelerations are not those of the film's path: the best scale is not above 0. Check that both "
            "are of one recording, and that the camera is moved to and fro, not only turned."
        )
    lean = _jackknife(np.array([one for _, one in without]))
    return Inertial(torch.from_numpy(up), scale, spread, offset, torch.from_numpy(mount.turn), mount.rms, lean)


@dataclass(frozen=True)
class _Mount:
    """camera_from_imu [3,3], the gyroscope's constant error [3] rad/s, and what is left of the turns, radians."""

    turn: ndarray
    bias: ndarray
    rms: float


@dataclass(frozen=True)
class _Hats:
    """The equations `columns @ unknowns = known`, [M,3,10] and [M,3], one of each instant and span.

    Unknowns: scale, lever arm in camera axes, the accelerometer's error in its own, gravity. `middle` [M] seconds,
    `span` [M] the index of the span.
    """

    columns: ndarray
    known: ndarray
    middle: ndarray
    span: ndarray

    def outside(self, begin: float, end: float) -> _Hats:
        """Those whose instant lies outside a stretch of time."""
        kept = (self.middle < begin) | (self.middle > end)
        return _Hats(self.columns[kept], self.known[kept], self.middle[kept], self.span[kept])


def _turned(log: ImuLog, bias: ndarray) -> HandLog:
    """The sensor's orientation by its gyroscope alone, from its first reading on."""
    rates = log.turn.double() - torch.from_numpy(bias)
    steps = 0.5 * (rates[1:] + rates[:-1]) * log.times.double().diff()[:, None]
    turns = torch.eye(3, dtype=torch.float64).repeat(len(log.times), 1, 1)
    for row, step in enumerate(matrix_from_quat(quat_from_rotvec(steps)), 1):
        turns[row] = turns[row - 1] @ step
    return HandLog(log.times.double(), transform_from(turns, torch.zeros(len(turns), 3, dtype=torch.float64)))


def _fit_mount(poses: Tensor, times: Tensor, log: ImuLog, offset: float, search: bool) -> tuple[_Mount, float]:
    """Mount and gyroscope's error by the turns between pictures, and the clock's offset to a fraction of a frame."""
    plain = _turned(log, np.zeros(3))

    def at(shift: float) -> _Mount:
        return _mount_at(poses, times, hand_at_times(plain, times + shift))

    if search:
        from scipy.optimize import minimize_scalar

        step = max(float(times.diff().median()), 0.02)
        bounds = (offset - step, offset + step)
        offset = float(minimize_scalar(lambda shift: at(shift).rms, bounds=bounds, method="bounded").x)
    return at(offset), offset


def _mount_at(poses: Tensor, times: Tensor, hands: Tensor) -> _Mount:
    """Turn and constant error that take the gyroscope's turns to the camera's; pairs that do not fit count little."""
    seen, felt, length = _turns_between(poses, times, hands)
    if len(seen) < 8:
        raise InputError(
            f"the IMU's log covers {len(seen)} turns between pictures; 8 or more are needed. Check that both are of "
            "one recording (`--frame.clock`)."
        )
    bias, weight = np.zeros(3), np.ones(len(seen))
    for _ in range(12):
        even = felt - bias * length[:, None]
        left, _, right = np.linalg.svd((seen * weight[:, None]).T @ even)
        turn = left @ np.diag([1.0, 1.0, np.linalg.det(left @ right)]) @ right
        rest = felt - seen @ turn
        bias = (weight * length) @ rest / (weight @ length**2)
        error = np.linalg.norm(rest - bias * length[:, None], axis=1)
        weight = 1 / (1 + (error / (2 * np.median(error) + 1e-9)) ** 2)
    rms = float(np.sqrt(weight @ error**2 / weight.sum()))
    open_axis = np.linalg.eigvalsh(np.eye(3) * (weight @ (seen**2).sum(1)) - (seen * weight[:, None]).T @ seen)[0]
    unsure = rms * np.sqrt(len(_STRIDES)) / np.sqrt(max(float(open_axis), 1e-12))
    if unsure > MOST_MOUNT:
        raise InputError(
            f"the camera's turning tells the IMU's mount only to {np.degrees(unsure):.0f} degrees; "
            f"{np.degrees(MOST_MOUNT):.0f} are needed. Turn the camera about two axes, or check that both are of one "
            "recording."
        )
    return _Mount(turn, bias, rms)


def _turns_between(poses: Tensor, times: Tensor, hands: Tensor) -> tuple[ndarray, ndarray, ndarray]:
    """Rotation vectors [M,3] by the poses, in camera axes, and by the gyroscope, in its own, over [M] seconds."""
    found: tuple[list[Tensor], list[Tensor], list[Tensor]] = ([], [], [])
    for stride in _STRIDES:
        if stride >= len(times):
            break
        gap = times[stride:] - times[:-stride]
        pair = [
            rotvec_from_quat(quat_from_matrix(turn[:-stride].transpose(1, 2) @ turn[stride:]))
            for turn in (poses[:, :3, :3], hands[:, :3, :3].nan_to_num())
        ]
        known = torch.isfinite(hands[:-stride, 0, 0] + hands[stride:, 0, 0]) & (gap < 4 * _MOST_GAP)
        near = known & (pair[0].norm(dim=1) < 2.0)  # beyond, the shortest arc may be the other way round
        for kept, value in zip(found, (*pair, gap), strict=True):
            kept.append(value[near])
    seen, felt, length = (torch.cat(kept).numpy() for kept in found)
    return seen, felt, length


def _hats(poses: Tensor, times: Tensor, log: ImuLog, mount: _Mount, offset: float) -> _Hats:
    """Each instant's acceleration under hats of several spans, by the poses and by the readings."""
    clock = log.times.double() - offset
    gyro = _turned(log, mount.bias)
    world_from_imu, covered = _orientation(poses, times, gyro, clock, torch.from_numpy(mount.turn))
    force = (world_from_imu @ log.force.double()[:, :, None])[:, :, 0].numpy()
    frames, instants, samples = times.numpy(), clock.numpy(), world_from_imu.numpy()
    share = np.gradient(instants)
    path = np.concatenate([poses[:, :3, 3:].numpy(), poses[:, :3, :3].numpy()], 2)
    columns, known, middle, span = [], [], [], []
    for index, half in enumerate(_SPANS):
        for row, at in enumerate(frames):
            ends = [int(np.abs(frames - (at + side)).argmin()) for side in (-half, half)]
            gaps = at - frames[ends[0]], frames[ends[1]] - at
            inside = (instants > frames[ends[0]]) & (instants < frames[ends[1]])
            if min(gaps) < 0.5 * half or max(gaps) > 1.5 * half or not inside.any() or not covered[inside].all():
                continue
            hat = np.interp(instants[inside], frames[[ends[0], row, ends[1]]], [0.0, 1.0, 0.0]) * share[inside]
            bend = (path[ends[1]] - path[row]) / gaps[1] - (path[row] - path[ends[0]]) / gaps[0]
            tilt = np.einsum("k,kij->ij", hat, samples[inside])
            columns.append(np.concatenate([bend, tilt, -hat.sum() * np.eye(3)], 1))
            known.append(hat @ force[inside])
            middle.append(at)
            span.append(index)
    if len(known) < 12:
        raise InputError(
            f"the IMU's log and the posed pictures share {len(known)} instants with pictures and readings around them; "
            "12 or more are needed. Check that both are of one recording, and keep more pictures (`--capture.count`)."
        )
    return _Hats(np.stack(columns), np.stack(known), np.array(middle), np.array(span))


def _orientation(poses: Tensor, times: Tensor, gyro: HandLog, clock: Tensor, mount: Tensor) -> tuple[Tensor, ndarray]:
    """world_from_imu [K,3,3] at the readings: the poses' turns, carried from one to the next by the gyroscope.

    What the gyroscope misses by the next pose is spread evenly. Also which readings [K] lie between near pictures.
    """
    before = torch.searchsorted(times, clock).clamp(1, len(times) - 1) - 1
    gap = times[before + 1] - times[before]
    share = (clock - times[before]) / gap
    covered = (share >= 0) & (share <= 1) & (gap <= _MOST_GAP)
    own = gyro.base_from_hand[:, :3, :3]
    shift = gyro.times[0] - clock[0]
    hands = hand_at_times(gyro, times + shift, _MOST_GAP)[:, :3, :3]
    known = torch.isfinite(hands).all((1, 2))
    hands = torch.where(known[:, None, None], hands, torch.eye(3, dtype=torch.float64))
    told = poses[:, :3, :3] @ mount
    missed = (hands[:-1].transpose(1, 2) @ hands[1:]).transpose(1, 2) @ told[:-1].transpose(1, 2) @ told[1:]
    even = rotvec_from_quat(quat_from_matrix(missed))[before] * share.clamp(0, 1)[:, None]
    turns = told[before] @ hands[before].transpose(1, 2) @ own @ matrix_from_quat(quat_from_rotvec(even))
    return turns, (covered & known[before] & known[before + 1]).numpy()


def _solve(hats: _Hats) -> tuple[float, ndarray]:
    """Scale and the unit vector up by least squares; gravity held at 9.81, spans and outliers weighed by their rest."""
    columns, known, weight = hats.columns, hats.known, np.ones(len(hats.known))
    apart = max((hats.middle.max() - hats.middle.min()) / _SPANS[0], 1.0)  # hats nearer to each other repeat themselves
    prior = np.diag([0.0] + [1 / _ARM] * 3 + [1 / _BIAS] * 3) * max(len(known) / apart, 1.0) ** 0.5
    down = -known.mean(0) / np.linalg.norm(known.mean(0))
    scale = 0.0
    for _ in range(15):
        across = np.linalg.svd(down[None])[2][1:].T * GRAVITY
        design = np.concatenate([columns[:, :, :7], columns[:, :, 7:] @ across], 2) * weight[:, None, None]
        wanted = (known - columns[:, :, 7:] @ (GRAVITY * down)) * weight[:, None]
        rows = np.concatenate([design.reshape(-1, 9), np.pad(prior, ((0, 0), (0, 2)))[1:]])
        unknown = np.linalg.lstsq(rows, np.concatenate([wanted.ravel(), np.zeros(6)]), rcond=None)[0]
        scale = float(unknown[0])
        down = down + across @ unknown[7:] / GRAVITY
        down /= np.linalg.norm(down)
        rest = np.concatenate([unknown[:7], GRAVITY * down])
        error = np.linalg.norm(known - columns @ rest, axis=1)
        for index in range(len(_SPANS)):
            of_span = hats.span == index
            usual = np.median(error[of_span]) + 1e-6 if of_span.any() else 1.0
            weight[of_span] = 1 / (usual * np.sqrt(1 + (error[of_span] / (2 * usual)) ** 2))
    return scale, -down


def _jackknife(without: ndarray) -> float:
    """The standard error of a vector [B,D] by its values without one of B blocks each."""
    count = len(without)
    return float(np.sqrt((count - 1) / count * ((without - without.mean(0)) ** 2).sum()))
