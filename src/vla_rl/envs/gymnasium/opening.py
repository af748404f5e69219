"""Makes a Gymnasium environment, without its time limit: `env.horizon` is what ends an episode."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

from vla_rl.config.errors import ConfigError, UserError
from vla_rl.envs.faults import told
from vla_rl.envs.gymnasium.options import GymOptions
from vla_rl.envs.rendering.gl import choose_backend
from vla_rl.runtime.extras import need


def open_environment(options: GymOptions, *, rendered: bool) -> Any:
    """Make one. `rendered`: its `render()` gives arrays.

    ConfigError where there is none of that id; UserError, with the place, where its own code fails.
    """
    need("gymnasium", purpose=options.suite)
    _draw_offscreen()
    keywords = dict(options.make)
    if callable(options.environment):
        parameters = inspect.signature(options.environment).parameters.values()
        takes = {p.name for p in parameters}
        if rendered and (
            "render_mode" in takes or any(p.kind is p.VAR_KEYWORD for p in parameters)
        ):
            keywords["render_mode"] = "rgb_array"
        with told(options.suite, "the function that makes it"):
            return options.environment(**keywords)
    import gymnasium

    spec = _spec(options)
    if rendered:
        keywords["render_mode"] = "rgb_array"
    with told(options.suite, "its constructor"), _quiet():
        return gymnasium.make(spec, max_episode_steps=-1, disable_env_checker=True, **keywords)


def step_limit(options: GymOptions) -> int | None:
    """The environment's own time limit, in steps, where it is registered with one."""
    if callable(options.environment):
        return None
    return _spec(options).max_episode_steps


def imported(options: GymOptions, module: str) -> Any:
    """A module that the suite names; one in the present folder is found as well. ConfigError if there is none."""
    if _missing(module):
        here = Path.cwd()
        if not any((here / f"{module.partition('.')[0]}{end}").exists() for end in ("", ".py")):
            raise ConfigError(
                f"{options.suite}: there is no module {module!r}: expected an installed one, or {module}.py in the "
                "folder where you start"
            )
        sys.path.append(str(here))  # simulator processes are given the same path
        importlib.invalidate_caches()
    with told(options.suite, f"import {module}"):
        return importlib.import_module(module)


@cache
def _draw_offscreen() -> None:
    """Let MuJoCo find a way to draw where there is no screen, before an environment imports it; one wants a window."""
    if os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"):
        return
    os.environ.setdefault("LP_NUM_THREADS", "0")  # as for our own simulators
    with suppress(UserError):  # whatever draws without OpenGL needs none
        if backend := choose_backend():
            os.environ.setdefault("MUJOCO_GL", backend)


def _missing(module: str) -> bool:
    if module in sys.modules:
        return False
    try:
        return importlib.util.find_spec(module) is None
    except (ImportError, ValueError):
        return True


def _spec(options: GymOptions) -> Any:
    """What the environment is registered as, its module imported."""
    import gymnasium

    assert isinstance(options.environment, str)
    module, colon, name = options.environment.rpartition(":")
    if colon:
        imported(options, module)
    try:
        with _quiet():
            return gymnasium.spec(name)
    except gymnasium.error.Error as error:
        hint = "" if colon else ". One of a module of yours is gym:<module>:<id>"
        raise ConfigError(
            f"{options.suite}: {' '.join(str(error).split()).rstrip('.')}{hint}"
        ) from None


@contextmanager
def _quiet() -> Iterator[None]:
    """Gymnasium warns of old versions and of render modes; what matters of that is looked at here."""
    import gymnasium

    before = gymnasium.logger.min_level
    gymnasium.logger.min_level = gymnasium.logger.ERROR
    try:
        yield
    finally:
        gymnasium.logger.min_level = before
