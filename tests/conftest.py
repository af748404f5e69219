"""What all tests share: one thread each, examples without deadlines, and a reason wherever something is skipped."""

from __future__ import annotations

import functools
import os
import random
import shutil
import signal
import sys

import pytest
from hypothesis import HealthCheck, settings

from vla_rl.diagnostics import machine as doctor

# None of the imports above loads numpy or torch, so this is early enough. On a busy machine with few
# cores, a second thread in every process makes the tests several times slower.
for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(variable, "1")

# `nohup make test`, and a script's `make test &`, start with signals ignored, which every child would inherit.
for number, usual in (
    (signal.SIGHUP, signal.SIG_DFL),
    (signal.SIGTERM, signal.SIG_DFL),
    (signal.SIGINT, signal.default_int_handler),
):
    if signal.getsignal(number) == signal.SIG_IGN:
        signal.signal(number, usual)

# How long an example takes says something about the machine, not about the code: no deadline, and no
# complaint that drawing examples is slow. In continuous integration (CI is set) the examples are the same
# in every run; elsewhere they are new each time.
settings.register_profile(
    "any-machine", deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True
)
settings.register_profile("ci", settings.get_profile("any-machine"), derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "any-machine")

CHROMIUM_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@functools.cache
def rendering_backend() -> str:
    """The off-screen backend that draws here, "" if there is none; found out once per test run."""
    return doctor.find_renderer()


def skip_without_rendering() -> None:
    if not rendering_backend():
        pytest.skip(f"no off-screen rendering here; {doctor.install_rendering_command()}")


@functools.cache
def has_cuda() -> bool:
    import torch

    return torch.cuda.is_available()


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what this machine cannot run, and say why."""
    if item.get_closest_marker("gpu") and not has_cuda():
        pytest.skip("needs a CUDA device")
    if item.get_closest_marker("vllm") and not os.environ.get("VLA_RL_ENGINE_PYTHON"):
        pytest.skip("needs vLLM's own environment: make test-vllm")
    if item.get_closest_marker("doors") and not os.environ.get("VLA_RL_DOORS_PYTHON"):
        pytest.skip(
            "needs openpi's client and vla-eval in an environment of their own: make test-doors"
        )
    if item.get_closest_marker("official") and not os.environ.get("VLA_RL_OFFICIAL_PYTHON"):
        pytest.skip("needs an environment for OpenVLA's own code: VLA_RL_OFFICIAL_PYTHON")
    if item.get_closest_marker("sim"):
        skip_without_rendering()


@pytest.fixture(scope="session")
def sim() -> str:
    """Name of the rendering backend for tests that draw; skips where there is none."""
    skip_without_rendering()
    return rendering_backend()


@pytest.fixture(scope="session")
def chromium() -> str:
    """Path of a Chromium for headless images of the report; skips where there is none."""
    for name in CHROMIUM_NAMES:
        path = shutil.which(name)
        if path:
            return path
    pytest.skip(f"no browser: none of {', '.join(CHROMIUM_NAMES)} is on the path")


@pytest.fixture(autouse=True)
def same_random_numbers() -> None:
    """Each test draws the same, whatever ran before it: an answer within a tolerance stays within it."""
    random.seed(0)
    for library, seed in (("numpy.random", "seed"), ("torch", "manual_seed")):
        if library in sys.modules:
            getattr(sys.modules[library], seed)(0)


@pytest.fixture(autouse=True)
def shapes_checked() -> None:
    """The first calls of each test are checked against their annotations."""
    import shape_checks

    shape_checks.begin_test()


@pytest.fixture
def shapes_unchecked(shapes_checked: None) -> None:
    """For tests of what the package itself says to arrays that its annotations forbid."""
    import shape_checks

    shape_checks.stop()
