"""The decoder process: reads one open video file, sends upright RGB pictures down a pipe, and can do nothing else.

Run by `gworld.capture.video` as `python -m gworld.capture.worker DESCRIPTOR`. A video is untrusted input for a large
body of C code, so that code runs here: with limits on memory and processor time, without the right to open another
file (no descriptor beyond the ones it starts with) or to write one, on containers and codecs from a list. Imports no
torch, so that it starts quickly.

Messages on standard output: 4 bytes of length, a JSON head, and for `frame` the pixels, 3 * width * height bytes.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import pkgutil
import resource
import signal
import struct
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import av
import numpy as np
from av.video.reformatter import ColorRange, Colorspace, Interpolation, VideoReformatter

from gworld.capture.highrange import HLG, PQ, to_srgb

CONTAINERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,mpegvideo,flv,ogg,asf,mxf,dv,nut,h264,hevc,gif"
"""Demuxers that read one file and never follow a name in it; playlists (hls, dash, concat, ...) are not here."""
CODECS = frozenset((
    "h264", "hevc", "av1", "libdav1d", "libaom-av1", "vp8", "vp9", "libvpx", "libvpx-vp9", "vvc", "mpeg4",
    "msmpeg4v3", "msmpeg4v2", "mpeg1video", "mpeg2video", "mjpeg", "mjpegb", "h263", "flv1", "prores", "dnxhd",
    "cfhd", "dvvideo", "theora", "wmv1", "wmv2", "wmv3", "vc1", "ffv1", "huffyuv", "ffvhuff", "utvideo",
    "magicyuv", "rawvideo", "v210", "r210", "png", "qtrle", "gif", "jpeg2000", "svq3", "cinepak", "hap",
))  # fmt: skip
LOSSLESS = frozenset((
    "ffv1", "huffyuv", "ffvhuff", "utvideo", "magicyuv", "rawvideo", "v210", "r210", "png", "qtrle",
))  # fmt: skip
MAX_ERRORS = 500
"""Damaged packets in a row after which the rest of a file is given up."""
HEARTBEAT = 1.0
_REFORMATTER = VideoReformatter()  # one for all: each holds threads and tables of its own


class RefusedError(Exception):
    """The file cannot be used; the text completes a sentence that begins with the file's name."""


def main() -> None:
    """Serve one request, read as a line of JSON from standard input; then live until it is done or the reader goes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl+C is the reader's to handle
    request = json.loads(_read_line(0))
    out = os.dup(1)
    silent = os.open(os.devnull, os.O_RDWR)
    os.dup2(silent, 1)  # what a C library may print must not enter the stream of messages
    file = os.fdopen(int(sys.argv[1]), "rb")
    _import_all()
    threading.Thread(target=_leave_with_reader, daemon=True).start()
    _limit(int(request["memory"]))
    try:
        _serve(file, request, out)
    except RefusedError as error:
        _send(out, {"kind": "error", "fact": str(error)})
    except MemoryError:
        _send(out, {"kind": "error", "fact": f"needs more than {int(request['memory']) >> 20} MB to decode"})
    except (av.error.FFmpegError, OSError, ValueError, OverflowError, ArithmeticError) as error:
        reason = getattr(error, "strerror", None) or type(error).__name__
        _send(out, {"kind": "error", "fact": f"cannot be read as a video ({reason})"})
    os._exit(0)


def _read_line(descriptor: int) -> bytes:
    parts = b""
    while not parts.endswith(b"\n"):
        more = os.read(descriptor, 1 << 20)
        if not more:
            break
        parts += more
    return parts


def _leave_with_reader() -> None:
    """End this process when the other end of standard input closes, however the reader died."""
    while os.read(0, 1):
        pass
    os._exit(1)


def _import_all() -> None:
    """Load the parts of PyAV that it would load on first use: later no file can be opened."""
    for module in pkgutil.walk_packages(av.__path__, "av."):
        if not module.name.endswith(("__main__", "datasets")):
            with contextlib.suppress(ImportError):
                importlib.import_module(module.name)


def _limit(memory: int) -> None:
    for kind, value in ((resource.RLIMIT_AS, memory), (resource.RLIMIT_FSIZE, 0), (resource.RLIMIT_CORE, 0)):
        _, hard = resource.getrlimit(kind)
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (value, value))
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, 0))


def _allow_seconds(seconds: float) -> None:
    """Let the process use that much more processor time before it is ended; called again with each picture."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    soft = int(used.ru_utime + used.ru_stime + seconds) + 1
    resource.setrlimit(resource.RLIMIT_CPU, (soft if hard == resource.RLIM_INFINITY else min(soft, hard), hard))


