"""The fused loss and the YUV conversion against torch, closed forms and a decoder, on every instruction set."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from gworld.errors import InputError, MissingBackendError
from gworld.render import metrics, native_train
from gworld.render.native import native_cpu_status, native_isas
from gworld.render.native_train import l1_ssim_loss, yuv420_planes
from gworld.render.video import read_video, write_video

pytestmark = pytest.mark.skipif(
    native_cpu_status() is not None, reason="the native library is not built (cmake -S cuda_ext -B build)"
)
isas = native_isas() if native_cpu_status() is None else ()
SIZES = [(1, 1), (3, 5), (4, 40), (40, 4), (11, 11), (24, 33), (170, 37), (21, 300), (2, 3, 40, 29)]


@pytest.fixture(autouse=True, params=isas)
def isa(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("GWORLD_ISA", request.param)
    monkeypatch.setenv("GWORLD_THREADS", "2")
    yield request.param


def pictures(*shape: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    truth = torch.rand(*shape, 3, generator=generator)
    truth[..., : shape[-2] // 2, :, :] = 0.95  # flat and bright: where variances lose their digits
    return (truth + 0.1 * torch.randn(truth.shape, generator=generator)).clamp(0, 1), truth


def loss_by_torch(image: Tensor, truth: Tensor, weight: float, mask: Tensor | None = None) -> Tensor:
    """The definition in double precision, through the metrics of evaluation."""
    mask = torch.ones(image.shape[:-1]) if mask is None else mask
    mask = mask.double()[..., None].expand(image.shape)
    shown = torch.where(mask > 0, truth.double() + mask * (image - truth.double()), truth.double())
    dissimilarity = 1 - metrics.ssim_map(shown, truth.double())
    both = (1 - weight) * (shown - truth).abs() + weight * mask * dissimilarity
    return both.sum() / mask.sum()


def value_and_gradient(
    image: Tensor, truth: Tensor, weight: float, mask: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    leaf = image.clone().requires_grad_()
    value = l1_ssim_loss(leaf, truth, ssim_weight=weight, mask=mask)
    (gradient,) = torch.autograd.grad(value, leaf)
    return value.detach(), gradient


def assert_is_the_definition(image: Tensor, truth: Tensor, weight: float, mask: Tensor | None = None) -> None:
    exact = image.double().requires_grad_()
    expected = loss_by_torch(exact, truth, weight, mask)
    (expected_gradient,) = torch.autograd.grad(expected, exact)
    value, gradient = value_and_gradient(image, truth, weight, mask)
    assert abs(float(value) - float(expected.detach())) <= 1e-6
    assert float((gradient - expected_gradient).norm()) <= 3e-5 * float(expected_gradient.norm())


@pytest.mark.parametrize("shape", SIZES, ids=str)
def test_loss_is_its_definition(shape: tuple[int, ...]) -> None:
    image, truth = pictures(*shape)
    for weight in (0.2, 1.0, 0.0):
        assert_is_the_definition(image, truth, weight)
    plain = 0.8 * metrics.l1(image, truth).mean() + 0.2 * (1 - metrics.ssim(image, truth).mean())
    assert float(l1_ssim_loss(image, truth)) == pytest.approx(float(plain), abs=1e-5)


def test_loss_by_finite_differences() -> None:
    image, truth = pictures(14, 17)
    _, gradient = value_and_gradient(image, truth, 0.7)
    generator = torch.Generator().manual_seed(1)
    direction = torch.randn(image.shape, generator=generator)
    # Small enough that no difference changes its sign.
    step = 0.5 * float(((image - truth).abs() / direction.abs()).clamp_min(2e-4).min())
    up, down = (loss_by_torch(image.double() + sign * step * direction, truth, 0.7) for sign in (1, -1))
    found = float((gradient * direction).sum())
    assert found == pytest.approx(float(up - down) / (2 * step), rel=1e-2)


def test_equal_pictures_cost_nothing() -> None:
    image, _ = pictures(40, 50)
    value, gradient = value_and_gradient(image, image, 0.2)
    assert float(value) == 0.0
    assert not gradient.any()


def test_loss_with_a_mask_is_its_definition() -> None:
    image, truth = pictures(2, 37, 45)
    generator = torch.Generator().manual_seed(2)
    hard = torch.rand(2, 37, 45, generator=generator) > 0.4
    soft = torch.rand(2, 37, 45, generator=generator) * hard
    for mask in (hard, soft, torch.ones(2, 37, 45)):
        for weight in (0.2, 1.0, 0.0):
            assert_is_the_definition(image, truth, weight, mask)


def test_nothing_outside_the_mask_counts() -> None:
    image, truth = pictures(30, 40)
    mask = torch.zeros(30, 40, dtype=torch.bool)
    mask[5:20, 8:33] = True
    value, gradient = value_and_gradient(image, truth, 0.2, mask)
    assert not gradient[~mask].any()
    assert gradient[mask].abs().min() > 0
    hidden = torch.where(mask[..., None], image, torch.nan)
    again, same = value_and_gradient(hidden, truth, 0.2, mask)
    assert torch.equal(again, value)
    assert torch.equal(same, gradient)
    empty, none = value_and_gradient(image, truth, 0.2, torch.zeros(30, 40))
    assert float(empty) == 0.0
    assert not none.any()


def test_loss_has_the_same_bits_for_any_number_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    image, truth = pictures(2, 200, 300)
    mask = torch.rand(2, 200, 300, generator=torch.Generator().manual_seed(3))
    found = []
    for threads in ("1", "2", "3", "5"):
        monkeypatch.setenv("GWORLD_THREADS", threads)
        found.append((*value_and_gradient(image, truth, 0.2), *value_and_gradient(image, truth, 0.2, mask)))
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), 3e38])
def test_bad_numbers_are_shown_and_forgotten(bad: float) -> None:
    image, truth = pictures(33, 21)
    clean = value_and_gradient(image, truth, 0.2)
    for place in ((0, 0, 0), (32, 20, 2), (16, 10, 1)):
        for of_image in (True, False):
            spoilt, other = (image.clone(), truth) if of_image else (image, truth.clone())
            (spoilt if of_image else other)[place] = bad
            value, _ = value_and_gradient(spoilt, other, 0.2)
            assert not (value.isfinite() and value < 1e30)
    # Nothing of it stays in the scratch memory.
    assert all(torch.equal(a, b) for a, b in zip(value_and_gradient(image, truth, 0.2), clean, strict=True))


def test_gradients_follow_what_comes_after() -> None:
    image, truth = pictures(20, 20)
    _, gradient = value_and_gradient(image, truth, 0.2)
    leaf = image.double().requires_grad_()
    loss = l1_ssim_loss(leaf.transpose(0, 1).flip(0).flip(0).transpose(0, 1), truth)
    loss.backward(retain_graph=True)
    (3.0 * loss).backward()
    assert leaf.grad is not None
    assert leaf.grad.dtype == torch.float64
    assert torch.allclose(leaf.grad.float(), 4 * gradient, rtol=1e-5, atol=0)
    fixed = truth.clone().requires_grad_()
    assert not l1_ssim_loss(image, fixed).requires_grad
    with torch.no_grad():
        assert not l1_ssim_loss(leaf, truth).requires_grad


def test_bad_pictures_are_one_sentence() -> None:
    image, truth = pictures(8, 9)
    for wrong in (truth[1:], truth[..., :2]):
        with pytest.raises(InputError, match="two equal"):
            l1_ssim_loss(image, wrong)
    with pytest.raises(InputError, match="a pixel at least"):
        l1_ssim_loss(image[:0], truth[:0])
    with pytest.raises(InputError, match=r"the mask has shape \[3, 3\]"):
        l1_ssim_loss(image, truth, mask=torch.ones(3, 3))
    for weight in (-1.0, float("nan"), float("inf")):
        with pytest.raises(InputError, match="weights below zero or not finite"):
            l1_ssim_loss(image, truth, mask=torch.full((8, 9), weight))
    with pytest.raises(InputError, match="from 0 to 1"):
        l1_ssim_loss(image, truth, ssim_weight=1.5)


def planes_by_formula(rgb: np.ndarray) -> np.ndarray:
    """BT.709 in limited range, in double precision; odd sizes grow by their border."""
    height, width = rgb.shape[:2]
    grown = np.pad(rgb.astype(np.float64), ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    grown = np.clip(np.nan_to_num(grown, nan=0.0, posinf=1.0, neginf=0.0), 0.0, 1.0)
    weights = np.array([0.2126, 0.7152, 0.0722])
    quarter = grown.reshape(grown.shape[0] // 2, 2, grown.shape[1] // 2, 2, 3).mean(axis=(1, 3))
    blue = 128 + 224 * (quarter[..., 2] - quarter @ weights) / (2 * (1 - 0.0722))
    red = 128 + 224 * (quarter[..., 0] - quarter @ weights) / (2 * (1 - 0.2126))
    flat = np.concatenate([(16 + 219 * grown @ weights).ravel(), blue.ravel(), red.ravel()])
    return flat.reshape(-1, grown.shape[1])


@pytest.mark.parametrize("shape", [(1, 1), (2, 2), (3, 5), (31, 33), (48, 64), (37, 95), (66, 128)], ids=str)
def test_planes_are_the_formula(shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    rgb = torch.rand(*shape, 3, generator=torch.Generator().manual_seed(0)) * 1.4 - 0.2
    rgb[0, 0] = torch.tensor([float("nan"), float("inf"), -float("inf")])
    found = yuv420_planes(rgb)
    expected = planes_by_formula(rgb.numpy())
    assert found.shape == expected.shape
    # Half a level of rounding, and a little for arithmetic in float32.
    assert np.abs(found.numpy() - expected).max() <= 0.5001
    monkeypatch.setenv("GWORLD_THREADS", "3")
    assert torch.equal(yuv420_planes(rgb), found)


def test_planes_keep_the_range() -> None:
    corners = torch.tensor([[r, g, b] for r in (0.0, 1.0) for g in (0.0, 1.0) for b in (0.0, 1.0)])
    for colour in corners:
        planes = yuv420_planes(colour.expand(4, 4, 3))
        assert np.abs(planes.numpy() - planes_by_formula(colour.expand(4, 4, 3).numpy())).max() <= 0.5001
    assert yuv420_planes(torch.ones(4, 4, 3)).tolist() == [[235] * 4] * 4 + [[128] * 4] * 2
    assert yuv420_planes(torch.zeros(4, 4, 3)).tolist() == [[16] * 4] * 4 + [[128] * 4] * 2


def test_a_video_of_planes_shows_the_same_colours(tmp_path: Path) -> None:
    y, x = torch.meshgrid(torch.arange(96) / 96, torch.arange(128) / 128, indexing="ij")
    frames = [torch.stack([0.5 + 0.4 * (6 * x + p).sin(), y, 0.5 + 0.4 * (5 * (x + y) - p).cos()], -1) for p in (0, 1)]
    frames.append(torch.tensor([0.8, 0.2, 0.1]).expand(96, 128, 3))
    write_video(frames, tmp_path / "rgb.mp4", 10, quality=4)
    write_video([yuv420_planes(frame) for frame in frames], tmp_path / "planes.mp4", 10, quality=4)
    pairs = list(zip(read_video(tmp_path / "rgb.mp4"), read_video(tmp_path / "planes.mp4"), frames, strict=True))
    for by_rgb, by_planes, frame in pairs:
        truth = (frame * 255).round().numpy()
        assert np.abs(by_planes - truth).mean() <= np.abs(by_rgb - truth).mean() + 0.1
        assert np.abs(by_planes.astype(int) - by_rgb).mean() <= 1.5
    assert np.abs(pairs[2][1].astype(int) - pairs[2][0]).max() <= 3


@pytest.mark.parametrize("shape", [(0, 4, 3), (4, 4), (4, 4, 4), (1, 4, 4, 3)], ids=str)
def test_bad_frames_are_one_sentence(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match=r"floats \[H, W, 3\] are needed"):
        yuv420_planes(torch.zeros(shape))


def test_an_older_library_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native_train, "native_library", lambda kind: object())
    native_train._workers.cache_clear()
    with pytest.raises(MissingBackendError, match="of an older gworld"):
        yuv420_planes(torch.zeros(2, 2, 3))


def test_the_library_refuses_what_does_not_fit() -> None:
    library = native_train._declared()
    handle = native_train._workers(0, 1, 0).handle
    value = ctypes.c_double()
    for sizes in ((0, 1, 1), (1, 0, 1), (1, 1, -1)):
        pictures_of = native_train._Pictures(*sizes, 64, 64, None)
        assert library.gw_l1_ssim(handle, ctypes.byref(pictures_of), 0.2, None, ctypes.byref(value)) == 1
    assert library.gw_yuv420(handle, None, 2, 2, None) == 1
    assert library.gw_workers_create(0, 0) is None
    assert library.gw_workers_create(1, 9) is None
    assert ctypes.sizeof(native_train._AdamTensor) == 48
    assert ctypes.sizeof(native_train._AdamOptions) == 48
    assert ctypes.sizeof(native_train._Pictures) == 40
