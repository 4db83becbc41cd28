"""A real push, end to end: the recorded push-T, each push foretold by what was learned from the others.

The block's future is simulated from the pusher's motion alone, open loop, from every start at which it moves by 5 mm.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from gworld.bench.catalogue import BenchInput
from gworld.bench.realpush_data import HELD, Pushing, Track, on_plane, pushes_of, read_track, windows_of
from gworld.bench.realpush_network import NAMES as NETWORK_NAMES
from gworld.bench.realpush_network import (
    Stage,
    fit_network,
    open_stage,
    predict_windows,
    settings_of,
    speed_at,
    told_network,
)
from gworld.bench.realpush_planar import Fitted, fit_planar, paths_from, push_blocks, read_offsets
from gworld.bench.rows import Row, at_most
from gworld.dynamics.network import Dynamics
from gworld.dynamics.saved import load_model
from gworld.files import atomic_write, need_asset
from gworld.scene.world import World

if TYPE_CHECKING:
    from gworld.bench.track_real import Recording

HORIZONS = (0.5, 1.0, 2.0)
LEARNED = 1.0
"""Seconds of the windows that are learned from."""
EVERY = 10
"""Every how many starts are learned from: neighbours tell the same."""
HALF = 0.5
"""Part of the better simple way's error that is asked for."""
PARTS = 2
"""Substeps of the network: a stick that creeps needs no more."""
DRAWS = 24
"""Settings drawn for the interval of the quasi-static law."""
RUN = Path("runs/realpush")
ORDER = ("copy", "constant velocity", "quasi-static", "pretraining only", "quasi-static with history", "ours")


@dataclass(frozen=True, eq=False)
class Learned:
    """What was learned from all pushes but one: the law without and with each window's past, and the network."""

    law: Fitted
    aware: Fitted
    network: Fitted


Predict = Callable[[Learned, Tensor, int], Tensor]
"""From what was learned, starts [N] and steps to places of the block [N,T,3]."""


def rows(given: BenchInput) -> Iterator[Row]:
    """Errors of the block's pose, then pictures, then pushes that were never made; nothing where data are missing."""
    from gworld.bench.track_real import HOME, read_recording

    if given.data is None or not (given.data / HOME).is_dir():
        yield Row("push-T (`embodied_gaussians` below --data)", float("nan"), "", note="missing: skipped")
        return
    begin = time.process_time()
    track = track_of(given)
    yield Row("tracking, processor time", time.process_time() - begin, "s", note="0 where a track was there")
    recording = as_tracked(read_recording(given.data), track)
    pushing = open_pushing(recording.world, track)
    stage, model = open_stage(pushing), shipped()
    pushes = pushes_of(pushing)
    yield Row("pushes found", len(pushes), "", note=", ".join(f"{a:.1f} to {b:.1f} s" for a, b in pushes))
    if len(pushes) < 2:
        yield Row("a push to learn from", float("nan"), "", note="at least two pushes are needed: skipped")
        return
    begin = time.process_time()
    learned = {}
    for push in range(len(pushes)) if not given.quick else (len(pushes) - 1,):
        learned[push] = learn(pushing, stage, model, pushes, push, quick=given.quick)
        yield from settings_rows(push, learned[push])
    yield Row("learning, all folds, processor time", time.process_time() - begin, "s")
    horizons = HORIZONS[:1] if given.quick else HORIZONS
    yield from error_rows(pushing, stage, model, pushes, learned, horizons)
    from gworld.bench.realpush_droid import droid_rows
    from gworld.bench.realpush_film import Foretold, film_rows, open_studio
    from gworld.bench.realpush_refined import refined_rows
    from gworld.bench.realpush_robots import command_rows
    from gworld.bench.realpush_whatif import KINDS, acted_rows, whatif_rows

    def predict_in(place: Pushing, own: Learned, starts: Tensor, steps: int) -> Tensor:
        return predictions(place, stage, model, own, starts, steps, ("ours",))["ours"]

    def predict(own: Learned, starts: Tensor, steps: int) -> Tensor:
        return predict_in(pushing, own, starts, steps)

    begin, folder = time.process_time(), (given.track or RUN / "tracked.npz").parent
    values = next(iter(learned.values())).network.values
    studio = open_studio(recording, track, track.held)
    told = Foretold(recording, track, pushing, pushes, learned, predict, studio)
    yield from film_rows(told, horizons, RUN)
    yield from refined_rows(told, folder, RUN)
    yield Row("pictures, processor time", time.process_time() - begin, "s")
    yield from command_rows(pushing, track, pushes, learned, predict_in, folder)
    if not given.quick:
        yield from whatif_rows(pushing, model, values, RUN)
    kinds = KINDS[-1:] if given.quick else KINDS
    yield from acted_rows(pushing, model, values, folder, track.held, RUN, kinds)
    yield from droid_rows(given.data / "droid", folder)


