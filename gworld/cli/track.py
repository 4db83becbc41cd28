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

from gworld.cli.options import print_json, say
from gworld.errors import InputError, UsageError
from gworld.reconstruct.motion_options import TrackOptions
from gworld.scene.cameras import Cameras
from gworld.scene.episode import Episode, Video

if TYPE_CHECKING:
    from gworld.reconstruct.motion import Tracked
    from gworld.reconstruct.motion_film import Film
    from gworld.scene.world import World

MAX_BYTES = 1 << 36


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
    cameras: Path | None = None
    """Calibration of --video; cameras are named like the files."""
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
    track: TrackOptions = field(default_factory=TrackOptions)
    """How motion is followed."""
    overlay: bool = True
    """Write a video per camera with the outlines of what was tracked."""
    json: bool = False
    """Print the result as one JSON object on stdout."""


def run(options: Options) -> None:
    """Track; raises `UsageError` for an unclear request, `InputError` for footage or worlds that do not fit."""
    from gworld.data.store import EpisodeWriter
    from gworld.formats.registry import world_folder
    from gworld.formats.world import load_world

    if (options.episodes is None) == (not options.video):
        raise UsageError("`gworld track` needs one of --episodes and --video.")
    world = load_world(world_folder(options.world))
    episode = _episode(options)
    assert episode.cameras is not None
    with tempfile.TemporaryDirectory() as folder:
        films = [open_film(video, Path(folder) / f"{row}.raw") for row, video in enumerate(episode.videos)]
        tracked, shown = _track(options, world, episode, films)
        done = _result(episode, tracked)
        with EpisodeWriter(options.out) as writer:
            number = writer.add(done)
        files = []
        if options.overlay:
            files = list(_overlays(options.out / f"overlay-{number:06d}", tracked, shown, films, done))
    _report(options, tracked, number, files)


def open_film(video: Video, scratch: Path) -> Film:
    """A video's frames on disk as raw pictures, so that any frame can be read at once."""
    from gworld.data.clips import probe_clip, read_frames
    from gworld.reconstruct.motion_film import Film

    clip = probe_clip(video.path)
    count = len(video.times)
    shape = (count, clip.height, clip.width, 3)
    if int(np.prod(shape, dtype=np.int64)) > MAX_BYTES:
        raise InputError(f"`{video.path}` has {count} frames of {clip.width} x {clip.height}: too much. Cut it.")
    pictures = np.memmap(scratch, np.uint8, "w+", shape=shape)
    for row, frame in enumerate(read_frames(video.path, range(video.first, video.first + count))):
        pictures[row] = frame
    return Film(video.times.double().numpy(), pictures)


def _episode(options: Options) -> Episode:
    """The episode of the request, or one made of loose videos and their calibration."""
    from gworld.data.store import open_episodes, read_episode

    if options.episodes is not None:
        episode = read_episode(open_episodes(options.episodes), options.number)
        if episode.cameras is None or not episode.videos:
            raise InputError(f"episode {options.number} of `{options.episodes}` has no calibrated video; add cameras.")
        return episode
    if options.cameras is None:
        raise UsageError("--video needs --cameras, the calibration of the videos.")
    from gworld.capture.calibration import read_calibration
    from gworld.data.clips import probe_clip

    views = {view.name: view for view in read_calibration(options.cameras).views}
    missing = [path.stem for path in options.video if path.stem not in views]
    if missing:
        raise InputError(f"`{options.cameras}` has no camera called {', '.join(missing)}; it has {', '.join(views)}.")
    found = [views[path.stem] for path in options.video]
    clips = [probe_clip(path) for path in options.video]
    for view, clip in zip(found, clips, strict=True):
        if view.model != "pinhole" or (view.width, view.height) != (clip.width, clip.height):
            raise InputError(
                f"`{clip.path}` is {clip.width} x {clip.height}, its camera a {view.model} of {view.width} x "
                f"{view.height}; undistorted footage of the calibrated size is needed."
            )
    cameras = Cameras(
        torch.stack([view.K for view in found]).float(),
        torch.stack([view.world_from_camera for view in found]).float(),
        clips[0].width,
        clips[0].height,
        names=tuple(view.name for view in found),
    )
    videos = tuple(Video(clip.path.stem, clip.path, torch.from_numpy(clip.times)) for clip in clips)
    return Episode(videos[0].times, videos=videos, cameras=cameras, source=str(options.video[0]))


