"""Quaternions without their largest component: how SPZ and SOG pack rotations."""

from __future__ import annotations

import numpy as np

OTHERS = np.array([[1, 2, 3], [0, 2, 3], [0, 1, 3], [0, 1, 2]])
"""Columns that are left, in order, when one of four is dropped."""


def drop_largest(quats: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Index [N] of the largest component and the three others [N,3] of the unit quaternion whose largest is positive.

    `quats` [N,4] may have any length above zero; the others lie within +-sqrt(1/2).
    """
    unit = quats / np.linalg.norm(quats, axis=1, keepdims=True)
    largest = np.abs(unit).argmax(axis=1)
    rows = np.arange(len(unit))
    others = unit[rows[:, None], OTHERS[largest]]
    others[unit[rows, largest] < 0] *= -1
    return largest, others


def restore_largest(largest: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Unit quaternions [N,4] float32 from the index [N] of the dropped component and the three others [N,3]."""
    quats = np.empty((len(others), 4), np.float32)
    rows = np.arange(len(others))
    quats[rows[:, None], OTHERS[largest]] = others
    quats[rows, largest] = np.sqrt(np.maximum(0, 1 - (others * others).sum(axis=1)))
    return quats
