"""Videos as streams of upright RGB pictures, decoded in a limited process of their own (`gworld.capture.worker`).

Nothing a video file does reaches this process: a crash, a hang or an appetite for memory there becomes one
`InputError` here. Memory does not grow with a video's length, and a reader that stops takes its worker with it.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from gworld.errors import InputError, MissingBackendError, ResourceError
from gworld.files import existing_file

COMMAND = (sys.executable, "-m", "gworld.capture.worker")
_HOME = Path(__file__).resolve().parent.parent.parent
_MAX_HEAD = 64 << 10
_PIPE_BYTES = 1 << 20


@dataclass(frozen=True)
class DecodeLimits:
    """What a decoder may take before it is ended."""

    memory: int = 4 << 30
    """Bytes of address space."""
    cpu: float = 120.0
    """Seconds of processor time for one frame."""
    patience: float = 120.0
    """Seconds without a sign of life."""
    pixels: int = 50_000_000
    """Pixels of one frame; 8K has 33 million."""


@dataclass(frozen=True)
class VideoInfo:
    """What a video says of itself, and its first picture shows.

    `width` and `height` are those of the upright picture with square pixels; `fps`, `frames` and `seconds` are claims
    of the header, 0 where it makes none; `bits` per colour channel.
    """

    path: Path
    width: int
    height: int
    fps: float
    frames: int
    seconds: float
    codec: str
    container: str
    bits: int = 8
    interlaced: bool = False
    lossless: bool = False


@dataclass(frozen=True)
class Frame:
    """One picture: its number in the video, seconds since the first picture, pixels RGB (sRGB as coded)."""

    index: int
    time: float
    pixels: UInt8[np.ndarray, "H W 3"]
    interlaced: bool = False
    bits: int = 8


def probe_video(path: str | Path, limits: DecodeLimits | None = None) -> VideoInfo:
    """What kind of video `path` is, by its header and its first picture.

    Raises `InputError` when it is none, or no picture of it can be decoded.
    """
    file = existing_file(path)
    info: dict[str, Any] = {}
    for frame in _frames(file, {"limit": 1}, limits or DecodeLimits(), info):
        height, width = frame.pixels.shape[:2]
        facts = {key: info[key] for key in ("fps", "frames", "seconds", "codec", "container", "lossless")}
        return VideoInfo(file, width, height, bits=frame.bits, interlaced=frame.interlaced, **facts)
    raise InputError(f"`{file}` holds no picture that can be decoded. Record or convert it again.")


def read_frames(
    path: str | Path,
    *,
    max_side: int | None = None,
    every: int = 1,
    rate: float | None = None,
    indices: Sequence[int] | None = None,
    limits: DecodeLimits | None = None,
) -> Iterator[Frame]:
    """Yield a video's pictures in order, one at a time, upright and with square pixels.

    Pictures are made smaller, never larger, so that the longer side has at most `max_side` pixels. Of all frames come
    each `every`-th, or at most `rate` a second, or those numbered in `indices` (rising). A damaged part is passed
    over. Raises `InputError` for a file that is no video, holds no picture, or harms its decoder.
    """
    request: dict[str, Any] = {"max_side": max_side, "every": every, "rate": rate}
    request["indices"] = None if indices is None else [int(index) for index in indices]
    file = existing_file(path)
    count = 0
    for frame in _frames(file, request, limits or DecodeLimits(), {}):
        count += 1
        yield frame
    if count == 0 and indices is None:
        raise InputError(f"`{file}` holds no picture that can be decoded. Record or convert it again.")


def _frames(file: Path, request: dict[str, Any], limits: DecodeLimits, info: dict[str, Any]) -> Iterator[Frame]:
    """The worker's frames; what it says of the file is put into `info`."""
    asked = {"max_side": None, "every": 1, "rate": None, "indices": None, "limit": 0, **request}
    asked |= {"memory": limits.memory, "cpu": limits.cpu, "pixels": limits.pixels}
    with _worker(file, asked) as process:
        pipe = _Pipe(process, file, limits)
        while True:
            head = pipe.head()
            kind = head.get("kind")
            if kind == "frame":
                yield _frame(head, pipe, limits)
            elif kind == "info":
                info.update(head)
            elif kind == "error":
                raise InputError(f"`{file}` {str(head.get('fact'))[:300]}. Convert it, or record it again.")
            elif kind == "end":
                return


