"""What footage is made from: a video, a folder of photos, an RGB-D recording, all read as one stream of pictures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import UInt8, UInt16

from gworld.capture.photos import LOSSLESS, PhotoHeader, list_pictures, read_header, read_picture
from gworld.capture.rgbd import RgbdListing, find_rgbd, read_depth
from gworld.capture.video import DecodeLimits, VideoInfo, probe_video, read_frames
from gworld.errors import InputError

Kind = Literal["video", "photos", "rgbd"]
VIDEO_SUFFIXES = frozenset((
    ".mp4", ".mov", ".m4v", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".mts", ".m2ts", ".wmv", ".flv", ".ogv",
    ".3gp", ".mxf",
))  # fmt: skip


@dataclass(frozen=True)
class Source:
    """One input: where it is, of which kind, and what its header says.

    `width` and `height` are the first picture's, upright; `fps` 0 and `times` empty where pictures carry no time;
    `count` is the number of pictures, for a video as its header claims it (0 unknown). `K` is (fx, fy, cx, cy) for the
    full size. `headers`, `files` and `depths` are one for each picture of a folder.
    """

    path: Path
    kind: Kind
    width: int
    height: int
    count: int
    fps: float = 0.0
    seconds: float = 0.0
    K: tuple[float, ...] = ()
    lossless: bool = False
    interlaced: bool = False
    depth_scale: float = 0.0
    times: tuple[float, ...] = ()
    files: tuple[Path, ...] = ()
    headers: tuple[PhotoHeader, ...] = ()
    depths: tuple[Path | None, ...] = ()


@dataclass(frozen=True)
class Picture:
    """One picture of a source: upright RGB, its number and time (None for photos), mask and depth where it has them."""

    index: int
    time: float | None
    pixels: UInt8[np.ndarray, "H W 3"]
    mask: UInt8[np.ndarray, "H W"] | None = None
    depth: UInt16[np.ndarray, "H W"] | None = None


def open_source(path: str | Path, limits: DecodeLimits | None = None) -> Source:
    """Find out what `path` is by looking into it: a folder of pictures, an RGB-D recording, or else a video.

    Raises `InputError` in one sentence for what is none of them.
    """
    where = Path(path)
    if not where.is_dir():
        return _video_source(probe_video(where, limits))
    listing = find_rgbd(where)
    if listing is not None:
        return _rgbd_source(where, listing)
    files = list_pictures(where)
    if not files and (where / "images").is_dir():
        files = list_pictures(where / "images")
    if not files:
        videos = sum(file.suffix.lower() in VIDEO_SUFFIXES for file in where.iterdir())
        hint = f"but {videos} videos; name each as an input of its own" if videos else "; JPEG or PNG files are needed"
        raise InputError(f"`{where}` holds no pictures{' ' if videos else ''}{hint}.")
    headers = tuple(read_header(file) for file in files)
    lossless = all(file.suffix.lower() in LOSSLESS for file in files)
    first = headers[0]
    return Source(
        where, "photos", first.width, first.height, len(files), lossless=lossless, files=tuple(files), headers=headers
    )


def read_pictures(
    source: Source,
    *,
    max_side: int | None = None,
    every: int = 1,
    rate: float | None = None,
    indices: Sequence[int] | None = None,
    depth: bool = True,
    limits: DecodeLimits | None = None,
) -> Iterator[Picture]:
    """Yield a source's pictures in order, one at a time; see `video.read_frames` for which and how large.

    `depth` False leaves depth pictures unread. Raises `InputError` for a picture or video that is damaged.
    """
    if source.kind == "video":
        frames = read_frames(source.path, max_side=max_side, every=every, rate=rate, indices=indices, limits=limits)
        for frame in frames:
            yield Picture(frame.index, frame.time, frame.pixels)
        return
    due = 0.0
    for index in range(0, source.count, every) if indices is None else indices:
        moment = source.times[index] if source.times else None
        if indices is None and rate and moment is not None:
            if moment < due - 0.05 / rate:
                continue
            due = max(due + 1 / rate, moment + 0.5 / rate)
        pixels, mask = read_picture(source.files[index], max_side)
        depths = None
        if depth and source.depths and (file := source.depths[index]) is not None:
            header = source.headers[index]
            depths = read_depth(file, (header.height, header.width), pixels.shape[:2])
        yield Picture(index, moment, pixels, mask, depths)


def _video_source(info: VideoInfo) -> Source:
    return Source(
        info.path,
        "video",
        info.width,
        info.height,
        info.frames,
        fps=info.fps,
        seconds=info.seconds,
        lossless=info.lossless,
        interlaced=info.interlaced,
    )


def _rgbd_source(where: Path, listing: RgbdListing) -> Source:
    headers = tuple(read_header(file) for file in listing.pictures)
    width, height = headers[0].width, headers[0].height
    if odd := next((i for i, header in enumerate(headers) if (header.width, header.height) != (width, height)), None):
        raise InputError(
            f"`{listing.pictures[odd]}` is not {width} x {height} as the first of its recording; one size is needed."
        )
    known, K = listing.calibration, ()
    if known is not None:
        x, y = width / (known.width or width), height / (known.height or height)
        K = (known.K[0] * x, known.K[1] * y, known.K[2] * x, known.K[3] * y)  # type: ignore[assignment]  # four floats
    seconds = listing.times[-1] if listing.times else 0.0
    return Source(
        where,
        "rgbd",
        width,
        height,
        len(listing.pictures),
        fps=(len(listing.times) - 1) / seconds if seconds > 0 else 0.0,
        seconds=seconds,
        K=K,
        lossless=all(file.suffix.lower() in LOSSLESS for file in listing.pictures),
        depth_scale=listing.depth_scale,
        times=listing.times,
        files=listing.pictures,
        headers=headers,
        depths=listing.depths,
    )
