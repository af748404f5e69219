"""What happened, in words and numbers computed from the run: comparison, sentences, warnings."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from vla_rl.functional.intervals import PairedDifference, paired_difference
from vla_rl.report.page.charts import Values, moving_average, percent, points
from vla_rl.report.run_data import MODES, Evaluation, Mode, Rate, Run

FEW_EPISODES = 20  # per task: the 95 % interval is then wider than 40 points at 50 %
TIME_PARTS = ("simulate", "infer", "learn", "score", "sync", "wait", "other")
_LONGEST = 1e15  # a limit beyond this is none, and would not fit a float
_COLLAPSE = 0.10  # fall of the training success from its best that is worth a word
_RETRIED = "restarted and retried, not counted as failed episodes"
_NOT_ALIKE = (
    "suite",
    "split",
    "horizon",
    "action_repeat",
    "action_chunk",
    "sampling",
    "initial_states",
)


@dataclass(frozen=True)
class Comparison:
    """Success before and after training, of a task or of all; what is not known is None."""

    before: Rate | None
    after: Rate | None
    paired: PairedDifference | None  # over the initial states played both times

    @property
    def gain(self) -> float:
        """After minus before as a fraction; over the pairs where there are any."""
        if self.paired is not None:
            return self.paired.mean
        if self.before is None or self.after is None:
            return math.nan
        return self.after.rate - self.before.rate

    @property
    def verdict(self) -> Literal["gained", "lost", "unclear"]:
        """Whether the 95 % interval of the paired difference leaves out zero."""
        if self.paired is not None and self.paired.low > 0:
            return "gained"
        if self.paired is not None and self.paired.high < 0:
            return "lost"
        return "unclear"


def compare(
    before: Evaluation | None, after: Evaluation | None, task: str | None = None
) -> Comparison:
    """Compare two evaluations, on one task or on all of them."""

    def rate(evaluation: Evaluation | None) -> Rate | None:
        if evaluation is None:
            return None
        return evaluation.overall if task is None else evaluation.tasks.get(task)

    paired = None
    if before is not None and after is not None:
        first, second = before.successes(), after.successes()
        keys = [key for key in first if key in second and task in (None, key[0])]
        if keys:
            paired = paired_difference([first[k] for k in keys], [second[k] for k in keys])
    return Comparison(rate(before), rate(after), paired)


def main_mode(run: Run) -> Mode:
    """The mode to speak of first: greedy, unless only sampled success is known at both ends."""
    for mode in MODES:
        if ("before", mode) in run.evaluations and ("after", mode) in run.evaluations:
            return mode
    for mode in MODES:
        if ("before", mode) in run.evaluations or ("after", mode) in run.evaluations:
            return mode
    return "greedy"


def comparison(run: Run, mode: Mode, task: str | None = None) -> Comparison:
    """Compare the run's two evaluations of one mode."""
    return compare(
        run.evaluations.get(("before", mode)), run.evaluations.get(("after", mode)), task
    )


def training_seconds(run: Run) -> float:
    """Seconds of reinforcement learning: simulation, inference, learning and the rest."""
    parts = [c for c in (run.metrics.get(f"time/{part}") for part in TIME_PARTS) if c is not None]
    if parts:
        return float(sum(np.nansum(part) for part in parts))
    wall = run.metrics.get("wall_seconds")
    return float(np.nanmax(wall)) if wall is not None else math.nan


def practice_episodes(run: Run) -> int:
    """Episodes played for learning."""
    episodes = run.metrics.get("rollout/episodes")
    return int(np.nansum(episodes)) if episodes is not None else 0


