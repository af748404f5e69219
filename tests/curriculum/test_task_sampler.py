"""The weights of each mode in closed form, and a sampler that goes on exactly where it was stopped."""

import json
import math
from collections import Counter
from typing import Any, get_args, get_type_hints

import numpy as np
import pytest

from vla_rl.config import ConfigError, CurriculumConfig, UserError
from vla_rl.curriculum import TaskSampler

STATES = np.arange(10, 17)
MODES = get_args(get_type_hints(CurriculumConfig)["mode"])


def sampler(
    mode: Any = "paper",
    tasks: tuple[str, ...] = ("drawer", "window"),
    seed: int = 0,
    states: np.ndarray = STATES,
    **config: Any,
) -> TaskSampler:
    return TaskSampler(CurriculumConfig(mode=mode, **config), tasks, states, seed)


def play(curriculum: TaskSampler, task: str, outcomes: str) -> None:
    """Observe one outcome per letter: + or -."""
    for outcome in outcomes:
        curriculum.observe(task, outcome == "+")


def p(curriculum: TaskSampler) -> list[float]:
    return curriculum.probabilities().tolist()


def test_two_tasks_in_closed_form():
    """Success 3/4 and 1/4 at tau 1/2: the odds are exp of the difference of the exponents over tau."""
    expected = {
        # (0.5 - .75) / .5 = -.5 against +.5: odds e
        "paper": [1 / (1 + math.e), math.e / (1 + math.e)],
        # both are 1/4 away from 1/2
        "frontier": [0.5, 0.5],
        "uniform": [0.5, 0.5],
        # 3/16 of both
        "learnable": [0.5, 0.5],
        # neither is known yet
        "progress": [0.5, 0.5],
        # the easier task is the first level
        "levels": [1.0, 0.0],
    }
    for mode, probabilities in expected.items():
        curriculum = sampler(mode, tau=0.5, floor=0.0)
        play(curriculum, "drawer", "++-+")
        play(curriculum, "window", "--+-")
        assert p(curriculum) == pytest.approx(probabilities), mode


def test_a_task_never_solved():
    """Success 0 and 1/2 at tau 1/2: `paper` gives it the most, `frontier` the least."""
    favoured = math.e / (1 + math.e)
    for mode, expected in (("paper", favoured), ("frontier", 1 - favoured)):
        curriculum = sampler(mode, tau=0.5, floor=0.0)
        play(curriculum, "drawer", "----")
        play(curriculum, "window", "+-+-")
        assert p(curriculum)[0] == pytest.approx(expected), mode


def test_the_floor_mixes_with_the_uniform_distribution():
    # odds e^-1 : 1 at tau 1, floor .1: .1 + .8 q
    curriculum = sampler("paper", tau=1.0, floor=0.1)
    play(curriculum, "drawer", "++")
    play(curriculum, "window", "--")
    q = math.e / (1 + math.e)
    assert p(curriculum) == pytest.approx([0.1 + 0.8 * (1 - q), 0.1 + 0.8 * q])
    curriculum = sampler("levels", tasks=("a", "b", "c", "d"), floor=0.05, levels=4)
    assert p(curriculum) == pytest.approx([0.85, 0.05, 0.05, 0.05])


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("floor", [0.0, 0.02, 0.2])
def test_probabilities_sum_to_1_above_the_floor(mode: str, floor: float):
    curriculum = sampler(mode, tasks=tuple("abcde"), floor=floor, tau=1e-3, level_window=2)
    rng = np.random.default_rng(1)
    for _ in range(200):
        spec = curriculum.draw_one()
        curriculum.observe(spec.task, bool(rng.random() < 0.8))
        probabilities = curriculum.probabilities()
        assert probabilities.dtype == np.float64
        assert probabilities.sum() == pytest.approx(1.0, abs=1e-12)
        assert probabilities.min() >= floor - 1e-12


