"""The loop of a fit: steps, density control, scores, previews, checkpoints; stopped and taken up at any time."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from gworld.reconstruct.classic import control_classic, reset_opacity
from gworld.reconstruct.density import control_mcmc
from gworld.reconstruct.pictures import Album
from gworld.reconstruct.preview import write_preview
from gworld.reconstruct.schedule import GROWN, SETTLED, Plan, count_at, degree_at
from gworld.reconstruct.score import score_views
from gworld.reconstruct.state import State, gaussians_of, save_state
from gworld.reconstruct.step import Setting, level_of, random_source, take_step
from gworld.reconstruct.visibility import in_the_way
from gworld.runlog import RunLog, progress_line

Progress = Callable[[str, float], None]
Rest = Callable[[Callable[[], None], Sequence[int]], float]
"""May hold the loop between two steps, given what saves it and what ends a rest; returns the seconds that it took."""
REPORT_EVERY = 100
UNSEEN_EPOCHS = 2
"""A Gaussian that touched no picture through so many epochs is put to use elsewhere."""
CLEARED = (0.3, 0.6, 0.8)
"""Progress at which Gaussians that stand in a camera's way are put to use elsewhere (mcmc)."""
RESETS = (0.12, 0.24, 0.36)
"""Progress at which classic density control resets opacities."""


@dataclass
class Loop:
    """A run in progress: `state` changes in place; `origin` is when, by the clock, the whole run would have begun."""

    setting: Setting
    unseen: Album
    state: State
    run: Path
    log: RunLog
    plan: Plan
    limit: int
    facts: dict[str, Any]
    origin: float
    report: Progress | None
    rest: Rest | None = None
    saved: float = field(default_factory=time.monotonic)
    mark: tuple[int, float] = (0, 0.0)

    def elapsed(self) -> float:
        """Seconds of this run so far, those of earlier processes included."""
        return time.monotonic() - self.origin


def run_on(loop: Loop) -> None:
    """Take steps until the plan is done; Ctrl+C is heard between two steps, and what was reached is kept."""
    state, plan = loop.state, loop.plan
    if state.step == 0:
        _save(loop)  # of what an earlier run left in this folder, nothing may be resumed
    loop.mark = (state.step, time.monotonic())
    with _patient() as stopped, _yielding_cores(loop.setting):
        while True:
            if loop.rest is not None:
                seconds = loop.rest(lambda: _save(loop), stopped)
                loop.origin += seconds  # neither budget nor pace know of a rest
                loop.mark = (loop.mark[0], loop.mark[1] + seconds)
            taken = state.step - loop.mark[0]
            pace = (time.monotonic() - loop.mark[1]) / max(taken, 1)
            plan.decide(state.step, loop.elapsed(), pace)
            progress = plan.progress(state.step)
            if progress >= 1 or stopped:
                break
            if taken >= REPORT_EVERY or plan.segments[-1].step == state.step:
                loop.mark = (state.step, time.monotonic())
            _widen_harmonics(loop.setting, state, progress)
            loss = take_step(loop.setting, state, progress)
            if state.step % loop.setting.options.refine_every == 0 and progress < SETTLED:
                _control_density(loop, progress)
            state.seconds = loop.elapsed()
            _tell(loop, loss, progress, plan.progress(state.step))
            if time.monotonic() - loop.saved > loop.setting.options.save_every:
                _save(loop)
                _preview(loop)
    _save(loop)
    _preview(loop)
    if stopped:
        raise KeyboardInterrupt


def _widen_harmonics(setting: Setting, state: State, progress: float) -> None:
    """Give the colours more harmonics, zero at first, as the degree grows."""
    wanted = (degree_at(progress, setting.options.sh_degree) + 1) ** 2
    have = state.params["sh"].shape[1]
    if wanted <= have:
        return
    columns = {"params": state.params, "first": state.adam.first, "second": state.adam.second}
    for table in columns.values():
        table["sh"] = torch.cat([table["sh"], table["sh"].new_zeros(len(table["sh"]), wanted - have, 3)], dim=1)


