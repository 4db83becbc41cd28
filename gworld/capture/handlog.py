"""A robot's log beside a video: the hand's pose at the time of each picture, and the offset between the two clocks."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from gworld.capture.handeye import DEFAULTS, MIN_POSES, HandEye, HandEyeOptions, misfit, solve_hand_eye
from gworld.errors import InputError
from gworld.geometry import interpolate_transform, quat_from_matrix, rotvec_from_quat

_STRIDES = (1, 2, 4, 8)


@dataclass(frozen=True)
class HandLog:
    """Recorded poses of a hand: times [T] seconds, rising; base_from_hand [T,4,4] metres."""

    times: Float[Tensor, " T"]
    base_from_hand: Float[Tensor, "T 4 4"]

    def __post_init__(self) -> None:
        if len(self.times) != len(self.base_from_hand) or len(self.times) < 2:
            raise InputError(
                f"a hand log has {len(self.times)} times and {len(self.base_from_hand)} poses; two or more, in equal "
                "numbers, are needed."
            )
        if not bool((self.times[1:] > self.times[:-1]).all()):
            raise InputError("the times of a hand log do not rise; each entry must be later than the one before it.")


def hand_at_times(log: HandLog, times: Float[Tensor, " N"], longest_gap: float = 0.5) -> Float[Tensor, "N 4 4"]:
    """`base_from_hand [N,4,4]` float64 at any times, between neighbours straight and along the shortest arc.

    NaN before the first entry, after the last, and inside gaps longer than `longest_gap` seconds.
    """
    known, poses = log.times.double(), log.base_from_hand.double()
    after = torch.searchsorted(known, times.double()).clamp(1, len(known) - 1)
    before = after - 1
    length = known[after] - known[before]
    weight = (times.double() - known[before]) / length
    found = interpolate_transform(poses[before], poses[after], weight.clamp(0, 1))
    outside = (weight < -1e-6) | (weight > 1 + 1e-6) | (length > longest_gap)
    return torch.where(outside[:, None, None], torch.nan, found)


def solve_hand_eye_log(
    world_from_camera: Float[Tensor, "N 4 4"],
    times: Float[Tensor, " N"],
    log: HandLog,
    options: HandEyeOptions = DEFAULTS,
    max_offset: float = 0.0,
    hand_from_camera: Float[Tensor, "4 4"] | None = None,
) -> HandEye:
    """`solve_hand_eye` with a log on another clock: an offset of up to `max_offset` seconds is searched.

    First by how far camera and hand turn between pictures, which needs neither mount nor scale; then, around that, by
    what the solved mount leaves over. With `max_offset` 0 the clocks are taken as one. Raises as `solve_hand_eye`.
    """
    offset = find_time_offset(world_from_camera, times, log, max_offset) if max_offset > 0 else 0.0
    if max_offset > 0:
        from scipy.optimize import minimize_scalar

        step = _step(times, log)

        def left_over(shift: float) -> float:
            try:
                return misfit(world_from_camera, hand_at_times(log, times.double() + shift), options, hand_from_camera)
            except InputError:
                return 1.0

        bounds = (offset - 1.5 * step, offset + 1.5 * step)
        best = minimize_scalar(left_over, bounds=bounds, method="bounded", options={"xatol": step / 50, "maxiter": 12})
        offset = float(best.x) if best.fun < left_over(offset) else offset
    hands = hand_at_times(log, times.double() + offset)
    return replace(solve_hand_eye(world_from_camera, hands, options, hand_from_camera), time_offset=offset)


def find_time_offset(
    world_from_camera: Float[Tensor, "N 4 4"], times: Float[Tensor, " N"], log: HandLog, max_offset: float
) -> float:
    """Seconds to add to the pictures' times so that camera and hand turn by equal angles between pictures.

    The angle of a relative rotation is the same in every frame, so neither mount nor scale is needed. Raises
    `InputError` where the log covers too few pictures at every offset.
    """
    step = _step(times, log) / 4
    offsets = torch.arange(-int(max_offset / step), int(max_offset / step) + 1) * step
    turns = [(stride, _angles(world_from_camera.double(), stride)) for stride in _STRIDES if stride < len(times)]
    costs = []
    for offset in offsets.tolist():
        hands = hand_at_times(log, times + offset)
        gaps = torch.cat([(_angles(hands, stride) - turn).abs() for stride, turn in turns])
        known = gaps[torch.isfinite(gaps)]
        enough = len(known) > 0.5 * len(gaps)
        costs.append(float(known.clamp(max=float(known.median()) * 4 + 1e-9).mean()) if enough else float("inf"))
    best = min(range(len(costs)), key=lambda row: (costs[row], abs(float(offsets[row]))))
    if costs[best] == float("inf") or len(times) < MIN_POSES:
        raise InputError(
            f"the log covers fewer than half of the pictures at every offset up to {max_offset:g} s. Check that log "
            "and video are of one episode."
        )
    return float(offsets[best])


def _step(times: Tensor, log: HandLog) -> float:
    """The typical time between pictures, or between entries of the log where those are further apart."""
    ordered = torch.sort(times.double()).values
    return max(float(ordered.diff().median()), float(log.times.double().diff().median()), 1e-3)


def _angles(poses: Tensor, stride: int) -> Tensor:
    """Angles (radians) by which poses turn over `stride` rows; NaN where a pose is."""
    relative = poses[:-stride, :3, :3].transpose(1, 2) @ poses[stride:, :3, :3]
    bad = ~torch.isfinite(relative).all((1, 2))
    filled = torch.where(bad[:, None, None], torch.eye(3, dtype=relative.dtype), relative)
    return torch.where(bad, torch.nan, rotvec_from_quat(quat_from_matrix(filled)).norm(dim=1))
