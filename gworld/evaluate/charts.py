"""Charts as inline SVG: lines over time, bars, camera paths from above; colours follow the page's style sheet."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, UInt8

from gworld.evaluate.html import Fragment, encoded, text

WIDTH, HEIGHT = 520, 260
LEFT, RIGHT, TOP, BOTTOM = 56, 16, 28, 40
COLORS = ("--s1", "--s2", "--s3", "--s4", "--s5")
MAX_POINTS = 400
"""Points that are drawn of a line; more are thinned evenly."""

INFERNO = np.array(
    [[0, 0, 4], [40, 11, 84], [101, 21, 110], [159, 42, 99], [212, 72, 66], [245, 125, 21], [250, 193, 39],
     [252, 255, 164]], np.float64)  # fmt: skip
VIRIDIS = np.array([[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [216, 200, 40]], np.float64)
"""Anchors of two perceptually even colour scales, 0..255 (the last of viridis darkened, to be seen on white)."""


@dataclass(frozen=True)
class Line:
    """A named series of points; gaps are NaN. `dashed` lines are references; a band from `low` to `high` is shaded."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    dashed: bool = False
    low: Sequence[float] = ()
    high: Sequence[float] = ()


def scaled_colors(values: np.ndarray, anchors: np.ndarray = INFERNO) -> np.ndarray:
    """Values in 0..1 as uint8 colours `[..., 3]` of a scale."""
    place = np.clip(np.nan_to_num(values), 0, 1) * (len(anchors) - 1)
    ends = np.arange(len(anchors))
    channels = [np.interp(place, ends, anchors[:, channel]) for channel in range(3)]
    return np.round(np.stack(channels, -1)).astype(np.uint8)


