"""Hand-eye: exact motions are recovered to rounding, noisy and spoiled ones within their noise, blind ones refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gworld.capture.handeye import (
    compare_distances,
    hand_positions,
    solve_fixed_camera,
    solve_hand_eye,
)
from gworld.capture.handlog import HandLog, find_time_offset, hand_at_times, solve_hand_eye_log
from gworld.capture.similarity import Similarity, invert_similarity, move_poses
from gworld.errors import InputError
from gworld.geometry import (
    invert_transform,
    matrix_from_quat,
    quat_from_matrix,
    quat_from_rotvec,
    rotvec_from_quat,
    se3_exp,
    transform_from,
)


def angle(a: Tensor, b: Tensor) -> float:
    return float(rotvec_from_quat(quat_from_matrix((a.T @ b)[None]))[0].norm())


def a_motion(times: Tensor, axes: int = 3) -> Tensor:
    """base_from_hand of a smooth reach that turns about one to three axes."""
    waves = torch.stack([torch.sin(1.3 * times), torch.sin(0.9 * times + 1), torch.sin(1.7 * times + 2)], 1)
    turn = 0.5 * waves
    turn[:, axes:] = 0
    at = torch.stack([0.4 + 0.2 * torch.sin(times), 0.25 * torch.cos(0.8 * times), 0.3 + 0.1 * waves[:, 0]], 1)
    return transform_from(matrix_from_quat(quat_from_rotvec(turn)), at)


def some_truth(seed: int, scale: float = 0.37) -> tuple[Tensor, Similarity]:
    random = torch.Generator().manual_seed(seed)
    draw = torch.randn(2, 6, generator=random, dtype=torch.float64)
    mount = se3_exp(torch.cat([0.06 * draw[0, :3], draw[0, 3:]]))
    world = se3_exp(draw[1])
    return mount, Similarity(world[:3, :3], world[:3, 3], scale)


def cameras_for(hands: Tensor, mount: Tensor, base_from_world: Similarity) -> Tensor:
    return move_poses(invert_similarity(base_from_world), hands @ mount)


def noisy(poses: Tensor, turn: float, shift: float, seed: int = 1) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    draw = torch.randn(len(poses), 6, generator=random, dtype=torch.float64)
    return poses @ se3_exp(draw * torch.tensor([shift] * 3 + [turn] * 3, dtype=torch.float64))


TIMES = torch.linspace(0, 8, 60, dtype=torch.float64)


@given(seed=st.integers(0, 10_000), scale=st.floats(0.01, 100))
@settings(max_examples=8, deadline=None)
def test_exact_poses_give_the_exact_mount(seed: int, scale: float) -> None:
    mount, base_from_world = some_truth(seed, scale)
    hands = a_motion(TIMES)
    found = solve_hand_eye(cameras_for(hands, mount, base_from_world), hands)
    assert torch.allclose(found.hand_from_camera, mount, atol=1e-6)
    assert found.base_from_world.scale == pytest.approx(scale, rel=1e-6)
    assert torch.allclose(found.base_from_world.rotation, base_from_world.rotation, atol=1e-6)
    assert torch.allclose(found.base_from_world.translation, base_from_world.translation, atol=1e-6)
    assert bool(found.agree.all()) and found.position_rms < 1e-6 and found.rotation_rms < 1e-6


def test_noise_and_wrong_poses_are_borne() -> None:
    mount, base_from_world = some_truth(3)
    hands = a_motion(TIMES)
    cameras = noisy(cameras_for(hands, mount, base_from_world), 0.005, 0.003 / base_from_world.scale)
    wrong = torch.tensor([3, 4, 17, 30, 31, 32, 45, 50, 51, 58])
    cameras[wrong] = noisy(cameras[wrong], 0.5, 0.3, seed=2)
    cameras[7] = torch.nan
    found = solve_hand_eye(cameras, hands)
    assert not bool(found.agree[wrong].any()) and not bool(found.agree[7]) and int(found.agree.sum()) >= 46
    assert found.base_from_world.scale == pytest.approx(base_from_world.scale, rel=0.02)
    assert (found.hand_from_camera[:3, 3] - mount[:3, 3]).norm() < 0.006
    assert angle(found.hand_from_camera[:3, :3], mount[:3, :3]) < 0.01
    assert 0.002 < found.position_rms < 0.008 and found.scale_spread < 0.02
    errors = compare_distances(hand_positions(found, cameras)[found.agree], hands[found.agree][:, :3, 3])
    assert len(errors) > 500 and float(errors.median()) < 0.03


def test_opencv_agrees_where_it_has_the_solver() -> None:
    cv2 = pytest.importorskip("cv2")
    if not hasattr(cv2, "calibrateHandEye"):
        pytest.skip("this OpenCV has no calibrateHandEye")
    mount, base_from_world = some_truth(5, 1.0)
    hands = a_motion(TIMES)
    cameras = noisy(cameras_for(hands, mount, base_from_world), 0.002, 0.001)
    seen = invert_transform(cameras).numpy()
    turn, at = cv2.calibrateHandEye(
        hands[:, :3, :3].numpy(),
        hands[:, :3, 3].numpy(),
        seen[:, :3, :3],
        seen[:, :3, 3],
        method=cv2.CALIB_HAND_EYE_PARK,
    )
    found = solve_hand_eye(cameras, hands, fixed_scale=True)
    assert angle(found.hand_from_camera[:3, :3], torch.from_numpy(turn)) < 0.005
    assert np.linalg.norm(found.hand_from_camera[:3, 3].numpy() - at[:, 0]) < 0.005


def kronecker_hand_eye(hands: np.ndarray, cameras: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """Andreff's linear solution, all unknowns at once by a null space: an oracle that shares nothing with ours."""
    rows, right = [], []
    for i in range(0, len(hands) - 7):
        a, b = np.linalg.inv(hands[i]) @ hands[i + 7], np.linalg.inv(cameras[i]) @ cameras[i + 7]
        turn = np.kron(a[:3, :3], b[:3, :3]) - np.eye(9)
        rows.append(np.hstack([turn, np.zeros((9, 4))]))
        right.append(np.zeros(9))
        lever = np.kron(np.eye(3), b[:3, 3])
        rows.append(np.hstack([lever, np.eye(3) - a[:3, :3], np.zeros((3, 1))]))
        right.append(a[:3, 3])
    matrix = np.vstack(rows)[:, :12]
    # s R_X enters as one unknown matrix: its size is the scale.
    solution = np.linalg.lstsq(matrix, np.concatenate(right), rcond=None)[0]
    scaled = solution[:9].reshape(3, 3)
    scale = float(np.cbrt(np.linalg.det(scaled)))
    return scaled / scale, solution[9:12], scale


