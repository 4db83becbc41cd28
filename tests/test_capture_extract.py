"""Extraction: what is written is what was filmed, all or nothing, once; cameras, names, times and refusals."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gworld.capture import extract
from gworld.capture.extract import extract_footage, load_facts
from gworld.capture.footage import Footage, load_footage, shots_of
from gworld.capture.keyframes import KeyframeOptions
from gworld.capture.sources import open_source, read_pictures
from gworld.errors import InputError, UsageError
from tests.videos import corners, pattern, write

ROOT = Path(extract.__file__).resolve().parents[2]
QUICK = {"preset": "ultrafast"}


def pan(count: int, step: float = 6.0, width: int = 160, height: int = 120) -> list[np.ndarray]:
    """A camera that pans over blobs with corners."""
    rng = np.random.default_rng(0)
    wide = np.full((height, width + int(step * count) + 1, 3), 128, np.uint8)
    for _ in range(wide.shape[1] * 2):
        x, y = rng.integers(0, wide.shape[1]), rng.integers(0, height)
        wide[y : y + rng.integers(4, 20), x : x + rng.integers(4, 20)] = rng.integers(0, 256, 3)
    return [np.ascontiguousarray(wide[:, int(step * n) : int(step * n) + width]) for n in range(count)]


@pytest.fixture(scope="module")
def panned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("films") / "my film.mp4", pan(40), options=QUICK)


def files_of(folder: Path) -> dict[str, int]:
    return {str(file.relative_to(folder)): file.stat().st_mtime_ns for file in folder.rglob("*") if file.is_file()}


def test_a_video_becomes_footage(tmp_path: Path, panned: Path) -> None:
    told: list[tuple[str, float]] = []
    options = KeyframeOptions(count=12)
    footage = extract_footage([panned], tmp_path / "out", options, lambda stage, share: told.append((stage, share)))
    (camera,) = footage.cameras
    assert (camera.name, camera.width, camera.height, camera.fps, camera.K) == ("my_film", 160, 120, 25.0, ())
    assert camera.source == str(panned.resolve()) and not camera.photos
    shots = shots_of(footage, 0)
    assert 9 <= len(shots) <= 13 and [shot.index for shot in shots] == sorted(shot.index for shot in shots)
    frames = {picture.index: picture for picture in read_pictures(open_source(panned))}
    for shot in shots:
        np.testing.assert_array_equal(np.asarray(Image.open(shot.image)), frames[shot.index].pixels)
        assert shot.time == pytest.approx(frames[shot.index].time) and shot.sharpness > 0
    assert load_footage(footage.folder) == footage
    assert [share for _, share in told] == sorted(share for _, share in told) and told[-1][1] == 1.0
    (facts,) = load_facts(footage.folder)
    assert (facts.kind, facts.looked, facts.kept, facts.still) == ("video", 40, len(shots), False)
    assert facts.path == pytest.approx(6 * 39 / 160, rel=0.1) and facts.seconds == pytest.approx(39 / 25)


def test_the_same_request_is_answered_from_disk(tmp_path: Path, panned: Path) -> None:
    first = extract_footage([panned], tmp_path / "out", KeyframeOptions(count=12))
    before = files_of(first.folder)
    assert extract_footage([panned], tmp_path / "out", KeyframeOptions(count=12)) == first
    assert files_of(first.folder) == before
    other = extract_footage([panned], tmp_path / "out", KeyframeOptions(count=9))
    assert len(other) < len(first)
    other.shots[0].image.unlink()
    again = extract_footage([panned], tmp_path / "out", KeyframeOptions(count=9))
    assert again == other and again.shots[0].image.is_file()


def test_nobody_elses_files_are_replaced(tmp_path: Path, panned: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "diary.txt").write_text("mine")
    with pytest.raises(UsageError, match=r"diary\.txt"):
        extract_footage([panned], tmp_path / "out", KeyframeOptions())
    assert (tmp_path / "out" / "diary.txt").read_text() == "mine"


def test_large_lossy_pictures_are_jpeg_and_close(tmp_path: Path) -> None:
    frames = pan(10, 40, 900, 640)
    path = write(tmp_path / "a.mp4", frames, options={"preset": "ultrafast", "crf": "20"})
    footage = extract_footage([path], tmp_path / "out", KeyframeOptions(least=1))
    shot = footage.shots[0]
    picture = next(iter(read_pictures(open_source(path), indices=[shot.index])))
    written = np.asarray(Image.open(shot.image)).astype(float)
    assert shot.image.suffix == ".jpg" and written.shape == (640, 900, 3)
    assert 10 * np.log10(255**2 / np.mean((written - picture.pixels) ** 2)) > 34
    small = extract_footage([path], tmp_path / "small", KeyframeOptions(least=1, max_side=300))
    assert small.cameras[0].width == 300 and small.shots[0].image.suffix == ".png"
    lossless = write(tmp_path / "b.mkv", frames[:8], codec="ffv1", pix_fmt="bgr0")
    exact = extract_footage([lossless], tmp_path / "exact", KeyframeOptions(least=1)).shots[0]
    assert exact.image.suffix == ".png"
    np.testing.assert_array_equal(np.asarray(Image.open(exact.image)), frames[exact.index])


def still_film(path: Path, count: int, fps: int, size: tuple[int, int] = (160, 120)) -> Path:
    """A camera at rest, with a clock in it: a bar whose length is the time."""

    def frame(number: int) -> np.ndarray:
        out = pan(1, 0, *size)[0]
        out[:10] = 0
        out[:10, : round(number / fps * 30)] = 255
        return out

    return write(path, (frame(number) for number in range(count)), fps=fps, options=QUICK)


def test_fixed_cameras_keep_the_same_moments(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    paths = [still_film(tmp_path / "a/cam.mp4", 100, 25), still_film(tmp_path / "b/cam.mp4", 45, 10, (128, 96))]
    footage = extract_footage(paths, tmp_path / "out", KeyframeOptions(still=8))
    assert [camera.name for camera in footage.cameras] == ["cam", "cam_2"]
    one, two = (shots_of(footage, camera) for camera in (0, 1))
    assert len(one) == len(two) == 8 and {shot.name.split("-")[0] for shot in footage.shots} == {"cam", "cam_2"}
    assert [shot.time for shot in one] == pytest.approx([shot.time for shot in two], abs=0.06)
    assert one[0].time == 0.0 and one[-1].time == pytest.approx(99 / 25)
    for shot in footage.shots:  # the clock in the picture agrees
        bar = (np.asarray(Image.open(shot.image))[3:6].mean(axis=(0, 2)) > 128).sum()
        assert bar == pytest.approx(30 * (shot.time or 0.0), abs=1.5)
    assert all(facts.still and facts.parallax is None for facts in load_facts(footage.folder))


def test_photos_are_kept_all_with_their_names(tmp_path: Path) -> None:
    """Two sizes make two cameras; EXIF gives each its focal length, scaled with the picture; alpha becomes a mask."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for number, (width, height) in enumerate([(400, 300), (300, 400), (400, 300)], 1):
        image = Image.fromarray(pattern(width, height, number))
        tags = image.getexif()
        tags.get_ifd(0x8769)[0xA405] = 26
        image.save(folder / f"IMG_{number}.jpg", exif=tags)
    rgba = np.dstack([pattern(400, 300, 9), np.full((300, 400), 255, np.uint8)])
    rgba[:100, :, 3] = 0
    Image.fromarray(rgba).save(folder / "IMG_10.png")
    footage = extract_footage([folder], tmp_path / "out", KeyframeOptions(max_side=200, count=1))
    assert [shot.name for shot in footage.shots] == ["IMG_1", "IMG_2", "IMG_3", "IMG_10"]
    assert [shot.camera for shot in footage.shots] == [0, 1, 0, 2] and all(c.photos for c in footage.cameras)
    first, second, third = footage.cameras
    assert (first.width, first.height, second.width, second.height) == (200, 150, 150, 200) and third.K == ()
    focal = 26 / 43.2666 * 500 / 2
    np.testing.assert_allclose(first.K, (focal, focal, 100, 75), rtol=2e-3)
    np.testing.assert_allclose(second.K, (focal, focal, 75, 100), rtol=2e-3)
    masks = [shot.mask for shot in footage.shots]
    assert masks[:3] == [None] * 3 and masks[3] is not None
    mask = np.asarray(Image.open(masks[3]))
    assert mask.shape == (150, 200) and (mask[:49] == 0).all() and (mask[51:] == 255).all()
    assert all(shot.time is None and shot.sharpness > 0 for shot in footage.shots)


