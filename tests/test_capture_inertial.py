"""An IMU beside a film: scale, up, clock and mount against known truth, on generated and on real readings."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from gworld.capture.inertial import GRAVITY, ImuLog, align_imu
from gworld.capture.logfile import read_imu_log
from gworld.errors import InputError
from gworld.geometry import matrix_from_quat, quat_from_rotvec, rotvec_from_quat, transform_from
from gworld.geometry import quat_from_matrix as quat
from gworld.reconstruct.frame import FrameOptions, place_views
from gworld.scene.views import View, Views

SCALE, OFFSET = 0.37, 0.13
UP = torch.tensor([0.3, -0.8, 0.5], dtype=torch.float64) / 0.98**0.5
MOUNT = matrix_from_quat(quat_from_rotvec(torch.tensor([1.2, -0.7, 2.0], dtype=torch.float64)))
"""camera_from_imu"""
ARM = torch.tensor([0.02, -0.05, 0.01], dtype=torch.float64)
"""The IMU's place in the camera, metres."""


def handheld(times: Tensor, sway: float) -> Tensor:
    """World_from_camera [T,4,4] in metres: turning about three axes, and swaying by `sway` metres."""
    phases = torch.tensor([[1.1, 2.3, 0.4], [1.7, 0.6, 2.9]], dtype=torch.float64)
    waves = torch.sin(times[:, None] * torch.tensor([2.1, 1.6, 2.7]).double() + phases[0])
    slow = torch.sin(times[:, None] * torch.tensor([0.9, 1.3, 0.7]).double() + phases[1])
    return transform_from(matrix_from_quat(quat_from_rotvec(0.4 * waves)), sway * (waves + 2 * slow))


def filmed(sway: float = 0.12, noise: float = 1.0) -> tuple[Tensor, Tensor, ImuLog]:
    """Poses in a unit of their own at uneven times, and what a phone's IMU reads at 200 Hz on another clock."""
    dice = torch.Generator().manual_seed(3)

    def draw(*shape: int) -> Tensor:
        return noise * torch.randn(*shape, generator=dice, dtype=torch.float64)

    fine, small = torch.arange(-1.0, 13.0, 0.005, dtype=torch.float64), 1e-3
    before, now, after = (handheld(fine + shift, sway) for shift in (-small, 0.0, small))
    at = [pose[:, :3, 3] + pose[:, :3, :3] @ ARM for pose in (before, now, after)]
    pull = (at[0] - 2 * at[1] + at[2]) / small**2 + GRAVITY * UP
    world_from_imu = now[:, :3, :3] @ MOUNT
    force = (world_from_imu.transpose(1, 2) @ pull[:, :, None])[:, :, 0]
    turn = rotvec_from_quat(quat(before[:, :3, :3].transpose(1, 2) @ after[:, :3, :3])) / (2 * small) @ MOUNT
    bias = torch.tensor([[0.02, -0.03, 0.01], [0.08, 0.05, -0.06]], dtype=torch.float64)
    log = ImuLog(
        fine + OFFSET, turn + bias[0] + 0.005 * draw(len(fine), 3), force + bias[1] + 0.05 * draw(len(fine), 3)
    )
    times = torch.linspace(0, 12, 110, dtype=torch.float64) + 0.02 * torch.rand(110, generator=dice).double()
    poses = handheld(times, sway)
    wobble = matrix_from_quat(quat_from_rotvec(0.001 * draw(110, 3)))
    return transform_from(poses[:, :3, :3] @ wobble, (poses[:, :3, 3] + 0.001 * draw(110, 3)) / SCALE), times, log


def degrees(first: Tensor, second: Tensor) -> float:
    return float(torch.rad2deg(torch.arccos((first @ second).clamp(-1, 1))))


def test_an_imu_tells_metres_up_clock_and_mount() -> None:
    poses, times, log = filmed()
    order = torch.randperm(len(times), generator=torch.Generator().manual_seed(0))
    found = align_imu(poses[order], times[order], log, max_offset=1.0)
    assert abs(found.metres / SCALE - 1) < 0.01 and found.scale_spread < 0.02
    assert degrees(found.up, UP) < 0.3 and np.rad2deg(found.lean) < 0.3
    assert abs(found.time_offset - OFFSET) < 0.003
    assert float(rotvec_from_quat(quat(found.camera_from_imu.T @ MOUNT)).norm()) < 0.01


def test_exact_readings_are_explained_exactly() -> None:
    poses, times, log = filmed(noise=0.0)
    found = align_imu(poses, times + OFFSET, log)
    assert abs(found.metres / SCALE - 1) < 1e-3 and degrees(found.up, UP) < 0.1