def test_success_is_the_mean_of_the_window_and_the_prior_before():
    curriculum = sampler(window=4, prior=0.3)
    assert curriculum.successes().tolist() == pytest.approx([0.3, 0.3])
    play(curriculum, "window", "----+++-")
    assert curriculum.successes().tolist() == pytest.approx([0.3, 0.75])
    metrics = curriculum.metrics()
    assert metrics["curriculum/success/window"] == 0.75
    assert "curriculum/success/drawer" not in metrics  # nothing was measured
    assert metrics["curriculum/success_mean"] == 0.75, (
        "a task that was not played counts for nothing"
    )
    assert np.isnan(curriculum.measured()[0])
    play(curriculum, "drawer", "----")
    assert curriculum.metrics()["curriculum/success_mean"] == pytest.approx(0.375)
    assert "curriculum/success_mean" not in sampler("uniform").metrics()


def test_metrics_known():
    metrics = sampler("uniform", tasks=tuple("abcd")).metrics()
    assert metrics["curriculum/p/c"] == pytest.approx(0.25)
    assert metrics["curriculum/entropy"] == pytest.approx(math.log(4))
    assert sampler("levels", floor=0.0).metrics()["curriculum/entropy"] == 0.0
    assert sampler("levels").metrics()["curriculum/level"] == 1.0


def batch(curriculum: TaskSampler, **outcomes: str) -> None:
    """One iteration's episodes by task."""
    for task, letters in outcomes.items():
        play(curriculum, task, letters)
    curriculum.end_batch()


def test_levels_hold_several_tasks_and_open_from_easy_to_hard():
    curriculum = sampler(
        "levels", tuple("abcdef"), floor=0.0, levels=3, level_window=2, level_threshold=0.7, level_share=0.7
    )  # fmt: skip
    play(
        curriculum, "d", "++"
    )  # measured before training: d is the easiest, b the hardest, the rest is unplayed
    play(curriculum, "b", "-")
    curriculum.draw_one()
    assert p(curriculum) == [0.5, 0, 0, 0.5, 0, 0]
    assert curriculum.metrics()["curriculum/level"] == 1
    batch(curriculum, a="+++-", d="++++")  # 7 of 8
    assert p(curriculum) == [0.5, 0, 0, 0.5, 0, 0], "one batch rate of two"
    batch(curriculum, a="-", d="++++-")  # 4 of 6: the mean of the two rates is 0.77
    # 0.7 over the two new ones, 0.3 over all four open ones
    assert p(curriculum) == pytest.approx([0.075, 0, 0.425, 0.075, 0.425, 0])
    assert curriculum.metrics()["curriculum/level"] == 2
    batch(curriculum, a="--", c="+", e="+")
    batch(curriculum, c="-", e="+", b="+++", f="++")  # (1 + 1/2) / 2; b and f are not of the level
    assert curriculum.metrics()["curriculum/level"] == 3
    assert p(curriculum) == pytest.approx([0.05, 0.4, 0.05, 0.05, 0.05, 0.4])
    for _ in range(3):
        batch(curriculum, b="+", f="+")  # the last one stays current
    assert p(curriculum) == pytest.approx([0.05, 0.4, 0.05, 0.05, 0.05, 0.4])


@pytest.mark.parametrize(
    ("tasks", "levels", "sizes"), [(5, 3, [2, 2, 1]), (10, 3, [4, 3, 3]), (2, 3, [1, 1]), (4, 1, [4])]
)  # fmt: skip
def test_levels_are_of_about_equal_size(tasks: int, levels: int, sizes: list[int]):
    names = tuple("abcdefghij"[:tasks])
    curriculum = sampler("levels", names, floor=0.0, levels=levels, level_window=1)
    curriculum.draw_one()
    opened = [sum(q > 0 for q in p(curriculum))]
    for _ in range(5):
        batch(curriculum, **dict.fromkeys(names, "+"))
        opened.append(sum(q > 0 for q in p(curriculum)))
    assert [size for size in np.diff([0, *opened]) if size] == sizes


