"""`eval --policy`: a served policy plays as it plays here, and what a server does wrong has a name."""

from __future__ import annotations

import json
import logging
import re
import socket
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("websockets", reason="policies over WebSocket: pip install 'vla-rl[serve]'")
pytest.importorskip("msgpack", reason="policies over WebSocket: pip install 'vla-rl[serve]'")

from websockets.utils import accept_key

from serving.doors import FAULTS, SUITE, Faulty, raw_server, toy_env, toy_policy
from vla_rl.cli import main
from vla_rl.config import ConfigError, EnvConfig, EvalConfig, UserError
from vla_rl.config.remote import RemoteConfig
from vla_rl.envs import make_vector_env
from vla_rl.evaluation import remote as evaluation
from vla_rl.evaluation.episodes import play_each_once, play_each_once_by
from vla_rl.evaluation.remote import RemotePlayer
from vla_rl.evaluation.result import evaluation_specs
from vla_rl.recipes.evaluate import evaluate
from vla_rl.recipes.evaluate_remote import evaluate_remote, remote_env
from vla_rl.recipes.serve import _one_suite, conversations
from vla_rl.serving.openpi import policy_server
from vla_rl.serving.openpi_client import (
    PolicyConnection,
    PolicyServerError,
    WrongPolicyError,
    actions_of,
)
from vla_rl.serving.websocket import PolicyServer

PROTOCOL = EvalConfig(suite=SUITE, episodes_per_task=2)
QUICK = RemoteConfig(horizon=2, timeout=0.5, image_size=32)


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation, "WAIT", 0.01)


def test_a_served_policy_plays_the_episodes_that_it_plays_here() -> None:
    policy, env = toy_policy(), toy_env()
    here = evaluate(policy, PROTOCOL, env)
    with make_vector_env(env) as envs:
        specs = evaluation_specs(env, PROTOCOL, envs.tasks)
        played = play_each_once(policy, envs, specs)
    with PolicyServer(conversations(policy, env, env), port=0) as server:
        there = evaluate_remote(server.url, replace(PROTOCOL, suite=""))
        first = PolicyConnection(server.url)
        found = remote_env(first.metadata, server.url, "", RemoteConfig())
        player = RemotePlayer(
            lambda: PolicyConnection(server.url), first, 4, found.env.action_chunk, found.sent
        )
        with make_vector_env(found.env) as envs:
            asked = play_each_once_by(player, envs, specs)
        player.close()
    assert there["episodes"] == here["episodes"]
    assert there["overall"] == here["overall"]
    assert (there["suite"], there["infrastructure_errors"]) == (SUITE, 0)
    assert (found.env.action_chunk, found.env.action_repeat, found.env.horizon) == (6, 1, 4)
    for mine, theirs in zip(played, asked, strict=True):
        for tokens, actions in zip(mine.tokens, theirs.actions, strict=True):
            decoded = policy.decode_actions(np_tokens(tokens))[0]
            np.testing.assert_array_equal(np.repeat(decoded, env.action_repeat, 0), actions)
    # they are not all the same, so that another's would show
    assert len({a.tobytes() for r in asked for a in r.actions}) > 4


def np_tokens(tokens: list[int]) -> Any:
    import torch

    return torch.tensor([tokens])


def test_what_somebody_elses_policy_is_shown_and_what_becomes_of_its_answers() -> None:
    seen: list[dict[str, Any]] = []

    def act(observation: dict[str, Any]) -> np.ndarray:
        seen.append(observation)
        return np.arange(32, dtype=np.float64).reshape(8, 4) / 100

    remote = RemoteConfig(replan=3, action_repeat=2, wrist_camera="table", horizon=2)
    with policy_server(act, port=0) as server:
        result = evaluate_remote(server.url, replace(PROTOCOL, episodes_per_task=1), remote)
    for observation in seen:  # the lanes ask at the same time: in an order of their own
        assert {k: getattr(v, "shape", v) for k, v in observation.items() if k != "prompt"} == {
            "observation/image": (224, 224, 3),
            "observation/wrist_image": (224, 224, 3),
            "observation/state": (4,),
        }
        assert (observation["observation/image"] != observation["observation/wrist_image"]).any()
    asked = sorted(observation["prompt"] for observation in seen)
    assert asked == ["grasp the yellow block"] * 2 + ["reach the red disc"] * 2
    assert (result["horizon"], result["action_chunk"], result["action_repeat"]) == (2, 3, 2)
    assert {e["simulator_steps"] for e in result["episodes"]} == {12}
    assert len(seen) == 4
    assert result["sampling"]["mode"] == "served"


def test_a_policy_that_remembers_is_told_where_episodes_begin_and_asked_by_one() -> None:
    log: list[str] = []

    class Remembers:
        def infer(self, observation: dict[str, Any]) -> dict[str, Any]:
            log.append("act")
            return {"actions": np.zeros((5, 4), np.float32)}

        def reset(self) -> None:
            log.append("reset")

    with policy_server(Remembers(), port=0) as server:
        evaluate_remote(server.url, replace(PROTOCOL, episodes_per_task=1), QUICK)
    assert log == ["reset", "act", "act"] * 2


