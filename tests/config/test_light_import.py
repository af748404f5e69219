"""What simulator processes import stays small."""

from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    "module",
    [
        "vla_rl.config",
        "vla_rl.config.serialize",
        "vla_rl.cli",
        "vla_rl.runtime.run_folder",
        "vla_rl.runtime.seeding",
        "vla_rl.runtime.progress",
        "vla_rl.runtime.signals",
        "vla_rl.runtime.memory",
        "vla_rl.runtime.devices",
        "vla_rl.recipes.presets",
    ],
)
def test_importing_it_imports_neither_torch_nor_simulators_nor_the_option_parser(
    module: str,
) -> None:
    code = (
        f"import sys, {module}; "
        "print([m for m in ('torch', 'mujoco', 'metaworld', 'transformers', 'tyro') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_overview_of_the_commands_needs_neither_arrays_nor_a_validating_library() -> None:
    heavy = ("torch", "numpy", "pydantic", "tyro", "rich")
    code = (
        "import sys; from vla_rl.cli import main; main(['--help']); "
        f"print([m for m in {heavy} if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
