"""RGB-D folders of each layout: pairs, times, intrinsics, units; what does not fit together is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gworld.capture.extract import extract_footage, load_facts
from gworld.capture.footage import shots_of
from gworld.capture.keyframes import KeyframeOptions
from gworld.capture.rgbd import find_calibration, find_rgbd, read_depth
from gworld.capture.sources import open_source, read_pictures
from gworld.errors import InputError
from tests.videos import pattern


def depth_of(number: int, height: int = 64, width: int = 96) -> np.ndarray:
    rows, columns = np.mgrid[0:height, 0:width]
    values = (1000 + 100 * number + 10 * rows + columns).astype(np.uint16)
    values[:3] = 0
    return values


def put(folder: Path, name: str, number: int, depth: str, **size: int) -> None:
    for path, pixels in ((folder / name, pattern(96, 64, 4.0 * number)), (folder / depth, depth_of(number, **size))):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)


def make_tum(folder: Path, count: int = 12) -> Path:
    """Colour at 30 Hz, depth 8 ms later; the fourth picture has no depth within reach, one depth lies in between."""
    colour, depth = ["# colour"], ["# depth"]
    for number in range(count):
        moment = 1305031102.0 + number / 30
        put(folder, f"rgb/{number}.png", number, f"depth/{number}.png")
        colour.append(f"{moment:.6f} rgb/{number}.png")
        if number != 3:
            depth.append(f"{moment + 0.008:.6f} depth/{number}.png")
    depth.append(f"{1305031102.0 + 0.5 / 30:.6f} depth/3.png")
    (folder / "rgb.txt").write_text("\n".join(colour))
    (folder / "depth.txt").write_text("\n".join(depth))
    return folder


def test_tum_lists_are_associated_by_time(tmp_path: Path) -> None:
    listing = find_rgbd(make_tum(tmp_path))
    assert listing is not None and listing.depth_scale == pytest.approx(1 / 5000)
    assert [picture.stem for picture in listing.pictures] == [str(number) for number in range(12)]
    assert [depth and depth.stem for depth in listing.depths] == [str(n) if n != 3 else None for n in range(12)]
    assert listing.times == pytest.approx([number / 30 for number in range(12)], abs=1e-5)
    source = open_source(tmp_path)
    assert source.kind == "rgbd" and source.fps == pytest.approx(30, rel=1e-3)
    pictures = list(read_pictures(source))
    assert pictures[3].depth is None and pictures[3].time == pytest.approx(0.1, abs=1e-5)
    np.testing.assert_array_equal(pictures[5].depth, depth_of(5))
    assert [picture.index for picture in read_pictures(source, rate=10)] == [0, 3, 6, 9]
    assert all(picture.depth is None for picture in read_pictures(source, depth=False))


def test_lists_cannot_lead_outside(tmp_path: Path) -> None:
    make_tum(tmp_path / "a")
    (tmp_path / "a" / "rgb.txt").write_text("1.0 ../../secret.png\n")
    with pytest.raises(InputError, match="leads outside"):
        open_source(tmp_path / "a")
    (tmp_path / "a" / "rgb.txt").write_text("nan rgb/0.png\n")
    with pytest.raises(InputError, match="line 1 is not"):
        open_source(tmp_path / "a")
    (tmp_path / "a" / "rgb.txt").write_text("99 rgb/0.png\n")
    with pytest.raises(InputError, match="no depth lies within"):
        open_source(tmp_path / "a")


@pytest.mark.parametrize("layout", ["color/{:04d}.png depth/{:04d}.png", "rgb/c{:d}.png depth/d{:d}.png",
                                    "frame-{:06d}.color.png frame-{:06d}.depth.png"])  # fmt: skip
def test_pairs_are_found(tmp_path: Path, layout: str) -> None:
    colour, depth = layout.split()
    for number in range(11):
        put(tmp_path, colour.format(number), number, depth.format(number))
    source = open_source(tmp_path)
    assert source.kind == "rgbd" and source.count == 11 and source.depth_scale == 0.001
    for picture in read_pictures(source, indices=[2, 10]):
        np.testing.assert_array_equal(picture.depth, depth_of(picture.index))


def test_depth_is_never_mixed(tmp_path: Path) -> None:
    put(tmp_path, "color/0.png", 0, "depth/0.png", height=128, width=192)
    half = read_depth(tmp_path / "depth/0.png", (64, 96), (64, 96))
    assert half.shape == (64, 96) and np.isin(half, depth_of(0, 128, 192)).all()
    with pytest.raises(InputError, match="one shape is needed"):
        read_depth(tmp_path / "depth/0.png", (100, 96), (64, 96))
    Image.fromarray(np.zeros((64, 96), np.uint8)).save(tmp_path / "eight.png")
    with pytest.raises(InputError, match="16-bit PNG"):
        read_depth(tmp_path / "eight.png", (64, 96), (64, 96))


CALIBRATIONS = {
    "camera.json": json.dumps(
        {"fx": 100, "fy": 101, "cx": 48, "cy": 32, "width": 96, "height": 64, "depth_scale": 1000}
    ),
    "cam_params.json": json.dumps(
        {"camera": {"w": 96, "h": 64, "fx": 100, "fy": 101, "cx": 48, "cy": 32, "scale": 1000.0}}
    ),
    "camera_intrinsic.json": json.dumps({"intrinsic_matrix": [100, 0, 0, 0, 101, 0, 48, 32, 1], "depth_scale": 0.001}),
    "intrinsics.json": json.dumps({"K": [[100, 0, 48], [0, 101, 32], [0, 0, 1]]}),
    "camera-intrinsics.txt": "100 0 48\n0 101 32\n0 0 1\n",
    "intrinsic_color.txt": "100 0 48 0\n0 101 32 0\n0 0 1 0\n0 0 0 1\n",
    "calibration.txt": "# fx fy cx cy\n100 101 48 32\n",
    "calib.txt": "100, 101, 48, 32, 0.1, -0.2, 0, 0, 0\n".replace(", 0, 0, 0", ""),
}


@pytest.mark.parametrize("name", CALIBRATIONS)
def test_intrinsics_of_each_form(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text(CALIBRATIONS[name])
    found = find_calibration(tmp_path)
    assert found is not None and found.K == (100, 101, 48, 32)
    assert found.depth_scale in (0.0, pytest.approx(0.001))


@pytest.mark.parametrize(
    "text", ['{"fx": NaN}', '{"fx": 1e999, "fy": 1, "cx": 1, "cy": 1}', "{", '{"fx":-1,"fy":1,"cx":1,"cy":1}']
)
def test_broken_intrinsics_are_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "camera.json").write_text(text)
    with pytest.raises(InputError, match=r"camera\.json"):
        find_calibration(tmp_path)


@pytest.mark.parametrize(
    "text", ["[]", '{"intrinsic_matrix": 3}', '{"K": []}', '{"K": [[1], 2]}', '"x"', '{"name": "x"}']
)
def test_other_json_is_no_calibration_or_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "camera.json").write_text(text)
    try:
        assert find_calibration(tmp_path) is None
    except InputError as error:
        assert "camera.json" in str(error)


def test_footage_of_an_rgbd_recording(tmp_path: Path) -> None:
    """Intrinsics scale with the pictures, depth keeps its unit and its holes, times are the recording's."""
    make_tum(tmp_path / "in", 12)
    (tmp_path / "in" / "camera.json").write_text(CALIBRATIONS["camera.json"].replace("1000", "5000"))
    options = KeyframeOptions(max_side=48, least=1)
    footage = extract_footage([tmp_path / "in"], tmp_path / "out", options)
    assert footage.depth_scale == pytest.approx(1 / 5000)
    (camera,) = footage.cameras
    assert (camera.width, camera.height, camera.K) == (48, 32, (50.0, 50.5, 24.0, 16.0)) and not camera.photos
    assert camera.fps == pytest.approx(30, rel=1e-3)
    shots = shots_of(footage, 0)
    assert len(shots) > 5 and all((shot.depth is None) == (shot.index == 3) for shot in shots)
    for shot in shots:
        assert shot.time == pytest.approx(shot.index / 30, abs=1e-5)
        if shot.depth is not None:
            depth = np.asarray(Image.open(shot.depth))
            assert depth.dtype == np.uint16 and np.isin(depth, depth_of(shot.index)).all() and (depth[0] == 0).all()
    (facts,) = load_facts(footage.folder)
    assert facts.kind == "rgbd" and facts.looked == 12 and not facts.still


def test_units_of_two_recordings_become_one(tmp_path: Path) -> None:
    make_tum(tmp_path / "a", 3)
    for number in range(3):
        put(tmp_path / "b", f"color/{number}.png", number, f"depth/{number}.png")
    footage = extract_footage([tmp_path / "a", tmp_path / "b"], tmp_path / "out", KeyframeOptions())
    assert footage.depth_scale == 0.001
    for shot in footage.shots:
        depth = np.asarray(Image.open(shot.depth)).astype(float)
        expected = depth_of(shot.index) / (5.0 if shot.camera == 0 else 1.0)
        assert np.abs(depth - expected).max() <= 0.5