def test_a_linear_solution_of_another_kind_agrees() -> None:
    mount, base_from_world = some_truth(9)
    hands = a_motion(TIMES)
    cameras = noisy(cameras_for(hands, mount, base_from_world), 0.0005, 0.0005)
    turn, at, scale = kronecker_hand_eye(hands.numpy(), cameras.numpy())
    found = solve_hand_eye(cameras, hands)
    assert angle(found.hand_from_camera[:3, :3], torch.from_numpy(turn)) < 0.005
    assert np.linalg.norm(found.hand_from_camera[:3, 3].numpy() - at) < 0.003
    assert found.base_from_world.scale == pytest.approx(scale, rel=0.01)


def test_turning_about_one_axis_is_refused_unless_the_mount_is_known() -> None:
    mount, base_from_world = some_truth(4)
    hands = a_motion(TIMES, axes=1)
    cameras = cameras_for(hands, mount, base_from_world)
    with pytest.raises(InputError, match=r"any second one; 2\.0 are needed"):
        solve_hand_eye(cameras, hands)
    found = solve_hand_eye(cameras, hands, hand_from_camera=mount)
    assert found.base_from_world.scale == pytest.approx(base_from_world.scale, rel=1e-6)
    assert torch.allclose(found.base_from_world.translation, base_from_world.translation, atol=1e-6)


