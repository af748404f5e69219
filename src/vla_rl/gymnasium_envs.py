"""Registers our suites with Gymnasium. Importing this module does it; so does `import vla_rl` after `import gymnasium`.

    import gymnasium, vla_rl
    env = gymnasium.make("vla_rl/metaworld-mt5-v0", image_size=84)
    env = gymnasium.make("vla_rl/suite-v0", suite="mt1:drawer-open")        # any suite, unions too
    env = gymnasium.make("vla_rl.gymnasium_envs:vla_rl/toy-v0")      # imports what registers it

Imports none of our other modules; those are imported when an environment is made.
"""

from __future__ import annotations

from typing import Any

NAMESPACE = "vla_rl"
SUITES = {
    "suite": "",
    "toy": "toy",
    "metaworld-mt5": "mt5",
    "metaworld-mt10": "mt10",
    "metaworld-mt10-hard": "mt10-hard",
    "metaworld-mt50": "mt50",
    "libero-spatial": "libero-spatial",
    "libero-object": "libero-object",
    "libero-goal": "libero-goal",
    "libero-10": "libero-10",
    "libero-90": "libero-90",
    "libero-40": "libero-40",
}
"""Name -> suite; `suite` takes it as a keyword."""


def register(gymnasium: Any) -> None:
    """Register all of them, once. gymnasium: the module."""
    for name, suite in SUITES.items():
        identifier = f"{NAMESPACE}/{name}-v0"
        if identifier not in gymnasium.registry:
            gymnasium.register(
                identifier,
                entry_point="vla_rl.envs.suite_env:SuiteEnv",
                kwargs={"suite": suite} if suite else {},
                disable_env_checker=True,
            )


def _register_now() -> None:
    try:
        import gymnasium
    except ImportError:
        return  # who makes one will be told
    register(gymnasium)


_register_now()
