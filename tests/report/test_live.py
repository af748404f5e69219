"""The report of a run that still trains: what is served, to whom, and when it is written anew."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from parsed_page import page_of

from builders.example_run import MT5
from vla_rl.cli import main
from vla_rl.config import UserError
from vla_rl.report.live import LivePage, serving
from vla_rl.report.page.curves import curriculum, ranks
from vla_rl.report.page.videos import films
from vla_rl.report.run_data import read_run


@pytest.fixture
def server(run: Path) -> Iterator[str]:
    with serving(run, 0, 0.5) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def fetch(address: str, **headers: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(urllib.request.Request(address, headers=headers)) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, ""


def append_iteration(run: Path, number: int) -> None:
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(last | {"iteration": number}) + "\n")


def test_the_page_is_the_report_and_its_scripts_may_run(server: str, run: Path) -> None:
    status, page = fetch(f"{server}/")
    assert status == 200
    assert page.count("<main>") == 1
    assert "Learning curves" in page
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]+)"', page)
    assert policy is not None
    assert "connect-src 'self'" in policy[1]
    scripts = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    assert len(scripts) == 2
    for script in scripts:
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in policy[1]
    mark = re.search(r'data-mark="(\w+)"', page)
    assert mark is not None
    assert fetch(f"{server}/mark") == (200, mark[1])
    assert not (run / "report.html").exists()


def test_only_this_machine_is_answered_and_only_these_two_addresses(server: str) -> None:
    assert fetch(f"{server}/", Host="evil.example:80")[0] == 403
    assert fetch(f"{server}/config.json")[0] == 404
    assert fetch(f"{server}/../../etc/passwd")[0] == 404
    assert fetch(f"{server}/", Host="localhost:1")[0] == 200


def test_a_page_is_written_anew_where_the_run_has_changed_and_the_pause_is_over(run: Path) -> None:
    now = [0.0]
    live = LivePage(run, 5.0, clock=lambda: now[0])
    first, page = live.current()
    assert live.current() == (first, page)
    append_iteration(run, 1000)
    now[0] = 4.0
    assert live.current() == (first, page)
    now[0] = 6.0
    second, newer = live.current()
    assert second != first
    assert newer != page


def test_a_folder_that_is_gone_says_so_and_comes_back(run: Path) -> None:
    now = [0.0]
    live = LivePage(run, 1.0, clock=lambda: now[0])
    live.current()
    aside = run.with_name("aside")
    shutil.move(run, aside)
    now[0] = 2.0
    gone = live.current()[1]
    assert "is no run folder" in gone
    assert "'none'" not in gone.split("script-src", 1)[1].split('"', 1)[0]  # it looks again
    shutil.move(aside, run)
    now[0] = 4.0
    assert "Learning curves" in live.current()[1]


def test_what_cannot_be_served_is_refused(run: Path, tmp_path: Path, capsys) -> None:
    with pytest.raises(UserError, match="is no run folder"), serving(tmp_path / "none", 0, 1.0):
        pass
    with (
        serving(run, 0, 1.0) as server,
        pytest.raises(UserError, match="cannot be used"),
        serving(run, server.server_port, 1.0),
    ):
        pass
    assert main(["report", str(run), "--live", "--out", "x.html"]) == 2
    assert "a live report writes no file" in capsys.readouterr().err


def test_films_of_the_last_evaluation_stand_there_until_training_has_ended(run: Path) -> None:
    videos = run / "eval/videos"
    shutil.move(videos / "after", videos / "iteration-000025")
    shown = films(read_run(run))
    assert shown.count("After iteration 25") == 2 * len(MT5)
    shutil.copytree(videos / "iteration-000025", videos / "after")
    assert "After iteration 25" not in films(read_run(run))


def test_a_run_that_still_trains_is_not_called_stopped_or_incomplete(run: Path) -> None:
    for mode in ("greedy", "sampled"):
        (run / f"eval/after-{mode}.json").unlink()
    config = json.loads((run / "config.json").read_text())
    config["schedule"] = {"iterations": 10**6, "minutes": 0, "episodes": 0}
    (run / "config.json").write_text(json.dumps(config))
    ended = page_of(run).text
    assert "The run stopped early" in ended
    assert "Missing from this run folder" in ended
    holder = "from vla_rl.runtime.lock import FolderLock; import sys, pathlib, time; "
    holder += (
        "lock = FolderLock(pathlib.Path(sys.argv[1])); print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", holder, str(run)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        goes_on = page_of(run).text
        process.terminate()
    assert "The run is still training" in goes_on
    assert "training goes on" in goes_on
    assert "Missing from this run folder" not in goes_on
    assert "The run stopped early" in page_of(run).text


def test_every_rank_has_a_chart_of_its_own(run: Path) -> None:
    assert ranks(read_run(run)) == ""
    lines = [
        {f"{rank}/{part}": 1.0 + rank for rank in (0, 1) for part in ("simulate", "learn", "wait")}
        | {"0/turns": 50.0, "1/turns": 70.0, "iteration": i}
        for i in (1, 2, 3)
    ]
    (run / "ranks.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = ranks(read_run(run))
    assert set(re.findall(r"Rank (\d+), seconds per iteration", found)) == {"0", "1"}
    assert "150 turns played" in found
    assert "210 turns played" in found


def test_starts_at_demonstrations_states_are_drawn(run: Path) -> None:
    before = curriculum(read_run(run))
    assert "Where they start" not in before
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        line |= {"starts/success/push": 0.5, "starts/fraction/push": 0.8}
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    after = curriculum(read_run(run))
    assert "Where they start" in after
    assert "Success from demonstrations" in after
