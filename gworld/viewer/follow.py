"""A run that can be watched: what it tells its viewers, what they may ask of it, over two small files in its folder.

`live.json` says what the run does now; `wish.json` holds what a viewer asked for last. Viewers are other processes:
one that stalls or dies stops nothing, for a wish that nobody renews is forgotten.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from gworld.errors import GWorldError
from gworld.files import read_json

LIVE, WISH = "live.json", "wish.json"
LOOKED_EVERY = 0.05
"""Seconds between two looks for a wish."""
TOLD_EVERY = 0.5
"""Seconds between two words of a run."""
FORGOTTEN = 10.0
"""Seconds after which a wish that was not renewed no longer holds."""
SAVED_EVERY = 20.0
"""Seconds between the checkpoints of a watched fit: what its viewers see."""


@dataclass(frozen=True)
class Live:
    """What a run says: its stage, the share done 0..1, whether it rests, the clock (Unix seconds), whether it ended."""

    stage: str = "waiting for the run to begin"
    share: float = 0.0
    resting: bool = False
    time: float = 0.0
    ended: bool = False


def read_live(run: Path) -> Live:
    """What a run said last."""
    data = _read(run / LIVE)
    kinds = {"stage": str, "share": float, "resting": bool, "time": float, "ended": bool}
    return Live(**{name: data[name] for name, kind in kinds.items() if isinstance(data.get(name), kind)})


def write_wish(run: Path, wish: str, number: int) -> None:
    """Ask a run to `pause`, `go` on or take a `step`; a new `number` makes it a new wish, the same one renews it."""
    _write(run / WISH, {"wish": wish, "number": number, "time": time.time()})


class Watched:
    """The run's side: tells where it is, and rests between two steps while a viewer asks for it.

    Inside the block a viewer of the folder is open. `tell` is called with every progress, `between` between any two
    steps where work can rest at once, `rest` where it can.
    """

    def __init__(self, run: Path, *, command: tuple[str, ...] = ()) -> None:
        self.run, self._stage, self._told = run, Live(), 0.0
        self._command = command or (sys.executable, "-m", "gworld", "view", str(run), "--follow")
        self._viewer: subprocess.Popen[bytes] | None = None
        self._looked = 0.0
        self._done = 0  # the number of the last wish for a step that was granted
        self._stepping = False  # from then until the next report

    def __enter__(self) -> Watched:
        self.run.mkdir(parents=True, exist_ok=True)
        (self.run / WISH).unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # a run goes on unwatched
            self._viewer = subprocess.Popen(self._command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._say(Live(self._stage.stage, self._stage.share, ended=True))
        if self._viewer is not None and self._viewer.poll() is None:
            self._viewer.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._viewer.wait(timeout=10)

    def tell(self, stage: str, share: float) -> None:
        """Say where the run is; a step that was granted ends here."""
        now, self._stepping = time.monotonic(), False
        self._stage = Live(stage, min(max(float(share), 0.0), 1.0))
        if now - self._told >= TOLD_EVERY or share >= 1:
            self._told = now
            self._say(self._stage)

    def between(self, save: Callable[[], object], stopped: Sequence[object]) -> float:
        """Rest where a viewer asks for it, once the work has saved itself; the seconds that this took.

        To be called between any two steps: it looks for a wish `LOOKED_EVERY` seconds after the last time. An entry in
        `stopped` ends the rest.
        """
        now = time.monotonic()
        if self._stepping or now - self._looked < LOOKED_EVERY or not self._asked():
            return 0.0
        save()
        self.rest(stopped)
        self._looked = time.monotonic()
        return self._looked - now

    def rest(self, stopped: Sequence[object] = ()) -> None:
        """Wait as long as a viewer asks for it, and nothing is in `stopped`."""
        while not stopped and self._asked():
            self._say(Live(self._stage.stage, self._stage.share, resting=True))
            time.sleep(0.2)
        self._say(self._stage)

    def _asked(self) -> bool:
        """Whether a viewer wishes for a rest now: paused, or stepping and the step is done."""
        self._looked = time.monotonic()
        data = _read(self.run / WISH)
        wish, number, at = data.get("wish"), data.get("number"), data.get("time")
        if wish not in ("pause", "step") or not isinstance(number, int) or not isinstance(at, float):
            return False
        if time.time() - at > FORGOTTEN or (self._viewer is not None and self._viewer.poll() is not None):
            return False
        if wish == "step" and number > self._done:
            self._done, self._stepping = number, True
            return False
        return True

    def _say(self, live: Live) -> None:
        with contextlib.suppress(OSError):  # watching is no reason to fail
            _write(self.run / LIVE, {**asdict(live), "time": time.time()})


@contextlib.contextmanager
def resting_between_steps(watched: Watched) -> Iterator[None]:
    """Inside, every optimiser of torch rests after any of its steps where a viewer asks for it."""
    from torch.optim.optimizer import register_optimizer_step_post_hook

    def look(*step: object) -> None:
        watched.between(lambda: None, ())

    handle = register_optimizer_step_post_hook(look)
    try:
        yield
    finally:
        handle.remove()


def _read(path: Path) -> dict[str, Any]:
    """A small JSON object; empty where there is none."""
    try:
        data = read_json(path, 1 << 16)
    except (GWorldError, OSError):
        return {}
    return data if isinstance(data, dict) else {}


def _write(path: Path, value: dict[str, Any]) -> None:
    """Replace a small file at once; it need not outlive a power cut, so nothing waits for the disk."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    temporary.write_text(json.dumps(value), encoding="utf-8")
    temporary.replace(path)
