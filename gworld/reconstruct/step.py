"""One step of a fit: draw a picture, compare it, and move the Gaussians and that picture's corrections."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from gworld.reconstruct.appearance import MEMORY, distorted, exposed, neutral, refined, twist_gradient
from gworld.reconstruct.classic import centre_pull
from gworld.reconstruct.density import add_noise
from gworld.reconstruct.optimise import Tools, decayed, gaussians_step
from gworld.reconstruct.options import FitOptions
from gworld.reconstruct.pictures import Album, Picture
from gworld.reconstruct.schedule import level_at
from gworld.reconstruct.state import State, gaussians_of
from gworld.render.api import RenderOptions
from gworld.render.select import render
from gworld.scene.gaussians import Gaussians

PER_VIEW = ("exposure", "flow", "twist")
"""Corrections with one row per fitted view."""

LEARN_BACKGROUND = 0.02


@dataclass(frozen=True)
class Setting:
    """What stays the same through a run: pictures to fit, options, tools, and the scene's size for its cameras."""

    album: Album
    options: FitOptions
    tools: Tools
    width: float
    drawing: RenderOptions
    has_depth: bool = False


@dataclass(frozen=True)
class Drawn:
    """A drawn picture before and after its corrections."""

    image: Float[Tensor, "H V 3"]
    alpha: Float[Tensor, "H V"] | None
    depth: Float[Tensor, "H V"] | None


