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
    assert iou > 0.65 and recall > 0.85 and false < 0.05
    assert found.focal == pytest.approx(filmed.K[0, 0], rel=0.15)


def test_a_static_room_is_left_whole() -> None:
    filmed = room(moving=0.0)
    found = find_movers(filmed.pictures)
    assert found.kind == "moving" and found.masks.mean() < 0.02 and found.explained > 0.9
