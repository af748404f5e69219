"""vLLM itself, in its own environment, on small checkpoints in the official format: make test-vllm."""

from __future__ import annotations

import logging
import os
import shutil
import socket
import struct
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

from builders.engines import KilledEngines, lines, save_servable, toy_run
from builders.policies import GOLDEN, INSTRUCTIONS
from vla_rl.config import LoraConfig, PolicyConfig, TrainConfig, UserError
from vla_rl.distributed import SingleProcess
from vla_rl.policies import OpenVLAPolicy, build_tiny_tokenizer
from vla_rl.policies.openvla.config_files import read_checkpoint_config
from vla_rl.recipes.certify import certify
from vla_rl.recipes.train_ppo import train
from vla_rl.serving import wire
from vla_rl.serving.addresses import TOKEN_VARIABLE, Address
from vla_rl.serving.engine import ServedEngine
from vla_rl.serving.process import PYTHON_VARIABLE, EngineProcess, engine_python
from vla_rl.types import Observation

pytestmark = pytest.mark.vllm
CLOSE = 1e-3
"""Between the log-probs of sampler and learner, float32."""


@pytest.fixture(autouse=True)
def nothing_is_left(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))  # the engine's
    yield
    assert not list(tmp_path.glob("vla-rl-engine-*"))
    assert not psutil.Process().children(recursive=True)


def test_the_golden_set(tmp_path: Path) -> None:
    """28 of 28 tokens of OpenVLA's own code, with heads of 16 numbers, which vLLM has no kernel for on a CPU."""
    folder = tmp_path / "golden"
    shutil.copytree(GOLDEN, folder, ignore=shutil.ignore_patterns("*.npz", "actions*", "*.md"))
    build_tiny_tokenizer(INSTRUCTIONS, read_checkpoint_config(folder).model).save(
        str(folder / "tokenizer.json")
    )
    result = certify(
        folder, "own,vllm,official", str(GOLDEN / "reference.npz"), suite="", temperature=1.5, tolerance=0.0,
        dtype="float32", unnorm_key="bridge_orig", base="", engine_python="", seed=0, json=None,
    )  # fmt: skip
    assert result["passed"], result
    greedy, sampled = result["engines"]["vllm"]
    assert greedy["likeliest"] + greedy["ties"] == greedy["tokens"] == 28
    assert sampled["tokens"] == 28


def run_of(tmp_path: Path, **language: int) -> TrainConfig:
    save_servable(tmp_path / "policy", **language)
    config = toy_run(tmp_path, "vllm", os.environ.get(PYTHON_VARIABLE, ""))
    policy = replace(config.policy, checkpoint=str(tmp_path / "policy"), scratch="")
    return replace(config, policy=policy, env=replace(config.env, image_size=224))


def test_adapters_are_learned_and_the_engine_is_replaced_when_it_dies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    killed = KilledEngines(13)
    monkeypatch.setattr(ServedEngine, "act", lambda *given: killed.act(*given))
    config = run_of(tmp_path)
    lora = LoraConfig(rank=2, alpha=4, dropout=0.0)
    with caplog.at_level(logging.WARNING):
        run = train(replace(config, policy=replace(config.policy, lora=lora)))
    differences = [row["losses/logprob_max_difference"] for row in lines(run)[1:]]
    print("adapters, log-prob differences:", differences)
    assert len(differences) == 2
    assert max(differences) < CLOSE
    assert len(killed.pids) == 2
    assert "vLLM 0." in caplog.text
    assert "it was ended by SIGKILL" in caplog.text


def test_all_weights_are_learned_with_padded_heads(tmp_path: Path) -> None:
    run = train(run_of(tmp_path, heads=4))
    rows = lines(run)
    differences = [row["losses/logprob_max_difference"] for row in rows[1:]]
    print("all weights, log-prob differences:", differences)
    assert len(differences) == 2
    assert max(differences) < CLOSE
    assert rows[1]["losses/approx_kl_k3"] > 0  # something was learned in between


