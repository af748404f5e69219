"""Everything of a training run that must survive a kill: counters, optimizers, curriculum, running episodes."""

from __future__ import annotations

import logging
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from vla_rl.algorithms.learner import Learner, TrainingDivergedError
from vla_rl.algorithms.registry import require_algorithm
from vla_rl.config import ConfigError, EnvConfig, ScheduleConfig, TrainConfig, UserError
from vla_rl.config.run import tracker_names
from vla_rl.config.serialize import differences, to_json
from vla_rl.curriculum import Starts, TaskSampler
from vla_rl.distributed.sharding import part_of, require_sharding
from vla_rl.distributed.shards import Shards
from vla_rl.distributed.world import SingleProcess, World
from vla_rl.envs.defaults import conventions
from vla_rl.envs.registry import playable
from vla_rl.envs.suites import is_union
from vla_rl.policies.policy import Policy
from vla_rl.policies.registry import load_policy, named_family
from vla_rl.policies.shardable import lending, sharding_of
from vla_rl.rewards import RewardFunction
from vla_rl.rollout import Collector
from vla_rl.rollout.playable import ready_for
from vla_rl.rollout.together import own_state, whole_state
from vla_rl.runtime.checkpoint import (
    CheckpointError,
    flatten_optimizer,
    read_checkpoint,
    restore_optimizer,
)
from vla_rl.runtime.cpus import available_cpus
from vla_rl.runtime.run_folder import Run
from vla_rl.runtime.seeding import restore_torch_rng, torch_rng_state
from vla_rl.runtime.signals import StopRequest
from vla_rl.runtime.trees import join_arrays, split_arrays
from vla_rl.training.scratch import keep_reference, scratch_policy
from vla_rl.training.sharded import sharded_policy, whole

LOG = logging.getLogger(__name__)


class FollowedRun:
    """The run folder as the other ranks see it: rank 0 alone writes there."""

    def __init__(self, folder: Path, resumed: bool) -> None:
        self.folder, self.resumed = folder, resumed

    def __enter__(self) -> FollowedRun:
        return self

    def __exit__(self, *_: object) -> None:
        pass


def open_training_run(
    config: TrainConfig, resume: Path | None, world: World = SingleProcess()
) -> Run | FollowedRun:
    """Open the folder to go on in, or make a new one; all ranks call it."""
    require_algorithm(config.algorithm)
    named_family(config.policy.kind)  # refuses an unknown one before there is a run
    if config.parallel.shard != "none":
        require_sharding(world)
    if world.rank > 0:
        where: tuple[Path, bool] = world.broadcast((Path(), False))
        return FollowedRun(*where)
    packages = playable(config.env).packages
    kept: dict[str, Any] = {
        "keep": config.run.keep,
        "trackers": tracker_names(config.run.trackers),
    }
    if resume is not None:
        return announced(Run.open(resume, sys.argv, config, packages, **kept), world)
    if not (config.policy.checkpoint or config.policy.scratch):
        raise ConfigError(
            "policy.checkpoint is empty: a pretrained policy is improved. Make one with `vla-rl demos` and "
            "`vla-rl sft`, then give its folder, e.g. --policy.checkpoint runs/sft/policy. The preset toy needs none"
        )
    name = config.run.name or f"{config.env.suite.partition(':')[0]}-{datetime.now():%Y%m%d-%H%M%S}"
    return announced(Run.create(config.run.root, name, config, sys.argv, packages, **kept), world)


def announced(run: Run, world: World) -> Run:
    """`run`, after the other ranks have been told where it is."""
    world.broadcast((run.folder.absolute(), run.resumed))
    return run


def newest(run: Run | FollowedRun, world: World) -> Path | None:
    """The newest whole checkpoint, which all ranks go on from."""
    return world.broadcast(run.latest() if isinstance(run, Run) else None)