def shipped() -> Dynamics:
    """The network that was trained on the simulated scene `push`, going exactly where it is told."""
    model = load_model(need_asset("dynamics/push"))
    model.config = replace(model.config, substeps=PARTS)
    return told_network(model)


def open_pushing(world: World, track: Track) -> Pushing:
    """The recording on its table."""
    return on_plane(track, world, "tblock", "panda/panda_pusher")


def as_tracked(recording: Recording, track: Track) -> Recording:
    """The recording with the films that the track was made with: without what their lenses bend."""
    from gworld.reconstruct.motion_lens import straightened

    if track.lenses is None or not bool(track.lenses.any()):
        return recording
    lenses = track.lenses[[track.camera_names.index(name) for name in recording.cameras.names]]
    return replace(recording, films=straightened(recording.films, recording.cameras, lenses), lenses=lenses)


def track_of(given: BenchInput) -> Track:
    """The track that was given, that of an earlier run, or a new one (minutes)."""
    path = given.track or RUN / "tracked.npz"
    if not path.is_file():
        assert given.data is not None
        make_track(given.data, path)
    return read_track(path)


def make_track(data: Path, path: Path) -> None:
    """Track the recording with all cameras but the one that judges, and write it."""
    from gworld.bench.track_real import straight_recording, track_way
    from gworld.geometry import transform_from_pose

    recording, _ = straight_recording(data)
    cameras = recording.cameras
    tracked = track_way(recording, cameras.names.index(HELD), 14.7)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path, "wb") as stream:
        np.savez(
            stream,
            times=tracked.times.numpy(),
            world_from_link=transform_from_pose(tracked.link_poses.double()).numpy(),
            link_names=np.array(tracked.link_names),
            plane=np.array(recording.plane),
            camera_names=np.array(cameras.names),
            world_from_camera=cameras.world_from_camera.numpy(),
            held=np.array([HELD]),
            lenses=recording.lenses.numpy(),
        )


def training_sets(
    pushing: Pushing, pushes: list[tuple[float, float]], push: int, every: int = EVERY, seconds: float = LEARNED
) -> list[tuple[Tensor, int]]:
    """(starts, steps) of the other pushes' windows."""
    found = [windows_of(pushing, other, pushes, seconds) for other in range(len(pushes)) if other != push]
    return [(starts[::every], steps) for starts, steps in found if len(starts)]


def learn(
    pushing: Pushing, stage: Stage, model: Dynamics, pushes: list[tuple[float, float]], push: int, quick: bool = False
) -> Learned:
    """Everything that is learned from all pushes but one."""
    some = (2 * EVERY, HORIZONS[0]) if quick else (EVERY, LEARNED)
    sets = training_sets(pushing, pushes, push, *some)
    effort = (2, 1) if quick else (10, 5)
    law = fit_planar(pushing, sets, history=False, steps=effort)
    aware = fit_planar(pushing, sets, history=True, steps=effort)
    return Learned(law, aware, fit_network(model, stage, pushing, sets, aware, 1 if quick else 3))


def settings_rows(push: int, learned: Learned) -> Iterator[Row]:
    """What was found without one push: frictions, the pusher's error, the lever."""
    law = learned.law
    friction, lever = float(law.values[2].exp()), float(law.values[3].exp())
    spread = float(law.sigma[2]) * friction
    note = f"one sigma {spread:.2f}; lever of pressure {1e3 * lever:.0f} +- {1e3 * lever * float(law.sigma[3]):.0f} mm"
    yield Row(f"without push {push + 1}: friction of stick and block, quasi-static", friction, "", note=note)
    told = ", ".join(
        f"{name} {float(value):.3g}" for name, value in zip(NETWORK_NAMES, learned.network.values, strict=True)
    )
    yield Row(f"without push {push + 1}: cost of the network's fit", learned.network.after, "", note=told,
              baseline=learned.network.before)  # fmt: skip


