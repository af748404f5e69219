"""A training run whose actions an engine in another process decides: our own decoding, so that nothing else differs."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch

from builders.engines import (
    KilledEngines,
    lines,
    own_served,
    servable_model,
    toy_run,
)
from builders.policies import make_observation, make_policy, tiny_policy
from vla_rl.config import ConfigError, LanguageConfig, LoraConfig, TrainConfig, UserError
from vla_rl.config.parallel import ParallelConfig
from vla_rl.distributed import SingleProcess
from vla_rl.policies.openvla.exporting import MergedWeights
from vla_rl.recipes import ranks as recipe
from vla_rl.recipes.ranks import train_on_ranks
from vla_rl.recipes.train_ppo import train
from vla_rl.rollout.engine import ENGINES, build_engine
from vla_rl.runtime.children import start_program
from vla_rl.serving.engine import EngineLostError, ServedEngine, row_seeds
from vla_rl.serving.process import PYTHON_VARIABLE, EngineProcess
from vla_rl.serving.staging import pad_heads, served_head_dim, why_not_served

SERVED = "served-own"


@pytest.fixture(autouse=True)
def served(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """The engine under a name, its folders where they can be looked for; nothing of it is left behind."""
    monkeypatch.setitem(ENGINES, SERVED, own_served)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))  # the engine's
    before = set(psutil.Process().children(recursive=True))  # of other tests
    yield
    assert not list(tmp_path.glob("vla-rl-engine-*"))
    assert not set(psutil.Process().children(recursive=True)) - before


def run_of(root: Path, **parts: Any) -> TrainConfig:
    return toy_run(root, SERVED, sys.executable, **parts)


def test_an_engine_plays_the_learners_weights_and_is_replaced_when_it_dies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    killed = KilledEngines(13)  # in the second window, two decisions a turn
    monkeypatch.setattr(ServedEngine, "act", lambda *given: killed.act(*given))
    with caplog.at_level(logging.WARNING):
        run = train(run_of(tmp_path))
    differences = [row["losses/logprob_max_difference"] for row in lines(run)[1:]]
    assert len(differences) == 2
    assert max(differences) < 1e-4
    assert len(killed.pids) == 2
    assert "the same seed does not play the same run again" in caplog.text
    assert "it was ended by SIGKILL" in caplog.text


def test_an_engine_that_dies_again_ends_the_run_which_goes_on_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed = KilledEngines(13, 14)
    with monkeypatch.context() as patch:
        patch.setattr(ServedEngine, "act", lambda *given: killed.act(*given))
        with pytest.raises(
            EngineLostError, match="not started a third time: it was ended by SIGKILL"
        ):
            train(run_of(tmp_path))
    folder = tmp_path / SERVED
    assert [path.name for path in (folder / "checkpoints").glob("iteration-*")] == [
        "iteration-000001"
    ]
    train(run_of(tmp_path), folder)
    assert [row["iteration"] for row in lines(folder)] == [1, 2, 3]


def _follow(port: int, rank: int, config: TrainConfig, resume: Path | None) -> None:
    ENGINES[SERVED] = own_served
    _ORIGINAL(port, rank, config, resume)


_ORIGINAL = recipe._follow


@pytest.mark.slow
def test_ranks_share_one_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipe, "_follow", _follow)
    config = run_of(tmp_path)
    config = replace(config, parallel=replace(config.parallel, ranks=2))
    rows = lines(train_on_ranks(config))
    assert max(row["losses/logprob_max_difference"] for row in rows[1:]) < 1e-4


def engine_of(policy: Any, tmp_path: Path, **parallel: Any) -> ServedEngine:
    config = run_of(tmp_path)
    given = {"engine": "vllm", "engine_python": "", **parallel}
    config = replace(config, parallel=replace(config.parallel, **given))
    engine = build_engine(policy, config, SingleProcess())
    assert isinstance(engine, ServedEngine)
    return engine


def test_adapters_are_sent_merged(tmp_path: Path) -> None:
    policy = make_policy(lora=LoraConfig(rank=2, alpha=4))
    seen = make_observation(3)
    uniforms = np.random.default_rng(0).random((3, 8), np.float32)
    with own_served(policy, run_of(tmp_path), SingleProcess()) as engine:
        first = engine.act(seen, 1.0, uniforms)
        assert first.version is None
        with torch.no_grad():
            for name, parameter in policy.model.named_parameters():
                if ".lora_B." in name:
                    parameter.normal_(0, 0.3)
        engine.renew(policy, 5)
        then = engine.act(seen, 1.0, uniforms)
        greedy = engine.act(seen, 0.0, uniforms)
    told = policy.evaluate(seen, then.tokens, 1.0)
    assert then.version == 5
    assert not torch.equal(first.log_probs, then.log_probs)
    torch.testing.assert_close(then.log_probs, told.log_probs, atol=1e-5, rtol=0)
    torch.testing.assert_close(then.values, told.values, atol=1e-5, rtol=0)
    assert torch.equal(greedy.tokens, policy.act(seen, 0.0).tokens)
    assert not greedy.log_probs.any()


def test_what_training_changes_is_sent_and_nothing_else() -> None:
    adapted = MergedWeights(make_policy(lora=LoraConfig(rank=2, alpha=4)))
    assert adapted.learned
    assert all("language_model.model.layers" in name for name in adapted.learned)
    whole = make_policy()
    weights = MergedWeights(whole)
    trained = sum(parameter.numel() for parameter in whole.policy_parameters())
    assert sum(weights.base[name].numel() for name in weights.learned) == trained


def test_seeds_are_those_of_the_uniform_numbers() -> None:
    uniforms = np.random.default_rng(0).random((4, 7), np.float32)
    seeds = row_seeds(4, uniforms)
    assert torch.equal(row_seeds(2, uniforms[1:3]), seeds[1:3])
    assert len(set(seeds.tolist())) == 4
    assert int(seeds.min()) >= 0
    with pytest.raises(ValueError, match="finite"):
        row_seeds(4, np.full((4, 7), np.nan, np.float32))


# --- refused at the door


class Other:
    kind = "bandit"


def test_vllm_serves_openvlas_class_alone(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"this one is of type 'bandit': take parallel\.engine own"
    ):
        engine_of(Other(), tmp_path)


def test_vllm_serves_openvlas_sizes_alone(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not serve the model 'tiny': its images have 64 px"):
        engine_of(tiny_policy(), tmp_path)
    assert why_not_served(servable_model()) == ""


def test_head_dimensions_of_a_cpu() -> None:
    def language(hidden: int, heads: int) -> LanguageConfig:
        return LanguageConfig(hidden=hidden, layers=1, heads=heads, mlp_width=8)

    assert served_head_dim(language(64, 2), on_cpu=True) == 32
    assert served_head_dim(language(64, 4), on_cpu=True) == 32
    assert served_head_dim(language(4096, 32), on_cpu=True) == 128
    assert served_head_dim(language(40, 4), on_cpu=True) == 80
    assert served_head_dim(language(64, 4), on_cpu=False) == 16
    with pytest.raises(
        UserError, match=r"head dimensions of 32, 64, 80, 96, 112, 128; the model's is 256"
    ):
        served_head_dim(language(256, 1), on_cpu=True)


def test_padded_heads_attend_alike() -> None:
    """Scores q k / sqrt(d) after rotation, and what the output layer makes of the values."""
    heads, own, wanted, hidden = 2, 6, 12, 12
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(5, hidden, generator=generator, dtype=torch.float64)
    names = [f"language_model.model.layers.0.self_attn.{part}_proj.weight" for part in "qkvo"]
    weights = {n: torch.randn(hidden, hidden, generator=generator).double() for n in names}

    def attended(weights: dict[str, torch.Tensor], width: int) -> torch.Tensor:
        q, k, v = ((x @ weights[n].double().T).view(5, heads, width) for n in names[:3])
        angle = torch.arange(5)[:, None] * 100.0 ** (-torch.arange(0, width, 2) / width)
        cos, sin = (torch.cat([f(angle)] * 2, -1)[:, None] for f in (torch.cos, torch.sin))

        def turned(t: torch.Tensor) -> torch.Tensor:
            one, two = t.chunk(2, -1)
            return t * cos + torch.cat([-two, one], -1) * sin

        scores = torch.einsum("thd,shd->hts", turned(q), turned(k)) / width**0.5
        mixed = torch.einsum("hts,shd->thd", scores.softmax(-1), v)
        return mixed.reshape(5, -1) @ weights[names[3]].double().T

    padded = {name: pad_heads(name, weight, heads, wanted) for name, weight in weights.items()}
    torch.testing.assert_close(attended(padded, wanted), attended(weights, own), atol=1e-5, rtol=0)
    other = "vision_backbone.featurizer.blocks.0.attn.q_proj.weight"
    assert pad_heads(other, weights[names[0]], heads, wanted) is weights[names[0]]


def test_a_missing_environment_names_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = tiny_policy(model=servable_model())
    monkeypatch.delenv(PYTHON_VARIABLE, raising=False)
    with pytest.raises(
        ConfigError, match=r"parallel\.engine_python is .*nowhere.* `make setup-vllm`"
    ):
        engine_of(policy, tmp_path, engine_python=str(tmp_path / "nowhere"))
    monkeypatch.setenv(PYTHON_VARIABLE, str(tmp_path))
    with pytest.raises(ConfigError, match=f"{PYTHON_VARIABLE} is"):
        engine_of(policy, tmp_path)


def test_an_engine_that_is_not_there(tmp_path: Path) -> None:
    policy = tiny_policy(model=servable_model())
    with (
        pytest.raises(UserError, match="nobody answers at unix:"),
        engine_of(policy, tmp_path, engine_address=str(tmp_path / "socket")),
    ):
        pass


def test_an_engine_that_does_not_start_says_why(tmp_path: Path) -> None:
    """Another Python than vLLM's: its last words are handed on."""
    policy = tiny_policy(model=servable_model())
    with (
        pytest.raises(
            EngineLostError, match=r"vLLM does not load in this Python[\s\S]*make setup-vllm"
        ),
        engine_of(policy, tmp_path, engine_python=sys.executable),
    ):
        pass


