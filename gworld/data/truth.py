"""Depth and link numbers of every pixel beside a video: lossless FFV1 in Matroska, one frame per frame of the video.

`depth`: 16-bit millimetres along the camera's z, 0 where unknown or beyond 65.5 m. `masks`: 16-bit link number plus 1,
0 where nothing is.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from gworld.data.clips import CONTAINERS, MAX_PIXELS
from gworld.errors import InputError, MissingBackendError
from gworld.files import check_memory, existing_file

MILLIMETRE = 1e-3
Add = Callable[..., None]


@contextlib.contextmanager
def write_truth(times: Float[np.ndarray, " F"], targets: Mapping[str, Path]) -> Iterator[Add]:
    """Yield a function that takes one frame's `depth` [H,W] metres and `masks` [H,W] links (-1: nothing).

    Only the kinds that `targets` names (`depth`, `masks`) are written, each to its file ending in `.mkv`.
    """
    with contextlib.ExitStack() as stack:
        writers = {kind: stack.enter_context(_writer(path, times)) for kind, path in targets.items()}

        def add(**frame: np.ndarray) -> None:
            for kind, write in writers.items():
                write(_coded(kind, frame[kind]))

        yield add


def read_depth(path: str | Path) -> Float[np.ndarray, "F H W"]:
    """Depth in metres of every frame, 0 where unknown; raises `InputError` for what is no such file."""
    return _read(path).astype(np.float32) * np.float32(MILLIMETRE)


def read_links(path: str | Path) -> Int[np.ndarray, "F H W"]:
    """The link behind every pixel of every frame, -1 where nothing is; raises `InputError` as `read_depth` does."""
    return _read(path).astype(np.int32) - 1


def _coded(kind: str, values: np.ndarray) -> np.ndarray:
    if kind == "masks":
        return (values + 1).astype(np.uint16)
    ticks = np.round(values / MILLIMETRE)
    return np.where((ticks > 0) & (ticks < 65_536), ticks, 0).astype(np.uint16)


@contextlib.contextmanager
def _writer(path: Path, times: np.ndarray) -> Iterator[Callable[[np.ndarray], None]]:
    av = _av()
    ticks = np.round((times - times[0]) * 1000).astype(np.int64)  # Matroska counts milliseconds
    rate = Fraction(1.0 / float(np.median(np.diff(times)))).limit_denominator(1000) if len(times) > 1 else Fraction(30)
    count = 0
    with open(path, "wb") as file, av.open(file, "w", format="matroska") as container:
        stream = container.add_stream("ffv1", rate=rate, options={"level": "3", "slices": "4", "slicecrc": "1"})
        stream.pix_fmt, stream.codec_context.time_base = "gray16le", Fraction(1, 1000)
        stream.codec_context.thread_count = 1

        def write(values: np.ndarray) -> None:
            nonlocal count
            if count == 0:
                stream.height, stream.width = values.shape
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(values), format="gray16le")
            picture.pts, picture.time_base = int(ticks[count]), Fraction(1, 1000)
            container.mux(stream.encode(picture))
            count += 1

        yield write
        container.mux(stream.encode(None))
    if count != len(times):
        raise InputError(f"`{path.name}` was given {count} frames and {len(times)} times; one each is needed.")


def _read(path: str | Path) -> np.ndarray:
    av = _av()
    file = existing_file(path)
    frames: list[np.ndarray] = []
    try:
        with open(file, "rb") as stream, av.open(stream, "r", format=CONTAINERS[".mkv"]) as container:
            if not container.streams.video:
                raise InputError(f"`{file}` holds no pictures; a file of depth or links is needed.")
            for frame in container.decode(video=0):
                if frame.format.name != "gray16le" or frame.width * frame.height > MAX_PIXELS:
                    raise InputError(f"`{file}` is stored as {frame.format.name}; 16-bit grey is needed.")
                if not frames:
                    count = container.streams.video[0].frames or 1
                    check_memory(count * frame.width * frame.height * 6, f"`{file}`")
                frames.append(frame.to_ndarray())
    except (av.error.FFmpegError, OSError, ValueError, MemoryError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"`{file}` cannot be read as depth or links: {reason}. Record it again.") from error
    if not frames:
        raise InputError(f"`{file}` holds no pictures; a file of depth or links is needed.")
    return np.stack(frames)


def _av() -> Any:
    try:
        import av
    except ImportError as error:
        raise MissingBackendError(f"video needs the package av ({error}). Run `pip install av`.") from error
    return av
