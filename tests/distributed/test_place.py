"""What torchrun and srun put into the environment of a process."""

from __future__ import annotations

import pytest

from vla_rl.config import ConfigError
from vla_rl.distributed.place import Place, first_host, launched

TORCHRUN = {
    "RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4", "MASTER_ADDR": "node0",
    "MASTER_PORT": "29500", "TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "2",
}  # fmt: skip
SRUN = {
    "SLURM_PROCID": "6", "SLURM_LOCALID": "2", "SLURM_NODEID": "1", "SLURM_STEP_NUM_TASKS": "7",
    "SLURM_STEP_TASKS_PER_NODE": "4,3", "SLURM_STEP_NODELIST": "gpu[003-004]", "SLURM_JOB_ID": "77",
    "SLURM_STEP_ID": "1",
}  # fmt: skip


def test_torchrun() -> None:
    expected = Place(5, 8, 1, 4, "node0", 29500, "torchrun", hosts=False, attempt=2)
    assert launched(TORCHRUN) == expected
    # what Slurm says of a torchrun that srun has started is not about its ranks
    assert launched(TORCHRUN | SRUN) == expected


def test_srun() -> None:
    place = launched(SRUN)
    assert place == Place(6, 7, 2, 3, "gpu003", 20_000 + 77 * 101 + 1, "srun")
    others = launched(SRUN | {"SLURM_PROCID": "0", "SLURM_NODEID": "0", "SLURM_LOCALID": "0"})
    assert others is not None
    assert (others.address, others.port) == (place.address, place.port), "they would not meet"
    assert others.local_size == 4
    again = SRUN | {"SLURM_RESTART_COUNT": "1", "MASTER_PORT": "1234", "MASTER_ADDR": "10.0.0.1"}
    place = launched(again)
    assert place is not None
    assert (place.attempt, place.port, place.address) == (1, 1234, "10.0.0.1")


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"RANK": "0"},
        {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4", "SLURM_PROCID": "0"},  # a batch script itself
        SRUN | {"SLURM_STEP_NUM_TASKS": "1"},
    ],
)
def test_nobody_has_launched_it(environment: dict[str, str]) -> None:
    assert launched(environment) is None


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"RANK": "0", "WORLD_SIZE": "2"}, "lacks LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR"),
        (TORCHRUN | {"RANK": "eight"}, "RANK should be a number.*'eight'"),
        (TORCHRUN | {"RANK": "8"}, "rank 8 of 8"),
        (TORCHRUN | {"LOCAL_RANK": "4"}, "4 of 4 on this"),
        (TORCHRUN | {"MASTER_PORT": "99999"}, "port 99999 is not one"),
        (TORCHRUN | {"MASTER_PORT": "-1"}, "MASTER_PORT should be a number"),
        (SRUN | {"SLURM_STEP_TASKS_PER_NODE": "4(x1)"}, "does not fit node 1"),
        (SRUN | {"SLURM_STEP_TASKS_PER_NODE": "four"}, "not as Slurm writes it"),
        (SRUN | {"SLURM_STEP_NODELIST": "[]"}, "names no machine: set MASTER_ADDR"),
    ],
)
def test_an_environment_that_cannot_be(environment: dict[str, str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        launched(environment)


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("gpu7", "gpu7"),
        ("gpu[003-005,9],login1", "gpu003"),
        ("a1,b[1-2]", "a1"),
        ("tux[1,2]-ib", "tux1"),
    ],
)
def test_first_host(nodes: str, first: str) -> None:
    assert first_host(nodes) == first


def test_tasks_per_node_may_be_shortened() -> None:
    place = launched(SRUN | {"SLURM_STEP_TASKS_PER_NODE": "3(x2),1", "SLURM_NODEID": "1"})
    assert place is not None
    assert place.local_size == 3
