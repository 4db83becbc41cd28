"""The native CPU renderer against the oracle, against itself, and against bad values."""

from __future__ import annotations

import ctypes
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from gworld import native as loading
from gworld.errors import InputError, MissingBackendError
from gworld.geometry import se3_exp
from gworld.render import native
from gworld.render.api import MIN_ALPHA, OutputName, RenderOptions, RenderOutput
from gworld.render.native import native_cpu_status, native_isas, native_version, render_native_cpu
from gworld.render.reference import render_reference
from gworld.scene.gaussians import Gaussians, select_gaussians
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

needs_library = pytest.mark.skipif(
    native_cpu_status() is not None, reason="the native library is not built (cmake -S cuda_ext -B build)"
)
isas = native_isas() if native_cpu_status() is None else ()
SCENES = {scene.name: scene for scene in agreement_scenes()}


@pytest.fixture(autouse=True)
def _two_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GWORLD_THREADS", "2")


def draw(scene: Scene, outputs: tuple[OutputName, ...] = ALL) -> RenderOutput:
    previous = scene.previous if "flow" in outputs else None
    return render_native_cpu(scene.gaussians, scene.world_from_link, scene.cameras, outputs, previous, scene.options)


def same_bits(left: RenderOutput, right: RenderOutput) -> bool:
    pairs = [(getattr(left, name), getattr(right, name)) for name in ALL]
    return all(a is b is None or (a is not None and b is not None and torch.equal(a, b)) for a, b in pairs)


@pytest.fixture(scope="module")
def truth() -> dict[str, tuple[RenderOutput, Tensor]]:
    """The oracle's pictures in double precision, and the number of doubtful decisions of each pixel."""
    pictures = {}
    for name, scene in SCENES.items():
        exact = scene_to(scene, torch.float64)
        with torch.no_grad():
            arguments = (exact.gaussians, exact.world_from_link, exact.cameras, ALL, exact.previous, exact.options)
            pictures[name] = (render_reference(*arguments), doubtful_pixels(scene))
    return pictures


