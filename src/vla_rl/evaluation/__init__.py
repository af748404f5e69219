"""Evaluation: each (task, initial state) exactly once; results, videos, search at test time."""
