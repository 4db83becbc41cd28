"""Is a prediction as sure as it says? The shipped model of pushing, calibrated on episodes, held against others."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from gworld.bench.catalogue import BenchInput
from gworld.bench.follow_data import act, open_stage, stage_recordings
from gworld.bench.rows import Row
from gworld.dynamics.saved import load_model
from gworld.dynamics.uncertainty import (
    GROUPS,
    NINETY,
    SpreadConfig,
    deviations,
    factors_from,
    foretell_windows,
    pick_windows,
)
from gworld.files import need_asset

SECONDS = (0.5, 1.0, 2.0, 3.0)
STARTS = 2
MODEL = "dynamics/push"


def rows(given: BenchInput) -> Iterator[Row]:
    """Coverage of 90 % intervals by horizon and group, and whether large deviations tell large errors."""
    # Errors within an episode go together, so that 48 episodes tell a coverage of 90 % no better than within 5: each is
    # judged by what was calibrated on the others, and all of them count.
    episodes, folds, seconds = (4, 2, (0.5, 1.0)) if given.quick else (96, 6, SECONDS)
    model, config = load_model(need_asset(MODEL)), SpreadConfig(copies=3)
    with tempfile.TemporaryDirectory() as folder:
        stage = open_stage("push", 2, 3, Path(folder))
        first = 20_000 + 1000 * given.seed
        data = stage_recordings(stage, act(stage, "mixed", range(first, first + episodes), max(seconds) + 3.0))
    found, truth = foretell_windows(model, data, max(seconds), STARTS, config)
    error = (found.poses[..., :3, 3] - truth).norm(dim=-1)
    fold = torch.arange(len(error)) * folds // len(error)  # windows stand episode by episode
    radius = torch.zeros_like(error)
    for number in range(folds):
        own, others = (fold == number).nonzero()[:, 0], (fold != number).nonzero()[:, 0]
        calibration = factors_from(pick_windows(found, others), error[others], data, seconds, config)
        radius[own] = NINETY * deviations(pick_windows(found, own), data.scene.dt, calibration)
    present = data.scene.present.any(0)
    for second in seconds:
        step = round(second / data.scene.dt) - 1
        counted = (found.group[:, step] != 2) & present
        yield coverage_row(
            f"{second:g} s, agents and objects that move", error[:, step][counted], radius[:, step][counted]
        )
        for number, name in enumerate(GROUPS):
            mask = (found.group[:, step] == number) & present
            if int(mask.sum()) >= 8:
                yield coverage_row(f"{second:g} s, {name}", error[:, step][mask], radius[:, step][mask], goal=False)
        mask = (found.group[:, step] == 1) & present
        if int(mask.sum()) >= 8:
            yield Row(
                f"{second:g} s, moving, rank correlation of deviation and error",
                rank_correlation(radius[:, step][mask], error[:, step][mask]), "",
            )  # fmt: skip


def coverage_row(label: str, error: Tensor, radius: Tensor, goal: bool = True) -> Row:
    """The share of errors within their intervals."""
    share = 100 * float((error <= radius).float().mean())
    middle, wide = (1e3 * float(part.median()) for part in (error, radius))
    note = f"{len(error)} errors, median {middle:.2g} mm, interval {wide:.2g} mm"
    name = f"within 90 % intervals after {label}"
    return Row(name, share, "%", "85 to 95" if goal else "", None, 85 <= share <= 95 if goal else None, note)


def rank_correlation(first: Tensor, second: Tensor) -> float:
    """Spearman's."""
    a, b = (values.argsort().argsort().float() for values in (first, second))
    a, b = a - a.mean(), b - b.mean()
    return float((a * b).sum() / (a.norm() * b.norm()).clamp_min(1e-9))