@needs_library
@pytest.mark.parametrize("isa", isas)
def test_agrees_with_the_reference(
    isa: str, truth: dict[str, tuple[RenderOutput, Tensor]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GWORLD_ISA", isa)
    for name, scene in SCENES.items():
        expected, doubtful = truth[name]
        found = draw(scene)
        sure = doubtful == 0
        for picture, tolerance in (("rgb", 1e-4), ("alpha", 1e-4), ("depth", 1e-4), ("flow", 5e-4)):
            error = (getattr(found, picture).double() - getattr(expected, picture)).abs()
            error = error.amax(-1) if error.ndim == 5 else error
            assert (error[sure] <= tolerance).all(), (name, picture, error[sure].max())
            if picture in ("rgb", "alpha"):
                # A weight changes by at most 1/255 per doubtful pair; colours here reach a few units.
                assert (error <= 1e-4 + 4 * doubtful * MIN_ALPHA).all(), (name, picture)
        assert (found.link_id == expected.link_id)[sure].all(), name


def gradients_of(scene: Scene, function: object, weights: dict[str, Tensor], mask: Tensor) -> dict[str, Tensor]:
    """Gradients of a fixed random functional of the sure pixels; those of poses along rigid motions."""
    leaves = {name: getattr(scene.gaussians, name).clone().requires_grad_() for name in NAMES}
    poses = [scene.world_from_link, scene.cameras.world_from_camera]
    poses += [scene.previous[0], scene.previous[1].world_from_camera]
    twists = [pose.new_zeros(*pose.shape[:-2], 6, requires_grad=True) for pose in poses]
    moved = [se3_exp(twist) @ pose for twist, pose in zip(twists, poses, strict=True)]
    cameras = replace(scene.cameras, world_from_camera=moved[1])
    previous = (moved[2], replace(scene.previous[1], world_from_camera=moved[3]))
    gaussians = replace(scene.gaussians, **leaves)
    found = function(gaussians, moved[0], cameras, DIFFERENTIABLE, previous, scene.options)  # type: ignore[operator]
    total = torch.zeros((), dtype=leaves["means"].dtype)
    for name in DIFFERENTIABLE:
        picture = getattr(found, name)
        keep = mask.to(picture.dtype)
        total = (
            total + (picture * weights[name].to(picture.dtype) * (keep[..., None] if picture.ndim == 5 else keep)).sum()
        )
    names = [*NAMES, "world_from_link", "world_from_camera", "previous poses", "previous cameras"]
    inputs = [*leaves.values(), *twists]
    found_gradients = torch.autograd.grad(total, inputs, allow_unused=True)
    return {
        name: torch.zeros_like(leaf, dtype=torch.float64) if gradient is None else gradient.double()
        for name, leaf, gradient in zip(names, inputs, found_gradients, strict=True)
    }


@needs_library
def test_gradients_agree_with_the_reference(
    truth: dict[str, tuple[RenderOutput, Tensor]], monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = torch.Generator().manual_seed(1)
    for index, (name, scene) in enumerate(SCENES.items()):
        sure = truth[name][1] == 0
        tails = {"rgb": (3,), "flow": (2,)}
        weights = {key: torch.randn((*sure.shape, *tails.get(key, ())), generator=generator) for key in DIFFERENTIABLE}
        expected = gradients_of(scene_to(scene, torch.float64), render_reference, weights, sure)
        # A gradient that is zero by symmetry holds rounding only (moments about a point up to 45 pixels away):
        # it may reach 1e-5 of the scene's largest.
        floor = 1e-2 * max(float(value.norm()) for value in expected.values())
        for isa in isas if index % 5 == 0 else isas[-1:]:
            monkeypatch.setenv("GWORLD_ISA", isa)
            found = gradients_of(scene, render_native_cpu, weights, sure)
            for key in expected:
                error = float((found[key] - expected[key]).norm())
                assert error <= 1e-3 * max(float(expected[key].norm()), floor), (isa, name, key, error)


@needs_library
@pytest.mark.parametrize("isa", isas)
def test_threads_change_no_bit(isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GWORLD_ISA", isa)
    gaussians = random_gaussians(3, 6000, degree=2, links=3, size=0.05)
    cameras = random_cameras(3, 1, 150, 90)
    before = (random_poses(4, 1, 3), cameras)
    pictures, gradients = [], []
    for threads in ("1", "2", "3"):
        monkeypatch.setenv("GWORLD_THREADS", threads)
        leaves = {name: getattr(gaussians, name).clone().requires_grad_() for name in NAMES}
        poses = random_poses(5, 1, 3).requires_grad_()
        found = render_native_cpu(replace(gaussians, **leaves), poses, cameras, ALL, before)
        sum((getattr(found, name) ** 2).sum() for name in DIFFERENTIABLE).backward()
        pictures.append(found)
        gradients.append([leaf.grad for leaf in leaves.values()] + [poses.grad])
    for other in (1, 2):
        assert same_bits(pictures[0], pictures[other])
        assert all(torch.equal(a, b) for a, b in zip(gradients[0], gradients[other], strict=True))


@needs_library
@pytest.mark.parametrize("isa", isas)
def test_a_batch_equals_its_views(isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GWORLD_ISA", isa)
    scene = SCENES["worlds and cameras"]
    batch = draw(scene)
    poses, cameras = scene.previous
    for world in range(2):
        for camera in range(2):
            single = replace(
                scene,
                world_from_link=scene.world_from_link[world : world + 1],
                cameras=scene.cameras[camera],
                previous=(poses[world : world + 1], cameras[camera]),
            )
            rows = {name: getattr(batch, name)[world : world + 1, camera : camera + 1] for name in ALL}
            assert same_bits(draw(single), RenderOutput(**rows))


@needs_library
def test_many_small_views_equal_single_ones() -> None:
    gaussians = random_gaussians(6, 500, degree=1, links=4, size=0.05)
    poses, cameras = random_poses(7, 16, 4), random_cameras(8, 2, 40, 30)
    batch = render_native_cpu(gaussians, poses, cameras, ("rgb", "depth"))
    for world in (0, 7, 15):
        single = render_native_cpu(gaussians, poses[world : world + 1], cameras, ("rgb", "depth"))
        assert torch.equal(batch.rgb[world], single.rgb[0])  # type: ignore[index]
        assert torch.equal(batch.depth[world], single.depth[0])  # type: ignore[index]


@needs_library
def test_only_what_is_asked_is_drawn_and_equal() -> None:
    scene = SCENES["many links"]
    everything = draw(scene)
    for outputs in (
        ("rgb",),
        ("alpha",),
        ("depth", "link_id"),
        ("flow",),
        ("rgb", "flow"),
        ("rgb", "depth", "link_id"),
    ):
        part = draw(scene, outputs)  # type: ignore[arg-type]
        for name in ALL:
            picture = getattr(part, name)
            assert (picture is not None) == (name in outputs)
            assert picture is None or torch.equal(picture, getattr(everything, name))


@needs_library
def test_pose_gradients_by_finite_differences() -> None:
    # So wide and faint that no pixel meets a threshold: the picture is smooth.
    scene = SCENES["degree 1"]
    wide = random_gaussians(13, 5, degree=1, size=1.5)
    wide = replace(wide, opacity_logits=wide.opacity_logits.clamp(-2.0, -0.5), means=wide.means * 0.3)
    weights = torch.randn(
        1, 1, scene.cameras.height, scene.cameras.width, 3, generator=torch.Generator().manual_seed(0)
    )
    weights += 0.3

    def value(twist: Tensor) -> Tensor:
        found = render_native_cpu(wide, se3_exp(twist)[None, None] @ scene.world_from_link, scene.cameras, ("rgb",))
        return (found.rgb * weights).double().sum()  # type: ignore[operator]

    twist = torch.zeros(6, requires_grad=True)
    (found,) = torch.autograd.grad(value(twist), twist)
    step = 1e-2
    for axis in range(6):
        offset = torch.zeros(6)
        offset[axis] = step
        expected = (value(offset) - value(-offset)) / (2 * step)
        assert abs(float(found[axis] - expected)) <= 0.02 * float(found.abs().max())


BAD_FLOATS = [float("nan"), float("inf"), -float("inf"), 3.4028234e38, -3.4028234e38, 1e30, -1e30, 1e20, -1e20]
BAD_FLOATS += [1e10, -1e10, 1.1e10, 1e6, -1e6, 88.8, -104.0, 0.0, -0.0, 1e-45, -1e-45, 1.1754942e-38, 1e-30]
SLOTS = [("means", (0,)), ("means", (1,)), ("means", (2,)), *[("quats_wxyz", (k,)) for k in range(4)]]
SLOTS += [*[("log_scales", (k,)) for k in range(3)], ("opacity_logits", ()), *[("sh", (0, k)) for k in range(3)]]


def poisoned(bad: float, name: str, place: tuple[int, ...]) -> Gaussians:
    """Forty sound Gaussians before a camera at the origin, and a last one behind them with one bad number."""
    base, victim = random_gaussians(9, 40, size=0.05), one_gaussian((0.0, 0.0, 3.0), 0.05)
    columns = {key: torch.cat([getattr(base, key), getattr(victim, key)]) for key in NAMES}
    columns["means"][:40] = base.means * 0.3 + torch.tensor([0.0, 0.0, 2.0])
    columns[name][(40, *place)] = bad
    return Gaussians(**columns, links=torch.zeros(41, dtype=torch.int32))


@needs_library
@pytest.mark.parametrize("isa", isas)
def test_a_bad_value_stays_with_its_gaussian(isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GWORLD_ISA", isa)
    assert (len(BAD_FLOATS), len(SLOTS)) == (22, 14)
    cameras, outputs = front_camera(), ("rgb", "alpha", "depth")
    for bad in BAD_FLOATS:
        for name, place in SLOTS:
            gaussians = poisoned(bad, name, place)
            leaves = {key: getattr(gaussians, key).requires_grad_() for key in NAMES}
            poses = torch.eye(4)[None, None].requires_grad_()
            found = render_native_cpu(gaussians, poses, cameras, outputs)
            with torch.no_grad():
                expected = render_reference(gaussians, poses, cameras, outputs)
            assert found.rgb is not None
            assert found.rgb.isfinite().all(), (bad, name)
            # Bright enough to hide the others' last digits: the tolerance grows with what the bad number made.
            for mine, theirs in ((found.rgb, expected.rgb), (found.alpha, expected.alpha)):
                assert mine is not None
                assert theirs is not None
                tolerance = 1e-4 * float(theirs.abs().max().clamp_min(1.0))
                assert (mine - theirs).abs().gt(tolerance).sum() <= 3, (bad, name)
            (found.rgb.clamp(-10, 10).sum() + found.depth.sum()).backward()  # type: ignore[union-attr]
            for leaf in (*leaves.values(), poses):
                assert leaf.grad is not None
                assert leaf.grad.isfinite().all(), (bad, name)


@needs_library
def test_a_culled_gaussian_changes_no_bit() -> None:
    alone = select_gaussians(poisoned(0.0, "means", (0,)), torch.arange(40))
    poses, cameras = torch.eye(4)[None, None], front_camera()

    def picture_and_gradient(gaussians: Gaussians) -> tuple[Tensor, Tensor]:
        gaussians.means.requires_grad_()
        rgb = render_native_cpu(gaussians, poses, cameras, ("rgb",)).rgb
        assert rgb is not None
        (gradient,) = torch.autograd.grad(rgb.square().sum(), gaussians.means)
        return rgb, gradient[:40]

    rgb, gradient = picture_and_gradient(alone)
    for name, place in SLOTS:
        found, found_gradient = picture_and_gradient(poisoned(float("nan"), name, place))
        assert torch.equal(found, rgb), name
        assert torch.equal(found_gradient, gradient), name


@needs_library
def test_turning_link_and_camera_together_changes_nothing() -> None:
    gaussians = random_gaussians(11, 400, degree=3)
    cameras = random_cameras(12, 1)
    motion = se3_exp(torch.tensor([0.3, -0.2, 0.5, 0.7, -1.1, 0.4]))
    still = render_native_cpu(gaussians, torch.eye(4)[None, None], cameras, ("rgb",)).rgb
    turned = replace(cameras, world_from_camera=motion @ cameras.world_from_camera)
    moved = render_native_cpu(gaussians, motion[None, None], turned, ("rgb",)).rgb
    assert float((still - moved).abs().max()) <= MIN_ALPHA  # type: ignore[operator]


@needs_library
def test_gradients_do_not_need_all_outputs_and_may_run_twice() -> None:
    scene = SCENES["two links"]
    leaves = {name: getattr(scene.gaussians, name).clone().requires_grad_() for name in NAMES}
    found = render_native_cpu(
        replace(scene.gaussians, **leaves), scene.world_from_link, scene.cameras, ("rgb", "depth")
    )
    assert found.alpha is None
    loss = found.rgb.square().sum()  # type: ignore[union-attr]
    first = torch.autograd.grad(loss, list(leaves.values()), retain_graph=True)
    render_native_cpu(scene.gaussians, scene.world_from_link, scene.cameras, ("rgb",))  # reuses scratch memory
    second = torch.autograd.grad(loss, list(leaves.values()))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@needs_library
def test_other_float_types_and_strides_are_converted() -> None:
    scene = SCENES["degree 1"]
    exact = scene_to(scene, torch.float64)
    found = render_native_cpu(exact.gaussians, exact.world_from_link, exact.cameras, ("rgb",))
    strided = replace(scene.gaussians, sh=scene.gaussians.sh.transpose(1, 2).contiguous().transpose(1, 2))
    again = render_native_cpu(strided, scene.world_from_link, scene.cameras, ("rgb",))
    assert found.rgb is not None
    assert again.rgb is not None
    assert found.rgb.dtype == torch.float32
    assert torch.equal(found.rgb, again.rgb)


@needs_library
def test_bad_requests_are_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = SCENES["one Gaussian"]
    wild = replace(scene.gaussians, links=torch.full((1,), 7, dtype=torch.int32))
    with pytest.raises(InputError, match="do not fit together"):
        render_native_cpu(wild, scene.world_from_link, scene.cameras, ("rgb",))
    with pytest.raises(InputError, match="do not fit together"):
        render_native_cpu(
            scene.gaussians, scene.world_from_link, scene.cameras, ("rgb",), None, RenderOptions(near=-1.0)
        )
    with pytest.raises(InputError, match="flow was asked for without"):
        render_native_cpu(scene.gaussians, scene.world_from_link, scene.cameras, ("flow",))
    monkeypatch.setenv("GWORLD_THREADS", "none")
    with pytest.raises(InputError, match="GWORLD_THREADS"):
        render_native_cpu(scene.gaussians, scene.world_from_link, scene.cameras, ("rgb",))


@needs_library
def test_library_says_what_it_is() -> None:
    assert native_version()[0].isdigit()
    assert native_isas()[0] == "portable"


def test_a_missing_library_is_one_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(loading, "_folders", lambda: iter([tmp_path]))
    reason = native_cpu_status()
    assert reason is not None
    assert "is not installed. Reinstall gworld where a C++ compiler is present" in reason
    with pytest.raises(MissingBackendError, match="not installed"):
        native_version()
    (tmp_path / "libgworld_cpu.so").write_bytes(b"not a library")
    reason = native_cpu_status()
    assert reason is not None
    assert "cannot be loaded" in reason


def test_structs_match_the_header() -> None:
    pointer, integer = ctypes.sizeof(ctypes.c_void_p), 4
    assert ctypes.sizeof(native._Scene) == 8 + 2 * integer + 6 * pointer
    assert ctypes.sizeof(native._Views) == 4 * integer + 6 * pointer + 6 * integer
    assert ctypes.sizeof(native._Images) == 5 * pointer
    assert ctypes.sizeof(native._Gradients) == 9 * pointer
    assert os.fspath(native.__file__).endswith("native.py")
