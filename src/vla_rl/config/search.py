"""Spending compute when a policy is used instead of when it is trained."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from annotated_types import Ge, Le

from vla_rl.config.bounds import Candidates, Config, Temperature, Whole, Workers
from vla_rl.config.errors import require
from vla_rl.config.evaluation import EvalConfig

SearchMode = Literal["action", "lookahead", "trajectory", "refine"]
ChooserName = Literal["reward-model", "simulator", "success", "random"]
StudyChooser = Literal[
    "reward-model-alone", "reward-model", "success", "simulator", "random", "trajectories"
]


@dataclass(frozen=True)
class BestOfConfig(Config, group="search"):
    """Best of N: candidates are sampled from the policy, and a chooser picks."""

    best_of: Candidates = 8
    """N, the candidates of each decision; for `refine` the rounds, the first one included. 1 is plain play."""
    mode: SearchMode = "lookahead"
    """action: N actions are sampled and one is played. lookahead: N continuations are played from a snapshot of the
    simulator and the first turn of one is kept. trajectory: N whole trajectories are played and the one with the best
    mean score is kept. refine: the episode is played to its end and again from a turn on where the score is low
    (`refine_from`); the ending with the best mean score counts."""
    chooser: ChooserName = "reward-model"
    """reward-model: a process reward model. The others are references. simulator: its own dense reward (Meta-World,
    toy), which sees objects and goal (an upper bound). success: nothing but whether a candidate reached success in the
    simulator, else chance. random: chance alone (a lower bound)."""
    reward_model: str = ""
    """Folder of the process reward model that chooses (`vla-rl reward train`)."""
    lookahead: Annotated[int, Ge(1), Le(1_000_000)] = 4
    """lookahead: turns that each continuation is played before it is scored."""
    execute: Annotated[int, Ge(1), Le(1_000_000)] = 1
    """lookahead: turns of the chosen continuation that are kept before the next choice."""
    temperature: Temperature = 1.0
    """Sampling temperature of the candidates; greedy ones would all be the same."""
    greedy_first: bool = True
    """The first candidate (the first round) takes the likeliest token everywhere, so that N = 1 is greedy play. False
    samples all of them, so that N = 1 is sampled play."""
    trajectory_turns: Annotated[int, Ge(1), Le(1_000_000)] = 50
    """trajectory: turns that each trajectory is played at most (the article's 50); from there the next choice is made.
    Shorter episodes are played to their end."""
    refine_from: Literal["worst", "fall"] = "worst"
    """refine: from which turn of the best trajectory so far the rest is sampled anew. worst: the one with the worst
    score. fall: the first one at which the score falls, or the worst where it never does."""
    temperatures: tuple[Temperature, ...] = ()
    """refine: sampling temperatures of the first trajectory, of the first round, and so on; the last one goes on for
    the rest (the article's: 0.3, then 0.5). Empty takes `temperature` for all."""
    turn_budget: Whole = 0
    """trajectory and refine: turns that an episode may simulate, discarded ones included, at least its horizon. New
    candidates are played until exactly so many are spent, or N of them; one that is cut short by it is discarded. 0: no
    limit."""
    success_ahead: bool = True
    """lookahead, for a reward model and the simulator's reward: a continuation in which the simulator reports success
    is taken without asking the chooser. False: the chooser alone decides."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.execute <= self.lookahead,
            f"best-of-N: execute = {self.execute} turns cannot be kept of a lookahead of {self.lookahead}: raise "
            "lookahead, or lower execute",
        )
        require(
            self.success_ahead or self.chooser != "success",
            "best-of-N: the chooser success is nothing but success seen ahead: leave success_ahead on, or take the "
            "chooser random",
        )
        require(
            self.mode == "refine" or not self.temperatures,
            f"best-of-N: temperatures are those of the rounds of mode refine, and mode is {self.mode}: set temperature",
        )
        require(
            self.mode in ("trajectory", "refine") or not self.turn_budget,
            f"best-of-N: turn_budget is for the modes trajectory and refine, and mode is {self.mode}: set lookahead "
            "and best_of, which say what it spends",
        )

    def temperature_of(self, number: int) -> float:
        """Sampling temperature of a candidate, or of a round of refinement."""
        if not self.temperatures:
            return self.temperature
        return self.temperatures[min(number, len(self.temperatures) - 1)]


@dataclass(frozen=True)
class ScalingConfig(Config):
    """Success against N: the same evaluation with more and more candidates, and what each part contributes."""

    checkpoint: str
    """A run folder, one of its checkpoints, a policy folder, or a hub id."""
    search: BestOfConfig = field(default_factory=BestOfConfig)
    """How candidates are made; its `best_of`, `chooser` and `success_ahead` are varied."""
    protocol: EvalConfig = field(default_factory=EvalConfig)
    """What is evaluated. Its temperature is not used: the candidates' is `search.temperature`."""
    sizes: tuple[Candidates, ...] = (1, 2, 4, 8, 16, 32)
    """Numbers of candidates N. N = 1 is evaluated greedy and sampled, whether or not it stands here."""
    choosers: tuple[StudyChooser, ...] = (
        "reward-model-alone", "success", "reward-model", "simulator", "random",
    )  # fmt: skip
    """What to compare. reward-model-alone: the reward model without success seen ahead. success: success seen ahead
    without the reward model. reward-model: both. simulator and random: as in `search.chooser`. trajectories (mode
    refine): the best of whole trajectories by the reward model alone, at `search.temperature` and as many simulated
    turns an episode as refinement took, or `search.turn_budget`. What cannot be had (no reward model given, no dense
    reward in the simulator) is left out with a notice."""
    out: str = "runs/scaling"
    """Folder for the results, scaling.json, scaling.md and scaling.png. Evaluations found there are not done again, if
    they are of the same policy and the same reward model."""
    bootstrap: Annotated[int, Ge(100), Le(1_000_000)] = 2000
    """Resamplings of the episodes for the fit's uncertainty."""
    workers: Workers = 0
    """Simulator processes; 0 takes one per CPU core. The result does not depend on it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(len(self.sizes) >= 1, "sizes is empty, expected numbers of candidates")
        require(
            len(set(self.sizes)) == len(self.sizes),
            f"sizes must be different numbers, got {list(self.sizes)}",
        )
        require(len(self.choosers) >= 1, "choosers is empty, expected names of choosers")
