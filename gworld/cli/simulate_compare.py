"""A run beside something else: the truth of a recorded episode, or the same run with one agent's actions swapped."""

from __future__ import annotations

import csv
import math
import shlex
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gworld.cli.simulate import Options, load_table
from gworld.cli.simulate_draw import Look, at_width, facts_of, make_look, ticked, write_motion
from gworld.data.clips import read_frames
from gworld.dynamics.state import Motion, motion_from_poses, move_frames
from gworld.errors import InputError, UsageError
from gworld.files import atomic_write, refuse_existing
from gworld.geometry import quat_from_matrix, rotvec_from_quat, transform_from_pose
from gworld.render.video import as_uint8, open_video, side_by_side
from gworld.scene.episode import Episode, Video
from gworld.scene.rollout import Rollout, poses_at
from gworld.scene.world import World, WorldState
from gworld.simulate.actions import ActionTable, load_episode, read_actions, swap_agent, table_from_episode
from gworld.simulate.engine import Engine, EngineOptions
from gworld.simulate.files import camera_name, write_rollout
from gworld.simulate.observe import Observer
from gworld.simulate.run import run_engine, steps_for, tell_table
from gworld.simulate.stepper import Stepper

CONTEXT = 3
"""Frames of a recording that tell where everything is and how fast it moves."""
STRENGTH = 4.0
"""How much a difference is brightened to be seen."""


