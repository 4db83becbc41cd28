"""Photos and folders: order, orientation, EXIF, alpha, sizes, damage; what an input is is found by looking into it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gworld.capture.photos import list_pictures, natural_key, read_grey, read_header, read_picture
from gworld.capture.sources import open_source, read_pictures
from gworld.errors import InputError
from tests.videos import corners, moving, pattern, write

TURNS = {
    1: lambda image: image,
    2: lambda image: image[:, ::-1],
    3: lambda image: image[::-1, ::-1],
    4: lambda image: image[::-1],
    5: lambda image: image.swapaxes(0, 1),
    6: lambda image: np.rot90(image, -1),
    7: lambda image: image[::-1, ::-1].swapaxes(0, 1),
    8: lambda image: np.rot90(image, 1),
}


def save(path: Path, pixels: np.ndarray, exif: dict[int, object] | None = None, lens: dict[int, object] | None = None):
    image = Image.fromarray(pixels)
    tags = image.getexif()
    tags.update(exif or {})
    tags.get_ifd(0x8769).update(lens or {})
    image.save(path, exif=tags, **({"quality": 95} if path.suffix == ".jpg" else {}))
    return path


@pytest.mark.parametrize("orientation", TURNS)
def test_orientation_is_applied(tmp_path: Path, orientation: int) -> None:
    path = save(tmp_path / "a.jpg", corners(), {0x0112: orientation})
    pixels, mask = read_picture(path)
    expected = TURNS[orientation](corners())
    assert mask is None and pixels.shape == expected.shape
    assert np.abs(pixels.astype(int) - expected).mean() < 3
    header = read_header(path)
    assert (header.height, header.width) == expected.shape[:2]


def test_focal_length_comes_from_exif(tmp_path: Path) -> None:
    """A 26 mm equivalent on a 4:3 sensor: pixels per diagonal as on film; and the same from the sensor's pitch."""
    pixels = pattern(400, 300)
    path = save(tmp_path / "a.jpg", pixels, {0x010F: "Maker", 0x0110: "Model 1"}, {0xA405: 26})
    header = read_header(path)
    assert header.focal == pytest.approx(26 / 43.2666 * 500, rel=1e-4) and header.model == "Maker Model 1"
    path = save(tmp_path / "b.jpg", pixels, None, {0x920A: 50.0, 0xA20E: 1000.0, 0xA210: 3})  # 1000 per cm: 10 um
    assert read_header(path).focal == pytest.approx(5000.0, rel=1e-3)
    assert read_header(save(tmp_path / "c.jpg", pixels, None, {0xA405: 0})).focal == 0.0
    assert read_header(save(tmp_path / "d.jpg", pixels, None, {0xA405: 60000})).focal == 0.0


def test_alpha_becomes_a_mask(tmp_path: Path) -> None:
    rgba = np.dstack([corners(), np.full((64, 96), 255, np.uint8)])
    Image.fromarray(rgba).save(tmp_path / "opaque.png")
    assert read_picture(tmp_path / "opaque.png")[1] is None
    rgba[:, :30, 3] = 0
    Image.fromarray(rgba).save(tmp_path / "half.png")
    pixels, mask = read_picture(tmp_path / "half.png")
    assert mask is not None and set(np.unique(mask)) == {0, 255}
    assert (mask[:, :30] == 0).all() and (mask[:, 30:] == 255).all()
    np.testing.assert_array_equal(pixels, corners())
    small, small_mask = read_picture(tmp_path / "half.png", max_side=48)
    assert small.shape == (32, 48, 3) and small_mask is not None and small_mask.shape == (32, 48)
    assert (small_mask[:, :15] == 0).all() and (small_mask[:, 15:] == 255).all()


def test_kinds_of_pixels(tmp_path: Path) -> None:
    ramp = np.arange(96 * 64, dtype=np.uint16).reshape(64, 96) * 10
    Image.fromarray(ramp).save(tmp_path / "deep.png")
    np.testing.assert_array_equal(read_picture(tmp_path / "deep.png")[0][..., 1], (ramp >> 8).astype(np.uint8))
    np.testing.assert_array_equal(read_grey(tmp_path / "deep.png"), ramp)
    Image.fromarray(corners()[..., 0]).save(tmp_path / "grey.png")
    assert read_picture(tmp_path / "grey.png")[0].shape == (64, 96, 3)
    Image.fromarray(corners()).quantize(16).save(tmp_path / "palette.png")
    np.testing.assert_array_equal(read_picture(tmp_path / "palette.png")[0], corners())
    Image.fromarray(corners()).convert("CMYK").save(tmp_path / "cmyk.jpg")
    assert np.abs(read_picture(tmp_path / "cmyk.jpg")[0].astype(int) - corners()).mean() < 8
    Image.fromarray(ramp.astype(np.float32)).save(tmp_path / "float.tif")
    with pytest.raises(InputError, match="picture of floats"):
        read_picture(tmp_path / "float.tif")
    with pytest.raises(InputError, match="kind RGB"):
        read_grey(save(tmp_path / "c.png", corners()))


