"""Videos come out upright and in their colours, or are refused in one sentence; decoders stay within bounds."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import av
import numpy as np
import pytest

from gworld.capture import video, worker
from gworld.capture.highrange import to_srgb
from gworld.capture.video import DecodeLimits, Frame, probe_video, read_frames
from gworld.errors import InputError
from tests.videos import NAMES, corners, pattern, turned, write, zoo

ROOT = Path(video.__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    made = zoo(tmp_path_factory.mktemp("zoo"))
    assert set(made) == set(NAMES.split())
    return made


def check_sentence(error: InputError, path: Path) -> None:
    text = str(error)
    assert str(path) in text and "\n" not in text and text.endswith(".") and len(text) < 500
    assert "Traceback" not in text and "Error" not in text


@pytest.mark.parametrize("name", NAMES.split())
def test_zoo_gives_frames_or_one_sentence(films: dict[str, Path], name: str) -> None:
    frames: list[Frame] = []
    refusal: InputError | None = None
    try:
        frames = list(read_frames(films[name]))
    except InputError as error:
        refusal = error
        check_sentence(error, films[name])
    assert (refusal is None) == (len(frames) > 0)
    assert not (name.startswith("good_") and refusal), refusal
    assert not (name.startswith("bad_") and frames)
    times = [frame.time for frame in frames]
    assert times == sorted(set(times)) and all(frame.pixels.dtype == np.uint8 for frame in frames)
    if name.startswith("good_"):
        assert [frame.index for frame in frames] == list(range(len(frames))) and times[0] == 0.0
        # Whatever the codec, it is the picture that was put in.
        assert abs(float(frames[0].pixels.mean()) - 127.5) < 8
    if name.startswith("cut_") or name == "noise_inside_mkv":
        assert 1 <= len(frames) < 40, "what lies before the damage is read"


def test_probe_tells_what_the_file_is(films: dict[str, Path]) -> None:
    info = probe_video(films["good_prores"])
    assert (info.width, info.height, info.bits, info.codec, info.lossless) == (96, 64, 10, "prores", False)
    assert probe_video(films["good_interlaced"]).interlaced and not probe_video(films["good_plain"]).interlaced
    assert probe_video(films["good_lossless"]).lossless
    turned_info = probe_video(films["good_turned"])
    assert (turned_info.width, turned_info.height, turned_info.frames) == (64, 96, 12)
    assert turned_info.fps == 25 and turned_info.seconds == pytest.approx(0.48)
    with pytest.raises(InputError, match="only sound"):
        probe_video(films["bad_sound_only"])
    with pytest.raises(InputError, match="does not exist"):
        probe_video(films["good_plain"].with_name("nothing.mp4"))


MATRICES = {
    (1, 0, 0, 1): lambda image: image,
    (0, 1, -1, 0): lambda image: np.rot90(image, -1),  # a quarter turn clockwise, as telephones write it
    (-1, 0, 0, -1): lambda image: np.rot90(image, 2),
    (0, -1, 1, 0): lambda image: np.rot90(image, 1),
    (-1, 0, 0, 1): lambda image: image[:, ::-1],
    (1, 0, 0, -1): lambda image: image[::-1],
}


@pytest.mark.parametrize("matrix", MATRICES, ids=str)
def test_display_matrix_is_applied(tmp_path: Path, matrix: tuple[int, int, int, int]) -> None:
    path = turned(tmp_path / "t.mp4", [corners()] * 2, matrix)
    frame = next(iter(read_frames(path)))
    expected = MATRICES[matrix](corners())
    assert frame.pixels.shape == expected.shape
    assert np.abs(frame.pixels.astype(int) - expected).mean() < 6
    # PyAV's own reading of the same matrix, counter-clockwise degrees, where it is a pure turn.
    if matrix in ((0, 1, -1, 0), (0, -1, 1, 0)):
        with av.open(str(path)) as container:
            quarter = next(container.decode(video=0)).rotation // 90
        assert np.abs(frame.pixels.astype(int) - np.rot90(corners(), quarter)).mean() < 6


@pytest.mark.parametrize("full", [False, True], ids=["limited", "full"])
@pytest.mark.parametrize("matrix", [1, 5], ids=["bt709", "bt601"])
@pytest.mark.parametrize("fmt", ["yuv444p", "yuv444p10le"])
def test_colours_follow_matrix_and_range(tmp_path: Path, matrix: int, full: bool, fmt: str) -> None:
    """A flat colour, coded by the closed form of its standard, comes back within two steps."""
    red, green, blue = colour = np.array([200.0, 90.0, 40.0])
    kr, kb = {1: (0.2126, 0.0722), 5: (0.299, 0.114)}[matrix]
    luma = kr * red + (1 - kr - kb) * green + kb * blue
    cb, cr = (blue - luma) / (2 - 2 * kb), (red - luma) / (2 - 2 * kr)
    deep = 4 if fmt.endswith("10le") else 1
    values = [luma, cb + 128, cr + 128] if full else [16 + luma * 219 / 255, 128 + cb * 224 / 255, 128 + cr * 224 / 255]
    planes = np.stack(
        [np.full((64, 64), round(value * deep), np.uint16 if deep == 4 else np.uint8) for value in values]
    )

    def prepare(_: av.VideoFrame) -> av.VideoFrame:
        frame = av.VideoFrame(64, 64, fmt)
        for plane, data in zip(frame.planes, planes, strict=True):
            rows = np.zeros((64, plane.line_size // data.itemsize), data.dtype)
            rows[:, :64] = data
            plane.update(rows.tobytes())
        frame.colorspace, frame.color_range = matrix, 2 if full else 1
        return frame

    def setup(stream: av.VideoStream) -> None:
        stream.codec_context.colorspace, stream.codec_context.color_range = matrix, 2 if full else 1

    path = write(tmp_path / "c.mkv", [corners(64, 64)], codec="ffv1", pix_fmt=fmt, prepare=prepare, setup=setup)
    pixels = next(iter(read_frames(path))).pixels
    assert np.abs(pixels.reshape(-1, 3).mean(axis=0) - colour).max() < 2.0


def high_range(colour: np.ndarray, transfer: int) -> np.ndarray:
    """Y, Cb, Cr of an sRGB colour as a phone's HDR video codes it: BT.2020, 10 bits, white at 203 cd/m^2."""
    share = colour / 255
    light = np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
    light = np.linalg.inv([[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]]) @ light
    luma = np.array([0.2627, 0.6780, 0.0593])
    if transfer == 16:  # PQ, SMPTE ST 2084
        power = (203 * light / 10_000) ** (2610 / 16384)
        code = ((3424 / 4096 + 2413 / 128 * power) / (1 + 2392 / 128 * power)) ** (2523 / 32)
    else:  # HLG, ARIB STD-B67: the inverse of a display of 1000 cd/m^2 with gamma 1.2
        shown = 203 * light / 1000
        scene = shown * (luma @ shown) ** (-0.2 / 1.2)
        a, b, c = 0.17883277, 0.28466892, 0.55991073
        code = np.where(scene <= 1 / 12, np.sqrt(3 * scene), a * np.log(np.maximum(12 * scene - b, 1e-9)) + c)
    y = luma @ code
    values = np.array([16 + 219 * y, 128 + 224 * (code[2] - y) / 1.8814, 128 + 224 * (code[0] - y) / 1.4746])
    return np.round(4 * values).astype(np.uint16)


