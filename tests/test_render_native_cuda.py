"""The CUDA renderer against the oracle: its kernels on a GPU where there is one, and run phase by phase on the CPU."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from gworld.errors import InputError, ResourceError
from gworld.geometry import se3_exp
from gworld.render import native, native_cuda
from gworld.render.api import MIN_ALPHA, OutputName, Previous, RenderOptions, RenderOutput
from gworld.render.native_cuda import native_cuda_status, render_native_cuda
from gworld.render.reference import render_reference
from gworld.scene.cameras import Cameras
from gworld.scene.gaussians import Gaussians, gaussians_to, select_gaussians
from tests.scenes import (
    NAMES,
    Scene,
    agreement_scenes,
    doubtful_pixels,
    front_camera,
    one_gaussian,
    random_cameras,
    random_gaussians,
    random_poses,
    scene_to,
)

ALL: tuple[OutputName, ...] = ("rgb", "alpha", "depth", "link_id", "flow")
DIFFERENTIABLE: tuple[OutputName, ...] = ("rgb", "alpha", "depth", "flow")
SOURCE = Path(__file__).resolve().parent.parent / "cuda_ext"
SCENES = {scene.name: scene for scene in agreement_scenes()}
Renderer = Callable[
    [Gaussians, Tensor, Cameras, tuple[OutputName, ...], "Previous | None", RenderOptions], RenderOutput
]


def move(cameras: Cameras, device: str) -> Cameras:
    return replace(cameras, K=cameras.K.to(device), world_from_camera=cameras.world_from_camera.to(device))


def render_on_gpu(
    gaussians: Gaussians,
    world_from_link: Tensor,
    cameras: Cameras,
    outputs: tuple[OutputName, ...],
    previous: Previous | None = None,
    options: RenderOptions = RenderOptions(),  # noqa: B008 (frozen)
) -> RenderOutput:
    """The kernels on a GPU, for tensors on the CPU; gradients pass through the copies."""
    before = None if previous is None else (previous[0].cuda(), move(previous[1], "cuda"))
    found = render_native_cuda(
        gaussians_to(gaussians, device="cuda"), world_from_link.cuda(), move(cameras, "cuda"), outputs, before, options
    )
    pictures = {name: getattr(found, name) for name in ALL}
    return RenderOutput(**{name: None if picture is None else picture.cpu() for name, picture in pictures.items()})


class Emulated:
    """The kernels run on the CPU; `order` turns the order of threads, and all buffers start as NaN."""

    def __init__(self, path: Path) -> None:
        self.library = native_cuda.declare(ctypes.CDLL(str(path)), "cpu")

    def order(self, seed: int) -> None:
        self.library.functions.gw_emulated_order(seed)

    def __call__(
        self,
        gaussians: Gaussians,
        world_from_link: Tensor,
        cameras: Cameras,
        outputs: tuple[OutputName, ...],
        previous: Previous | None = None,
        options: RenderOptions = RenderOptions(),  # noqa: B008 (frozen)
    ) -> RenderOutput:
        return native_cuda._render(self.library, gaussians, world_from_link, cameras, outputs, previous, options)


def build_emulated(folder: Path) -> Path:
    """The emulated kernels, built into a folder; skips without a compiler."""
    compiler = shutil.which(os.environ.get("CXX", "g++"))
    if compiler is None:
        pytest.skip("a C++ compiler (g++, or CXX) is needed to build the emulated kernels")
    path = folder / "libgworld_cuda_emulated.so"
    flags = ["-std=c++17", "-O2", "-fPIC", "-shared", "-Wall", "-Wextra", "-Werror", "-fvisibility=hidden"]
    subprocess.run([compiler, *flags, str(SOURCE / "cuda_emulated.cpp"), "-o", str(path)], check=True, timeout=200)
    return path


@pytest.fixture(scope="module")
def emulated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Emulated]:
    path = build_emulated(tmp_path_factory.mktemp("emulated"))

    def poisoned_buffer(request: native_cuda._Request, size: int) -> Tensor:
        return torch.full((size,), 255, dtype=torch.uint8, device=request.device)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native_cuda._Request, "buffer", poisoned_buffer)
        yield Emulated(path)


GPU = pytest.param(
    "gpu",
    marks=[pytest.mark.gpu, pytest.mark.skipif(native_cuda_status() is not None, reason=str(native_cuda_status()))],
)


@pytest.fixture(params=["emulated", GPU])
def renderer(request: pytest.FixtureRequest) -> Renderer:
    return render_on_gpu if request.param == "gpu" else request.getfixturevalue("emulated")


def draw(renderer: Renderer, scene: Scene, outputs: tuple[OutputName, ...] = ALL) -> RenderOutput:
    previous = scene.previous if "flow" in outputs else None
    return renderer(scene.gaussians, scene.world_from_link, scene.cameras, outputs, previous, scene.options)


def same_bits(left: RenderOutput, right: RenderOutput) -> bool:
    pairs = [(getattr(left, name), getattr(right, name)) for name in ALL]
    return all(a is b is None or (a is not None and b is not None and torch.equal(a, b)) for a, b in pairs)


@pytest.fixture(scope="module")
def truth() -> Callable[[str], tuple[RenderOutput, Tensor]]:
    """The oracle's pictures of a scene in double precision, and the number of doubtful decisions of each pixel."""
    known: dict[str, tuple[RenderOutput, Tensor]] = {}

    def look_up(name: str) -> tuple[RenderOutput, Tensor]:
        if name not in known:
            exact = scene_to(SCENES[name], torch.float64)
            arguments = (exact.gaussians, exact.world_from_link, exact.cameras, ALL, exact.previous, exact.options)
            with torch.no_grad():
                known[name] = (render_reference(*arguments), doubtful_pixels(SCENES[name]))
        return known[name]

    return look_up


