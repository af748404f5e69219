"""Write the report of a run: one HTML file that needs nothing else, neither network nor other files."""

from __future__ import annotations

import base64
import hashlib
from html import escape
from importlib import resources
from pathlib import Path
from string import Template

from vla_rl import __version__
from vla_rl.report.page import curves, sections
from vla_rl.report.page import videos as films
from vla_rl.report.page.analysis import analysis
from vla_rl.report.run_data import Run, read_run
from vla_rl.runtime.files import require_writable, write_text
from vla_rl.runtime.run_folder import display_name, training_run


def write_report(run: Path, out: Path | None = None) -> Path:
    """Write the report of a run, or of a quickstart's folder, to `out` (default: <run>/report.html); return its path.

    Raises UserError where `run` is no run folder or `out` cannot be written. What is missing in
    the folder is said on the page.
    """
    target = run / "report.html" if out is None else out
    require_writable(target, "file", ".html")
    page = render(read_run(training_run(run)))
    write_text(target, page)
    return target


def render(run: Run) -> str:
    """The page as text."""
    chapters = [chapter for chapter in _chapters(run) if chapter[2]]
    links = "".join(f'<li><a href="#{key}">{title}</a></li>' for key, title, _, _ in chapters)
    body = [sections.opening(run), f'<nav aria-label="Contents"><ul>{links}</ul></nav>']
    body += [
        f'<section id="{key}"><div class="row"><h2>{title}</h2>{_extra(key)}</div>'
        f'<p class="about">{about}</p>{content}</section>'
        for key, title, content, about in chapters
    ]
    body.append(f"<footer>Written by VLA-RL {__version__} from {escape(str(run.folder))}.</footer>")
    script = _asset("page.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")
    return Template(_asset("template.html")).substitute(
        title=escape(f"{display_name(run.folder)} · VLA-RL report"),
        version=__version__,
        style=_asset("style.css"),
        script=script,
        script_hash=f"sha256-{digest}",
        body="\n".join(body),
    )


def _chapters(run: Run) -> list[tuple[str, str, str, str]]:
    """(anchor, title, content, what one sees) in the order of the page."""
    return [
        ("success", "Success before and after", sections.success(run),
         "How often the policy solved its tasks, before training and after it. Greedy takes the most likely action, "
         "sampled draws from the policy as practice does."),
        ("tasks", "Task by task", sections.tasks(run),
         "The same comparison for every task. Gains are coloured where their 95% interval leaves out zero."),
        ("learning", "Learning curves", curves.learning_curves(run),
         "Share of practice episodes that succeeded. It depends on which tasks the curriculum chose; the evaluations "
         "above do not."),
        ("curriculum", "Curriculum", curves.curriculum(run), "Which tasks were practised when."),
        ("dynamics", "Training dynamics", curves.dynamics(run),
         "What happened inside the optimiser and the machine, one point per iteration."),
        ("ranks", "Ranks", curves.ranks(run),
         "What each process spent its time on. Waiting is for the slowest."),
        ("analysis", "What practice changed", analysis(run),
         "How episodes fail, how far actions spread, and where training stood still, as `vla-rl analyse` found it."),
        ("videos", "Episodes", films.films(run),
         "Recorded test episodes, the same initial state before and after training where both were kept. "
         "Click one to play it."),
        ("sft", "Fine-tuning", curves.fine_tuning(run),
         "The supervised step on demonstrations that came before practice."),
        ("configuration", "Configuration", sections.configuration(run),
         "What was changed from the defaults, then everything, folded."),
        ("environment", "Environment", sections.environment(run), "Where and with what the run was made."),
        ("reproduce", "Reproduce", sections.reproduce(run), "The commands, in order."),
    ]  # fmt: skip


def _extra(key: str) -> str:
    return '<button id="play-all" type="button" hidden>Play all</button>' if key == "videos" else ""


def _asset(name: str) -> str:
    return (resources.files("vla_rl.report.page") / name).read_text(encoding="utf-8")
