"""The section of what `vla-rl analyse` found: failures with videos, action coverage, episode length."""

from __future__ import annotations

from html import escape
from pathlib import Path

from vla_rl.config.errors import UserError
from vla_rl.evaluation.failures import MEANING
from vla_rl.report.analysis.record import (
    COVERAGE,
    FAILURES,
    FOLDER,
    LENGTHS,
    Analysis,
    Coverage,
    Failures,
    KindVideo,
    Lengths,
    read_analysis,
)
from vla_rl.report.analysis.words import (
    STATES,
    count_in_words,
    failure_rows,
    in_words,
    plateau_in_words,
    volume_in_words,
)
from vla_rl.report.page.videos import data_url, screen
from vla_rl.report.run_data import Run, Video
from vla_rl.runtime.external import path_inside, read_bytes

MAX_PICTURE = 3_000_000
VIDEOS_LIMIT = 4_000_000  # characters of base64: the page stays small beside its other videos


def analysis(run: Run) -> str:
    """The section; empty if the run was not analysed."""
    try:
        found = read_analysis(run.folder)
    except UserError as error:
        return f'<p class="note">{escape(str(error))}</p>'
    if found is None:
        return ""
    parts = [_notes(found)]
    if found.failures is not None:
        parts.append(_failures(run, found.failures))
    if found.agreement is not None and found.agreement.kappa is not None:
        kappa = in_words(found.agreement.kappa)
        parts.append(
            f'<p class="note">Labels given by eye to {found.agreement.episodes} failed episodes agree with this table: '
            f"Cohen's kappa {kappa}.</p>"
        )
    if found.coverage is not None:
        parts.append(_coverage(run, found.coverage))
    if found.lengths is not None:
        parts.append(_lengths(run, found.lengths))
    return "".join(parts)


def _notes(found: Analysis) -> str:
    before = f", compared with {found.before}" if found.before else ""
    about = f"{found.suite}, {found.initial_states} initial states of the {found.split} split for each task{before}."
    return "".join(f'<p class="note">{escape(text)}</p>' for text in (about, *found.notes))


def _failures(run: Run, failures: Failures) -> str:
    stages = failures.stages
    title = "<h3>How episodes fail</h3>"
    if not any(stage.failed for stage in stages):
        return f"{title}<p>No episode failed.</p>"
    head = "".join(f"<th>{stage.stage.capitalize()}</th>" for stage in stages)
    rows = [
        f"<tr><td>{escape(kind)}</td>"
        + "".join(
            f"<td>{escape(count_in_words(count, stage))}</td>"
            for count, stage in zip(counts, stages, strict=True)
        )
        + f"<td>{escape(MEANING[kind])}</td></tr>"
        for kind, counts in failure_rows(failures)
    ]
    totals = "".join(f"<td>{stage.failed} of {stage.episodes}</td>" for stage in stages)
    table = (
        f'<div class="card scroll"><table class="wide"><thead><tr><th>Kind</th>{head}<th>Meaning</th></tr></thead>'
        f"<tbody>{''.join(rows)}<tr><td>all failures</td>{totals}<td></td></tr></tbody></table></div>"
    )
    untold = ""
    if failures.not_told:
        kinds = escape(", ".join(failures.not_told))
        untold = f'<p class="note">Cannot be told, or cannot occur in these tasks: {kinds}.</p>'
    picture = _picture(run, FAILURES, "Kinds of failures as shares of all episodes")
    return f"{title}{table}{untold}{picture}{_videos(run, failures)}"


def _videos(run: Run, failures: Failures) -> str:
    shown: list[str] = []
    left, left_out = VIDEOS_LIMIT, 0
    for video in failures.videos:
        html = _video(run, video)
        if len(html) > left:
            left_out += 1
            continue
        left -= len(html)
        shown.append(html)
    more = (
        f'<p class="note">{left_out} more videos are in {FOLDER}/videos: they were left out to keep this page '
        "small.</p>"
        if left_out
        else ""
    )
    return (f'<div class="films">{"".join(shown)}</div>' if shown else "") + more


def _video(run: Run, video: KindVideo) -> str:
    words = (
        f"{video.stage} practice, {video.kind}: {video.task}, initial state {video.initial_state}"
    )
    try:
        file = _inside(run.folder, f"{FOLDER}/videos/{video.file}")
    except UserError as error:
        return f'<p class="note">{escape(str(error))}</p>'
    if not file.is_file():
        return f'<p class="note">{FOLDER}/videos lacks {escape(video.file)}.</p>'
    film = Video(video.stage, file, video.task, video.initial_state, False, 0)
    return (
        f'<figure class="film">{screen(film, escape(words))}<figcaption><b>{escape(video.kind)}</b> · '
        f"{video.stage} · {escape(video.task)}</figcaption></figure>"
    )


def _coverage(run: Run, coverage: Coverage) -> str:
    rows = "".join(
        f"<tr><td>{escape(STATES[view.states])}</td>"
        f"<td>{in_words(view.before.entropy if view.before else None)}</td><td>{in_words(view.after.entropy)}</td>"
        f"<td>{in_words(view.difference)}</td><td>{volume_in_words(view.before)}</td>"
        f"<td>{volume_in_words(view.after)}</td></tr>"
        for view in coverage.views
    )
    head = "".join(
        f"<th>{name}</th>"
        for name in ("States", "Entropy before", "After", "Difference", "Volume before", "After")
    )
    return (
        f"<h3>Action coverage</h3><p>Actions sampled at temperature {coverage.temperature:g}; entropy in nats by "
        "nearest neighbours, volume of a box filled evenly with the same entropy; 95% intervals over episodes.</p>"
        f'<div class="card scroll"><table class="wide"><thead><tr>{head}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
        + _picture(run, COVERAGE, "Density of each pair of action dimensions, before and after")
    )


def _lengths(run: Run, lengths: Lengths) -> str:
    items = "".join(f"<li>{escape(plateau_in_words(plateau))}</li>" for plateau in lengths.plateaus)
    plateaus = f"<ul>{items}</ul>" if items else "<p>No plateaus.</p>"
    return (
        f"<h3>Episode length over training</h3><p>{lengths.first:.2f} turns in the first tenth of "
        f"{lengths.iterations} iterations, {lengths.last:.2f} in the last tenth. A plateau lasts {lengths.window} "
        f"iterations or more; the whole 95% interval of its change lies within {lengths.tolerance:g} of the success "
        f"rate, or that share of the horizon.</p>{plateaus}"
        + _picture(run, LENGTHS, "Episode length and success over training, with plateaus")
    )


def _picture(run: Run, name: str, words: str) -> str:
    try:
        file = _inside(run.folder, f"{FOLDER}/{name}")
        if not file.is_file():
            return ""
        content = read_bytes(file, max_bytes=MAX_PICTURE, remedy="")
    except UserError as error:
        return f'<p class="note">{escape(str(error))}</p>'
    source = data_url("image/png", content)
    return f'<div class="card"><img class="still" alt="{escape(words)}" src="{source}"></div>'


def _inside(folder: Path, name: str) -> Path:
    return path_inside(folder, name, source=folder / FOLDER / "analysis.json")