def test_agrees_with_the_reference(renderer: Renderer, truth: Callable[[str], tuple[RenderOutput, Tensor]]) -> None:
    for name in SCENES:
        expected, doubtful = truth(name)
        found = draw(renderer, SCENES[name])
        sure = doubtful == 0
        for picture, tolerance in (("rgb", 1e-4), ("alpha", 1e-4), ("depth", 1e-4), ("flow", 5e-4)):
            error = (getattr(found, picture).double() - getattr(expected, picture)).abs()
            error = error.amax(-1) if error.ndim == 5 else error
            assert (error[sure] <= tolerance).all(), (name, picture, error[sure].max())
            if picture in ("rgb", "alpha"):
                # A weight changes by at most 1/255 per doubtful pair; colours here reach a few units.
                assert (error <= 1e-4 + 4 * doubtful * MIN_ALPHA).all(), (name, picture)
        assert (found.link_id == expected.link_id)[sure].all(), name


def gradients_of(scene: Scene, function: Renderer, weights: dict[str, Tensor], mask: Tensor) -> dict[str, Tensor]:
    """Gradients of a fixed random functional of the sure pixels; those of poses along rigid motions."""
    leaves = {name: getattr(scene.gaussians, name).clone().requires_grad_() for name in NAMES}
    poses = [scene.world_from_link, scene.cameras.world_from_camera]
    poses += [scene.previous[0], scene.previous[1].world_from_camera]
    twists = [pose.new_zeros(*pose.shape[:-2], 6, requires_grad=True) for pose in poses]
    moved = [se3_exp(twist) @ pose for twist, pose in zip(twists, poses, strict=True)]
    cameras = replace(scene.cameras, world_from_camera=moved[1])
    previous = (moved[2], replace(scene.previous[1], world_from_camera=moved[3]))
    found = function(replace(scene.gaussians, **leaves), moved[0], cameras, DIFFERENTIABLE, previous, scene.options)
    total = torch.zeros((), dtype=leaves["means"].dtype)
    for name, weight in weights.items():
        keep = mask[..., None] if weight.ndim == 5 else mask
        total = total + (getattr(found, name) * (weight * keep).to(total.dtype)).sum()
    names = [*NAMES, "world_from_link", "world_from_camera", "previous poses", "previous cameras"]
    inputs = [*leaves.values(), *twists]
    gradients = torch.autograd.grad(total, inputs, allow_unused=True)
    return {
        name: torch.zeros_like(leaf, dtype=torch.float64) if gradient is None else gradient.double()
        for name, leaf, gradient in zip(names, inputs, gradients, strict=True)
    }


