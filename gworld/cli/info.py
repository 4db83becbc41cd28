"""`gworld info`: what is in a file, in a few lines or as JSON, with a picture when asked for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from gworld.cli.options import print_json, say
from gworld.formats.describe import describe
from gworld.formats.table import Axes

EPISODES = "index.jsonl"
"""What a folder of episodes holds; known here, for asking `data/store.py` would load torch for every file."""


@dataclass(frozen=True)
class Options:
    """What to describe and how."""

    path: Annotated[Path, tyro.conf.Positional]
    """A splat file (ply, compressed.ply, spz, sog, splat, glb), a world, a COLMAP folder, transforms.json, episodes."""
    source_axes: Axes | None = None
    """How the file's numbers are meant for the thumbnail, where the file does not say: RDF, RUB or RFU."""
    thumbnail: Path | None = None
    """Also render a picture of it to this PNG."""
    size: int = 480
    """Longer side of the thumbnail in pixels."""
    json: bool = False
    """Print one JSON object on stdout instead of lines for people."""


def run(options: Options) -> None:
    """Describe a file; raises `InputError` when it cannot be read."""
    facts = _describe(options)
    if options.json:
        print_json(facts)
    else:
        for line in human_lines(facts):
            say(line)


def _describe(options: Options) -> dict[str, Any]:
    if (options.path / EPISODES).is_file():
        from gworld.data.describe import describe_episodes, draw_contact_sheet
        from gworld.data.store import open_episodes

        facts = describe_episodes(options.path)
        if options.thumbnail is not None:
            draw_contact_sheet(open_episodes(options.path), options.thumbnail)
            facts["thumbnail"] = str(options.thumbnail)
        return facts
    facts = describe(options.path)
    if options.thumbnail is not None:
        from gworld.cli.thumbnail import draw_thumbnail

        draw_thumbnail(options.path, options.thumbnail, options.size, options.source_axes)
        facts["thumbnail"] = str(options.thumbnail)
    return facts


def human_lines(facts: dict[str, Any]) -> list[str]:
    """The facts as aligned lines."""
    if facts["format"] == "gworld episodes":
        from gworld.data.describe import episode_rows

        rows = episode_rows(facts)
    else:
        rows = _view_rows(facts) if "views" in facts else _splat_rows(facts)
    if "thumbnail" in facts:
        rows.append(("thumbnail", facts["thumbnail"]))
    width = max(len(name) for name, _ in rows)
    return [facts["path"], *(f"  {name:<{width}}  {value}" for name, value in rows)]


def _splat_rows(facts: dict[str, Any]) -> list[tuple[str, str]]:
    rows = [
        ("format", f"{facts['format']}, {megabytes(facts['file_bytes'])} on disk"),
        ("gaussians", f"{facts['count']:,}"),
        ("memory", f"{megabytes(facts['memory_bytes'])} as float32"),
        ("sh degree", str(facts["sh_degree"])),
        ("axes", f"{facts['axes']}, {'metric' if facts['metric'] else 'unit unknown'}"),
        ("links", ", ".join(f"{name} {count:,}" for name, count in facts["links"].items())),
    ]
    if facts["count"]:
        rows += [
            ("bounds", _box(facts["bounds"])),
            ("98 % within", _box(facts["bounds_98_percent"])),
            ("largest scale", _spread(facts["largest_scale"])),
            ("opacity", f"{_spread(facts['opacity'])}; {facts['nearly_transparent']:,} below 1/255"),
        ]
    return rows


def _view_rows(facts: dict[str, Any]) -> list[tuple[str, str]]:
    return [
        ("format", facts["format"]),
        ("views", f"{facts['views']:,}, {facts['images_found']:,} with their image file"),
        ("sizes", ", ".join(facts["sizes"])),
        ("camera models", ", ".join(facts["camera_models"])),
        ("points", f"{facts['points']:,}"),
        ("unit", "metres" if facts["metric"] else "unknown"),
    ]


def _box(box: dict[str, list[float]]) -> str:
    return f"({', '.join(f'{v:g}' for v in box['low'])}) to ({', '.join(f'{v:g}' for v in box['high'])})"


def _spread(values: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:g}" for name, value in values.items())


def megabytes(count: int) -> str:
    """`12.3 MB`, in units of 10^6 bytes."""
    return f"{count / 1e6:.1f} MB"
