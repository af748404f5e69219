"""Evaluate a policy that another program serves: `vla-rl eval --policy ws://HOST:PORT`.

vla-rl eval --policy ws://127.0.0.1:8000 --suite libero-object --json result.json
"""

from __future__ import annotations

import json as json_format
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

from vla_rl.config import ConfigError, EnvConfig, EvalConfig, UserError
from vla_rl.config.errors import printable
from vla_rl.config.serialize import from_json
from vla_rl.envs import make_vector_env
from vla_rl.envs.defaults import benchmark_env
from vla_rl.envs.registry import benchmark
from vla_rl.evaluation.episodes import EpisodeRecord, play_each_once_by
from vla_rl.evaluation.practised import apart
from vla_rl.evaluation.result import evaluate_policy, summary
from vla_rl.evaluation.videos import record_videos
from vla_rl.recipes.evaluate import require_outputs
from vla_rl.runtime.devices import use_threads
from vla_rl.runtime.extras import need
from vla_rl.runtime.files import write_json

OTHERS_REPLAN = 5
OTHERS_IMAGE_SIZE = 224
MOST_CONVERSATIONS = 32
_SHOWN = 4000  # letters of metadata that are kept
_DECIDED_BY_SERVER = (
    "image_size", "camera", "mesh_faces", "settle_steps", "action_repeat", "action_chunk", "horizon",
    "initial_states", "held_out",
)  # fmt: skip
"""Fields of the environment that a server of ours may ask for; how many simulators run here is not its business."""


def evaluate_remote(
    policy: str,
    protocol: EvalConfig | None = None,
    replan: int = 0,
    action_repeat: int = 1,
    horizon: int = 0,
    image_size: int = 0,
    camera: str = "",
    wrist_camera: str = "auto",
    key_file: Path | None = None,
    timeout: float = 120.0,
    json: Path | None = None,
    videos_out: Path | None = None,
    workers: int = 0,
    show: Callable[[dict[str, Any]], object] | None = None,
) -> dict[str, Any]:
    """How often the policy at `policy` (an address, ws://HOST:PORT) succeeds, each (task, initial state) played once.

    The options are those of `cli.door_arguments.RemoteEvalArguments`; the result is `evaluate_checkpoint`'s. Episodes
    that the server loses are played again, and counted as infrastructure errors. Raises UserError, before anything is
    played, for an output that could not be written and a server that cannot be reached; and where it fails for good.
    """
    need("websockets", "msgpack", purpose="eval --policy")
    from vla_rl.evaluation.remote import RemotePlayer
    from vla_rl.serving.openpi_client import PolicyConnection, require_url
    from vla_rl.serving.websocket import AddressError, read_key

    config = protocol or EvalConfig()
    if config.temperature > 0:
        raise ConfigError("--temperature has no effect: the server decides whether it samples")
    require_outputs(json, videos_out, config)
    require_url(policy)
    try:
        key = read_key(key_file)
    except AddressError as error:
        raise ConfigError(str(error)) from error

    def connect() -> PolicyConnection:
        return PolicyConnection(policy, key, timeout)

    first = connect()
    try:
        env, trained_in, sent = remote_env(
            first.metadata, policy, config.suite, replan, action_repeat, horizon, image_size, camera,
            wrist_camera,
        )  # fmt: skip
        env = replace(env, num_workers=workers or env.num_workers)
    except BaseException:
        first.close()
        raise
    action_dim = benchmark(env.suite).action_dim
    player = RemotePlayer(connect, first, action_dim, env.action_chunk, sent)

    def play(_: Any, envs: Any, specs: Any, *, on_episode: Any, **__: Any) -> list[EpisodeRecord]:
        return play_each_once_by(player, envs, specs, on_episode)

    with use_threads(1), closing(player), make_vector_env(env) as envs:
        result, records = evaluate_policy(None, envs, env, config, play=play)
    result |= {
        "checkpoint": policy,
        "sampling": {"mode": "served", "temperature": None},
        "infrastructure_errors": result["infrastructure_errors"] + player.errors,
        "practice": apart(records, trained_in, summary),
        "served": {
            "protocol": "openpi",
            "metadata": _kept(first.metadata),
            "image_size": sent,
            "wrist_camera": env.wrist_camera,
            "lost_episodes": player.errors,
        },
    }
    if show is not None:
        show(result)
    if json is not None:
        write_json(json, result)
    if videos_out is not None and config.videos > 0:
        record_videos(records, None, env, config.videos, videos_out)
    return result