def test_a_camera_that_is_hardly_moved_gives_up_but_no_metres() -> None:
    poses, times, log = filmed(sway=0.0004)
    views = views_of(poses, times)
    placed, frame = place_views(views, FrameOptions(), imu=log)
    assert not placed.metric and any("tells the scale only to" in warning for warning in frame.warnings)
    assert degrees(up_of(placed, views), UP) < 2


def test_the_frame_is_upright_and_metric() -> None:
    poses, times, log = filmed()
    views = views_of(poses, times)
    placed, frame = place_views(views, FrameOptions(), imu=log)
    assert placed.metric and frame.metres is not None and abs(frame.metres / SCALE - 1) < 0.01
    assert frame.up == "the IMU" and not frame.warnings and "clock off by +0.13" in frame.scale
    assert degrees(up_of(placed, views), UP) < 0.3
    with pytest.raises(InputError, match="carry no time"):
        place_views(
            Views(tuple(View(v.name, 4, 3, v.K, v.world_from_camera) for v in views.views)), FrameOptions(), imu=log
        )


def test_readings_of_another_recording_are_refused() -> None:
    poses, times, log = filmed()
    with pytest.raises(InputError, match="covers"):
        align_imu(poses, times + 100, log)
    still = torch.eye(4, dtype=torch.float64).repeat(110, 1, 1)
    with pytest.raises(InputError, match="mount"):
        align_imu(still, times, log)
    with pytest.raises(InputError, match="lasts"):
        align_imu(poses[:5], times[:5], log)


def test_a_drive_s_own_imu_agrees_with_its_satellites(real_data: Path) -> None:
    """The car's track by satellites, in an unknown unit and on another clock, against its phone's IMU."""
    folder = real_data / "comma2k19"
    if not folder.is_dir():
        pytest.skip("no comma2k19 in the data folder")
    read = {name: torch.from_numpy(np.load(folder / name)) for name in (
        "global_pose/frame_times", "global_pose/frame_positions", "global_pose/frame_orientations",
        "IMU/accelerometer/t", "IMU/accelerometer/value", "IMU/gyro/value")}  # fmt: skip
    times, places, turns, clock, force, rates = (value[:1200:4] if "frame" in name else value
                                                 for name, value in read.items())  # fmt: skip
    device_from_camera = torch.tensor([[0.0, 0, 1], [1, 0, 0], [0, 1, 0]], dtype=torch.float64)  # forward, right, down
    poses = transform_from(matrix_from_quat(turns) @ device_from_camera, (places - places[0]) / 3.0)
    found = align_imu(poses, times + 0.37, ImuLog(clock, rates, force), max_offset=1.0)
    assert abs(found.metres / 3.0 - 1) < 0.03 and abs(found.time_offset + 0.37) < 0.01
    assert degrees(found.up, places[0] / places[0].norm()) < 1.5


def test_both_kinds_of_files_are_read(tmp_path: Path) -> None:
    plain, euroc = tmp_path / "imu.csv", tmp_path / "data.csv"
    plain.write_text("ax,ay,az,gx,gy,gz,time\n1,2,3,4,5,6,0.5\n1,2,3,4,5,6,0.51\n1,2,3,4,5,6,0.51\n")
    log = read_imu_log(plain)
    assert (
        log.times.tolist() == [0.5, 0.51] and log.turn[0].tolist() == [4, 5, 6] and log.force[1].tolist() == [1, 2, 3]
    )
    names = [f"w_RS_S_{axis} [rad s^-1]" for axis in "xyz"] + [f"a_RS_S_{axis} [m s^-2]" for axis in "xyz"]
    euroc.write_text(
        f"#timestamp [ns],{','.join(names)}\n1403636579758555392,1,2,3,4,5,6\n1403636579763555584,1,2,3,4,5,7\n"
    )
    log = read_imu_log(euroc)
    assert log.times[0] == 0 and abs(float(log.times[1]) - 0.005) < 1e-6 and log.force[1].tolist() == [4, 5, 7]
    plain.write_text("time,gx,gy,gz,ax,ay,az\n0,0,0,0,0,0,9.8\n0.1,0,0,0,0,0,inf\n")
    with pytest.raises(InputError, match="line 3"):
        read_imu_log(plain)
    plain.write_text("time,gx,gy,gz,ax,ay\n")
    with pytest.raises(InputError, match="lacks the columns az"):
        read_imu_log(plain)


def views_of(poses: Tensor, times: Tensor) -> Views:
    K = torch.tensor([[100.0, 0, 50], [0, 100, 40], [0, 0, 1]])
    rows = enumerate(zip(poses, times, strict=True))
    return Views(tuple(View(f"{row}.png", 100, 80, K, pose.float(), time=float(t)) for row, (pose, t) in rows))


def up_of(placed: Views, before: Views) -> Tensor:
    """+Z of the placed views in the frame they came from."""
    turn = placed.views[0].world_from_camera[:3, :3].double() @ before.views[0].world_from_camera[:3, :3].double().T
    return turn[2]
