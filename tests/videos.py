"""Videos made on the fly: ordinary ones, and a zoo of odd, damaged and hostile ones."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable, Iterable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

SIZE = (96, 64)


def pattern(width: int, height: int, shift: float = 0.0, seed: int = 0) -> np.ndarray:
    """A picture `[H, W, 3]` of smooth random texture, moved to the left by `shift` pixels."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    x = x + shift
    image = np.zeros((height, width, 3), np.float32)
    for _ in range(24):
        fx, fy = rng.uniform(-0.9, 0.9, 2)
        colour, phase = rng.uniform(-1, 1, 3), rng.uniform(0, 6.28)
        image += np.sin(fx * x + fy * y + phase)[..., None] * colour
    return np.clip(128 + 22 * image, 0, 255).astype(np.uint8)


def corners(width: int = SIZE[0], height: int = SIZE[1]) -> np.ndarray:
    """Four flat quarters: red, green over blue, white; which way is up shows."""
    image = np.zeros((height, width, 3), np.uint8)
    image[: height // 2, : width // 2] = (220, 20, 20)
    image[: height // 2, width // 2 :] = (20, 220, 20)
    image[height // 2 :, : width // 2] = (20, 20, 220)
    image[height // 2 :, width // 2 :] = (235, 235, 235)
    return image


def write(
    path: Path,
    frames: Iterable[np.ndarray],
    *,
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    fps: int = 25,
    times: Sequence[float] | None = None,
    options: dict[str, str] | None = None,
    container: str | None = None,
    setup: Callable[[Any], None] | None = None,
    prepare: Callable[[av.VideoFrame], av.VideoFrame] | None = None,
) -> Path:
    """Encode RGB frames; `times` in seconds make the rate variable, `setup` gets the stream, `prepare` each frame."""
    with av.open(path, "w", format=container) as file:
        stream: Any = None
        for number, pixels in enumerate(frames):
            if stream is None:
                stream = file.add_stream(codec, rate=fps, options=options or {})
                stream.height, stream.width = pixels.shape[:2]
                stream.pix_fmt = pix_fmt
                if setup is not None:
                    setup(stream)
                if times is not None:
                    stream.codec_context.time_base = Fraction(1, 1000)
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame = frame.reformat(format=pix_fmt) if prepare is None else prepare(frame)
            frame.pts = number if times is None else round(times[number] * 1000)
            frame.time_base = Fraction(1, fps) if times is None else Fraction(1, 1000)
            file.mux(stream.encode(frame))
        if stream is not None:
            file.mux(stream.encode(None))
    return path


def moving(count: int = 12, width: int = SIZE[0], height: int = SIZE[1], step: float = 2.0) -> list[np.ndarray]:
    """Frames of a texture that passes by."""
    return [pattern(width, height, step * number) for number in range(count)]


def write_sound(path: Path) -> Path:
    """A file with sound and nothing to see."""
    with av.open(path, "w") as file:
        stream = file.add_stream("aac", rate=44100)
        for number in range(20):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            frame.sample_rate, frame.pts = 44100, 1024 * number
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    return path


def patched(data: bytes, box: bytes, offset: int, value: bytes, every: bool = False) -> bytes:
    """`data` with `value` written `offset` bytes behind the first (or each) occurrence of a box's name."""
    out, start = bytearray(data), 0
    while (place := data.find(box, start)) >= 0:
        out[place + offset : place + offset + len(value)] = value
        start = place + 4
        if not every:
            break
    return bytes(out)


def display_matrix(a: int, b: int, c: int, d: int) -> bytes:
    """The 36 bytes of a track header's matrix."""
    one = 1 << 16
    return struct.pack(">9i", a * one, b * one, 0, c * one, d * one, 0, 0, 0, 1 << 30)


def turned(path: Path, frames: Iterable[np.ndarray], matrix: tuple[int, int, int, int]) -> Path:
    """An MP4 whose track header says that the picture is to be turned; the coded pictures are `frames`."""
    write(path, frames)
    data = path.read_bytes()
    path.write_bytes(patched(data, b"tkhd", 44, display_matrix(*matrix)))
    return path


NAMES = (
    "good_plain good_one_frame good_odd_size good_tiny good_wide good_mkv good_webm good_vp8 good_avi good_mjpeg "
    "good_ts good_mpeg2 good_flv good_gif good_lossless good_rgb good_grey good_grey16 good_alpha good_png "
    "good_prores good_10bit good_hevc10 good_variable_rate good_late_start good_interlaced good_all_keyframes "
    "good_one_keyframe good_raw_h264 good_turned good_wrong_suffix good_no_suffix good_change_of_size bad_empty "
    "bad_one_byte bad_noise bad_zeros bad_truncated_index bad_only_start cut_mkv cut_ts noise_inside_mkv "
    "noise_inside_mp4 lying_size_in_mp4 lying_count lying_length lying_time_scale lying_offsets lying_box_size "
    "bad_playlist bad_concat bad_dash bad_sdp bad_text bad_html bad_program bad_subtitles bad_picture "
    "bad_sound_only "
)


def zoo(folder: Path) -> dict[str, Path]:
    """The odd files of `NAMES`; those beginning with `good_` hold pictures, `bad_` must be refused, others either."""
    made: dict[str, Path] = {}

    def put(name: str, suffix: str, data: bytes) -> None:
        made[name] = folder / f"{name}.{suffix}"
        made[name].write_bytes(data)

    def film(name: str, suffix: str = "mp4", **options: Any) -> None:
        frames = options.pop("frames", None)
        made[name] = write(folder / f"{name}.{suffix}", moving() if frames is None else frames, **options)

    _add_good(film)
    made["good_turned"] = turned(folder / "good_turned.mp4", moving(), (0, 1, -1, 0))
    plain = made["good_plain"].read_bytes()
    put("good_wrong_suffix", "avi", plain)
    put("good_no_suffix", "", plain)
    other = write(folder / "other.ts", moving(5, 128, 96)).read_bytes()
    put("good_change_of_size", "ts", made["good_ts"].read_bytes() + other)
    _add_damaged(put, plain, made["good_all_keyframes"].read_bytes(), made["good_ts"].read_bytes())
    _add_foreign(put, folder)
    made["bad_sound_only"] = write_sound(folder / "bad_sound_only.mp4")
    return made


def _add_good(film: Callable[..., None]) -> None:
    grey10 = {"pix_fmt": "yuv420p10le", "options": {"preset": "ultrafast"}}
    film("good_plain")
    film("good_one_frame", frames=moving(1))
    film("good_odd_size", frames=moving(3, 97, 63), pix_fmt="yuv444p")
    film("good_tiny", frames=moving(3, 16, 16))
    film("good_wide", frames=moving(3, 512, 16))
    film("good_mkv", "mkv")
    film("good_webm", "webm", codec="libvpx-vp9", frames=moving(3), options={"deadline": "realtime", "cpu-used": "8"})
    film("good_vp8", "webm", codec="libvpx", frames=moving(3), options={"deadline": "realtime"})
    film("good_avi", "avi", codec="mpeg4")
    film("good_mjpeg", "avi", codec="mjpeg", pix_fmt="yuvj420p")
    film("good_ts", "ts")
    film("good_mpeg2", "mpg", codec="mpeg2video")
    film("good_flv", "flv")
    film("good_gif", "gif", codec="gif", pix_fmt="rgb8", frames=moving(4))
    film("good_lossless", "mkv", codec="ffv1", pix_fmt="yuv444p")
    film("good_rgb", "mkv", codec="ffv1", pix_fmt="bgr0")
    film("good_grey", "mkv", codec="ffv1", pix_fmt="gray")
    film("good_grey16", "mkv", codec="ffv1", pix_fmt="gray16le")
    film("good_alpha", "mkv", codec="ffv1", pix_fmt="yuva420p")
    film("good_png", "mov", codec="png", pix_fmt="rgb24")
    film("good_prores", "mov", codec="prores_ks", pix_fmt="yuv422p10le", frames=moving(2))
    film("good_10bit", **grey10)
    film(
        "good_hevc10", codec="libx265", frames=moving(3), pix_fmt="yuv420p10le", options={"x265-params": "log-level=0"}
    )
    film("good_variable_rate", times=[0, 0.04, 0.3, 0.31, 1.0, 1.5, 1.52, 1.9, 2.0, 2.6, 2.61, 3.0])
    film("good_late_start", "mkv", times=[3600 + 0.04 * number for number in range(12)])
    film("good_interlaced", codec="mpeg2video", container="mpegts", options={"flags": "+ildct+ilme", "top": "1"})
    film("good_all_keyframes", "mkv", frames=moving(40), options={"g": "1"})
    film("good_one_keyframe", options={"g": "1000", "bf": "3"})
    film("good_raw_h264", "264", container="h264")


def _add_damaged(put: Callable[..., None], plain: bytes, mkv: bytes, ts: bytes) -> None:
    noise = np.random.default_rng(1).integers(0, 256, 4096, np.uint8).tobytes()
    put("bad_empty", "mp4", b"")
    put("bad_one_byte", "mp4", b"\0")
    put("bad_noise", "mp4", noise)
    put("bad_zeros", "mp4", bytes(100_000))
    put("bad_truncated_index", "mp4", plain[: len(plain) // 2])  # an MP4's index stands at its end
    put("bad_only_start", "mp4", plain[:40])
    put("cut_mkv", "mkv", mkv[: len(mkv) * 2 // 3])
    put("cut_ts", "ts", ts[: len(ts) * 2 // 3])
    middle = len(mkv) // 2
    put("noise_inside_mkv", "mkv", mkv[:middle] + noise[:300] + mkv[middle + 300 :])
    put("noise_inside_mp4", "mp4", plain[:200] + noise[:200] + plain[400:])
    huge = struct.pack(">HH", 65535, 65535)
    put("lying_size_in_mp4", "mp4", patched(plain, b"avc1", 28, huge, every=True))
    put("lying_count", "mp4", patched(plain, b"stsz", 12, struct.pack(">I", 0x7FFFFFFF)))
    put("lying_length", "mp4", patched(plain, b"mdhd", 20, struct.pack(">I", 0xFFFFFFFF)))
    put("lying_time_scale", "mp4", patched(plain, b"mdhd", 16, struct.pack(">I", 1)))
    put("lying_offsets", "mp4", patched(plain, b"stco", 12, b"\xff\xff\xff\xf0"))
    put("lying_box_size", "mp4", patched(plain, b"moov", -4, struct.pack(">I", 0x7FFFFFF0)))


def _add_foreign(put: Callable[..., None], folder: Path) -> None:
    secret = folder / "good_plain.mp4"
    put(
        "bad_playlist",
        "mp4",
        f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nfile://{secret}\n#EXT-X-ENDLIST\n".encode(),
    )
    put("bad_concat", "mp4", f"ffconcat version 1.0\nfile {secret.name}\n".encode())
    dash = '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static"><Period><AdaptationSet>'
    dash += f"<Representation><BaseURL>{secret.name}</BaseURL></Representation></AdaptationSet></Period></MPD>"
    put("bad_dash", "mp4", dash.encode())
    put("bad_sdp", "mp4", b"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\n")
    put("bad_text", "mp4", b"This is no film.\n" * 200)
    put("bad_html", "mp4", b"<!doctype html><title>404</title>")
    put("bad_program", "mp4", b"\x7fELF" + bytes(500))
    put("bad_subtitles", "mp4", b"1\n00:00:00,000 --> 00:00:02,000\nHello\n\n")
    picture = io.BytesIO()
    from PIL import Image

    Image.fromarray(corners()).save(picture, "PNG")
    put("bad_picture", "mp4", picture.getvalue())
