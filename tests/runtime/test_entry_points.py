"""What packages of others add: found by entry points, loaded when asked for; a broken one harms nobody else."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from vla_rl.config import ConfigError, UserError
from vla_rl.diagnostics.machine import simulator_checks
from vla_rl.envs.registry import BENCHMARKS, benchmark
from vla_rl.policies.registry import POLICIES, family, family_of
from vla_rl.runtime.entry_points import load_entry_points

SOURCE = """
from dataclasses import replace
from vla_rl.envs.toy.benchmark import TOY
from vla_rl.policies.registry import POLICIES

THEIRS = replace(TOY, title="Theirs", suites=("theirs",), robot="theirs")
NOTHING = "a text"
POLICY = POLICIES["openvla"]

def made():
    return replace(THEIRS, suites=("made",), robot="made")

def fails():
    raise RuntimeError("no licence")
"""
ENTRY_POINTS = """
[vla_rl.benchmarks]
theirs = their_package:THEIRS
made = their_package:made
toy = their_package:THEIRS
text = their_package:NOTHING
failing = their_package:fails
missing = no_such_package:X
leaving = leaving_package:X

[vla_rl.policies]
their_model = their_package:POLICY
bad_model = their_package:NOTHING
"""


@pytest.fixture(autouse=True)
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A package of somebody else, as an installer leaves it."""
    (tmp_path / "their_package.py").write_text(SOURCE)
    (tmp_path / "leaving_package.py").write_text("raise SystemExit(3)")
    info = tmp_path / "their_package-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: their-package\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(ENTRY_POINTS)
    monkeypatch.syspath_prepend(str(tmp_path))
    for registry in (BENCHMARKS, POLICIES):
        for name in registry:
            monkeypatch.setitem(registry, name, registry[name])
    known = dict(BENCHMARKS), dict(POLICIES)
    load_entry_points.cache_clear()
    yield
    load_entry_points.cache_clear()
    for registry, before in zip((BENCHMARKS, POLICIES), known, strict=True):
        for name in set(registry) - set(before):
            del registry[name]
    sys.modules.pop("their_package", None)


def test_a_suite_of_a_package_is_played_by_its_name() -> None:
    assert benchmark("theirs").title == "Theirs"
    assert benchmark("made:reach-red").robot == "made"
    assert benchmark("toy").title == "Toy"  # an entry of ours stays as it is


@pytest.mark.parametrize(
    ("suite", "said"),
    [
        ("text", r"'text' of vla_rl\.benchmarks, 'their_package:NOTHING' of the package their-package, is a str"),
        ("failing", r"does not load: RuntimeError: no licence"),
        ("missing", r"does not load: ModuleNotFoundError: No module named 'no_such_package'"),
        ("leaving", r"does not load: SystemExit: 3"),
    ],
)  # fmt: skip
def test_a_broken_one_is_named_and_the_others_are_played(suite: str, said: str, caplog) -> None:
    with pytest.raises(ConfigError, match=said):
        benchmark(suite)
    assert benchmark("theirs").title == "Theirs"
    assert sum("the others are not affected" in record.message for record in caplog.records) == 4


def test_nothing_is_loaded_before_it_is_asked_for() -> None:
    benchmark("mt5"), benchmark("toy")
    assert "their_package" not in sys.modules


def test_a_policy_of_a_package_is_found_by_its_model_type(tmp_path: Path) -> None:
    assert family("their_model") is POLICIES["openvla"]
    with pytest.raises(UserError, match=r"'bad_model' .* is a str: expected a PolicyFamily"):
        family("bad_model")
    (tmp_path / "config.json").write_text('{"model_type": "their_mdel"}')
    with pytest.raises(UserError, match="Did you mean 'their_model'"):
        family_of(tmp_path)


def test_doctor_names_the_broken_ones() -> None:
    found = {name: check().status for name, check in simulator_checks() if name.startswith("bench")}
    assert found == {f"benchmark {n}": "warn" for n in ("text", "failing", "missing", "leaving")}
