"""Weights of which every rank keeps a part: two ranks learn, play and save what one process does."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from sharded_ranks import (
    Case,
    Learned,
    both_ranks,
    broken_weight,
    learn,
    learn_all,
    other_weights,
    policy_of,
    uneven_play,
    weights_in,
)

from builders.checkpoints import save_official
from builders.policies import make_observation
from vla_rl.config import ConfigError, CriticConfig, PolicyConfig, TrainConfig
from vla_rl.config.parallel import ParallelConfig
from vla_rl.distributed import SingleProcess, World
from vla_rl.distributed.sharding import Sharding
from vla_rl.distributed.watch import RankLostError
from vla_rl.policies import OpenVLAPolicy, registry
from vla_rl.training.sharded import sharded_policy

pytest.importorskip("peft", reason="needs the extra vla-rl[lora]")

CASES = [
    Case("all-shared-kl", critic="shared", kl_coef=0.1, micro_batch=4, checkpointing=True),
    Case(
        "lora-shared-call-kl",
        critic="shared",
        lora=True,
        gather="call",
        kl_coef=0.1,
        kept_successes=3,
    ),
]
MORE = [
    Case("all-separate-call", gather="call"),
    Case("lora-separate", lora=True, micro_batch=3, checkpointing=True),
]
COARSE = [
    Case("all-bfloat16", compute=torch.bfloat16),
    Case("lora-bfloat16", lora=True, compute=torch.bfloat16, checkpointing=True),
]
FINE = [*CASES, *(pytest.param(case, marks=pytest.mark.slow) for case in MORE)]


def by_name(case: Case) -> str:
    return case.name


def everything(world: World, folder: Path) -> dict[str, Any]:
    done: dict[str, Any] = {"learned": learn_all(world, CASES, folder)}
    done |= {gather: uneven_play(world, gather) for gather in ("window", "call")}
    done |= {"finite": broken_weight(world), "other": other_weights(world)}
    policy = policy_of(Case("lost"))
    policy.shard(Sharding(world, torch.device("cpu")))
    world.barrier()
    if world.rank == 0:  # the other has gone
        with pytest.raises(RankLostError) as lost:
            policy.evaluate(
                make_observation(1, texts=("go on",), size=32), torch.zeros(1, 4).long()
            )
        done["lost"] = str(lost.value)
    return done


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sharded")


@pytest.fixture(scope="module")
def ranks(folder: Path) -> list[dict[str, Any]]:
    return both_ranks(everything, folder / "ranks")


@pytest.fixture(scope="module")
def more(folder: Path) -> list[dict[str, Learned]]:
    return both_ranks(learn_all, [*MORE, *COARSE], folder / "ranks")


@pytest.fixture
def learned(
    request: pytest.FixtureRequest, case: Case, folder: Path
) -> tuple[Learned, Learned, Learned]:
    """Of both ranks, and of one process."""
    if case in CASES:
        of_ranks = [each["learned"] for each in request.getfixturevalue("ranks")]
    else:
        of_ranks = request.getfixturevalue("more")
    return *(each[case.name] for each in of_ranks), learn_alone(case, folder / "alone")


@cache
def learn_alone(case: Case, folder: Path) -> Learned:
    return learn(SingleProcess(), case, folder / case.name)


def difference(own: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    assert {name: t.shape for name, t in own.items()} == {n: t.shape for n, t in other.items()}
    return max(float((own[n].double() - other[n].double()).abs().max()) for n in own)


@pytest.mark.parametrize("case", FINE, ids=by_name)
def test_sharded_ranks_learn_what_one_process_learns(
    case: Case, learned: tuple[Learned, Learned, Learned]
) -> None:
    """In one window a rank has no turn at all, and makes its passes none the less."""
    sharded, other_rank, whole = learned
    assert 0.45 < sharded.share < 0.55
    assert whole.share == 1.0
    assert difference(sharded.weights, whole.weights) < 1e-5
    for own, other in zip(sharded.metrics, whole.metrics, strict=True):
        assert own == pytest.approx(other, rel=1e-4, abs=1e-5)
    assert sharded.metrics == other_rank.metrics, "the ranks have grown apart"
    start = policy_of(case)
    before = {n: p.detach() for n, p in start.model.named_parameters() if p.requires_grad}
    after = {
        n.partition("/")[2].removeprefix("base_model.model."): t for n, t in whole.weights.items()
    }
    moved = [float((after[n.replace(".default.", ".")] - p).abs().max()) for n, p in before.items()]
    assert sum(far > 1e-3 for far in moved) > len(moved) / 2, "little was learned: it says nothing"


@pytest.mark.parametrize("case", FINE, ids=by_name)
def test_the_checkpoint_is_that_of_one_process_and_loads_in_one(
    case: Case, folder: Path, learned: tuple[Learned, Learned, Learned], tmp_path: Path
) -> None:
    sharded, whole = folder / "ranks" / case.name, folder / "alone" / case.name
    names = [file.name for file in sorted(whole.iterdir())]
    assert [file.name for file in sorted(sharded.iterdir())] == names
    for file in whole.glob("*.json"):
        assert (sharded / file.name).read_text() == file.read_text()
    critic = CriticConfig(kind=case.critic)  # type: ignore[arg-type]
    loaded = OpenVLAPolicy.from_checkpoint(sharded, PolicyConfig(device="cpu", critic=critic))
    assert loaded.critic_restored
    loaded.save(tmp_path / "again")
    assert difference(weights_in(tmp_path / "again"), learned[0].weights) == 0.0


@pytest.mark.slow
@pytest.mark.parametrize("case", COARSE, ids=by_name)
def test_bfloat16_computes_and_float32_is_trained(
    case: Case, learned: tuple[Learned, Learned, Learned]
) -> None:
    sharded, other_rank, whole = learned
    trained = [t for name, t in sharded.weights.items() if not case.lora or "lora_" in name]
    assert {tensor.dtype for tensor in trained} == {torch.float32}
    finer = max(float((t - t.bfloat16().float()).abs().max()) for t in trained)
    assert finer > 0, "the weights were rounded"
    assert sharded.dtypes == {
        True: {torch.float32},
        False: {torch.bfloat16 if case.lora else torch.float32},
    }
    own, other = sharded.metrics[1]["losses/entropy"], whole.metrics[1]["losses/entropy"]
    assert own == pytest.approx(other, rel=0.02)
    if not case.lora:  # alone it computes in float32
        assert own != pytest.approx(other, rel=1e-7)
    assert sharded.metrics == other_rank.metrics


@pytest.mark.parametrize("gather", ["window", "call"])
def test_ranks_play_as_often_as_they_need_to(gather: str, ranks: list[dict[str, Any]]) -> None:
    expected = uneven_play(SingleProcess(), gather)
    assert len(ranks[0][gather]) == len(expected) == 19
    counted = 6, 17  # how many of the six layers and blocks were whole at a time
    assert [ranks[0][gather][i] for i in counted] == [1 if gather == "call" else 6] * 2
    for i, (own, other) in enumerate(zip(ranks[0][gather], expected, strict=True)):
        if i in counted:
            continue
        torch.testing.assert_close(own, other, rtol=1e-5, atol=1e-5)


def test_a_rank_that_is_lost_in_a_pass_is_told(ranks: list[dict[str, Any]]) -> None:
    assert ranks[0]["lost"].startswith("rank 0 of 2 waited for the others in vain, at a pass")


def test_ranks_with_other_weights_are_told(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        assert rank["other"].startswith("rank 1 has read other weights than rank 0")


def test_a_weight_that_one_rank_finds_broken_is_broken_for_all(ranks: list[dict[str, Any]]) -> None:
    assert [rank["finite"] for rank in ranks] == [[True, False]] * 2


@pytest.mark.slow
@pytest.mark.parametrize("lora", [False, True], ids=["all", "adapters"])
def test_a_checkpoint_in_openvlas_format_is_trained_alike(lora: bool, tmp_path: Path) -> None:
    save_official(tmp_path / "base")
    case = Case("official", lora=lora, checkpoint=str(tmp_path / "base"), kl_coef=0.1)
    sharded, _ = both_ranks(learn, case, tmp_path / "ranks")
    whole = learn(SingleProcess(), case, tmp_path / "alone")
    assert 0.45 < sharded.share < 0.55
    assert difference(sharded.weights, whole.weights) < 1e-5
    assert {file.name for file in (tmp_path / "ranks").iterdir()} == {
        file.name for file in (tmp_path / "alone").iterdir()
    }


def test_weights_of_one_rank_are_not_divided() -> None:
    with pytest.raises(ConfigError, match=r"there is one: set parallel\.ranks 2 or more"):
        Sharding(SingleProcess(), torch.device("cpu"))


def test_an_engine_with_weights_of_its_own_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"set parallel\.engine own, or parallel\.shard none"):
        ParallelConfig(ranks=2, shard="fsdp2", engine="other")


def test_a_policy_that_cannot_be_divided_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before anything of it is read."""
    folder = policy_saved(tmp_path)
    family = replace(registry.POLICIES["openvla"], shardable=False)
    monkeypatch.setitem(registry.POLICIES, "openvla", family)
    config = TrainConfig(policy=PolicyConfig(checkpoint=str(folder), device="cpu"))

    def never(_: TrainConfig) -> OpenVLAPolicy:
        raise AssertionError("it was read")

    with pytest.raises(ConfigError, match=r"is of a type that does not know how: set parallel"):
        sharded_policy(config, SingleProcess(), never)


def policy_saved(folder: Path) -> Path:
    policy_of(Case("saved")).save(folder / "policy")
    return folder / "policy"
