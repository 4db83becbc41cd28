"""Which part of a reconstruction holds together, and whether two reconstructions tell the same.

A mapper may join two parts by a handful of points that happen to fit: all pictures are registered, and the parts stand
to each other at random. Pictures that share many points cannot do so.
"""

from __future__ import annotations

from typing import Any

import numpy as np

SHARED = 20
"""Two pictures are firmly joined when they see as many points in common."""


def firm_part(model: Any, shared: int = SHARED) -> list[int]:
    """Numbers of the pictures in the largest set that firm joins connect."""
    from scipy.sparse.csgraph import connected_components

    identities = sorted(model.reg_image_ids())
    if not identities:
        return []
    counts = _shared_points(model, identities)
    _, labels = connected_components(counts >= shared, directed=False)
    largest = np.bincount(labels).argmax()
    return [identity for identity, label in zip(identities, labels, strict=True) if label == largest]


def trim_to(model: Any, kept: list[int]) -> int:
    """Take the poses of all pictures but `kept` away, with the points that only they saw; returns how many went."""
    gone = sorted({model.image(identity).frame_id for identity in set(model.reg_image_ids()) - set(kept)})
    for frame in gone:
        model.deregister_frame(frame)
    return len(gone)


def disagreement(first: Any, second: Any) -> tuple[int, float, float]:
    """How two models tell of the pictures that both have: their number, the root mean square distance of centres after
    the best similarity in shares of the spread of `first`, and the median angle in degrees between turns."""
    import torch

    from gworld.capture.similarity import fit_similarity, move_poses
    from gworld.errors import InputError

    names = {second.image(identity).name: identity for identity in second.reg_image_ids()}
    pairs = [(first.image(i), second.image(names[first.image(i).name])) for i in sorted(first.reg_image_ids())
             if first.image(i).name in names]  # fmt: skip
    if len(pairs) < 4:
        return len(pairs), float("nan"), float("nan")
    one, two = (torch.stack([_pose(pair[side]) for pair in pairs]) for side in (0, 1))
    try:
        similarity, rest = fit_similarity(two[:, :3, 3], one[:, :3, 3])
    except InputError:  # all centres on one line: the turn about it is open
        return len(pairs), float("nan"), float("nan")
    centred = one[:, :3, 3] - one[:, :3, 3].mean(0)
    moved = move_poses(similarity, two)[:, :3, :3].transpose(1, 2) @ one[:, :3, :3]
    cosine = ((moved.diagonal(dim1=1, dim2=2).sum(1) - 1) / 2).clamp(-1, 1)
    spread = centred.square().sum(1).mean().sqrt()
    return len(pairs), float(rest.square().mean().sqrt() / spread), float(cosine.acos().rad2deg().median())


def _shared_points(model: Any, identities: list[int]) -> np.ndarray:
    from scipy.sparse import coo_matrix

    row_of = {identity: row for row, identity in enumerate(identities)}
    rows: list[int] = []
    columns: list[int] = []
    for number, point in enumerate(model.points3D.values()):
        seen = {row_of[element.image_id] for element in point.track.elements if element.image_id in row_of}
        rows += [number] * len(seen)
        columns += seen
    shape = (max(rows, default=0) + 1, len(identities))
    sees = coo_matrix((np.ones(len(rows), np.int64), (rows, columns)), shape=shape).tocsr()
    return (sees.T @ sees).toarray()


def _pose(image: Any) -> Any:
    import torch

    pose = np.eye(4)
    pose[:3] = image.cam_from_world().inverse().matrix()
    return torch.from_numpy(pose)
