"""Video files of episodes: counted by their index, copied without re-encoding where possible, decoded, written.

Containers are opened by an explicit format over an open file, so that a playlist named `.mp4` cannot lead elsewhere.
"""

from __future__ import annotations

import contextlib
import io
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from gworld.errors import InputError, MissingBackendError
from gworld.files import existing_file

CONTAINERS = {
    ".mp4": "mp4", ".m4v": "mp4", ".mov": "mov", ".mkv": "matroska", ".webm": "matroska", ".avi": "avi",
}  # fmt: skip
TICKS = 90_000
"""Ticks per second of the videos written here: every usual frame rate is whole in it, and uneven times fit."""
MAX_PIXELS = 8192 * 8192


@dataclass(frozen=True)
class Clip:
    """What a video's index says: times [F] in seconds from the first frame, in order of display; `keys` [F] where
    decoding can begin; size in pixels; the codec's name, the mean rate in frames per second, and the decoder's set-up
    (clips can be joined where it is equal); how pixels
    are stored."""

    path: Path
    times: np.ndarray
    keys: np.ndarray
    width: int
    height: int
    codec: str
    fps: float
    setup: bytes = b""
    pixels: str = "yuv420p"

    def __len__(self) -> int:
        return len(self.times)


def probe_clip(path: str | Path) -> Clip:
    """Read a video's frame times without decoding it; raises `InputError` when it is no video or holds no frame."""
    with _reading(path) as container:
        stream = container.streams.video[0]
        base = stream.time_base or Fraction(1, TICKS)
        stamps = [(p.pts, p.is_keyframe) for p in container.demux(stream) if p.pts is not None and not p.is_discard]
        width, height, codec = stream.codec_context.width, stream.codec_context.height, _codec(stream)
        rate, setup = float(stream.average_rate or 0), bytes(stream.codec_context.extradata or b"")
        pixels = str(stream.codec_context.pix_fmt or "yuv420p")
    if not stamps or width < 1 or height < 1 or width * height > MAX_PIXELS:
        raise InputError(f"`{path}` holds {len(stamps)} frames of {width} x {height}; a video with frames is needed.")
    stamps.sort()
    pts = np.array([stamp for stamp, _ in stamps], np.float64)
    if len(pts) > 1 and not (np.diff(pts) > 0).all():
        raise InputError(f"`{path}` holds two frames at one time; its index is damaged. Export the video again.")
    keys = np.array([key for _, key in stamps])
    return Clip(Path(path), (pts - pts[0]) * float(base), keys, width, height, codec, rate, setup, pixels)


def copy_clip(source: Clip, target: Path, first: int = 0, count: int | None = None) -> bool:
    """Copy frames `first` .. `first + count - 1` to `target`; True when no picture was encoded anew.

    A whole file is copied as it is; a stretch between two key frames is re-muxed; any other stretch is encoded.
    """
    count = len(source) - first if count is None else count
    end = first + count
    if first < 0 or count < 1 or end > len(source):
        raise InputError(f"`{source.path}` has {len(source)} frames; frames {first} to {end - 1} were asked for.")
    if first == 0 and end == len(source) and target.suffix == source.path.suffix:
        shutil.copyfile(source.path, target)
        return True
    if target.suffix == ".mp4" and source.keys[first] and (end == len(source) or source.keys[end]):
        join_clips([(source, first, count)], target)
        return True
    write_clip(read_frames(source.path, range(first, end)), source.times[first:end], target)
    return False


