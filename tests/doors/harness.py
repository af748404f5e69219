"""Evaluate a served policy with vla-evaluation-harness: `python harness.py URL EPISODES STEPS OUT.json`.

The first task of libero_object, initial states 0 to EPISODES - 1, STEPS steps at most; in this process, no container.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

from vla_eval.api import run


def main(url: str, episodes: str, steps: str, out: str) -> None:
    libero = {"suite": "libero_object", "seed": 0, "env_seed": 0, "max_steps": int(steps)}
    config = {
        "output_dir": tempfile.mkdtemp(),
        "benchmarks": [
            {
                "benchmark": "vla_eval.benchmarks.libero.benchmark:LIBEROBenchmark",
                "mode": "sync",
                "episodes_per_task": int(episodes),
                "max_tasks": 1,
                "params": libero,
            }
        ],
    }
    results = run(config, server_url=url, no_save=True, docker=False)
    Path(out).write_text(json.dumps(results, default=str))


if __name__ == "__main__":
    main(*sys.argv[1:])