def _frame(head: dict[str, Any], pipe: _Pipe, limits: DecodeLimits) -> Frame:
    # The worker may have been taken over by its file: its numbers are checked like a file's.
    width, height = int(head["width"]), int(head["height"])
    if width < 1 or height < 1 or width * height > 10 * limits.pixels:
        raise pipe.complaint("sent a picture of an impossible size")
    pixels = np.empty((height, width, 3), np.uint8)
    pipe.fill(pixels.data.cast("B"))
    return Frame(int(head["index"]), float(head["time"]), pixels, bool(head["interlaced"]), int(head["bits"]))


@contextlib.contextmanager
def _worker(file: Path, request: dict[str, Any]) -> Iterator[subprocess.Popen[bytes]]:
    """A decoder of `file` at work; it is ended, whatever it is doing, when the block is left."""
    _require_av()
    # The worker finds packages where this process does, and never in the folder it happens to be started from.
    paths = os.pathsep.join(entry for entry in sys.path if entry)
    environment = {**os.environ, "PYTHONPATH": paths, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    with open(file, "rb") as stream:
        try:
            process = subprocess.Popen(
                [*COMMAND, str(stream.fileno())],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                pass_fds=(stream.fileno(),),
                cwd=_HOME,
                env=environment,
                bufsize=0,
            )
        except OSError as error:
            raise ResourceError(f"no decoder could be started for `{file}`: {error}. Close other programs.") from error
    with process:
        try:
            assert process.stdin is not None
            with contextlib.suppress(BrokenPipeError):  # one that died at once is noticed when its answer is read
                process.stdin.write(json.dumps(request).encode() + b"\n")
            yield process
        finally:
            process.kill()


def _require_av() -> None:
    import importlib.util

    if importlib.util.find_spec("av") is None:
        raise MissingBackendError("reading video needs the package av. Run `pip install av`.")


class _Pipe:
    """Messages of one worker, read with a limit on how long it may be silent."""

    def __init__(self, process: subprocess.Popen[bytes], file: Path, limits: DecodeLimits) -> None:
        assert process.stdout is not None
        self.process, self.file, self.limits = process, file, limits
        self.stream = process.stdout
        with contextlib.suppress(ImportError, AttributeError, OSError):  # fewer wake-ups where the system allows it
            import fcntl

            fcntl.fcntl(self.stream.fileno(), fcntl.F_SETPIPE_SZ, _PIPE_BYTES)

    def head(self) -> dict[str, Any]:
        """The next message."""
        length = bytearray(4)
        self.fill(memoryview(length))
        (size,) = struct.unpack(">I", length)
        if size > _MAX_HEAD:
            raise self.complaint("sent what is no message")
        text = bytearray(size)
        self.fill(memoryview(text))
        try:
            head = json.loads(text.decode())
        except ValueError as error:
            raise self.complaint("sent what is no message") from error
        if not isinstance(head, dict):
            raise self.complaint("sent what is no message")
        return head

    def fill(self, target: memoryview) -> None:
        """Read exactly so many bytes; raises `InputError` when the worker died or has been silent for too long."""
        deadline = time.monotonic() + self.limits.patience
        while len(target):
            ready, _, _ = select.select([self.stream], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                raise self.complaint(f"gave no picture for {self.limits.patience:.0f} seconds")
            count = self.stream.readinto(target)  # type: ignore[attr-defined]  # a raw stream: bufsize is 0
            if not count:
                raise self.complaint(self._death())
            target = target[count:]

    def _death(self) -> str:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(5)
        code = self.process.returncode
        if code == -signal.SIGXCPU:
            return f"spent {self.limits.cpu:.0f} seconds of processor time on one picture"
        if code == -signal.SIGKILL:
            return "was ended by the system, probably for want of memory"
        return f"died ({signal.Signals(-code).name})" if code and code < 0 else f"ended early (code {code})"

    def complaint(self, fact: str) -> InputError:
        """The one sentence for a file that its decoder could not live with."""
        return InputError(
            f"`{self.file}`: its decoder {fact}. The file is damaged or hostile; convert or record again."
        )
