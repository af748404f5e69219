"""What failures look like: a video of each kind, and film strips to be labelled by eye."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from vla_rl.config import EnvConfig
from vla_rl.envs.registry import benchmark
from vla_rl.evaluation.episodes import EpisodeRecord
from vla_rl.evaluation.videos import FRAMES_PER_SECOND, VIDEO_SIZE, replay
from vla_rl.policies.policy import Policy
from vla_rl.report.analysis.record import FailedEpisode, KindVideo, Stage
from vla_rl.runtime.files import whole_file, write_json
from vla_rl.runtime.progress import progress
from vla_rl.runtime.seeding import generator
from vla_rl.runtime.video import filmstrip, write_video

Failed = tuple[FailedEpisode, EpisodeRecord]
Frame = UInt8[np.ndarray, "H W 3"]
COLUMNS, ROWS = 4, 2
"""Of a film strip: eight images, the first and the last of the episode among them."""
HELD_FRAMES = 8
"""Images at the end of a replay that show the same."""


def kind_videos(
    failed: Sequence[Failed], policies: Mapping[Stage, Policy], env: EnvConfig, folder: Path
) -> tuple[KindVideo, ...]:
    """Write a video of the first episode of each kind, before and after practice."""
    first: dict[tuple[Stage, str], Failed] = {}
    for episode, record in failed:
        first.setdefault((episode.stage, episode.kind), (episode, record))
    videos = []
    for (episode, _), frames in _replayed(list(first.values()), policies, env, "videos", None):
        name = f"{episode.stage}-{episode.kind.replace(', ', '-').replace(' ', '-')}.mp4"
        folder.mkdir(parents=True, exist_ok=True)
        write_video(folder / name, frames, FRAMES_PER_SECOND)
        videos.append(
            KindVideo(episode.stage, episode.kind, name, episode.task, episode.initial_state)
        )
    return tuple(videos)


def strips_in_order(failed: Sequence[Failed], seed: int) -> dict[str, Failed]:
    """Names of film strips for all failed episodes, in an order drawn from `seed` and nothing found out about them."""
    order = generator(seed, "strips").permutation(len(failed)).tolist()
    return {f"{place:03d}.png": failed[number] for place, number in enumerate(order)}


def film_strips(
    strips: Mapping[str, Failed],
    policies: Mapping[Stage, Policy],
    env: EnvConfig,
    folder: Path,
) -> None:
    """Write these strips, and an index.json that does not say their kinds."""
    index = []
    shown = _replayed(list(strips.values()), policies, env, "film strips", COLUMNS * ROWS)
    for name, ((episode, _), frames) in zip(strips, shown, strict=True):
        _write_strip(frames, folder / name)
        state = episode.initial_state
        index.append(
            {"strip": name, "stage": episode.stage, "task": episode.task, "initial_state": state}
        )
    if index:
        write_json(folder / "index.json", index)


def _replayed(
    chosen: Sequence[Failed],
    policies: Mapping[Stage, Policy],
    env: EnvConfig,
    label: str,
    images: int | None,
) -> Iterable[tuple[Failed, list[Frame]]]:
    """Each episode with its images: as many as a video has, or about `images`."""
    if not chosen:
        return
    played = benchmark(env.suite)
    studio: Any = played.make_video_env(replace(env, image_size=VIDEO_SIZE))
    with closing(studio), progress(label, total=len(chosen)) as bar:
        for episode, record in chosen:
            every = played.frame_every
            if images is not None:
                every = max(1, record.simulator_steps // (images - 1))
            frames = replay(studio, record, policies[episode.stage], every)
            yield (episode, record), frames
            bar.advance(1)


def _write_strip(frames: Sequence[Frame], path: Path) -> None:
    from PIL import Image

    shown = [*frames[:-HELD_FRAMES], frames[-1]]
    places = np.linspace(0, len(shown) - 1, COLUMNS * ROWS).round().astype(int).tolist()
    chosen = [shown[place] for place in places]
    rows = [filmstrip(chosen[r * COLUMNS : (r + 1) * COLUMNS], COLUMNS) for r in range(ROWS)]
    with whole_file(path) as aside:
        Image.fromarray(np.concatenate(rows)).save(aside, "PNG")