def random_source(seed: int, purpose: int, step: int, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator that depends on seed, purpose and step alone: nothing to carry from step to step."""
    mixed = (seed * 1_000_003 + purpose) * 1_000_000_007 + step
    return torch.Generator(device).manual_seed(mixed % (1 << 63))


def view_at(seed: int, step: int, count: int) -> int:
    """Which view a step draws: every epoch shows every view once, in its own order."""
    order = torch.randperm(count, generator=random_source(seed, 1, step // count))
    return int(order[step % count])


def level_of(setting: Setting, state: State, progress: float) -> int:
    """Which level of the album a step draws from."""
    return min(level_at(progress, state.step / len(setting.album)), len(setting.album.levels) - 1)


def take_step(setting: Setting, state: State, progress: float) -> float:
    """Move `state` one step on, in place, and return the loss; a step whose result is not finite changes nothing."""
    options = setting.options
    view = view_at(options.seed, state.step, len(setting.album))
    picture = setting.album.levels[level_of(setting, state, progress)][view]
    leaves = {name: value.detach().requires_grad_() for name, value in state.params.items()}
    corrections = {
        name: state.appearance[name][view].detach().clone().requires_grad_()
        for name in PER_VIEW
        if name in state.appearance
    }
    pose = refined(picture.camera, corrections.get("twist"), setting.width).detach()
    if "twist" in corrections:  # its gradient is taken by the matrix: see twist_gradient
        corrections["twist"] = pose = pose.requires_grad_()
    loss, drawn = _loss(setting, state, picture, leaves, corrections, pose)
    found = torch.autograd.grad(loss, [*leaves.values(), *corrections.values()])
    gradients = dict(zip(leaves, found, strict=False))
    own = dict(zip(corrections, found[len(leaves) :], strict=True))
    state.step += 1
    value = float(loss.detach())
    if not _finite(value, {**gradients, **own}):
        state.skipped += 1
        return value
    with torch.no_grad():
        _move_gaussians(setting, state, gradients, picture, progress)
        if own:
            _move_corrections(setting, state, view, own, pose, progress)
        if "background" in state.appearance:
            _learn_background(state.appearance["background"], drawn, picture)
    return value


def draw(
    setting: Setting, gaussians: Gaussians, picture: Picture, pose: Tensor, background: Tensor | None = None
) -> Drawn:
    """The Gaussians from a picture's camera standing at `pose`, over `background` where one was learned or drawn."""
    outputs = ["rgb"]
    if setting.has_depth and picture.depth is not None:
        outputs += ["depth", "alpha"]
    elif background is not None:
        outputs.append("alpha")
    cameras = replace(picture.camera, world_from_camera=pose)
    out = render(gaussians, None, cameras, outputs=outputs, options=setting.drawing, backend=setting.options.backend)
    assert out.rgb is not None
    image = out.rgb[0, 0]
    if background is not None:
        assert out.alpha is not None
        image = image + (1 - out.alpha[0, 0])[..., None] * background
    depth = None if out.depth is None else out.depth[0, 0]
    return Drawn(image, None if out.alpha is None else out.alpha[0, 0], depth)


def _loss(
    setting: Setting,
    state: State,
    picture: Picture,
    leaves: dict[str, Tensor],
    corrections: dict[str, Tensor],
    pose: Tensor,
) -> tuple[Tensor, Drawn]:
    options = setting.options
    background = state.appearance["background"][0] if "background" in state.appearance else None
    if options.background == "random":
        source = random_source(options.seed, 2, state.step)
        background = torch.rand(3, generator=source).to(pose.device)
    drawn = draw(setting, gaussians_of(leaves), picture, pose, background)
    image = drawn.image
    if "flow" in corrections:
        image = distorted(image, corrections["flow"], options.appearance.distortion_px)
    if "exposure" in corrections:
        image = exposed(image, corrections["exposure"] - state.appearance["exposure"].mean(0))
    loss = setting.tools.loss(image, picture.truth, ssim_weight=options.ssim_weight, mask=picture.mask)
    if "exposure" in corrections:
        loss = loss + options.appearance.exposure_weight * corrections["exposure"].square().sum()
    if drawn.depth is not None and picture.depth is not None and options.depth_weight > 0:
        known = (picture.depth > 0) & (drawn.depth.detach() > 0)
        if picture.mask is not None:
            known &= picture.mask
        wrong = ((drawn.depth - picture.depth).abs() * known).sum() / (known.sum() + 1)
        loss = loss + options.depth_weight / setting.width * wrong
    return loss, drawn


def _move_gaussians(
    setting: Setting, state: State, gradients: dict[str, Tensor], picture: Picture, progress: float
) -> None:
    options, params, count = setting.options, state.params, len(state.params["means"])
    touched = gradients["opacity_logits"] != 0
    state.hits += touched
    if options.density == "classic":
        state.pull += centre_pull(gradients["means"], params["means"], picture.camera)
    else:
        opacity = params["opacity_logits"].sigmoid()
        gradients["opacity_logits"] += options.opacity_weight / count * opacity * (1 - opacity)
        gradients["log_scales"] += options.scale_weight / (3 * count * setting.width) * params["log_scales"].exp()
    rates = options.rates
    of_means = decayed(rates.means, rates.means_end, progress) * setting.width
    named = {
        "means": of_means,
        "quats_wxyz": rates.quats,
        "log_scales": rates.scales,
        "opacity_logits": rates.opacities,
        "sh": rates.colours,
    }
    state.adam = gaussians_step(setting.tools, params, gradients, state.adam, named, touched)
    if options.density == "mcmc":
        source = random_source(options.seed, 3, state.step, params["means"].device)
        add_noise(params, of_means / setting.width, setting.width, source)


def _move_corrections(
    setting: Setting, state: State, view: int, found: dict[str, Tensor], pose: Tensor, progress: float
) -> None:
    options = setting.options.appearance
    if "twist" in found:
        twist = state.appearance["twist"][view]
        pull = 2 * options.pose_weight * twist
        found["twist"] = twist_gradient(pose.detach(), found["twist"], setting.width) + pull
    rates = {"exposure": options.exposure_rate, "twist": options.pose_rate, "flow": options.distortion_rate}
    rates = {name: decayed(rate, 0.1, progress) for name, rate in rates.items()}
    gradients = {}
    for name, gradient in found.items():
        whole = torch.zeros_like(state.appearance[name])
        whole[view] = gradient
        gradients[name] = whole
    rows = torch.zeros(len(setting.album), dtype=torch.bool, device=pose.device)
    rows[view] = True
    state.appearance_adam = setting.tools.adam(
        state.appearance, gradients, state.appearance_adam, rates, options=MEMORY, rows=rows
    )


def _learn_background(background: Tensor, drawn: Drawn, picture: Picture) -> None:
    """Move the colour behind everything towards what least squares asks for in this picture."""
    assert drawn.alpha is not None
    open_ = (1 - drawn.alpha.detach()) * (1.0 if picture.mask is None else picture.mask)
    weight = open_.square().sum()
    if float(weight) > 1:
        change = ((picture.truth - drawn.image.detach()) * open_[..., None]).sum((0, 1)) / weight
        background[0] = (background[0] + LEARN_BACKGROUND * change).clamp(0, 1)


def _finite(loss: float, gradients: dict[str, Tensor]) -> bool:
    """Whether a step is free of NaN and Inf; the other harmonics' gradients are multiples of the mean colour's."""
    if not math.isfinite(loss):
        return False
    parts = [value if name != "sh" else value[:, 0] for name, value in gradients.items()]
    return bool(torch.stack([part.sum() for part in parts]).isfinite().all())


def neutral_exposures(state: State) -> Tensor | None:
    """Exposures as they are applied, or None where they are not learned."""
    return neutral(state.appearance["exposure"]) if "exposure" in state.appearance else None
