"""`gworld track`: follow the robots and objects of a world through calibrated video; write episode and overlays."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
import torch
import tyro
from torch import Tensor

from gworld.cli.options import print_json, say
from gworld.cli.track_footage import loose_episode, open_film, some_cameras, steps_of
from gworld.errors import InputError, UsageError
from gworld.files import refuse_existing
from gworld.reconstruct.motion_options import PlaneOptions, TrackOptions
from gworld.scene.cameras import Cameras
from gworld.scene.episode import Episode

if TYPE_CHECKING:
    from gworld.reconstruct.motion import Tracked
    from gworld.reconstruct.motion_film import Film
    from gworld.scene.world import World

__all__ = ["Options", "open_film", "run"]


@dataclass(frozen=True)
class Options:
    """What is tracked in which footage. One of --episodes and --video is given."""

    world: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="WORLD")]
    """The world folder with robots and objects bound into it."""
    out: Path
    """The episode store that the tracked episode is added to; overlay videos go beside its episode."""
    episodes: Path | None = None
    """An episode store with calibrated videos."""
    number: int = 0
    """Which of its episodes, counted from 0."""
    video: tuple[Path, ...] = ()
    """Videos of standing cameras that started together."""
    times: tuple[Path, ...] = ()
    """Seconds of each frame where a video's own clock is wrong, one file per --video: a number per line, or JSON."""
    cameras: Path | None = None
    """Calibration of --video, cameras named like the files; the world's own cameras when not given."""
    hold_out: tuple[str, ...] = ()
    """Cameras to leave out of the fit; their overlay still shows how well it holds there."""
    plates: Literal["video", "scene"] = "video"
    """What stands behind the bodies: learned from the footage, or the world's own static Gaussians."""
    joints: Literal["auto", "none"] = "auto"
    """`auto` takes an episode's recorded joint values where a robot's are there; `none` finds all by looking."""
    start: float | None = None
    """First second to track."""
    end: float | None = None
    """Last second to track."""
    step: float | None = None
    """Track at even steps of so many seconds instead of the recording's own."""
    actions: Literal["auto", "none"] = "auto"
    """`auto` takes the joints of the next step for what an agent was told where no actions were recorded."""
    colours: tuple[str, ...] = ()
    """Colours to begin with, NAME=R,G,B (0 to 1), of agents and objects whose models have none."""
    track: TrackOptions = field(default_factory=TrackOptions)
    """How motion is followed."""
    overlay: bool = True
    """Write a video per camera with the outlines of what was tracked."""
    world_out: Path | None = None
    """Also write the world as tracking left it: at rest in the first step, with refined colours, cameras and roots and,
    with --plates video, what stands behind as its static scene, laid on --track.rig.plane."""
    scene: PlaneOptions = field(default_factory=PlaneOptions)
    """How the static scene of --world-out is laid."""
    overwrite: bool = False
    """Replace what stands at --world-out."""
    json: bool = False
    """Print the result as one JSON object on stdout."""


def run(options: Options) -> None:
    """Track; raises `UsageError` for an unclear request, `InputError` for footage or worlds that do not fit."""
    from gworld.data.store import EpisodeWriter
    from gworld.formats.registry import world_folder
    from gworld.formats.world import load_world

    if (options.episodes is None) == (not options.video):
        raise UsageError("`gworld track` needs one of --episodes and --video.")
    world = _coloured(load_world(world_folder(options.world)), options.colours)
    episode = _episode(options, world)
    assert episode.cameras is not None
    if options.world_out is not None:
        refuse_existing(options.world_out, overwrite=options.overwrite)
    with tempfile.TemporaryDirectory() as folder:
        films = [open_film(video, Path(folder) / f"{row}.raw") for row, video in enumerate(episode.videos)]
        tracked, shown, filmed, films = _track(options, world, episode, films)
        done = _result(options, replace(episode, cameras=filmed), tracked, world)
        with EpisodeWriter(options.out) as writer:
            number = writer.add(done)
        files = []
        if options.overlay:
            files = list(_overlays(options.out / f"overlay-{number:06d}", tracked, shown, films, done))
    if options.world_out is not None:
        _save_world(options, options.world_out, tracked, shown)
    _report(options, tracked, number, files)


