"""The world of learners that lie on the machines of a Ray cluster."""

from __future__ import annotations

from torch._C._distributed_c10d import Store

from vla_rl.distributed.ray_errors import require_ray
from vla_rl.distributed.torch_world import TorchWorld
from vla_rl.distributed.watch import Watch


def world_of_learner(
    store: Store, rank: int, size: int, timeout: float, watch: Watch, own_gpu: bool
) -> TorchWorld:
    """Join as a learner. own_gpu: Ray shows every learner one GPU and no other, which is not shared."""
    # each is the first and only one on what it sees of its machine
    local = (0, 1) if own_gpu else (rank, size)
    world = TorchWorld(store, rank, size, timeout, *local, watch)
    here = require_ray().get_runtime_context().get_node_id()
    nodes = world.gather(here)
    # for cores and for drawing, which they share
    world.local_rank, world.local_size = nodes[:rank].count(here), nodes.count(here)
    return world
