"""What a Meta-World episode tells of itself, in scripted episodes of the real simulator; and the kinds read from it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest

from vla_rl.config import EnvConfig
from vla_rl.envs.metaworld.env import MetaWorldEnv, expert_action, make_metaworld_envs
from vla_rl.envs.metaworld.tasks import INSTRUCTIONS
from vla_rl.envs.metaworld.tracing import GRASP, REACH, traced_goal
from vla_rl.envs.registry import make_envs
from vla_rl.envs.trace import EpisodeTrace, Moment, Traced
from vla_rl.evaluation import traces
from vla_rl.evaluation.episodes import EpisodeRecord
from vla_rl.evaluation.failures import classify, progress
from vla_rl.types import EpisodeSpec

pytest.importorskip("metaworld")
pytestmark = pytest.mark.sim

SUITE = EnvConfig(suite="mt50", image_size=32, horizon=50)
Moments = list[Moment]
Script = Callable[[MetaWorldEnv, Moments], np.ndarray]
UP, OPEN, CLOSED = np.array([0.0, 0.0, 1.0, -1.0]), -1.0, 1.0


@pytest.fixture(scope="module")
def env() -> Iterator[MetaWorldEnv]:
    (made,) = make_metaworld_envs(SUITE, 1)
    yield made
    made.close()


def play(env: MetaWorldEnv, task: str, script: Script, turns: int = 30) -> EpisodeTrace:
    """The trace of an episode in which `script` says what the hand does, knowing what has happened so far."""
    env.reset(EpisodeSpec(task, 950))
    moments = [env.moment()]
    while not env._ended and env.turns < turns:
        action = np.asarray(script(env, moments), dtype=np.float32)
        env.step(action[None], on_frame=lambda: moments.append(env.moment()))
    return EpisodeTrace.of(env.traced_goals(), moments)


def expert(env: MetaWorldEnv, _: Moments) -> np.ndarray:
    return expert_action(env)


def with_gripper(closing: float) -> Script:
    return lambda env, _: np.append(expert_action(env)[:3], closing)


def until(reached: Callable[[Moments], bool], then: np.ndarray) -> Script:
    """The expert until something has happened, another action ever after."""
    happened: list[int] = []

    def script(env: MetaWorldEnv, moments: Moments) -> np.ndarray:
        if happened or reached(moments):
            happened.append(env.turns)
            return then
        return expert_action(env)

    return script


def made(share: float) -> Callable[[Moments], bool]:
    def reached(moments: Moments) -> bool:
        start, now = (m.goals[0].remaining for m in (moments[0], moments[-1]))
        return now < (1 - share) * start

    return reached


def lifted_by(height: float) -> Callable[[Moments], bool]:
    def reached(moments: Moments) -> bool:
        start, now = (m.goals[0].position[2] for m in (moments[0], moments[-1]))
        return bool(now - start > height)

    return reached


def low(moments: Moments) -> bool:
    return bool(moments[-1].hand[2] < 0.06)


@pytest.mark.parametrize(
    ("task", "script", "kind"),
    [
        ("drawer-open", lambda *_: UP, "never touched"),
        ("pick-place", lambda *_: UP, "never touched"),
        ("button-press-topdown", until(made(0.5), UP), "moved back"),  # it springs up again
        ("drawer-open", until(made(0.1), UP), "moved too little"),
        ("pick-place", with_gripper(CLOSED), "closed too early"),
        ("pick-place", with_gripper(OPEN), "never touched"),  # around it, and up again
        ("pick-place", until(low, np.array([0, -1, 0, OPEN])), "missed grasp"),
        ("pick-place", until(lifted_by(0.05), np.array([0, 0, 0, OPEN])), "wrong place"),
        (
            "pick-place",
            until(lifted_by(0.025), np.array([0, 0, -0.01, CLOSED])),
            "time over, other",
        ),
        ("reach", lambda *_: -UP, "wrong way"),
        ("reach", until(made(0.15), np.zeros(4)), "moved too little"),
    ],
)
def test_scripted_failures(env: MetaWorldEnv, task: str, script: Script, kind: str):
    assert classify(play(env, task, script)) == kind


def test_what_slips_while_the_gripper_is_told_to_hold_is_dropped(env: MetaWorldEnv):
    def torn_away(env: MetaWorldEnv, moments: Moments) -> np.ndarray:
        simulator = env._own()
        if lifted_by(0.05)(moments) or simulator.data.xfrc_applied.any():
            simulator.data.xfrc_applied[simulator.model.body("obj").id, 2] = -200.0
            return np.array([0, 0, 0, CLOSED])
        return expert_action(env)

    trace = play(env, "pick-place", torn_away)
    assert classify(trace) == "dropped"


def test_time_over_on_the_way(env: MetaWorldEnv):
    whole = play(env, "drawer-open", expert)
    moving = int(np.argmax(progress(whole.goals[0]) > 0.5)) // SUITE.action_repeat
    cut = play(env, "drawer-open", expert, turns=moving)
    assert classify(cut) == "time over, other"


def test_a_solved_episode_has_no_kind(env: MetaWorldEnv):
    trace = play(env, "drawer-open", expert)
    assert trace.goals[0].reached[-1]
    assert progress(trace.goals[0])[-1] == pytest.approx(1.0, abs=0.1)
    with pytest.raises(ValueError, match="no failure"):
        classify(trace)


def test_the_gripper_as_commanded_and_as_it_is(env: MetaWorldEnv):
    trace = play(env, "pick-place", lambda *_: np.array([0, 0, 0, CLOSED]), turns=10)
    assert trace.closing[-1] == pytest.approx(1.0)
    assert trace.opening[0] > 0.9
    assert trace.opening[-1] < 0.5


@pytest.mark.parametrize("task", ["drawer-open", "pick-place"])
def test_asking_changes_nothing(env: MetaWorldEnv, task: str):
    actions = np.random.default_rng(0).uniform(-1, 1, (8, 1, 4)).astype(np.float32)
    ends = []
    for ask in (True, False):
        env.reset(EpisodeSpec(task, 3))
        if ask:
            env.moment()
        for turn in actions[: 8 if task == "pick-place" else 4]:
            env.step(turn, on_frame=(lambda: env.moment()) if ask else None)
        ends.append((env._own().integration_state(), env.state_observation(), env.render()))
    for one, two in zip(*ends, strict=True):
        np.testing.assert_array_equal(one, two)


def test_every_task_has_a_goal(env: MetaWorldEnv):
    assert isinstance(env, Traced)
    assert set(GRASP) | set(REACH) <= set(INSTRUCTIONS)
    env.reset(EpisodeSpec("soccer", 3))  # its radius is not known
    env.step(UP[None].astype(np.float32))
    (goal,) = env.moment().goals
    assert np.isfinite(goal.remaining)
    assert traced_goal("soccer").radius is None


def test_in_a_union_the_suite_of_the_task_decides_what_is_told(monkeypatch: pytest.MonkeyPatch):
    still = np.zeros((2, 1, 4), np.float32)
    monkeypatch.setattr(traces, "_actions", lambda *_: still)
    suite = "toy:reach-red+mt1:drawer-open"
    (both,) = make_envs(EnvConfig(suite=suite, image_size=32, horizon=2, action_repeat=1), 1)

    def traced(task: str) -> EpisodeTrace | None:
        record = EpisodeRecord(EpisodeSpec(task, 950), turns=2, simulator_steps=2)
        return traces.trace_episode(both, record, None)  # type: ignore[arg-type]

    try:
        for _ in range(2):  # whatever was played before
            assert traced("reach-red") is None
            told = traced("drawer-open")
            assert told is not None
            assert len(told) == 3
            assert classify(told) == "never touched"
    finally:
        both.close()