def line_chart(lines: Sequence[Line], x_label: str, y_label: str, *, points: bool = False) -> Fragment:
    """Lines over a common axis, each with its name; nothing when no line has a point."""
    drawn = [(line, _clean(line)) for line in lines]
    drawn = [(line, data) for line, data in drawn if len(data)]
    if not drawn:
        return Fragment("")
    bands = [_clean(Line("", line.x, side)) for line, _ in drawn for side in (line.low, line.high) if len(side)]
    everything = np.concatenate([*(data for _, data in drawn), *bands])
    x_ticks, y_ticks = (ticks(everything[:, axis].min(), everything[:, axis].max()) for axis in (0, 1))
    to_x, to_y = _axis(x_ticks, LEFT, WIDTH - RIGHT), _axis(y_ticks, HEIGHT - BOTTOM, TOP)
    parts = [_frame(x_ticks, y_ticks, to_x, to_y, x_label, y_label)]
    for index, (line, data) in enumerate(drawn):
        color = f"var({COLORS[index % len(COLORS)]})"
        places = [(to_x(x), to_y(y)) for x, y in data]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        parts.append(_band(line, to_x, to_y, color))
        dash = ' stroke-dasharray="5 4"' if line.dashed else ""
        parts.append(f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="1.8"{dash}/>')
        if points or len(data) == 1:
            for (x, y), (a, b) in zip(places, data, strict=True):
                title = f"<title>{text(line.name)}: {number(a)}, {number(b)}</title>"
                parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.6" fill="{color}">{title}</circle>')
    if len(drawn) > 1 or drawn[0][0].name:
        parts.append(_legend([line for line, _ in drawn]))
    return _svg(parts, f"{y_label} over {x_label}")


def bar_chart(names: Sequence[str], values: Sequence[float], unit: str, *, marked: Sequence[int] = ()) -> Fragment:
    """Horizontal bars with their values, the `marked` ones in another colour; nothing without bars."""
    if not names:
        return Fragment("")
    step, left = 22, 150
    height = step * len(names) + 8
    largest = max([value for value in values if math.isfinite(value)] + [1e-12])
    parts = []
    for index, (name, value) in enumerate(zip(names, values, strict=True)):
        y = 4 + index * step
        width = max(0.0, value / largest) * (WIDTH - left - 80) if math.isfinite(value) else 0.0
        color = "var(--s2)" if index in marked else "var(--s1)"
        shown = name if len(name) <= 22 else "…" + name[-21:]
        parts.append(
            f'<text x="{left - 8}" y="{y + 14}" text-anchor="end" class="name">{text(shown)}</text>'
            f'<rect x="{left}" y="{y + 3}" width="{width:.1f}" height="{step - 7}" rx="2" fill="{color}"/>'
            f'<text x="{left + width + 6:.1f}" y="{y + 14}">{text(f"{number(value)} {unit}".strip())}</text>'
        )
    return _svg(parts, "bars", height)


def number(value: float) -> str:
    """A number as people write it: three significant digits, k and M for large ones."""
    if not math.isfinite(value):
        return "-"
    size = abs(value)
    for limit, unit in ((1e6, "M"), (1e4, "k")):
        if size >= limit:
            return f"{value / {'M': 1e6, 'k': 1e3}[unit]:.3g}{unit}"
    return f"{value:.0f}" if size >= 100 or value == round(value) else f"{value:.3g}"


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers that cover low .. high, about `count` of them."""
    if not high > low:
        margin = 0.5 * max(abs(low), 1.0)
        low, high = low - margin, high + margin
    step = nice_length((high - low) / count)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(index * step, 12) for index in range(first, last + 1)]


def nice_length(length: float) -> float:
    """The 1, 2 or 5 times a power of ten that is nearest to a length, from above."""
    power = 10.0 ** math.floor(math.log10(length))
    return next(power * part for part in (1, 2, 5, 10) if power * part >= length * (1 - 1e-9))


def raster_points(
    points: Float[np.ndarray, "P 2"],
    colors: UInt8[np.ndarray, "P 3"],
    box: tuple[float, float, float, float],
    size: int,
) -> Fragment:
    """Points as a translucent PNG over the box (x0, y0, x1, y1), y upwards: any number of them in few bytes."""
    from PIL import Image

    x0, y0, x1, y1 = box
    width, height = size, max(1, round(size * (y1 - y0) / (x1 - x0)))
    column = np.floor((points[:, 0] - x0) / (x1 - x0) * width)
    line = np.floor((y1 - points[:, 1]) / (y1 - y0) * height)
    inside = (column >= 0) & (column < width) & (line >= 0) & (line < height)
    cell = (line[inside] * width + column[inside]).astype(np.int64)
    count = np.bincount(cell, minlength=width * height)
    sums = [np.bincount(cell, colors[inside, channel], width * height) for channel in range(3)]
    rgb = np.stack(sums, -1) / np.maximum(count, 1)[:, None]
    alpha = np.where(count > 0, np.clip(90 + 40 * np.log2(np.maximum(count, 1)), 0, 230), 0)
    pixels = np.concatenate([rgb, alpha[:, None]], 1).astype(np.uint8).reshape(height, width, 4)
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, "PNG", optimize=True)
    return Fragment(f"data:image/png;base64,{encoded(data.getvalue())}")


def color_bar(low: str, high: str, anchors: np.ndarray = INFERNO) -> Fragment:
    """A colour scale with what its ends mean."""
    stops = "".join(
        f'<rect x="{70 + 8 * index}" y="2" width="8.5" height="12" fill="{css(color)}"/>'
        for index, color in enumerate(scaled_colors(np.linspace(0, 1, 24), anchors))
    )
    return Fragment(
        f'<svg viewBox="0 0 520 17" width="520" height="17" role="img" aria-label="colour scale">{stops}'
        f'<text x="64" y="13" text-anchor="end">{text(low)}</text><text x="268" y="13">{text(high)}</text>'
        "</svg>"
    )


def css(color: np.ndarray) -> str:
    """A uint8 colour for a style sheet."""
    return "#" + "".join(f"{int(value):02x}" for value in color)


def _clean(line: Line) -> np.ndarray:
    data = np.stack([np.asarray(line.x, np.float64), np.asarray(line.y, np.float64)], 1).reshape(-1, 2)
    data = data[np.isfinite(data).all(1)]
    return data[np.unique(np.linspace(0, len(data) - 1, MAX_POINTS).round().astype(int))] if len(data) > 1 else data


def _axis(marks: Sequence[float], start: float, end: float) -> Callable[[float], float]:
    """The map from numbers between the first and last tick to pixels."""
    low, high = marks[0], marks[-1]
    return lambda value: start + (value - low) / (high - low) * (end - start)


def _frame(
    x_ticks: Sequence[float],
    y_ticks: Sequence[float],
    to_x: Callable[[float], float],
    to_y: Callable[[float], float],
    x_label: str,
    y_label: str,
) -> str:
    parts = []
    for value in y_ticks:
        y = to_y(value)
        parts.append(f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{number(value)}</text>')
    for value in x_ticks:
        x = to_x(value)
        parts.append(f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{number(value)}</text>')
    middle = (TOP + HEIGHT - BOTTOM) / 2
    parts.append(f'<text x="{(LEFT + WIDTH) / 2:.0f}" y="{HEIGHT - 6}" text-anchor="middle">{text(x_label)}</text>')
    parts.append(
        f'<text x="14" y="{middle:.0f}" text-anchor="middle" transform="rotate(-90 14 {middle:.0f})">'
        f"{text(y_label)}</text>"
    )
    return "".join(parts)


def _band(line: Line, to_x: Callable[[float], float], to_y: Callable[[float], float], color: str) -> str:
    """The shaded space between a line's bounds."""
    if not len(line.low) or not len(line.high):
        return ""
    above, below = _clean(Line("", line.x, line.high)), _clean(Line("", line.x, line.low))
    path = " ".join(f"{to_x(x):.1f},{to_y(y):.1f}" for x, y in np.concatenate([above, below[::-1]]))
    return f'<polygon points="{path}" fill="{color}" fill-opacity="0.16"/>'


def _legend(lines: Sequence[Line]) -> str:
    parts, x = [], LEFT + 8.0
    for index, line in enumerate(lines):
        color = f"var({COLORS[index % len(COLORS)]})"
        dash = ' stroke-dasharray="5 4"' if line.dashed else ""
        parts.append(
            f'<line x1="{x:.0f}" x2="{x + 18:.0f}" y1="11" y2="11" '
            f'stroke="{color}" stroke-width="2.4"{dash}/>'
            f'<text class="name" x="{x + 23:.0f}" y="15">{text(line.name)}</text>'
        )
        x += 38 + 6.6 * len(line.name)
    return "".join(parts)


def _svg(parts: Sequence[str], label: str, height: int = HEIGHT) -> Fragment:
    return Fragment(
        f'<svg viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" role="img" aria-label="{text(label)}">'
        + "".join(parts) + "</svg>"
    )  # fmt: skip
