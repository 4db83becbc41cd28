"""The viewer: a stage, its panels and the loop that moves things, 30 times a second."""

from __future__ import annotations

import contextlib
import io
import queue
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

from gworld.errors import GWorldError
from gworld.scene.episode import Episode
from gworld.scene.rollout import Rollout
from gworld.scene.world import World
from gworld.viewer.drive_panel import DrivePanel
from gworld.viewer.driver import Driver
from gworld.viewer.drives import Drives
from gworld.viewer.edit_panel import EditPanel
from gworld.viewer.gate import open_gate, open_server
from gworld.viewer.ghost import MODES, Gap, Ghost, gap_between
from gworld.viewer.panels import MotionPanel, PicturePanel, ScenePanel
from gworld.viewer.pixels import Refine, TruePixels
from gworld.viewer.player import Player, fit_rollout
from gworld.viewer.stage import Stage

TICK = 1 / 30
CLOSING = 10.0
"""Seconds that closing waits for the loop's last turn."""
TOLD_EVERY = 0.2
"""Seconds between updates of clocks and figures in the panels."""


@dataclass(frozen=True)
class Subject:
    """What is looked at: a world, recordings of its motion (read when chosen), and a driver where agents can act.

    `episodes` are those that recordings of the same names were made from: their films are shown beside the motion.
    `views` [N] says how many views saw each Gaussian, None where that is not known. `refine` loads what can
    refine pictures.
    """

    world: World
    title: str = "gworld"
    recordings: Mapping[str, Callable[[], Rollout]] = field(default_factory=dict)
    driver: Driver | None = None
    views: Int[np.ndarray, " N"] | None = None
    episodes: Mapping[str, Callable[[], Episode]] = field(default_factory=dict)
    refine: Callable[[], Refine] | None = None


@dataclass(frozen=True)
class ViewOptions:
    """Where the viewer listens and what it may show."""

    host: str = "127.0.0.1"
    """Address to listen on; any other than this machine's own needs a token, which is printed."""
    port: int = 8080
    """Port to listen on, or the next free one."""
    clients: int = 16
    """Browsers that may look in at once."""
    splats: int = 1_000_000
    """Splats sent to a browser; of more, some that are made larger stand for all."""
    keep: Path = Path("driven")
    """Folder for recorded drives, films, camera paths and edited worlds."""
    overwrite: bool = False
    """Save an edited world in place of the one that was opened."""


