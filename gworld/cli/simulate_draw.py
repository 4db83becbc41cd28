"""A run as it is drawn: cameras chosen, frames to video, labels and episodes while the engine steps."""

from __future__ import annotations

import contextlib
import math
import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gworld.cli.options import say
from gworld.cli.panels import draw
from gworld.cli.scenes import world_means
from gworld.cli.simulate import Options, load_table, prepare
from gworld.data.store import EpisodeWriter
from gworld.dynamics.state import Motion
from gworld.errors import InputError, UsageError
from gworld.files import atomic_folder
from gworld.reconstruct.coverage import coverage_map, load_coverage
from gworld.render.api import RenderOptions
from gworld.render.paths import bulk, orbit, path_cameras, read_camera_path
from gworld.render.select import choose_backend
from gworld.render.video import Frame as Picture
from gworld.render.video import open_video, side_by_side
from gworld.runlog import track
from gworld.scene.cameras import Cameras, project_points, resize_cameras
from gworld.scene.world import World
from gworld.simulate.engine import Engine, EngineOptions
from gworld.simulate.files import LabelFolder, camera_name, make_episode, write_animation, write_rollout
from gworld.simulate.observe import Frame, Observer, pick_cameras, travel
from gworld.simulate.observe import Path as CameraPath
from gworld.simulate.run import Run, run_engine
from gworld.simulate.stepper import Stepper
from gworld.simulate.touch import Surfaces

PANELS = ("rgb", "depth", "link_id", "flow")
SHOWN = 16
"""Worlds that a video shows at most."""
EPISODE_QUALITY = 16
MANY, FEW = 24, 4
"""Cameras beyond which a world, made from a scan, is shown by a few of its standing ones when none are named."""


@dataclass(frozen=True)
class Look:
    """How a run is watched: cameras or a path of them, an observer, frames per second, steps per frame."""

    cameras: Cameras | CameraPath
    observer: Callable[[Motion], Frame]
    fps: float
    every: int


def draw_run(world: World, stepper: Stepper, settings: EngineOptions, options: Options) -> dict[str, Any]:
    """One run of all worlds, drawn as it goes; returns the facts of the closing lines."""
    engine = Engine(world, stepper, settings)
    engine.reset(options.seed)
    told, count, words = prepare(engine, options, load_table(world, options))
    look = make_look(world, options, count)
    files = [str(options.out)]
    with contextlib.ExitStack() as stack:
        label = stack.enter_context(_labels(world, options, settings.step))
        record = stack.enter_context(_recording(look, engine, options))
        add = stack.enter_context(open_video(options.out, look.fps))

        def watch(step: int, motion: Motion) -> None:
            if step % look.every == 0:
                frame = look.observer(motion)
                add(grid(frame, options.outputs))
                label(frame, motion)
                record.frame(frame)
            record.state(motion)

        run = run_engine(engine, ticked(told, count), count, (options.seed,), watch, options.deviations)
        record.finish(run, words)
    files += write_motion(world, run, options)
    files += [str(path) for path in (options.labels, options.episode) if path is not None]
    frames = count // look.every + 1
    result = (
        f"{count} steps of {settings.worlds} world{'s' * (settings.worlds > 1)}, {frames} frames at {look.fps:g} fps"
    )
    return facts_of(options, run, files, frames, f"{result}; nothing to compare with (see --compare)")


def make_look(world: World, options: Options, steps: int) -> Look:
    """Cameras, observer and frame rate that the options ask for."""
    every = 1 if options.fps is None else max(1, round(options.rate / options.fps))
    cameras = choose_cameras(world, options, steps / options.rate)
    backend = choose_backend(world.gaussians, ("rgb",), options.backend)
    observer = Observer(
        world,
        cameras,
        options.outputs,
        options=None if options.background is None else RenderOptions(background=options.background),
        backend=backend,
        seen=seen_map(world, options) if "seen" in options.outputs else None,
    )
    if options.refine or options.refiner is not None:
        from gworld.cli.refine_film import refine_observer

        refined = refine_observer(observer, world, options.refiner, options.background, backend)
        return Look(cameras, refined, options.rate / every, every)
    return Look(cameras, observer, options.rate / every, every)