@pytest.mark.parametrize("fast", ["0", "1"])
def test_gradients_agree_with_the_reference(
    renderer: Renderer,
    truth: Callable[[str], tuple[RenderOutput, Tensor]],
    fast: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("GWORLD_CUDA_FAST", fast)
    generator = torch.Generator().manual_seed(1)
    for name in list(SCENES)[:: 1 if fast == "0" else 7]:
        scene, sure = SCENES[name], truth(name)[1] == 0
        tails = {"rgb": (3,), "flow": (2,)}
        weights = {key: torch.randn((*sure.shape, *tails.get(key, ())), generator=generator) for key in DIFFERENTIABLE}
        expected = gradients_of(scene_to(scene, torch.float64), render_reference, weights, sure)
        # A gradient that is zero by symmetry holds rounding only: it is judged against the scene's largest.
        floor = 1e-3 * max(float(value.norm()) for value in expected.values())
        found = gradients_of(scene, renderer, weights, sure)
        for key in expected:
            error = float((found[key] - expected[key]).norm())
            assert error <= 1e-3 * max(float(expected[key].norm()), floor), (name, key, error)


def pictures_and_gradients(
    renderer: Renderer, gaussians: Gaussians, seed: int = 5, worlds: int = 2, size: tuple[int, int] = (50, 40)
) -> list[Tensor]:
    """All pictures of some worlds x two cameras, then the gradients of the sum of their squares."""
    links = int(gaussians.links.max()) + 1
    leaves = {name: getattr(gaussians, name).clone().requires_grad_() for name in NAMES}
    cameras = random_cameras(seed, 2, *size)
    poses = random_poses(seed, worlds, links).requires_grad_()
    eyes = cameras.world_from_camera.clone().requires_grad_()
    before = (random_poses(seed + 1, worlds, links).requires_grad_(), cameras)
    found = renderer(replace(gaussians, **leaves), poses, replace(cameras, world_from_camera=eyes), ALL, before)  # type: ignore[call-arg]
    inputs = [*leaves.values(), poses, eyes, before[0]]
    gradients = torch.autograd.grad(sum((getattr(found, name) ** 2).sum() for name in DIFFERENTIABLE), inputs)
    return [*(getattr(found, name).detach() for name in ALL), *gradients]


def test_two_runs_give_the_same_bits(renderer: Renderer) -> None:
    gaussians = random_gaussians(3, 700, degree=2, links=3, size=0.05)
    runs = []
    for seed in range(3):
        if isinstance(renderer, Emulated):
            renderer.order(seed)  # threads take turns in another order: a missing barrier shows
        runs.append(pictures_and_gradients(renderer, gaussians))
    if isinstance(renderer, Emulated):
        renderer.order(0)
    for other in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(runs[0], other, strict=True))


def test_many_parts_equal_one(renderer: Renderer, monkeypatch: pytest.MonkeyPatch) -> None:
    gaussians = random_gaussians(4, 300, degree=1, links=3, size=0.08)
    whole = pictures_and_gradients(renderer, gaussians)
    for size in (1, 2 * 300 * 64):  # one view at a time; two views at a time
        monkeypatch.setattr(native_cuda, "STATE_BYTES", size)
        parts = pictures_and_gradients(renderer, gaussians)
        assert all(torch.equal(a, b) for a, b in zip(whole[:5], parts[:5], strict=True))
        for a, b in zip(whole[5:], parts[5:], strict=True):  # sums in another order
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4 * float(a.abs().max()))


def test_only_what_is_asked_is_drawn_and_equal(renderer: Renderer) -> None:
    scene = SCENES["many links"]
    everything = draw(renderer, scene)
    for asked in range(1, 1 << len(ALL)):
        outputs = tuple(name for bit, name in enumerate(ALL) if asked >> bit & 1)
        part = draw(renderer, scene, outputs)
        for name in ALL:
            picture = getattr(part, name)
            assert (picture is not None) == (name in outputs)
            assert picture is None or torch.equal(picture, getattr(everything, name)), (name, outputs)


