"""What of pools can be said without a cluster: how it is divided, who differs, and that Ray is missing."""

from __future__ import annotations

import importlib
from typing import Any

import pytest

from vla_rl.config import ConfigError, UserError
from vla_rl.config.parallel import ParallelConfig
from vla_rl.distributed.ray_cluster import Share, divide, gpu_kinds
from vla_rl.distributed.ray_errors import require_ray
from vla_rl.distributed.software import differences, software_here


def pools(**settings: Any) -> ParallelConfig:
    return ParallelConfig(arrangement="pools", shards=16, **settings)


def test_whole_cores_and_gpus_where_there_are_enough_else_equal_parts() -> None:
    assert divide(pools(learners=7, actors=1, hosts=8), 96, 8) == Share(1.0, 1.0, 11)
    assert divide(pools(learners=2, actors=1, hosts=2), 2, 0) == Share(0.33, 0.0, 1)
    assert divide(pools(learners=1, actors=1), 16, 1) == Share(1.0, 0.5, 1)


def test_too_few_gpus_are_said_with_the_number_that_fits() -> None:
    with pytest.raises(UserError, match=r"7 learners and 2 actors take a GPU each.* has 8: lower"):
        divide(pools(learners=7, actors=2), 96, 8)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"learners": 17}, "parallel.learners may be at most parallel.shards = 16, got 17"),
        ({"learners": 2, "actors": 3}, "actors may be at most parallel.learners = 2, got 3"),
        (
            {"learners": 2, "hosts": 1},
            "hosts must be 0 .* or at least parallel.learners = 2, got 1",
        ),
        ({"staleness": 1}, "staleness 1 needs parallel.actors 1 or more"),
        ({"actors": 1, "engine": "x"}, "parallel.engine x contradict each other"),
    ],
)
def test_pools_that_cannot_be_are_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        pools(**settings)


def test_a_window_ahead_is_for_pools() -> None:
    with pytest.raises(ConfigError, match=r"staleness 1 needs parallel.arrangement pools"):
        ParallelConfig(staleness=1)


def test_machines_of_other_software_are_told_apart() -> None:
    here = software_here()
    assert differences(here, dict(here)) == []
    assert differences(here, here | {"torch": "1.0"}) == [f"torch 1.0 instead of {here['torch']}"]
    without = {name: found for name, found in here.items() if name != "numpy"}
    assert differences(here, without) == [f"numpy not known instead of {here['numpy']}"]


def test_kinds_of_gpus_are_those_of_machines_that_have_some() -> None:
    resources = [
        {"GPU": 8.0, "accelerator_type:H100": 1.0},
        {"GPU": 4.0, "accelerator_type:A100": 1.0},
        {"CPU": 8.0, "accelerator_type:A100": 1.0},
    ]
    assert gpu_kinds([{"Resources": one} for one in resources]) == {"H100": 1, "A100": 1}


def test_without_ray_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.import_module

    def missing(name: str, *arguments: Any) -> Any:
        if name == "ray":
            raise ModuleNotFoundError("No module named 'ray'")
        return real(name, *arguments)

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(UserError, match=r"pip install 'vla-rl\[ray\]'"):
        require_ray()