@pytest.mark.parametrize("transfer", [16, 18], ids=["pq", "hlg"])
@pytest.mark.parametrize("colour", [(200.0, 90.0, 40.0), (60.0, 60.0, 60.0), (20.0, 120.0, 160.0)])
def test_videos_of_high_range_look_as_the_scene_did(tmp_path: Path, transfer: int, colour: tuple[float, ...]) -> None:
    coded = high_range(np.array(colour), transfer)

    def prepare(_: av.VideoFrame) -> av.VideoFrame:
        frame = av.VideoFrame(64, 64, "yuv444p10le")
        for plane, value in zip(frame.planes, coded, strict=True):
            plane.update(np.full((64, plane.line_size // 2), value, np.uint16).tobytes())
        frame.colorspace, frame.color_range, frame.color_trc, frame.color_primaries = 9, 1, transfer, 9
        return frame

    def setup(stream: av.VideoStream) -> None:
        context = stream.codec_context
        context.colorspace, context.color_range, context.color_trc, context.color_primaries = 9, 1, transfer, 9

    path = write(
        tmp_path / "hdr.mkv", [corners(64, 64)], codec="ffv1", pix_fmt="yuv444p10le", prepare=prepare, setup=setup
    )
    pixels = next(iter(read_frames(path))).pixels
    assert np.abs(pixels.reshape(-1, 3).mean(axis=0) - colour).max() < 3.0


def test_highlights_are_pressed_together_not_cut() -> None:
    codes = np.linspace(0, 65535, 256).astype(np.uint16)
    for transfer in (16, 18):
        grey = to_srgb(np.repeat(codes[None, :, None], 3, 2), transfer, 9)
        assert np.ptp(grey, axis=2).max() <= 1
        steps = np.diff(grey[0, :, 0].astype(int))
        assert steps.min() >= 0 and grey[0, 0, 0] == 0 and 245 < grey[0, -1, 0] <= 255
        white = grey[0, np.searchsorted(codes, {16: 0.58, 18: 0.75}[transfer] * 65535), 0]
        assert 236 <= white <= 248  # paper: a little below 255, so that lamps may be brighter


def test_wide_pixels_become_square(tmp_path: Path) -> None:
    def setup(stream: av.VideoStream) -> None:
        stream.codec_context.sample_aspect_ratio = 2

    path = write(tmp_path / "wide.mkv", [corners()], setup=setup)
    assert next(iter(read_frames(path))).pixels.shape == (64, 192, 3)


def test_fields_are_not_torn(tmp_path: Path) -> None:
    """Of two woven moments the picture shows one."""
    early, late = pattern(96, 64), pattern(96, 64, 16)
    woven = early.copy()
    woven[1::2] = late[1::2]
    options = {"flags": "+ildct+ilme", "top": "1", "b": "4M"}

    def prepare(frame: av.VideoFrame) -> av.VideoFrame:
        return av.VideoFrame.from_ndarray(woven, format="rgb24").reformat(format="yuv422p")

    path = write(
        tmp_path / "i.ts", [woven] * 3, codec="mpeg2video", pix_fmt="yuv422p", options=options, prepare=prepare
    )
    frame = next(iter(read_frames(path)))
    assert frame.interlaced and frame.pixels.shape == (64, 96, 3)
    rows = np.abs(np.diff(frame.pixels.astype(float), axis=0)).mean()
    assert rows < 1.6 * np.abs(np.diff(early.astype(float), axis=0)).mean()


def test_time_stamps_are_the_files_own(films: dict[str, Path]) -> None:
    times = [frame.time for frame in read_frames(films["good_variable_rate"])]
    assert times == pytest.approx([0, 0.04, 0.3, 0.31, 1.0, 1.5, 1.52, 1.9, 2.0, 2.6, 2.61, 3.0], abs=0.002)
    assert [frame.time for frame in read_frames(films["good_late_start"])][:3] == pytest.approx([0, 0.04, 0.08])


def test_choice_of_frames(films: dict[str, Path]) -> None:
    path = films["good_plain"]
    everything = list(read_frames(path))
    assert [frame.index for frame in read_frames(path, every=5)] == [0, 5, 10]
    assert [frame.index for frame in read_frames(path, rate=12.5)] == [0, 2, 4, 6, 8, 10]
    chosen = list(read_frames(path, indices=[1, 7, 11, 500]))
    assert [frame.index for frame in chosen] == [1, 7, 11]
    for frame in chosen:
        np.testing.assert_array_equal(frame.pixels, everything[frame.index].pixels)
        assert frame.time == everything[frame.index].time
    assert list(read_frames(path, indices=[])) == []
    assert next(iter(read_frames(path, max_side=48))).pixels.shape == (32, 48, 3)
    assert next(iter(read_frames(path, max_side=4800))).pixels.shape == (64, 96, 3)


def stand_in(monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    monkeypatch.setattr(video, "COMMAND", (sys.executable, "-c", code))


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("import os; os.abort()", "SIGABRT"),
        ("import sys; sys.exit(3)", "code 3"),
        ("import time; time.sleep(60)", "no picture for 1 seconds"),
        ("print('x' * 99, flush=True)", "no message"),
        ("import sys; sys.stdout.buffer.write(b'\\0\\0\\0\\2[]')", "no message"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "want of memory"),
    ],
)
def test_whatever_becomes_of_the_decoder_is_one_sentence(
    films: dict[str, Path], monkeypatch: pytest.MonkeyPatch, code: str, said: str
) -> None:
    stand_in(monkeypatch, code)
    with pytest.raises(InputError, match=said) as caught:
        list(read_frames(films["good_plain"], limits=DecodeLimits(patience=1.0)))
    check_sentence(caught.value, films["good_plain"])


def test_a_decoder_that_was_taken_over_cannot_ask_for_memory(
    films: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    head = b'{"kind":"frame","index":0,"time":0,"width":1000000,"height":1000000,"interlaced":false,"bits":8}'
    message = len(head).to_bytes(4, "big") + head
    stand_in(monkeypatch, f"import sys; sys.stdout.buffer.write({message!r})")
    with pytest.raises(InputError, match="impossible size"):
        list(read_frames(films["good_plain"]))


def test_limits_on_memory_and_size_hold(tmp_path: Path) -> None:
    path = write(tmp_path / "large.mkv", [np.zeros((2048, 2048, 3), np.uint8)] * 2, codec="ffv1", pix_fmt="yuv444p")
    with pytest.raises(InputError, match="2048 x 2048 pixels, more than 1000000"):
        list(read_frames(path, limits=DecodeLimits(pixels=1_000_000)))
    with pytest.raises(InputError) as caught:
        list(read_frames(path, limits=DecodeLimits(memory=260 << 20)))
    check_sentence(caught.value, path)


def children() -> set[str]:
    found = subprocess.run(
        ["ps", "-o", "pid=,args=", "--ppid", str(os.getpid())], capture_output=True, text=True
    ).stdout
    return {line for line in found.splitlines() if "capture.worker" in line and "<defunct>" not in line}


@pytest.fixture(scope="module")
def long_film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """More than a pipe holds, so that its decoder has to wait for its reader."""
    frames = [pattern(640, 480)] * 20
    return write(tmp_path_factory.mktemp("long") / "long.mp4", frames, options={"preset": "ultrafast"})


def test_a_reader_that_stops_leaves_no_process(long_film: Path) -> None:
    frames = read_frames(long_film)
    next(frames)
    assert len(children()) == 1
    frames.close()  # type: ignore[attr-defined]  # a generator
    assert not children()


def test_a_killed_reader_leaves_no_process(long_film: Path) -> None:
    code = (
        "import sys, time; from gworld.capture.video import read_frames\n"
        f"frames = read_frames({str(long_film)!r}); next(frames); print('ready', flush=True); time.sleep(60)"
    )
    reader = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    with reader:
        assert reader.stdout is not None and reader.stdout.readline() == "ready\n"
        listing = subprocess.run(["ps", "-o", "pid=", "--ppid", str(reader.pid)], capture_output=True, text=True).stdout
        (worker_pid,) = map(int, listing.split())
        reader.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 20
    while Path(f"/proc/{worker_pid}").exists() and time.monotonic() < deadline:
        if "Z" in Path(f"/proc/{worker_pid}/stat").read_text().split(")")[-1].split()[0]:
            break  # ended, and not yet collected by whoever inherited it
        time.sleep(0.05)
    else:
        assert not Path(f"/proc/{worker_pid}").exists(), "the decoder outlived its reader"


def test_the_decoder_can_open_no_other_file(tmp_path: Path) -> None:
    """Its own start-up limits, in a process of its own: nothing more can be opened, nothing written."""
    code = (
        "import sys; from gworld.capture import worker; worker._import_all(); worker._limit(4 << 30)\n"
        f"for path, mode in (({str(tmp_path / 'x')!r}, 'w'), ('/etc/hostname', 'r')):\n"
        "    try:\n        open(path, mode)\n    except OSError as error:\n        print(error.errno)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert done.stdout.split() == ["24", "24"] and not (tmp_path / "x").exists()


def test_the_decoder_loads_no_torch() -> None:
    code = "import sys; import gworld.capture.worker; print('torch' in sys.modules, 'cv2' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert done.stdout.split() == ["False", "False"]


PEAK = """
import os, subprocess, sys
from gworld.capture.video import read_frames
def peaks(pid):
    lines = open(f"/proc/{pid}/status").read().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
listing = ["ps", "-o", "pid=,args=", "--ppid", str(os.getpid())]
for number, _ in enumerate(read_frames(sys.argv[1])):
    if number == int(sys.argv[2]) - 90:  # the pipe holds fewer, so the decoder is still at work
        for line in subprocess.run(listing, capture_output=True, text=True).stdout.splitlines():
            if "capture.worker" in line:
                print(peaks(line.split()[0]))
print(peaks("self"), number + 1)
"""


def test_memory_does_not_grow_with_length(tmp_path: Path) -> None:
    def peak(count: int) -> int:
        still = pattern(96, 64)
        frames = (np.roll(still, number, axis=1) for number in range(count))
        path = write(tmp_path / f"{count}.mp4", frames, options={"preset": "ultrafast", "g": "250"})
        command = [sys.executable, "-c", PEAK, str(path), str(count)]
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120)
        assert done.returncode == 0, done.stderr
        child, own, seen = map(int, done.stdout.split())
        assert seen == count
        return own + child

    # 2300 frames of 18 kB more would be 42 MB if they were kept.
    assert peak(2500) - peak(200) < 15_000


@pytest.mark.parametrize(
    "matrix", [(1, 0, 0, 1), (0, 1, -1, 0), (0, 1, 1, 0), (-1, 0, 0, 1), (0, -1, 1, 0), (0, -1, -1, 0)]
)
def test_turn_moves_each_pixel_as_the_matrix_says(matrix: tuple[int, int, int, int]) -> None:
    a, b, c, d = matrix
    picture = np.arange(12).reshape(3, 4)
    out = worker.turn(picture, list(matrix))
    shown = {(a * x + c * y, b * x + d * y): picture[y, x] for y in range(3) for x in range(4)}
    left, top = min(x for x, _ in shown), min(y for _, y in shown)
    assert {(x - left, y - top): value for (x, y), value in shown.items()} == {
        (x, y): out[y, x] for y in range(out.shape[0]) for x in range(out.shape[1])
    }


def test_real_clips_are_read(real_data: Path) -> None:
    for name, size, count in (("dog-example", (720, 1280), 122), ("03_blocks", (720, 1280), 292)):
        shapes = [frame.pixels.shape for frame in read_frames(real_data / "videos" / f"{name}.mp4", max_side=320)]
        assert shapes == [(size[0] * 320 // size[1], 320, 3)] * count
