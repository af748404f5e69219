"""Cards for the Hugging Face hub, written from what a run folder tells: nothing is claimed that is not there."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from vla_rl import __version__
from vla_rl.report.run_data import Evaluation, Run, read_run
from vla_rl.runtime.files import read_json
from vla_rl.runtime.hub import hub_id

_LOADS = {
    "policy": "vla-rl eval {0}\nvla-rl train PRESET --policy.checkpoint {0}",
    "reward model": "vla-rl train PRESET --reward.kind process --reward.model {0}",
    "dataset": "vla-rl sft --dataset {0}",
}
_SETTINGS = (
    "algorithm", "env.suite", "env.horizon", "env.action_chunk", "optimizer.learning_rate", "rollout.temperature",
    "rollout.turns", "ppo.gamma", "ppo.gae_lambda", "ppo.clip_low", "ppo.clip_high", "curriculum.mode", "reward.kind",
    "schedule.iterations", "schedule.episodes", "schedule.minutes", "run.seed",
)  # fmt: skip
_TAGS = ["vla-rl", "robotics"]


def card(kind: str, folder: Path, given: Path, repository: str, licence: str) -> str:
    """README.md of a policy, a reward model or a dataset: front matter for the hub, then prose and tables."""
    run = _run_of(given)
    front: dict[str, Any] = {"license": licence} if licence else {}
    front["tags"] = [*_TAGS, *(["LeRobot"] if kind == "dataset" else ["reinforcement-learning"])]
    if kind == "dataset":
        front["task_categories"] = ["robotics"]
    else:
        front["library_name"] = "vla-rl"
        front |= {"pipeline_tag": "robotics"} if kind == "policy" else {}
    base = _base(run) if kind == "policy" else ""
    front |= {"base_model": base.partition("@")[0]} if base and hub_id(base) is not None else {}
    parts = [f"# {repository.partition('/')[2]}", _opening(kind, run)]
    parts += _dataset(folder) if kind == "dataset" else []
    if run is not None:
        parts += [*_results(run), *_recipe(run, base)]
    elif kind != "dataset":
        parts.append("What it was trained on is not known here: it was pushed without its run.")
    parts += [
        f"## How to load it\n\n```text\npip install vla-rl\n{_LOADS[kind].format(repository)}\n```",
        "## Licence\n\n"
        + (f"{licence}." if licence else "None was given; ask the author before you use it.")
        + (" The base checkpoint's licence holds as well." if base else ""),
        f"Written by VLA-RL {__version__}.",
    ]
    return f"---\n{_yaml(front)}---\n\n" + "\n\n".join(parts) + "\n"


def without_paths(words: Sequence[str]) -> str:
    """A command line with paths of this machine shortened to their last names, the program's among them."""
    cleaned = []
    for word in words:
        name, equals, value = word.partition("=")
        last = value if equals else name
        last = Path(last).name if last.startswith(("/", "~")) else last
        cleaned.append(f"{name}={last}" if equals else last)
    if cleaned and cleaned[0] in ("__main__.py", "-m", "-c"):
        cleaned[0] = "vla-rl"
    return shlex.join(cleaned)


def _run_of(given: Path) -> Run | None:
    """The training run that `given` is or lies in."""
    from vla_rl.runtime.run_folder import training_run

    for folder in (training_run(given), *given.absolute().parents[:3]):
        if (folder / "run.json").is_file() and (folder / "config.json").is_file():
            return read_run(folder)
    return None


def _opening(kind: str, run: Run | None) -> str:
    suite = _setting(run.config, "env.suite") if run is not None else None
    if kind == "policy":
        of = f" on {suite}" if suite else ""
        return f"A policy of [VLA-RL](https://arxiv.org/abs/2505.18719){of}: vision, language and action tokens."
    if kind == "dataset":
        return "Episodes of a robot in the format LeRobotDataset v3.0."
    paper = "[VLA-RL](https://arxiv.org/abs/2505.18719)"
    return f"A process reward model of {paper}: it scores what a robot is doing from images."