def remote_env(
    metadata: Mapping[str, Any],
    url: str,
    suite: str,
    replan: int = 0,
    action_repeat: int = 1,
    horizon: int = 0,
    image_size: int = 0,
    camera: str = "",
    wrist_camera: str = "auto",
) -> tuple[EnvConfig, EnvConfig | None, int]:
    """Where a served policy is evaluated, where it was trained (None where it does not say), and the size of the
    pictures that are sent.

    A turn is one answer: `replan` of its actions. UserError where nobody says what to play, and for metadata of a
    server of ours that do not fit.
    """
    from vla_rl.serving.served_policy import OURS

    own = metadata.get(OURS)
    home = trained_in = None
    if own is not None:
        home, trained_in = _said_by_ours(own, url)
        suite = suite or home.suite
    if not suite:
        raise UserError(
            "nothing says what this policy is to play: give a suite with --suite, for example --suite libero-object"
        )
    played = benchmark(suite)
    env = benchmark_env(suite)
    if home is not None and benchmark(home.suite) is played:
        env = replace(env, **{name: getattr(home, name) for name in _DECIDED_BY_SERVER})
    else:
        home = None
    steps = env.horizon * env.action_chunk * env.action_repeat
    if home is None or suite != home.suite:
        steps = played.horizon(suite) or steps
    whole = env.action_chunk * env.action_repeat if home is not None else OTHERS_REPLAN
    turn = (replan or whole) * action_repeat
    if wrist_camera == "auto":
        wrist_camera = played.wrist_camera if own is None else ""
    sent = image_size or _size_asked_for(metadata, env.image_size if home is not None else 0)
    env = replace(
        env,
        action_chunk=replan or whole,
        action_repeat=action_repeat,
        horizon=horizon or -(-steps // turn),
        image_size=env.image_size
        if home is not None and not image_size
        else max(sent, env.image_size),
        camera=camera or env.camera,
        wrist_camera="" if wrist_camera == "none" else wrist_camera,
        num_envs=min(env.num_envs, MOST_CONVERSATIONS, _clients_allowed(metadata)),
    )
    return env, trained_in, sent


def _said_by_ours(own: Any, url: str) -> tuple[EnvConfig, EnvConfig | None]:
    try:
        home = from_json(EnvConfig, own["env"], "env")
        trained_in = own.get("trained_in")
        if trained_in is not None:
            trained_in = from_json(EnvConfig, trained_in, "trained_in")
    except (ConfigError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"the metadata of {url} do not fit ({error}): run the same version of VLA-RL at both ends"
        ) from error
    return home, trained_in


def _size_asked_for(metadata: Mapping[str, Any], own: int) -> int:
    size = metadata.get("image_size")
    return size if type(size) is int and 1 <= size <= 1024 else own or OTHERS_IMAGE_SIZE


def _clients_allowed(metadata: Mapping[str, Any]) -> int:
    from vla_rl.serving.openpi import MOST_AT_ONCE

    count = metadata.get(MOST_AT_ONCE)
    return count if type(count) is int and count >= 1 else MOST_CONVERSATIONS


def _kept(metadata: Mapping[str, Any]) -> Any:
    """The metadata as JSON values, or as much of their text as is worth keeping."""
    try:
        text = json_format.dumps(metadata, allow_nan=False)
        return json_format.loads(text) if len(text) <= _SHOWN else text[:_SHOWN]
    except (TypeError, ValueError, RecursionError):
        return printable(repr(dict(metadata))[:_SHOWN])
