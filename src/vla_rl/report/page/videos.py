"""The section of recorded episodes: the same initial state before and after, side by side."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape
from itertools import zip_longest

from vla_rl.config.errors import UserError
from vla_rl.report.run_data import STAGES, Run, Stage, Video
from vla_rl.runtime.video import filmstrip, jpeg, read_video

EMBEDDED_LIMIT = 11_000_000  # characters of base64 for all videos: the page stays well below 15 MB
_STRIP_COLUMNS = 6
_VIDEO_TYPES = {".mp4": "video/mp4", ".webm": "video/webm"}
_STILL_TYPES = {
    ".png": "image/png",
    ".webp": "image/webp",
    ".gif": "image/gif",
    ".jpg": "image/jpeg",
}

_Pair = dict[Stage, Video]
_Key = tuple[str, int]  # the task, and the place of the pair among its pairs


def films(run: Run, limit: int = EMBEDDED_LIMIT) -> str:
    """All recorded episodes, task by task; beyond `limit` characters the later ones are left out."""
    ended = any(video.stage == "after" for video in run.videos)
    pairs = _pairs(run.videos if ended else run.videos + run.latest)
    embedded: dict[_Key, str] = {}
    left_out = 0
    # first one pair of every task, then the second ones: no task is crowded out
    for key in sorted(pairs, key=lambda key: key[1]):
        html = _pair(pairs[key])
        if len(html) > limit:
            left_out += len(pairs[key])
            continue
        limit -= len(html)
        embedded[key] = html
    parts: list[str] = []
    for task in dict.fromkeys(task for task, _ in pairs):
        shown = [embedded[key] for key in pairs if key[0] == task and key in embedded]
        if shown:
            parts.append(f'<h3>{escape(task)}</h3><div class="films">{"".join(shown)}</div>')
    if left_out:
        parts.append(
            f'<p class="note">{left_out} more recorded episodes are in eval/videos: they were left out to keep '
            "this page small.</p>"
        )
    return "".join(parts)


def _pairs(videos: Sequence[Video]) -> dict[_Key, _Pair]:
    """Videos side by side: first those of one initial state before and after, then the others as they come."""
    pairs: dict[_Key, _Pair] = {}
    for task in dict.fromkeys(video.task for video in videos):
        before, after = (
            {v.initial_state: v for v in videos if v.task == task and v.stage == stage}
            for stage in STAGES
        )
        both = [state for state in before if state in after]
        rest = zip_longest(
            (v for state, v in before.items() if state not in after),
            (v for state, v in after.items() if state not in before),
        )
        rows = [(before[state], after[state]) for state in both] + list(rest)
        for place, row in enumerate(rows):
            pairs[task, place] = {s: v for s, v in zip(STAGES, row, strict=True) if v is not None}
    return pairs


def _pair(pair: _Pair) -> str:
    states = {video.initial_state for video in pair.values()}
    title = f"Initial state {states.pop()}" if len(states) == 1 else "Two initial states"
    cells = [_film(pair[stage], stage, len(states) > 1) for stage in STAGES if stage in pair]
    return f'<div class="card pair"><p>{title}</p><div>{"".join(cells)}</div></div>'


def _film(video: Video, stage: Stage, name_state: bool) -> str:
    outcome = "success" if video.success else "failure"
    turns = f"{video.turns} turn{'' if video.turns == 1 else 's'}"
    when = f"{stage} training"
    if video.iteration is not None:
        when = f"after iteration {video.iteration}"
    words = escape(
        f"{video.task}, initial state {video.initial_state}, {when}: {outcome} after {turns}"
    )
    state = f"initial state {video.initial_state}, " if name_state else ""
    caption = stage.capitalize() if video.iteration is None else when.capitalize()
    return (
        f'<figure class="film">{screen(video, words)}<figcaption><b>{caption}</b> · '
        f'<span class="{outcome}">{outcome}</span> <span class="turns">{state}{turns}</span>'
        "</figcaption></figure>"
    )


def screen(video: Video, words: str) -> str:
    """The video itself, with a still that stands there until it plays, and its images in a row."""
    kind = video.file.suffix.lower()
    if kind in _STILL_TYPES:
        source = data_url(_STILL_TYPES[kind], video.file.read_bytes())
        return f'<img class="still" alt="{words}" src="{source}">'
    if kind not in _VIDEO_TYPES:
        return f'<div class="none">{escape(video.file.name)} is no video</div>'
    try:
        frames = read_video(video.file)
        # the last image stands there until the video plays: it shows how the episode ended
        poster = data_url("image/jpeg", jpeg(frames[-1]))
        strip = data_url("image/jpeg", jpeg(filmstrip(frames, _STRIP_COLUMNS)))
    except UserError as error:
        return f'<div class="none">{escape(str(error))}</div>'
    count = min(_STRIP_COLUMNS, len(frames))
    return (
        f'<video controls muted loop playsinline preload="auto" aria-label="{words}" poster="{poster}" '
        f'src="{data_url(_VIDEO_TYPES[kind], video.file.read_bytes())}"></video>'
        f'<img class="strip" alt="{count} images in order: {words}" src="{strip}">'
    )


def data_url(kind: str, content: bytes) -> str:
    """The content of a file as an address that needs no file."""
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"
