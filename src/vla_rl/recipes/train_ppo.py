"""Online PPO for a vision-language-action policy (VLA-RL, arXiv:2505.18719, Algorithm 1).

    repeat:  curriculum picks (task, initial state)
             -> act: N simulators x M turns, the policy decoding K action tokens a turn
             -> score: sparse success plus the process reward of each turn
             -> advantages: GAE over turns; a success ends the return, and so does the horizon (or it bootstraps)
             -> improve: critic, then epochs of the clipped objective on action tokens
             -> log: metrics, checkpoint, evaluation on every (task, initial state) once

One process and its simulator workers, CPU or GPU:   vla-rl train metaworld-mt5 --policy.checkpoint runs/sft/policy
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from vla_rl.algorithms.advantages import compute_advantages
from vla_rl.algorithms.learner import TrainingDivergedError
from vla_rl.algorithms.registry import build_learner
from vla_rl.config import TrainConfig
from vla_rl.curriculum import TaskSampler
from vla_rl.distributed import Shards, SingleProcess, World
from vla_rl.envs import split_initial_states
from vla_rl.policies.registry import with_micro_batch
from vla_rl.policies.shardable import playing
from vla_rl.recipes.refresh_reward import refresh_reward_model
from vla_rl.rewards.registry import build_reward
from vla_rl.rewards.simulator_reward import dense_reward_max
from vla_rl.rollout import Collector, Windows, of_all, rollout_metrics
from vla_rl.runtime.devices import use_threads
from vla_rl.runtime.memory import keep_freed_memory
from vla_rl.runtime.progress import share_progress
from vla_rl.runtime.seeding import seed_everything
from vla_rl.runtime.signals import graceful_stop
from vla_rl.training.costs import cost_metrics
from vla_rl.training.evaluation import evaluate_before_or_after, evaluate_during
from vla_rl.training.phases import Phases
from vla_rl.training.pools import engine_of_run, envs_of_run
from vla_rl.training.starts import starts_of_run
from vla_rl.training.state import TrainState, open_training_run, policy_of_run


def train(config: TrainConfig, resume: Path | None = None, world: World = SingleProcess()) -> Path:
    """Improve `config.policy.checkpoint` by practice; returns the run folder.

    `resume` is the folder of a run to go on with (its own, saved config is then expected in `config`). Ctrl-C, SIGTERM
    and SIGHUP end it after the current iteration: everything is saved, then `Stopped`, a KeyboardInterrupt, is raised.
    """
    with ExitStack() as opened:
        run = opened.enter_context(open_training_run(config, resume, world))
        seed_everything(config.run.seed)
        keep_freed_memory()
        policy = policy_of_run(config, run, world)
        shards = Shards.of(config.env.num_envs, config.parallel.shards, world)
        ppo = with_micro_batch(config.ppo, policy, len(shards.own_envs), world)
        config = replace(config, ppo=ppo)
        learner = build_learner(policy, config, world)
        reward_function = build_reward(config, policy, world)
        stop = opened.enter_context(graceful_stop("this iteration"))
        opened.enter_context(use_threads(config.run.torch_threads))
        envs = opened.enter_context(envs_of_run(config, shards, world))
        train_states, _ = split_initial_states(config.env.initial_states, config.env.held_out)
        curriculum = TaskSampler(
            config.curriculum, envs.tasks, train_states, config.run.seed, shards.count
        )
        starts, envs = starts_of_run(config, envs, curriculum, world)
        engine = opened.enter_context(engine_of_run(config, policy, run, world))
        collector = Collector(
            engine, envs, starts.draw_one, config.run.seed,
            dense_reward_max=dense_reward_max(config), shards=shards,
        )  # fmt: skip
        windows = opened.enter_context(Windows(collector, engine, policy, config.rollout))
        state = TrainState(
            run, policy, learner, reward_function, curriculum, collector, config.run.save_every, world,
            config.env, starts,
        )  # fmt: skip
        if state.restore():
            # one that a kill cut short
            state.look(stop, lambda: evaluate_during(state, envs, config, unless_done=True))
        else:
            state.look(
                stop, lambda: evaluate_before_or_after("before", run, policy, envs, config, world)
            )
            collector.start()

        phases = Phases(world)
        with share_progress("PPO", state.progress(config.schedule)) as bar:
            # what is being played already is learned as well, so that nothing is lost
            while (goes_on := state.goes_on(config.schedule, stop)) or windows.ahead:
                phases.begin()
                refresh_reward_model(
                    state.iteration, run, policy, envs, collector, reward_function, config, world
                )
                # 1. act: every environment plays `turns` turns with the current policy
                with playing(policy):
                    own = windows.take(state.iteration)
                collected = of_all(own, world)
                curriculum.end_window(collected.outcomes, world)
                starts.end_window(collected.finished)
                if goes_on and not state.rests_after(config, len(collected.finished)):
                    windows.begin(state.iteration + 1)

                # 2. score: the simulator's sparse success, plus a dense reward for each turn
                with phases.phase("score"):
                    dense_rewards = reward_function.score(collected.rollout)

                # 3. advantages: advantages and value targets
                batch = compute_advantages(
                    collected.rollout, dense_rewards, config.ppo, reward_function.in_return
                )

                # 4. improve: the critic, then (after its warm-up) the policy
                with phases.phase("learn"), state.keep_on_divergence():
                    losses = learner.update(batch, state.iteration, state.decay(config.schedule))

                # 5. log, checkpoint, evaluate
                metrics = losses | curriculum.metrics() | reward_function.metrics()
                metrics |= starts.metrics()
                ranks, seconds = phases.of_ranks(own), phases.wall_seconds()
                metrics |= rollout_metrics(
                    collected, dense_rewards, ranks, seconds, envs, world, policy
                )
                metrics |= cost_metrics(policy, learner, collected, world)
                state.advance(metrics, seconds, ranks)
                bar.reach(state.progress(config.schedule), **state.headline(metrics))
                state.look(stop, lambda: evaluate_during(state, envs, config))
        state.save()
        if state.finished(config.schedule):
            state.look(
                stop, lambda: evaluate_before_or_after("after", run, policy, envs, config, world)
            )
        state.say_how_to_go_on(stop)
    return run.folder


__all__ = ["TrainingDivergedError", "train"]