def test_an_engine_of_another_model_is_refused(tmp_path: Path) -> None:
    config = run_of(tmp_path)
    with own_served(make_policy(), config, SingleProcess()) as engine:
        address = str(engine._conversation.address)
        given = replace(config, parallel=replace(config.parallel, engine_address=address))
        with (
            pytest.raises(UserError, match="its image_size is 64, here it is 224"),
            own_served(tiny_policy(model=servable_model()), given, SingleProcess()),
        ):
            pass
        # of the same model all weights are taken over
        other = make_policy(seed=9)
        with own_served(other, given, SingleProcess()) as second:
            seen = make_observation(2)
            assert torch.equal(second.act(seen, 0.0).tokens, other.act(seen, 0.0).tokens)


def test_unknown_engines_are_named_nearest(tmp_path: Path) -> None:
    config = replace(run_of(tmp_path), parallel=ParallelConfig(engine="vlm"))
    with pytest.raises(ConfigError, match="vllm"):
        build_engine(make_policy(), config, SingleProcess())


_PARENT = """
import os, sys, time
from pathlib import Path
from vla_rl.serving.process import EngineProcess
folder = Path({folder!r})
engine = EngineProcess(Path(sys.executable), ["engine", "serve", {checkpoint!r}, "--backend", "own", "--socket",
    str(folder / "socket")], folder, os.environ)
while not (folder / "socket").exists() and engine.alive:
    time.sleep(0.05)
print(engine.pid, flush=True)
time.sleep(600)
"""


def test_an_engine_ends_with_a_run_that_was_killed(tmp_path: Path) -> None:
    make_policy().save(tmp_path / "policy")
    folder = tmp_path / "engine"
    folder.mkdir()
    program = _PARENT.format(folder=str(folder), checkpoint=str(tmp_path / "policy"))
    with (tmp_path / "out").open("w+") as out:
        parent = start_program(program, stdout=out)
        while not (tmp_path / "out").read_text().endswith("\n"):
            assert parent.poll() is None
            time.sleep(0.05)
    engine = psutil.Process(int((tmp_path / "out").read_text()))
    assert engine.is_running()
    parent.kill()
    parent.wait()
    psutil.wait_procs([engine])
    assert not engine.is_running()


def test_stopping_an_engine_ends_what_it_has_started(tmp_path: Path) -> None:
    engine = EngineProcess(Path(sys.executable), ["doctor"], tmp_path, os.environ)
    pid = engine.pid
    engine.stop()
    engine.stop()
    assert not psutil.pid_exists(pid)