def _send(out: int, head: dict[str, Any], payload: memoryview | None = None) -> None:
    text = json.dumps(head).encode()
    for part in (memoryview(struct.pack(">I", len(text)) + text), payload):
        while part is not None and len(part):
            part = part[os.write(out, part) :]


def _refuse_more(*_: Any, **__: Any) -> None:
    raise OSError("a video may not open another file")


def _serve(file: Any, request: dict[str, Any], out: int) -> None:
    _allow_seconds(request["cpu"])
    # The protocol list is empty on purpose: the one file that may be read is open already.
    options = {"format_whitelist": CONTAINERS, "protocol_whitelist": "none", "enable_drefs": "0"}
    try:
        container = av.open(file, "r", options=options, io_open=_refuse_more, metadata_errors="replace")
    except av.error.ArgumentError as error:
        raise RefusedError("is no video of a kind that is read (MP4, MOV, MKV, WebM, AVI, MPEG, ...)") from error
    if not container.streams.video:
        raise RefusedError("holds no video, only sound or other data")
    stream = _best_stream(container)
    context = stream.codec_context
    if context.name not in CODECS:
        raise RefusedError(f"is coded as {context.name!r}, which is not read")
    if context.width * context.height > request["pixels"]:
        raise RefusedError(f"says it has {context.width} x {context.height} pixels, more than {request['pixels']}")
    context.thread_type = "AUTO"
    context.thread_count = min(4, os.cpu_count() or 1)
    _send(out, {"kind": "info", **_describe(container, stream)})
    _send_frames(container, stream, request, out)


def _best_stream(container: Any) -> Any:
    """The largest stream that is not a cover picture."""

    def rank(stream: Any) -> tuple[bool, int]:
        attached = "attached_pic" in str(getattr(stream, "disposition", "")).lower()
        return not attached, stream.codec_context.width * stream.codec_context.height

    usable = [stream for stream in container.streams.video if stream.codec_context is not None]
    if not usable:
        raise RefusedError("holds video of an unknown codec")
    return max(usable, key=rank)


def _describe(container: Any, stream: Any) -> dict[str, Any]:
    seconds = 0.0
    if stream.duration and stream.time_base:
        seconds = float(stream.duration * stream.time_base)
    elif container.duration:
        seconds = container.duration / av.time_base
    rate = float(stream.average_rate or stream.guessed_rate or 0)
    return {
        "container": container.format.name,
        "codec": stream.codec_context.name,
        "fps": rate if 0 < rate < 10_000 else 0.0,
        "seconds": seconds if 0 < seconds < 1e9 else 0.0,
        "frames": int(stream.frames) if 0 < stream.frames < 1 << 40 else 0,
        "lossless": stream.codec_context.name in LOSSLESS,
    }


def _send_frames(container: Any, stream: Any, request: dict[str, Any], out: int) -> None:
    wanted = None if request["indices"] is None else iter(request["indices"])
    target = None if wanted is None else next(wanted, None)
    rate, every, limit = request["rate"], request["every"], request["limit"]
    clock = _Clock(1.0 / (float(stream.average_rate or 0) or 25.0))
    sent, said, due, damaged = 0, time.monotonic(), 0.0, [0]
    for index, frame in enumerate(_decode(container, stream, damaged)):
        _allow_seconds(request["cpu"])
        moment = clock.tell(frame)
        take = (
            index == target if wanted is not None else index % every == 0 and (not rate or moment >= due - 0.05 / rate)
        )
        if take and not frame.is_corrupt:
            pixels = _upright(frame, stream, request)
            facts = {"index": index, "time": moment, "interlaced": bool(frame.interlaced_frame)}
            facts |= {"width": pixels.shape[1], "height": pixels.shape[0], "bits": _bits(frame)}
            _send(out, {"kind": "frame", **facts}, pixels.data.cast("B"))
            sent, said = sent + 1, time.monotonic()
            # The slack is there so that all of 30 pictures a second pass a rate of 30 in spite of rounding.
            due = max(due + 1 / rate, moment + 0.5 / rate) if rate else due
        if wanted is not None and index == target:
            target = next(wanted, None)
        if 0 < limit <= sent or (wanted is not None and target is None):
            break
        if time.monotonic() - said > HEARTBEAT:
            _send(out, {"kind": "alive", "time": moment})
            said = time.monotonic()
    _send(out, {"kind": "end", "damaged": damaged[0]})