def test_a_level_must_pass_its_threshold_not_meet_it():
    for outcomes, opened in (("+++-", 1.0), ("++++", 2.0)):
        curriculum = sampler("levels", level_window=2, level_threshold=0.75)
        curriculum.draw_one()
        batch(curriculum, drawer="+++-")
        batch(curriculum, drawer=outcomes)
        assert curriculum.metrics()["curriculum/level"] == opened


def test_a_level_is_passed_by_ten_batches_and_not_by_luck_with_ten_episodes():
    """At a true rate of 0.5, ten episodes pass 0.7 soon by chance; the mean of ten batch rates does not."""
    rng = np.random.default_rng(0)
    curriculum = sampler("levels", tuple("abc"))
    curriculum.draw_one()
    for _ in range(60):
        batch(curriculum, a="".join(rng.choice(["+", "-"], 20)))
        assert curriculum.metrics()["curriculum/level"] == 1.0
    batches = 0
    while curriculum.metrics()["curriculum/level"] == 1.0 and batches < 20:
        batch(curriculum, a="".join(rng.choice(["+", "-"], 20, p=[0.95, 0.05])))
        batches += 1
    assert 4 <= batches <= 10, "the rates of the last ten batches count, no older ones"


def test_a_batch_without_an_episode_of_the_level_has_no_rate():
    curriculum = sampler("levels", level_window=2)
    curriculum.draw_one()
    batch(curriculum, drawer="++")
    for _ in range(5):
        batch(curriculum, window="++")
        assert curriculum.metrics()["curriculum/level"] == 1.0
    batch(curriculum, drawer="+")
    assert curriculum.metrics()["curriculum/level"] == 2.0


def test_levels_of_a_run_of_before_go_on():
    """Each level was one task then, and advanced by episodes."""
    curriculum = sampler("levels", tuple("abcd"), floor=0.0, level_window=1)
    saved = curriculum.state_dict()
    del saved["level_rates"], saved["level_batch"]
    curriculum.load_state_dict(saved | {"levels": [2, 0], "level_results": [1, 0]})
    assert p(curriculum) == pytest.approx([0.85, 0, 0.15, 0])
    batch(curriculum, a="+")
    # the third of three levels takes all that is left
    assert p(curriculum) == pytest.approx([0.075, 0.425, 0.075, 0.425])


def test_levels_start_with_the_given_order_when_nothing_is_known():
    assert p(sampler("levels", floor=0.0)) == [1.0, 0.0]


@pytest.mark.parametrize("mode", ["paper", "levels"])
def test_draws_follow_the_probabilities(mode: str):
    """Chi-square with 4 degrees of freedom: above 18.5 once in a thousand seeds; the seed is fixed."""
    curriculum = sampler(mode, tuple("abcde"), tau=0.5, level_window=1, seed=3)
    for task, outcomes in zip("abcde", ("+", "-", "+-", "+--", "++-"), strict=True):
        play(curriculum, task, outcomes)
    expected = 4000 * curriculum.probabilities()
    counts = Counter(spec.task for spec in curriculum.draw(4000))
    chi_square = sum((counts[task] - e) ** 2 / e for task, e in zip("abcde", expected, strict=True))
    assert chi_square < 18.5


def test_a_task_without_probability_is_never_drawn():
    curriculum = sampler("levels", tuple("abc"), floor=0.0, level_share=1.0, level_window=1)
    curriculum.draw_one()
    play(curriculum, "a", "+")
    curriculum.end_batch()
    assert {spec.task for spec in curriculum.draw(200)} == {"b"}


def test_every_initial_state_comes_once_before_any_comes_again():
    curriculum = sampler("uniform", seed=5)
    drawn: dict[str, list[int]] = {"drawer": [], "window": []}
    for spec in curriculum.draw(100):
        drawn[spec.task].append(spec.initial_state)
    rounds = []
    for states in drawn.values():
        assert len(states) > 4 * len(STATES)
        for start in range(0, len(states) - len(STATES), len(STATES)):
            rounds.append(tuple(states[start : start + len(STATES)]))
            assert sorted(rounds[-1]) == STATES.tolist()
    assert len(set(rounds)) == len(rounds)  # a fresh order each round and task