@pytest.mark.parametrize("size", [0, 1025, 224.0, "224", None, True])
def test_a_picture_size_that_is_none_is_refused(size: Any) -> None:
    with pytest.raises(UserError, match=r"ws://x:1 ask for images of .* expected 1 to 1024"):
        remote_env({"image_size": size}, "ws://x:1", "mt5", RemoteConfig())
    assert (
        remote_env({"image_size": size}, "ws://x:1", "mt5", RemoteConfig(image_size=96)).sent == 96
    )


@pytest.mark.parametrize("fault", FAULTS)
def test_an_episode_that_the_server_loses_is_played_again(
    fault: str, caplog: pytest.LogCaptureFixture
) -> None:
    """In its second turn, when four episodes have played their first; the other three must not suffer."""
    do, words = FAULTS[fault]
    server = Faulty(6, do)
    with raw_server(server) as url, caplog.at_level(logging.WARNING):
        result = evaluate_remote(url, PROTOCOL, QUICK)
    assert words in caplog.text
    assert "played again from its start" in caplog.text
    assert (result["infrastructure_errors"], result["served"]["lost_episodes"]) == (1, 1)
    assert [e["turns"] for e in result["episodes"]] == [2] * 4
    assert server.asked == 4 * 2 + 2  # both of its turns again


def test_a_server_that_does_not_read_is_not_waited_for_for_ever() -> None:
    """It shakes hands and sends its metadata, by hand, and then sleeps."""
    over = threading.Event()

    def sleep(listener: socket.socket) -> None:
        client, _ = listener.accept()
        asked = client.recv(4096).decode()
        key = re.search(r"Sec-WebSocket-Key: (\S+)", asked)
        assert key is not None
        answer = accept_key(key[1])
        head = f"HTTP/1.1 101 X\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: {answer}"
        client.sendall(f"{head}\r\n\r\n".encode() + b"\x82\x01\x80")  # an empty map
        over.wait(60)
        client.close()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=sleep, args=(listener,), daemon=True).start()
        connection = PolicyConnection(f"ws://127.0.0.1:{listener.getsockname()[1]}", timeout=0.5)
        # whichever the library makes of the kernel's error
        with pytest.raises(PolicyServerError, match=r"has not read what it was sent|has hung up"):
            connection.send({"x": bytes(60 * 2**20)})
        over.set()
        connection.close()


@pytest.mark.parametrize("fault", ["dies", "nan", "text", "garbage"])
def test_a_server_that_goes_on_failing_ends_the_evaluation(fault: str, tmp_path: Path) -> None:
    do, words = FAULTS[fault]
    server = Faulty(2, do, again=True)
    out = tmp_path / "result.json"
    with (
        raw_server(server) as url,
        pytest.raises(PolicyServerError, match="3 times in vain") as said,
    ):
        evaluate_remote(url, PROTOCOL, QUICK, out)
    assert words in str(said.value)
    assert server.asked < 30
    assert not out.exists()


def test_a_server_that_is_gone_is_looked_for_a_few_times() -> None:
    gone = threading.Event()

    def once(client: Any) -> None:
        if gone.is_set():
            client.close_socket()
            return
        Faulty(2, lambda c: (gone.set(), c.close_socket()), again=True)(client)

    with raw_server(once) as url, pytest.raises(PolicyServerError, match="has hung up"):
        evaluate_remote(url, PROTOCOL, QUICK)


@pytest.mark.parametrize(
    ("actions", "words"),
    [
        (np.zeros((5, 7)), "7 numbers an action, this suite is played with 4"),
        (np.zeros((3, 4)), "take --replan 3"),
    ],
)
def test_a_policy_of_another_robot_is_refused_at_once(actions: np.ndarray, words: str) -> None:
    asked: list[int] = []

    def act(_: Any) -> np.ndarray:
        asked.append(1)
        return actions

    with policy_server(act, port=0) as server, pytest.raises(WrongPolicyError, match=words):
        evaluate_remote(server.url, PROTOCOL, QUICK)
    assert len(asked) <= 4


@pytest.mark.parametrize(
    ("hello", "words"),
    [
        ("Traceback\nValueError: no weights", "error of its own: ValueError: no weights"),
        (b"\xc1", "cannot be read"),
        (b"\x03", "said int 3 first"),
    ],
)
def test_a_server_that_begins_otherwise_is_refused(hello: str | bytes, words: str) -> None:
    with (
        raw_server(lambda client: client.send(hello)) as url,
        pytest.raises(UserError, match=words),
    ):
        evaluate_remote(url, PROTOCOL, QUICK)


