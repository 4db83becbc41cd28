"""Futures as pictures: recorded scenes reconstructed from their films, then simulated under actions they never saw."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from gworld.bench.catalogue import BenchInput
from gworld.bench.recorded import (
    CONTEXT,
    FPS,
    Recorded,
    film_rows,
    open_recorded,
    reconstruct_recorded,
    shipped_stepper,
    state_at,
    told,
    true_poses,
)
from gworld.bench.rows import Row, at_least
from gworld.data.simulated import Trace, simulate_episode
from gworld.render.video import as_uint8, open_video, side_by_side
from gworld.scene.world import World
from gworld.simulate.engine import Engine, EngineOptions
from gworld.simulate.observe import pick_cameras
from gworld.simulate.score import coast, draw_rows, interval, motion_ratio, score_pixels
from gworld.simulate.stepper import Stepper

KINDS = ("expert", "random", "extreme", "adversarial", "null")
STEPS = (1, 8, 32, 96, 192)
WATCHED = [0, 8, 16]
"""Cameras whose pictures are judged, of those that filmed the scan."""
FIRST = CONTEXT - 1
SEED = 7000
ROWS = ("oracle motion", "ours", "constant velocity", "copy")


@dataclass(frozen=True)
class Found:
    """One future: its kind, PSNR by row of the whole picture and of what moves [S], motion ratio, error (m) [S]."""

    kind: str
    full: dict[str, Tensor]
    moving: dict[str, Tensor]
    ratio: float
    error: Tensor


def rows(given: BenchInput) -> Iterator[Row]:
    """Rows of the scenes `push` and `arms`; simulators need the extra `sim` and an offscreen OpenGL."""
    for name in ("push",) if given.quick else ("push", "arms"):
        with tempfile.TemporaryDirectory() as folder:
            recorded = open_recorded(name, Path(folder), width=160 if given.quick else 320)
            world, plates = reconstruct_recorded(recorded, 0.25 if given.quick else 1.0)
            yield Row(f"{name}, static scene, cameras held out of its fit", plates, "dB", note="24 cameras in all")
            stepper = shipped_stepper(name, world)
            steps = STEPS[:3] if given.quick else STEPS
            kinds = KINDS[:2] if given.quick else KINDS
            found = [follow(recorded, world, stepper, kind, steps, given.seed) for kind in kinds]
            yield from score_rows(name, found, steps, stepper.note)
            recorded.simulation.close()


def follow(recorded: Recorded, world: World, stepper: Stepper, kind: str, steps: tuple[int, ...], seed: int) -> Found:
    """One future of a kind of behaviour, judged at some steps by some cameras."""
    policy = dict.fromkeys(recorded.simulation.agents, kind)
    trace, _ = simulate_episode(recorded.simulation, policy, SEED + seed, (FIRST + max(steps) + 2) / FPS)
    predicted = predict(world, stepper, trace, max(steps))
    truth = true_poses(trace, FIRST, FIRST + max(steps))
    at = [0, *steps]
    start = state_at(trace, FIRST)
    motions = {
        "oracle motion": truth[at],
        "ours": predicted[at],
        "constant velocity": coast(truth[0], start.velocities, torch.tensor(at) / FPS),
        "copy": truth[:1].expand(len(at), -1, -1, -1),
    }
    footage = film_rows(recorded.simulation, trace, [FIRST + step for step in at], WATCHED)
    assert world.cameras is not None
    found = score_pixels(world, pick_cameras(world.cameras, WATCHED), motions, footage)
    free = [link for entity in world.entities if entity.kind == "object" for link in entity.links]
    moved = [link for link in free if float((truth[:, link, :3, 3] - truth[0, link, :3, 3]).norm(dim=-1).max()) > 0.01]
    error = (predicted - truth)[list(steps)][:, moved, :3, 3].norm(dim=-1)
    full, moving = ({name: getattr(part, k)[1:] for name, part in found.items()} for k in ("full", "moving"))
    return Found(kind, full, moving, motion_ratio(world, predicted, truth), error)


def predict(world: World, stepper: Stepper, trace: Trace, steps: int) -> Tensor:
    """The motion [steps + 1,L,4,4] predicted from a recording's first frames under its actions."""
    engine = Engine(world, stepper, EngineOptions(1 / FPS))
    engine.reset(0, state_at(trace, FIRST))
    poses = [engine.motion.world_from_link]
    for step in range(steps):
        poses.append(engine.step(told(trace, FIRST + step)).world_from_link)
    return torch.cat(poses)


def score_rows(name: str, found: list[Found], steps: tuple[int, ...], note: str) -> Iterator[Row]:
    """Medians over the kinds of behaviour for each row and step, then each kind at the steps that have goals."""
    for index, step in enumerate(steps):
        full = {row: interval([float(each.full[row][index]) for each in found])[0] for row in ROWS}
        part = {row: interval([float(each.moving[row][index]) for each in found])[0] for row in ROWS}
        for row in ROWS:
            label, baseline = f"{name}, step {step}, {row}", full["copy"] if row == "ours" else None
            about = f"{part[row]:.1f} dB where something moves" + (f"; {note}" if row == "ours" and index == 0 else "")
            yield _row(label, row, step, full, baseline, about)
    for each in found:
        for step in (8, 192):
            if step in steps:
                index = steps.index(step)
                ours, oracle = float(each.full["ours"][index]), float(each.full["oracle motion"][index])
                about = f"oracle motion {oracle:.1f}; where something moves {float(each.moving['ours'][index]):.1f} of "
                about += f"{float(each.moving['oracle motion'][index]):.1f}"
                errors = each.error[index]
                about += f"; objects {1e3 * float(errors.median()):.0f} mm off" if len(errors) else ""
                yield Row(
                    f"{name}, {each.kind}, step {step}", ours, "dB", "", float(each.full["copy"][index]), None, about
                )
        ok = None if each.ratio != each.ratio else 0.9 <= each.ratio <= 1.1
        yield Row(f"{name}, {each.kind}, motion ratio", each.ratio, "", "0.9 to 1.1", None, ok)


def _row(label: str, row: str, step: int, full: dict[str, float], baseline: float | None, about: str) -> Row:
    """A row with its goal: 30 dB for the oracle and at step 8; at 192 25.8 dB or a decibel under the oracle."""
    value = full[row]
    if row == "oracle motion":
        return at_least(label, value, "dB", 30.0, None, about)
    if row == "ours" and step == 8:
        return at_least(label, value, "dB", 30.0, baseline, about)
    if row == "ours" and step == 192:
        limit = min(25.8, full["oracle motion"] - 1.0)
        return at_least(label, value, "dB", limit, baseline, about)
    return Row(label, value, "dB", "", baseline, None, about)


def film(recorded: Recorded, world: World, trace: Trace, predicted: Tensor, path: Path, camera: int = 0) -> None:
    """Footage beside prediction as a video, to be looked at."""
    assert world.cameras is not None
    count = len(predicted)
    real = film_rows(recorded.simulation, trace, [FIRST + row for row in range(count)], [camera])[:, 0]
    drawn = draw_rows(world, replace(world.cameras[camera], names=()), predicted)[:, 0]
    with open_video(path, FPS) as add:
        for one, two in zip(real, drawn, strict=True):
            add(side_by_side([as_uint8(one), as_uint8(two)], ("footage", "prediction")))
