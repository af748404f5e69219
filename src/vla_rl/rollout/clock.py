"""Where the time of a window goes."""

from __future__ import annotations

import time


class Clock:
    """Splits wall time, and this thread's processor time, between named activities."""

    def __init__(self) -> None:
        self.seconds = {"simulate": 0.0, "infer": 0.0, "other": 0.0}
        self.own = {**self.seconds, "values": 0.0}
        self.activity, self.own_activity = "other", "other"
        self.since, self.own_since = time.perf_counter(), time.thread_time()

    def switch(self, activity: str, own_activity: str = "") -> None:
        """`own_activity`: what the processor time counts for, where that is told more finely."""
        now, own_now = time.perf_counter(), time.thread_time()
        self.seconds[self.activity] += now - self.since
        self.own[self.own_activity] += own_now - self.own_since
        self.activity, self.own_activity = activity, own_activity or activity
        self.since, self.own_since = now, own_now

    def stop(self) -> dict[str, float]:
        self.switch("other")
        return self.seconds
