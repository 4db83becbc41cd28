"""A page that plays a rollout without a server: one HTML file with the viewer, the splats and the link poses in it."""

from __future__ import annotations

import contextlib
import io
import secrets
from pathlib import Path

from gworld.errors import UsageError
from gworld.files import atomic_write, refuse_existing
from gworld.scene.rollout import Rollout, poses_at
from gworld.scene.world import World
from gworld.viewer.gate import open_gate, open_server
from gworld.viewer.player import fit_rollout
from gworld.viewer.stage import Stage

MAX_FRAMES = 20_000


def export_page(
    world: World,
    path: str | Path,
    rollout: Rollout | None = None,
    *,
    fps: float = 30.0,
    splats: int = 300_000,
    overwrite: bool = False,
) -> int:
    """Write a world, and how it moves, as a page to open from disk; returns the number of its frames.

    A splat takes 32 bytes before compression, a moved link about 60 per frame. Raises `UsageError` for a file that
    exists and for more than `MAX_FRAMES` frames.
    """
    target = Path(path)
    if target.suffix.lower() not in (".html", ".htm"):
        raise UsageError(f"`{target}` is no .html file; a page is written.")
    if not 0 < fps <= 120:
        raise UsageError(f"{fps} frames per second were asked for; above 0 to 120 are possible.")
    refuse_existing(target, overwrite=overwrite)
    moves = None if rollout is None else fit_rollout(rollout, world)
    seconds = 0.0 if moves is None else float(moves.times[-1] - moves.times[0])
    count = 1 + int(seconds * fps)
    if count > MAX_FRAMES:
        raise UsageError(f"{seconds:.0f} s at {fps:g} frames per second are {count}; {MAX_FRAMES} fit into a page.")
    # viser serialises through a running server; a token that nobody knows keeps others out of it meanwhile.
    gate, listener = open_gate("127.0.0.1", 0, 1, secrets.token_urlsafe(24))
    server = open_server(gate, listener, target.stem)
    try:
        stage = Stage(server, world, splats)
        tape = server.get_scene_serializer()
        start = 0.0 if moves is None else float(moves.times[0])
        for frame in range(count):
            if moves is not None:
                stage.show(poses_at(moves, start + frame / fps).numpy())
            tape.insert_sleep(1 / fps)
        page = tape.as_html()
    finally:
        with contextlib.redirect_stdout(io.StringIO()):
            server.stop()
    with atomic_write(target) as stream:
        stream.write(page.encode())
    return count
