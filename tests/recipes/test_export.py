"""Exports and the checkpoint doctor, through the command line's own functions, on policies as runs leave them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from builders.policies import saved_policy
from vla_rl.cli import main
from vla_rl.config import ConfigError, ExportConfig, LoraConfig, PolicyConfig, UserError
from vla_rl.diagnostics.checkpoint import examine_checkpoint
from vla_rl.diagnostics.machine import Check
from vla_rl.policies import OpenVLAPolicy
from vla_rl.policies.openvla import examining
from vla_rl.policies.openvla.loading import find_source
from vla_rl.recipes.export import export
from vla_rl.runtime.checkpoint import write_checkpoint
from vla_rl.types import Observation

INSTRUCTIONS = ("open the drawer", "close the drawer")
TOKENS = torch.randint(0, 32, (2, 8), generator=torch.Generator().manual_seed(1))
OBSERVATION = Observation(
    np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8),
    INSTRUCTIONS,
    np.zeros((2, 4), np.float32),
    np.zeros(2, np.float32),
)
GOLDEN = Path(__file__).parents[1] / "fixtures" / "openvla_a"


def make(folder: Path) -> Path:
    return saved_policy(folder, INSTRUCTIONS, seed=1)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return make(tmp_path / "base")


@pytest.fixture
def adapted(base: Path, tmp_path: Path) -> OpenVLAPolicy:
    """A run folder `run` whose newest checkpoint holds adapters that say something."""
    pytest.importorskip("peft", reason="needs the extra vla-rl[lora]")
    policy = OpenVLAPolicy.from_checkpoint(base, PolicyConfig(device="cpu", lora=LoraConfig(4, 8)))
    with torch.no_grad():
        for name, parameter in policy.model.named_parameters():
            if ".lora_B." in name:
                parameter.normal_(0, 0.2, generator=torch.Generator().manual_seed(0))
    folder = tmp_path / "run" / "checkpoints" / "iteration-000010"
    write_checkpoint(folder, tensors={}, state={}, write_policy=policy.save)
    return policy


def log_probs(policy: OpenVLAPolicy) -> torch.Tensor:
    with torch.no_grad():
        return policy.evaluate(OBSERVATION, TOKENS).log_probs


def load(folder: Path, **changes: object) -> OpenVLAPolicy:
    return OpenVLAPolicy.from_checkpoint(folder, PolicyConfig(device="cpu", **changes))  # type: ignore[arg-type]


def test_a_run_with_adapters_is_exported_in_both_forms(
    adapted: OpenVLAPolicy, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = str(tmp_path / "run")
    assert (
        main(["export", run, "--out", str(tmp_path / "merged"), "--shard-gigabytes", "0.001"]) == 0
    )
    assert str(tmp_path / "merged") in capsys.readouterr().out
    assert len(list((tmp_path / "merged").glob("model-*.safetensors"))) > 1
    assert not list((tmp_path / "merged").glob("adapter*"))
    assert main(["export", run, "--out", str(tmp_path / "adapter"), "--adapter"]) == 0
    assert sorted(p.name for p in (tmp_path / "adapter").iterdir()) == [
        "adapter_config.json", "adapter_model.safetensors", "dataset_statistics.json", "tokenizer.json",
        "vla_rl.json",
    ]  # fmt: skip
    for name in ("merged", "adapter"):
        torch.testing.assert_close(
            log_probs(load(tmp_path / name)), log_probs(adapted), atol=1e-5, rtol=0
        )


def test_an_export_keeps_the_precision_of_the_files_unless_told_otherwise(tmp_path: Path) -> None:
    folder = tmp_path / "official"
    shutil.copytree(GOLDEN, folder, ignore=shutil.ignore_patterns("*.npz", "*.md"))
    model = find_source(str(folder)).description.model
    from vla_rl.policies import build_tiny_tokenizer

    build_tiny_tokenizer(INSTRUCTIONS, model).save(str(folder / "tokenizer.json"))
    settings = {"checkpoint": str(folder), "out": str(tmp_path / "same")}
    with pytest.raises(UserError, match="2 datasets"):
        export(ExportConfig(**settings))
    settings["unnorm_key"] = "libero_spatial"
    export(ExportConfig(**settings))
    same = load_file(tmp_path / "same" / "model.safetensors")
    want = load_file(folder / "model.safetensors")
    assert all(torch.equal(same[n], t) and same[n].dtype == t.dtype for n, t in want.items())
    assert load(tmp_path / "same").unnorm_key == "libero_spatial_no_noops"
    fine = ExportConfig(
        str(folder), str(tmp_path / "fine"), unnorm_key="bridge_orig", dtype="float32"
    )
    tensors = load_file(export(fine) / "model.safetensors")
    assert {t.dtype for t in tensors.values()} == {torch.float32}
    assert all(torch.equal(tensors[n], t.float()) for n, t in want.items())
    assert json.loads((tmp_path / "fine" / "config.json").read_text())["torch_dtype"] == "float32"


def test_what_is_in_the_way_is_never_overwritten(base: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "precious.txt").write_text("mine")
    with pytest.raises(UserError, match="exists and is not empty"):
        export(ExportConfig(str(base), str(out)))
    assert (out / "precious.txt").read_text() == "mine"
    (out / "precious.txt").unlink()
    assert export(ExportConfig(str(base), str(out))) == out
    assert not list(tmp_path.glob(".*partial"))
    kept = load_file(out / "model.safetensors")
    assert all(torch.equal(kept[n], t) for n, t in load_file(base / "model.safetensors").items())


def test_adapters_that_are_not_there(base: Path, tmp_path: Path, capsys) -> None:
    assert main(["export", str(base), "--adapter", "--out", str(tmp_path / "out")]) == 2
    assert "has no adapters" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob(".*partial"))
    with pytest.raises(ConfigError, match="two forms"):
        ExportConfig("x", merged=True, adapter=True)


# --- what the doctor says of a checkpoint


def found(checks: list[Check]) -> dict[str, Check]:
    return {check.name: check for check in checks}


def test_the_doctor_tells_what_a_policy_is(
    base: Path, adapted: OpenVLAPolicy, tmp_path: Path
) -> None:
    checks = found(examine_checkpoint(str(base)))
    assert {check.status for check in checks.values()} == {"ok"}
    weights = sum(p.numel() for p in load(base).model.parameters())
    assert f"{weights / 1e6:,.1f} M weights" in checks["weights"].found
    assert "float32 in 1 file" in checks["weights"].found
    assert "metaworld" in checks["statistics"].found
    assert "separate" in checks["critic"].found
    assert checks["adapters"].found == "none"
    run = found(examine_checkpoint(str(tmp_path / "run")))
    assert "rank 4, alpha 8, on the language model" in run["adapters"].found
    assert str(base) in run["checkpoint"].found
    export(ExportConfig(str(tmp_path / "run"), str(tmp_path / "adapter"), adapter=True))
    merged = found(examine_checkpoint(str(tmp_path / "adapter")))
    assert "rank 4 on 14 layers; merged when loaded" in merged["adapters"].found


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("model.safetensors", "weights"),
        ("tokenizer.json", "tokenizer"),
        ("critic.safetensors", "critic"),
    ],
)
@pytest.mark.parametrize("damage", ["missing", "truncated"])
def test_the_doctor_finds_what_is_missing_or_damaged(
    base: Path, file: str, name: str, damage: str
) -> None:
    content = (base / file).read_bytes()
    (base / file).unlink()
    if damage == "truncated":
        (base / file).write_bytes(content[: len(content) // 2])
    checks = found(examine_checkpoint(str(base)))
    assert checks[name].status == "fail"
    assert file in checks[name].found
    assert checks[name].mend
    assert [n for n, check in checks.items() if check.status == "fail"] == [name]


def test_the_doctor_of_nothing_and_of_several_datasets(tmp_path: Path, capsys) -> None:
    assert main(["doctor", "--checkpoint", str(tmp_path / "nothing")]) == 1
    assert "does not exist" in capsys.readouterr().out
    folder = tmp_path / "official"
    shutil.copytree(GOLDEN, folder, ignore=shutil.ignore_patterns("*.npz", "*.md"))
    checks = found(examine_checkpoint(str(folder)))
    assert "2 datasets: bridge_orig, libero_spatial_no_noops" in checks["statistics"].found
    assert "--policy.unnorm-key" in checks["statistics"].found
    assert checks["tokenizer"].status == "fail"
    assert main(["doctor", "--json", "--checkpoint", str(folder)]) == 1
    assert {check["name"] for check in json.loads(capsys.readouterr().out)} == set(checks)


@pytest.mark.parametrize(
    ("gigabytes", "status", "words"),
    [
        (0.5, "fail", "more memory"),
        (1.4, "ok", "micro-batches"),
        (141, "ok", "micro-batches up to 256"),
    ],
)
def test_the_doctor_compares_with_the_gpus_memory(
    base: Path, monkeypatch: pytest.MonkeyPatch, gigabytes: float, status: str, words: str
) -> None:
    monkeypatch.setattr(examining, "total_gpu_memory", lambda: gigabytes * 1e9)
    check = found(examine_checkpoint(str(base)))["gpu memory"]
    assert check.status == status
    assert words in check.found + check.mend


def test_the_doctor_says_when_the_host_is_too_small(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Small:
        available = 1_000_000

    monkeypatch.setattr(examining.psutil, "virtual_memory", Small)
    check = found(examine_checkpoint(str(base)))["host memory"]
    assert check.status == "warn"
    assert "one tensor at a time" in check.mend
