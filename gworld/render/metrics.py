"""How alike two pictures are: PSNR, SSIM and L1, per image, over any leading shape.

Images are `[..., H, W, 3]` in 0..1; every function returns one value per image, `[...]`, and carries gradients.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from gworld.errors import InputError

WINDOW = 11
"""Taps of the SSIM window, a Gaussian of sigma 1.5 pixels."""


def l1(image: Tensor, truth: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean absolute difference, over the masked pixels where a mask `[..., H, W]` (bool or weights) is given."""
    weights = _checked(image, truth, mask)
    return _mean((image - truth).abs(), weights)


def psnr(image: Tensor, truth: Tensor, mask: Tensor | None = None) -> Tensor:
    """Peak signal-to-noise ratio in dB for a peak of 1; infinite for equal images, NaN where the mask is empty.

    With a mask `[..., H, W]` (bool or weights) only its pixels count. Raises `InputError` for shapes that differ.
    """
    weights = _checked(image, truth, mask)
    return -10 * torch.log10(_mean((image - truth).square(), weights))


def ssim(image: Tensor, truth: Tensor) -> Tensor:
    """Mean structural similarity with the 11 x 11 Gaussian window of sigma 1.5 and zeros beyond the border.

    Border and constants are those of 3D Gaussian splatting's loss and tables. Raises `InputError` for shapes that
    differ. Source: Wang et al., "Image quality assessment", 2004.
    """
    return ssim_map(image, truth).mean(dim=(-3, -2, -1))


def ssim_map(image: Tensor, truth: Tensor) -> Tensor:
    """Structural similarity of every pixel and channel `[..., H, W, 3]` (see `ssim`)."""
    from kornia.metrics import ssim as kornia_ssim

    _checked(image, truth, None)
    half = WINDOW // 2
    padded = [
        torch.nn.functional.pad(part.reshape(-1, *part.shape[-3:]).movedim(-1, 1), [half] * 4)
        for part in (image, truth)
    ]
    # eps 0: the constants already keep the denominator above zero.
    values = kornia_ssim(padded[0], padded[1], WINDOW, max_val=1.0, eps=0.0, padding="valid")
    return values.movedim(1, -1).reshape(image.shape)


def _checked(image: Tensor, truth: Tensor, mask: Tensor | None) -> Tensor | None:
    if image.shape != truth.shape or image.ndim < 3:
        raise InputError(
            f"the images have shapes {list(image.shape)} and {list(truth.shape)}; two equal [..., H, W, 3] are needed."
        )
    if mask is None:
        return None
    if mask.shape != image.shape[:-1]:
        raise InputError(f"the mask has shape {list(mask.shape)}; {list(image.shape[:-1])} is needed.")
    return mask.to(image.dtype)


def _mean(values: Float[Tensor, "*B H V 3"], mask: Float[Tensor, "*B H V"] | None) -> Float[Tensor, "*B"]:
    if mask is None:
        return values.mean(dim=(-3, -2, -1))
    return (values.mean(dim=-1) * mask).sum(dim=(-2, -1)) / mask.sum(dim=(-2, -1))