def test_large_photos_shrink_to_what_a_slow_filter_gives(tmp_path: Path) -> None:
    """JPEG's own halving on the way does not show: within 40 dB of filtering the full picture."""
    pixels = np.asarray(Image.fromarray(pattern(320, 240)).resize((1280, 960), Image.Resampling.BICUBIC))
    path = save(tmp_path / "large.jpg", pixels)
    small, _ = read_picture(path, max_side=200)
    direct = np.asarray(Image.open(path).resize((200, 150), Image.Resampling.LANCZOS))
    assert small.shape == (150, 200, 3)
    assert 10 * np.log10(255**2 / np.mean((small.astype(float) - direct) ** 2)) > 40


@pytest.mark.parametrize("cut", [0, 10, 200, 2000])
@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_damaged_pictures_are_one_sentence(tmp_path: Path, suffix: str, cut: int) -> None:
    path = save(tmp_path / f"a.{suffix}", pattern(96, 64))
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(InputError) as caught:
        read_picture(path)
    text = str(caught.value)
    assert str(path) in text and "\n" not in text and text.endswith(".") and "0x" not in text


def test_bombs_and_strangers_are_refused(tmp_path: Path) -> None:
    for width in (20_000, 12_100):  # beyond Pillow's own limit, and beyond ours only
        Image.new("1", (width, 10_000)).save(tmp_path / "bomb.png")
        with pytest.raises(InputError, match="pixels"):
            read_picture(tmp_path / "bomb.png")
    (tmp_path / "script.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(x) run\n")
    with pytest.raises(InputError, match="no picture of a kind that is read"):
        read_picture(tmp_path / "script.png")


def test_natural_order() -> None:
    names = ["img10.png", "img9.png", "IMG2.png", "a.png", "img009b.png", "7.png", "10.png", "".join("9" * 40) + ".png"]
    order = sorted(names, key=natural_key)
    assert order.index("img9.png") < order.index("img10.png") and order.index("7.png") < order.index("10.png")


def test_a_folder_of_photos(tmp_path: Path) -> None:
    for number in (1, 2, 10):
        save(tmp_path / f"p{number}.png", pattern(96, 64, number))
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / ".p0.png").write_bytes(b"hidden")
    source = open_source(tmp_path)
    assert (source.kind, source.width, source.height, source.count, source.lossless) == ("photos", 96, 64, 3, True)
    pictures = list(read_pictures(source))
    assert [picture.index for picture in pictures] == [0, 1, 2] and pictures[0].time is None
    for picture, number in zip(pictures, (1, 2, 10), strict=True):
        np.testing.assert_array_equal(picture.pixels, pattern(96, 64, number))
    assert [picture.index for picture in read_pictures(source, indices=[2])] == [2]
    assert [picture.index for picture in read_pictures(source, every=2)] == [0, 2]
    (tmp_path / "p3.png").write_bytes(b"broken")
    with pytest.raises(InputError, match=r"p3\.png"):
        open_source(tmp_path)


def test_folders_that_hold_something_else(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no pictures; JPEG or PNG files are needed"):
        open_source(tmp_path)
    write(tmp_path / "a.mp4", moving(2))
    with pytest.raises(InputError, match="holds no pictures but 1 videos; name each as an input"):
        open_source(tmp_path)
    (tmp_path / "images").mkdir()
    save(tmp_path / "images" / "1.png", corners())
    assert open_source(tmp_path).files == (tmp_path / "images" / "1.png",)
    with pytest.raises(InputError, match="does not exist"):
        open_source(tmp_path / "nothing")


def test_a_video_is_a_source(tmp_path: Path) -> None:
    source = open_source(write(tmp_path / "a.mkv", moving(5), codec="ffv1", pix_fmt="yuv444p"))
    assert (source.kind, source.width, source.height, source.fps, source.lossless) == ("video", 96, 64, 25.0, True)
    assert [picture.index for picture in read_pictures(source, indices=[0, 4])] == [0, 4]


def test_real_photos(real_data: Path) -> None:
    source = open_source(real_data / "skull_ccby")
    assert (source.kind, source.count, source.width, source.height) == ("photos", 66, 1296, 864)
    names = [file.stem for file in list_pictures(real_data / "skull_ccby" / "images")]
    assert names == sorted(names)
    assert next(iter(read_pictures(source, max_side=324))).pixels.shape == (216, 324, 3)