def test_too_few_sharp_frames_are_one_sentence(tmp_path: Path) -> None:
    path = write(tmp_path / "clip.mp4", pan(5, 12), options=QUICK)
    with pytest.raises(
        InputError, match=r"clip\.mp4` has \d sharp frames .* at least 8 are needed.*capture\.sharpness"
    ):
        extract_footage([path], tmp_path / "out", KeyframeOptions())
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".out*"))
    assert len(extract_footage([path], tmp_path / "out", KeyframeOptions(least=1))) == 5


def test_refused_inputs_leave_nothing(tmp_path: Path, panned: Path) -> None:
    with pytest.raises(UsageError, match="no footage was given"):
        extract_footage([], tmp_path / "out", KeyframeOptions())
    (tmp_path / "bad.mp4").write_text("#EXTM3U\n/etc/passwd\n")
    with pytest.raises(InputError, match=r"bad\.mp4"):
        extract_footage([panned, tmp_path / "bad.mp4"], tmp_path / "out", KeyframeOptions())
    assert not (tmp_path / "out").exists()


def test_one_picture_is_a_camera_at_rest(tmp_path: Path) -> None:
    path = write(tmp_path / "one.mp4", [corners()], options=QUICK)
    footage = extract_footage([path], tmp_path / "out", KeyframeOptions())
    assert len(footage) == 1 and load_facts(footage.folder)[0].still


