"""The GPU benchmark, run whole at tiny size on the CPU, and its tables."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import cost_files
import gpu_openvla
from vla_rl.envs.defaults import benchmark_env
from vla_rl.planning.costs import read_costs

pytest.importorskip("peft", reason="needs the extra vla-rl[lora]")

PARTS = ("act", "generate", "act_adapters", "learn", "learn_checkpointing")


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> dict:
    out = tmp_path_factory.mktemp("bench") / "gpu.json"
    words = "--size tiny --device cpu --batches 1,3 --micro-batches 2 --repeats 2 --out"
    gpu_openvla.main([*words.split(), str(out)])
    text = out.with_suffix(".md").read_text()
    return {**json.loads(out.read_text()), "markdown": text}


def test_every_part_is_measured_at_every_batch(result: dict) -> None:
    for name in PARTS:
        wanted = [2] if name.startswith("learn") else [1, 3]
        assert [row["batch"] for row in result[name]] == wanted
        for row in result[name]:
            assert row["fits"]
            assert row["per_second"] == pytest.approx(row["batch"] / row["seconds"])
            flops = result["learn_flops" if name.startswith("learn") else "act_flops"]
            share = row["per_second"] * flops / result["matmul_peak_flops"]
            assert row["share_of_peak"] == pytest.approx(share)
    assert result["matmul_peak_flops"] > 0
    assert (result["dtype"], result["device"], result["action_tokens"]) == ("float32", "CPU", 7)


def test_the_table_has_a_line_for_each_figure(result: dict) -> None:
    lines = result["markdown"].splitlines()
    table = [line for line in lines if line.startswith("|")]
    assert len(table) == 2 + sum(len(result[name]) for name in PARTS)
    assert {line.count("|") for line in table} == {table[0].count("|")}
    ratio = result["generate"][1]["seconds"] / result["act"][1]["seconds"]
    assert f"- batch 3: `act` is {ratio:.2f} times as fast as `generate` batched." in lines


def test_what_does_not_fit_is_said_and_ends_the_series() -> None:
    tried = []

    def measurement(policy: object, batch: int, repeats: int) -> dict:
        tried.append(batch)
        if batch > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return {"batch": batch, "seconds": 0.5, "peak_gib": 1.0}

    policy = gpu_openvla.random_policy(
        gpu_openvla.MODELS["tiny"], torch.device("cpu"), torch.float32
    )
    rows = gpu_openvla.every(measurement, policy, [1, 2, 4, 8], 1, flops=10.0, peak=100.0)
    assert tried == [1, 2, 4]
    assert [row["fits"] for row in rows] == [True, True, False]
    assert (rows[1]["per_second"], rows[1]["share_of_peak"]) == (4.0, 0.4)


def test_generate_plays_the_tokens_of_act() -> None:
    """Restricted to the action ids, the peer on the same weights is the same policy."""
    policy = gpu_openvla.random_policy(
        gpu_openvla.MODELS["tiny"], torch.device("cpu"), torch.float32
    )
    policy.model.language_model.lm_head.weight.mul_(20.0)
    seen = gpu_openvla.observations(policy, 6)
    generate = gpu_openvla.transformers_generate(policy)
    assert torch.equal(policy.act(seen, 0.0).tokens, generate(seen, True))


def test_the_full_size_is_refused_on_a_cpu(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        gpu_openvla.main(["--size", "7b", "--device", "cpu"])
    assert "needs a GPU" in capsys.readouterr().err


def test_the_costs_it_writes_are_read_by_the_plan(tmp_path: Path) -> None:
    """Known rows: 10 ms and 2 ms each for prefill, 6 tokens of 1 ms after the first, 30 ms and 5 ms each to learn."""
    acting = [
        {
            "batch": n,
            "fits": True,
            "prefill_seconds": 0.01 + 0.002 * n,
            "loop_seconds": 0.006,
            "seconds": 1.0,
        }
        for n in (1, 4, 16)
    ]
    learning = [{"batch": n, "fits": True, "seconds": 0.03 + 0.005 * n} for n in (2, 8)]
    result = {
        "model": "openvla-7b", "device": "NVIDIA H200", "image_size": 224, "action_tokens": 7, "torch": "2.13",
        "act_adapters": [*acting, {"batch": 64, "fits": False}],
        "learn": learning, "learn_checkpointing": [{"batch": 2, "fits": False}],
    }  # fmt: skip
    file = tmp_path / "costs.json"
    cost_files.write_costs(file, result["device"], policies=cost_files.policy_costs(result))
    (policy,) = read_costs(file).policies
    assert (policy.device, policy.adapters, policy.source) == ("gpu", True, "measured")
    assert not policy.checkpointing
    for line, fixed, each in (
        (policy.prefill, 0.01, 0.002),
        (policy.token, 0.001, 0.0),
        (policy.learn, 0.03, 0.005),
    ):
        assert (line.fixed, line.each) == (pytest.approx(fixed), pytest.approx(each, abs=1e-12))


def test_a_whole_run_writes_a_costs_file(tmp_path: Path) -> None:
    words = "--size tiny --device cpu --batches 1 --micro-batches 1 --repeats 1 --out"
    costs = tmp_path / "costs.json"
    gpu_openvla.main([*words.split(), str(tmp_path / "gpu.json"), "--costs", str(costs)])
    policies = read_costs(costs).policies
    assert [(p.model, p.device, p.checkpointing) for p in policies] == [
        ("tiny", "cpu", False),
        ("tiny", "cpu", True),
    ]


def test_simulators_are_measured_as_presets_play_them() -> None:
    found = cost_files.simulator_costs(replace(benchmark_env("toy"), num_envs=2), 0.0)
    assert (found.benchmark, found.image_size, found.source) == ("toy", 32, "measured")
    assert min(found.step, found.image, found.reset, found.worker_bytes) > 0
