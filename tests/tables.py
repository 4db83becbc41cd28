"""Generated splat tables for tests: pseudo-real values, several links where asked for."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from gworld.formats.table import Link, SplatTable


def random_table(count: int = 300, degree: int = 3, links: int = 1, seed: int = 0) -> SplatTable:
    """Gaussians in the unit of a small room; with `links` > 1 they are dealt out to links at random poses."""
    rng = np.random.default_rng(seed)
    table = SplatTable(
        means=rng.normal(size=(count, 3)).astype(np.float32) * 2,
        quats_wxyz=rng.normal(size=(count, 4)).astype(np.float32),
        log_scales=rng.normal(-3.5, 0.8, (count, 3)).astype(np.float32),
        opacity_logits=rng.normal(1.0, 2.0, count).astype(np.float32),
        sh=(rng.normal(size=(count, (degree + 1) ** 2, 3)) * 0.3).astype(np.float32),
        links=np.zeros(count, np.int32),
    )
    if links == 1:
        return table
    poses = np.concatenate([rng.normal(size=(links, 3)), rng.normal(size=(links, 4))], axis=1)
    poses[:, 3:] /= np.linalg.norm(poses[:, 3:], axis=1, keepdims=True)
    named = [Link("world")] + [Link(f"arm/{index}", tuple(map(float, poses[index])), 0) for index in range(1, links)]
    return replace(table, links=rng.integers(0, links, count).astype(np.int32), link_table=tuple(named), axes="RFU")