def join_clips(parts: Sequence[tuple[Clip, int, int]], target: Path, times: np.ndarray | None = None) -> None:
    """Put stretches (clip, first frame, count) of one codec and size one after another into an MP4, not re-encoded.

    `times` [sum of counts] seconds replace the frames' own times. Each stretch begins at a key frame.
    """
    import av

    done = 0
    with open(target, "wb") as file, av.open(file, "w", format="mp4") as out:
        stream: Any = None
        for clip, first, count in parts:
            end = first + count
            shown = clip.times[first:end] - clip.times[first] if times is None else times[done : done + count]
            with _reading(clip.path) as container:
                template = container.streams.video[0]
                if stream is None:
                    stream = out.add_stream_from_template(template, opaque=True)
                    stream.time_base = Fraction(1, TICKS)
                for packet in _stretch(container, clip, first, end, shown):
                    packet.stream = stream
                    out.mux(packet)
            done += count


def _stretch(container: Any, clip: Clip, first: int, end: int, shown: np.ndarray) -> Iterator[Any]:
    """Packets of frames `first` .. `end - 1` in order of decoding, stamped anew in TICKS."""
    packets = [p for p in container.demux(video=0) if p.pts is not None and not p.is_discard]
    order = {pts: index for index, pts in enumerate(sorted(p.pts for p in packets))}
    ticks = np.round(shown * TICKS).astype(np.int64)
    wanted = [p for p in packets if first <= order[p.pts] < end]
    # Decoding times are the display times in order, moved back as far as the deepest reordering asks for.
    late = max((at - (order[p.pts] - first) for at, p in enumerate(wanted)), default=0)
    step = int(ticks[1] - ticks[0]) if len(ticks) > 1 else TICKS // 30
    for at, packet in enumerate(wanted):
        packet.time_base = Fraction(1, TICKS)
        packet.pts = int(ticks[order[packet.pts] - first])
        packet.dts = int(ticks[at - late]) if at >= late else int(ticks[0]) - (late - at) * step
        packet.duration = step
        yield packet


def read_frames(
    path: str | Path, frames: Sequence[int] | None = None, width: int | None = None
) -> Iterator[np.ndarray]:
    """Yield the wanted frames (increasing numbers in order of display; None for all) as uint8 [H, W, 3].

    `width` scales them down to that many pixels across. Raises `InputError` when one cannot be decoded.
    """
    wanted = None if frames is None else list(frames)
    if wanted is not None and not wanted:
        return
    found = 0
    with _reading(path) as container:
        container.streams.video[0].thread_type = "AUTO"
        for number, frame in enumerate(container.decode(video=0)):
            if wanted is not None and number != wanted[found]:
                continue
            size = {} if width is None or width >= frame.width else _scaled(frame, width)
            yield frame.to_ndarray(format="rgb24", **size)
            found += 1
            if wanted is not None and found == len(wanted):
                return
    if wanted is not None:
        raise InputError(f"`{path}` gave {found} of {len(wanted)} frames; the video is damaged or cut off.")