def crowd() -> tuple[Gaussians, Cameras]:
    """Two thousand faint Gaussians on one spot: every batch and group of the blending is used to its end."""
    heap = random_gaussians(5, 2000, size=0.05)
    heap = replace(heap, means=heap.means * 0.05 + torch.tensor([0.0, 0, 2]), opacity_logits=torch.full((2000,), -5.0))
    return heap, front_camera(20, 20)


def sheets() -> tuple[Gaussians, Cameras]:
    """A few Gaussians that cover 130 tiles each, more than one thread adds up, among small ones."""
    some = random_gaussians(6, 60, degree=1, size=0.02)
    log_scales = some.log_scales.clone()
    log_scales[:6] += 5.0
    means = some.means + torch.tensor([0.0, 0, 2.5])
    return replace(some, means=means, log_scales=log_scales), front_camera(200, 160, 150.0)


@pytest.mark.parametrize("make", [crowd, sheets])
def test_crowded_tiles_and_crowds_of_tiles(renderer: Renderer, make: Callable[[], tuple[Gaussians, Cameras]]) -> None:
    heap, camera = make()
    poses = torch.eye(4)[None, None]
    results = []
    for function in (renderer, render_reference):
        leaves = {name: getattr(heap, name).clone().requires_grad_() for name in NAMES}
        found = function(replace(heap, **leaves), poses, camera, ("rgb", "depth"), None, RenderOptions())
        gradients = torch.autograd.grad(found.rgb.square().sum() + found.depth.sum(), list(leaves.values()))  # type: ignore[union-attr]
        results.append((found, gradients))
    (found, gradients), (expected, truths) = results
    for name in ("rgb", "depth"):
        assert float((getattr(found, name) - getattr(expected, name)).detach().abs().max()) <= 1e-4, name
    for a, b in zip(gradients, truths, strict=True):
        assert float((a - b).norm()) <= 2e-3 * float(b.norm())


BAD_FLOATS = [float("nan"), float("inf"), -float("inf"), 3.4028234e38, -3.4028234e38, 1e30, -1e30, 1e20, -1e20]
BAD_FLOATS += [1e10, -1e10, 1.1e10, 1e6, -1e6, 88.8, -104.0, 0.0, -0.0, 1e-45, -1e-45, 1.1754942e-38, 1e-30]
SLOTS = [("means", (k,)) for k in range(3)] + [("quats_wxyz", (k,)) for k in range(4)]
SLOTS += [*[("log_scales", (k,)) for k in range(3)], ("opacity_logits", ()), *[("sh", (0, k)) for k in range(3)]]


def poisoned(bad: float, name: str, place: tuple[int, ...]) -> Gaussians:
    """Forty sound Gaussians before a camera at the origin, and a last one behind them with one bad number."""
    base, victim = random_gaussians(9, 40, size=0.05), one_gaussian((0.0, 0.0, 3.0), 0.05)
    columns = {key: torch.cat([getattr(base, key), getattr(victim, key)]) for key in NAMES}
    columns["means"][:40] = base.means * 0.3 + torch.tensor([0.0, 0.0, 2.0])
    columns[name][(40, *place)] = bad
    return Gaussians(**columns, links=torch.zeros(41, dtype=torch.int32))


def test_a_bad_value_stays_with_its_gaussian(renderer: Renderer) -> None:
    assert (len(BAD_FLOATS), len(SLOTS)) == (22, 14)
    outputs: tuple[OutputName, ...] = ("rgb", "alpha", "depth")
    for bad in BAD_FLOATS:
        for name, place in SLOTS:
            gaussians = poisoned(bad, name, place)
            leaves = {key: getattr(gaussians, key).requires_grad_() for key in NAMES}
            poses = torch.eye(4)[None, None].requires_grad_()
            found = renderer(gaussians, poses, front_camera(), outputs, None, RenderOptions())
            sum(getattr(found, key).square().sum() for key in outputs).backward()
            for tensor in (found.rgb, found.alpha, found.depth, poses.grad, *(leaf.grad for leaf in leaves.values())):
                assert tensor is not None
                assert tensor.isfinite().all(), (bad, name)


