"""The gsplat backend without its kernels: what it hands over, compared by gsplat's own torch code; kernels on a GPU."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from gworld.errors import MissingBackendError
from gworld.render import gsplat as backend
from gworld.render.api import MAX_ALPHA, MIN_ALPHA, MIN_TRANSMITTANCE, RenderOptions
from gworld.render.projection import camera_from_links, project, visible_rows
from gworld.render.reference import render_reference
from gworld.scene.cameras import Cameras
from gworld.scene.gaussians import gaussians_to
from tests.scenes import NAMES, Scene, agreement_scenes, doubtful_pixels, front_camera, one_gaussian

SCENES = [
    scene
    for scene in agreement_scenes()
    if scene.name.split(" anti")[0]
    in ("degree 3", "many links", "worlds and cameras", "large", "behind the camera", "no Gaussians", "zero visible")
]
PICTURES = ("rgb", "alpha", "depth", "flow")


def centred(cameras: Cameras) -> Cameras:
    """gsplat measures its frustum clamp from the principal point: the two agree where that is the middle."""
    K = cameras.K.clone()
    K[:, 0, 2], K[:, 1, 2] = cameras.width / 2, cameras.height / 2
    return replace(cameras, K=K)


def centred_scene(scene: Scene) -> Scene:
    return replace(scene, cameras=centred(scene.cameras), previous=(scene.previous[0], centred(scene.previous[1])))


@pytest.mark.parametrize("scene", SCENES, ids=lambda scene: scene.name)
def test_projection_agrees_with_gsplats_own(scene: Scene):
    from gsplat.cuda._torch_impl import _fully_fused_projection

    scene = centred_scene(scene)
    given = backend.prepare(scene.gaussians, scene.world_from_link, scene.cameras, ("rgb",), None, scene.options)
    poses = camera_from_links(scene.world_from_link, scene.cameras.world_from_camera)
    for world in range(len(poses)):
        _, means2d, depths, conics, compensations = _fully_fused_projection(
            given.means[world], given.covariances[world], given.camera_from_world[world], given.K[world],
            scene.cameras.width, scene.cameras.height, calc_compensations=True,
        )  # fmt: skip
        for index in range(len(scene.cameras)):
            splats = project(scene.gaussians, poses[world, index], scene.cameras, index, scene.options)
            keep = visible_rows(scene.gaussians, splats, scene.cameras.width, scene.cameras.height, scene.options)
            xx, xy, yy = splats.covariances[keep].unbind(-1)
            conic = torch.stack([yy, -xy, xx], dim=-1) / splats.determinants[keep, None]
            close = {"atol": 1e-4, "rtol": 1e-3}
            torch.testing.assert_close(means2d[index][keep], splats.centres[keep], **close)
            torch.testing.assert_close(depths[index][keep], splats.depths[keep], atol=1e-4, rtol=1e-4)
            torch.testing.assert_close(conics[index][keep], conic, **close)
            torch.testing.assert_close(given.features[world, index][keep], splats.colours[keep], atol=1e-5, rtol=1e-4)
            if scene.options.antialiased:
                opacity = given.opacities[world][keep] * compensations[index][keep]
                torch.testing.assert_close(opacity, splats.opacities[keep], **close)


def torch_rasterization(
    means, quats, scales, opacities, colors, viewmats, Ks, width, height, *, near_plane, far_plane, eps2d, packed,
    backgrounds, rasterize_mode, covars,
):  # fmt: skip
    """`gsplat.rasterization` for tests: its torch projection, then dense blending by its documented rules."""
    from gsplat.cuda._torch_impl import _fully_fused_projection

    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    images, alphas = [], []
    for world in range(len(means)):
        for camera in range(viewmats.shape[1]):
            view = viewmats[world, camera]
            depth = means[world] @ view[2, :3] + view[2, 3]
            order = torch.sort(depth, stable=True).indices
            order = order[(depth[order] > near_plane) & (depth[order] < far_plane)]
            _, means2d, _, conics, compensations = _fully_fused_projection(
                means[world, order], covars[world, order], view[None], Ks[world, camera][None], width, height, eps2d,
                near_plane, far_plane, True,
            )  # fmt: skip
            (u, v), (a, b, c) = means2d[0].unbind(-1), conics[0].unbind(-1)
            dx, dy = x[..., None] - u, y[..., None] - v
            opacity = opacities[world, order]
            if rasterize_mode == "antialiased":
                opacity = opacity * compensations[0]
            power = 0.5 * (a * dx**2 + c * dy**2) + b * dx * dy
            alpha = (opacity * torch.exp(-power)).clamp_max(MAX_ALPHA)
            alpha = torch.where(alpha >= MIN_ALPHA, alpha, torch.zeros_like(alpha))
            drawn = torch.cumprod(1 - alpha, -1) > MIN_TRANSMITTANCE
            alpha = torch.where(drawn, alpha, torch.zeros_like(alpha))
            behind = torch.cumprod(1 - alpha, -1)
            weights = alpha * torch.cat([torch.ones_like(behind[..., :1]), behind[..., :-1]], -1)
            left = behind[..., -1:] if behind.shape[-1] else torch.ones(height, width, 1)
            images.append(weights @ colors[world, camera, order] + left * backgrounds[world, camera])
            alphas.append(1 - left)
    shape = (len(means), viewmats.shape[1])
    return torch.stack(images).unflatten(0, shape), torch.stack(alphas).unflatten(0, shape), {}


@pytest.mark.parametrize("scene", SCENES, ids=lambda scene: scene.name)
def test_pictures_and_gradients_around_the_kernels(scene: Scene, monkeypatch):
    """With the kernels replaced by torch code, every output and gradient is that of the reference."""
    import gsplat

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(gsplat, "rasterization", torch_rasterization)
    scene = centred_scene(scene)
    clear = doubtful_pixels(scene) == 0
    gradients = []
    for function in (backend.render_gsplat, render_reference):
        leaves = {name: getattr(scene.gaussians, name).clone().requires_grad_() for name in NAMES}
        poses = scene.world_from_link.clone().requires_grad_()
        out = function(
            replace(scene.gaussians, **leaves), poses, scene.cameras, PICTURES, scene.previous, scene.options
        )
        pictures = {name: getattr(out, name) for name in PICTURES}
        sum(picture[clear].sum() for picture in pictures.values()).backward()
        gradients.append((pictures, [leaf.grad for leaf in leaves.values()]))
    (found, found_gradients), (expected, expected_gradients) = gradients
    for name, tolerance in {"rgb": 1e-4, "alpha": 1e-4, "depth": 1e-3, "flow": 1e-2}.items():
        torch.testing.assert_close(found[name][clear], expected[name][clear], atol=tolerance, rtol=1e-4)
    for gradient, truth in zip(found_gradients, expected_gradients, strict=True):
        assert float((gradient - truth).norm()) <= 2e-3 * float(truth.norm()) + 1e-4


def test_bad_rows_are_not_handed_over():
    gaussian = one_gaussian()
    bad = replace(gaussian, log_scales=torch.full((1, 3), float("inf")))
    given = backend.prepare(bad, torch.eye(4)[None, None], front_camera(), ("rgb", "depth"), None, RenderOptions())
    assert given.means.shape == (1, 0, 3) and given.features.shape == (1, 1, 0, 4)


def test_it_refuses_without_cuda_and_for_link_id(monkeypatch):
    arguments = (one_gaussian(), torch.eye(4)[None, None], front_camera())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(MissingBackendError, match="no CUDA device"):
        backend.render_gsplat(*arguments)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(MissingBackendError, match="link_id"):
        backend.render_gsplat(*arguments, ("link_id",))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("scene", SCENES, ids=lambda scene: scene.name)
def test_kernels_agree_with_the_reference(scene: Scene):
    scene = centred_scene(scene)
    expected = render_reference(
        scene.gaussians, scene.world_from_link, scene.cameras, PICTURES, scene.previous, scene.options
    )

    def moved(cameras: Cameras) -> Cameras:
        return replace(cameras, K=cameras.K.cuda(), world_from_camera=cameras.world_from_camera.cuda())

    found = backend.render_gsplat(
        gaussians_to(scene.gaussians, device="cuda"), scene.world_from_link.cuda(), moved(scene.cameras), PICTURES,
        (scene.previous[0].cuda(), moved(scene.previous[1])), scene.options,
    )  # fmt: skip
    clear = doubtful_pixels(scene) == 0
    for name, tolerance in {"rgb": 1e-4, "alpha": 1e-4, "depth": 1e-3, "flow": 1e-2}.items():
        difference = (getattr(found, name).cpu() - getattr(expected, name)).abs()[clear]
        assert difference.numel() == 0 or float(difference.max()) < tolerance, name
