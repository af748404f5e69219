"""What practice in groups of whole episodes opens, counts, saves and logs, whatever learns from them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32

from vla_rl.algorithms.learner import Learner
from vla_rl.algorithms.registry import build_learner
from vla_rl.config import CriticConfig, GRPOConfig, TPOConfig, TrainConfig, require
from vla_rl.curriculum import Starts, TaskSampler
from vla_rl.distributed import Shards, World
from vla_rl.envs import split_initial_states
from vla_rl.envs.env import VectorEnv
from vla_rl.envs.registry import longest_horizon
from vla_rl.policies.policy import Policy
from vla_rl.policies.registry import with_micro_batch
from vla_rl.recipes.refresh_reward import refresh_reward_model
from vla_rl.rewards import RewardFunction
from vla_rl.rewards.registry import build_reward
from vla_rl.rewards.simulator_reward import dense_reward_max
from vla_rl.rollout import Collector, GroupPlay, PlayedGroups, rollout_metrics
from vla_rl.runtime.devices import use_threads
from vla_rl.runtime.memory import keep_freed_memory
from vla_rl.runtime.progress import Reporter, note, share_progress
from vla_rl.runtime.run_folder import Run
from vla_rl.runtime.seeding import seed_everything
from vla_rl.runtime.signals import StopRequest, graceful_stop
from vla_rl.training.costs import cost_metrics
from vla_rl.training.evaluation import evaluate_before_or_after, evaluate_during
from vla_rl.training.phases import Phases
from vla_rl.training.pools import engine_of_run, envs_of_run
from vla_rl.training.starts import starts_of_run
from vla_rl.training.state import FollowedRun, TrainState, open_training_run, policy_of_run

GroupSettings = GRPOConfig | TPOConfig


def settings_of(config: TrainConfig) -> GroupSettings:
    """The part of the configuration that is the algorithm's own."""
    return config.grpo if config.algorithm == "grpo" else config.tpo


def without_critic(config: TrainConfig) -> TrainConfig:
    """The configuration with no value function in the policy: none is built, loaded or saved."""
    return replace(config, policy=replace(config.policy, critic=CriticConfig(kind="none")))


@dataclass
class GroupPractice:
    """A run that is open: its policy, its environments, and where it stands."""

    config: TrainConfig
    world: World
    run: Run | FollowedRun
    policy: Policy
    learner: Learner[Any]
    reward_function: RewardFunction
    envs: VectorEnv
    curriculum: TaskSampler
    starts: Starts
    state: TrainState
    groups: GroupPlay
    stop: StopRequest
    phases: Phases
    bar: Reporter
    said_nothing_learned: bool = False

    def goes_on(self) -> bool:
        """Whether another iteration is due; then it has begun."""
        if not self.state.goes_on(self.config.schedule, self.stop):
            return False
        self.phases.begin()
        refresh_reward_model(
            self.state.iteration, self.run, self.policy, self.envs, self.state.collector,
            self.reward_function, self.config, self.world,
        )  # fmt: skip
        return True

    def play(self) -> PlayedGroups:
        """The groups of this iteration; the curriculum hears how their episodes ended."""
        played = self.groups.play(self.config.rollout.temperature, self.state.iteration)
        self.curriculum.end_window(played.collected.outcomes, self.world)
        self.starts.end_window(played.collected.finished)
        return played

    def score(self, played: PlayedGroups) -> Float32[np.ndarray, "M N"]:
        """Dense reward of every turn."""
        with self.phases.phase("score"):
            return self.reward_function.score(played.collected.rollout)

    def learn(self, batch: Any) -> dict[str, float]:
        """One update of the learner."""
        decay = self.state.decay(self.config.schedule)
        with self.phases.phase("learn"), self.state.keep_on_divergence():
            metrics = self.learner.update(batch, self.state.iteration, decay)
        if metrics["losses/policy_steps"] == 0:
            self._say_nothing_was_learned()
        return metrics

    def _say_nothing_was_learned(self) -> None:
        """Once a sitting: the run goes on, and its evaluations alone would show that nothing changes."""
        if self.said_nothing_learned or not isinstance(self.run, Run):
            return
        self.said_nothing_learned = True
        own = settings_of(self.config).group
        note(
            f"iteration {self.state.iteration + 1} has nothing to learn from, and the policy stays as it is: all "
            f"episodes of a group succeeded, or failed, or tied. Where that happens often, raise {own}.group_size, "
            f"{own}.groups or {own}.extra_groups, or start from a policy that sometimes succeeds. `groups/mixed` in "
            "metrics.jsonl counts the groups that teach something"
        )

    def log(
        self,
        played: PlayedGroups,
        dense_rewards: Float32[np.ndarray, "M N"],
        metrics: dict[str, float],
    ) -> None:
        """End the iteration: metrics, a checkpoint and an evaluation where they are due."""
        collected, world = played.collected, self.world
        metrics = metrics | self.curriculum.metrics() | self.reward_function.metrics()
        metrics |= self.starts.metrics()
        ranks, seconds = self.phases.of_ranks(played.own), self.phases.wall_seconds()
        metrics |= rollout_metrics(
            collected, dense_rewards, ranks, seconds, self.envs, world, self.policy
        )
        metrics |= cost_metrics(self.policy, self.learner, collected, world)
        self.state.advance(metrics, seconds, ranks)
        done = self.state.progress(self.config.schedule)
        self.bar.reach(done, **self.state.headline(metrics))
        self.state.look(self.stop, lambda: evaluate_during(self.state, self.envs, self.config))

    def evaluate(self, label: str) -> None:
        """Before or after practice."""
        self.state.look(
            self.stop,
            lambda: evaluate_before_or_after(
                label, self.run, self.policy, self.envs, self.config, self.world
            ),
        )

    def begin(self) -> None:
        """Go on where the run was stopped, or evaluate what it starts from."""
        if self.state.restore():
            # one that a kill cut short
            self.state.look(
                self.stop,
                lambda: evaluate_during(self.state, self.envs, self.config, unless_done=True),
            )
        else:
            self.evaluate("before")

    def finish(self) -> Path:
        """Save, and evaluate what has been learned; returns the run folder."""
        self.state.save()
        if self.state.finished(self.config.schedule):
            self.evaluate("after")
        self.state.say_how_to_go_on(self.stop)
        return self.run.folder