def test_a_culled_gaussian_changes_no_bit(renderer: Renderer) -> None:
    def picture_and_gradient(gaussians: Gaussians) -> tuple[Tensor, Tensor]:
        gaussians.means.requires_grad_()
        found = renderer(gaussians, torch.eye(4)[None, None], front_camera(), ("rgb",), None, RenderOptions())
        (gradient,) = torch.autograd.grad(found.rgb.square().sum(), gaussians.means)  # type: ignore[union-attr]
        return found.rgb, gradient[:40]  # type: ignore[return-value]

    rgb, gradient = picture_and_gradient(select_gaussians(poisoned(0.0, "means", (0,)), torch.arange(40)))
    for name, place in SLOTS:
        found, found_gradient = picture_and_gradient(poisoned(float("nan"), name, place))
        assert torch.equal(found, rgb), name
        assert torch.equal(found_gradient, gradient), name
    wild = poisoned(0.1, "means", (0,))
    wild = replace(wild, links=torch.tensor([0] * 40 + [7], dtype=torch.int32))
    found, found_gradient = picture_and_gradient(wild)
    assert torch.equal(found, rgb) and torch.equal(found_gradient, gradient)


def test_gradients_may_run_twice_and_for_a_part(renderer: Renderer) -> None:
    scene = SCENES["two links"]
    leaves = {name: getattr(scene.gaussians, name).clone().requires_grad_() for name in NAMES}
    gaussians = replace(scene.gaussians, **leaves)
    found = renderer(gaussians, scene.world_from_link, scene.cameras, ("rgb", "depth"), None, scene.options)
    assert found.alpha is None and found.rgb is not None
    loss = found.rgb.square().sum()
    first = torch.autograd.grad(loss, list(leaves.values()), retain_graph=True)
    second = torch.autograd.grad(loss, list(leaves.values()), retain_graph=True)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    (only,) = torch.autograd.grad(loss, [leaves["means"]])
    assert torch.equal(only, first[0])


def test_bad_requests_are_one_sentence(emulated: Emulated, monkeypatch: pytest.MonkeyPatch) -> None:
    scene = SCENES["one Gaussian"]
    arguments = (scene.gaussians, scene.world_from_link, scene.cameras)
    with pytest.raises(InputError, match="do not fit together"):
        emulated(*arguments, ("rgb",), None, RenderOptions(near=-1.0))
    with pytest.raises(InputError, match="flow was asked for without"):
        emulated(*arguments, ("flow",))
    with monkeypatch.context() as patch, pytest.raises(ResourceError, match="one view has too many"):
        patch.setattr(emulated.library.functions, "gw_cuda_sizes", lambda *_: native_cuda.TOO_MANY)
        emulated(*arguments, ("rgb",))
    with pytest.raises(InputError, match="a CUDA device is needed"):
        native_cuda._render(replace(emulated.library, device="cuda"), *arguments, ("rgb",), None, RenderOptions())


def test_sizes_that_do_not_fit_an_index_are_refused(emulated: Emulated) -> None:
    """Nothing is computed from a number of views, Gaussians or pairs that 31 bits do not hold."""
    pointer, functions, sizes = ctypes.c_void_p(64), emulated.library.functions, native_cuda._Bytes()

    def status(count: int, worlds: int, width: int, pairs: int = 0) -> int:
        scene = native._Scene(count, 1, 1, *[pointer] * 6)
        views = native._Views(worlds, 1, width, width, *[pointer] * 6, (ctypes.c_float * 3)(), 0.1, 10.0, 0)
        plan = native_cuda._Plan(scene, views, native._Images(), 1, 0)
        return int(functions.gw_cuda_sizes(ctypes.byref(plan), pairs, ctypes.byref(sizes)))

    assert status(1 << 20, 256, 640) == 0
    assert status(1 << 20, 1 << 12, 640) == native_cuda.TOO_MANY
    assert status(1 << 40, 1, 640) == native_cuda.TOO_MANY
    assert status(1, 1 << 30, 1 << 16) == native_cuda.TOO_MANY
    assert status(1, 1, 64, 1 << 32) == native_cuda.TOO_MANY
    assert status(1, 1, 1 << 20) == status(-1, 1, 64) == status(1, 0, 64) == 1
    assert functions.gw_cuda_sizes(ctypes.byref(native_cuda._Plan()), 0, ctypes.byref(sizes)) == 1