def test_killed_at_any_moment_nothing_is_half(tmp_path: Path, panned: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from gworld.capture.extract import *\n"
        f"extract_footage([Path({str(panned)!r})], Path({str(tmp_path / 'out')!r}), KeyframeOptions(),"
        " lambda stage, share: print(stage, flush=True))"
    )
    seen_halfway = False
    for stage in ("looking", "writing"):
        process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=ROOT)
        with process:
            assert process.stdout is not None
            for number, line in enumerate(process.stdout):
                if line.startswith(stage) and number % 40 > 5:
                    process.send_signal(signal.SIGKILL)
                    break
        seen_halfway |= bool(list(tmp_path.glob(".out.*.tmp")))
        assert not (tmp_path / "out").exists()
    assert seen_halfway, "the second kill came while pictures were being written"
    footage = extract_footage([panned], tmp_path / "out", KeyframeOptions())
    assert isinstance(footage, Footage) and len(footage) > 8 and not list(tmp_path.glob(".out*"))


def test_damaged_facts_are_refused_and_made_again(tmp_path: Path, panned: Path) -> None:
    footage = extract_footage([panned], tmp_path / "out", KeyframeOptions(count=10))
    facts = load_facts(footage.folder)
    text = (footage.folder / "capture.json").read_text()
    for damaged in (text.replace('"cameras"', '"camera"'), text[:50], "[]", text.replace("gworld capture 1", "x")):
        (footage.folder / "capture.json").write_text(damaged)
        with pytest.raises(InputError, match=r"capture\.json"):
            load_facts(footage.folder)
    assert extract_footage([panned], tmp_path / "out", KeyframeOptions(count=10)) == footage
    assert load_facts(footage.folder) == facts


def test_real_recordings(real_data: Path, tmp_path: Path) -> None:
    """Outside cameras stand still, the wrist camera moves; photos keep their order."""
    outside = [real_data / "droid" / "videos" / "6" / f"{number}.mp4" for number in (0, 1)]
    footage = extract_footage(outside, tmp_path / "outside", KeyframeOptions(still=5))
    assert [facts.still for facts in load_facts(footage.folder)] == [True, True] and len(footage) == 10
    wrist = extract_footage([real_data / "droid" / "videos" / "6" / "2.mp4"], tmp_path / "wrist", KeyframeOptions())
    assert not load_facts(wrist.folder)[0].still and len(wrist) >= 20
