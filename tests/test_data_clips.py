"""Video files: counted without decoding, cut and joined without encoding where possible."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from gworld.data.clips import copy_clip, join_clips, probe_clip, read_frames, write_clip, write_pictures
from gworld.errors import InputError
from tests.episodes import moving_square, small_video
from tests.recordings import jpeg


def worst(one: list[np.ndarray], two: list[np.ndarray]) -> int:
    assert len(one) == len(two)
    return max(int(np.abs(a.astype(int) - b).max()) for a, b in zip(one, two, strict=True))


def test_the_index_counts_what_decoding_finds(tmp_path: Path) -> None:
    times = np.array([0.0, 0.1, 0.25, 0.3, 0.7])
    write_clip(moving_square(5, 33), times, tmp_path / "a.mp4")
    clip = probe_clip(tmp_path / "a.mp4")
    assert len(clip) == 5 and np.allclose(clip.times, times) and (clip.width, clip.height) == (34, 34)
    frames = list(read_frames(tmp_path / "a.mp4"))
    truth = [np.pad(frame, ((0, 1), (0, 1), (0, 0)), mode="edge") for frame in moving_square(5, 33)]
    assert np.mean([np.abs(a.astype(int) - b).mean() for a, b in zip(frames, truth, strict=True)]) < 4


def test_chosen_frames_are_those_of_a_full_read(tmp_path: Path) -> None:
    path = small_video(tmp_path / "a.mp4", 20)
    every = list(read_frames(path))
    assert worst(list(read_frames(path, [0, 7, 19])), [every[0], every[7], every[19]]) == 0
    assert next(iter(read_frames(path, [3], width=16))).shape == (16, 16, 3)
    with pytest.raises(InputError, match="gave 1 of 2 frames"):
        list(read_frames(path, [3, 25]))


def test_a_stretch_between_key_frames_is_not_encoded_again(tmp_path: Path) -> None:
    pictures = [jpeg(frame) for frame in moving_square(10)]
    assert write_pictures(pictures, np.arange(10) / 10, tmp_path / "a.mp4")  # every frame of it is a key frame
    source = probe_clip(tmp_path / "a.mp4")
    assert copy_clip(source, tmp_path / "b.mp4", 3, 4)
    assert worst(list(read_frames(tmp_path / "b.mp4")), list(read_frames(tmp_path / "a.mp4"))[3:7]) == 0
    mixed = probe_clip(small_video(tmp_path / "c.mp4", 20))
    assert not copy_clip(mixed, tmp_path / "d.mp4", 3, 4)
    assert len(probe_clip(tmp_path / "d.mp4")) == 4
    with pytest.raises(InputError, match="has 20 frames; frames 18 to 21"):
        copy_clip(mixed, tmp_path / "e.mp4", 18, 4)


def test_joined_clips_hold_the_same_pictures_on_a_new_clock(tmp_path: Path) -> None:
    one = probe_clip(small_video(tmp_path / "a.mp4", 7))
    two = probe_clip(small_video(tmp_path / "b.mp4", 5))
    join_clips([(one, 0, 7), (two, 0, 5)], tmp_path / "c.mp4", np.arange(12) / 4)
    joined = probe_clip(tmp_path / "c.mp4")
    assert np.allclose(joined.times, np.arange(12) / 4)
    parts = [*read_frames(one.path), *read_frames(two.path)]
    assert worst(list(read_frames(joined.path)), parts) == 0


def test_jpegs_go_in_as_they_are(tmp_path: Path) -> None:
    from PIL import Image

    pictures = [jpeg(frame) for frame in moving_square(4)]
    assert write_pictures(pictures, np.arange(4) / 4, tmp_path / "a.mp4")
    assert all(picture in (tmp_path / "a.mp4").read_bytes() for picture in pictures)
    frame = moving_square(1)[0]
    Image.fromarray(frame).save(tmp_path / "p.png")
    assert not write_pictures([(tmp_path / "p.png").read_bytes(), pictures[0]], np.arange(2) / 4, tmp_path / "b.mp4")
    assert len(probe_clip(tmp_path / "b.mp4")) == 2
    with pytest.raises(InputError, match="cannot be decoded"):
        write_pictures([b"no picture", pictures[0]], np.arange(2) / 4, tmp_path / "c.mp4")


def test_a_playlist_named_mp4_opens_nothing(tmp_path: Path) -> None:
    small_video(tmp_path / "secret.mp4")
    (tmp_path / "list.mp4").write_text("#EXTM3U\n#EXTINF:1,\nsecret.mp4\n")
    (tmp_path / "concat.mp4").write_text("ffconcat version 1.0\nfile secret.mp4\n")
    for name in ("list.mp4", "concat.mp4"):
        with pytest.raises(InputError, match="cannot be read as a video"):
            probe_clip(tmp_path / name)
    with pytest.raises(InputError, match="none of the videos"):
        probe_clip(small_video(tmp_path / "a.mp4").rename(tmp_path / "a.m3u8"))


def test_av1_is_cut_between_its_key_frames(tmp_path: Path, real_data: Path) -> None:
    source = probe_clip(real_data / "lerobot_v3_sample/videos/observation.images.top/chunk-000/file-000.mp4")
    assert source.codec == "av1" and len(source) == 24
    assert copy_clip(source, tmp_path / "a.mp4", 12, 12)
    assert worst(list(read_frames(tmp_path / "a.mp4")), list(read_frames(source.path))[12:]) == 0
