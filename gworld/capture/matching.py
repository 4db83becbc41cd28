"""Features of footage and the pairs of pictures that share them, in a COLMAP database, on the CPU.

SIFT (Lowe, IJCV 2004) through pycolmap. Bland pictures get a lower threshold, masked pixels no features, and pairs are
taken near in time, at doubling distances, and among pictures spread over the whole, so that loops close.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gworld.capture.footage import Footage, FootageCamera, Shot, shots_of
from gworld.errors import InputError

Progress = Callable[[str, float], None] | None
THRESHOLDS = (0.0067, 0.0034, 0.0017, 0.0008, 0.0004)
_SAMPLES = 5
_ERODE = 0.0125  # of the longer side: a descriptor near a moving thing sees it


@dataclass(frozen=True)
class MatchOptions:
    """How features are found and matched."""

    max_side: int = 640
    """Pictures of videos with a longer side are searched for features at this size."""
    photo_side: int = 1296
    """The same for photos, which are fewer and further apart; they may also have twice the features."""
    features: int = 2048
    """Most places in one picture where features are taken; those seen in two directions count once."""
    wanted: int = 1200
    """The detector's threshold is lowered until half of the pictures have as many features."""
    overlap: int = 10
    """With how many following pictures of a video each one is matched; beyond them at distances 16, 32, 64, ..."""
    spread: int = 24
    """As many pictures, evenly spread over all cameras, are matched each with each."""
    exhaustive: int = 48
    """Up to as many pictures are matched each with each; photos up to three times as many."""
    threads: int = 2
    """Threads."""
    seed: int = 0
    """Seed of everything random."""


@dataclass(frozen=True)
class Matched:
    """The database of a footage: `shots` maps the names in it to the footage's shots."""

    footage: Footage
    database: Path
    shots: dict[str, Shot]
    features: float
    threshold: float


def match_footage(
    footage: Footage, workspace: Path, options: MatchOptions = MatchOptions(), progress: Progress = None
) -> Matched:
    """Find and match features of all pictures; the database and masks are written into `workspace`.

    Raises `InputError` when there are fewer than two pictures or when they have hardly any features.
    """
    if len(footage) < 2:
        raise InputError(f"`{footage.folder}` holds {len(footage)} picture; at least 2 are needed to find poses.")
    workspace.mkdir(parents=True, exist_ok=True)
    root = footage.folder.resolve()
    shots = {shot.image.resolve().relative_to(root).as_posix(): shot for shot in footage.shots}
    masks = _write_masks(shots, workspace / "masks")
    with quiet():
        threshold = _threshold(footage, shots, masks, workspace, options)
        _report(progress, "features", 0.1)
        database = workspace / "database.db"
        features = _extract(footage, shots, masks, database, threshold, options)
        if features < 30:
            raise InputError(
                f"`{footage.folder}`: its pictures show about {features:.0f} points of interest each; some hundreds "
                "are needed. Film with more light, sharper, or with something textured in view."
            )
        _report(progress, "matches", 0.4)
        pairs = choose_pairs(footage, options)
        name_of = {shot.name: name for name, shot in shots.items()}
        match_pairs(database, [(name_of[a], name_of[b]) for a, b in pairs], workspace / "pairs.txt", options)
    _report(progress, "matches", 1.0)
    return Matched(footage, database, shots, features, threshold)


def choose_pairs(footage: Footage, options: MatchOptions = MatchOptions()) -> list[tuple[str, str]]:
    """Names of the shots to match with each other, in order, each pair once."""
    total = len(footage)
    ordered = [[shot.name for shot in shots_of(footage, index)] for index in range(len(footage.cameras))]
    names = list(itertools.chain.from_iterable(ordered))
    photos = all(camera.photos for camera in footage.cameras)
    if total <= options.exhaustive * (3 if photos else 1):
        return list(itertools.combinations(names, 2))
    pairs: dict[tuple[str, str], None] = {}
    for row in ordered:
        steps = [*range(1, options.overlap + 1), *(2**k for k in range(1, 20) if options.overlap < 2**k < len(row))]
        pairs |= {(row[i], row[i + step]): None for i in range(len(row)) for step in steps if i + step < len(row)}
    chosen = sorted({round(i) for i in np.linspace(0, total - 1, min(total, options.spread))})
    pairs |= dict.fromkeys(itertools.combinations([names[i] for i in chosen], 2))
    return list(pairs)


def match_pairs(database: Path, pairs: Sequence[tuple[str, str]], listing: Path, options: MatchOptions) -> None:
    """Match pairs of pictures of a database, by their names, and verify them geometrically."""
    import pycolmap

    listing.write_text("".join(f"{a} {b}\n" for a, b in pairs), encoding="utf-8")
    matching = pycolmap.FeatureMatchingOptions(num_threads=options.threads, use_gpu=False)
    verification = pycolmap.TwoViewGeometryOptions()
    verification.ransac.random_seed = options.seed
    pairing = pycolmap.ImportedPairingOptions(match_list_path=str(listing))
    pycolmap.match_image_pairs(database, matching, pairing, verification, device=pycolmap.Device.cpu)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep COLMAP's own log off the terminal; what matters of it is measured and said by us."""
    import pycolmap

    log = pycolmap.logging
    before = log.minloglevel, log.stderrthreshold, log.alsologtostderr
    log.minloglevel, log.stderrthreshold, log.alsologtostderr = 3, 3, False
    try:
        yield
    finally:
        log.minloglevel, log.stderrthreshold, log.alsologtostderr = before


