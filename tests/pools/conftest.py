"""One small Ray cluster for all tests of pools; it takes seconds to start."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from vla_rl.config.parallel import ParallelConfig


@pytest.fixture(scope="session")
def cluster() -> Iterator[Any]:
    ray = pytest.importorskip("ray", reason="Ray is not installed: make test-ray")
    from vla_rl.distributed.ray_cluster import open_cluster

    with open_cluster(ParallelConfig(arrangement="pools")):
        yield ray