def write_clip(frames: Iterable[np.ndarray], times: np.ndarray, target: Path, quality: int = 16) -> int:
    """Encode uint8 [H, W, 3] frames shown at `times` [F] seconds to H.264 (CRF `quality`); return their number.

    Odd sizes grow by one row or column that repeats the border.
    """
    av = _av()
    ticks = np.round((times - times[0]) * TICKS).astype(np.int64)
    rate = Fraction(1.0 / float(np.median(np.diff(times)))).limit_denominator(1000) if len(times) > 1 else Fraction(30)
    count = 0
    with open(target, "wb") as file, av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=rate, options={"crf": str(quality), "preset": "veryfast"})
        stream.codec_context.time_base = Fraction(1, TICKS)
        stream.pix_fmt = "yuv420p"
        stream.codec_context.thread_count = 2  # more threads change the file, and small pictures gain nothing
        for pixels in frames:
            height, width = pixels.shape[:2]
            pixels = np.pad(pixels, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
            if count == 0:
                stream.height, stream.width = pixels.shape[:2]
            if pixels.shape[:2] != (stream.height, stream.width) or count == len(times):
                raise InputError(f"`{target.name}`: frame {count} has another size than the first, or no time.")
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
            picture.pts, picture.time_base = int(ticks[count]), Fraction(1, TICKS)
            container.mux(stream.encode(picture))
            count += 1
        container.mux(stream.encode(None))
    if count != len(times):
        raise InputError(f"`{target.name}` was given {count} frames and {len(times)} times; one each is needed.")
    return count


def write_pictures(pictures: Sequence[bytes], times: np.ndarray, target: Path) -> bool:
    """Make a video of encoded pictures; True when they were JPEG of one size and went in as they are (MJPEG).

    Others (PNG, sizes that differ) are decoded and encoded to H.264. Raises `InputError` for what is no picture.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        heads = []
        for data in pictures:
            with Image.open(io.BytesIO(data), formats=("JPEG", "PNG")) as image:
                heads.append((image.format, image.size, image.mode))
        if max(width * height for _, (width, height), _ in heads) > MAX_PIXELS:
            raise InputError(f"`{target.name}`: a picture of {heads[0][1]} pixels is too large to be read.")
        if set(heads) == {("JPEG", heads[0][1], "RGB")}:
            _mux_jpegs(pictures, times, target, heads[0][1])
            return True
        size = heads[0][1]
        write_clip((_decode(data, size) for data in pictures), times, target)
        return False
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise InputError(f"`{target.name}`: a picture cannot be decoded ({error}). Export the data again.") from error


def _decode(data: bytes, size: tuple[int, int]) -> np.ndarray:
    from PIL import Image

    with Image.open(io.BytesIO(data), formats=("JPEG", "PNG")) as image:
        return np.asarray(image.convert("RGB").resize(size))


def _mux_jpegs(pictures: Sequence[bytes], times: np.ndarray, target: Path, size: tuple[int, int]) -> None:
    av = _av()
    ticks = np.round((times - times[0]) * TICKS).astype(np.int64)
    with open(target, "wb") as file, av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("mjpeg", rate=30)
        stream.width, stream.height = size
        stream.pix_fmt, stream.time_base = "yuvj420p", Fraction(1, TICKS)
        for data, tick in zip(pictures, ticks, strict=True):
            packet = av.Packet(data)
            packet.stream, packet.time_base, packet.is_keyframe = stream, Fraction(1, TICKS), True
            packet.pts = packet.dts = int(tick)
            container.mux(packet)


def _scaled(frame: Any, width: int) -> dict[str, int]:
    return {"width": width, "height": max(1, round(frame.height * width / frame.width))}


def _codec(stream: Any) -> str:
    """The coding's own name: decoders have names of their own (`libdav1d` reads `av1`)."""
    name = str(stream.codec_context.codec.name)
    return {"libdav1d": "av1", "libaom-av1": "av1", "libvpx": "vp8", "libvpx-vp9": "vp9"}.get(name, name)


def _av() -> Any:
    try:
        import av
    except ImportError as error:
        raise MissingBackendError(f"video needs the package av ({error}). Run `pip install av`.") from error
    return av


@contextlib.contextmanager
def _reading(path: str | Path) -> Iterator[Any]:
    """An open container with at least one video stream; whatever the library raises becomes an `InputError`."""
    av = _av()
    file = existing_file(path)
    kind = CONTAINERS.get(file.suffix.lower())
    if kind is None:
        raise InputError(f"`{file}` is none of the videos that are read: {', '.join(CONTAINERS)}. Convert it.")
    try:
        with open(file, "rb") as stream, av.open(stream, "r", format=kind) as container:
            if not container.streams.video or container.streams.video[0].codec_context is None:
                raise InputError(f"`{file}` holds no video that can be decoded; a file with pictures is needed.")
            yield container
    except (av.error.FFmpegError, OSError, ValueError, OverflowError, MemoryError) as error:
        reason = str(error).replace("\n", " ") or type(error).__name__
        raise InputError(f"`{file}` cannot be read as a video: {reason}. Convert it with ffmpeg.") from error
