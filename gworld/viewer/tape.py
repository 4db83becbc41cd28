"""A drive as it is remembered: poses and actions of every step in a few growing arrays.

A tensor for each step costs two kilobytes around its hundred bytes: twenty minutes of them were 75 MB.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

FIRST = 256
"""Rows that a column has room for at first; each time that they are full there is room for twice as many."""


class Column:
    """Rows of one shape and kind, one after the other."""

    def __init__(self, row: np.ndarray) -> None:
        self._rows = np.empty((FIRST, *row.shape), row.dtype)
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def append(self, row: np.ndarray) -> None:
        """Add a row."""
        if self._count == len(self._rows):
            self._rows = np.concatenate([self._rows, np.empty_like(self._rows)])
        self._rows[self._count] = row
        self._count += 1

    def tensor(self) -> Tensor:
        """All rows so far, as a copy."""
        return torch.from_numpy(self._rows[: self._count].copy())

    def copy(self) -> Column:
        """The same rows, to go on differently."""
        made = Column(self._rows[0])
        made._rows, made._count = self._rows.copy(), self._count
        return made


class Tape:
    """Poses [L,7] at the start and after every step, and what each agent was told in it [A]; its length is in steps."""

    def __init__(self, poses: Float[np.ndarray, "L 7"]) -> None:
        self._poses = Column(poses)
        self._poses.append(poses)
        self._told: dict[str, Column] = {}

    def __len__(self) -> int:
        return len(self._poses) - 1

    def add(self, told: Mapping[str, Float[Tensor, "1 A"]], poses: Float[np.ndarray, "L 7"]) -> None:
        """One more step: what was told, and where it led."""
        for name, value in told.items():
            row = value[0].numpy()
            self._told.setdefault(name, Column(row)).append(row)
        self._poses.append(poses)

    def poses(self) -> Float[Tensor, "S L 7"]:
        """Poses at the start and after every step."""
        return self._poses.tensor()

    def told(self, agent: str) -> Float[Tensor, "S A"]:
        """What an agent was told in each step."""
        return self._told[agent].tensor()

    def copy(self) -> Tape:
        """The same drive so far, to go on differently."""
        made = Tape(self._poses.tensor()[0].numpy())
        made._poses = self._poses.copy()
        made._told = {name: column.copy() for name, column in self._told.items()}
        return made
