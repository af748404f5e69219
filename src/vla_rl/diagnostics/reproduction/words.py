"""A reproduction in words: report.txt, from the same values as report.json."""

from __future__ import annotations

from typing import Any

from vla_rl.functional import detectable_rates


def report_text(found: dict[str, Any]) -> str:
    """The whole report as text for a terminal."""
    parts = [
        f"Reproduction of {found['suite']}: {found['checkpoint']}",
        _machine(found),
        _evaluation(found),
        _diagnosis(found),
        _practice(found),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _machine(found: dict[str, Any]) -> str:
    checks = [one for one in found["machine"] if one["status"] != "ok"]
    lines = [f"  {one['status']}: {one['name']}: {one['found']}" for one in checks]
    return "\n".join(["Machine: " + ("in order" if not lines else "with remarks"), *lines])


def _evaluation(found: dict[str, Any]) -> str:
    result = found["evaluation"]
    figure = found["published"]
    low, high = (100 * bound for bound in result["interval"])
    settings = ", ".join(f"{name} {value}" for name, value in found["played"].items())
    lines = [
        f"Played: {settings}",
        *(
            f"  not as the protocol: {name} {new!r}, protocol {old!r}"
            for name, (old, new) in found["deviations"].items()
        ),
        f"Success: {result['successes']} of {result['episodes']} episodes, {100 * result['success_rate']:.1f} % "
        f"[{low:.1f}, {high:.1f}]",
    ]
    for task, row in result["tasks"].items():
        lines.append(f"  {row['successes']:>3}/{row['episodes']:<3} {task}")
    if figure is None:
        return "\n".join([*lines, "There is no published figure to compare with."])
    share = figure["success_rate"]
    verdict = "lies within" if found["within"] else "does not lie within"
    lines.append(f"Published: {100 * share:.1f} % ({figure['source']}); it {verdict} the interval.")
    return "\n".join([*lines, what_it_can_tell(share, result["episodes"])])


def what_it_can_tell(published: float, episodes: int) -> str:
    """What so many episodes can tell from the published rate, in a sentence."""
    low, high = detectable_rates(published, episodes)
    sides = [f"below {100 * low:.1f} %"] if low > 0 else []
    sides += [f"above {100 * high:.1f} %"] if high < 1 else []
    if not sides:
        return f"{episodes} episodes can tell no true rate from the published one: play more."
    return (
        f"With {episodes} episodes a true rate {' or '.join(sides)} would be told from the published one in four "
        "of five cases; what lies between would mostly pass."
    )


def _diagnosis(found: dict[str, Any]) -> str:
    diagnosis = found.get("diagnosis")
    if diagnosis is None:
        return ""
    lines = ["Causes looked for:"]
    for one in diagnosis["findings"]:
        lines.append(f"  {one['cause']}: {one['status']}")
        lines += [f"    - {words}" for words in one["evidence"]]
    named = [one["cause"] for one in diagnosis["findings"] if one["status"] == "named"]
    suspected = [one["cause"] for one in diagnosis["findings"] if one["status"] == "suspected"]
    if named:
        lines.append(f"Cause: {' and '.join(named)}.")
    elif suspected:
        lines.append(f"No cause is proven; suspected: {', '.join(suspected)}.")
    else:
        lines.append("No cause was found among these.")
    if diagnosis["corrected"] is not None:
        after = diagnosis["corrected"]
        low, high = (100 * bound for bound in after["interval"])
        reached = "lies within" if after["within"] else "still does not lie within"
        lines.append(
            f"Put right: {after['words']}. Then {after['successes']} of {after['episodes']} succeed, "
            f"{100 * after['success_rate']:.1f} % [{low:.1f}, {high:.1f}]; the published figure {reached} that."
        )
    return "\n".join(lines)


def _practice(found: dict[str, Any]) -> str:
    practice = found.get("practice")
    if practice is None:
        return ""
    if practice.get("skipped"):
        return f"Practice: not run. {practice['skipped']}"
    spent = ", ".join(f"{name} {seconds:.1f}" for name, seconds in practice["seconds"].items())
    lines = [
        f"Practice: {practice['iterations']} iteration(s) of {practice['preset']}, {practice['turns']:.0f} turns and "
        f"{practice['episodes']:.0f} ended episodes each.",
        f"An iteration took {practice['seconds_an_iteration']:.1f} s ({spent}).",
        f"The whole recipe's {practice['recipe_iterations']} iterations would take {practice['hours']:.1f} hours, "
        "evaluations apart; the first iterations are the slowest.",
    ]
    return "\n".join([*lines, "", practice["plan"]])
