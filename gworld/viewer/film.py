"""The true film of an episode beside its motion: frames at the player's time, and the world from that camera."""

from __future__ import annotations

import io
import itertools
import threading
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image

from gworld.data.clips import read_frames
from gworld.errors import GWorldError
from gworld.geometry import transform_from_pose
from gworld.scene.cameras import Cameras, resize_cameras
from gworld.scene.episode import Episode, Video

if TYPE_CHECKING:
    from gworld.viewer.app import Viewer

WIDTH = 360
MAX_FRAMES = 3000
"""Frames of a film that are kept, as JPEG: some 60 MB."""
NO_FILM = "none"


class Film:
    """A video as small JPEGs, decoded in a thread while it is watched; `problem` says why it went no further."""

    def __init__(self, video: Video) -> None:
        self.video, self.problem = video, ""
        self._frames: list[bytes] = []
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._decode, name="film", daemon=True)
        self._thread.start()

    def at(self, time: float) -> UInt8[np.ndarray, "H W 3"] | None:
        """The frame that was taken last at `time` on the episode's clock; None while it is not decoded."""
        row = int(torch.searchsorted(self.video.times, torch.tensor(time + 1e-6, dtype=self.video.times.dtype))) - 1
        row = min(max(row, 0), len(self.video.times) - 1)
        if row >= len(self._frames):
            return None
        with Image.open(io.BytesIO(self._frames[row])) as picture:
            return np.asarray(picture)

    def close(self) -> None:
        """Stop decoding."""
        self._ended.set()

    def _decode(self) -> None:
        count = min(len(self.video.times), MAX_FRAMES)
        try:
            frames = read_frames(self.video.path, width=WIDTH)
            for frame in itertools.islice(frames, self.video.first, self.video.first + count):
                if self._ended.is_set():
                    return
                stream = io.BytesIO()
                Image.fromarray(frame).save(stream, "jpeg", quality=85)
                self._frames.append(stream.getvalue())
        except GWorldError as error:
            self.problem = str(error)


class FilmPanel:
    """A picture of the film above one of the world as its camera would see it, at the player's time."""

    def __init__(self, viewer: Viewer, place: Any) -> None:
        self.viewer, self.place, gui = viewer, place, viewer.server.gui
        self.choice = gui.add_dropdown("Film", (NO_FILM,), hint="a camera of the episode on the timeline")
        self.said = gui.add_markdown("")
        self.picture: Any = None
        self._episode: Episode | None = None
        self._film: Film | None = None
        self._shown: tuple[Any, ...] = ()
        self.choice.on_update(lambda event: viewer.do(self.change))

    def open(self, episode: Episode | None) -> None:
        """Offer the films of an episode."""
        self._episode = episode
        names = () if episode is None else tuple(video.name for video in episode.videos)
        self.choice.options = (NO_FILM, *names)
        self.choice.value = NO_FILM
        self.change()
        self.said.content = "" if names else "No film: what is on the timeline is no episode with videos."

    def change(self) -> None:
        """Watch the chosen film."""
        if self._film is not None:
            self._film.close()
        self._film, episode = None, self._episode
        videos = {} if episode is None else {video.name: video for video in episode.videos}
        if self.choice.value in videos:
            self._film = Film(videos[self.choice.value])
        elif self.picture is not None:
            self.picture.remove()
            self.picture = None

    def refresh(self) -> None:
        """Show the film where the player is, if that has changed."""
        player, film, episode = self.viewer.player, self._film, self._episode
        if player is None or film is None or episode is None or not self.viewer.server.get_clients():
            return
        time = float(player.rollout.times[0]) + player.time
        truth = film.at(time)
        if truth is None:
            self.said.content = film.problem or "the film is being decoded .."
            return
        seen = (id(film), round(time, 4), self.viewer.stage.sent)
        if seen == self._shown:
            return
        self._shown = seen
        drawn = self._drawn(episode, film.video, truth)
        strip = truth if drawn is None else np.concatenate([truth, drawn], axis=0)
        calibrated = "The film above, the world below."
        self.said.content = "The film; its camera is not calibrated." if drawn is None else calibrated
        if self.picture is None:
            with self.place:
                self.picture = self.viewer.server.gui.add_image(strip, format="jpeg", jpeg_quality=85)
        else:
            self.picture.image = strip

    def _drawn(self, episode: Episode, video: Video, truth: np.ndarray) -> UInt8[np.ndarray, "H W 3"] | None:
        """The world as the film's camera sees it; None where nobody knows where that stands."""
        index = [one.name for one in episode.videos].index(video.name)
        if episode.cameras is None:
            return None
        return draw_from(self.viewer, episode.cameras, index, truth.shape[1], truth.shape[0])


def draw_from(viewer: Viewer, cameras: Cameras, index: int, width: int, height: int) -> UInt8[np.ndarray, "H W 3"]:
    """The world as it stands on the stage, seen by one of an episode's cameras as a pinhole."""
    poses = transform_from_pose(torch.from_numpy(viewer.stage.poses.copy()).float())
    pose = cameras.world_from_camera[index].float()
    if cameras.links and cameras.links[index]:
        pose = poses[cameras.links[index]] @ pose
    camera = Cameras(cameras.K[index][None].float(), pose[None], cameras.width, cameras.height)
    return viewer.pixels.draw(poses, resize_cameras(camera, width, height))
