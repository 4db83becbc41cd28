"""Videos of high dynamic range (HLG, PQ), as phones record them by default, as the sRGB pictures everything else is."""

from __future__ import annotations

from functools import cache

import numpy as np

PQ, HLG = 16, 18
"""Transfer characteristics as videos number them (ITU-T H.273, table 3)."""
BT2020 = 9
"""Colour primaries of wide gamut (ITU-T H.273, table 2)."""
WHITE = 203.0
"""cd/m^2 of what is white paper in such a picture (ITU-R BT.2408)."""
_PEAK = 1000.0  # cd/m^2 that HLG's brightest code stands for
_KNEE = 0.8  # of white; up to here light stays what it is, above highlights are pressed together
_LUMA = np.array([0.2627, 0.6780, 0.0593], np.float32)
_SRGB_FROM_BT2020 = np.array(
    [[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]], np.float32
)


def to_srgb(picture: np.ndarray, transfer: int, primaries: int) -> np.ndarray:
    """A picture of high range, RGB uint16 [H,W,3], as sRGB uint8 [H,W,3].

    White paper becomes white and mid tones keep their light; what is brighter is pressed into the last fifth. Sources:
    ITU-R BT.2100 (transfer functions), BT.2408 (white), BT.2087 (primaries).
    """
    light = _light(transfer)[picture]
    if transfer == HLG:  # from the scene's light to that of a display, by the luminance
        light *= _PEAK / WHITE * np.power(light @ _LUMA + 1e-9, 0.2)[..., None]
    if primaries == BT2020:
        light = light @ _SRGB_FROM_BT2020.T
    top = light.max(-1, keepdims=True)
    light *= _pressed(np.maximum(top, 1e-6)) / np.maximum(top, 1e-6)  # by the largest channel, so that hues stay
    codes = np.clip(light, 0, 1, out=light)
    codes = np.where(codes <= 0.0031308, 12.92 * codes, 1.055 * np.power(codes, 1 / 2.4) - 0.055)
    return (255 * codes + 0.5).astype(np.uint8)


def _pressed(light: np.ndarray) -> np.ndarray:
    """Light as it is up to the knee, then a smooth approach to 1 that begins with slope 1."""
    room = 1 - _KNEE
    over = np.maximum(light - _KNEE, 0)
    return np.where(light > _KNEE, _KNEE + room * over / (over + room), light)


@cache
def _light(transfer: int) -> np.ndarray:
    """Light of every 16-bit code, float32 [65536]: PQ in units of white, HLG the scene's in 0..1."""
    code = np.arange(65536) / 65535
    if transfer == PQ:
        m1, m2, c1, c2, c3 = 2610 / 16384, 2523 / 32, 3424 / 4096, 2413 / 128, 2392 / 128
        root = code ** (1 / m2)
        return ((np.maximum(root - c1, 0) / (c2 - c3 * root)) ** (1 / m1) * 10_000 / WHITE).astype(np.float32)
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    return np.where(code <= 0.5, code**2 / 3, (np.exp((code - c) / a) + b) / 12).astype(np.float32)
