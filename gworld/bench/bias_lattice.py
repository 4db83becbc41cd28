"""The lattice of the inductive-bias probe: moves in, and what models know of the cells they lead to."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from gworld.agents.tree import Body, Joint, Skeleton
from gworld.bench.bias_models import Recurrent, learn_recurrent, relations
from gworld.bench.bias_probe import Inputs
from gworld.data.lattice import CELL, SECONDS, Walk, draw_walks, lattice_episode, lattice_world
from gworld.dynamics.actuation import Drive
from gworld.dynamics.drives import make_drive
from gworld.dynamics.network import Dynamics, NetworkConfig
from gworld.dynamics.recordings import gather_recordings, split_recordings
from gworld.dynamics.rollout import roll_motion
from gworld.dynamics.state import still_motion
from gworld.dynamics.tokens import compile_scene, select_worlds
from gworld.dynamics.train import TrainConfig, train
from gworld.geometry import transform_from_pose
from gworld.scene.world import World

MOVES = (8, 40)
"""Fewest and most moves of a sequence."""


@dataclass(frozen=True)
class Lattice:
    """Walkers on rails of so many cells; which moves were read in and how many of each."""

    agents: int
    cells: int
    walks: list[Walk]
    lengths: Tensor

    @property
    def states(self) -> Tensor:
        """The number of the state that each sequence leads to."""
        cells = torch.from_numpy(np.stack([walk.cells for walk in self.walks]))
        last = cells[torch.arange(len(cells)), self.lengths]
        return (last * self.cells ** torch.arange(self.agents)).sum(-1)


def draw_lattice(count: int, seed: int, agents: int, cells: int) -> Lattice:
    """Sequences of different lengths; the last move of each is none, so that all walkers stand when they are asked."""
    lengths = torch.randint(MOVES[0], MOVES[1] + 1, (count,), generator=torch.Generator().manual_seed(seed))
    walks = [
        pause_walk(walk, int(length), cells)
        for walk, length in zip(draw_walks(count, 100 + seed, MOVES[1], agents, cells), lengths, strict=True)
    ]
    return Lattice(agents, cells, walks, lengths)


def pause_walk(walk: Walk, length: int, cells: int) -> Walk:
    """The walk with its move before instant `length` left out."""
    moves, places = walk.moves.copy(), walk.cells.copy()
    moves[length - 1] = 0
    for step, move in enumerate(moves):
        places[step + 1] = np.clip(places[step] + move, 0, cells - 1)
    return Walk(moves, places)


def rail_drives(world: World, cells: int) -> dict[str, Drive]:
    """What moves walkers: one joint that slides along the rail, as far as it goes."""
    joint = Joint("x", "prismatic", 1, np.array([1.0, 0, 0]), np.zeros(3), (0.0,), 0.0, CELL * (cells - 1))
    links = (Body("base", -1, np.eye(4)), Body("ball", 0, np.eye(4)))
    skeleton = Skeleton("walker", links, (joint,))
    return {e.name: make_drive(world, e, skeleton, torch.zeros(1), (1,)) for e in world.agents}


def learn_lattice(agents: int, cells: int, seed: int, steps: int = 40, alone: int = 300) -> Dynamics:
    """The network, trained on walks of which all places are seen."""
    world = lattice_world(tuple(range(agents)), cells)
    walks = draw_walks(32, 1000 + seed, 24, agents, cells)
    data = gather_recordings([world], [lattice_episode(walk) for walk in walks], rail_drives(world, cells))
    learn, judge = split_recordings(data, 0.2, torch.Generator().manual_seed(seed))
    model = Dynamics(NetworkConfig(substeps=1, residual=False, seed=seed))
    config = TrainConfig(steps, horizons=(2, 6), noise=0.0, dropped=0.0, alone=alone, every=20, seed=seed)
    train(model, learn, judge, config)
    return model


def read_lattice(model: Dynamics, lattice: Lattice, rails: tuple[int, ...] = ()) -> Inputs:
    """The network's state after each sequence of moves, with the walkers listed as in `rails`."""
    order = tuple(rails or range(lattice.agents))
    world = lattice_world(order, lattice.cells)
    scene = select_worlds(compile_scene([world], SECONDS), torch.zeros(len(lattice.walks), dtype=torch.int64))
    episodes = [lattice_episode(walk, order) for walk in lattice.walks]
    actions = {name: torch.stack([e.actions[name][:-1] for e in episodes]) for name in episodes[0].actions}
    first = torch.stack([e.link_poses[0] for e in episodes if e.link_poses is not None])
    found: dict[int, Tensor] = {}
    with torch.no_grad():
        start = still_motion(transform_from_pose(first), model.belief)
        rolled = roll_motion(model, scene, start, actions, MOVES[1], rail_drives(world, lattice.cells))
        for step, motion in enumerate(rolled, 1):
            here = lattice.lengths == step
            things = relations(scene, motion, static=True)
            found |= {int(row): things[row] for row in here.nonzero()[:, 0]}
    return Inputs(torch.stack([found[row] for row in range(len(lattice.walks))]), lattice.states)


def true_lattice(lattice: Lattice) -> Inputs:
    """The oracle: the true cells and rails."""
    rows = []
    for walk, length in zip(lattice.walks, lattice.lengths.tolist(), strict=True):
        rows.append([[float(cell), float(rail)] for rail, cell in enumerate(walk.cells[length])])
    return Inputs(torch.tensor(rows), lattice.states)


def learn_moves(agents: int, cells: int, seed: int, steps: int) -> Recurrent:
    """A sequence model on the same task: moves in, the places after each out."""
    model = Recurrent(3 * agents, agents, seed)
    walks = draw_walks(512, 2000 + seed, MOVES[1], agents, cells)
    moves = torch.from_numpy(np.stack([walk.moves for walk in walks]))
    places = torch.from_numpy(np.stack([walk.cells for walk in walks])).float()[:, 1:]

    def draw(generator: torch.Generator) -> tuple[Tensor, Tensor]:
        rows = torch.randint(len(walks), (64,), generator=generator)
        return _tokens(moves[rows]), places[rows] / cells

    learn_recurrent(model, draw, steps, seed)
    return model


def read_moves(model: Recurrent, lattice: Lattice, rails: tuple[int, ...] = ()) -> Inputs:
    """The sequence model's hidden state after each sequence."""
    order = list(rails or range(lattice.agents))
    moves = torch.from_numpy(np.stack([walk.moves[:, order] for walk in lattice.walks]))
    with torch.no_grad():
        hidden = model.core(_tokens(moves))[0]
    return Inputs(hidden[torch.arange(len(hidden)), lattice.lengths - 1][:, None], lattice.states)


def _tokens(moves: Tensor) -> Tensor:
    return torch.nn.functional.one_hot(moves + 1, 3).flatten(-2).float()
