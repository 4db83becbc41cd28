"""The footage `gworld track` and `gworld backdrop` look at: an episode's videos, or loose ones with calibration."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from gworld.capture.calibration import read_calibration
from gworld.capture.times import read_times
from gworld.errors import InputError, UsageError
from gworld.scene.cameras import Cameras
from gworld.scene.episode import Episode, Video

if TYPE_CHECKING:
    from gworld.reconstruct.motion_film import Film

MAX_BYTES = 1 << 36


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


def loose_episode(
    paths: Sequence[Path], times: Sequence[Path], calibration: Path | None, known: Cameras | None
) -> Episode:
    """An episode made of loose videos; their cameras by the files' names, from a calibration or else those `known`.

    `times` are files with the seconds of each frame, one per video, or none. Raises `InputError` for names, sizes and
    numbers of frames that do not fit, `UsageError` where there are no cameras.
    """
    from gworld.data.clips import probe_clip

    if times and len(times) != len(paths):
        raise UsageError(f"{len(times)} `--times` were given for {len(paths)} videos; one each is needed.")
    clips = [probe_clip(path) for path in paths]
    cameras = _calibrated(paths, calibration) if calibration is not None else _known(paths, known)
    for clip in clips:
        if (cameras.width, cameras.height) != (clip.width, clip.height) or cameras.model != "pinhole":
            raise InputError(
                f"`{clip.path}` is {clip.width} x {clip.height}, its camera a {cameras.model} of {cameras.width} x "
                f"{cameras.height}; undistorted footage of the calibrated size is needed."
            )
    videos = []
    for row, clip in enumerate(clips):
        clock = clip.times if not times else np.array(read_times(times[row]))
        if len(clock) != len(clip):
            raise InputError(f"`{times[row]}` gives {len(clock)} times; `{clip.path}` has {len(clip)} frames.")
        videos.append(Video(clip.path.stem, clip.path, torch.from_numpy(clock)))
    return Episode(videos[0].times, videos=tuple(videos), cameras=cameras, source=str(paths[0]))


def steps_of(episode: Episode, start: float | None, end: float | None, step: float | None) -> Float[Tensor, " T"]:
    """The times to track at, between start and end: the episode's own, or evenly `step` seconds apart while all
    cameras film; raises `UsageError` when none lies there."""
    times = episode.times.double()
    if step is not None:
        if step <= 0:
            raise UsageError(f"`--step {step}` is no time between pictures; seconds above 0 are needed.")
        first = max(float(video.times[0]) for video in episode.videos)
        last = min(float(video.times[-1]) for video in episode.videos)
        first, last = first if start is None else max(first, start), last if end is None else min(last, end)
        times = torch.arange(first, last + 1e-9, step, dtype=torch.float64)
    inside = (times >= (-np.inf if start is None else start)) & (times <= (np.inf if end is None else end))
    if not bool(inside.any()):
        raise UsageError("no step of the recording lies between --start and --end.")
    return times[inside]


def some_cameras(cameras: Cameras, rows: Sequence[int]) -> Cameras:
    """Some of the cameras, as tracking takes them: without lenses and names."""
    return replace(
        cameras, K=cameras.K[rows], world_from_camera=cameras.world_from_camera[rows], distortion=None, names=(),
        links=tuple(cameras.links[row] for row in rows) if cameras.links else (),
    )  # fmt: skip


def _known(paths: Sequence[Path], cameras: Cameras | None) -> Cameras:
    if cameras is None:
        raise UsageError("--video needs --cameras, the calibration of the videos; the world holds no cameras.")
    missing = [path.stem for path in paths if path.stem not in cameras.names]
    if missing:
        raise InputError(f"the world has no camera called {', '.join(missing)}; it has {', '.join(cameras.names)}.")
    rows = [cameras.names.index(path.stem) for path in paths]
    return replace(some_cameras(cameras, rows), names=tuple(path.stem for path in paths))


def _calibrated(paths: Sequence[Path], calibration: Path) -> Cameras:
    views = {view.name: view for view in read_calibration(calibration).views}
    missing = [path.stem for path in paths if path.stem not in views]
    if missing:
        raise InputError(f"`{calibration}` has no camera called {', '.join(missing)}; it has {', '.join(views)}.")
    found = [views[path.stem] for path in paths]
    odd = next((view for view in found if view.model != "pinhole" or any(view.distortion)), None)
    if odd is not None or len({(view.width, view.height) for view in found}) != 1:
        raise InputError(
            f"the cameras of `{calibration}` differ in size or have lenses ({odd.name if odd else 'sizes differ'}); "
            "undistorted footage of one size is needed."
        )
    return Cameras(
        torch.stack([view.K for view in found]).float(),
        torch.stack([view.world_from_camera for view in found]).float(),
        found[0].width,
        found[0].height,
        names=tuple(view.name for view in found),
    )
