"""Moving things found by themselves: how the camera moved, what moves before it, and what rides along with it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Bool, UInt8
from numpy import ndarray

from gworld.capture.background import find_foreground
from gworld.capture.flow import chain_flows, still_share, stretch_gray
from gworld.capture.independent import find_independent
from gworld.capture.mounted import find_mounted
from gworld.errors import InputError

Kind = Literal["still", "moving"]
Progress = Callable[[str, float], None]
STILL = 0.2
"""Share of the picture that a standing camera must explain to be taken for one."""
TRUSTED = 0.6
"""Share of the picture that the dominant motion must explain before masks are made of what it does not."""


@dataclass(frozen=True)
class Movers:
    """What was found in the pictures of one camera: `masks` True where something is to be ignored.

    `explained` is the share 0..1 of the picture that the dominant motion (or the standing background) explains, the
    10th percentile over the pictures; below `TRUSTED` a moving camera's pictures are not masked, because movers may
    fill most of them. `mounted` is the share that rides along with the camera; `focal` in pixels of the masks, 0 where
    unknown.
    """

    masks: Bool[ndarray, "T H W"]
    kind: Kind
    explained: float
    mounted: float = 0.0
    focal: float = 0.0

    @property
    def trusted(self) -> bool:
        """Whether the dominant motion explains enough of the picture."""
        return self.explained >= (TRUSTED if self.kind == "moving" else STILL)


def load_small(paths: Sequence[Path], side: int) -> UInt8[ndarray, "T H W 3"]:
    """Pictures at a longer side of at most `side` pixels.

    Raises `InputError` for a file that is no picture or has another size than the first.
    """
    import cv2

    pictures: list[ndarray] = []
    first: tuple[int, int] | None = None
    for path in paths:
        found = cv2.imread(str(path), cv2.IMREAD_COLOR)
        if found is None:
            raise InputError(f"`{path}` cannot be read as a picture. Capture the footage again.")
        height, width = found.shape[:2]
        first = first or (height, width)
        if (height, width) != first:
            raise InputError(
                f"`{path}` is {width} x {height}, but the camera's first picture is {first[1]} x {first[0]}; "
                "pictures of one camera need one size. Capture the footage again."
            )
        scale = side / max(height, width)
        if scale < 1:
            size = max(16, round(width * scale)), max(16, round(height * scale))
            found = cv2.resize(found, size, interpolation=cv2.INTER_AREA)
        pictures.append(cv2.cvtColor(found, cv2.COLOR_BGR2RGB))
    return np.stack(pictures)


def find_movers(
    pictures: UInt8[ndarray, "T H W 3"],
    focal: float = 0.0,
    kind: Literal["auto", "still", "moving"] = "auto",
    progress: Progress | None = None,
) -> Movers:
    """Find what moves by itself in pictures of one camera in order of time; `focal` in their pixels, 0 if unknown."""
    count, height, width = pictures.shape[:3]
    nothing = np.zeros((count, height, width), bool)
    if count < 3 or min(height, width) < 32:
        return Movers(nothing, "still" if kind == "still" else "moving", 0.0)
    gray = stretch_gray(pictures)
    share, to_middle = still_share(gray)
    if kind == "still" or (kind == "auto" and share >= STILL):
        masks, _ = find_foreground(pictures, to_middle)
        return Movers(masks, "still", float(np.percentile(1 - masks.mean((1, 2)), 10)))
    _tell(progress, "flow", 0.1)
    flows = chain_flows(gray)
    mounted = find_mounted(gray, flows)
    moving = find_independent(gray, flows, mounted, focal, lambda share: _tell(progress, "motion", 0.3 + 0.7 * share))
    explained = float(np.percentile(moving.explained, 10))
    masks = (moving.masks if explained >= TRUSTED else nothing) | mounted
    return Movers(masks, "moving", explained, float(mounted.mean()), moving.focal)


def _tell(progress: Progress | None, stage: str, share: float) -> None:
    if progress is not None:
        progress(stage, share)
