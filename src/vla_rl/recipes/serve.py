"""A policy over WebSocket: `vla-rl serve`.

vla-rl serve runs/first --port 8000                                 (openpi's clients, vla-rl eval --policy)
vla-rl serve runs/first --protocol vla-eval --port 8000             (vla-evaluation-harness)
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from vla_rl.config import ConfigError, EnvConfig, PolicyConfig
from vla_rl.config.serialize import to_json
from vla_rl.envs.registry import benchmark, suites_of
from vla_rl.recipes.evaluate import policy_and_env
from vla_rl.runtime.extras import need
from vla_rl.runtime.progress import note
from vla_rl.runtime.signals import Stopped

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
) -> str:
    """Serve until a signal ends it; returns where it was.

    ConfigError where it cannot listen there, or must not without a key; UserError for a checkpoint that cannot be
    played. The address is taken before the policy is loaded, and clients are let in when it is.
    """
    need("websockets", "msgpack", purpose="serve")
    from vla_rl.serving.websocket import AddressError, PolicyServer, read_key

    talk = _Later()
    try:
        server = PolicyServer(talk, host, port, read_key(key_file))
    except AddressError as error:
        raise ConfigError(str(error)) from error
    try:
        config = PolicyConfig(kind=kind, unnorm_key=unnorm_key, base=base, dtype=dtype)
        policy, env, trained_in = policy_and_env(checkpoint, suite, None, config, 0, 0)
        env = _one_suite(env)
        talk.conversations = conversations(policy, env, trained_in, protocol, temperature, seed)
        server.listen()
        note(
            f"{checkpoint} is served on {server.url} ({protocol}'s protocol, {policy.action_chunk * env.action_repeat} "
            f"steps of {benchmark(env.suite).action_dim} numbers an answer); Ctrl-C ends it"
        )
        server.serve()
    except AddressError as error:
        raise ConfigError(str(error)) from error
    except Stopped as stopped:
        ended = f"{stopped.signal_name} has ended the server at {server.url}"
        raise Stopped(stopped.number, ended) from stopped
    finally:
        server.stop()
    return f"ended at {server.url}"


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
    env: EnvConfig,
    trained_in: EnvConfig | None,
    protocol: Protocol = "openpi",
    temperature: float = 0.0,
    seed: int = 0,
) -> Any:
    """What `PolicyServer` needs to serve a policy that plays at home in `env`."""
    from vla_rl.serving.openpi import Conversations
    from vla_rl.serving.served_policy import OURS, ServedPolicy
    from vla_rl.serving.vla_eval import HarnessConversations

    served = ServedPolicy(policy, env, temperature, seed)
    if protocol == "vla-eval":
        return HarnessConversations(served)
    metadata = served.metadata()
    if trained_in is not None:
        metadata[OURS]["trained_in"] = to_json(trained_in)
    return Conversations(served.new_client, metadata)


class _Later:
    """Conversations that are known when the policy is loaded; nobody is let in before."""

    conversations: Any = None

    def __call__(self, client: Any) -> None:
        self.conversations(client)