def test_the_seed_decides_and_the_order_of_asking_does_not():
    one, two, other = sampler(seed=1), sampler(seed=1), sampler(seed=2)
    draws = one.draw(50)
    assert draws == [two.draw_one() for _ in range(50)]
    assert draws != other.draw(50)
    for look in (one.probabilities, one.metrics, one.state_dict):
        look()  # changes nothing
    assert one.draw(5) == two.draw(5)


@pytest.mark.parametrize("stop", [9, 61])  # in the first round of initial states, and later
@pytest.mark.parametrize("mode", MODES)
def test_going_on_from_the_saved_state_equals_never_having_stopped(mode: str, stop: int):
    config: dict[str, Any] = {"mode": mode, "window": 5, "slow_window": 12, "level_window": 3}
    rng = np.random.default_rng(0)
    outcomes = [bool(rng.random() < 0.7) for _ in range(120)]

    def go_on(curriculum: TaskSampler, outcomes: list[bool]) -> list:
        seen = []
        for outcome in outcomes:
            spec = curriculum.draw_one()
            curriculum.observe(spec.task, outcome)
            if np.sum(curriculum.state_dict()["drawn"]) % 4 == 0:
                curriculum.end_batch()
            seen.append((spec, p(curriculum)))
        return seen

    tasks = tuple("abcd")
    straight = sampler(tasks=tasks, seed=7, **config)
    whole = go_on(straight, outcomes)
    first = sampler(tasks=tasks, seed=7, **config)
    go_on(first, outcomes[:stop])
    saved = json.loads(json.dumps(first.state_dict()))
    second = sampler(tasks=tasks, seed=99, **config)  # the seed comes from the state
    second.draw(17)
    second.observe("a", True)
    second.load_state_dict(saved)
    assert go_on(second, outcomes[stop:]) == whole[stop:]
    assert second.state_dict() == straight.state_dict()
    assert second.metrics() == straight.metrics()


def test_a_state_of_another_run_is_refused():
    state = sampler().state_dict()
    with pytest.raises(UserError, match="for the tasks drawer, window; this run has door"):
        sampler(tasks=("door",)).load_state_dict(state)
    with pytest.raises(UserError, match="other training states"):
        sampler(states=np.arange(3)).load_state_dict(state)


def test_user_mistakes_are_explained():
    with pytest.raises(ConfigError, match=r"more than 1; choose at most 0\.02"):
        sampler(tasks=tuple(f"task-{i}" for i in range(50)), floor=0.03)
    sampler(tasks=tuple(f"task-{i}" for i in range(50)), floor=0.02)  # exactly 1: uniform, allowed
    with pytest.raises(ConfigError, match="at least one task"):
        sampler(tasks=())
    with pytest.raises(ConfigError, match="must differ"):
        sampler(tasks=("a", "a"))
    with pytest.raises(ConfigError, match="training states"):
        sampler(states=np.array([], dtype=np.int64))
    with pytest.raises(ConfigError, match="seed"):
        sampler(seed=-1)
    with pytest.raises(ConfigError, match="Did you mean 'window'"):
        sampler().observe("windw", True)


@pytest.mark.parametrize(
    "bad", [{"level_share": 1.1}, {"level_window": 0}, {"prior": -0.1}, {"level_threshold": 7}]
)
def test_config_refuses_numbers_out_of_range(bad: dict[str, Any]):
    with pytest.raises(ConfigError, match=f"curriculum.{next(iter(bad))}: expected"):
        CurriculumConfig(**bad)


def test_a_group_is_one_draw_several_times() -> None:
    one, other = (
        TaskSampler(CurriculumConfig(), ["a", "b"], np.arange(4, dtype=np.int64), 0)
        for _ in range(2)
    )
    groups = [one.draw_group(3) for _ in range(6)]
    assert groups == [[spec] * 3 for spec in other.draw(6)]
    assert one.state_dict() == other.state_dict()
    with pytest.raises(ConfigError, match="at least one episode, got 0"):
        one.draw_group(0)
