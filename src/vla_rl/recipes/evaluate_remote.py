"""Evaluate a policy that another program serves: `vla-rl eval --policy ws://HOST:PORT`.

vla-rl eval --policy ws://127.0.0.1:8000 --suite libero-object --json result.json
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from vla_rl.config import ConfigError, EnvConfig, EvalConfig, UserError
from vla_rl.config.errors import printable
from vla_rl.config.remote import RemoteConfig
from vla_rl.config.serialize import from_json
from vla_rl.envs import make_vector_env
from vla_rl.envs.defaults import benchmark_env
from vla_rl.envs.env import VectorEnv
from vla_rl.envs.registry import benchmark
from vla_rl.envs.suites import is_union, suite_parts
from vla_rl.evaluation.episodes import play_each_once_by
from vla_rl.evaluation.practised import apart
from vla_rl.evaluation.result import evaluate_policy, summary
from vla_rl.evaluation.videos import record_videos
from vla_rl.recipes.evaluate import require_outputs
from vla_rl.runtime.devices import use_threads
from vla_rl.runtime.extras import need
from vla_rl.runtime.files import write_json

OTHERS_REPLAN = 5
OTHERS_IMAGE_SIZE = 224
LARGEST_IMAGE = 1024
MOST_CONVERSATIONS = 32
_SHOWN = 4000  # letters of metadata that are kept
_DECIDED_BY_SERVER = (
    "image_size", "camera", "mesh_faces", "effects", "settle_steps", "action_repeat", "action_chunk", "horizon",
    "initial_states", "held_out",
)  # fmt: skip
"""Fields of the environment that a server of ours may ask for; how many simulators run here is not its business."""


def evaluate_remote(
    address: str,
    config: EvalConfig | None = None,
    remote: RemoteConfig | None = None,
    json_path: Path | None = None,
    videos: Path | None = None,
    workers: int = 0,
    show: Callable[[dict[str, Any]], object] | None = None,
) -> dict[str, Any]:
    """How often the policy served at `address` (ws://HOST:PORT) succeeds, each (task, initial state) played once.

    The result is `evaluate_checkpoint`'s. Episodes that the server loses are played again, and counted as
    infrastructure errors. Raises UserError, before anything is played, for an output that could not be written and a
    server that cannot be reached; and where it fails for good.
    """
    need("websockets", "msgpack", purpose="eval --policy")
    from vla_rl.evaluation.remote import RemotePlayer

    config, remote = config or EvalConfig(), remote or RemoteConfig()
    if config.temperature > 0:
        raise ConfigError("--temperature has no effect: the server decides whether it samples")
    require_outputs(json_path, videos, config)
    connect = _connector(address, remote)
    first = connect()
    with ExitStack() as ending:
        ending.callback(first.close)
        played = remote_env(first.metadata, address, config.suite, remote)
        env = replace(played.env, num_workers=workers or played.env.num_workers)
        action_dim = benchmark(env.suite).action_dim
        player = RemotePlayer(connect, first, action_dim, env.action_chunk, played.sent)
        ending.callback(player.close)

        def play(_: Any, envs: VectorEnv, specs: Any, *, on_episode: Any, **__: Any) -> Any:
            return play_each_once_by(player, envs, specs, on_episode)

        with use_threads(1), make_vector_env(env) as envs:
            result, records = evaluate_policy(None, envs, env, config, play=play)
    result |= {
        "checkpoint": address,
        "sampling": {"mode": "served", "temperature": None},
        "infrastructure_errors": result["infrastructure_errors"] + player.errors,
        "practice": apart(records, played.trained_in, summary),
        "served": _facts(first.metadata, played, player.errors),
    }
    if show is not None:
        show(result)
    if json_path is not None:
        write_json(json_path, result)
    if videos is not None and config.videos > 0:
        record_videos(records, None, env, config.videos, videos)
    return result


def _facts(metadata: Mapping[str, Any], played: Played, lost: int) -> dict[str, Any]:
    """What the result says about the server."""
    return {
        "protocol": "openpi",
        "metadata": _kept(metadata),
        "image_size": played.sent,
        "wrist_camera": played.env.wrist_camera,
        "lost_episodes": lost,
    }


def _connector(address: str, remote: RemoteConfig) -> Callable[[], Any]:
    from vla_rl.serving.openpi_client import PolicyConnection, require_url
    from vla_rl.serving.websocket import AddressError, read_key

    require_url(address)
    try:
        key = read_key(remote.key_file)
    except AddressError as error:
        raise ConfigError(str(error)) from error
    return lambda: PolicyConnection(address, key, remote.timeout)


class Played(NamedTuple):
    """Where a served policy is evaluated."""

    env: EnvConfig
    trained_in: EnvConfig | None
    """None where nothing says so."""
    sent: int
    """Height and width of the pictures that are sent."""


def remote_env(
    metadata: Mapping[str, Any], address: str, suite: str, remote: RemoteConfig
) -> Played:
    """Where a policy plays that says `metadata` of itself. A turn is one answer: `replan` of its actions.

    UserError where nobody says what to play, and for metadata of a server of ours that do not fit.
    """
    from vla_rl.serving.served_policy import OURS

    home = trained_in = None
    if OURS in metadata:
        home, trained_in = _said_by_ours(metadata[OURS], address)
        suite = suite or home.suite
    if not suite:
        raise UserError(
            "nothing says what this policy is to play: give a suite with --suite, for example --suite libero-object"
        )
    if is_union(suite):
        raise ConfigError(
            f"{suite} is several suites, and a server plays one: choose it with --suite "
            f"({', '.join(suite_parts(suite))})"
        )
    played, env = benchmark(suite), benchmark_env(suite)
    at_home = home is not None and benchmark(home.suite) is played
    if home is not None and at_home:
        env = replace(env, **{name: getattr(home, name) for name in _DECIDED_BY_SERVER})
    whole = env.action_chunk * env.action_repeat
    steps = env.horizon * whole
    if home is None or suite != home.suite:
        steps = played.horizon(suite) or steps
    replan = remote.replan or (whole if at_home else OTHERS_REPLAN)
    size = remote.image_size or _size_asked_for(metadata, address)
    wrist = remote.wrist_camera
    if wrist == "auto":
        wrist = "none" if OURS in metadata else played.wrist_camera or "none"
    if not at_home and not remote.light:
        env = replace(env, mesh_faces=0, effects="effects" not in played.ignores)
    env = replace(
        env,
        action_chunk=replan,
        action_repeat=remote.action_repeat,
        horizon=remote.horizon or -(-steps // (replan * remote.action_repeat)),
        image_size=env.image_size if at_home else max(size, env.image_size),
        camera=remote.camera or env.camera,
        wrist_camera="" if wrist == "none" else wrist,
        num_envs=min(env.num_envs, MOST_CONVERSATIONS, _clients_allowed(metadata)),
    )
    sent = env.image_size if at_home and not remote.image_size else size
    return Played(env, trained_in, sent)


def _said_by_ours(own: Any, url: str) -> tuple[EnvConfig, EnvConfig | None]:
    try:
        home = from_json(EnvConfig, own["env"], "env")
        trained_in = own.get("trained_in")
        if trained_in is not None:
            trained_in = from_json(EnvConfig, trained_in, "trained_in")
        if 0 in (home.action_repeat, home.horizon):
            raise ConfigError("env.action_repeat and env.horizon: expected 1 or more, got 0")
    except (ConfigError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"the metadata of {url} do not fit ({error}): run the same version of VLA-RL at both ends"
        ) from error
    return home, trained_in


def _size_asked_for(metadata: Mapping[str, Any], url: str) -> int:
    size = metadata.get("image_size", OTHERS_IMAGE_SIZE)
    if type(size) is int and 1 <= size <= LARGEST_IMAGE:
        return size
    raise UserError(
        f"the metadata of {url} ask for images of {printable(repr(size))} px, expected 1 to {LARGEST_IMAGE}: set the "
        "size yourself with --image-size"
    )


def _clients_allowed(metadata: Mapping[str, Any]) -> int:
    from vla_rl.serving.openpi import MOST_AT_ONCE

    count = metadata.get(MOST_AT_ONCE)
    return count if type(count) is int and count >= 1 else MOST_CONVERSATIONS


def _kept(metadata: Mapping[str, Any]) -> Any:
    """The metadata as JSON values, or as much of their text as is worth keeping."""
    try:
        text = json.dumps(metadata, allow_nan=False)
        return json.loads(text) if len(text) <= _SHOWN else text[:_SHOWN]
    except (TypeError, ValueError, RecursionError):
        return printable(repr(dict(metadata))[:_SHOWN])
