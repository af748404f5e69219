"""Which evaluated episodes start where the policy has practised, and how it did there and elsewhere.

A policy that is evaluated on the initial states of its own practice is measured on its exercises. So every result says
how many of its episodes those are, and counts them apart.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from vla_rl.config import EnvConfig
from vla_rl.envs import split_initial_states
from vla_rl.envs.registry import task_names
from vla_rl.evaluation.episodes import EpisodeRecord
from vla_rl.types import EpisodeSpec

Summary = Callable[[Sequence[EpisodeRecord]], dict[str, Any]]


def practised_in(trained_in: EnvConfig) -> Callable[[EpisodeSpec], bool]:
    """Whether practice (or demonstrations) in `trained_in` may have started an episode there.

    The tasks of its suite, from the initial states that are not held out.
    """
    states, _ = split_initial_states(trained_in.initial_states, trained_in.held_out)
    seen, tasks = frozenset(states.tolist()), frozenset(task_names(trained_in.suite))
    return lambda spec: spec.task in tasks and spec.initial_state in seen


def apart(
    records: Sequence[EpisodeRecord], trained_in: EnvConfig | None, summary: Summary
) -> dict[str, Any]:
    """The result's field `practice`: the episodes from practised initial states and those from held-out ones.

    `known` is false where nothing says what the policy was trained in, as for a checkpoint from a hub. A part without
    episodes is None.
    """
    if trained_in is None:
        return {"known": False, "practised": None, "held_out": None}
    practised = practised_in(trained_in)
    seen = [record for record in records if practised(record.spec)]
    new = [record for record in records if not practised(record.spec)]
    return {
        "known": True,
        "practised": summary(seen) if seen else None,
        "held_out": summary(new) if new else None,
    }