def _decode(container: Any, stream: Any, damaged: list[int]) -> Iterator[Any]:
    """The frames of a stream in order of presentation; packets that do not decode are counted and passed over."""
    run = 0
    packets = container.demux(stream)
    while run < MAX_ERRORS:
        try:
            packet = next(packets, None)
            if packet is None:
                return
            frames = packet.decode()
        except av.error.EOFError:
            return
        except (av.error.InvalidDataError, av.error.PatchWelcomeError, av.error.BugError, av.error.ExternalError):
            damaged[0] += 1
            run += 1
            continue
        for frame in frames:
            run = 0
            damaged[0] += frame.is_corrupt
            yield frame


class _Clock:
    """Seconds since the first frame, always rising: the file's time stamps where they are usable."""

    def __init__(self, step: float) -> None:
        self.step, self.start, self.last = step, 0.0, -step

    def tell(self, frame: Any) -> float:
        given = frame.time
        first = self.last < 0
        if first and given is not None:
            self.start = given
        moment = self.last + self.step if given is None else given - self.start
        if moment <= self.last and not first:
            moment = self.last + self.step
            self.start = self.start if given is None else given - moment
        self.last = max(0.0, moment)
        return self.last


def _bits(frame: Any) -> int:
    return max((component.bits for component in frame.format.components), default=8)


def _upright(frame: Any, stream: Any, request: dict[str, Any]) -> np.ndarray:
    """The frame as it is meant to be seen: square pixels, turned by its display matrix, RGB uint8 [H, W, 3]."""
    if frame.width * frame.height > request["pixels"]:
        raise RefusedError(f"has a frame of {frame.width} x {frame.height} pixels, more than {request['pixels']}")
    width, height = _shown_size(frame, stream, request["max_side"])
    kind = Interpolation.AREA if width * height < frame.width * frame.height else Interpolation.BICUBIC
    if hasattr(Interpolation, "ACCURATE_RND"):
        kind |= Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT
    options: dict[str, Any] = {"format": "rgb24", "dst_color_range": ColorRange.JPEG, "interpolation": kind}
    if not frame.format.is_rgb:
        # A file that does not name its matrix has by custom BT.709 in HD and BT.601 below; 2 and 0 mean unnamed.
        if int(frame.colorspace) in (0, 2):
            options["src_colorspace"] = Colorspace.ITU709 if frame.height >= 720 else Colorspace.ITU601
        options["dst_colorspace"] = options.get("src_colorspace", frame.colorspace)
        full = int(frame.color_range) == int(ColorRange.JPEG) or frame.format.name.startswith("yuvj")
        options["src_color_range"] = ColorRange.JPEG if full else ColorRange.MPEG
    if frame.interlaced_frame and frame.height > 1:
        # Two fields are two moments: the first alone is half as high but not torn.
        whole: Any = _REFORMATTER.reformat(frame, width=frame.width, height=frame.height, **options).to_ndarray()
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(whole[::2]), format="rgb24")
        options = {"format": "rgb24", "interpolation": Interpolation.BICUBIC}
    transfer = int(getattr(frame, "color_trc", 0))  # PyAV before 15 does not tell it of frames
    if transfer in (PQ, HLG):
        options["format"] = "rgb48le"
    picture = _REFORMATTER.reformat(frame, width=width, height=height, **options).to_ndarray()
    if transfer in (PQ, HLG):
        picture = to_srgb(picture, transfer, int(frame.color_primaries))
    return np.ascontiguousarray(turn(picture, _matrix(frame)))


def _shown_size(frame: Any, stream: Any, max_side: int | None) -> tuple[int, int]:
    width, height = float(frame.width), float(frame.height)
    ratio = stream.sample_aspect_ratio or stream.codec_context.sample_aspect_ratio
    ratio = float(ratio) if ratio else 1.0
    if 0.1 < ratio < 10.0:  # anything else is a lie of the header
        width, height = (width * ratio, height) if ratio > 1 else (width, height / ratio)
    scale = min(1.0, (max_side or 1 << 20) / max(width, height))
    return max(1, round(width * scale)), max(1, round(height * scale))


def _matrix(frame: Any) -> list[int]:
    """The four turning numbers (a, b, c, d) of the display matrix, or those of no turn."""
    data = frame.side_data.get("DISPLAYMATRIX") if frame.side_data else None
    if data is None:
        return [1, 0, 0, 1]
    a, b, _, c, d, *_ = struct.unpack("<9i", bytes(data)[:36])
    return [a, b, c, d]


def turn(picture: np.ndarray, matrix: list[int]) -> np.ndarray:
    """Apply a display matrix in quarter turns and mirrorings: a pixel at (x, y) is shown at (a x + c y, b x + d y)."""
    a, b, c, d = matrix
    if abs(a) + abs(d) >= abs(b) + abs(c):
        return picture[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1]
    return picture.swapaxes(0, 1)[:: -1 if b < 0 else 1, :: -1 if c < 0 else 1]


if __name__ == "__main__":
    main()
