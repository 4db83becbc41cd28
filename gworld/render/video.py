"""Frames to files and back: streamed H.264 video, PNG sequences, side-by-side panels.

Frames are `[H, W, 3]`, float in 0..1 or uint8, torch or numpy. Video is BT.709 in limited range and says so, so that
players show the colours that were rendered; a frame already in that form is a uint8 array `[1.5 H, W]` (planar I420)
and goes to the encoder as it is. Memory does not grow with the number of frames.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from gworld.errors import InputError, MissingBackendError, UsageError
from gworld.files import atomic_folder, atomic_write, existing_file

Frame = Tensor | np.ndarray
BT709, LIMITED = 1, 1
"""Numbers of ITU-T H.273 for primaries, transfer and matrix; FFmpeg's number for the limited ("MPEG") range."""
SEPARATOR = 2
"""Pixels between panels."""


def as_uint8(frame: Frame) -> np.ndarray:
    """A frame as contiguous uint8 `[H, W, 3]`; floats are clamped to 0..1 and rounded, NaN becomes black.

    Raises `InputError` for another shape or an integer type other than uint8.
    """
    if frame.ndim != 3 or frame.shape[2] != 3 or 0 in frame.shape:
        raise InputError(f"a frame has shape {list(frame.shape)}; [H, W, 3] is needed.")
    tensor = frame.detach() if isinstance(frame, Tensor) else torch.from_numpy(np.ascontiguousarray(frame))
    if tensor.is_floating_point():
        # In place and on the frame's own device: a video spends more here than in the conversion to YUV otherwise.
        scaled = tensor.mul(255.0).add_(0.5).nan_to_num_(0.0, 255.0, 0.0)
        tensor = scaled.clamp_(0.0, 255.0).to(torch.uint8)
    if tensor.dtype != torch.uint8:
        raise InputError(f"a frame has type {tensor.dtype}; float in 0..1 or uint8 is needed.")
    return tensor.cpu().contiguous().numpy()


def write_video(
    frames: Iterable[Frame], path: str | Path, fps: float, *, quality: int = 18, preset: str = "veryfast"
) -> int:
    """Write frames to an MP4 (H.264, yuv420p) and return how many there were; see `open_video`.

    Raises `InputError` when there is no frame.
    """
    count = 0
    with open_video(path, fps, quality=quality, preset=preset) as add:
        for frame in frames:
            add(frame)
            count += 1
    return count


@contextlib.contextmanager
def open_video(
    path: str | Path, fps: float, *, quality: int = 18, preset: str = "veryfast"
) -> Iterator[Callable[[Frame], None]]:
    """Yield a function that adds one frame to an MP4, which appears at `path` when the block ends well.

    Odd sizes grow by one row or column that repeats the border. `quality` is x264's CRF (0 lossless .. 51 worst).
    Raises `InputError` for frames of differing sizes, or none; `UsageError` for a rate that is not positive.
    """
    if not 0 < fps < 10_000:
        raise UsageError(f"{fps} frames per second cannot be written; a rate above 0 and below 10000 is needed.")
    with atomic_write(path) as file, _open(file, "w") as container:
        options = {"crf": str(quality), "preset": preset}
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(60_000), options=options)
        shapes: list[tuple[int, int]] = []
        reformatter = _reformatter()

        def add(frame: Frame) -> None:
            picture = _yuv_frame(frame, reformatter)
            shape = (picture.height, picture.width)
            if not shapes:
                shapes.append(shape)
                _configure(stream, *shape)
            if shape != shapes[0]:
                raise InputError(f"frame sizes differ in `{path}`: {list(shape)} after {list(shapes[0])}.")
            container.mux(stream.encode(picture))

        yield add
        if not shapes:
            raise InputError(f"`{path}` was given no frames; at least one is needed for a video.")
        container.mux(stream.encode(None))


def read_video(path: str | Path) -> Iterator[np.ndarray]:
    """Yield the frames of an MP4 or MOV file as uint8 `[H, W, 3]`, one at a time.

    Only this container is opened, never a playlist that names other files. Raises `InputError` for anything else.
    """
    import av

    file = existing_file(path)
    with open(file, "rb") as stream:
        try:
            with _open(stream, "r") as container:
                if not container.streams.video:
                    raise InputError(f"`{file}` holds no video; a file with pictures is needed.")
                for frame in container.decode(video=0):
                    yield frame.to_ndarray(format="rgb24")
        except (av.error.FFmpegError, OSError, ValueError) as error:
            raise InputError(f"`{file}` cannot be read as MP4: {error}. Convert it with ffmpeg.") from error


