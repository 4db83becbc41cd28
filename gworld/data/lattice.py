"""Walkers on short rails: every move is one cell to the left, none, or one to the right, and at an end it is lost.

A world in which a sequence of moves hides a small state, exactly known: what a model makes of the sequence can be
compared with it. After Vafa et al., "What has a foundation model found? Using inductive bias to probe for world
models", 2025.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Int

from gworld.data.shapes import box, plain, sphere
from gworld.scene.episode import Episode
from gworld.scene.gaussians import join_gaussians
from gworld.scene.links import Link
from gworld.scene.world import ActionSpec, Entity, World

CELL, SECONDS = 1.0, 1.0
"""Metres between cells, and seconds in which one move is made."""
SPACE, RADIUS = 1.5, 0.25
"""Metres between rails, and radius of a walker."""


@dataclass(frozen=True)
class Walk:
    """Moves [T,A] of A walkers in -1, 0, 1, and the cells [T+1,A] they stand in, the first being 0."""

    moves: Int[np.ndarray, "T A"]
    cells: Int[np.ndarray, "S A"]


def draw_walks(count: int, seed: int, steps: int, agents: int = 1, cells: int = 5) -> list[Walk]:
    """Random moves, each as likely as the others, on rails of so many cells."""
    rng = np.random.default_rng([seed, steps, agents, cells])
    walks = []
    for _ in range(count):
        moves = rng.integers(-1, 2, (steps, agents))
        places = np.zeros((steps + 1, agents), np.int64)
        for step, move in enumerate(moves):
            places[step + 1] = np.clip(places[step] + move, 0, cells - 1)
        walks.append(Walk(moves, places))
    return walks


def lattice_world(rails: tuple[int, ...] = (0,), cells: int = 5) -> World:
    """A wall at each end of rails along x, and a walker on each of `rails`, listed so, all in their first cells."""
    parts, links, entities = [], [Link("world")], [Entity("scene", "static", (0,))]
    for index, rail in enumerate(rails):
        for x in (-CELL, cells * CELL):
            size = (0.2, SPACE, 2 * RADIUS)
            parts.append(box(size, 0.2, plain(0.7, 0.7, 0.7), (x, SPACE * rail, RADIUS)))
        ball = sphere(RADIUS, RADIUS / 5, plain(0.2, 0.4, 0.9))
        parts.append(replace(ball, links=torch.full_like(ball.links, index + 1)))
        name = f"walker{rail}"
        links.append(Link(f"{name}/ball", (0.0, SPACE * rail, RADIUS, 1.0, 0.0, 0.0, 0.0), 0))
        spec = ActionSpec(("x/velocity",), ("m/s",), (-CELL / SECONDS,), (CELL / SECONDS,))
        entities.append(Entity(name, "agent", (index + 1,), spec))
    return World(join_gaussians(parts), tuple(links), tuple(entities))


def lattice_episode(walk: Walk, rails: tuple[int, ...] = ()) -> Episode:
    """A walk as an episode: the places of all balls, and the moves as the velocities they are told.

    Column `r` of the walk is the walker on rail `r`; they are listed as in `rails`, all in order where none are given.
    """
    steps, agents = walk.moves.shape
    order = list(rails or range(agents))
    poses = torch.zeros(steps + 1, agents + 1, 7)
    poses[..., 3] = 1.0
    poses[:, 1:, 0] = CELL * torch.from_numpy(walk.cells[:, order]).float()
    poses[:, 1:, 1] = SPACE * torch.tensor(order).float()
    poses[:, 1:, 2] = RADIUS
    told = torch.full((steps + 1, agents), torch.nan)
    told[:steps] = CELL / SECONDS * torch.from_numpy(walk.moves).float()
    return Episode(
        SECONDS * torch.arange(steps + 1, dtype=torch.float64),
        actions={f"walker{rail}": told[:, rail : rail + 1] for rail in order},
        joints={f"walker{rail}": poses[:, row + 1, :1].clone() for row, rail in enumerate(order)},
        link_poses=poses,
        link_names=("world", *(f"walker{rail}/ball" for rail in order)),
        behaviour="random",
        source="generated walks",
    )
