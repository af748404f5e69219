"""Benchmarks are programs, not part of the package: let tests import them by name."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