def test_blind_motions_and_foreign_logs_are_refused() -> None:
    mount, base_from_world = some_truth(6)
    hands = a_motion(TIMES)
    still = hands.clone()
    still[:, :3, 3] = hands[0, :3, 3]
    with pytest.raises(InputError, match=r"spreads over 0\.0 cm"):
        solve_hand_eye(cameras_for(still, mount, base_from_world), still)
    with pytest.raises(InputError, match=r"agree in .* of 60 pictures"):
        solve_hand_eye(cameras_for(a_motion(1.7 * TIMES + 9), mount, base_from_world), hands)
    with pytest.raises(InputError, match="4 pictures have both"):
        solve_hand_eye(hands[:4], hands[:4])


def test_a_fixed_camera_is_placed_by_a_marker_on_the_hand() -> None:
    marker, world = some_truth(8, 1.0)
    base_from_camera = transform_from(world.rotation, world.translation)
    hands = a_motion(TIMES)
    seen = noisy(invert_transform(base_from_camera) @ hands @ marker, 0.004, 0.002)
    pose, found = solve_fixed_camera(seen, hands)
    assert found.base_from_world.scale == 1.0
    assert angle(pose[:3, :3], base_from_camera[:3, :3]) < 0.005 and (pose - base_from_camera)[:3, 3].norm() < 0.005
    assert (found.hand_from_camera - marker)[:3, 3].norm() < 0.004


def test_the_hand_is_interpolated_and_gaps_stay_gaps() -> None:
    times = torch.tensor([0.0, 1.0, 1.2, 3.0], dtype=torch.float64)
    log = HandLog(times, a_motion(times))
    found = hand_at_times(log, torch.tensor([-0.1, 0.0, 1.1, 2.0, 3.0, 3.1], dtype=torch.float64), longest_gap=1.5)
    assert torch.isnan(found).all((1, 2)).tolist() == [True, False, False, True, True, True]
    assert torch.allclose(found[1], a_motion(times)[0])
    assert torch.allclose(found[2, :3, 3], a_motion(times)[1:3, :3, 3].mean(0))
    with pytest.raises(InputError, match="do not rise"):
        HandLog(times.flip(0), a_motion(times))


def test_a_clock_that_is_off_is_found() -> None:
    mount, base_from_world = some_truth(2)
    logged = torch.arange(-2, 12, 1 / 15, dtype=torch.float64)
    log = HandLog(logged, a_motion(logged))
    cameras = noisy(cameras_for(a_motion(TIMES + 0.43), mount, base_from_world), 0.003, 0.004)
    assert find_time_offset(cameras, TIMES, log, 1.0) == pytest.approx(0.43, abs=0.06)
    found = solve_hand_eye_log(cameras, TIMES, log, max_offset=1.0)
    assert found.time_offset == pytest.approx(0.43, abs=0.02)
    assert found.base_from_world.scale == pytest.approx(base_from_world.scale, rel=0.02)


def read_droid_hand(file: Path) -> HandLog:
    """15 Hz positions and roll-pitch-yaw (about fixed axes) of a DROID episode."""
    from scipy.spatial.transform import Rotation

    rows = np.array(json.loads(file.read_text())["observation.state.cartesian_position"])
    turns = torch.from_numpy(Rotation.from_euler("xyz", rows[:, 3:]).as_matrix())
    return HandLog(torch.arange(len(rows)).double() / 15, transform_from(turns, torch.from_numpy(rows[:, :3])))


def test_motions_of_a_real_arm_are_enough(real_data: Path) -> None:
    """Recorded episodes turn the hand enough; cameras are simulated with the noise of real ones."""
    for episode in (1, 5):
        log = read_droid_hand(real_data / f"droid/annotation/{episode}.json")
        times = torch.arange(0.0, float(log.times[-1]) - 0.2, 0.4, dtype=torch.float64)
        mount, base_from_world = some_truth(episode)
        cameras = cameras_for(hand_at_times(log, times + 0.1), mount, base_from_world)
        found = solve_hand_eye_log(noisy(cameras, 0.003, 0.002 / base_from_world.scale), times, log, max_offset=0.3)
        assert found.second_turn > 0.05
        assert found.base_from_world.scale == pytest.approx(base_from_world.scale, rel=0.02)
        assert (found.hand_from_camera - mount)[:3, 3].norm() < 0.01
        assert found.time_offset == pytest.approx(0.1, abs=0.03)