def _results(run: Run) -> Iterator[str]:
    if not run.evaluations:
        return
    yield (
        "## Results\n\nSuccess with Wilson's 95 % interval, each initial state played once. `greedy` takes the most "
        "likely action, `sampled` draws it."
    )
    found = list(run.evaluations.values())
    rows = [_row("all", found)]
    rows += [
        _row(task, found)
        for task in dict.fromkeys(t for evaluation in found for t in evaluation.tasks)
    ]
    heads = [f"{evaluation.stage}, {evaluation.mode}" for evaluation in found]
    split = found[0].raw.get("split", "?")
    yield (
        f"Split: {split}.\n\n| task | {' | '.join(heads)} |\n|---|{'---|' * len(heads)}\n"
        + "\n".join(rows)
    )


def _row(task: str, evaluations: Sequence[Evaluation]) -> str:
    cells = []
    for evaluation in evaluations:
        rate = evaluation.overall if task == "all" else evaluation.tasks.get(task)
        cells.append(
            "-"
            if rate is None
            else f"{rate.rate:.1%} [{rate.low:.1%}, {rate.high:.1%}] of {rate.episodes}"
        )
    return f"| {task} | {' | '.join(cells)} |"


def _recipe(run: Run, base: str) -> Iterator[str]:
    command = run.info.get("command")
    lines = ["## How it was made"]
    if isinstance(command, list) and command:
        lines.append(f"```text\n{without_paths([str(word) for word in command])}\n```")
    git = run.info.get("git")
    if isinstance(git, Mapping) and git.get("revision"):
        changed = " with changes that were not committed" if git.get("dirty") else ""
        lines.append(f"Revision of VLA-RL: {git['revision']}{changed}.")
    lines.append(f"Base checkpoint: {base or 'none, from random weights'}.")
    if not base and _setting(run.config, "dataset"):
        lines[-1] = f"Dataset: {Path(str(_setting(run.config, 'dataset'))).name}."
    rows = [
        f"| {name} | {value} |"
        for name in _SETTINGS
        if (value := _setting(run.config, name)) is not None
    ]
    if rows:
        lines.append("| setting | value |\n|---|---|\n" + "\n".join(rows))
    versions = run.info.get("versions")
    if isinstance(versions, Mapping):
        known = ", ".join(f"{name} {found}" for name, found in versions.items() if found)
        lines.append(f"Versions: {known}.")
    yield "\n\n".join(lines)


def _dataset(folder: Path) -> Iterator[str]:
    info = read_json(folder / "meta" / "info.json")
    yield (
        f"{info.get('total_episodes')} episodes, {info.get('total_frames')} frames at {info.get('fps')} a second, "
        f"robot: {info.get('robot_type') or 'not named'}."
    )
    features = info.get("features") or {}
    rows = [f"| {n} | {f.get('dtype')} | {f.get('shape')} |" for n, f in features.items()]
    yield "| feature | type | shape |\n|---|---|---|\n" + "\n".join(rows)


def _base(run: Run | None) -> str:
    """What was practised from: a hub id as it is, a folder by its last names without the machine's."""
    named = str(_setting(run.config, "policy.checkpoint") or "") if run is not None else ""
    if not named or hub_id(named) is not None:
        return named
    return "/".join(Path(named).parts[-2:]) if not Path(named).is_absolute() else Path(named).name


def _setting(config: Mapping[str, Any], path: str) -> Any:
    value: Any = config
    for name in path.split("."):
        value = value.get(name) if isinstance(value, Mapping) else None
    return value


def _yaml(values: Mapping[str, Any]) -> str:
    """Front matter: texts and lists of texts, quoted as JSON, which YAML contains."""
    return "".join(f"{name}: {json.dumps(value)}\n" for name, value in values.items())
