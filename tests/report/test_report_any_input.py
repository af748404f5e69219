from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from parsed_page import page_of

from builders.example_run import write_json, write_lines

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=8,
)


def near(**known: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """An object with some of the expected keys, each as expected or anything at all."""
    return st.fixed_dictionaries({}, optional={key: value | JSON for key, value in known.items()})


COUNT, SHARE = st.integers(-1, 40), st.floats(0, 1)
NAME = st.sampled_from(["a", "b", "<i>"])
RATE = near(
    successes=COUNT,
    episodes=COUNT,
    interval=st.lists(SHARE, min_size=2, max_size=2),
    mean_turns=SHARE,
)
EPISODE = near(
    task=NAME, initial_state=COUNT, success=st.booleans(), turns=COUNT, file=st.just("x.mp4")
)
EVALUATION = near(
    tasks=st.dictionaries(NAME, RATE), overall=RATE, episodes=st.lists(EPISODE, max_size=6), horizon=COUNT,
    suite=NAME, initial_states=st.lists(COUNT, max_size=3), sampling=near(temperature=SHARE), action_chunk=COUNT,
)  # fmt: skip
METRICS = [
    "rollout/success_rate", "rollout/episodes", "success/a", "success/b", "curriculum/p/a", "time/learn",
    "curriculum/p/b", "curriculum/entropy", "losses/entropy", "wall_seconds", "rollout/infrastructure_errors",
]  # fmt: skip
ROW = near(iteration=COUNT, **{key: st.floats() for key in METRICS})
CONFIG = near(
    schedule=near(iterations=COUNT, minutes=SHARE, episodes=COUNT),
    ppo=near(iterations=COUNT, minutes=SHARE, critic_warmup=COUNT, logprob_tolerance=SHARE),
    run=near(seed=COUNT),
)
INFO = near(
    git=near(revision=NAME, dirty=st.booleans()), machine=near(cpus=COUNT), command=st.lists(NAME),
    resumed=st.lists(near(command=NAME)), versions=st.dictionaries(NAME, NAME),
)  # fmt: skip


@settings(max_examples=60)
@given(
    config=CONFIG | JSON,
    info=INFO | JSON,
    rows=st.lists(ROW | JSON, max_size=5),
    before=EVALUATION,
    after=EVALUATION | JSON,
    index=st.lists(EPISODE, max_size=2) | JSON,
)
def test_whatever_is_in_the_files_there_is_a_page(
    tmp_path_factory: pytest.TempPathFactory,
    config: Any,
    info: Any,
    rows: Any,
    before: Any,
    after: Any,
    index: Any,
):
    folder = tmp_path_factory.mktemp("any")
    (folder / "eval/videos/before").mkdir(parents=True)
    write_json(folder / "config.json", config)
    write_json(folder / "run.json", info)
    numbered = [{"iteration": i} | r if isinstance(r, dict) else r for i, r in enumerate(rows)]
    write_lines(folder / "metrics.jsonl", numbered)
    write_json(folder / "eval" / "before-greedy.json", before)
    write_json(folder / "eval" / "after-greedy.json", after)
    write_json(folder / "eval/videos/before/index.json", index)
    page_of(folder)
