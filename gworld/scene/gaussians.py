"""Gaussians: the noun everything is made of. Each row lives in the frame of the link that owns it."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from gworld.errors import InputError


@dataclass(frozen=True)
class Gaussians:
    """N anisotropic 3D Gaussians in the frames of their links (link 0 is the static world).

    means [N,3] metres; quats_wxyz [N,4]; log_scales [N,3] natural log of standard deviations in metres;
    opacity_logits [N]; sh [N,K,3] with K = (degree + 1)^2, degree 0 first, seen from directions in the link's frame;
    links [N] int32. Soft bodies carry up to four (link, weight) pairs in `soft_links [N,4]`, `soft_weights [N,4]`.
    """

    means: Float[Tensor, "N 3"]
    quats_wxyz: Float[Tensor, "N 4"]
    log_scales: Float[Tensor, "N 3"]
    opacity_logits: Float[Tensor, " N"]
    sh: Float[Tensor, "N K 3"]
    links: Int[Tensor, " N"]
    soft_links: Int[Tensor, "N 4"] | None = None
    soft_weights: Float[Tensor, "N 4"] | None = None

    def __post_init__(self) -> None:
        count = len(self.means)
        shapes = {
            "means": (count, 3),
            "quats_wxyz": (count, 4),
            "log_scales": (count, 3),
            "opacity_logits": (count,),
            "links": (count,),
        }
        for name, shape in shapes.items():
            found = tuple(getattr(self, name).shape)
            if found != shape:
                raise InputError(f"Gaussians.{name} has shape {list(found)}; {list(shape)} is needed.")
        if self.sh.ndim != 3 or self.sh.shape[0] != count or self.sh.shape[1] not in (1, 4, 9, 16):
            raise InputError(
                f"Gaussians.sh has shape {list(self.sh.shape)}; [{count}, K, 3] with K in 1, 4, 9, 16 is needed."
            )
        if (self.soft_links is None) != (self.soft_weights is None):
            raise InputError("Gaussians.soft_links and soft_weights come together; only one was given.")

    def __len__(self) -> int:
        return len(self.means)

    @property
    def sh_degree(self) -> int:
        """Degree of the spherical harmonics, 0 to 3."""
        return {1: 0, 4: 1, 9: 2, 16: 3}[self.sh.shape[1]]

    @property
    def device(self) -> torch.device:
        """Where the tensors live."""
        return self.means.device


def select_gaussians(gaussians: Gaussians, rows: Tensor) -> Gaussians:
    """The rows of a boolean mask or an index tensor."""
    present = {f.name: getattr(gaussians, f.name) for f in fields(gaussians)}
    return replace(gaussians, **{name: value[rows] for name, value in present.items() if value is not None})


def join_gaussians(parts: list[Gaussians]) -> Gaussians:
    """Concatenate Gaussians; lower SH degrees are padded with zeros. Raises `InputError` for an empty list."""
    if not parts:
        raise InputError("join_gaussians was given no parts; at least one is needed.")
    degree = max(part.sh_degree for part in parts)
    parts = [with_sh_degree(part, degree) for part in parts]
    if any(part.soft_links is not None for part in parts):
        parts = [_with_soft(part) for part in parts]
    present = [f.name for f in fields(Gaussians) if getattr(parts[0], f.name) is not None]
    return Gaussians(**{name: torch.cat([getattr(part, name) for part in parts]) for name in present})


def with_sh_degree(gaussians: Gaussians, degree: int) -> Gaussians:
    """Cut the spherical harmonics to `degree` (0 to 3), or pad them with zeros."""
    if degree not in (0, 1, 2, 3):
        raise InputError(f"SH degree {degree} was asked for; 0, 1, 2 or 3 is needed.")
    wanted, have = (degree + 1) ** 2, gaussians.sh.shape[1]
    if wanted <= have:
        return replace(gaussians, sh=gaussians.sh[:, :wanted])
    padding = gaussians.sh.new_zeros(len(gaussians), wanted - have, 3)
    return replace(gaussians, sh=torch.cat([gaussians.sh, padding], dim=1))


def gaussians_to(
    gaussians: Gaussians, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
) -> Gaussians:
    """Move to a device and floating type; link indices stay integers."""
    moved = {}
    for f in fields(gaussians):
        value = getattr(gaussians, f.name)
        if value is not None:
            moved[f.name] = value.to(device=device, dtype=dtype if value.is_floating_point() else None)
    return replace(gaussians, **moved)


def _with_soft(part: Gaussians) -> Gaussians:
    if part.soft_links is not None:
        return part
    weights = part.means.new_zeros(len(part), 4)
    weights[:, 0] = 1.0
    return replace(part, soft_links=part.links[:, None].expand(-1, 4).contiguous(), soft_weights=weights)
