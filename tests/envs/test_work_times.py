"""What simulators cost is counted where the work is done, and told once."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from faulty_envs import EXIT, make_faulty_envs, order

from vla_rl.config import EnvConfig
from vla_rl.envs.known_answers import make_chain_envs
from vla_rl.envs.vector.process import ProcessVectorEnv
from vla_rl.envs.vector.serial import SerialVectorEnv
from vla_rl.envs.vector.work_times import KINDS, TimesItsWork
from vla_rl.types import EpisodeSpec

CONFIG = EnvConfig(
    image_size=11, action_repeat=1, action_chunk=2, horizon=8, num_envs=5, num_workers=2, step_timeout=120.0
)  # fmt: skip
START = EpisodeSpec("chain", 0)
EVERY = range(5)


@pytest.mark.parametrize("kind", [ProcessVectorEnv, SerialVectorEnv])
def test_work_is_counted_by_its_kind(kind: type[ProcessVectorEnv] | type[SerialVectorEnv]) -> None:
    with kind(CONFIG, make_chain_envs) as envs:
        assert isinstance(envs, TimesItsWork)
        for _ in range(2):
            envs.post_reset(EVERY, [START] * 5)
            envs.wait(EVERY)
        steps = 0
        for _ in range(3):
            envs.post_step(EVERY, np.zeros((5, 2, 4), np.float32))
            steps += int(envs.wait(EVERY).simulator_steps.sum())
        found = envs.work_times()
        assert tuple(found) == KINDS
        assert (found["step"].calls, found["step"].samples) == (15, steps)
        assert found["image"].calls == 15
        # a process builds a task's simulator in the first reset of it, which does not count
        assert found["reset"].calls == 10 - (2 if kind is ProcessVectorEnv else 0)
        assert all(found[name].seconds > 0 for name in KINDS)
        assert all(counted.calls == 0 for counted in envs.work_times().values())


def test_what_a_lost_process_did_is_not_known_and_nothing_waits_for_it() -> None:
    with ProcessVectorEnv(replace(CONFIG, action_chunk=1, num_envs=2), make_faulty_envs) as envs:
        envs.post_reset([0, 1], [START] * 2)
        envs.wait([0, 1])
        orders = np.concatenate([order(EXIT), order(0.0)])
        envs.post_step([0, 1], orders)
        result = envs.wait([0, 1])
        assert result.lost.tolist() == [True, False]
        assert envs.work_times()["step"].calls == 1