class Viewer:
    """A viewer that listens from when it is made; `run` moves things until `close`.

    Whatever visitors do is put in a queue and done by the loop, so that stage, player and driver have one caller.
    """

    def __init__(self, subject: Subject, options: ViewOptions = ViewOptions()) -> None:
        self.world, self.options, self.driver = subject.world, options, subject.driver
        self.recordings, self.episodes = dict(subject.recordings), dict(subject.episodes)
        self.player: Player | None = None
        self.ghost: Ghost | None = None
        self.gap: Gap | None = None
        self.ghost_mode = MODES[0]
        self.drives: Drives | None = None
        self.drive: DrivePanel | None = None
        self.motion: MotionPanel | None = None
        self.keeping: list[threading.Thread] = []
        self.edited = False
        self.live, self.message = self.driver is not None and not self.recordings, ""
        self._todo: queue.SimpleQueue[Callable[[], object]] = queue.SimpleQueue()
        self._wake, self._ended = threading.Event(), threading.Event()
        self._turning = threading.RLock()  # held by the loop: nothing is closed under it
        self._told = self._stepped = time.monotonic()
        self.gate, listener = open_gate(options.host, options.port, options.clients)
        self.server = open_server(self.gate, listener, subject.title)
        self.stage = Stage(self.server, self.world, options.splats, subject.views)
        self.pixels = TruePixels(self.stage, self.server, subject.refine)
        if self.driver is not None:
            self.drives = Drives(self, self.driver)
        self._panels()
        self.stage.on_enter(self.stage.enter)
        if self.recordings:
            self.do(lambda: self.open_recording(next(iter(self.recordings))))

    def _panels(self) -> None:
        gui, world = self.server.gui, self.world
        gui.configure_theme(show_logo=False, show_share_button=False, control_width="large")
        count = len(world.gaussians)
        shown = "" if self.stage.shown == count else f", {self.stage.shown:,} of them shown, larger, for all"
        gui.add_markdown(
            f"{count:,} Gaussians on {len(world.links)} link{'s' * (len(world.links) > 1)}{shown}. "
            f"{'Metres.' if world.metric else 'No metric scale.'}"
        )
        tabs = gui.add_tab_group()
        if self.recordings:  # what was asked for comes first
            with tabs.add_tab("Motion"):
                self.motion = MotionPanel(self)
        if self.drives is not None:
            with tabs.add_tab("Drive"):
                self.drive = DrivePanel(self, self.drives)
                self.drive.live.value = self.live
        if self.motion is None:
            with tabs.add_tab("Motion"):
                self.motion = MotionPanel(self)
        with tabs.add_tab("Scene"):
            self.scene = ScenePanel(self)
        with tabs.add_tab("Edit"):
            self.edit = EditPanel(self)
        with tabs.add_tab("Picture"):
            self.picture = PicturePanel(self)

    def do(self, act: Callable[[], object]) -> None:
        """Have something done by the loop, soon."""
        self._todo.put(act)
        self._wake.set()

    def wake(self) -> None:
        """Let the loop look at its inputs now."""
        self._wake.set()

    def run(self, seconds: float | None = None) -> None:
        """Move things until `close`, or for a time."""
        end = None if seconds is None else time.monotonic() + seconds
        with self._turning:
            while not self._ended.is_set() and (end is None or time.monotonic() < end):
                begin = time.monotonic()
                self.tick(begin)
                while (left := begin + TICK - time.monotonic()) > 0 and not self._ended.is_set():
                    if self._wake.wait(left):  # what visitors ask for is done at once
                        self._wake.clear()
                        self._do_all()

    def tick(self, now: float) -> None:
        """Do what was asked, let a tick's time pass, show where things are."""
        self._do_all()
        busy = bool(self.server.get_clients()) or (self.driver is not None and self.driver.recording)
        passed, self._stepped = min(now - self._stepped, 0.2), now
        if self.live and self.drives is not None and busy:
            self.drives.step(passed)
        elif self.player is not None and self.player.playing:
            self.player.advance(passed)
            self._show_player()
        if now - self._told >= TOLD_EVERY:
            self._told = now
            self._refresh()

    def close(self) -> None:
        """End the loop and stop listening; a drive that is being recorded is kept."""
        self._ended.set()
        self._wake.set()
        free = self._turning.acquire(timeout=CLOSING)
        try:
            if self.drives is not None and self.drives.driver.recording:
                self.drives.record()
            for thread in self.keeping:
                thread.join()
            self.pixels.close()
            with contextlib.redirect_stdout(io.StringIO()):  # viser says there that it stopped
                self.server.stop()
        finally:
            if free:
                self._turning.release()

    def show(self, poses: Float[np.ndarray, "L 7"], time: float, player: Player | None = None) -> None:
        """Move everything to where it is `time` seconds after its start, and what it is compared with."""
        self.stage.show(poses)
        if player is None:
            self.stage.doubt(None)
        else:
            self.stage.doubt(player.std, player.top)
        if self.ghost is not None:
            self.ghost.show(time)
            self.gap = gap_between(self.world, poses, self.ghost.poses)

    def _show_player(self) -> None:
        if self.player is not None:
            self.show(self.player.poses(), self.player.time, self.player)

    def add_recording(self, name: str, rollout: Rollout) -> None:
        """Offer one more motion on the timeline."""
        self.recordings[name] = lambda: rollout
        if self.motion is not None:
            self.motion.add(name)
        if self.player is None:
            self.player = Player(fit_rollout(rollout, self.world))

    def open_recording(self, name: str) -> None:
        """Put a recording on the timeline; one that cannot be read leaves a sentence."""
        read = self.recordings.get(name)
        if read is None:
            return
        self.player = Player(fit_rollout(read(), self.world))
        self.run_live(False)
        self._show_player()
        if self.motion is not None and self.motion.film is not None:
            self.motion.film.open(self.episodes[name]() if name in self.episodes else None)

    def compare(self, name: str, mode: str = "") -> None:
        """Show a recording as well, as a ghost or beside; a name that there is none of takes it away."""
        self.ghost_mode = mode if mode in MODES else self.ghost_mode
        if self.ghost is not None:
            self.ghost.close()
        self.ghost = self.gap = None
        read = self.recordings.get(name)
        if read is not None:
            self.ghost = Ghost(self.stage, fit_rollout(read(), self.world), self.ghost_mode)
        if self.motion is not None:
            self.motion.compared(name if read is not None else "")
        if self.live and self.driver is not None:
            self.show(self.driver.poses, self.driver.time)
        else:
            self._show_player()

    def replace_world(self, world: World) -> None:
        """Put an edited world on the stage; it is driven again when it was saved and opened anew."""
        self.compare("")
        self.run_live(False)
        views = self.stage.views if len(world.gaussians) == len(self.world.gaussians) else None
        self.world, self.player, self.edited = world, None, True
        self.stage.update(world, views)
        self.stage.show(self.stage.rest())
        self.pixels.update()

    def play(self) -> None:
        """Play, or pause."""
        if self.player is not None:
            self.player.playing = not self.player.playing
            if self.player.playing and self.player.time >= self.player.seconds:
                self.player.time = 0.0
            self.run_live(False)

    def seek(self, frame: int) -> None:
        """Show one instant of the recording."""
        if self.player is not None:
            self.run_live(False)
            self.player.seek(frame)
            self._show_player()

    def step_frame(self, by: int) -> None:
        """Pause, and go some instants on or back."""
        if self.player is not None:
            self.player.playing = False
            self.seek(self.player.frame + by)

    def run_live(self, wanted: bool) -> None:
        """Step the engine, or leave the world as it is; the timeline pauses."""
        self.live = wanted and self.drives is not None and not self.edited
        if wanted and self.edited:
            self.message = "the world was edited: save it and open it again to drive in it"
        if self.live and self.player is not None:
            self.player.playing = False
        if self.drive is not None:
            self.drive.live.value = self.live

    def _do_all(self) -> None:
        while not self._todo.empty():
            act = self._todo.get()
            try:
                act()
            except GWorldError as error:
                self.message = str(error)

    def _refresh(self) -> None:
        if self.motion is not None:
            self.motion.refresh()
        if self.drive is not None:
            self.drive.refresh(self.live)
        self.scene.refresh()
        self.picture.refresh()
        self.edit.refresh()
