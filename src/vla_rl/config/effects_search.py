"""Which options of `vla-rl eval` and `vla-rl test-time` count when; part of the table in effects.py."""

# pyright: basic
# A condition looks at the configuration of whatever command it belongs to.

from __future__ import annotations

from typing import Any

from vla_rl.config.effect import Effect


def _chooses(config: Any) -> bool:
    return config.best_of > 1


_TRIES = ("trajectory_turns", "refine_from", "temperatures", "turn_budget")
VIDEOS_OUT = Effect(
    ("videos_out",),
    lambda c: c.protocol.videos > 0,
    "no videos are made; give --videos, the number per task",
)
EVAL = (
    Effect(
        ("fractions",),
        lambda c: bool(c.starts),
        "every episode starts at its beginning; give demonstrations with snapshots with --starts",
    ),
    Effect(
        ("best_of", "protocol.split"),
        lambda c: not c.starts,
        "with --starts the policy plays by itself, from the states of the demonstrations",
    ),
    Effect(
        ("mode", "chooser", "reward_model", "lookahead", "success_ahead", *_TRIES),
        _chooses,
        "without --best-of 2 or more the policy plays its own actions and nothing is chosen",
    ),
    Effect(
        ("lookahead", "success_ahead"),
        lambda c: c.mode == "lookahead",
        "it belongs to --mode lookahead",
    ),
    Effect(
        ("trajectory_turns",),
        lambda c: c.mode == "trajectory",
        "it belongs to --mode trajectory",
    ),
    Effect(
        ("refine_from", "temperatures"),
        lambda c: c.mode == "refine",
        "it belongs to --mode refine",
    ),
    Effect(
        ("turn_budget",),
        lambda c: c.mode in ("trajectory", "refine"),
        "it belongs to --mode trajectory and --mode refine",
    ),
    Effect(
        ("success_ahead",),
        lambda c: c.chooser in ("reward-model", "simulator"),
        "--chooser success sees it anyway, and random does not look",
    ),
    Effect(
        ("reward_model",),
        lambda c: c.chooser == "reward-model",
        "--chooser asks no reward model",
    ),
    VIDEOS_OUT,
    Effect(
        ("protocol.seed",),
        lambda c: c.protocol.temperature > 0 or c.best_of > 1,
        "greedy play draws nothing at random; it counts with --temperature above 0",
        "warning",
    ),
)
TEST_TIME = (
    Effect(("search.best_of",), lambda c: False, "the numbers of candidates are given by --sizes"),
    Effect(
        ("search.chooser", "search.success_ahead"),
        lambda c: False,
        "what is compared is given by --choosers",
    ),
    Effect(
        ("protocol.temperature",),
        lambda c: False,
        "the candidates are sampled at search.temperature",
    ),
    Effect(("protocol.videos",), lambda c: False, "the study makes no videos; `vla-rl eval` does"),
    Effect(
        ("search.lookahead", "search.execute"),
        lambda c: c.search.mode == "lookahead",
        "it belongs to search.mode lookahead",
    ),
    Effect(
        ("search.trajectory_turns",),
        lambda c: c.search.mode == "trajectory" or "trajectories" in c.choosers,
        "it belongs to search.mode trajectory",
    ),
    Effect(
        ("search.refine_from", "search.temperatures"),
        lambda c: c.search.mode == "refine",
        "it belongs to search.mode refine",
    ),
    Effect(
        ("search.turn_budget",),
        lambda c: c.search.mode in ("trajectory", "refine"),
        "it belongs to search.mode trajectory and refine",
    ),
    Effect(
        ("search.reward_model",),
        lambda c: any(name.startswith("reward-model") for name in c.choosers),
        "none of --choosers asks a reward model",
    ),
)