def choose_cameras(world: World, options: Options, seconds: float) -> Cameras | CameraPath:
    """The world's cameras by name, an orbit, or a path from a file, at the width asked for."""
    words = options.cameras
    if words == ("orbit",) or (not words and world.cameras is None):
        center, radius = bulk(world_means(world, world.rest_poses()))
        count = max(2, round(seconds * 30) + 1)
        poses = orbit(center, 2.0 * radius, 1.1 * radius, count)
        return travel(path_cameras(poses, options.width, even(options.width * 3 / 4), 0.8), seconds)
    if len(words) == 1 and words[0].lower().endswith(".json"):
        path, _ = read_camera_path(words[0])
        return travel(at_width(path, options.width), seconds)
    cameras = world.cameras
    if cameras is None:
        raise InputError(f"`{options.world}` holds no cameras; use `--cameras orbit` or a camera-path file.")
    names = cameras.names or tuple(f"camera{index}" for index in range(len(cameras)))
    missing = [word for word in words if word not in names]
    if missing:
        raise UsageError(f"there is no camera `{missing[0]}`; there are {', '.join(names)}, and orbit.")
    cameras = replace(cameras, names=names, model="pinhole", distortion=None)
    if not words and len(names) > MANY:
        fixed = [place for place in range(len(names)) if not cameras.links or cameras.links[place] == 0]
        riding = set(range(len(names))) - set(fixed)
        fixed = seeing(world, cameras, fixed)
        spread = {fixed[(2 * place + 1) * len(fixed) // (2 * FEW)] for place in range(FEW)} if fixed else set()
        words = tuple(name for place, name in enumerate(names) if place in spread or place in riding)
        say(f"{len(words)} of {len(names)} cameras are shown: {', '.join(words)} (others with `--cameras`)")
    return at_width(pick_cameras(cameras, [names.index(word) for word in words or names]), options.width)


def seeing(world: World, cameras: Cameras, rows: list[int]) -> list[int]:
    """Those cameras that have at least half as much of robots and things in sight, at rest, as the best of them has."""
    links = [link for entity in world.entities for link in entity.links]
    if not links or not rows:
        return rows
    places, depth = project_points(pick_cameras(cameras, rows), world.rest_poses()[links, :3, 3])
    size = places.new_tensor([cameras.width, cameras.height])
    share = ((places >= 0) & (places < size)).all(-1).logical_and(depth > 0).float().mean(1)
    if not bool(share.any()):
        names = ", ".join(entity.name for entity in world.entities)
        say(f"no camera sees {names}; place them with `gworld bind --base`, or look with `--cameras orbit`")
    return [row for row, part in zip(rows, share.tolist(), strict=True) if part >= share.max() / 2]


def at_width(cameras: Cameras, width: int) -> Cameras:
    """Cameras that make pictures of an even size of that width."""
    return resize_cameras(cameras, even(width), even(cameras.height * width / cameras.width))


def even(value: float) -> int:
    """The nearest even number, 2 at least: what video takes."""
    return max(2, 2 * round(value / 2))


def seen_map(world: World, options: Options) -> Callable[[Tensor, Cameras], Tensor]:
    """What the footage showed, from the world's coverage."""
    coverage = None if world.folder is None else load_coverage(world.folder)
    if coverage is None:
        raise InputError(
            f"`{options.world}` has no coverage.safetensors; `seen` needs a world reconstructed by gworld."
        )
    known = coverage

    def look(poses: Tensor, cameras: Cameras) -> Tensor:
        return coverage_map(
            known, world.gaussians, cameras, world_from_link=poses, options=RenderOptions(), backend=options.backend
        )

    return look


def grid(frame: Frame, outputs: tuple[str, ...]) -> np.ndarray:
    """One picture of all cameras and panels (a lone world), or of the first camera of up to `SHOWN` worlds."""
    panels = [name for name in outputs if name in PANELS] or ["rgb"]
    worlds = len(next(value for name in panels if (value := getattr(frame, name)) is not None))
    if worlds == 1:
        rows = []
        for name in panels:
            names = [camera_name(frame.cameras, camera) for camera in range(len(frame.cameras))]
            labels = names if len(names) > 1 and name == panels[0] else [""] * len(names)
            rows.append(side_by_side([draw(name, getattr(frame, name)[0, c]) for c in range(len(names))], labels))
        return np.concatenate(rows, axis=0)
    values = getattr(frame, panels[0])
    tiles: list[Picture] = [draw(panels[0], values[world, 0]) for world in range(min(worlds, SHOWN))]
    across = math.ceil(math.sqrt(len(tiles)))
    tiles += [np.zeros_like(np.asarray(tiles[0]))] * (-len(tiles) % across)
    rows = [side_by_side(tiles[start : start + across]) for start in range(0, len(tiles), across)]
    return np.concatenate(rows, axis=0)


def ticked(told: Callable[[int], Any], count: int) -> Callable[[int], Any]:
    """The same, with progress said."""
    ticks: Iterator[int] = iter(track(range(count), "steps", total=count))

    def tell(step: int) -> Any:
        next(ticks)
        return told(step)

    return tell


def write_motion(world: World, run: Run, options: Options) -> list[str]:
    """`rollout.parquet` beside the video (one per world) and the animation; returns what was written."""
    files = []
    for row, rollout in enumerate(run.rollouts):
        path = motion_file(options, row)
        write_rollout(replace(rollout, seeds=(options.seed + row,)), path)
        files.append(str(path))
    if len(files) > 3:
        files = [files[0], "..", files[-1]]
    if options.glb is not None:
        write_animation(world, run.rollouts[0], options.glb)
        files.append(str(options.glb))
    return files


def motion_file(options: Options, row: int = 0) -> Path:
    """Where the motion of one world is written."""
    name = options.out.stem if options.worlds == 1 else f"{options.out.stem}-{row:03d}"
    return options.out.with_name(f"{name}.parquet")


@contextlib.contextmanager
def _labels(world: World, options: Options, step: float) -> Iterator[Callable[[Frame, Motion], None]]:
    if options.labels is None:
        yield lambda frame, motion: None
        return
    own = ("labels.json", "frames.jsonl", "world-*")
    with atomic_folder(options.labels, own=own, overwrite=options.overwrite) as folder:
        writer, surfaces = LabelFolder(folder, world, step), Surfaces(world)

        def add(frame: Frame, motion: Motion) -> None:
            contacts = surfaces.contacts(motion.world_from_link, options.contact_margin)
            writer.add(frame, motion.world_from_link, contacts)

        yield add


class _Recorder:
    """Keeps every camera's video of every world, and joint values, and adds them to a store as episodes at the end."""

    def __init__(self, look: Look, engine: Engine, options: Options, stack: contextlib.ExitStack) -> None:
        self.look, self.engine, self.options, self.stack = look, engine, options, stack
        self.writer = None if options.episode is None else stack.enter_context(EpisodeWriter(options.episode))
        self.joints: dict[str, list[Tensor]] = {name: [] for name in engine.stepper.bodies}
        self.adds: dict[tuple[int, str], Any] = {}
        self.open = contextlib.ExitStack()
        self.folder = Path()
        if self.writer is not None:
            self.folder = self.writer.scratch().with_name(".simulating")
            self.folder.mkdir(exist_ok=True)
            stack.callback(partial(_remove, self.folder))

    def frame(self, frame: Frame) -> None:
        if self.writer is None or frame.rgb is None:
            return
        for world in range(len(frame.rgb)):
            for camera in range(len(frame.cameras)):
                key = (world, camera_name(frame.cameras, camera))
                if key not in self.adds:
                    path = self.folder / f"{world:05d}-{key[1]}.mp4"
                    video = open_video(path, self.look.fps, quality=EPISODE_QUALITY)
                    self.adds[key] = self.open.enter_context(video)
                self.adds[key](frame.rgb[world, camera])

    def state(self, motion: Motion) -> None:
        for name, rows in self.joints.items():
            width = self.engine.stepper.bodies[name].width
            rows.append(motion.memory[name][:, :width].clone())

    def finish(self, run: Run, words: dict[str, str]) -> None:
        """Close the videos and add the episodes."""
        if self.writer is None:
            return
        self.open.close()
        fixed = None if callable(self.look.cameras) else self.look.cameras
        joints = {name: torch.stack(rows, dim=1) for name, rows in self.joints.items() if rows}
        for row, rollout in enumerate(run.rollouts):
            own = {name: values[row] for name, values in joints.items() if values.shape[-1]}
            videos = {name: self.folder / f"{world:05d}-{name}.mp4" for world, name in self.adds if world == row}
            calibration = fixed if fixed is not None and len(videos) == len(fixed) else None
            self.writer.add(make_episode(self.engine.world, rollout, videos, calibration, words, own))


@contextlib.contextmanager
def _recording(look: Look, engine: Engine, options: Options) -> Iterator[_Recorder]:
    with contextlib.ExitStack() as stack:
        yield _Recorder(look, engine, options, stack)


def _remove(folder: Path) -> None:
    import shutil

    shutil.rmtree(folder, ignore_errors=True)


def facts_of(options: Options, run: Run, files: list[str], frames: int, result: str) -> dict[str, Any]:
    """What the closing lines and `--json` say."""
    again = ["gworld", "simulate", "--world", str(options.world), "--actions", str(motion_file(options))]
    if options.dynamics is not None:
        again += ["--dynamics", str(options.dynamics)]
    return {
        "out": str(options.out),
        "files": files,
        "steps": len(run.rollouts[0]) - 1,
        "worlds": len(run.rollouts),
        "frames": frames,
        "clipped": run.clipped,
        "stuck": run.stuck,
        "result": result,
        "next": f"watch it, or run it again: {shlex.join(again)}",
    }
