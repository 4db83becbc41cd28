"""What is in an episode store: counts and quality in words, and a contact sheet with plots of states and actions."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from gworld.data.clips import read_frames
from gworld.data.store import EpisodeSet, open_episodes, read_episode
from gworld.errors import InputError, UsageError
from gworld.files import atomic_write
from gworld.scene.episode import Episode, Video

THUMB, GAP, LINE, TITLE = 160, 4, 90, 20
FRAMES = 8
MAX_LINES = 16
INK, PAPER, FRAME = (40, 40, 44), (255, 255, 255), (205, 208, 214)


def describe_episodes(path: str | Path) -> dict[str, Any]:
    """Facts about a store as plain values, from its index and its first episode.

    Raises `InputError` when the index or the first episode is damaged.
    """
    episodes = open_episodes(path)
    entries = episodes.entries
    steps = [entry.steps for entry in entries]
    facts: dict[str, Any] = {
        "path": str(path),
        "format": "gworld episodes",
        "episodes": len(entries),
        "steps": sum(steps),
        "seconds": round(sum(entry.seconds for entry in entries), 3),
        "behaviours": dict(Counter(entry.behaviour for entry in entries)),
        "successes": sum(entry.success is True for entry in entries),
        "failures": sum(entry.success is False for entry in entries),
    }
    if entries:
        first = read_episode(episodes, 0)
        facts |= {
            "steps_each": {"min": min(steps), "median": float(np.median(steps)), "max": max(steps)},
            "agents": {
                agent: list(first.names.get(f"actions/{agent}", ())) or entries[0].agents[agent]
                for agent in first.actions
            },
            "joints": {agent: values.shape[1] for agent, values in first.joints.items()},
            "signals": {name: values.shape[1] for name, values in first.signals.items()},
            "links": len(first.link_names),
            "videos": dict(entries[0].frames),
            "calibrated": first.cameras is not None,
            "unknown_actions": _unknown(first),
            "source": first.source,
            "licence": first.licence,
            "task": first.task,
        }
    return facts


def episode_rows(facts: dict[str, Any]) -> list[tuple[str, str]]:
    """The facts as names and texts for people."""
    rows = [
        ("format", facts["format"]),
        ("episodes", f"{facts['episodes']:,}, {facts['steps']:,} steps, {facts['seconds']:.1f} s"),
        ("behaviour", ", ".join(f"{name} {count:,}" for name, count in facts["behaviours"].items()) or "none"),
    ]
    if facts["successes"] or facts["failures"]:
        rows.append(("outcome", f"{facts['successes']:,} succeeded, {facts['failures']:,} failed"))
    if not facts["episodes"]:
        return rows
    each = facts["steps_each"]
    agents = {name: len(cols) if isinstance(cols, list) else cols for name, cols in facts["agents"].items()}
    rows += [
        ("steps each", f"{each['min']} to {each['max']}, median {each['median']:g}"),
        ("agents", ", ".join(f"{name} ({count} actions)" for name, count in agents.items()) or "none"),
        ("joints", ", ".join(f"{name} {count}" for name, count in facts["joints"].items()) or "none"),
        ("signals", ", ".join(f"{name} {count}" for name, count in facts["signals"].items()) or "none"),
        ("videos", ", ".join(facts["videos"]) + (", calibrated" if facts["calibrated"] else ", not calibrated")),
        ("unknown", f"{100 * facts['unknown_actions']:.1f} % of the first episode's actions are NaN"),
        ("source", facts["source"] + (f" ({facts['licence']})" if facts["licence"] else ", licence not stated")),
    ]
    return rows


def _unknown(episode: Episode) -> float:
    values = [table for table in episode.actions.values() if table.numel()]
    total = sum(table.numel() for table in values)
    return sum(int(table.isnan().sum()) for table in values) / total if total else 0.0


def draw_contact_sheet(episodes: EpisodeSet, target: Path, rows: int = 4) -> int:
    """Write a PNG of up to `rows` episodes, evenly chosen: frames of each camera, states and actions over the same
    time; return how many are on it. Raises `InputError` when the store is empty."""
    if target.suffix.lower() != ".png":
        raise UsageError(f"`{target}` must end in .png.")
    if len(episodes) == 0:
        raise InputError(f"`{episodes.folder}` holds no finished episode; there is nothing to draw.")
    chosen = sorted({round(p) for p in np.linspace(0, len(episodes) - 1, min(rows, len(episodes)))})
    blocks = [_block(read_episode(episodes, position), episodes.entries[position].episode) for position in chosen]
    width = max(block.width for block in blocks)
    sheet = Image.new("RGB", (width, sum(block.height + 2 * GAP for block in blocks)), PAPER)
    top = 0
    for block in blocks:
        sheet.paste(block, (0, top))
        top += block.height + 2 * GAP
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG")
    with atomic_write(target) as stream:
        stream.write(buffer.getvalue())
    return len(blocks)


def _block(episode: Episode, number: int) -> Image.Image:
    """One episode: a title, a strip of frames per camera, a plot per table."""
    begin, end = float(episode.times[0]), float(episode.times[-1])
    width = FRAMES * THUMB + (FRAMES - 1) * GAP
    strips = [_strip(video, begin, end) for video in episode.videos]
    plots = [
        (f"{kind} {name}", table.double().numpy())
        for kind in ("actions", "joints")
        for name, table in getattr(episode, kind).items()
    ]
    if not plots:
        plots = [(f"signals {name}", table.double().numpy()) for name, table in episode.signals.items()]
    height = TITLE + sum(strip.height + GAP for strip in strips) + len(plots) * (LINE + GAP)
    block = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(block)
    text = f"episode {number}: {len(episode)} steps, {end - begin:.1f} s, {episode.behaviour}. {episode.task}"
    draw.text((2, 2), text[:170], fill=INK, font=ImageFont.load_default(13))
    top = TITLE
    for strip in strips:
        block.paste(strip, (0, top))
        top += strip.height + GAP
    for label, table in plots:
        _plot(draw, (0, top, width - 1, top + LINE), episode.times.numpy() - begin, table, label)
        top += LINE + GAP
    return block


def _strip(video: Video, begin: float, end: float) -> Image.Image:
    """Eight frames, each standing over its time in the plots below."""
    times = video.times.numpy()
    places = begin + (np.arange(FRAMES) + 0.5) / FRAMES * max(end - begin, 1e-9)
    wanted = np.clip(np.searchsorted(times, places, side="right") - 1, 0, len(times) - 1)
    unique = np.unique(wanted)
    frames = dict(zip(unique.tolist(), read_frames(video.path, (video.first + unique).tolist(), THUMB), strict=True))
    pictures = [Image.fromarray(frames[index]).convert("RGB") for index in wanted.tolist()]
    pictures = [picture.resize((THUMB, max(1, round(picture.height * THUMB / picture.width)))) for picture in pictures]
    strip = Image.new("RGB", (FRAMES * THUMB + (FRAMES - 1) * GAP, pictures[0].height), PAPER)
    draw = ImageDraw.Draw(strip)
    for index, picture in enumerate(pictures):
        strip.paste(picture, (index * (THUMB + GAP), 0))
        label = (
            f"{video.name}  {times[wanted[index]] - begin:.1f} s"
            if index == 0
            else f"{times[wanted[index]] - begin:.1f} s"
        )
        box = draw.textbbox((index * (THUMB + GAP) + 3, 2), label, font=ImageFont.load_default(11))
        draw.rectangle((box[0] - 3, 0, box[2] + 3, box[3] + 2), fill=(0, 0, 0))
        draw.text((index * (THUMB + GAP) + 3, 2), label, fill=PAPER, font=ImageFont.load_default(11))
    return strip


def _plot(
    draw: ImageDraw.ImageDraw, box: tuple[int, int, int, int], times: np.ndarray, table: np.ndarray, label: str
) -> None:
    """Columns as lines in one box with one scale; gaps where values are NaN."""
    left, top, right, bottom = box
    draw.rectangle(box, outline=FRAME)
    columns = [column for column in table.T[:MAX_LINES] if np.isfinite(column).any()]
    low, high = _range(columns)
    span = max(float(times[-1]), 1e-9)
    x = left + times / span * (right - left)
    for index, column in enumerate(columns):
        y = bottom - 4 - (column - low) / (high - low) * (bottom - top - 22)
        for begin, end in _runs(np.isfinite(column)):
            points: Sequence[tuple[float, float]] = list(zip(x[begin:end].tolist(), y[begin:end].tolist(), strict=True))
            if len(points) > 1:
                draw.line(points, fill=_colour(index), width=1)
    hidden = f", {table.shape[1] - MAX_LINES} more not drawn" if table.shape[1] > MAX_LINES else ""
    unknown = 100.0 * float(np.isnan(table).mean()) if table.size else 0.0
    text = f"{label}: {table.shape[1]} columns{hidden}, {low:.3g} to {high:.3g}, {unknown:.1f} % unknown"
    draw.text((left + 4, top + 2), text, fill=INK, font=ImageFont.load_default(11))


def _range(columns: Sequence[np.ndarray]) -> tuple[float, float]:
    low = min((float(np.nanmin(column)) for column in columns), default=0.0)
    high = max((float(np.nanmax(column)) for column in columns), default=1.0)
    return (low, high) if high - low > 1e-9 else (low - 0.5, high + 0.5)


def _runs(known: np.ndarray) -> list[tuple[int, int]]:
    """Begin and end of each stretch of True."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], known.astype(np.int8), [0]])))
    return list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))


def _colour(index: int) -> tuple[int, int, int]:
    """Well-separated dark colours by golden-angle hue."""
    hue = (index * 0.6180339887498949) % 1.0
    wheel = 0.5 + 0.5 * np.cos(2 * np.pi * (hue - np.array([0.0, 1 / 3, 2 / 3])))
    red, green, blue = np.round(30 + 170 * wheel).astype(int).tolist()
    return red, green, blue