def test_an_engine_started_by_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A port, a password, another version, a port in use, and other weights than it was started with."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = Address(port=free.getsockname()[1])
    monkeypatch.setenv(TOKEN_VARIABLE, "correct horse battery staple")
    config = run_of(tmp_path)
    folder, words = tmp_path / "policy", ["--port", str(address.port), "--dtype", "float32"]
    scratch = tmp_path / "engine"
    scratch.mkdir()
    process = EngineProcess(
        engine_python(""), ["engine", "serve", str(folder), *words], scratch, os.environ
    )
    try:
        policy = OpenVLAPolicy.from_checkpoint(folder, PolicyConfig(device="cpu"))
        with torch.no_grad():
            for parameter in policy.model.parameters():
                parameter.mul_(1.1)
        config = replace(config, parallel=replace(config.parallel, engine_address=str(address)))
        while process.alive and not listens(address):
            pass
        seen = observation(policy, 70)
        with ServedEngine(policy, config, SingleProcess()) as engine:
            uniforms = np.random.default_rng(0).random((70, policy.num_tokens), np.float32)
            played = engine.act(seen, 1.5, uniforms)
            greedy = engine.act(seen, 0.0)
            again = engine.act(seen, 1.5, uniforms)
        told = policy.evaluate(seen, played.tokens, 1.5).log_probs
        torch.testing.assert_close(played.log_probs, told, atol=1e-4, rtol=0)
        likeliest = policy.evaluate(seen, policy.act(seen, 0.0).tokens, 1.0).log_probs
        own = policy.evaluate(seen, greedy.tokens, 1.0).log_probs
        torch.testing.assert_close(own, likeliest, atol=1e-4, rtol=0)
        assert float((again.tokens == played.tokens).float().mean()) > 0.9  # seeds, up to ties
        with address.connect(60.0) as connection:
            connection.sendall(struct.pack(">4sHHIQ", b"VLAE", 9, 0, 2, 0) + b"{}")
            answer = wire.receive(connection, "the engine", lambda _: 0)
        assert "speaks protocol 9, this program 1" in answer.fields["reason"]
        second = subprocess.run(
            [engine_python(""), "-m", "vla_rl", "engine", "serve", folder, *words],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert second.returncode == 2
        assert f"{address} is in use" in second.stderr
    finally:
        process.stop()


def listens(address: Address) -> bool:
    try:
        address.connect(5.0).close()
    except OSError:
        return False
    return True


def observation(policy: OpenVLAPolicy, count: int) -> Observation:
    rng = np.random.default_rng(1)
    texts = policy.processor.tokenizer.get_vocab()
    words = [word for word in texts if word.isalpha()][:3]
    return Observation(
        rng.integers(0, 256, (count, 224, 224, 3), dtype=np.uint8),
        tuple(" ".join(words[: 1 + i % 3]) for i in range(count)),
        np.zeros((count, 4), np.float32),
        np.zeros(count, np.float32),
    )


def test_head_dimensions_are_those_that_vllm_has() -> None:
    """Ours is a copy of what vLLM's attention on a CPU says of itself."""
    code = (
        "from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend as B; "
        "print(B.get_supported_head_sizes())"
    )
    answer = subprocess.run(
        [engine_python(""), "-c", code], capture_output=True, text=True, check=False
    )
    from vla_rl.serving.staging import CPU_HEAD_DIMS

    assert set(CPU_HEAD_DIMS) <= set(map(int, answer.stdout.strip("[]\n").split(","))), (
        answer.stderr
    )


def test_adapters_are_not_served_by_hand(tmp_path: Path) -> None:
    from vla_rl.serving.staging import Staged

    save_servable(tmp_path / "base")
    settings = PolicyConfig(device="cpu", lora=LoraConfig(rank=2, alpha=4))
    OpenVLAPolicy.from_checkpoint(tmp_path / "base", settings).save(tmp_path / "adapted")
    with pytest.raises(UserError, match=r"holds adapters.*vla-rl export"):
        Staged(tmp_path / "adapted", on_cpu=True)
