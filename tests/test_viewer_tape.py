"""What a drive is remembered by: the same rows as were put in, in little more room than they need."""

from __future__ import annotations

import tracemalloc

import numpy as np
import torch

from gworld.viewer.tape import FIRST, Tape


def row(step: int) -> tuple[dict[str, torch.Tensor], np.ndarray]:
    return {"cart": torch.full((1, 3), float(step))}, np.full((2, 7), step + 1, np.float32)


def test_a_long_drive_is_remembered_and_copies_go_their_own_way() -> None:
    tape = Tape(np.zeros((2, 7), np.float32))
    for step in range(FIRST + 10):
        tape.add(*row(step))
    other = tape.copy()
    other.add(*row(-1))
    tape.add(*row(-2))
    assert (len(tape), len(other)) == (FIRST + 11, FIRST + 11)
    assert tape.poses()[:, 1, 6].tolist() == [*range(FIRST + 11), -1] and tape.poses().dtype == torch.float32
    assert other.poses()[-1, 0, 0] == 0 and other.told("cart")[-1].tolist() == [-1.0] * 3
    assert tape.told("cart")[:, 0].tolist() == [*range(FIRST + 10), -2]
    tape.poses().zero_()
    assert tape.poses()[-2, 0, 0] == FIRST + 10  # what is given away is a copy


def test_a_step_takes_its_numbers_and_little_else() -> None:
    tape = Tape(np.zeros((2, 7), np.float32))
    tape.add(*row(0))
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    for step in range(4 * FIRST):
        tape.add(*row(step))
    held = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert held < 3 * (4 * FIRST) * (2 * 7 + 3) * 4  # twice the room at most, and a little