def policy_of_run(
    config: TrainConfig, run: Run | FollowedRun, world: World = SingleProcess()
) -> Policy:
    """The policy of the run's newest checkpoint, or the one to start from; KL is always to the latter."""
    saved = newest(run, world)
    if config.parallel.shard == "none":
        return _checked_policy(config, saved)
    return sharded_policy(config, world, lambda of_host: _checked_policy(of_host, saved))


def _checked_policy(config: TrainConfig, saved: Path | None) -> Policy:
    """With its reference, which is kept before the weights are divided. ConfigError where it cannot play the suite."""
    policy = load_or_make(config, saved)
    if not policy.resizes_images and policy.image_size != config.env.image_size:
        raise ConfigError(
            f"the policy looks at {policy.image_size} px, the environment draws {config.env.image_size} px: "
            "set env.image_size"
        )
    if policy.action_chunk != config.env.action_chunk:
        raise ConfigError(
            f"the policy decides {policy.action_chunk} actions a turn, env.action_chunk is "
            f"{config.env.action_chunk}: set env.action_chunk, or fine-tune with that chunk"
        )
    if config.needs_reference:
        keep_reference(policy, config, resumed=saved is not None)
    return policy


def load_or_make(config: TrainConfig, saved: Path | None) -> Policy:
    """The policy of a checkpoint of the run; without one the policy that the run starts from."""
    suite = config.env.suite
    if saved is None and not config.policy.checkpoint:
        policy = scratch_policy(config)
    else:
        source = saved / "policy" if saved else Path(config.policy.checkpoint)
        # of several suites the checkpoint's statistics cannot all be named in the configuration
        of_suites = conventions(suite) if is_union(suite) else None
        policy = load_policy(source, config.policy, seed=config.run.seed, conventions=of_suites)
    ready_for(policy, suite)
    return policy


def share_learned(
    schedule: ScheduleConfig, iterations: int, seconds: float, episodes: int
) -> float:
    """What a learning rate decays by, in [0, 1]: as `share_done`, without minutes where the run has another end.

    Else the same seed would give other numbers on a slower machine.
    """
    if schedule.iterations > 0 or schedule.episodes > 0:
        schedule = replace(schedule, minutes=0)
    return share_done(schedule, iterations, seconds, episodes)


def share_done(schedule: ScheduleConfig, iterations: int, seconds: float, episodes: int) -> float:
    """Share of a run that is done, in [0, 1]: the largest of the shares of its limits."""
    shares = (
        (iterations, schedule.iterations),
        (seconds, 60 * schedule.minutes),
        (episodes, schedule.episodes),
    )
    return min(1.0, max(done / limit for done, limit in shares if limit > 0))


