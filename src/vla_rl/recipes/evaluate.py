"""Evaluate a policy: each (task, initial state) exactly once, with intervals, as JSON.

vla-rl eval runs/quickstart --suite mt5 --split held-out --episodes-per-task 30 --json result.json --videos 2
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from vla_rl.config import ConfigError, EnvConfig, EvalConfig, PolicyConfig, UserError
from vla_rl.envs import make_vector_env
from vla_rl.envs.defaults import evaluation_env
from vla_rl.envs.env import VectorEnv
from vla_rl.evaluation.episodes import EpisodeRecord
from vla_rl.evaluation.practised import apart
from vla_rl.evaluation.result import evaluate_policy, summary
from vla_rl.evaluation.videos import record_videos
from vla_rl.policies.policy import Policy
from vla_rl.recipes.loading import load_with_env
from vla_rl.rollout.playable import ready_for
from vla_rl.runtime.devices import use_threads
from vla_rl.runtime.files import read_json, require_writable, write_json
from vla_rl.runtime.memory import keep_freed_memory

Evaluate = Callable[
    [Policy, VectorEnv, EnvConfig, EvalConfig], tuple[dict[str, Any], list[EpisodeRecord]]
]
"""`evaluate_policy`, or something that plays otherwise."""


def evaluate(
    policy: Policy | str | Path,
    config: EvalConfig | None = None,
    env: EnvConfig | None = None,
    *,
    json_path: Path | None = None,
    videos: Path | None = None,
) -> dict[str, Any]:
    """How often a policy succeeds, each (task, initial state) played once; for programs and notebooks.

    policy: one in memory, or where it lies (see `load_policy`). env: where it plays; by default where it was trained,
    or the protocol of `config.suite`. One of both must be given for a policy in memory.

    The result holds counts, success rates and their intervals, of all (`result["overall"]["success_rate"]`), of each
    task and of each episode. It is written to `json_path`, and `config.videos` episodes a task to the folder `videos`,
    where these are given.
    """
    config = config or EvalConfig()
    if isinstance(policy, str | Path):
        return evaluate_checkpoint(Path(policy), config, env, json_path, videos)
    require_outputs(json_path, videos, config)
    suite = config.suite or (env.suite if env is not None else "")
    if not suite:
        raise ConfigError(
            "a policy in memory does not say where it plays: give env, or a config with a suite"
        )
    env = evaluation_env(suite, env, policy.image_size, policy.resizes_images, policy.action_chunk)
    ready_for(policy, suite)
    return _evaluate(policy, env, None, config, "", json_path, videos, evaluate_policy)


def evaluate_checkpoint(
    checkpoint: Path,
    config: EvalConfig,
    env: EnvConfig | None = None,
    json_path: Path | None = None,
    videos: Path | None = None,
    workers: int = 0,
    policy_config: PolicyConfig | None = None,
    horizon: int = 0,
    evaluate: Evaluate | None = None,
    show: Callable[[dict[str, Any]], object] | None = None,
) -> dict[str, Any]:
    """Evaluate the policy found at `checkpoint`: a run, one of its checkpoints, a policy folder or a hub id.

    `env` defaults to what the policy was trained in, or to the protocol of `config.suite`; `horizon` (turns), if given,
    takes the place of its. Returns the result that is also written to `json_path`; images of `config.videos` episodes
    per task go to the folder `videos`. `evaluate` takes the place of plain play (`evaluate_policy`). `show` gets the
    result before anything is written, so that it is not lost to a full disk. Raises UserError, before anything is
    played, for an output that could not be written.
    """
    require_outputs(json_path, videos, config)
    policy, env, trained_in = policy_and_env(
        checkpoint, config.suite, env, policy_config or PolicyConfig(), workers, horizon
    )
    return _evaluate(
        policy,
        env,
        trained_in,
        config,
        str(checkpoint),
        json_path,
        videos,
        evaluate or evaluate_policy,
        show,
    )


def require_outputs(
    json_path: Path | None,
    videos: Path | None,
    config: EvalConfig,
    has: frozenset[str] = frozenset({"episodes", "overall", "tasks"}),
) -> None:
    """Raise UserError where an evaluation could not be written. has: what a file must have to be overwritten."""
    if json_path is not None:
        require_writable(json_path, "file", ".json")
        if json_path.is_file() and json_path.stat().st_size and not _has(json_path, has):
            raise UserError(
                f"cannot write {json_path}: it holds something else than an evaluation, which would be lost; choose "
                "another name"
            )
    if videos is not None and config.videos > 0:
        require_writable(videos, "folder")


def _has(path: Path, names: frozenset[str]) -> bool:
    try:
        return names <= read_json(path).keys()
    except UserError:
        return False


def _evaluate(
    policy: Policy,
    env: EnvConfig,
    trained_in: EnvConfig | None,
    config: EvalConfig,
    name: str,
    json_path: Path | None,
    videos: Path | None,
    play: Evaluate,
    show: Callable[[dict[str, Any]], object] | None = None,
) -> dict[str, Any]:
    with use_threads(1), make_vector_env(env) as envs:
        result, records = play(policy, envs, env, config)
    result["checkpoint"] = name
    result["practice"] = apart(records, trained_in, summary)
    if show is not None:
        show(result)
    if json_path is not None:
        write_json(json_path, result)
    if videos is not None and config.videos > 0:
        record_videos(records, policy, env, config.videos, videos)
    return result


def policy_and_env(
    checkpoint: Path,
    suite: str,
    env: EnvConfig | None,
    policy_config: PolicyConfig,
    workers: int,
    horizon: int,
) -> tuple[Policy, EnvConfig, EnvConfig | None]:
    """The policy found at `checkpoint`, where it is evaluated (see `evaluate_checkpoint`), and where it was trained.

    The last is None where nothing says so.
    """
    keep_freed_memory()
    suite = suite or (env.suite if env is not None else "")
    policy, suite, trained_in = load_with_env(checkpoint, policy_config, suite)
    env = evaluation_env(
        suite,
        env or trained_in,
        policy.image_size,
        policy.resizes_images,
        policy.action_chunk,
    )
    env = replace(env, num_workers=workers or env.num_workers, horizon=horizon or env.horizon)
    return policy, env, trained_in
