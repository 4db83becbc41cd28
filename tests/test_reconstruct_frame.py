"""The frame by a robot's log: metric where the poses bear it out, and said so where they are bent."""

from __future__ import annotations

import torch
from torch import Tensor

from gworld.capture.handlog import HandLog
from gworld.geometry import matrix_from_quat, quat_from_rotvec, se3_exp, transform_from
from gworld.reconstruct.frame import FrameOptions, place_views
from gworld.scene.views import View, Views

SCALE = 0.37


def a_reach(times: Tensor) -> Tensor:
    """base_from_hand of a smooth reach that turns about three axes."""
    waves = torch.stack([torch.sin(1.3 * times), torch.sin(0.9 * times + 1), torch.sin(1.7 * times + 2)], 1)
    at = torch.stack([0.4 + 0.2 * torch.sin(times), 0.25 * torch.cos(0.8 * times), 0.3 + 0.1 * waves[:, 0]], 1)
    return transform_from(matrix_from_quat(quat_from_rotvec(0.5 * waves)), at)


def filmed(bend: float) -> tuple[Views, HandLog]:
    """A wrist camera's poses in a unit of its own; `bend` stretches the world along x."""
    times = torch.linspace(0, 8, 60, dtype=torch.float64)
    hands = a_reach(times)
    cameras = hands @ se3_exp(torch.tensor([0.05, 0.02, 0.04, 0.3, -0.2, 0.1], dtype=torch.float64))
    cameras[:, 0, 3] += bend * (cameras[:, 0, 3] - 0.4)
    cameras[:, :3, 3] /= SCALE
    K = torch.tensor([[100.0, 0, 50], [0, 100, 40], [0, 0, 1]])
    views = [
        View(f"{row}.png", 100, 80, K, pose.float(), time=float(time))
        for row, (pose, time) in enumerate(zip(cameras, times, strict=True))
    ]
    return Views(tuple(views), metric=False), HandLog(times, hands)


def test_straight_poses_become_metric() -> None:
    views, log = filmed(bend=0.0)
    placed, frame = place_views(views, FrameOptions(clock=0.0), log)
    assert placed.metric and not frame.warnings
    assert frame.metres is not None and abs(frame.metres / SCALE - 1) < 1e-3
    assert "distances 0.0% off" in frame.scale


def test_bent_poses_are_not_called_metric() -> None:
    views, log = filmed(bend=0.35)
    placed, frame = place_views(views, FrameOptions(clock=0.0), log)
    assert not placed.metric
    assert any("poses are bent" in warning for warning in frame.warnings)
    trusting, _ = place_views(views, FrameOptions(clock=0.0, hand=0.5), log)
    assert trusting.metric
