"""The processes that train one policy together."""

from vla_rl.distributed.shards import Shards
from vla_rl.distributed.world import SingleProcess, World

__all__ = ["Shards", "SingleProcess", "World"]