def own_envs(config: TrainConfig, shards: Shards, world: World) -> EnvConfig:
    """The environments of this process, with its share of the cores for their simulators."""
    if shards.size == 1:
        return config.env
    cores = 0 if playable(config.env).in_process else available_cpus()
    workers = config.env.num_workers or cores
    return replace(
        config.env, num_envs=len(shards.own_envs), num_workers=-(-workers // world.local_size)
    )


_NOT_OF_PLAY = ("num_workers", "step_timeout", "start_timeout", "max_restarts")


def _of_play(env: EnvConfig) -> dict[str, Any]:
    """What decides what is played; not how many processes do it, and how long they may take."""
    return {name: value for name, value in to_json(env).items() if name not in _NOT_OF_PLAY}


class TrainState:
    """Counts iterations, knows when the run is over, saves and restores it."""

    def __init__(
        self,
        run: Run | FollowedRun,
        policy: Policy,
        learner: Learner[Any],
        reward_function: RewardFunction,
        curriculum: TaskSampler,
        collector: Collector,
        save_every: int,
        world: World = SingleProcess(),
        env: EnvConfig | None = None,
        starts: Starts | None = None,
    ) -> None:
        """`env`: what is played; a checkpoint notes it, and goes on with nothing else. `starts`: who draws episodes, if
        not the curriculum alone.
        """
        self.run, self.policy, self.learner, self.world = run, policy, learner, world
        self.reward_function = reward_function
        self.curriculum, self.collector, self.starts = curriculum, collector, starts
        self.iteration, self.episodes, self.turns, self.seconds = 0, 0, 0, 0.0
        self.save_every, self.saved_at = save_every, -1
        self.played = None if env is None else _of_play(env)

    def goes_on(self, schedule: ScheduleConfig, stop: StopRequest) -> bool:
        """Whether another iteration is due: the run has not reached its end, and no process was asked to stop."""
        return not (self.world.any(stop.requested) or self.finished(schedule))

    def look(self, stop: StopRequest, evaluate: Callable[[], object]) -> None:
        """Evaluate, unless a stop was requested, which ends it at once.

        Among several ranks the others may be in the middle of it. They cannot be met again, so the run ends here, with
        what was last saved.
        """
        if self.world.any(stop.requested):
            return
        if not stop.run(evaluate) and self.world.size > 1:
            self.say_how_to_go_on(stop)

    def finished(self, schedule: ScheduleConfig) -> bool:
        """Whether the run has reached its end."""
        return self.progress(schedule) >= 1.0

    def rests_after(self, config: TrainConfig, episodes: int) -> bool:
        """Whether nothing may be played while this iteration is learned.

        After it the run is saved, evaluated or over, or its reward model is refreshed, all of which want the
        environments at rest; or windows are not to overlap anyway. episodes: that have ended in this iteration.
        """
        if config.parallel.staleness == 0:
            return True
        done = self.iteration + 1
        pauses = (self.save_every, config.run.eval_every, config.reward.refresh_every)
        share = share_done(config.schedule, done, self.seconds, self.episodes + episodes)
        return share >= 1.0 or any(every and done % every == 0 for every in pauses)

    def progress(self, schedule: ScheduleConfig) -> float:
        """Share of the run that is done, in [0, 1]; training time counts, evaluation does not."""
        return share_done(schedule, self.iteration, self.seconds, self.episodes)

    def decay(self, schedule: ScheduleConfig) -> float:
        """How far the learning rate has come on its way to the last one, in [0, 1]."""
        return share_learned(schedule, self.iteration, self.seconds, self.episodes)

    def advance(
        self,
        metrics: dict[str, float],
        seconds: float,
        ranks: Sequence[Mapping[str, float]] = (),
    ) -> None:
        """Count one iteration, log it, and save where it is due. ranks: what each rank has done in it."""
        self.episodes += int(metrics["rollout/episodes"])
        self.turns += int(metrics["rollout/turns"])
        self.seconds += self.world.broadcast(seconds)  # clocks differ, the run's end must not
        totals = {
            "total/episodes": float(self.episodes),
            "total/turns": float(self.turns),
            "total/train_seconds": self.seconds,
        }
        self.iteration += 1
        if isinstance(self.run, Run):
            self.run.log(self.iteration, metrics | totals)
            if len(ranks) > 1:
                self.run.log_ranks(self.iteration, ranks)
        if self.iteration % self.save_every == 0:
            self.save()

    def headline(self, metrics: Mapping[str, float]) -> dict[str, float]:
        """The few numbers worth a place in the progress line."""
        wanted = {
            "iteration": self.iteration,
            "success of episodes": metrics.get("rollout/success_rate"),
            "mean over tasks": metrics.get("curriculum/success_mean"),
            "mixed groups": metrics.get("groups/mixed"),
            "kl": metrics.get("losses/approx_kl_k3"),
            "explained": metrics.get("losses/explained_variance"),
            "episodes/s": metrics["speed/episodes_per_second"],
        }
        return {name: round(number, 3) for name, number in wanted.items() if number is not None}

    def score(self) -> float:
        """By which checkpoints are compared: the mean over all tasks of their recent success in training.

        A task that has not been played counts 0: what is known of some tasks alone must not outdo what is known of all.
        """
        return float(np.nan_to_num(self.curriculum.measured()).mean())

    def save(self) -> None:
        """Write a checkpoint of the next iteration to play; before the first there is nothing to save."""
        if self.iteration in (0, self.saved_at):
            return
        tree = {
            "iteration": self.iteration,
            "played": self.played,
            "episodes": self.episodes,
            "turns": self.turns,
            "seconds": self.seconds,
            "random": torch_rng_state(),
            "learner": self.learner.state_dict(),
            "reward": self.reward_function.state_dict(),
            "curriculum": self.curriculum.state_dict(),
            "starts": None if self.starts is None else self.starts.state_dict(),
            "collector": whole_state(self.world.gather(self.collector.state_dict())),
        }
        tensors, state = split_arrays(tree, "state")
        optimizers, sharding = self.learner.optimizers(), sharding_of(self.policy)
        with lending(self.policy, optimizers.values()):
            if isinstance(self.run, Run):
                for name, optimizer in optimizers.items():
                    parts, state[name] = flatten_optimizer(optimizer, name)
                    tensors |= parts if sharding is None else whole(parts, sharding)
                self.run.save(self.iteration, tensors, state, self.policy.save, self.score())
        self.world.barrier()
        self.saved_at = self.iteration

    def restore(self) -> bool:
        """Go on from the newest sound checkpoint; False if there is none yet, and the run begins anew."""
        folder = newest(self.run, self.world)
        if folder is None:
            if isinstance(self.run, Run) and self.run.resumed:
                LOG.warning("%s holds no checkpoint: the run begins anew", self.run.folder)
                self.run.rewind(0)
            return False
        saved = read_checkpoint(folder)
        state = join_arrays(saved.tensors, saved.state)
        self._require_same_play(state.get("played"), folder)
        for name, optimizer in self.learner.optimizers().items():
            restore_optimizer(optimizer, saved.tensors, saved.state[name], part_of)
        self.learner.load_state_dict(state["learner"])
        self.reward_function.load_state_dict(state.get("reward", {}))
        self.curriculum.load_state_dict(state["curriculum"])
        if self.starts is not None:
            self.starts.load_state_dict(state.get("starts"))
        self.collector.load_state_dict(own_state(state["collector"], self.collector.shards))
        restore_torch_rng(state["random"])  # last: a reward model that is loaded draws numbers
        self.iteration, self.episodes = state["iteration"], state["episodes"]
        self.turns, self.seconds = state["turns"], state["seconds"]
        self.saved_at = self.iteration
        if isinstance(self.run, Run):
            self.run.rewind(self.iteration)
        return True

    def _require_same_play(self, played: Mapping[str, Any] | None, checkpoint: Path) -> None:
        if played is None or self.played is None:  # of before
            return
        changed = [
            f"env.{name} {now} instead of {before}"
            for name, (before, now) in differences(dict(played), self.played).items()
        ]
        if changed:
            raise UserError(
                f"{self.run.folder / 'config.json'} says {', '.join(changed)}, with which {checkpoint} was played: one "
                "curve would be of two things. Put it back, or start a new run with --policy.checkpoint"
            )

    @contextmanager
    def keep_on_divergence(self) -> Iterator[None]:
        """Name the last good checkpoint when training diverges; nothing is saved over it."""
        good: Path | None = None
        try:
            yield
        except TrainingDivergedError as error:
            with suppress(CheckpointError):
                good = self.run.latest() if isinstance(self.run, Run) else None
            kept = (
                f"the last good checkpoint is {good}"
                if good
                else "no checkpoint had been saved yet"
            )
            raise TrainingDivergedError(f"iteration {self.iteration}: {error}; {kept}") from error

    def say_how_to_go_on(self, stop: StopRequest) -> None:
        """Raise `Stopped` where the run was stopped: after which iteration, and how to go on."""
        kept = "everything is saved" if self.iteration else "there was nothing to save yet"
        stop.end(
            f"stopped by {stop.signal_name} after iteration {self.iteration}; {kept}. "
            f"Go on with:  vla-rl train --resume {shlex.quote(str(self.run.folder))}"
        )
