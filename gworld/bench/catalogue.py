"""The benches there are: one file each, found by name, yielding rows."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from gworld.bench.expected import beside_expected, expected_scores
from gworld.bench.rows import Row
from gworld.errors import UsageError

BENCHES = {
    "bias": "what sequences mean to a model: one state, one answer; and the force law that it found in orbits",
    "diversity": "generated beside recorded episodes: what both visit, and what a model learns from them",
    "droid": "a real arm's hand under recorded commands, each episode foretold from the others",
    "fit": "Gaussians fitted to photos: held-out quality against time and count, beside other ways",
    "follow": "two agents push or grasp objects: any actions followed, beside baselines and the true simulator",
    "agents": "three and four agents, by a network that was trained on two",
    "attrib": "one agent's actions exchanged: what changes lies where it could act",
    "inverse": "what both agents did, from two frames, beside the mean action and kinematics",
    "uncertain": "90 % intervals of predictions: how many held-out errors lie within",
    "formats": "read, write and convert a million Gaussians, beside numpy and splat-transform",
    "render_gpu": "the CUDA backends on a GPU: agreement, speed and memory beside gsplat",
    "attr": "appearance edits change no motion; a reshaped object moves alike until it touches",
    "perm": "the order in which bodies are listed changes nothing",
    "speed": "milliseconds per step of the dynamics, long runs, many worlds",
    "phys_combo": "three to six balls between walls, by a network that was trained on one and two",
    "phys": "laws of motion outside the training range, from pixels to pixels, beside a plain network",
    "pose": "camera poses of a generated room against exact truth, with actors masked or found, and bland",
    "refine": "refined film beside raw renders, filters and a plain network, on a scene learned and not learned",
    "render": "agreement of the backends and time per frame, beside every renderer that is here",
    "realpush": "a recorded push of a real robot, each push foretold from the others; pictures; pushes never made",
    "silhouette": "robots as Gaussians against MuJoCo's pictures of them: silhouettes and links",
    "rollout": "recorded scenes, reconstructed from their films, simulated: pictures up to 192 steps on",
    "recall": "look away and return: how much the view is the same again",
    "offview": "things that one agent moves while nobody looks are where it put them",
    "plan": "two agents push by planning in the model, acted out in the true simulator",
    "rank": "policies judged in the model and in the true simulator from the same starts",
    "locality": "other actions of one agent change no pixel that shows nothing it reached",
    "generate": "episodes an hour by one worker and two, here and by Ray, killed ones included",
    "simulate": "steps and frames per second for 1, 16 and 64 worlds, plans, and long runs",
    "track": "poses and joints from video: a generated film with truth, push-T judged by a third camera",
    "viewer": "the viewer under load: guests, memory, malformed messages, strangers, latency, cost to a fit",
}


@dataclass(frozen=True)
class BenchInput:
    """What a bench may use: real recordings (`data`), a peer program's folder, its seed, whether to be quick, and a
    finished track of its recording (an .npz)."""

    data: Path | None = None
    peer: Path | None = None
    seed: int = 0
    quick: bool = False
    track: Path | None = None


def run_bench(name: str, given: BenchInput) -> Iterator[Row]:
    """Yield the rows of a bench as they are measured, with a note where one has drifted from what seed 0 should give;
    raises `UsageError` for an unknown name."""
    if name not in BENCHES:
        raise UsageError(f"there is no bench `{name}`; there are {', '.join(BENCHES)}.")
    scores = expected_scores() if given.seed == 0 else {}
    for row in importlib.import_module(f"gworld.bench.{name}").rows(given):
        yield beside_expected(row, name, given.quick, scores)
