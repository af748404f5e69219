"""A policy over WebSocket: `vla-rl serve`.

vla-rl serve runs/first --port 8000                                 (openpi's clients, vla-rl eval --policy)
vla-rl serve runs/first --protocol vla-eval --port 8000             (vla-evaluation-harness)
vla-rl serve runs/sft --robot --limits.low -1 --limits.high 1 --limits.change 0.1 --answer-timeout 0.5
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from vla_rl.config import ConfigError, EnvConfig, PolicyConfig
from vla_rl.config.limits import LimitsConfig
from vla_rl.config.serialize import to_json
from vla_rl.envs.registry import benchmark, suites_of
from vla_rl.policies.policy import Policy
from vla_rl.recipes.evaluate import policy_and_env
from vla_rl.recipes.loading import load_without_suite
from vla_rl.runtime.extras import need
from vla_rl.runtime.progress import note
from vla_rl.runtime.signals import Stopped
from vla_rl.serving.limits import ActionLimits, Rules

Protocol = Literal["openpi", "vla-eval"]


def serve(
    checkpoint: Path,
    protocol: Protocol = "openpi",
    suite: str = "",
    host: str = "127.0.0.1",
    port: int = 8000,
    key_file: Path | None = None,
    temperature: float = 0.0,
    seed: int = 0,
    unnorm_key: str = "",
    kind: str = "",
    base: str = "",
    dtype: Literal["auto", "float32", "bfloat16"] = "auto",
    robot: bool = False,
    limits: LimitsConfig | None = None,
    answer_timeout: float = 0.0,
    idle_timeout: float = 0.0,
    require_sequence: bool = False,
) -> str:
    """Serve until a signal ends it; returns where it was.

    ConfigError where it cannot listen there, or must not without a key; UserError for a checkpoint that cannot be
    played. The address is taken before the policy is loaded, and clients are let in when it is.
    """
    need("websockets", "msgpack", purpose="serve")
    from vla_rl.serving.websocket import AddressError, PolicyServer, read_key

    if robot and suite:
        raise ConfigError("--robot plays no suite: leave out --suite, or --robot")
    talk = _Later()
    try:
        server = PolicyServer(talk, host, port, read_key(key_file))
    except AddressError as error:
        raise ConfigError(str(error)) from error
    try:
        config = PolicyConfig(kind=kind, unnorm_key=unnorm_key, base=base, dtype=dtype)
        policy, env, trained_in = _loaded(checkpoint, suite, config, robot)
        rules = Rules(idle_timeout, answer_timeout, require_sequence)
        talk.conversations = conversations(
            policy, env, trained_in, protocol, temperature, seed, limits, rules
        )
        server.listen()
        served = (
            f"{protocol}'s protocol, {_answer_in_words(policy, env)}, {_limits_in_words(limits)}"
        )
        note(f"{checkpoint} is served on {server.url} ({served}); Ctrl-C ends it")
        server.serve()
    except AddressError as error:
        raise ConfigError(str(error)) from error
    except Stopped as stopped:
        ended = f"{stopped.signal_name} has ended the server at {server.url}{talk.report()}"
        raise Stopped(stopped.number, ended) from stopped
    finally:
        server.stop()
    return f"ended at {server.url}{talk.report()}"


def _loaded(
    checkpoint: Path, suite: str, config: PolicyConfig, robot: bool
) -> tuple[Policy, EnvConfig | None, EnvConfig | None]:
    """The policy, where it plays (None: on a robot) and where it was trained."""
    if robot:
        return load_without_suite(checkpoint, config), None, None
    policy, env, trained_in = policy_and_env(checkpoint, suite, None, config, 0, 0)
    return policy, _one_suite(env), trained_in


def _answer_in_words(policy: Policy, env: EnvConfig | None) -> str:
    steps = policy.action_chunk * (1 if env is None else env.action_repeat)
    numbers = policy.action_dim if env is None else benchmark(env.suite).action_dim
    return f"{steps} steps of {numbers} numbers an answer"


def _limits_in_words(limits: LimitsConfig | None) -> str:
    if limits is None or not limits.any:
        return "no limits on actions"
    return f"limits on actions: {limits.beyond}"


def _one_suite(env: EnvConfig) -> EnvConfig:
    """A turn's length is a suite's: ConfigError where a checkpoint plays several and none was chosen."""
    suites = suites_of(env)
    if len(suites) > 1:
        raise ConfigError(
            f"{env.suite} is {len(suites)} suites, and a server plays one: choose it with --suite "
            f"({', '.join(each.suite for each in suites.values())})"
        )
    (settings,) = suites.values()
    return settings


def conversations(
    policy: Any,
    env: EnvConfig | None,
    trained_in: EnvConfig | None,
    protocol: Protocol = "openpi",
    temperature: float = 0.0,
    seed: int = 0,
    limits: LimitsConfig | None = None,
    rules: Rules | None = None,
) -> Any:
    """What `PolicyServer` needs to serve a policy that plays at home in `env`, or on a robot where that is None.

    ConfigError for limits that do not fit its actions.
    """
    from vla_rl.serving.openpi import Conversations
    from vla_rl.serving.served_policy import OURS, ServedPolicy
    from vla_rl.serving.vla_eval import HarnessConversations

    served = ServedPolicy(policy, env, temperature, seed)
    kept = _action_limits(served.action_dim, limits)
    if protocol == "vla-eval":
        return HarnessConversations(served, kept, rules)
    metadata = served.metadata()
    if trained_in is not None:
        metadata[OURS]["trained_in"] = to_json(trained_in)
    return Conversations(served.new_client, metadata, kept, rules)


def _action_limits(action_dim: int, limits: LimitsConfig | None) -> ActionLimits | None:
    if limits is None or not limits.any:
        return None
    try:
        return ActionLimits(
            action_dim, limits.low, limits.high, limits.change, limits.box_low, limits.box_high,
            limits.beyond,
        )  # fmt: skip
    except ValueError as error:
        raise ConfigError(f"--limits: {error}") from error


class _Later:
    """Conversations that are known when the policy is loaded; nobody is let in before."""

    conversations: Any = None

    def __call__(self, client: Any) -> None:
        self.conversations(client)

    def report(self) -> str:
        """What the limits did, for the last line; empty where nothing was asked."""
        totals = getattr(self.conversations, "totals", None)
        return f": {totals.report()}" if totals is not None and totals.counts else ""