def predictions(
    pushing: Pushing,
    stage: Stage,
    model: Dynamics,
    learned: Learned,
    starts: Tensor,
    steps: int,
    ways: tuple[str, ...] = ORDER,
) -> dict[str, Tensor]:
    """Places of the block [N,T,3] in windows by some ways."""
    block, path = pushing.block[starts], paths_from(pushing, starts, steps)
    ahead = torch.arange(steps + 1)[None, :, None]
    offset = read_offsets(learned.aware.values, pushing, starts)
    told: dict[str, Callable[[], Tensor]] = {
        "copy": lambda: block[:, None].expand(-1, steps + 1, -1),
        "constant velocity": lambda: block[:, None] + ahead * pushing.dt * speed_at(pushing, starts)[:, None],
        "quasi-static": lambda: push_blocks(learned.law.values[None], pushing, block[None], path)[0],
        "quasi-static with history": lambda: push_blocks(
            learned.aware.values[None], pushing, block[None], path + offset[:, None]
        )[0],
        "pretraining only": lambda: predict_windows(model, stage, settings_of(model)[None], pushing, starts, steps)[0],
        "ours": lambda: predict_windows(model, stage, learned.network.values[None], pushing, starts, steps, offset)[0],
    }
    return {name: told[name]() for name in ways}


def error_rows(
    pushing: Pushing,
    stage: Stage,
    model: Dynamics,
    pushes: list[tuple[float, float]],
    learned: dict[int, Learned],
    horizons: tuple[float, ...],
) -> Iterator[Row]:
    """Medians and 90th percentiles at the windows' ends, over all pushes and of each."""
    for seconds in horizons:
        errors: dict[str, list[Tensor]] = {}
        draws = []
        for push, own in learned.items():
            starts, steps = windows_of(pushing, push, pushes, seconds)
            if not len(starts):
                continue
            truth = pushing.block[starts + steps]
            for name, places in predictions(pushing, stage, model, own, starts, steps).items():
                errors.setdefault(name, []).append(1e3 * pushing.apart(places[:, -1], truth))
            draws.append(_drawn(pushing, own.law, starts, steps))
        if errors:
            yield from _horizon_rows(seconds, errors, torch.cat(draws, dim=1))


def _drawn(pushing: Pushing, law: Fitted, starts: Tensor, steps: int) -> Tensor:
    """Errors [DRAWS,N] (mm) of the quasi-static law for settings as likely as the fitted one."""
    noise = torch.randn(DRAWS, len(law.values), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    many = law.values + noise * law.sigma
    found = push_blocks(many, pushing, pushing.block[starts][None], paths_from(pushing, starts, steps))
    return 1e3 * pushing.apart(found[:, :, -1], pushing.block[starts + steps])


def _horizon_rows(seconds: float, errors: dict[str, list[Tensor]], draws: Tensor) -> Iterator[Row]:
    whole = {name: torch.cat(parts) for name, parts in errors.items()}
    simple = min(("copy", "constant velocity"), key=lambda name: float(whole[name].median()))
    best = float(whole[simple].median())
    label = f"block after {seconds:g} s"
    for name in ORDER:
        value, high = float(whole[name].median()), float(whole[name].quantile(0.9))
        each = ", ".join(f"{float(part.median()):.1f}" for part in errors[name])
        note = f"90th percentile {high:.1f}; by push {each}"
        if name == "quasi-static":
            low, top = (float(draws.median(dim=1).values.quantile(share)) for share in (0.05, 0.95))
            note += f"; 90 % interval of its fit {low:.1f} to {top:.1f}"
        if name == "ours":
            note += f"; {len(whole[name])} windows; baseline: {simple}"
            yield at_most(f"{label}, ours", value, "mm", HALF * best, best, note)
        else:
            yield Row(f"{label}, {name}", value, "mm", note=note)
    yield Row(f"{label}, oracle (the tracked motion)", 0.0, "mm", note="by definition; pictures tell what it is worth")