def lens_of(camera: FootageCamera) -> tuple[str, str]:
    """COLMAP's name and parameters of a camera's lens; one unknown radial term where nothing is known."""
    if not camera.K:
        return "SIMPLE_RADIAL", ""
    terms = (*camera.distortion, *[0.0] * (8 - len(camera.distortion)))
    if not any(terms):
        return "PINHOLE", ",".join(map(repr, camera.K))
    if any(terms[4:]):
        return "FULL_OPENCV", ",".join(map(repr, (*camera.K, *terms)))
    return "OPENCV", ",".join(map(repr, (*camera.K, *terms[:4])))


def _write_masks(shots: dict[str, Shot], folder: Path) -> Path | None:
    """Masks under the names COLMAP looks for, shrunk a little; None where there are none."""
    import cv2

    masked = {name: shot.mask for name, shot in shots.items() if shot.mask is not None}
    for name, path in masked.items():
        mask = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
        if mask is None:
            raise InputError(f"`{path}` cannot be read as a mask; an 8-bit PNG is needed. Make the masks again.")
        radius = max(1, round(_ERODE * max(mask.shape)))
        border = cv2.copyMakeBorder(mask, radius, radius, radius, radius, cv2.BORDER_REPLICATE)
        kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))
        shrunk = cv2.erode(border, kernel)[radius:-radius, radius:-radius]
        target = folder / f"{name}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(target), np.where(shrunk >= 128, 255, 0).astype(np.uint8))
    return folder if masked else None


def _threshold(
    footage: Footage, shots: dict[str, Shot], masks: Path | None, workspace: Path, options: MatchOptions
) -> float:
    """The highest threshold at which half of some sample pictures have the wanted features, or the lowest there is."""
    names = sorted(shots)
    rows = sorted({round(i) for i in np.linspace(0, len(names) - 1, _SAMPLES)})
    sample = {names[row]: shots[names[row]] for row in rows}
    database = workspace / "sample.db"
    for threshold in THRESHOLDS:
        if _extract(footage, sample, masks, database, threshold, options) >= options.wanted:
            break
    database.unlink()
    return threshold


def _extract(
    footage: Footage,
    shots: dict[str, Shot],
    masks: Path | None,
    database: Path,
    threshold: float,
    options: MatchOptions,
) -> float:
    """Write the features of some pictures into a new database; returns their median number."""
    import pycolmap

    database.unlink(missing_ok=True)
    with open_database(database):  # which makes it
        pass
    extraction = pycolmap.FeatureExtractionOptions(num_threads=options.threads, use_gpu=False)
    extraction.sift.peak_threshold = threshold
    for index, camera in enumerate(footage.cameras):
        names = sorted(name for name, shot in shots.items() if shot.camera == index)
        if not names:
            continue
        extraction.max_image_size = options.photo_side if camera.photos else options.max_side
        extraction.sift.max_num_features = options.features * (2 if camera.photos else 1)
        model, params = lens_of(camera)
        reader: dict[str, Any] = {"camera_model": model, "camera_params": params}
        reader |= {} if masks is None else {"mask_path": str(masks)}
        place, single, reading = (
            footage.folder.resolve(),
            pycolmap.CameraMode.SINGLE,
            pycolmap.ImageReaderOptions(**reader),
        )
        # Listed first, one after the other, so that threads do not number the pictures anew in each run.
        pycolmap.import_images(database, place, single, names, reading)
        pycolmap.extract_features(
            database, place, names, single, reading, extraction, device=pycolmap.Device.cpu
        )  # fmt: skip
    with open_database(database) as opened:
        images = opened.read_all_images()
        counts = [opened.num_keypoints_for_image(image.image_id) for image in images]
    if len(counts) < len(shots):
        raise InputError(
            f"`{footage.folder}`: {len(shots) - len(counts)} of {len(shots)} pictures cannot be read or differ in size "
            "from their camera. Capture the footage again."
        )
    return float(np.median(counts))


@contextlib.contextmanager
def open_database(path: Path) -> Iterator[Any]:
    """A COLMAP database, closed at the end."""
    import pycolmap

    database = pycolmap.Database.open(str(path))
    try:
        yield database
    finally:
        database.close()


def picture_pair(number: int) -> tuple[int, int]:
    """The two pictures' numbers of a pair's number in a database."""
    import pycolmap

    one, two = pycolmap.pair_id_to_image_pair(number)
    return int(one), int(two)


def _report(progress: Progress, stage: str, share: float) -> None:
    if progress is not None:
        progress(stage, share)
