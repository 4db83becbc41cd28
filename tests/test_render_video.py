"""Video written and decoded again: pictures, colours, flags, sizes; PNG sequences and panels."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image

from gworld.errors import InputError, UsageError
from gworld.render.metrics import psnr
from gworld.render.video import as_uint8, open_video, read_video, side_by_side, write_pngs, write_video

PATCHES = [
    (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0), (128, 128, 128), (200, 60, 20), (20, 90, 160),
    (250, 240, 30), (30, 250, 240), (180, 20, 220), (64, 64, 32),
]  # fmt: skip


def patches() -> np.ndarray:
    colours = np.array(PATCHES, np.uint8).reshape(3, 4, 3)
    return colours.repeat(32, axis=0).repeat(32, axis=1)


def moving_frames(count: int, height: int = 96, width: int = 128) -> list[torch.Tensor]:
    """A smooth pattern that drifts, as float images."""
    y, x = torch.meshgrid(torch.arange(height) / height, torch.arange(width) / width, indexing="ij")
    phases = torch.arange(count) * 0.05
    return [torch.stack([0.5 + 0.4 * (6 * x + p).sin(), y, 0.5 + 0.4 * (5 * (x + y) - p).cos()], -1) for p in phases]


def test_decoded_video_is_the_rendered_one(tmp_path: Path):
    frames = moving_frames(20)
    assert write_video(frames, tmp_path / "a.mp4", 30) == 20
    decoded = [torch.from_numpy(frame).float() / 255 for frame in read_video(tmp_path / "a.mp4")]
    assert len(decoded) == 20
    for frame, truth in zip(decoded, frames, strict=True):
        assert float(psnr(frame, truth)) > 35
    assert float(psnr(decoded[0], frames[10])) < 30, "the frames do differ"


def test_flat_colours_survive(tmp_path: Path):
    write_video([patches()] * 5, tmp_path / "a.mp4", 25)
    for frame in read_video(tmp_path / "a.mp4"):
        centres = frame[16::32, 16::32].reshape(-1, 3).astype(int)
        assert np.abs(centres - np.array(PATCHES)).max() <= 3


def test_video_says_which_colours_it_holds(tmp_path: Path):
    write_video([patches()] * 2, tmp_path / "a.mp4", 29.97)
    with av.open(str(tmp_path / "a.mp4")) as container:
        stream = container.streams.video[0]
        context = stream.codec_context
        assert (context.color_range, context.colorspace, context.color_primaries, context.color_trc) == (1, 1, 1, 1)
        assert context.pix_fmt == "yuv420p" and context.name == "h264"
        assert float(stream.average_rate) == pytest.approx(29.97, abs=1e-3)
        frame = next(container.decode(video=0))
        luma = frame.to_ndarray()[:96]
        # BT.709 luma of pure green in limited range is 16 + 219 x 0.7152; BT.601 would give 145, full range 182.
        assert int(luma[16, 48]) == pytest.approx(16 + 219 * 0.7152, abs=2)
        assert int(luma[16, 112]) == 235 and int(luma[48, 16]) == 16


def test_odd_sizes_grow_by_their_border(tmp_path: Path):
    frame = np.zeros((33, 47, 3), np.uint8)
    frame[:, -1], frame[-1] = (200, 40, 40), (40, 40, 200)
    write_video([frame] * 3, tmp_path / "a.mp4", 10, quality=1)
    decoded = next(iter(read_video(tmp_path / "a.mp4")))
    assert decoded.shape == (34, 48, 3)
    assert np.abs(decoded[33, :40].astype(int) - (40, 40, 200)).max() < 30


def test_planar_frames_go_to_the_encoder_as_they_are(tmp_path: Path):
    planes = np.concatenate(
        [np.full((32, 48), 173, np.uint8), np.full((8, 48), 42, np.uint8), np.full((8, 48), 26, np.uint8)]
    )
    write_video([planes, torch.from_numpy(planes)], tmp_path / "a.mp4", 10)
    decoded = next(iter(read_video(tmp_path / "a.mp4")))
    assert decoded.shape == (32, 48, 3) and np.abs(decoded[16, 24].astype(int) - (0, 255, 0)).max() <= 3
    with pytest.raises(InputError, match="I420"):
        write_video([planes[:-1]], tmp_path / "b.mp4", 10)


def test_floats_are_clamped_and_rounded():
    frame = torch.tensor([[[-0.5, 0.5, 1.5], [float("nan"), 1.0, 0.0019]]])
    assert as_uint8(frame).tolist() == [[[0, 128, 255], [0, 255, 0]]]
    assert as_uint8(frame.double().numpy()).tolist() == [[[0, 128, 255], [0, 255, 0]]]


def test_memory_does_not_grow_with_the_frames(tmp_path: Path):
    """Frames are taken one by one: no more than one is alive while the next is made."""
    alive = []

    class Counted(np.ndarray):
        def __del__(self):
            alive.append(-1)

    most = 0

    def frames():
        nonlocal most
        for _ in range(60):
            alive.append(1)
            most = max(most, sum(alive))
            yield np.zeros((32, 32, 3), np.uint8).view(Counted)

    write_video(frames(), tmp_path / "a.mp4", 30)
    assert most <= 4


def test_a_failure_leaves_nothing_and_keeps_what_was_there(tmp_path: Path):
    target = tmp_path / "a.mp4"
    target.write_bytes(b"before")

    def broken():
        yield np.zeros((16, 16, 3), np.uint8)
        raise RuntimeError("the renderer stopped")

    with pytest.raises(RuntimeError, match="the renderer stopped"):
        write_video(broken(), target, 30)
    assert target.read_bytes() == b"before" and [p.name for p in tmp_path.iterdir()] == ["a.mp4"]


@pytest.mark.parametrize(
    ("frames", "words"),
    [
        ([], "no frames"),
        ([np.zeros((4, 4, 4), np.uint8)], r"shape \[4, 4, 4\]"),
        ([np.zeros((4, 4, 3), np.int32)], "int32"),
        ([np.zeros((0, 4, 3), np.uint8)], r"\[H, W, 3\]"),
        ([np.zeros((16, 16, 3), np.uint8), np.zeros((16, 18, 3), np.uint8)], "frame sizes differ"),
    ],
)
def test_bad_frames_are_one_sentence(tmp_path: Path, frames: list, words: str):
    with pytest.raises(InputError, match=words):
        write_video(frames, tmp_path / "a.mp4", 30)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("fps", [0, -1, float("nan"), float("inf")])
def test_bad_rates_are_refused(tmp_path: Path, fps: float):
    with pytest.raises(UsageError, match="frames per second"), open_video(tmp_path / "a.mp4", fps):
        pass


@pytest.mark.parametrize(
    "data", [b"", b"not a video", b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n/etc/hostname\n"]
)
def test_only_mp4_is_opened(tmp_path: Path, data: bytes):
    file = tmp_path / "a.mp4"
    file.write_bytes(data)
    with pytest.raises(InputError, match="cannot be read as MP4"):
        list(read_video(file))
    with pytest.raises(InputError, match="does not exist"):
        list(read_video(tmp_path / "none.mp4"))


def test_cut_off_video_is_refused(tmp_path: Path):
    write_video(moving_frames(10), tmp_path / "a.mp4", 30)
    data = (tmp_path / "a.mp4").read_bytes()
    (tmp_path / "b.mp4").write_bytes(data[: len(data) // 2])
    with pytest.raises(InputError, match=r"b\.mp4"):
        list(read_video(tmp_path / "b.mp4"))


def test_pngs_are_exact(tmp_path: Path):
    frames = [patches(), patches()[::-1]]
    assert write_pngs(frames, tmp_path / "shots") == 2
    names = sorted(p.name for p in (tmp_path / "shots").iterdir())
    assert names == ["frame-000000.png", "frame-000001.png"]
    assert np.array_equal(np.asarray(Image.open(tmp_path / "shots" / names[1])), frames[1])
    with pytest.raises(UsageError, match="exists already"):
        write_pngs(frames, tmp_path / "shots")
    with pytest.raises(InputError, match="no frames"):
        write_pngs([], tmp_path / "empty")
    assert not (tmp_path / "empty").exists()


def test_panels_stand_side_by_side():
    left, right = np.full((60, 40, 3), 90, np.uint8), torch.zeros(60, 30, 3)
    joined = side_by_side([left, right])
    assert joined.shape == (60, 72, 3)
    assert (joined[:, :40] == 90).all() and (joined[:, 40:42] == 255).all() and (joined[:, 42:] == 0).all()
    labelled = side_by_side([left, right], ["truth", "ours"])
    assert labelled.shape == joined.shape and (labelled[:20, :40] != joined[:20, :40]).any()
    assert np.array_equal(labelled[30:], joined[30:])
    with pytest.raises(InputError, match="labels"):
        side_by_side([left, right], ["one"])
    with pytest.raises(InputError, match="side by side"):
        side_by_side([left, np.zeros((61, 5, 3), np.uint8)])


def test_planes_of_any_even_height_are_taken(tmp_path: Path) -> None:
    planes = np.full((9, 8), 128, np.uint8)  # a picture 6 pixels high
    write_video([planes, planes], tmp_path / "v.mp4", 10)
    assert [frame.shape for frame in read_video(tmp_path / "v.mp4")] == [(6, 8, 3)] * 2