def _control_density(loop: Loop, progress: float) -> None:
    setting, state = loop.setting, loop.state
    source = random_source(setting.options.seed, 4, state.step, state.params["means"].device)
    target = count_at(progress, state.first, loop.limit)
    if setting.options.density == "mcmc":
        whole_epochs = state.step - state.since >= UNSEEN_EPOCHS * len(setting.album)
        unseen = (state.hits == 0) & whole_epochs
        if state.resets < len(CLEARED) and progress >= CLEARED[state.resets]:
            unseen |= in_the_way(setting.album, state.params["means"], setting.drawing.near)
            state.resets += 1
        grown = control_mcmc(state.params, state.adam, target, unseen, source)
        state.params, state.adam = grown.params, grown.adam
        state.hits[grown.moved] = 1  # what is new is innocent until the next count
        state.hits = torch.cat([state.hits, state.hits.new_ones(grown.added)])
        if whole_epochs:
            _count_anew(state)
    elif progress < GROWN:
        pull = state.pull / state.hits.clamp_min(1)
        grown = control_classic(state.params, state.adam, pull, loop.limit, setting.width, source)
        state.params, state.adam = grown.params, grown.adam
        if state.resets < len(RESETS) and progress >= RESETS[state.resets]:
            reset_opacity(state.params, state.adam)
            state.resets += 1
        _count_anew(state)


def _count_anew(state: State) -> None:
    count, device = len(state.params["means"]), state.params["means"].device
    state.pull = torch.zeros(count, device=device)
    state.hits = torch.zeros(count, dtype=torch.int32, device=device)
    state.since = state.step


def _tell(loop: Loop, loss: float, before: float, after: float) -> None:
    """Scores at even shares of the run, a row of metrics and a word to whoever waits."""
    state, every = loop.state, loop.setting.options.score_every
    scoring = every > 0 and int(before * every) != int(after * every) and len(loop.unseen) > 0
    if not scoring and state.step % REPORT_EVERY:
        return
    row = {
        "step": float(state.step),
        "seconds": state.seconds,
        "loss": loss,
        "gaussians": float(len(state.params["means"])),
        "level": float(level_of(loop.setting, state, before)),
    }
    if scoring:
        background = state.appearance.get("background")
        score = score_views(
            loop.setting, loop.unseen, gaussians_of(state.params), None if background is None else background[0]
        )
        if score is not None:
            row |= {"psnr": score.psnr, "ssim": score.ssim, "psnr_half": score.psnr_half, "ssim_half": score.ssim_half}
            state.history.append(row)
    loop.log.metrics(state.step, **{name: value for name, value in row.items() if name != "step"})
    if loop.report is not None:
        left = loop.plan.at(state.step)
        last = next((r["psnr"] for r in reversed(state.history) if "psnr" in r), None)
        text = progress_line("fit", state.step, left.step + left.left, max(state.seconds, 1e-6))
        loop.report(text + ("" if last is None else f", held out {last:.2f} dB"), min(after, 1.0))


def _save(loop: Loop) -> None:
    loop.state.seconds = loop.elapsed()
    save_state(loop.run, loop.state, loop.facts)
    loop.saved = time.monotonic()


def _preview(loop: Loop) -> None:
    background = loop.state.appearance.get("background")
    album = loop.unseen if len(loop.unseen) else loop.setting.album
    path = loop.run / "previews" / f"step-{loop.state.step:06d}.png"
    write_preview(
        path, loop.setting, gaussians_of(loop.state.params), album, None if background is None else background[0]
    )


@contextlib.contextmanager
def _yielding_cores(setting: Setting) -> Iterator[None]:
    """Hold torch to one thread while the native renderer's threads do the work: its own spin on the same cores."""
    before = torch.get_num_threads()
    if setting.album.levels[0][0].rgb.device.type == "cpu" and setting.options.backend != "reference":
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def _patient() -> Iterator[list[int]]:
    """Hear Ctrl+C as an entry in a list; a second one stops at once. Other threads than the main one cannot listen."""
    heard: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield heard
        return

    def hear(number: int, frame: FrameType | None) -> None:
        if heard:
            raise KeyboardInterrupt
        heard.append(number)

    before = signal.signal(signal.SIGINT, hear)
    try:
        yield heard
    finally:
        signal.signal(signal.SIGINT, before)
