"""More bodies than were learned from: trained on one or two balls between walls, rolled out with three to six."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from gworld.bench.catalogue import BenchInput
from gworld.bench.phys_models import law_recordings, predict
from gworld.bench.rows import Row, at_most
from gworld.data.laws import DT, FRAMES, Trial, draw_trials, law_poses
from gworld.dynamics.baselines import ConstantVelocity, Copy
from gworld.dynamics.network import Dynamics, Model, NetworkConfig
from gworld.dynamics.recordings import CONTEXT, split_recordings
from gworld.dynamics.train import TrainConfig, train

LEARNED, MORE = (1, 2), (3, 4, 5, 6)
GOAL = 1.5


def rows(given: BenchInput) -> Iterator[Row]:
    """Errors up to the second contact by number of balls, beside those at the trained number, and after it."""
    films = 6 if given.quick else 24
    model = learn_combo(given.seed, 60 if given.quick else 150, 120 if given.quick else 300)
    usual, _ = combo_errors(model, LEARNED[-1], films, given.seed)
    yield Row(f"{LEARNED[-1]} balls, up to the second contact, mean", float(usual.mean()), "units/s")
    for balls in MORE:
        before, after = combo_errors(model, balls, films, given.seed)
        others = [combo_errors(other, balls, films, given.seed)[0] for other in (ConstantVelocity(), Copy())]
        best = min(float(part.mean()) for part in others)
        label = f"{balls} balls"
        mean = float(before.mean())
        yield at_most(
            f"{label}, up to the second contact, mean", mean, "units/s", GOAL * float(usual.mean()),
            best, f"goal: {GOAL:g} times that at {LEARNED[-1]} balls",
        )  # fmt: skip
        yield Row(f"{label}, up to the second contact, median", float(before.median()), "units/s")
        for share in (0.5, 0.9):
            if len(after):
                yield Row(f"{label}, after it, {100 * share:g}th percentile", float(after.quantile(share)), "units/s")


def learn_combo(seed: int, episodes: int, steps: int) -> Dynamics:
    """The network, trained on one and on two balls between walls: the second ball is absent in half of the worlds."""
    trials = [t for n in LEARNED for t in draw_trials("combo", episodes // 2, 1000 + seed, balls=n)]
    learn, judge = split_recordings(law_recordings(trials), 0.15, torch.Generator().manual_seed(seed))
    model = Dynamics(NetworkConfig(seed=seed))
    train(model, learn, judge, TrainConfig(steps=steps, seed=seed))
    return model


def combo_errors(model: Model, balls: int, films: int, seed: int) -> tuple[Tensor, Tensor]:
    """Errors of velocity (units/s), one per ball and frame, until the second contact of the film, and after it."""
    trials = draw_trials("combo", films, 7000 + seed, balls=balls)
    context = torch.stack([law_poses(trial)[:CONTEXT] for trial in trials])
    _, motions, start = predict(model, trials, context, FRAMES - CONTEXT)
    places = torch.stack([m.world_from_link[:, 1:, :3, 3] for m in (start, *motions)], dim=1)[..., [0, 2]]
    parts = [_split(trial, places[index]) for index, trial in enumerate(trials)]
    return torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])


def _split(trial: Trial, places: Tensor) -> tuple[Tensor, Tensor]:
    truth = torch.from_numpy(trial.centers[CONTEXT - 1 :]).to(places)
    wrong = (places - truth).diff(dim=0).norm(dim=-1) / DT
    second = trial.events[1][0] if len(trial.events) > 1 else FRAMES * DT
    last = max(1, int(second / DT) - CONTEXT + 1)
    return wrong[:last].flatten(), wrong[last:].flatten()