def write_pngs(frames: Iterable[Frame], folder: str | Path, *, overwrite: bool = False) -> int:
    """Write frames as `frame-000000.png` ... into a new folder, which appears when complete; return their number."""
    from PIL import Image

    count = 0
    with atomic_folder(folder, own=("frame-*.png",), overwrite=overwrite) as target:
        for frame in frames:
            Image.fromarray(as_uint8(frame)).save(target / f"frame-{count:06d}.png", compress_level=3)
            count += 1
        if count == 0:
            raise InputError(f"`{folder}` was given no frames; at least one is needed.")
    return count


def side_by_side(panels: Sequence[Frame], labels: Sequence[str] = ()) -> np.ndarray:
    """Frames of one height next to each other, a thin white line between them, each with its label in the corner.

    Returns uint8 `[H, W, 3]`. Raises `InputError` for differing heights or a wrong number of labels.
    """
    arrays = [as_uint8(panel) for panel in panels]
    if not arrays or len({array.shape[0] for array in arrays}) > 1:
        raise InputError(f"panels of heights {[array.shape[0] for array in arrays]} cannot stand side by side.")
    if labels and len(labels) != len(arrays):
        raise InputError(f"{len(labels)} labels were given for {len(arrays)} panels.")
    arrays = [_labelled(array, label) for array, label in zip(arrays, labels or [""] * len(arrays), strict=True)]
    line = np.full((arrays[0].shape[0], SEPARATOR, 3), 255, np.uint8)
    parts = [part for array in arrays for part in (line, array)]
    return np.concatenate(parts[1:], axis=1)


def _labelled(array: np.ndarray, label: str) -> np.ndarray:
    """White text on a dark strip at the top left, sized to the picture."""
    if not label:
        return array
    from PIL import Image, ImageDraw, ImageFont

    image = Image.fromarray(array)
    draw = ImageDraw.Draw(image)
    font = ImageFont.load_default(max(10, array.shape[0] // 24))
    left, top, right, bottom = draw.textbbox((4, 3), label, font=font)
    draw.rectangle((left - 4, top - 3, right + 4, bottom + 3), fill=(0, 0, 0))
    draw.text((4, 3), label, fill=(255, 255, 255), font=font)
    return np.asarray(image)


def _open(file: Any, mode: Literal["r", "w"]) -> Any:
    try:
        import av
    except ImportError as error:
        raise MissingBackendError(f"video needs the package av ({error}). Run `pip install av`.") from error
    return av.open(file, mode, format="mp4")


def _configure(stream: Any, height: int, width: int) -> None:
    stream.width, stream.height = width, height
    stream.pix_fmt = "yuv420p"
    context = stream.codec_context
    context.color_primaries = context.color_trc = context.colorspace = BT709
    context.color_range = LIMITED


def _reformatter() -> Any:
    """One converter for all frames of a video: each holds tables and threads of its own."""
    from av.video.reformatter import VideoReformatter

    return VideoReformatter()


def _yuv_frame(frame: Frame, reformatter: Any) -> Any:
    """A picture for the encoder; I420 as it is, RGB converted and padded to even sizes."""
    import av
    from av.video.reformatter import ColorRange, Colorspace, Interpolation

    if frame.ndim == 2:
        planes = np.ascontiguousarray(frame.cpu().numpy() if isinstance(frame, Tensor) else frame)
        if (
            planes.dtype != np.uint8
            or planes.shape[0] % 3
            or planes.shape[0] * 2 // 3 % 2
            or planes.shape[1] % 2
            or not planes.size
        ):
            raise InputError(
                f"an I420 frame is {planes.dtype} {list(planes.shape)}; uint8 [1.5 H, W], H and W even, is needed."
            )
        return _tagged(av.VideoFrame.from_ndarray(planes, format="yuv420p"))
    pixels = as_uint8(frame)
    height, width = pixels.shape[:2]
    if height % 2 or width % 2:
        pixels = np.pad(pixels, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    picture = reformatter.reformat(
        av.VideoFrame.from_ndarray(pixels, format="rgb24"),
        format="yuv420p",
        interpolation=Interpolation.BILINEAR,
        src_color_range=ColorRange.JPEG,
        dst_colorspace=Colorspace.ITU709,
        dst_color_range=ColorRange.MPEG,
    )
    return _tagged(picture)


def _tagged(picture: Any) -> Any:
    picture.color_range, picture.colorspace = LIMITED, BT709
    return picture
