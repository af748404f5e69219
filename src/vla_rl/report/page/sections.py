"""The sections in words and tables: opening, comparison, settings, environment, how to reproduce."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Mapping
from html import escape
from typing import Any

from vla_rl.config import TrainConfig
from vla_rl.config.serialize import to_json
from vla_rl.report.page.charts import interval_bar, number, percent, points
from vla_rl.report.page.summary import (
    Comparison,
    comparison,
    duration,
    main_mode,
    practice_episodes,
    story,
    training_seconds,
    warnings,
)
from vla_rl.report.run_data import MODES, STAGES, Evaluation, Mode, Rate, Run
from vla_rl.runtime.run_folder import display_name


def opening(run: Run) -> str:
    """Title, the paragraph that tells what happened, the figures to remember, and what to beware of."""
    evaluation = next(iter(run.evaluations.values()), None)
    suite = run.setting("env.suite") or (evaluation.raw.get("suite") if evaluation else None)
    count = len(run.tasks)
    facts = [
        f"suite {suite}" if suite else "",
        f"{count} task{'' if count == 1 else 's'}" if count else "",
        str(run.provenance("started") or "").split("T")[0],
        f"revision {str(run.provenance('git.revision'))[:9]}"
        if run.provenance("git.revision")
        else "",
    ]
    return (
        '<header><p class="eyebrow">VLA-RL run report</p>'
        f"<h1>{escape(display_name(run.folder))}</h1>"
        f'<p class="meta">{escape(" · ".join(fact for fact in facts if fact))}</p>'
        f'<p class="lead">{escape(" ".join(story(run)))}</p>{_tiles(run)}'
        f"{_notices('care', 'Read with care', [*warnings(run), *run.problems])}"
        f"{_notices('missing', 'Missing from this run folder', run.missing)}</header>"
    )


def success(run: Run) -> str:
    """Success before and after, greedy and sampled."""
    rows = [
        _row(mode.capitalize(), comparison(run, mode))
        for mode in MODES
        if any((stage, mode) in run.evaluations for stage in ("before", "after"))
    ]
    return _comparison_table("Mode", rows) + _protocol(run) if rows else ""


def tasks(run: Run) -> str:
    """The same task by task: the main mode openly, the other one folded."""
    first = main_mode(run)
    parts: list[str] = []
    for mode in sorted(MODES, key=lambda mode: mode != first):
        rows = _task_rows(run, mode)
        if rows and mode == first:
            parts.append(f"<h3>{mode.capitalize()}</h3>{_comparison_table('Task', rows)}")
        elif rows:
            table = _table("compare", "Task", rows)
            parts.append(f"<details><summary>{mode.capitalize()}</summary>{table}</details>")
    return "".join(parts)


def configuration(run: Run) -> str:
    """Settings that differ from the defaults, then all of them, folded by group."""
    if not run.config:
        return ""
    settings, defaults = _flat(run.config), _flat(to_json(TrainConfig()))
    changed = {k: v for k, v in settings.items() if k in defaults and defaults[k] != v}
    rows = [
        f"<tr><td><code>{escape(k)}</code></td><td><code>{_value(v)}</code></td>"
        f"<td><code>{_value(defaults[k])}</code></td></tr>"
        for k, v in changed.items()
    ]
    head = "<thead><tr><th>Setting</th><th>This run</th><th>Default</th></tr></thead>"
    parts = (
        [
            f'<div class="card scroll"><table class="settings wide">{head}{"".join(rows)}</table></div>'
        ]
        if rows
        else []
    )
    groups: dict[str, list[str]] = {}
    for key in settings:
        groups.setdefault(key.split(".")[0], []).append(key)
    for group, keys in groups.items():
        mine = sum(key in changed for key in keys)
        note = f" <span>{len(keys)} settings{f', {mine} changed' if mine else ''}</span>"
        body = "".join(_setting(key, settings[key], key in changed) for key in keys)
        parts.append(
            f"<details><summary>{escape(group)}{note}</summary>"
            f'<div class="scroll"><table class="settings">{body}</table></div></details>'
        )
    return "".join(parts)


def environment(run: Run) -> str:
    """Versions, code, machine, time."""
    cards: list[str] = []
    versions = run.info.get("versions")
    if isinstance(versions, Mapping):
        cards.append(_facts("Versions", {str(k): v for k, v in versions.items()}))
    rest = {k: v for k, v in run.info.items() if k not in ("versions", "command", "resumed")}
    if rest:
        cards.append(_facts("Code, machine, time", _flat(rest)))
    return f'<div class="columns">{"".join(cards)}</div>' if cards else ""


def reproduce(run: Run) -> str:
    """The commands that led here, as far as they are known."""
    commands: list[tuple[str, str]] = []
    if revision := run.provenance("git.revision"):
        commands.append(("The code", f"git checkout {revision}"))
    if command := _command(run.info):
        commands.append(("The run", command))
    resumed = run.info.get("resumed")
    for entry in resumed if isinstance(resumed, list) else ():
        if isinstance(entry, Mapping) and (command := _command(entry)):
            commands.append(("Resumed by", command))
    evaluations = [_eval_command(run, e) for e in run.evaluations.values()]
    commands += [("The evaluations", "\n".join(evaluations))] if evaluations else []
    commands.append(("This page", f"vla-rl report {shlex.quote(str(run.folder))}"))
    return "".join(f"<h3>{name}</h3><pre>{escape(text)}</pre>" for name, text in commands)


def _tiles(run: Run) -> str:
    tiles: list[tuple[str, str, str]] = []
    for mode in MODES:
        c = comparison(run, mode)
        if c.before is not None and c.after is not None:
            way = "up" if c.gain > 0 else "down" if c.gain < 0 else ""
            figure = f"<small>{percent(c.before.rate)} →</small> {percent(c.after.rate)}"
            more = f'<span class="{way}">{points(c.gain)} points</span>{_plain_interval(c)}'
            tiles.append((f"{mode.capitalize()} success", figure, more))
        elif rate := c.before or c.after:
            more = f"{'before' if c.before else 'after'} training [{percent(rate.low)}, {percent(rate.high)}]"
            tiles.append((f"{mode.capitalize()} success", percent(rate.rate), more))
    seconds, episodes = training_seconds(run), practice_episodes(run)
    if seconds == seconds:
        per = f"{seconds / len(run.metrics):.1f} s per iteration"
        tiles.append(("Training time", duration(seconds), per))
    if episodes:
        rate = f"{episodes / seconds:.1f} per second" if seconds > 0 else ""
        tiles.append(("Practice episodes", f"{episodes:,}", rate))
    cells = [
        f'<div class="tile"><p class="what">{what}</p><p class="figure">{figure}</p><p class="more">{more}</p></div>'
        for what, figure, more in tiles
    ]
    return f'<div class="tiles">{"".join(cells)}</div>' if cells else ""


def _plain_interval(c: Comparison) -> str:
    if c.paired is None:
        return ""
    return f' <span class="number">[{points(c.paired.low)}, {points(c.paired.high)}]</span>'


def _notices(kind: str, title: str, sentences: Iterable[str]) -> str:
    items = "".join(f"<li>{escape(sentence)}</li>" for sentence in sentences)
    return f'<aside class="{kind}"><h2>{title}</h2><ul>{items}</ul></aside>' if items else ""


def _task_rows(run: Run, mode: Mode) -> list[str]:
    each = {task: comparison(run, mode, task) for task in run.tasks}
    rows = [_row(task, c) for task, c in each.items() if c.before or c.after]
    if len(rows) > 1:
        rows.append(_row("All tasks", comparison(run, mode), "all"))
    return rows


def _comparison_table(what: str, rows: list[str]) -> str:
    return f'<div class="card">{_table("compare", what, rows)}</div>'


def _table(kind: str, what: str, rows: list[str]) -> str:
    key = '<div class="scale-key" aria-hidden="true"><span>0%</span><span>50%</span><span>100%</span></div>'
    return (
        f'<div class="scroll"><table class="{kind}" role="table"><thead role="rowgroup"><tr role="row">'
        f'<th role="columnheader">{what}</th><th role="columnheader">{key}</th>'
        f'<th role="columnheader"><i class="swatch dot before"></i>Before</th>'
        f'<th role="columnheader"><i class="swatch dot after"></i>After</th>'
        f'<th role="columnheader">Gain in points</th></tr></thead>'
        f'<tbody role="rowgroup">{"".join(rows)}</tbody></table></div>'
    )


def _row(name: str, c: Comparison, kind: str = "") -> str:
    way = {"gained": "up", "lost": "down", "unclear": ""}[c.verdict]
    interval = f"95%: {points(c.paired.low)} to {points(c.paired.high)}" if c.paired else ""
    gain = (
        f'<span class="number big {way}">{points(c.gain)}</span> '
        f'<span class="interval-text number">{interval}</span>'
    )
    return (
        f'<tr role="row" class="{kind}"><td role="cell" class="name">{escape(name)}</td>'
        f'<td role="cell" class="scale">{interval_bar(c.before, c.after)}</td>'
        f'<td role="cell" class="rate">{_rate("Before", c.before)}</td>'
        f'<td role="cell" class="rate">{_rate("After", c.after)}</td>'
        f'<td role="cell" class="gain"><span class="label">Gain </span>{gain}</td></tr>'
    )


def _rate(label: str, rate: Rate | None) -> str:
    name = f'<span class="label"><i class="swatch dot {label.lower()}"></i>{label} </span>'
    if rate is None or not rate.episodes:
        return f"{name}–"
    return (
        f'{name}<span class="number">{percent(rate.rate)}</span> '
        f'<span class="interval-text"><span class="number">{rate.successes} of {rate.episodes}</span> '
        f'<span class="number">[{percent(rate.low)}, {percent(rate.high)}]</span></span>'
    )


def _protocol(run: Run) -> str:
    """How it was measured, from the evaluation itself."""
    evaluation = run.evaluations.get(("after", main_mode(run))) or next(
        iter(run.evaluations.values())
    )
    raw = evaluation.raw
    each = raw.get("initial_states")
    known = [
        f"{len(each)} {raw.get('split', '')} initial states per task"
        if isinstance(each, list)
        else "",
        f"at most {raw['horizon']} turns" if raw.get("horizon") else "",
        f"{raw['action_chunk']} actions a turn" if raw.get("action_chunk") else "",
        f"each held for {raw['action_repeat']} simulator steps" if raw.get("action_repeat") else "",
    ]
    text = ", ".join(part for part in known if part)
    c = comparison(run, main_mode(run))
    turns = ""
    if c.before and c.after and c.before.mean_turns is not None and c.after.mean_turns is not None:
        first, last = number(c.before.mean_turns), number(c.after.mean_turns)
        turns = (
            f" Episodes took {first} turns on average before and {last} after ({main_mode(run)})."
        )
    return (
        f'<p class="note below">Each (task, initial state) was played exactly once'
        f"{': ' + escape(text) if text else ''}. Bars are Wilson 95% intervals; gains are paired over the same "
        f"initial states.{turns}</p>"
    )


def _setting(key: str, value: Any, changed: bool) -> str:
    mark = ' class="changed"' if changed else ""
    return (
        f"<tr{mark}><td><code>{escape(key)}</code></td><td><code>{_value(value)}</code></td></tr>"
    )


def _facts(title: str, facts: Mapping[str, Any]) -> str:
    rows = "".join(
        f"<tr><td>{escape(k)}</td><td><code>{_value(v)}</code></td></tr>" for k, v in facts.items()
    )
    return f'<div class="card"><h3>{title}</h3><div class="scroll"><table class="settings">{rows}</table></div></div>'


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings under dotted names."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        flat |= _flat(value, f"{name}.") if isinstance(value, Mapping) and value else {name: value}
    return flat


def _value(value: Any) -> str:
    if value is None:
        return "none"
    return escape(
        value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False)
    )


def _command(info: Mapping[str, Any]) -> str:
    command = info.get("command")
    if isinstance(command, list):
        return shlex.join(str(word) for word in command)
    return str(command) if command else ""


def _eval_command(run: Run, evaluation: Evaluation) -> str:
    raw, sampling = evaluation.raw, evaluation.raw.get("sampling")
    states = raw.get("initial_states")
    options = {
        "suite": raw.get("suite"),
        "split": raw.get("split"),
        "episodes-per-task": len(states) if isinstance(states, list) else None,
        "temperature": sampling.get("temperature") if isinstance(sampling, Mapping) else None,
        "seed": raw.get("seed"),
        "json": f"{evaluation.stage}-{evaluation.mode}.json",
    }
    checkpoint = raw.get("checkpoint")
    if checkpoint in (None, *STAGES):  # evaluated inside the run, which names no folder
        start = run.setting("policy.checkpoint") or "CHECKPOINT"
        checkpoint = start if evaluation.stage == "before" else run.folder
    words = ["vla-rl", "eval", str(checkpoint)]
    for name, value in options.items():
        words += [] if value is None else [f"--{name}", str(value)]
    return shlex.join(words)
