"""More agents than were learned from: trained with two, tested with three and four, beside models of these."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch

from gworld.bench.catalogue import BenchInput
from gworld.bench.follow import STARTS, Effort, learn_stage, places, score
from gworld.bench.follow_data import FPS, Stage, act, open_stage, stage_recordings
from gworld.bench.rows import Row, at_most
from gworld.dynamics.network import Dynamics
from gworld.dynamics.recordings import Recordings, cut_batch

LEARNED, COUNTS = 2, (3, 4)
SECONDS = (0.5, 1.0)


def rows(given: BenchInput) -> Iterator[Row]:
    """Rows of the scene `push` with three objects; simulators need the extra `sim`."""
    effort = Effort(8, 2, 0, 60, 6) if given.quick else Effort(steps=0)
    with tempfile.TemporaryDirectory() as folder:
        few = learn_stage(open_stage("push", LEARNED, 3, Path(folder) / str(LEARNED)), effort, given.seed)
        for count in COUNTS:
            stage = open_stage("push", count, 3, Path(folder) / str(count))
            many = learn_stage(stage, effort, given.seed)
            yield from count_rows(count, stage, few, many, effort, given.seed)


def count_rows(count: int, stage: Stage, few: Dynamics, many: Dynamics, effort: Effort, seed: int) -> Iterator[Row]:
    """Errors of a model that learned from fewer agents over those of one that learned from as many."""
    seeds = range(8000 + seed, 8000 + seed + effort.tests)
    data = stage_recordings(stage, act(stage, "mixed", seeds, max(SECONDS) + 2.0))
    errors = {name: _errors(model, data) for name, model in (("few", few), ("many", many))}
    for index, seconds in enumerate(SECONDS):
        for part in ("objects", "links"):
            ours, other = (errors[name][part][index] for name in ("few", "many"))
            if len(ours) < 3:
                continue
            value, beside = 1e3 * float(ours.median()), 1e3 * float(other.median())
            label, note = f"{count} agents, {seconds:g} s, {part}", f"{len(ours)} displaced"
            yield Row(label, value, "mm", "", beside, None, f"{note}; baseline: trained with {count}")
            ratio = value / max(beside, 1e-6)
            yield at_most(f"{label}, over a model trained with {count}", ratio, "x", 1.3)


def _errors(model: Dynamics, data: Recordings) -> dict[str, list[torch.Tensor]]:
    """Errors (m) of displaced objects and of links that move, at each of `SECONDS`."""
    steps = round(max(SECONDS) * FPS)
    windows = torch.tensor([[e, s] for e in range(len(data)) for s in STARTS])
    truth = cut_batch(data, windows, steps).poses[..., :3]
    start = torch.stack([data.poses[e, s, :, :3] for e, s in windows.tolist()])
    found = places(model, data, windows, steps)
    scores = [score(found, truth, start, data, round(seconds * FPS)) for seconds in SECONDS]
    return {"objects": [each.moved for each in scores], "links": [each.links for each in scores]}
