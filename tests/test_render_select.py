"""The renderer's face: what it accepts, how it chooses, cameras on links, and one sentence for everything else."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from gworld.errors import InputError, MissingBackendError, ResourceError, UsageError
from gworld.geometry import se3_exp
from gworld.render import select
from gworld.render.api import OUTPUTS, RenderOptions
from gworld.render.reference import render_reference
from gworld.render.select import ORDER, backend_status, choose_backend, render, why_unavailable
from gworld.scene.gaussians import gaussians_to
from tests.scenes import front_camera, one_gaussian, random_cameras, random_gaussians, random_poses


def scene(links: int = 3, worlds: int = 2):
    return random_gaussians(1, 60, degree=1, links=links), random_poses(1, worlds, links), random_cameras(1, 2)


def test_poses_may_be_left_out_or_given_for_one_world():
    gaussians, poses, cameras = scene(worlds=1)
    one = render(gaussians, poses[0], cameras, backend="reference")
    assert one.rgb.shape == (1, 2, 48, 64, 3) and one.alpha.shape == (1, 2, 48, 64) and one.depth is None
    assert torch.equal(one.rgb, render(gaussians, poses, cameras, backend="reference").rgb)
    identity = torch.eye(4).repeat(1, 3, 1, 1)
    still = render(gaussians, None, cameras, backend="reference")
    assert torch.equal(still.rgb, render(gaussians, identity, cameras, backend="reference").rgb)


def test_all_outputs_have_their_shapes():
    gaussians, poses, cameras = scene()
    out = render(gaussians, poses, cameras, outputs=OUTPUTS, previous=(poses, cameras), backend="reference")
    assert out.flow.shape == (2, 2, 48, 64, 2) and out.depth.shape == out.link_id.shape == (2, 2, 48, 64)
    assert out.link_id.dtype == torch.int32 and float(out.flow.abs().max()) < 1e-4


def test_float64_poses_are_cast_to_the_gaussians():
    gaussians, poses, cameras = scene()
    wide = replace(cameras, K=cameras.K.double(), world_from_camera=cameras.world_from_camera.double())
    out = render(gaussians, poses.double(), wide, backend="reference")
    assert out.rgb.dtype == torch.float32
    exact = render(gaussians_to(gaussians, dtype=torch.float64), poses, cameras)
    assert exact.rgb.dtype == torch.float64


def test_mounted_cameras_ride_on_their_links():
    """A camera on a link shows, in each world, what a fixed camera at that place shows."""
    gaussians, poses, cameras = scene()
    before = random_poses(5, 2, 3)
    mounted = replace(cameras, links=(2, 0))
    found = render(gaussians, poses, mounted, outputs=OUTPUTS, previous=(before, mounted), backend="reference")
    for world in range(2):

        def placed(pose, world=world):
            first = pose[world, 2] @ cameras.world_from_camera[0]
            return replace(cameras, world_from_camera=torch.stack([first, cameras.world_from_camera[1]]))

        expected = render(
            gaussians, poses[world], placed(poses), outputs=OUTPUTS, previous=(before[world], placed(before)),
            backend="reference",
        )  # fmt: skip
        for name in ("rgb", "alpha", "depth", "flow"):
            torch.testing.assert_close(getattr(found, name)[world], getattr(expected, name)[0], atol=2e-4, rtol=1e-4)


def test_gradients_reach_the_link_that_carries_the_camera():
    gaussians, poses, cameras = scene()
    poses = poses.clone().requires_grad_()
    render(gaussians, poses, replace(cameras, links=(2, 2)), backend="reference").rgb.sum().backward()
    assert bool((poses.grad[:, 2].abs() > 0).any()) and bool((poses.grad[:, 0].abs() > 0).any())


def test_auto_takes_the_first_that_can():
    gaussians, _, _ = scene()
    wide = gaussians_to(gaussians, dtype=torch.float64)
    soft = replace(gaussians, soft_links=torch.zeros(60, 4, dtype=torch.int32), soft_weights=torch.ones(60, 4) / 4)
    assert choose_backend(wide, ("rgb",)) == choose_backend(soft, ("rgb",)) == "reference"
    expected = "native-cpu" if why_unavailable("native-cpu") is None else "reference"
    assert choose_backend(gaussians, ("rgb",)) == expected


def test_auto_prefers_in_the_stated_order(monkeypatch):
    gaussians, _, _ = scene()
    order = []
    monkeypatch.setattr(select, "why_unfit", lambda name, *_: None)
    for blocked in range(len(ORDER)):
        monkeypatch.setattr(select, "why_unavailable", lambda name, b=blocked: "no" if ORDER.index(name) < b else None)
        order.append(choose_backend(gaussians, ("rgb",)))
    assert tuple(order) == ORDER == ("native-cuda", "gsplat", "native-cpu", "reference")


def test_every_backend_has_a_status_line():
    status = backend_status()
    assert [name for name, _, _ in status] == list(ORDER)
    assert status[-1] == ("reference", True, "ok")
    for _, usable, reason in status:
        assert usable == (reason == "ok") and (usable or reason.endswith((".", "`")))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
@pytest.mark.parametrize("name", ["native-cuda", "gsplat"])
def test_a_missing_backend_says_why(name: str):
    with pytest.raises(MissingBackendError, match=f"the render backend {name} cannot be used: .*CUDA"):
        render(one_gaussian(), None, front_camera(), backend=name)


def test_a_backend_that_cannot_do_the_request_says_why(monkeypatch):
    monkeypatch.setattr(select, "why_unavailable", lambda name: None)
    with pytest.raises(MissingBackendError, match="float32"):
        choose_backend(gaussians_to(one_gaussian(), dtype=torch.float64), ("rgb",), "native-cpu")
    with pytest.raises(MissingBackendError, match="on cpu and it works on cuda"):
        choose_backend(one_gaussian(), ("rgb",), "gsplat")


def test_native_agrees_when_it_is_here():
    if why_unavailable("native-cpu") is not None:
        pytest.skip(why_unavailable("native-cpu"))
    gaussians, poses, cameras = scene()
    mounted = replace(cameras, links=(1, 0))
    found = render(gaussians, poses, mounted, backend="native-cpu")
    expected = render(gaussians, poses, mounted, backend="reference")
    assert float((found.rgb - expected.rgb).abs().flatten().kthvalue(int(found.rgb.numel() * 0.999)).values) < 1e-4


REFUSED = {
    "unknown output": ({"outputs": ("rgb", "normals")}, UsageError, "normals"),
    "outputs as a string": ({"outputs": "rgb"}, UsageError, "in a tuple"),
    "no outputs": ({"outputs": ()}, UsageError, "name some of"),
    "flow without previous": ({"outputs": ("flow",)}, UsageError, "without `previous`"),
    "unknown backend": ({"backend": "vulkan"}, UsageError, "vulkan"),
    "near behind far": ({"options": RenderOptions(near=2.0, far=1.0)}, UsageError, "near is 2.0"),
    "near at zero": ({"options": RenderOptions(near=0.0)}, UsageError, "0 < near"),
    "background not finite": ({"options": RenderOptions(background=(0.0, math.nan, 0.0))}, UsageError, "background"),
    "too few links": ({"world_from_link": torch.eye(4)[None, None]}, InputError, "name links 0 to 2"),
    "shape of poses": ({"world_from_link": torch.eye(3)}, InputError, r"shape \[3, 3\]"),
    "no worlds": ({"world_from_link": torch.zeros(0, 3, 4, 4)}, InputError, "W,L,4,4"),
    "fisheye": ({"cameras": replace(front_camera(), model="fisheye")}, InputError, "only pinhole"),
    "no cameras": ({"cameras": front_camera()[0:0]}, InputError, "at least one camera"),
    "mount unknown": ({"cameras": replace(front_camera(), links=(9,))}, InputError, "mounted on the links"),
    "previous differs": (
        {"outputs": ("flow",), "previous": (torch.eye(4).repeat(1, 3, 1, 1), front_camera())}, InputError, "as now",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_bad_requests_are_one_sentence(case: str):
    changes, kind, words = REFUSED[case]
    gaussians, poses, cameras = scene()
    given = {"world_from_link": poses, "cameras": cameras, "backend": "reference"} | changes
    with pytest.raises(kind, match=words):
        render(gaussians, given.pop("world_from_link"), given.pop("cameras"), **given)


def test_mixed_types_and_devices_are_refused():
    mixed = replace(one_gaussian(), means=torch.zeros(1, 3, dtype=torch.float64))
    with pytest.raises(InputError, match="all float32 or all float64"):
        render(mixed, None, front_camera())
    away = replace(one_gaussian(), links=torch.zeros(1, dtype=torch.int32, device="meta"))
    with pytest.raises(InputError, match="different devices"):
        render(away, None, front_camera())
    with pytest.raises(InputError, match="is on meta"):
        render(one_gaussian(), torch.eye(4, device="meta")[None, None], front_camera())


def test_pictures_that_cannot_fit_are_refused_first():
    with pytest.raises(ResourceError, match="of memory"):
        render(one_gaussian(), None, front_camera(4_000_000, 4_000_000), backend="reference")


def test_calls_do_not_change_their_arguments():
    gaussians, poses, cameras = scene()
    copies = [poses.clone(), cameras.K.clone(), gaussians.means.clone()]
    render(gaussians, poses, cameras, backend="reference")
    assert all(torch.equal(a, b) for a, b in zip(copies, [poses, cameras.K, gaussians.means], strict=True))
    turn = se3_exp(torch.full((6,), 0.1))
    assert render_reference(gaussians, turn @ poses, cameras).rgb.shape[0] == 2


def test_a_cached_background_changes_no_bit() -> None:
    if why_unavailable("native-cpu") is not None:
        pytest.skip("the native library is not built")
    from gworld.data.toys import poses_of, tabletop_world, waving_rollout
    from gworld.render.native_cache import BackgroundCache

    world = tabletop_world(0.04)
    assert world.cameras is not None
    poses = poses_of(waving_rollout(world, seconds=0.3))
    cache = BackgroundCache()
    for frame in poses:
        kept = render(
            world.gaussians, frame, world.cameras, outputs=("rgb", "depth"), backend="native-cpu", cache=cache
        )
        full = render(world.gaussians, frame, world.cameras, outputs=("rgb", "depth"), backend="native-cpu")
        assert torch.equal(kept.rgb, full.rgb) and torch.equal(kept.depth, full.depth)
    assert cache.builds == 1 and cache.frames >= len(poses) - 1