@pytest.mark.parametrize(
    "own",
    [
        3,
        {},
        {"env": {"suite": "toy", "image_size": -1}},
        {"env": {"no_such": 1}},
        {"env": {"suite": "toy"}, "trained_in": 4},
        {"env": {"suite": "toy", "action_repeat": 0}},
        {"env": {"suite": "toy", "horizon": 0}},
    ],
)
def test_metadata_that_do_not_fit_are_refused(own: Any) -> None:
    with pytest.raises(UserError, match="the metadata of ws://x:1 do not fit"):
        remote_env({"vla_rl": own}, "ws://x:1", "", RemoteConfig())


def test_of_several_suites_those_that_can_be_chosen_are_named() -> None:
    with pytest.raises(UserError, match=r"\(toy:reach-red, mt1:drawer-open\)"):
        remote_env({}, "ws://x:1", "toy:reach-red+mt1:drawer-open", RemoteConfig())
    with pytest.raises(UserError, match=r"\(toy:reach-red, mt1:drawer-open\)"):
        _one_suite(EnvConfig(suite="toy:reach-red+mt1:drawer-open"))


def test_an_answer_without_any_action_is_the_servers_fault() -> None:
    nothing = {"actions": np.zeros((0, 4), np.float32)}
    with pytest.raises(PolicyServerError, match="no action at all"):
        actions_of(nothing, "ws://x:1", 4, 5)
    with policy_server(lambda _: nothing, port=0) as server:
        connection = PolicyConnection(server.url)
        connection.send({"prompt": "x"})
        with pytest.raises(PolicyServerError, match=r"shape \(0, 4\)"):
            connection.receive("actions")
        connection.close()


def test_a_server_does_not_decide_how_many_simulators_run_here() -> None:
    own = {"env": {"suite": SUITE, "num_envs": 4096, "num_workers": 1024, "max_restarts": 10**6}}
    env = remote_env({"vla_rl": own, "clients": 10**9}, "ws://x:1", "", RemoteConfig()).env
    assert (env.num_envs, env.num_workers, env.max_restarts) == (32, 0, 20)


def test_libero_is_shown_as_openpis_own_client_shows_it() -> None:
    env, trained_in, sent = remote_env({}, "ws://x:1", "libero-object", RemoteConfig())
    assert (env.image_size, sent, env.wrist_camera, env.mesh_faces) == (256, 224, "wrist", 0)
    assert (env.action_chunk, env.action_repeat, env.horizon) == (5, 1, 56)
    assert trained_in is None
    light = remote_env(
        {}, "ws://x:1", "libero-object", RemoteConfig(light=True, wrist_camera="none")
    )
    assert (light.env.mesh_faces, light.env.wrist_camera) == (
        0,
        "",
    )  # the protocol draws whole meshes


def test_metaworld_is_drawn_as_its_own_renderer_does_and_one_action_is_one_step() -> None:
    env, _, sent = remote_env({"image_size": 480}, "ws://x:1", "mt5", RemoteConfig())
    assert (env.image_size, sent, env.wrist_camera) == (480, 480, "")
    assert (env.mesh_faces, env.effects) == (0, True)
    assert (env.action_chunk, env.action_repeat, env.horizon) == (5, 1, 30)
    light = remote_env({}, "ws://x:1", "mt5", RemoteConfig(light=True, replan=4)).env
    assert (light.mesh_faces, light.effects, light.horizon) == (150, False, 38)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--policy http://x:1 --suite toy", "is ws://HOST:PORT"),
        ("--policy ws://user@x:1 --suite toy", "is ws://HOST:PORT"),
        ("--policy ws://x:99999 --suite toy", "is ws://HOST:PORT"),
        ("--policy ws:// --suite toy", "is ws://HOST:PORT"),
        ("--policy", "--policy needs an address"),
        ("--policy ws://127.0.0.1:1 --suite toy", "nobody answers at ws://127.0.0.1:1"),
        ("--policy ws://127.0.0.1:1 --best-of 3", "there is no option --best-of"),
        ("--policy ws://127.0.0.1:1 --temperature 1", "the server decides whether it samples"),
        ("--policy ws://127.0.0.1:1 --key-file gone", "cannot read the key file gone"),
    ],
)
def test_what_is_asked_wrongly_is_said_in_a_line(
    words: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["eval", *words.split()]) == 2
    err = capsys.readouterr().err
    assert said in err
    assert err.count("\n") == 1


def test_the_command_writes_the_result_and_videos(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("av")
    out = tmp_path / "result.json"
    with policy_server(lambda _: np.zeros((5, 4), np.float32), port=0) as server:
        words = f"--suite {SUITE} --episodes-per-task 1 --videos 1 --horizon 2 --json {out}"
        code = main(["eval", f"--policy={server.url}", *words.split()])
    assert code == 0
    assert "reach-red" in capsys.readouterr().out
    result = json.loads(out.read_text())
    assert result["checkpoint"] == server.url
    assert len(json.loads((tmp_path / "videos" / "index.json").read_text())) == 2


def test_sampling_here_is_refused_for_programs_too() -> None:
    with pytest.raises(ConfigError, match="the server decides"):
        evaluate_remote("ws://127.0.0.1:1", replace(PROTOCOL, temperature=1.0))
