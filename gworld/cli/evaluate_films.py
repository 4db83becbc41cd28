"""Films and pixel curves of a report: truth beside prediction, small enough to live in the page."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from gworld.cli.evaluate_trials import Subject
from gworld.cli.simulate_draw import at_width
from gworld.data.clips import read_frames
from gworld.evaluate.charts import Line
from gworld.evaluate.rollout_report import Chart, Film
from gworld.evaluate.trials import Trial, ends, pick, rows_of
from gworld.render.paths import bulk, orbit, path_cameras
from gworld.render.video import as_uint8, open_video, side_by_side
from gworld.scene.cameras import Cameras
from gworld.scene.episode import Episode
from gworld.simulate.observe import placed
from gworld.simulate.score import draw_rows, interval, score_pixels

if TYPE_CHECKING:
    from gworld.cli.evaluate import Options

FRAMES = 150
"""Frames of a film at most; longer motions are thinned."""
BYTES = 3_000_000
"""Bytes of a film at most: it is compressed harder until it fits."""
QUALITIES = (23, 30, 36, 44)
SCORED = 25
"""Instants at which pixels are compared."""
CAMERAS = 2
DIFFERENCE = 4.0


def film_trials(subject: Subject, options: Options) -> tuple[list[Film], list[Chart]]:
    """Films of some trials, from the worst to the best, and where there is footage how good their pixels are."""
    films, scores = [], []
    for trial in pick(subject.trials, subject.world, options.films):
        index = next(row for row, each in enumerate(subject.trials) if each is trial)
        episode, start = subject.episodes[index], subject.starts[index]
        cameras, filmed = _cameras(subject, trial, episode, options.width)
        films.append(_film(subject, trial, cameras, filmed, start, subject.commands[index]))
        if filmed is not None and trial.truth is not None:
            scores.append(_scores(subject, trial, cameras, filmed, start))
    return films, _charts(scores, shown=subject.commands[0] if subject.commands else "")


def _cameras(subject: Subject, trial: Trial, episode: Episode | None, width: int) -> tuple[Cameras, Episode | None]:
    """The first cameras of the footage where it is calibrated and stands still (with the episode), else the world's."""
    filmed = None if episode is None or not episode.videos else episode.cameras
    if filmed is not None and filmed.model == "pinhole" and not any(filmed.links):
        return at_width(replace(filmed[:CAMERAS], names=()), width), episode
    world = subject.world
    if world.cameras is not None:
        fixed = placed(world.cameras, trial.predicted[0])
        return at_width(replace(fixed[:CAMERAS], names=(), model="pinhole", distortion=None), width), None
    means = world.gaussians.means[world.gaussians.links > 0] if len(world.links) > 1 else world.gaussians.means
    center, radius = bulk(means)
    return path_cameras(orbit(center, 2.5 * radius, 1.2 * radius, 8)[:1], width, 2 * round(0.375 * width), 0.8), None


def _film(subject: Subject, trial: Trial, cameras: Cameras, filmed: Episode | None, start: float, command: str) -> Film:
    """Truth, prediction and their difference by the first camera."""
    rows = np.unique(np.linspace(0, len(trial.times) - 1, min(FRAMES, len(trial.times))).round().astype(int))
    shown = draw_rows(subject.world, cameras[:1], trial.predicted[rows])[:, 0]
    truth = None
    if filmed is not None:
        truth, what = footage(filmed, cameras[:1], trial.times[rows] + start)[:, 0], "footage"
    elif trial.truth is not None:
        truth, what = draw_rows(subject.world, cameras[:1], trial.truth[rows])[:, 0], "true poses, drawn"
    panels, labels = [shown], ["prediction"]
    if truth is not None:
        panels, labels = (
            [truth, shown, (truth - shown).abs() * DIFFERENCE],
            [what, "prediction", f"difference x{DIFFERENCE:g}"],
        )
    fps = (len(rows) - 1) / max(float(trial.times[rows[-1]] - trial.times[rows[0]]), 1e-6)
    data = encode([[panel[row] for panel in panels] for row in range(len(rows))], labels, min(max(fps, 1.0), 60.0))
    error = ends(trial, subject.world)
    caption = f"{float(trial.times[-1]):.1f} s" + (
        f"; the worst body ends {1e3 * error:.1f} mm off" if error == error else ""
    )
    return Film(trial.name, data, caption, command)


def encode(frames: Sequence[Sequence[Tensor]], labels: Sequence[str], fps: float) -> bytes:
    """Panels side by side as an MP4 of at most `BYTES`, or as small as it gets."""
    data = b""
    with tempfile.TemporaryDirectory() as folder:
        for quality in QUALITIES:
            path = Path(folder) / f"{quality}.mp4"
            with open_video(path, fps, quality=quality) as add:
                for panels in frames:
                    add(side_by_side([as_uint8(panel.clamp(0, 1)) for panel in panels], labels))
            data = path.read_bytes()
            if len(data) <= BYTES:
                break
    return data


def footage(episode: Episode, cameras: Cameras, times: Tensor) -> Tensor:
    """The first cameras' footage [T,C,H,V,3] at instants in seconds since the episode's first, at the cameras' size."""
    views = []
    for video in episode.videos[: len(cameras)]:
        clock = (video.times - episode.times[0]).double()
        rows = (clock[None] - times[:, None].double()).abs().argmin(1)
        wanted = sorted(set(rows.tolist()))
        frames = read_frames(video.path, [video.first + row for row in wanted])
        small = {
            row: torch.from_numpy(np.array(_sized(frame, cameras))) for row, frame in zip(wanted, frames, strict=True)
        }
        views.append(torch.stack([small[row] for row in rows.tolist()]).float() / 255)
    return torch.stack(views, dim=1)


def _sized(frame: np.ndarray, cameras: Cameras) -> Image.Image:
    size = (cameras.width, cameras.height)
    picture = Image.fromarray(frame)
    return picture if picture.size == size else picture.resize(size, Image.Resampling.BOX)


def _scores(
    subject: Subject, trial: Trial, cameras: Cameras, filmed: Episode, start: float
) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
    """Seconds, and PSNR by row: the whole picture, and where something moves."""
    rows = np.unique(np.linspace(0, len(trial.times) - 1, min(SCORED, len(trial.times))).round().astype(int))
    motions = {name: poses[rows] for name, poses in rows_of(trial).items()}
    assert trial.truth is not None
    motions["oracle motion"] = trial.truth[rows]
    found = score_pixels(subject.world, cameras, motions, footage(filmed, cameras, trial.times[rows] + start))
    full, moving = ({name: getattr(part, kind) for name, part in found.items()} for kind in ("full", "moving"))
    return trial.times[rows], full, moving


def _charts(scores: Sequence[tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]], shown: str) -> list[Chart]:
    if not scores:
        return []
    charts = []
    count = min(len(times) for times, _, _ in scores)
    for moving, title in ((False, "Whole picture"), (True, "Where something moves")):
        rows = [part if moving else full for _, full, part in scores]
        lines = []
        for name in rows[0]:
            table = [[float(each[name][row]) for each in rows] for row in range(1, count)]
            middle, low, high = (list(part) for part in zip(*(interval(row) for row in table), strict=True))
            first = name == "prediction"
            band = (low, high) if first and len(scores) > 1 else ((), ())
            lines.append(Line(name, scores[0][0][1:count].tolist(), middle, not first, *band))
        caption = "Against footage, median of the films above; oracle motion: the world drawn at its true poses."
        charts.append(Chart(f"{title}, PSNR", lines, "seconds ahead", "PSNR, dB", caption, shown))
    return charts
