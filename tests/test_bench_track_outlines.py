"""Outlines drawn by hand: what they cover."""

from __future__ import annotations

import numpy as np

from gworld.bench.track_outlines import OUTLINES, drawn_mask


def test_a_square_covers_the_pixels_whose_centres_it_holds() -> None:
    mask = drawn_mask(("2,1 6,1 6,4 2,4", "8,0 9,0 9,1 8,1"), 10, 5)
    wanted = np.zeros((5, 10), bool)
    wanted[1:4, 2:6] = True
    wanted[0, 8] = True
    assert np.array_equal(mask, wanted)


def test_outlines_of_the_recording_are_robots_in_the_picture() -> None:
    assert [len(pictures) for pictures in OUTLINES.values()] == [5, 8]
    for pictures in OUTLINES.values():
        for parts in pictures.values():
            points = np.array([[float(v) for v in pair.split(",")] for part in parts for pair in part.split()])
            assert (points >= 0).all() and (points < (480, 270)).all()
            area = drawn_mask(parts, 480, 270).sum()
            assert 1500 < area < 16000