def compare_run(world: World, stepper: Stepper, settings: EngineOptions, options: Options) -> dict[str, Any]:
    """Run from a recording's first frames under its actions, draw truth above prediction, write the errors."""
    assert options.compare is not None
    errors = options.out.with_name(f"{options.out.stem}-errors.csv")
    refuse_existing(errors, overwrite=options.overwrite)
    episode = load_episode(options.compare, options.number)
    table = load_table(world, options) or table_from_episode(episode, world, str(options.compare))
    truth, state, start = true_motion(world, episode)
    left = float(episode.times[-1] - episode.times[0]) - start
    count = steps_for(min(options.seconds or left, left), settings.step)
    engine = Engine(world, stepper, settings)
    engine.reset(options.seed, state)
    look, videos = _eyes(world, episode, options, count)
    first = engine.motion
    rows: list[dict[str, float | str]] = []
    with open_video(options.out, look.fps) as add:
        painter = _Painter(world, look, videos, episode, start)

        def watch(step: int, motion: Motion) -> None:
            if step % look.every == 0:
                picture, scores = painter.draw(motion, truth)
                add(picture)
                rows.extend(_errors(world, motion, first, truth, scores))

        told, sure = ticked(tell_table(engine, table, count, start), count), options.deviations
        run = run_engine(engine, told, count, (options.seed,), watch, sure)
    _write_rows(errors, rows)
    files = [str(options.out), str(errors), *write_motion(world, run, options)]
    source = {"episodes": str(options.compare), "number": options.number, "start": start}
    follow = f"one page of it, with films and charts: gworld evaluate {shlex.quote(str(options.out))}"
    return facts_of(options, run, files, count // look.every + 1, _verdict(rows)) | {"truth": source, "next": follow}


def swap_run(world: World, stepper: Stepper, settings: EngineOptions, options: Options) -> dict[str, Any]:
    """The run as it was told, the run with agents' actions swapped, and what differs, side by side."""
    table = load_table(world, options)
    assert table is not None
    other_path = options.out.with_name(f"{options.out.stem}-swapped.parquet")
    refuse_existing(other_path, overwrite=options.overwrite)
    other = _swapped(table, world, options)
    count = steps_for(options.seconds or max(table.seconds, other.seconds), settings.step)
    engine, look = Engine(world, stepper, settings), make_look(world, options, count)
    engine.reset(options.seed)
    kept: list[Motion] = []
    told, sure = tell_table(engine, table, count), options.deviations
    run = run_engine(engine, told, count, (options.seed,), lambda _, m: kept.append(m), sure)
    engine.reset(options.seed)
    second = make_look(world, options, count)
    changed = [0.0]
    with open_video(options.out, look.fps) as add:

        def watch(step: int, motion: Motion) -> None:
            if step % look.every == 0:
                one, two = look.observer(kept[step]).rgb, second.observer(motion).rgb
                assert one is not None and two is not None
                apart = (one - two).abs()
                changed[0] = float((apart.amax(-1) > 0).float().mean())
                shown = [_wide(part) for part in (one[0], two[0], apart[0] * STRENGTH)]
                add(side_by_side(shown, ("as told", "swapped", f"difference x{STRENGTH:g}")))

        told = ticked(tell_table(engine, other, count), count)
        swapped = run_engine(engine, told, count, (options.seed,), watch, sure)
    files = [str(options.out), *write_motion(world, run, options), str(other_path)]
    write_rollout(swapped.rollouts[0], other_path)
    moved = _moved_otherwise(world, run.rollouts[0], swapped.rollouts[0])
    result = (
        f"{', '.join(moved) or 'nothing'} moved otherwise; {100 * changed[0]:.1f} % of the last frame's pixels differ"
    )
    return facts_of(options, run, files, count // look.every + 1, result)


def _swapped(table: ActionTable, world: World, options: Options) -> ActionTable:
    other = table
    for text in options.swap:
        agent, equals, file = text.partition("=")
        if not equals or not file:
            raise UsageError(f"`--swap {text}` cannot be read; `agent=FILE` is the form.")
        other = swap_agent(other, read_actions(file, world, 1.0 / options.rate), agent)
    return other


def _moved_otherwise(world: World, one: Rollout, two: Rollout) -> list[str]:
    """Entities of which any link ever stood elsewhere."""
    apart = (one.link_poses != two.link_poses).any(-1).any(0)
    return [entity.name for entity in world.entities if bool(apart[list(entity.links)].any())]


def true_motion(
    world: World, episode: Episode, begin: float | None = None
) -> tuple[Rollout | None, WorldState | None, float]:
    """The recorded motion of the world's links from `begin` (seconds into the episode; its third frame when None) on,
    on a clock that starts there, the state there, and the seconds at which it really starts; nothing without poses."""
    if episode.link_poses is None or len(episode) < 2:
        return None, None, 0.0
    names = [link.name for link in world.links]
    rest = torch.tensor([link.pose for link in world.links])
    poses = rest.expand(len(episode), -1, 7).clone()
    known = [name for name in episode.link_names if name in names]
    if not known:
        raise InputError(
            f"the episode tracks none of the world's links; it tracks {', '.join(episode.link_names[:8])}."
        )
    for name in known:
        found = episode.link_poses[:, episode.link_names.index(name)].float()
        gaps = ~torch.isfinite(found).all(-1)
        poses[:, names.index(name)] = torch.where(
            gaps[:, None], _last_known(found, gaps, rest[names.index(name)]), found
        )
    clock = (episode.times - episode.times[0]).double()
    first = (
        min(CONTEXT, len(episode) - 1) - 1
        if begin is None
        else min(int((clock - begin).abs().argmin()), len(clock) - 2)
    )
    dt = float(clock[1:].diff().median()) if len(clock) > 2 else float(clock[1])
    motion = motion_from_poses(poses[None, max(0, first + 1 - CONTEXT) : first + 1], dt)
    state = WorldState(motion.world_from_link[0], motion.twists[0], torch.zeros(0, len(names), 7))
    return Rollout(clock[first:] - clock[first], poses[first:], tuple(names)), state, float(clock[first])


def _last_known(poses: Tensor, gaps: Tensor, rest: Tensor) -> Tensor:
    """For each row the latest row without a gap; the rest pose before the first."""
    rows = torch.where(gaps, torch.zeros_like(gaps, dtype=torch.int64), torch.arange(len(gaps))).cummax(0).values
    return torch.where((gaps & (rows == 0) & gaps[0])[:, None], rest, torch.nan_to_num(poses)[rows])


def _eyes(world: World, episode: Episode, options: Options, steps: int) -> tuple[Look, list[tuple[int, Video]]]:
    """Through the episode's own calibrated cameras where it has them, else the world's; each with its video."""
    if episode.cameras is None or not episode.videos or options.cameras:
        return make_look(world, options, steps), []
    cameras = at_width(replace(episode.cameras, names=tuple(v.name for v in episode.videos)), options.width)
    look = make_look(replace(world, cameras=cameras), options, steps)
    straight = episode.cameras.model == "pinhole"
    return look, [(index, video) for index, video in enumerate(episode.videos) if straight]


class _Painter:
    """Draws truth above prediction: the film where there is one, else the world in its true poses."""

    def __init__(
        self, world: World, look: Look, videos: list[tuple[int, Video]], episode: Episode, start: float
    ) -> None:
        self.look, self.films = look, {}
        self.truth_eye: Observer = replace_observer(world, look)
        self.first: dict[int, Tensor] = {}
        for index, video in videos:
            times = (video.times - episode.times[0]).double().numpy() - start
            self.films[index] = _Film(video, times)

    def draw(self, motion: Motion, truth: Rollout | None) -> tuple[np.ndarray, dict[str, float]]:
        """The picture of an instant, and PSNR in dB of each camera, of the prediction and of the first true frame."""
        frame = self.look.observer(motion)
        assert frame.rgb is not None
        true = None
        if truth is not None:
            poses = transform_from_pose(poses_at(truth, motion.time)[None])
            true = self.truth_eye(replace(motion, world_from_link=poses)).rgb
        scores: dict[str, float] = {}
        rows: list[list[np.ndarray]] = [[], []]
        for camera in range(len(frame.cameras)):
            shown = frame.rgb[0, camera]
            real = self.films[camera].at(motion.time, shown) if camera in self.films else None
            if real is None and true is not None:
                real = true[0, camera]
            if real is not None:
                name = camera_name(frame.cameras, camera)
                first = self.first.setdefault(camera, real)
                scores[f"psnr_{name}"] = _psnr(shown, real)
                scores[f"psnr_{name}_copy"] = _psnr(first, real)
                rows[0].append(as_uint8(real))
            rows[1].append(as_uint8(shown))
        labels = [["truth"] + [""] * (len(rows[0]) - 1), ["prediction"] + [""] * (len(rows[1]) - 1)]
        drawn = [side_by_side(row, label) for row, label in zip(rows, labels, strict=True) if row]
        return np.concatenate(drawn, axis=0), scores


class _Film:
    """A video's frames by time, read forward."""

    def __init__(self, video: Video, times: np.ndarray) -> None:
        self.times, self.number = times, -1
        self.frames: Iterator[np.ndarray] = read_frames(video.path, range(video.first, video.first + len(times)))
        self.picture: Tensor | None = None

    def at(self, time: float, like: Tensor) -> Tensor | None:
        """The frame shown at `time`, at the size of `like`; times must not go back."""
        from PIL import Image

        wanted = int(np.searchsorted(self.times, time + 1e-6, side="right")) - 1
        picture = None
        while self.number < wanted:
            picture, self.number = next(self.frames), self.number + 1
        if picture is not None:
            size = (like.shape[1], like.shape[0])
            image = Image.fromarray(picture)
            scaled = image if image.size == size else image.resize(size, Image.Resampling.BOX)
            self.picture = torch.from_numpy(np.array(scaled)).float() / 255
        return self.picture


def replace_observer(world: World, look: Look) -> Observer:
    """A second observer with the same cameras: each keeps the frame before its own."""
    return Observer(world, look.cameras, ("rgb",))


def _errors(
    world: World, motion: Motion, first: Motion, truth: Rollout | None, scores: dict[str, float]
) -> list[dict[str, float | str]]:
    """One row per body and one for the pictures: mean over a body's links, beside copying and constant velocity."""
    now: dict[str, float | str] = {"time": round(motion.time, 6)}
    rows: list[dict[str, float | str]] = [{**now, "body": "(pictures)", **scores}] if scores else []
    if truth is None:
        return rows
    real = transform_from_pose(poses_at(truth, motion.time))
    drift = first.twists[0] * motion.time
    coast = move_frames(first.world_from_link[0], drift[:, :3], drift[:, 3:])
    guesses = {"": motion.world_from_link[0], "_copy": first.world_from_link[0], "_constant_velocity": coast}
    for entity in world.entities:
        links = list(entity.links)
        if entity.kind == "static" or not links:
            continue
        row: dict[str, float | str] = {**now, "body": entity.name}
        for name, poses in guesses.items():
            turn = poses[links, :3, :3] @ real[links, :3, :3].mT
            row[f"position_m{name}"] = float((poses[links, :3, 3] - real[links, :3, 3]).norm(dim=-1).mean())
            angle = rotvec_from_quat(quat_from_matrix(turn)).norm(dim=-1).mean()
            row[f"rotation_deg{name}"] = math.degrees(float(angle))
        rows.append(row)
    return rows


def _write_rows(path: Path, rows: list[dict[str, float | str]]) -> None:
    columns = list(dict.fromkeys(name for row in rows for name in row))
    with atomic_write(path, "w") as stream:
        writer = csv.DictWriter(stream, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()} for row in rows)


def _verdict(rows: list[dict[str, float | str]]) -> str:
    """The last instant's errors beside their baselines, in one line."""
    parts = []
    last = [row for row in rows if row["time"] == rows[-1]["time"]] if rows else []
    bodies = [row for row in last if "position_m" in row]
    if bodies:
        worst = max(bodies, key=lambda row: float(row["position_m"]))
        mine, copy, coast = (
            1000 * sum(float(row[f"position_m{end}"]) for row in bodies) / len(bodies)
            for end in ("", "_copy", "_constant_velocity")
        )
        parts.append(
            f"{mine:.1f} mm off after {rows[-1]['time']:.2f} s (worst {worst['body']}); copying the start "
            f"{copy:.1f} mm, constant velocity {coast:.1f} mm"
        )
    pictures = [row for row in rows if row["body"] == "(pictures)"]
    if pictures:
        names = [name for name in pictures[0] if name.startswith("psnr_") and not name.endswith("_copy")]
        mean, base = (
            np.mean([min(float(row[f"{n}{end}"]), 99.0) for row in pictures for n in names]) for end in ("", "_copy")
        )
        parts.append(f"{mean:.1f} dB against the footage; its first frame {base:.1f} dB")
    return "; ".join(parts) or "the episode has neither poses nor calibrated footage to compare with"


def _psnr(one: Tensor, two: Tensor) -> float:
    error = float((one - two).square().mean())
    return 99.0 if error < 1e-10 else -10 * math.log10(error)


def _wide(pictures: Tensor) -> np.ndarray:
    """The cameras of one world below each other."""
    return np.concatenate([as_uint8(picture.clamp(0, 1)) for picture in pictures], axis=0)
