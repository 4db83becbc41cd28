"""What models make of a sequence: the network's state after it, a recurrent network's, and the true state."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from gworld.dynamics.state import Motion
from gworld.dynamics.tokens import Scene, shape_values

WIDTH = 64


def relations(scene: Scene, motion: Motion, static: bool) -> Float[Tensor, "N R 8"]:
    """What a state of the network says: of every ordered pair of bodies (of every body and the static scene where there
    is one) where one is and how it moves as the other has it, and both their sizes."""
    links = scene.present.any(0).nonzero()[:, 0].tolist()
    pairs = [(a, b) for a in links for b in links if a != b]
    if static:
        pairs = [(0, b) for b in links]
    place, speed = motion.world_from_link[..., :3, 3], motion.twists[..., :3] * scene.dt
    bulk = shape_values(scene, "volume").log() * scene.present
    rows = [
        torch.cat([place[:, b] - place[:, a], speed[:, b] - speed[:, a], bulk[:, [a, b]]], dim=-1) for a, b in pairs
    ]
    return torch.stack(rows, dim=1)


class Recurrent(nn.Module):
    """A plain sequence model (LSTM): reads one row of numbers per instant and predicts another."""

    def __init__(self, inputs: int, outputs: int, seed: int) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.core = nn.LSTM(inputs, WIDTH, batch_first=True)
            self.told = nn.Linear(WIDTH, outputs)

    def forward(self, rows: Float[Tensor, "N T I"]) -> Float[Tensor, "N T O"]:
        """What is predicted at every instant."""
        return self.told(self.core(rows)[0])

    @torch.no_grad()
    def things(self, rows: Float[Tensor, "N T I"]) -> Float[Tensor, "N 1 D"]:
        """Its hidden state after the last instant."""
        return self.core(rows)[0][:, -1:]


def learn_recurrent(
    model: Recurrent, draw: Callable[[torch.Generator], tuple[Tensor, Tensor]], steps: int, seed: int
) -> float:
    """Train on batches (rows [N,T,I], truth [N,T,O]) that `draw` gives; returns the last error, root mean square."""
    generator = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.Adam(model.parameters(), lr=5e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    error = torch.zeros(())
    for _ in range(steps):
        rows, truth = draw(generator)
        optimiser.zero_grad()
        error = (model(rows) - truth).square().mean()
        error.backward()
        optimiser.step()
        schedule.step()
    return float(error.detach().sqrt())