def duration(seconds: float) -> str:
    """59 -> "59 s", 603 -> "10 min 3 s", 4320 -> "1 h 12 min"."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min" + (f" {whole % 60} s" if whole % 60 else "")
    return f"{whole // 3600} h" + (f" {whole % 3600 // 60} min" if whole % 3600 // 60 else "")


def smooth_window(iterations: int) -> int:
    """Iterations that the moving average spans: a twelfth of them."""
    return max(1, math.ceil(iterations / 12))


def smoothed(run: Run, key: str) -> Values | None:
    """Moving average of a metric, weighted by the episodes of each iteration where they are known."""
    values = run.metrics.get(key)
    if values is None:
        return None
    window = smooth_window(len(run.metrics))
    return moving_average(values, window, run.metrics.get("rollout/episodes"))


def story(run: Run) -> list[str]:
    """One paragraph in plain words, sentence by sentence."""
    sentences = [_practice(run), *_outcome(run), *_tasks(run)]
    return [sentence for sentence in sentences if sentence]


def warnings(run: Run) -> list[str]:
    """What a careful reader must know before believing the numbers."""
    return [*_evaluation_warnings(run), *_training_warnings(run)]


def _practice(run: Run) -> str:
    iterations, episodes = len(run.metrics), practice_episodes(run)
    if not iterations:
        return "There is no record of training in this run folder."
    seconds, cores = training_seconds(run), run.provenance("machine.cpus")
    took = f" in {duration(seconds)}" if math.isfinite(seconds) else ""
    where = f" on a machine with {cores} CPU cores" if isinstance(cores, int) else ""
    played = f"{episodes:,} practice episodes and " if episodes else ""
    updates = "1 update" if iterations == 1 else f"{iterations:,} updates"
    return f"The policy learned from {played}{updates}{took}{where}."


def _outcome(run: Run) -> Iterable[str]:
    mode = main_mode(run)
    c = comparison(run, mode)
    known = c.after or c.before
    if known is None:
        yield "It was never evaluated, so its success before and after is not known."
        return
    evaluation = run.evaluations.get(("after", mode)) or run.evaluations["before", mode]
    how = "always choosing its most likely action" if mode == "greedy" else "sampling its actions"
    split = str(evaluation.raw.get("split", ""))
    test = f"{known.episodes} {split} test episodes of {_count(len(evaluation.tasks), 'task')}"
    if c.before is None or c.after is None:
        when = "before" if c.after is None else "after"
        yield (
            f"In {test}, {how}, it solved {percent(known.rate)} {when} training; "
            f"{_so_far(run) if run.training else 'the other evaluation is missing.'}"
        )
        return
    first, second = percent(c.before.rate), percent(c.after.rate)
    verb = "rose from" if c.gain > 0 else "fell from" if c.gain < 0 else "stayed at"
    change = first if c.gain == 0 else f"{first} to {second}"
    yield f"In {test}, {how}, its success {verb} {change}."
    if c.paired is not None:
        yield _paired_sentence(c.paired, c.verdict)
    other: Mode = "sampled" if mode == "greedy" else "greedy"
    o = comparison(run, other)
    if o.before is not None and o.after is not None:
        manner = (
            "Sampling its actions, as it does while it practises"
            if other == "sampled"
            else "Choosing greedily"
        )
        yield f"{manner}, it went from {percent(o.before.rate)} to {percent(o.after.rate)}."


def _paired_sentence(paired: PairedDifference, verdict: str) -> str:
    interval = f"95% interval {points(paired.low)} to {points(paired.high)}"
    same = f"over the same {paired.pairs} initial states"
    if verdict == "unclear":
        return (
            f"Paired {same}, the change is {points(paired.mean)} points ({interval}), "
            "which this evaluation cannot tell from no change."
        )
    word = "gain" if verdict == "gained" else "loss"
    return f"Paired {same}, that is a {word} of {points(abs(paired.mean)).lstrip('+')} points ({interval})."


def _tasks(run: Run) -> Iterable[str]:
    mode = main_mode(run)
    each = {task: comparison(run, mode, task) for task in run.tasks}
    each = {task: c for task, c in each.items() if c.before is not None and c.after is not None}
    if len(each) < 2:
        return
    by_gain = sorted(each, key=lambda task: -each[task].gain)
    gained = [task for task in by_gain if each[task].verdict == "gained"]
    lost = [task for task in reversed(by_gain) if each[task].verdict == "lost"]
    unclear = [task for task in by_gain if each[task].verdict == "unclear"]
    if len(gained) == len(each):
        most, least = (points(each[task].gain) for task in (gained[0], gained[-1]))
        yield f"Every task gained, {gained[0]} most ({most} points) and {gained[-1]} least ({least})."
        return
    longest = 8 if len(each) <= 10 else 4
    groups = {"Measurably better": gained, "No measurable change": unclear, "Worse": lost}
    for verdict, names in groups.items():
        if names:
            shown = _list((f"{task} ({points(each[task].gain)})" for task in names), longest)
            yield f"{verdict} ({len(names)} of {len(each)}): {shown}."


def _evaluation_warnings(run: Run) -> Iterable[str]:
    for mode in MODES:
        before, after = run.evaluations.get(("before", mode)), run.evaluations.get(("after", mode))
        if before is None or after is None:
            continue
        unlike = [key for key in _NOT_ALIKE if before.raw.get(key) != after.raw.get(key)]
        if unlike:
            yield (
                f"The {mode} evaluations before and after differ in {_list(unlike)}: "
                "they do not measure the same thing."
            )
        c = compare(before, after)
        if before.overall.overlaps(after.overall):
            yield f"The {mode} intervals before and after overlap: a repetition may come out the other way."
        pairs = c.paired.pairs if c.paired is not None else 0
        if pairs < max(before.overall.episodes, after.overall.episodes):
            yield (
                f"Only {pairs} initial states were played both before and after ({mode}): "
                "the paired gain rests on those."
            )
    for evaluation in run.evaluations.values():
        if evaluation.infrastructure_errors:
            failures = _count(evaluation.infrastructure_errors, "simulator failure")
            yield f"{failures} in {evaluation.file.name} ({_RETRIED})."
    yield from _practised(run)
    fewest = min(
        (r.episodes for e in run.evaluations.values() for r in e.tasks.values()),
        default=FEW_EPISODES,
    )
    if fewest < FEW_EPISODES:
        yield (
            f"Only {_count(fewest, 'test episode')} per task: "
            "single tasks are measured coarsely, read their intervals."
        )
    if run.evaluations:
        seed = run.setting("run.seed")
        yield (
            f"This is one run with one seed{'' if seed is None else f' ({seed})'}: "
            "the intervals cover the luck of the test episodes, not that of training."
        )


def _practised(run: Run) -> Iterable[str]:
    """What the evaluation says of initial states that the policy was also trained on."""
    evaluation = run.evaluations.get(("after", main_mode(run)))
    if evaluation is None:
        return
    if evaluation.practised is None:
        if evaluation.raw.get("split") in ("train", "all"):
            yield (
                "The evaluation used initial states that the policy also trained on: "
                "success on new ones may be lower."
            )
        return
    seen, new = evaluation.practised, evaluation.held_out
    told = (
        f"{seen.episodes} of the {evaluation.overall.episodes} test episodes began in initial states that the policy "
        f"was also trained on: it solved {percent(seen.rate)} of those"
    )
    if new is None:
        yield f"{told}. Success on new ones may be lower."
    else:
        yield f"{told} and {percent(new.rate)} of the {new.episodes} held-out ones."


def _training_warnings(run: Run) -> Iterable[str]:
    errors = run.metrics.get("rollout/infrastructure_errors")
    if errors is not None and np.nansum(errors):
        yield f"{_count(counted(errors), 'simulator failure')} during training ({_RETRIED})."
    if early := _stopped_early(run):
        yield early
    if run.metrics.not_finite:
        yield f"Some values were not finite in {_list(run.metrics.not_finite)}: training was unstable."
    success = smoothed(run, "rollout/success_rate")
    if success is not None and np.isfinite(success).any():
        known = success[np.isfinite(success)]
        if float(known.max() - known[-1]) > _COLLAPSE:
            best = int(run.metrics.index[int(np.nanargmax(success))])
            top, end = percent(float(known.max())), percent(float(known[-1]))
            yield f"Training success was best around iteration {best} ({top}) and ended lower ({end})."
    tolerance, gap = (
        run.setting("ppo.logprob_tolerance"),
        run.metrics.get("losses/logprob_max_difference"),
    )
    if (
        gap is not None
        and isinstance(tolerance, (int, float))
        and float(np.nanmax(gap)) > tolerance
    ):
        worst = float(np.nanmax(gap))
        yield f"Sampler and learner disagreed on log-probs by up to {worst:.2g} (tolerance {tolerance:g})."
    if run.provenance("git.dirty"):
        yield "The code had uncommitted changes: the git revision alone does not reproduce this run."


def _stopped_early(run: Run) -> str:
    """Empty where one of the planned limits was reached, or none is known."""
    done, seconds = len(run.metrics), training_seconds(run)
    if not done:
        return ""
    played = practice_episodes(run)
    reached: list[tuple[float, str]] = []
    if (minutes := _limit(run, "minutes")) > 0:
        if not math.isfinite(seconds):
            return ""
        # the last iteration may have been the one that would have passed the limit
        share = seconds / (0.95 * 60 * minutes)
        reached.append((share, f"{duration(seconds)} of the planned {minutes:g} min"))
    if (planned := _limit(run, "episodes")) > 0:
        reached.append((played / planned, f"{played:,} of {planned:,.0f} planned episodes"))
    if (planned := _limit(run, "iterations")) > 0:
        reached.append((done / planned, f"{done} of {planned:g} planned iterations"))
    if not reached or max(share for share, _ in reached) >= 1:
        return ""
    verb = "is still training" if run.training else "stopped early"
    return f"The run {verb}: {reached[0][1]}."


def _so_far(run: Run) -> str:
    """What the last evaluation during training found."""
    if not run.during:
        return "training goes on."
    last = max(run.during)
    return f"after iteration {last} it is {percent(run.during[last].rate)}, and training goes on."


def _limit(run: Run, name: str) -> float:
    """A limit of the run's length; 0 where there is none."""
    value = run.setting(f"schedule.{name}")
    return value if isinstance(value, (int, float)) and abs(value) <= _LONGEST else 0.0


def counted(running: Values) -> int:
    """The total of a counter that only grows but starts at zero again where a run was resumed."""
    known = running[np.isfinite(running)]
    steps = np.diff(known, prepend=0.0)
    return int(np.where(steps < 0, known, steps).sum())


def _count(number: int, thing: str) -> str:
    return f"{number:,} {thing}{'' if number == 1 else 's'}"


def _list(words: Iterable[str], most: int = 8) -> str:
    """'a, b and c'; of many only the first `most`."""
    known: Sequence[str] = list(words)
    if len(known) > most:
        known = [*known[: most - 1], f"{len(known) - most + 1} more"]
    return known[0] if len(known) == 1 else f"{', '.join(known[:-1])} and {known[-1]}"
