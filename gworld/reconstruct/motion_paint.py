"""What is learned about looks while tracking: plates without the bodies, the bodies' colours, the cameras' exposure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float
from numpy import ndarray
from torch import Tensor

from gworld.reconstruct.motion_bodies import Bodies, poses_of
from gworld.reconstruct.motion_draw import BEHIND, draw
from gworld.reconstruct.motion_film import Film, Level, Plates, Shot
from gworld.render.api import RenderOptions
from gworld.render.select import render
from gworld.scene.gaussians import Gaussians
from gworld.scene.harmonics import C0, rgb_from_sh, sh_from_rgb

FEWEST = 3
GROW = 9
"""Pixels by which silhouettes are widened before what lies outside is taken for the plate."""
FAIR = 0.35
"""Colour difference beyond which a pixel is no sample of a body's colour."""
ROUNDS = 4


def clean_plates(
    films: Sequence[Film], level: Level, bodies: Bodies, times: Float[ndarray, " T"], states: Float[Tensor, "T S"],
    before: Plates,
) -> Plates:  # fmt: skip
    """Plates from the pixels that no body covers at `times` (at least three of them); elsewhere unknown, and filled
    from around. `level` has the films' full size."""
    import cv2

    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (GROW, GROW))
    pictures, known = [], []
    for camera, film in enumerate(films):
        rows = [film.nearest(float(time)) for time in times]
        shown = film.pictures[rows].astype(np.float32) / 255
        for index in range(len(rows)):
            alpha = draw(bodies, states[index : index + 1], level, camera).alpha[0].numpy()
            shown[index][cv2.dilate((alpha > 0.03).astype(np.uint8), kernel) > 0] = np.nan
        count = np.isfinite(shown[..., 0]).sum(0)
        good = count >= min(FEWEST, max(1, len(rows) // 8))
        shown[:, ~good] = 0.0
        plate = np.nanmedian(shown, axis=0).astype(np.float32)
        plate[~good] = before.pictures[camera][~good]
        filled = cv2.inpaint((plate * 255).astype(np.uint8), (~good).astype(np.uint8), 3, cv2.INPAINT_TELEA)
        plate[~good] = filled[~good].astype(np.float32) / 255
        pictures.append(plate)
        known.append(good)
    return replace(before, pictures=np.stack(pictures), known=np.stack(known))


def paint(
    bodies: Bodies, level: Level, shots: Sequence[Shot], states: Float[Tensor, "T S"], *, learn_gains: bool = True
) -> tuple[Bodies, Float[Tensor, "C 3"]]:
    """The bodies with the colours that explain the pictures at known states, and the cameras' gains.

    Each Gaussian's colour is moved by the mean of what is left in the pixels it draws, weighted by how much it draws
    there, a few times over. Gaussians never seen take the mean colour of their link.
    """
    gaussians, gains = bodies.gaussians, level.gains.clone()
    seen = torch.zeros(len(gaussians))
    for number in range(ROUNDS):
        change, seen = torch.zeros(len(gaussians), 3), torch.zeros(len(gaussians))
        pairs: list[list[Tensor]] = [[] for _ in range(len(level.cameras))]
        for shot, state in zip(shots, states, strict=True):
            for camera in range(len(level.cameras)):
                add, weight, pair = _one_view(bodies, gaussians, level, shot, state, camera, gains[camera], number)
                change += add
                seen += weight
                pairs[camera].append(pair)
        step = change / (seen[:, None] + 0.05)
        sh = gaussians.sh.clone()
        sh[:, 0] += step / C0
        gaussians = replace(gaussians, sh=sh)
        if learn_gains:
            gains = _balanced([torch.cat(pair) for pair in pairs], gains)
    return replace(bodies, gaussians=_fill(gaussians, seen)), gains


def link_colours(bodies: Bodies) -> Float[ndarray, "B 3"]:
    """The median colour of each link that has Gaussians."""
    colours, links = rgb_from_sh(bodies.gaussians.sh[:, 0]), bodies.gaussians.links
    return torch.stack([colours[links == link].median(0).values for link in links.unique()]).numpy()


def _one_view(
    bodies: Bodies,
    gaussians: Gaussians,
    level: Level,
    shot: Shot,
    state: Tensor,
    camera: int,
    gain: Tensor,
    number: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """What is left in the pixels of each Gaussian [N,3], how much it draws [N], pairs of drawn and seen [M,2,3]."""
    leaf = torch.zeros(len(gaussians), 1, 3, requires_grad=True)
    sh = torch.cat([gaussians.sh[:, :1] + leaf, gaussians.sh[:, 1:]], dim=1)
    outputs = ("rgb", "alpha") if level.shield is None else ("rgb", "alpha", "depth")
    poses = poses_of(bodies, state[None]).float()
    options = RenderOptions(antialiased=level.sharp)
    shown = render(replace(gaussians, sh=sh), poses, level.cameras[camera], outputs=outputs, options=options)
    assert shown.rgb is not None and shown.alpha is not None
    rgb, alpha = shown.rgb[0, 0], shown.alpha[0, 0].detach()
    with torch.no_grad():
        solid = (alpha > 0.9).float()
        if level.shield is not None and shown.depth is not None:
            solid = solid * (shown.depth[0, 0] < level.shield[camera] + BEHIND).float()
        miss = (shot.rgb[camera] - rgb * gain) / gain
        # A first look may be far off in colour; later ones leave out shadows, strangers and highlights.
        fair = solid * ((miss.abs().amax(-1) < FAIR) | (number < 2)).float()
        pair = torch.stack([rgb, shot.rgb[camera]], dim=-2)[fair > 0]
    (rgb * (miss * fair[..., None]).detach()).sum().backward(retain_graph=True)
    assert leaf.grad is not None
    change = leaf.grad[:, 0].clone() / C0
    leaf.grad.zero_()
    (rgb[..., 1] * fair).sum().backward()
    weight = leaf.grad[:, 0, 1] / C0
    return change, weight.clamp_min(0), pair


def _balanced(pairs: list[Tensor], gains: Tensor) -> Tensor:
    """Gains per camera from pairs of drawn and seen colours, their mean one; clipped whites are left out."""
    found = gains.clone()
    for camera, pair in enumerate(pairs):
        fair = (pair[:, 1] < 0.97).all(-1) & (pair[:, 0] > 0.02).all(-1)
        if int(fair.sum()) > 50:
            drawn, shown = pair[fair, 0], pair[fair, 1]
            found[camera] = ((drawn * shown).sum(0) + 5) / ((drawn * drawn).sum(0) + 5)
    found = found / found.log().mean(0).exp()
    return found.clamp(0.5, 2.0)


def _fill(gaussians: Gaussians, seen: Tensor) -> Gaussians:
    """Gaussians that no picture showed, in the mean colour of those of their link that were, else left as they are."""
    sh, links = gaussians.sh.clone(), gaussians.links.long()
    dark, bright = sh_from_rgb(torch.zeros(3)), sh_from_rgb(torch.ones(3))
    sh[:, 0] = torch.minimum(torch.maximum(sh[:, 0], dark), bright)
    for link in links.unique():
        own = links == link
        shown = own & (seen > 1.0)
        if bool(shown.any()):
            mean = (sh[shown, 0] * seen[shown, None]).sum(0) / seen[shown].sum()
            sh[own & ~shown, 0] = mean
    return replace(gaussians, sh=sh)