def _coloured(world: World, words: tuple[str, ...]) -> World:
    """The world with entities in plain colours."""
    from gworld.scene.harmonics import sh_from_rgb

    sh = world.gaussians.sh.clone()
    links = {entity.name: entity.links for entity in world.entities}
    for word in words:
        name, _, text = word.rpartition("=")
        try:
            colour = [float(part) for part in text.split(",")]
        except ValueError:
            colour = []
        if name not in links or len(colour) != 3 or not all(0 <= value <= 1 for value in colour):
            raise UsageError(f"--colours {word}: NAME=R,G,B from 0 to 1 is needed, with a name of {', '.join(links)}.")
        rows = torch.isin(world.gaussians.links.long(), torch.tensor(links[name]))
        sh[rows] = 0.0
        sh[rows, 0] = sh_from_rgb(torch.tensor(colour))
    return replace(world, gaussians=replace(world.gaussians, sh=sh)) if words else world


def _episode(options: Options, world: World) -> Episode:
    """The episode of the request, or one made of loose videos and their calibration."""
    from gworld.data.store import open_episodes, read_episode

    if options.episodes is None:
        return loose_episode(options.video, options.times, options.cameras, world.cameras)
    episode = read_episode(open_episodes(options.episodes), options.number)
    if episode.cameras is None or not episode.videos:
        raise InputError(f"episode {options.number} of `{options.episodes}` has no calibrated video; add cameras.")
    return episode


def _track(
    options: Options, world: World, episode: Episode, films: list[Film]
) -> tuple[Tracked, Cameras, Cameras, list[Film]]:
    """The tracked motion, all cameras as refined, the same with their lenses, and the films without them."""
    from gworld.agents.binding import load_robot
    from gworld.reconstruct.motion import track_motion
    from gworld.reconstruct.motion_draw import scene_plates
    from gworld.reconstruct.motion_lens import lensed, straightened
    from gworld.reconstruct.motion_rig import refine_rig

    cameras = episode.cameras
    assert cameras is not None
    names = [video.name for video in episode.videos]
    unknown = set(options.hold_out) - set(names)
    rows = [row for row, name in enumerate(names) if name not in options.hold_out]
    if unknown or not rows:
        raise UsageError(f"--hold-out {' '.join(options.hold_out)} leaves nothing, or is not among {', '.join(names)}.")
    times = steps_of(episode, options.start, options.end, options.step)
    settings, filmed = options.track, cameras
    if settings.refine_cameras:
        first = [film.pictures[film.nearest(float(times[0]))] for film in films]
        rig = refine_rig(np.stack(first).astype(np.float32) / 255, cameras, settings.rig)
        filmed = cameras = rig.cameras
        if settings.rig.lens:
            films, filmed = straightened(films, cameras, rig.lenses), lensed(cameras, rig.lenses)
        settings = replace(settings, refine_cameras=False)
    robots = {entity.name: load_robot(world, entity.name) for entity in world.agents if entity.source}
    recorded = {}
    for name, robot in robots.items():
        table = episode.joints.get(name)
        if options.joints == "auto" and table is not None and table.shape[1] == len(robot.free_joints):
            recorded[name] = table[_rows_at(episode, times)]
    used = some_cameras(cameras, rows)
    plates = scene_plates(world, used) if options.plates == "scene" else None
    chosen = [films[row] for row in rows]
    tracked = track_motion(
        world, chosen, used, times, settings, robots=robots, joints=recorded, plates=plates, progress=_ticker()
    )
    return tracked, cameras, filmed, films


def _rows_at(episode: Episode, times: Tensor) -> Tensor:
    """The rows of an episode's tables that hold at these times."""
    return (torch.searchsorted(episode.times.double(), times.double() + 1e-9) - 1).clamp_min(0)


