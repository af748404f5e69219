"""What must be the same on all machines that compute one run: versions, and the source of this package."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version

from vla_rl.runtime.provenance import code_digest

PACKAGES = ("vla-rl", "torch", "numpy", "tokenizers", "ray")


@cache
def software_here() -> dict[str, str]:
    """Names and versions; of this package's source a checksum too, since a checkout changes under one version."""
    found = {"python": ".".join(platform.python_version_tuple()[:2])}
    for package in PACKAGES:
        try:
            # builds for CPUs and for GPUs are of one version
            found[package] = version(package).partition("+")[0]
        except PackageNotFoundError:
            found[package] = "not installed"
    found["vla-rl's source"] = code_digest()
    return found


def differences(here: Mapping[str, str], there: Mapping[str, str]) -> list[str]:
    """In words what another machine has otherwise; nothing where all is the same."""
    return [
        f"{name} {there.get(name, 'not known')} instead of {here.get(name, 'not known')}"
        for name in sorted(here.keys() | there.keys())
        if here.get(name) != there.get(name)
    ]