def _track(options: Options, world: World, episode: Episode, films: list[Film]) -> tuple[Tracked, Cameras]:
    """The tracked motion, and all cameras as refined."""
    from gworld.agents.binding import load_robot
    from gworld.reconstruct.motion import track_motion
    from gworld.reconstruct.motion_draw import scene_plates
    from gworld.reconstruct.motion_rig import refine_rig

    cameras = episode.cameras
    assert cameras is not None
    names = [video.name for video in episode.videos]
    unknown = set(options.hold_out) - set(names)
    rows = [row for row, name in enumerate(names) if name not in options.hold_out]
    if unknown or not rows:
        raise UsageError(f"--hold-out {' '.join(options.hold_out)} leaves nothing, or is not among {', '.join(names)}.")
    inside = (episode.times >= (options.start or -np.inf)) & (episode.times <= (options.end or np.inf))
    times = episode.times[inside]
    if not len(times):
        raise UsageError("no step of the recording lies between --start and --end.")
    settings = options.track
    if settings.refine_cameras:
        first = [film.pictures[film.nearest(float(times[0]))] for film in films]
        cameras = refine_rig(np.stack(first).astype(np.float32) / 255, cameras, settings.rig).cameras
        settings = replace(settings, refine_cameras=False)
    robots = {entity.name: load_robot(world, entity.name) for entity in world.agents if entity.source}
    recorded = {}
    for name, robot in robots.items():
        table = episode.joints.get(name)
        if options.joints == "auto" and table is not None and table.shape[1] == len(robot.free_joints):
            recorded[name] = table[inside]
    used = replace(
        cameras, K=cameras.K[rows], world_from_camera=cameras.world_from_camera[rows], distortion=None, names=(),
        links=tuple(cameras.links[row] for row in rows) if cameras.links else (),
    )  # fmt: skip
    plates = scene_plates(world, used) if options.plates == "scene" else None
    chosen = [films[row] for row in rows]
    tracked = track_motion(
        world, chosen, used, times, settings, robots=robots, joints=recorded, plates=plates, progress=_ticker()
    )
    return tracked, cameras


def _result(episode: Episode, tracked: Tracked) -> Episode:
    """The episode with what was tracked: link poses, joints, and how sure they are as signals."""
    first = int(torch.searchsorted(episode.times, tracked.times[0]))
    rows = slice(first, first + len(tracked.times))
    signals = {name: table[rows] for name, table in episode.signals.items()}
    signals["tracking/pose_sigma"] = tracked.pose_sigma.flatten(1)
    signals["tracking/misfit"] = tracked.misfit[:, None]
    names = {key: value for key, value in episode.names.items() if not key.startswith("joints/")}
    return replace(
        episode,
        times=tracked.times,
        actions={name: table[rows] for name, table in episode.actions.items()},
        joints={**{name: table[rows] for name, table in episode.joints.items()}, **tracked.joints},
        link_poses=tracked.link_poses,
        link_names=tracked.link_names,
        signals=signals,
        names=names,
    )


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
        **tracked.facts,
    }
    if options.json:
        print_json(facts)
        return
    say(f"episode {number} in {options.out}: {len(tracked.times)} steps of {len(sigma)} links")
    worst = max(sigma, key=lambda name: sigma[name][0])
    say(f"result: least sure is `{worst}`, {1000 * sigma[worst][0]:.1f} mm in the median; lost at {lost} steps")
    say(f"next: look at {files[0] if files else 'the episode'}; gworld info {options.out}")
