"""What is free: of the machine, or of the container where that has less."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from vla_rl.config import UserError
from vla_rl.runtime import memory


def container(folder: Path, monkeypatch: pytest.MonkeyPatch, **numbers: str) -> None:
    for name, text in numbers.items():
        (folder / name.replace("_", ".")).write_text(text)
    monkeypatch.setattr(memory, "_CGROUP", folder)


def test_a_container_has_what_its_limit_leaves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    statistics = "anon 5\ninactive_file 3000\nactive_file 7\n"
    container(
        tmp_path, monkeypatch,
        memory_max="1000000\n", memory_current="400000\n", memory_stat=statistics,
    )  # fmt: skip
    assert memory.available_memory() == 603_000


@pytest.mark.parametrize("limit", ["max\n", None, str(2**62)])
def test_without_a_limit_the_machine_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str | None
):
    container(
        tmp_path, monkeypatch, **({"memory_max": limit, "memory_current": "5"} if limit else {})
    )
    available = psutil.virtual_memory()._replace(available=12345)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: available)
    assert memory.available_memory() == 12345


def test_what_does_not_fit_is_said_with_both_numbers(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(memory, "available_memory", lambda: 10_000_000_000)
    memory.require_memory(8_900_000_000, "the dataset", "Take less.")
    with pytest.raises(
        UserError,
        match=r"^the dataset takes 9\.1 GB of memory, and 10\.0 GB are free\. Take less\.$",
    ):
        memory.require_memory(9_100_000_000, "the dataset", "Take less.")
