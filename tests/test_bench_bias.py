"""The inductive-bias probe: what it says of the truth and of noise; walks on rails; orbits seen from moving frames."""

from __future__ import annotations

import numpy as np
import torch

from gworld.bench.bias_lattice import draw_lattice, learn_lattice, read_lattice, true_lattice
from gworld.bench.bias_orbits import NOISE, draw_probe, true_orbits
from gworld.bench.bias_probe import Inputs, probe
from gworld.data.lattice import draw_walks, lattice_episode, lattice_world


def test_the_probe_tells_truth_from_noise() -> None:
    generator = torch.Generator().manual_seed(0)
    states = torch.randint(6, (160,), generator=generator)
    true = Inputs(torch.eye(6)[states][:, None], states)
    noise = Inputs(torch.randn(160, 1, 6, generator=generator), states)
    good, bad = probe(true, true, true, 16), probe(noise, noise, None, 16)
    assert good.respects > 0.99 and good.permuted > 0.99 and good.right > 0.99
    assert 0.8 < good.tells_apart <= 1.0
    assert bad.respects < 0.6


def test_walks_stop_at_the_ends_of_their_rails() -> None:
    for walk in draw_walks(5, 0, 30, agents=2, cells=4):
        assert walk.cells.min() == 0 and walk.cells.max() <= 3
        steps = np.diff(walk.cells, axis=0)
        held = (walk.cells[:-1] == 0) & (walk.moves < 0) | (walk.cells[:-1] == 3) & (walk.moves > 0)
        np.testing.assert_array_equal(steps, np.where(held, 0, walk.moves))
        episode, world = lattice_episode(walk, (1, 0)), lattice_world((1, 0), 4)
        assert episode.link_names == tuple(link.name for link in world.links)
        assert episode.link_poses is not None
        assert torch.equal(episode.link_poses[:, 1, 0], torch.from_numpy(walk.cells[:, 1]).float())


def test_the_network_learns_where_moves_lead_in_any_order() -> None:
    model, lattice = learn_lattice(2, 3, 0, steps=0, alone=80), draw_lattice(24, 3, 2, 3)
    plain, turned = read_lattice(model, lattice), read_lattice(model, lattice, (1, 0))
    cells = true_lattice(lattice).things[..., 0]
    assert (plain.things[..., 0] - cells).abs().max() < 0.1
    assert torch.allclose(plain.things.flip(1), turned.things, atol=1e-5)


def test_sequences_of_one_state_differ_and_end_alike() -> None:
    orbits = draw_probe(12, 3, 0)
    again, turned = draw_probe(12, 3, 0), draw_probe(12, 3, 0, listed=-1)
    truth = true_orbits(orbits)
    row = 0
    for frames, seen in orbits.seen.items():
        assert torch.equal(seen, again.seen[frames]) and torch.equal(seen.flip(2), turned.seen[frames])
        last = seen[:, -1, 1] - seen[:, -1, 0]
        assert torch.allclose(last, truth.things[row : row + len(seen), 0, :2], atol=6 * NOISE)
        row += len(seen)
