"""The world's frame: +Z up and, where anything tells it, metres: a robot's log, an IMU, a length, a depth sensor."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from gworld.capture.handeye import compare_distances, hand_positions
from gworld.capture.handlog import HandLog, hand_at_times, solve_hand_eye_log
from gworld.capture.inertial import ImuLog, Inertial, align_imu
from gworld.capture.scale import parse_length, scale_from_depth, scale_from_length
from gworld.capture.similarity import Similarity, apply_similarity
from gworld.capture.upright import estimate_up, level_similarity, parse_up, up_by_gravity
from gworld.errors import InputError
from gworld.reconstruct.options import FrameOptions
from gworld.scene.views import Views

LEAN = math.radians(3)
"""An IMU's word on up is taken as sure within this standard error."""


@dataclass(frozen=True)
class Frame:
    """What was found: how up and scale are known, in words, metres per unit of the poses, and warnings."""

    up: str
    scale: str
    metres: float | None
    warnings: tuple[str, ...] = ()


def place_views(
    views: Views,
    options: FrameOptions,
    log: HandLog | None = None,
    depth_scale: float | None = None,
    imu: ImuLog | None = None,
) -> tuple[Views, Frame]:
    """Turn views upright and to metres, as far as anything tells.

    A robot's `log` of hand poses gives scale and frame (its base); else an `imu` gives up and, unless a known length
    is given, scale; else the depth sensor does, whose unit is `depth_scale` metres. Views that are metric keep their
    frame unless `up` or an `imu` says otherwise. Raises `InputError` when what was given does not fit the views,
    `UsageError` for options that cannot be read.
    """
    if log is not None:
        return _by_hand(views, options, log)
    felt = None if imu is None else _feel(views, options, imu)
    metres, how = 1.0 if views.metric else None, "the poses' own unit is the metre" if views.metric else "unknown"
    if options.scale_from:
        metres, how = scale_from_length(views, parse_length(options.scale_from)), "a known length"
    elif felt is not None and metres is None:
        metres = felt.metres if felt.scale_spread <= options.imu else None
        how = f"the IMU (sure to {felt.scale_spread:.1%}, clock off by {felt.time_offset:+.3f} s)"
    elif metres is None and depth_scale is not None and any(view.depth for view in views.views):
        metres, spread = scale_from_depth(views, depth_scale)
        how = f"the depth sensor (views agree to {spread:.1%})"
    if metres is not None:
        turn = Similarity(torch.eye(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64), metres)
        sensor = depth_scale if how.startswith("the depth") else None
        views = apply_similarity(views, turn, metric=True, depth_scale=sensor)
    if options.up == "keep" or (options.up == "auto" and felt is None and how.startswith("the poses' own")):
        return views, Frame("kept", how, metres)
    if options.up != "auto":
        up = parse_up(options.up)
    else:
        up = estimate_up(views) if felt is None else up_by_gravity(views, felt.up, float(felt.lean < LEAN))
    warnings = []
    if up.confidence < 0.5:
        warnings.append(f"which way is up is unsure ({up.how}); check it, or give `--frame.up`")
    if felt is not None and felt.scale_spread > options.imu and not views.metric:
        warnings.append(
            f"the IMU tells the scale only to {felt.scale_spread:.0%} (`--frame.imu {options.imu:g}`): the world is "
            "not called metric; move the camera to and fro, faster"
        )
    placed = apply_similarity(views, level_similarity(up), metric=views.metric)
    return placed, Frame(up.how, how, metres, tuple(warnings))


def _feel(views: Views, options: FrameOptions, imu: ImuLog) -> Inertial:
    poses, times = _timed(views, "an IMU's log")
    return align_imu(poses, times, imu, options.clock)


def _timed(views: Views, what: str) -> tuple[Tensor, Tensor]:
    """Poses and times of all views; raises `InputError` where a time is missing."""
    known = [view for view in views.views if view.time is not None]
    if len(known) < len(views):
        raise InputError(f"{len(views) - len(known)} views carry no time; {what} needs it. Use a video.")
    times = torch.tensor([view.time for view in known], dtype=torch.float64)
    return torch.stack([view.world_from_camera.double() for view in known]), times


def _by_hand(views: Views, options: FrameOptions, log: HandLog) -> tuple[Views, Frame]:
    poses, times = _timed(views, "a robot's log")
    found = solve_hand_eye_log(poses, times, log, max_offset=options.clock)
    seen, known = hand_positions(found, poses), hand_at_times(log, times + found.time_offset)[:, :3, 3]
    logged = torch.isfinite(known).all(1)
    errors = compare_distances(seen[logged], known[logged])
    off = float(errors.median()) if len(errors) else float("inf")
    trusted = off <= options.hand
    placed = apply_similarity(views, found.base_from_world, metric=trusted)
    agree = float(found.agree.double().mean())
    scale = f"the robot's log ({agree:.0%} of pictures agree, {1e3 * found.position_rms:.1f} mm rms, distances"
    scale += f" {off:.1%} off, clock off by {found.time_offset:+.2f} s)"
    warnings = []
    if not trusted:
        warnings.append(
            f"distances between hand positions are {off:.1%} off the robot's log (`--frame.hand {options.hand:g}`): "
            "the poses are bent, and the world is not called metric"
        )
    if found.scale_spread > options.hand:
        warnings.append(f"the log tells the scale only to {found.scale_spread:.0%}; move the hand further")
    return placed, Frame("the robot's base", scale, found.base_from_world.scale, tuple(warnings))
