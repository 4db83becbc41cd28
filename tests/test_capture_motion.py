"""Moving things found by themselves, against exact truth and on real clips."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import pytest

from gworld.capture.motion import find_movers
from gworld.data.rooms import Room, RoomOptions, film_room


@lru_cache(maxsize=2)
def room(**given: object) -> Room:
    base = {"frames": 20, "width": 200, "height": 150, "length": 2.0, "moving": 0.13}
    return film_room(RoomOptions(**{**base, **given}))  # type: ignore[arg-type] # parametrised options


def agreement(found: np.ndarray, truth: np.ndarray) -> tuple[float, float, float]:
    """IoU, recall, and the share of static pixels that were masked."""
    both = (found & truth).sum()
    return both / max(1, (found | truth).sum()), both / max(1, truth.sum()), (found & ~truth).sum() / (~truth).sum()


def test_boxes_that_move_are_found_by_a_moving_camera() -> None:
    filmed = room()
    found = find_movers(filmed.pictures)
    iou, recall, false = agreement(found.masks, filmed.moving)
    assert found.kind == "moving" and found.trusted
    assert iou > 0.7 and recall > 0.78 and false < 0.02
    assert found.focal == pytest.approx(filmed.K[0, 0], rel=0.15)


def test_a_static_room_is_left_whole() -> None:
    filmed = room(moving=0.0)
    found = find_movers(filmed.pictures)
    assert found.kind == "moving" and found.masks.mean() < 0.002 and found.explained > 0.97


def test_edges_of_near_things_that_stand_are_no_movers() -> None:
    """A bland bar before a far wall: flow slides from the one to the other, and nothing moves."""
    random = np.random.default_rng(6)
    wall = np.kron(random.uniform(30, 220, (40, 80, 3)), np.ones((4, 4, 1)))
    bar = np.kron(random.uniform(30, 220, (10, 1, 3)), np.ones((16, 24, 1)))
    pictures = np.stack([wall[:120, 2 * index : 2 * index + 160] for index in range(24)])
    for index, picture in enumerate(pictures):
        left = 150 - 6 * index
        start, end = max(left, 0), min(left + 24, 160)
        if start < end:
            picture[:, start:end] = bar[:120, start - left : end - left]
    found = find_movers(pictures.astype(np.uint8))
    assert found.kind == "moving" and found.trusted and found.masks.mean() < 0.01


def standing(frames: int = 20, noise: float = 3.0, mover: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """A textured wall before a standing camera, and a square that crosses it."""
    random = np.random.default_rng(4)
    wall = np.kron(random.uniform(40, 210, (15, 20, 3)), np.ones((8, 8, 1)))
    square = np.kron(random.uniform(0, 255, (6, 6, 3)), np.ones((6, 6, 1)))
    pictures, truth = np.repeat(wall[None], frames, 0), np.zeros((frames, *wall.shape[:2]), bool)
    for index in range(frames if mover else 0):
        window = (index, slice(40, 76), slice(5 + 5 * index, 41 + 5 * index))
        pictures[window], truth[window] = square, True
    pictures = pictures + random.normal(0, noise, pictures.shape)
    return np.clip(pictures, 0, 255).astype(np.uint8), truth


def test_a_standing_camera_is_known_and_what_crosses_its_view_is_found() -> None:
    pictures, truth = standing()
    found = find_movers(pictures)
    iou, recall, false = agreement(found.masks, truth)
    assert found.kind == "still" and found.trusted
    assert iou > 0.75 and recall > 0.85 and false < 0.02


@pytest.mark.parametrize("noise", [0.0, 3.0, 8.0])
def test_noise_alone_moves_nothing(noise: float) -> None:
    pictures, _ = standing(noise=noise, mover=False)
    found = find_movers(pictures)
    assert found.kind == "still" and found.masks.mean() < 0.002


def test_exposure_and_white_balance_may_drift() -> None:
    pictures, truth = standing()
    gain = 1 + 0.15 * np.sin(np.arange(len(pictures)))[:, None, None, None] * np.array([1.0, 0.6, -0.4])
    drifted = np.clip(0.8 * pictures * gain, 0, 255).astype(np.uint8)
    iou, _, false = agreement(find_movers(drifted).masks, truth)
    assert iou > 0.7 and false < 0.03


def test_what_rides_along_is_masked_in_every_picture() -> None:
    random = np.random.default_rng(5)
    wall = np.kron(random.uniform(20, 235, (30, 90, 3)), np.ones((6, 6, 1)))
    gripper = np.kron(random.uniform(0, 120, (6, 20, 3)), np.ones((6, 6, 1)))
    pictures = np.stack([wall[index : 120 + index, 8 * index : 8 * index + 160] for index in range(24)])
    pictures[:, 84:, 20:140] = gripper
    found = find_movers(pictures.astype(np.uint8))
    truth = np.zeros(found.masks.shape, bool)
    truth[:, 84:, 20:140] = True
    _, recall, false = agreement(found.masks, truth)
    assert found.kind == "moving" and found.mounted > 0.15
    assert recall > 0.8 and false < 0.08


def test_too_few_pictures_say_nothing() -> None:
    found = find_movers(np.zeros((2, 64, 64, 3), np.uint8))
    assert not found.masks.any() and not found.trusted