def _result(options: Options, episode: Episode, tracked: Tracked, world: World) -> Episode:
    """The episode with what was tracked: link poses, joints, how sure they are as signals, and what led there."""
    from gworld.agents.binding import load_robot
    from gworld.reconstruct.motion_actions import actions_from_joints

    rows = _rows_at(episode, tracked.times)
    signals = {name: table[rows] for name, table in episode.signals.items()}
    actions = {name: table[rows] for name, table in episode.actions.items()}
    for agent in world.agents if options.actions == "auto" else ():
        if agent.name in tracked.joints and agent.name not in actions and agent.action is not None:
            robot = load_robot(world, agent.name)
            actions[agent.name] = actions_from_joints(agent.action, robot, tracked.times, tracked.joints[agent.name])
    signals["tracking/pose_sigma"] = tracked.pose_sigma.flatten(1)
    signals["tracking/misfit"] = tracked.misfit[:, None]
    names = {key: value for key, value in episode.names.items() if not key.startswith("joints/")}
    return replace(
        episode,
        times=tracked.times,
        actions=actions,
        joints={**{name: table[rows] for name, table in episode.joints.items()}, **tracked.joints},
        link_poses=tracked.link_poses,
        link_names=tracked.link_names,
        signals=signals,
        names=names,
    )


def _save_world(options: Options, folder: Path, tracked: Tracked, cameras: Cameras) -> None:
    """The world as tracking left it, with what stands behind the bodies as its static scene."""
    from gworld.formats.world import save_world
    from gworld.reconstruct.motion_scene import plane_gaussians
    from gworld.scene.gaussians import join_gaussians, select_gaussians

    world = replace(tracked.world, cameras=cameras)
    if options.plates == "video":
        scene = plane_gaussians(tracked.plates, tracked.cameras, options.track.rig.plane, options.scene)
        bodies = select_gaussians(world.gaussians, world.gaussians.links != 0)
        world = replace(world, gaussians=join_gaussians([scene, bodies]))
    save_world(world, folder, overwrite=options.overwrite)


def _overlays(folder: Path, tracked: Tracked, cameras: Cameras, films: list[Film], episode: Episode) -> Iterator[Path]:
    """Videos of the footage with the tracked bodies' outlines."""
    from gworld.reconstruct.motion_draw import outlined
    from gworld.render.video import write_video

    folder.mkdir(parents=True, exist_ok=True)
    clock = tracked.times.numpy()
    fps = 1.0 / float(np.median(np.diff(clock))) if len(clock) > 1 else 10.0
    for row, (film, video) in enumerate(zip(films, episode.videos, strict=True)):
        path = folder / f"{video.name}.mp4"
        pictures = (film.pictures[film.nearest(float(time))] for time in clock)
        write_video(outlined(tracked.bodies, tracked.states, cameras[row], pictures), path, fps)
        yield path


def _ticker() -> Callable[[str, int, int], None]:
    import time

    from gworld.runlog import progress_line

    begin: dict[str, float] = {}
    last = [time.monotonic()]

    def tick(what: str, done: int, total: int) -> None:
        now = time.monotonic()
        begin.setdefault(what, now)
        if now - last[0] >= 10.0 or done == total:
            last[0] = now
            say(progress_line(what, done, total, now - begin[what]))

    return tick


def _report(options: Options, tracked: Tracked, number: int, files: list[Path]) -> None:
    sigma = {name: [round(float(v), 5) for v in tracked.pose_sigma[:, row].median(0).values]
             for row, name in enumerate(tracked.link_names) if row}  # fmt: skip
    lost = int(tracked.lost.sum())
    facts = {
        "out": str(options.out),
        "episode": number,
        "steps": len(tracked.times),
        "lost": lost,
        "sigma": sigma,
        "overlays": [str(path) for path in files],
        "world": None if options.world_out is None else str(options.world_out),
        **tracked.facts,
    }
    if options.json:
        print_json(facts)
        return
    say(f"episode {number} in {options.out}: {len(tracked.times)} steps of {len(sigma)} links")
    worst = max(sigma, key=lambda name: sigma[name][0])
    say(f"result: least sure is `{worst}`, {1000 * sigma[worst][0]:.1f} mm in the median; lost at {lost} steps")
    say(f"next: look at {files[0] if files else 'the episode'}; gworld info {options.out}")
