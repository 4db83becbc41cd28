"""Inductive bias: are sequences that lead to one state treated alike, and others not? Which law was found?"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from gworld.bench.bias_lattice import draw_lattice, learn_lattice, learn_moves, read_lattice, read_moves, true_lattice
from gworld.bench.bias_long import long_rows
from gworld.bench.bias_orbits import draw_probe, learn_orbits, learn_places, read_orbits, read_places, true_orbits
from gworld.bench.bias_probe import Scores, probe
from gworld.bench.catalogue import BenchInput
from gworld.bench.rows import Row, at_least
from gworld.data.laws import DT, law_world
from gworld.data.orbits import OrbitOptions, draw_orbits
from gworld.dynamics.network import Dynamics, NetworkConfig
from gworld.dynamics.state import still_motion
from gworld.dynamics.tokens import compile_scene
from gworld.geometry import transform_from_pose

GOAL = 0.9
PUBLISHED = "best published sequence models 0.78 and 0.92"
EXPONENTS = (-2.0, -1.0, 0.0, 1.0)
STATES = 16


def rows(given: BenchInput) -> Iterator[Row]:
    """Rows of the lattice, of the orbits, of the exponents found, and of long orbits."""
    for agents in (1, 2):
        yield from lattice_rows(agents, given)
    models = {}
    for exponent in EXPONENTS[:2] if given.quick else EXPONENTS:
        models[exponent] = learn_orbits(exponent, given.seed, 24 if given.quick else 60, 60 if given.quick else 200)
    yield from orbit_rows(models[-2.0], given)
    for exponent, model in models.items():
        found = force_exponent(model)
        ok = abs(found - exponent) <= 0.05
        yield Row(f"force exponent recovered, truth {exponent:g}", found, "", f"{exponent:g} +- 0.05", None, ok)
    for exponent in (-2.0,) if given.quick else (-2.0, 1.0):
        yield from long_rows(models[exponent], exponent, given)


def lattice_rows(agents: int, given: BenchInput) -> Iterator[Row]:
    """Walkers on rails of five cells."""
    cells, functions = 5, 20 if given.quick else 100
    learn, judge = draw_lattice(240, 1 + given.seed, agents, cells), draw_lattice(240, 50 + given.seed, agents, cells)
    turned = tuple(reversed(range(agents)))
    model = learn_lattice(agents, cells, given.seed)
    plain = learn_moves(agents, cells, given.seed, 150 if given.quick else 500)
    blank = Dynamics(NetworkConfig(substeps=1, residual=False, seed=given.seed + 1))
    label = f"lattice, {agents} walker{'s' * (agents > 1)}"
    swapped = [read_lattice(model, judge, turned), read_moves(plain, judge, turned)] if agents > 1 else [None, None]
    ours = probe(read_lattice(model, learn), read_lattice(model, judge), swapped[0], functions)
    other = probe(read_moves(plain, learn), read_moves(plain, judge), swapped[1], functions)
    yield from score_rows(label, ours, other, agents > 1)
    for name, reader in (("untrained", lambda drawn: read_lattice(blank, drawn)), ("oracle", true_lattice)):
        yield from plain_rows(f"{label}, {name}", probe(reader(learn), reader(judge), None, functions))


def orbit_rows(model: Dynamics, given: BenchInput) -> Iterator[Row]:
    """Two bodies that attract each other, watched in all manners; 16 states to tell apart."""
    functions = 20 if given.quick else 100
    count = 120 if given.quick else 210
    learn, judge = draw_probe(count, STATES, 1 + given.seed), draw_probe(count, STATES, 50 + given.seed)
    turned = draw_probe(count, STATES, 50 + given.seed, listed=-1)
    plain = learn_places(-2.0, given.seed, 150 if given.quick else 600)
    blank = Dynamics(NetworkConfig(forces=True, seed=given.seed + 1))
    ours = probe(read_orbits(model, learn), read_orbits(model, judge), read_orbits(model, turned, -1), functions)
    other = probe(read_places(plain, learn), read_places(plain, judge), read_places(plain, turned), functions)
    yield from score_rows("orbits", ours, other, True)
    for name, reader in (("untrained", lambda drawn: read_orbits(blank, drawn)), ("oracle", true_orbits)):
        yield from plain_rows(f"orbits, {name}", probe(reader(learn), reader(judge), None, functions))


def score_rows(label: str, ours: Scores, other: Scores, permuted: bool) -> Iterator[Row]:
    """The scores beside a recurrent network's on the same sequences."""
    note = f"baseline: LSTM; {PUBLISHED}"
    yield at_least(f"{label}, R-IB", ours.respects, "", GOAL, other.respects, note)
    yield at_least(f"{label}, D-IB", ours.tells_apart, "", GOAL, other.tells_apart, note)
    if permuted:
        yield at_least(f"{label}, listed the other way round, R-IB", ours.permuted, "", GOAL, other.permuted)
    yield Row(f"{label}, right answers", 100 * ours.right, "%", "", 100 * other.right)


def plain_rows(label: str, scores: Scores) -> Iterator[Row]:
    """The scores alone."""
    yield Row(f"{label}, R-IB", scores.respects, "")
    yield Row(f"{label}, D-IB", scores.tells_apart, "")


def force_exponent(model: Dynamics) -> float:
    """The slope of the force over distance, both as logarithms, from what two bodies at rest do in a short step."""
    trial = draw_orbits(1, 3, OrbitOptions(frames=2))[0]
    scene = compile_scene([law_world(trial)], 0.1 * DT)
    far = np.geomspace(2.5, 5.0, 8)
    speeds = []
    for distance in far:
        poses = torch.zeros(1, 3, 7)
        poses[..., 3] = 1.0
        poses[0, 2, 0] = distance
        with torch.no_grad():
            moved = model.step(scene, still_motion(transform_from_pose(poses), model.belief))
        speeds.append(float(moved.twists[0, 2, :3].norm()))
    return float(np.polyfit(np.log(far), np.log(speeds), 1)[0])
