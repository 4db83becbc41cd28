"""Keyframes: sharpness means blur and nothing else, motion is the camera's, and the choice is spread and sharp."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gworld.capture.keyframes import (
    KeyframeOptions,
    Looks,
    choose,
    grey_of,
    look,
    nearest,
    relative_sharpness,
    sharpness_of,
    spread,
)  # fmt: skip

WIDTH, HEIGHT = 320, 200
cv2.setNumThreads(1)


def canvas(width: int = 900, height: int = 420, seed: int = 0) -> np.ndarray:
    """A wide picture of overlapping blobs with corners to track, detail down to two pixels."""
    rng = np.random.default_rng(seed)
    image = np.full((height, width, 3), 128, np.uint8)
    for _ in range(width * height // 160):
        x, y = rng.integers(0, width), rng.integers(0, height)
        w, h = rng.integers(3, 26, 2)
        image[y : y + h, x : x + w] = rng.integers(0, 256, 3)
    return cv2.GaussianBlur(image, (0, 0), 0.7)


CANVAS = canvas()


def window(x: float, y: float = 20.0) -> np.ndarray:
    shift = np.float64([[1, 0, -x], [0, 1, -y]])
    return cv2.warpAffine(CANVAS, shift, (WIDTH, HEIGHT), flags=cv2.INTER_LINEAR)


def film(pictures: Iterable[np.ndarray], rate: float = 25.0) -> Iterator[tuple[int, float, np.ndarray]]:
    for number, pixels in enumerate(pictures):
        yield number, number / rate, pixels


def noisy(pixels: np.ndarray, sigma: float, seed: int) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(0, sigma, pixels.shape)
    return np.clip(pixels + noise, 0, 255).astype(np.uint8)


def smeared(pixels: np.ndarray, length: int, degrees: float) -> np.ndarray:
    kernel = np.zeros((length, length), np.float32)
    kernel[length // 2] = 1
    turn = cv2.getRotationMatrix2D(((length - 1) / 2, (length - 1) / 2), degrees, 1)
    kernel = cv2.warpAffine(kernel, turn, (length, length))
    return cv2.filter2D(pixels, -1, kernel / kernel.sum())


@pytest.mark.parametrize("step", [0.7, 3.0, 8.0])
def test_path_is_how_far_the_picture_moved(step: float) -> None:
    count = int(200 / step) + 1 if step > 1 else 80
    looks = look(film(window(step * number) for number in range(count)))
    assert looks.path[-1] == pytest.approx(step * (count - 1) / WIDTH, rel=0.05)
    assert not looks.still and (np.diff(looks.path) > -1e-3).all()


def subject(number: int, size: int) -> Callable[[np.ndarray], np.ndarray]:
    def draw(pixels: np.ndarray) -> np.ndarray:
        left = (5 * number) % WIDTH
        patch = np.random.default_rng(5).integers(0, 256, (HEIGHT, size // 4, 3), np.uint8).repeat(4, axis=1)
        out = pixels.copy()
        out[:, left : left + size] = patch[:, : max(0, min(size, WIDTH - left))]
        return out

    return draw


@pytest.mark.parametrize("tremble", [0.0, 1.5], ids=["tripod", "tremble"])
@pytest.mark.parametrize("size", [0, 64, 96], ids=["empty", "fifth", "third"])
def test_a_camera_at_rest_is_still_whatever_passes(size: int, tremble: float) -> None:
    rng = np.random.default_rng(2)
    at = rng.normal(0, tremble, 70)
    pictures = (
        noisy(subject(n, size)(window(100 + at[n])), 4, n) if size else noisy(window(100 + at[n]), 4, n)
        for n in range(70)
    )
    looks = look(film(pictures))
    assert looks.still, looks.path.max()
    assert len(choose(looks, KeyframeOptions(still=10))) == 10


def test_a_moving_camera_is_not_still_though_a_third_rides_along() -> None:
    """The gripper in the picture of a wrist camera."""

    def picture(number: int) -> np.ndarray:
        out = window(2.0 * number)
        out[130:] = CANVAS[200:270, :WIDTH]
        return out

    looks = look(film(picture(number) for number in range(60)))
    assert looks.path[-1] == pytest.approx(118 / WIDTH, rel=0.15)


def test_a_cut_and_a_blank_stretch_do_no_harm() -> None:
    other = canvas(seed=9)[:HEIGHT, :WIDTH]
    blank = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    pictures = [window(3.0 * n) for n in range(20)] + [blank] * 5 + [other] * 10 + [window(3.0 * n) for n in range(20)]
    looks = look(film(pictures))
    assert np.isfinite(looks.path).all() and np.isfinite(looks.sharpness).all()
    assert (looks.sharpness[20:25] == 0).all()
    kept = choose(looks, KeyframeOptions())
    assert not set(kept) & set(range(20, 25)), "blank pictures are not kept"


def test_parallax_tells_a_turn_from_a_walk() -> None:
    """A flat scene moves by a homography; two layers at different depth do not."""
    near = canvas(seed=4)

    def walk(number: int) -> np.ndarray:
        out = window(1.5 * number)
        x = round(4.5 * number)
        for band in (20, 80, 140):
            out[band : band + 30] = near[band : band + 30, x : x + WIDTH]
        return out

    def turn(number: int) -> np.ndarray:
        focal, angle = 300.0, 0.012 * number
        K = np.array([[focal, 0, WIDTH / 2], [0, focal, HEIGHT / 2], [0, 0, 1]])
        big = np.array([[focal, 0, 250], [0, focal, 210], [0, 0, 1]])
        R = cv2.Rodrigues(np.array([0.0, angle, 0.0]))[0]
        return cv2.warpPerspective(CANVAS, K @ R @ np.linalg.inv(big), (WIDTH, HEIGHT))

    turned, walked = (look(film(scene(number) for number in range(60))) for scene in (turn, walk))
    assert turned.path[-1] > 0.3 and walked.path[-1] > 0.3
    assert turned.parallax < 0.1 < 0.25 < walked.parallax


def test_sharpness_ignores_exposure_and_contrast() -> None:
    grey = grey_of(window(50), 640)
    base = sharpness_of(grey)
    for gain, offset in ((0.5, 60), (0.25, 20), (0.8, 0)):
        assert sharpness_of((grey * gain + offset).astype(np.uint8)) == pytest.approx(base, rel=0.03)
    assert sharpness_of(np.full((50, 60), 77, np.uint8)) == 0.0


@pytest.mark.parametrize("degrees", [0.0, 30.0, 90.0, 135.0])
def test_sharpness_falls_with_a_smear_in_any_direction(degrees: float) -> None:
    grey = grey_of(window(50), 640)
    values = [sharpness_of(grey), *(sharpness_of(smeared(grey, length, degrees)) for length in (5, 9, 15))]
    assert values == sorted(values, reverse=True) and values[3] < 0.65 * values[0]
    for length in (9, 15):  # noise does not pass for detail
        blurred = smeared(grey, length, degrees)
        assert sharpness_of(noisy(blurred, 4, 1)) < 1.2 * sharpness_of(blurred)


def test_blurred_pictures_are_passed_over() -> None:
    pictures = []
    for number in range(60):
        pixels = window(3.0 * number)
        pictures.append(pixels if number % 3 == 1 else smeared(pixels, 13, 20.0 * number))
    kept = choose(look(film(pictures)), KeyframeOptions(spacing=0.02, sharpness=0.7))
    assert len(kept) > 15 and (kept % 3 == 1).all()
    # With the threshold off every stretch has its picture, still the sharpest.
    every = choose(look(film(pictures)), KeyframeOptions(spacing=0.03, sharpness=0.0))
    assert (every % 3 == 1).mean() > 0.95


def test_pictures_lie_evenly_on_the_path_not_in_time() -> None:
    """A camera that waits for two thirds of the time gets no more pictures for it."""
    places = np.concatenate([np.linspace(0, 150, 30), np.full(90, 150.0), np.linspace(150, 300, 30)])
    looks = look(film(window(place) for place in places))
    kept = choose(looks, KeyframeOptions(count=20))
    assert 18 <= len(kept) <= 20
    assert np.diff(looks.path[kept]).max() < 2.1 * looks.path.max() / 19
    assert ((kept > 33) & (kept < 117)).sum() <= 2


@given(
    st.lists(st.tuples(st.floats(0, 0.2), st.floats(0, 5)), min_size=1, max_size=80),
    st.integers(1, 40),
    st.floats(0, 1),
    st.floats(0.001, 0.5),
)
def test_any_film_gives_a_sound_choice(
    steps: list[tuple[float, float]], count: int, least: float, spacing: float
) -> None:
    table = np.array(steps)
    path = np.cumsum(table[:, 0])
    looks = Looks(np.arange(len(path)) * 3, np.arange(len(path)) / 10, table[:, 1], path, float("nan"))
    options = KeyframeOptions(count=count, sharpness=least, spacing=spacing, still=count)
    kept = choose(looks, options)
    assert len(kept) <= count + 1 and (np.diff(kept) > 0).all()
    assert all(0 <= position < len(path) for position in kept)
    if not looks.still:
        assert (relative_sharpness(looks)[kept] >= least).all()


@given(st.lists(st.floats(0.001, 10), min_size=1, max_size=60), st.integers(1, 50))
def test_spread_takes_ends_and_no_picture_twice(gaps: list[float], count: int) -> None:
    times = np.cumsum(gaps)
    kept = spread(times, count)
    assert len(set(kept.tolist())) == len(kept) <= count and kept[0] == 0
    if count > 1:
        assert kept[-1] == len(times) - 1
    instants = np.linspace(times[0], times[-1], 7)
    brute = np.unique([int(np.argmin(np.abs(times - instant))) for instant in instants])
    np.testing.assert_allclose(
        np.sort(np.abs(times[nearest(times, instants)][:, None] - instants).min(axis=0)),
        np.sort(np.abs(times[brute][:, None] - instants).min(axis=0)),
    )


def test_no_picture_at_all() -> None:
    looks = look([])
    assert looks.still and len(choose(looks, KeyframeOptions())) == 0 and len(spread(looks.time, 5)) == 0