@contextmanager
def group_practice(
    config: TrainConfig, resume: Path | None, world: World
) -> Iterator[GroupPractice]:
    """Open a run as `train_ppo.train` does, its environments waiting for groups instead of playing on and on."""
    config, settings = without_critic(config), settings_of(config)
    with ExitStack() as opened:
        shards = Shards.of(config.env.num_envs, config.parallel.shards, world)
        _require_work_for_all(settings, shards)
        run = opened.enter_context(open_training_run(config, resume, world))
        seed_everything(config.run.seed)
        keep_freed_memory()
        policy = policy_of_run(config, run, world)
        config = _with_micro_batch(config, policy, len(shards.own_envs), world)
        learner = build_learner(policy, config, world)
        reward_function = build_reward(config, policy, world)
        stop = opened.enter_context(graceful_stop("this iteration"))
        opened.enter_context(use_threads(config.run.torch_threads))
        envs = opened.enter_context(envs_of_run(config, shards, world))
        train_states, _ = split_initial_states(config.env.initial_states, config.env.held_out)
        # all processes draw all groups, so that the states are one shard's
        curriculum = TaskSampler(config.curriculum, envs.tasks, train_states, config.run.seed)
        starts, envs = starts_of_run(config, envs, curriculum, world)
        engine = opened.enter_context(engine_of_run(config, policy, run, world))
        collector = Collector(
            engine, envs, starts.draw_one, config.run.seed,
            dense_reward_max=dense_reward_max(config), shards=shards,
        )  # fmt: skip
        groups = GroupPlay(
            collector, engine, policy, starts.draw_group,
            settings.group_size, settings.groups, _extra(settings), world,
        )  # fmt: skip
        state = TrainState(
            run, policy, learner, reward_function, curriculum, collector, config.run.save_every, world,
            config.env, starts,
        )  # fmt: skip
        bar = opened.enter_context(share_progress(config.algorithm.upper(), 0.0))
        practice = GroupPractice(
            config, world, run, policy, learner, reward_function, envs, curriculum, starts, state, groups,
            stop, Phases(world), bar,
        )  # fmt: skip
        practice.begin()
        yield practice


def _extra(settings: GroupSettings) -> int:
    """Groups that may be played in the place of others; there is no need to where all are learned from."""
    if isinstance(settings, GRPOConfig) and settings.keep == "all":
        return 0
    return settings.extra_groups


def _require_work_for_all(settings: GroupSettings, shards: Shards) -> None:
    episodes = settings.group_size * settings.groups
    require(
        shards.size == 1 or episodes >= shards.count,
        f"{episodes} episodes an iteration ({settings.group}.groups x {settings.group}.group_size) are too few for "
        f"{shards.count} shards of environments, some processes would have none: raise {settings.group}.groups, or "
        "lower parallel.shards",
    )


def _with_micro_batch(
    config: TrainConfig, policy: Policy, own_envs: int, world: World
) -> TrainConfig:
    if config.algorithm == "grpo":
        grpo = with_micro_batch(config.grpo, policy, own_envs, world)
        return replace(config, grpo=grpo)
    of_pairs = 2 * longest_horizon(config.env) * config.tpo.minibatch
    tpo = with_micro_batch(config.tpo, policy, own_envs, world, of_pairs)
    return replace(config, tpo=tpo)
