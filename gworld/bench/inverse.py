"""What both agents did, from two frames: the shipped model of pushing asked backwards, beside simple ways."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from gworld.bench.catalogue import BenchInput
from gworld.bench.follow_data import act, open_stage, stage_recordings
from gworld.bench.rows import Row
from gworld.bench.uncertain import MODEL
from gworld.dynamics.inverse import Usual, between_frames, infer_actions, usual_actions
from gworld.dynamics.recordings import Recordings
from gworld.dynamics.saved import load_model
from gworld.files import need_asset

KINDS = ("mixed", "expert", "random", "extreme", "adversarial")


def rows(given: BenchInput) -> Iterator[Row]:
    """Errors of both agents' actions by kind of behaviour; what is usual is taken from other episodes."""
    model, count = load_model(need_asset(MODEL)), 2 if given.quick else 6
    with tempfile.TemporaryDirectory() as folder:
        stage = open_stage("push", 2, 3, Path(folder))
        learned = stage_recordings(stage, act(stage, "mixed", range(100, 100 + 2 * count), 5.0))
        for kind in KINDS[:2] if given.quick else KINDS:
            data = stage_recordings(stage, act(stage, kind, range(9000, 9000 + count), 5.0))
            frames = torch.arange(3, data.poses.shape[1] - 2, 4)
            windows = torch.tensor([[episode, int(frame)] for episode in range(len(data)) for frame in frames])
            scene, start, after = between_frames(data, windows, model.belief)
            usual = usual_actions(learned)
            found = infer_actions(model, scene, start, after, data.drives, usual)
            yield from error_rows(kind, found, data, windows, usual)


def error_rows(
    kind: str, found: dict[str, Tensor], data: Recordings, windows: Tensor, usual: dict[str, Usual]
) -> Iterator[Row]:
    """Root mean square and median errors (m/s) beside the mean action and the way gone over the time."""
    parts: dict[str, list[Tensor]] = {"network": [], "way over time": [], "mean action": []}
    episode, frame = windows.unbind(1)
    for agent in data.scene.agents:
        truth = data.actions[agent.name][episode, frame]
        slots, columns = list(data.drives[agent.name].values), list(data.drives[agent.name].components)
        values = data.joints[agent.name][..., slots]
        plain = torch.zeros_like(truth)
        plain[:, columns] = (values[episode, frame + 1] - values[episode, frame]) / data.scene.dt
        guesses = {"network": found[agent.name], "way over time": plain, "mean action": usual[agent.name].mean}
        for name, guess in guesses.items():
            parts[name].append((guess - truth)[torch.isfinite(truth).all(-1)].flatten())
    errors = {name: torch.cat(values) for name, values in parts.items()}
    size = {name: float(value.square().mean().sqrt()) for name, value in errors.items()}
    best = min(size["way over time"], size["mean action"])
    middle = {name: float(value.abs().median()) for name, value in errors.items()}
    label, note = f"{kind}, both agents' actions", f"{len(windows)} pairs of frames; baseline: the better simple way"
    near = min(middle["way over time"], middle["mean action"])
    yield Row(f"{label}, median error", middle["network"], "m/s", "", near, None, note)
    yield Row(f"{label}, root mean square error", size["network"], "m/s", "", best)
    for name in ("way over time", "mean action"):
        yield Row(f"{label}, {name}, root mean square", size[name], "m/s")
        yield Row(f"{label}, {name}, median", middle[name], "m/s")
