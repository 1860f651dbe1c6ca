"""What the rows of the pruning bench say in words: what budgets are, how near the ideal, and where totals win."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import Any

from cropl.bench.prune.methods import MEANINGS
from cropl.bench.prune.table import label, percent, times
from cropl.bench.prune.time import FEWEST

Row = dict[str, Any]


def growth(rows: Sequence[Row]) -> list[tuple[int, float]]:
    """Tokens that ILP keeps on equal rows, and time against FLOPs there, of what dense has: 1.0 is proportional."""
    batch = next((row["batch"] for row in rows if row["series"] == "growth"), None)
    found = {
        round(fmean(row["kept"])): 1 / row["prefill"]["speedup"]["llm"]["of_ideal"]
        for row in rows
        if "failed" not in row
        and row["method"] == "ilp"
        and row["series"] in ("methods", "growth")
        and row["batch"] == batch
        and min(row["kept"]) == max(row["kept"])
    }
    return sorted(found.items())


def sentences(rows: Sequence[Row]) -> list[str]:
    """What the figures of one shape say."""
    lines = [*meanings(rows), *missing(rows)]
    if any(row["compiled"] for row in rows):
        lines.append(
            "compiled rows stand beside dense compiled alike; their own table has eager dense, too; the vision tower "
            "and the localizer before them run eagerly"
        )
    rows = [row for row in rows if "failed" not in row]
    methods = [row for row in rows if row["series"] in ("methods", "compiled")]
    for name in dict.fromkeys(map(label, methods)):
        prefills = [row["prefill"] for row in methods if label(row) == name]
        shares = [prefill["speedup"]["llm"]["of_ideal"] for prefill in prefills]
        line = f"{name}: prefill at {_range(shares)} of its ideal speed-up"
        own = [p["speedup"]["llm"]["measured"] * p["unpatched"] for p in prefills if p["unpatched"] is not None]
        if own:
            line += f", and at {_range(own)} of unpatched layers of its lengths"
        lines.append(line)
    grown = growth(rows)
    if grown:
        low, high = min(ratio for _, ratio in grown), max(ratio for _, ratio in grown)
        kept = f"{grown[0][0]} to {grown[-1][0]} tokens"
        lines.append(f"ilp, {kept}: time is {low:.2f} to {high:.2f} of what FLOPs say, dense being 1")
    for row in rows:
        if row["series"] == "ragged":
            llm = row["prefill"]["speedup"]["llm"]
            kept = f"{min(row['kept'])} to {max(row['kept'])}"
            lines.append(
                f"ragged batch of {row['batch']}, {kept} tokens a row: {times(llm['measured'])} of "
                f"{times(llm['ideal'])}, {percent(llm['of_ideal'])}"
            )
    return [*lines, *crossovers(rows), *overlapping(rows)]


def _range(shares: Sequence[float]) -> str:
    low, high = percent(min(shares)), percent(max(shares))
    return low if low == high else f"{low} to {high}"


def meanings(rows: Sequence[Row]) -> list[str]:
    """What the number in the column `budget` counts, for each method."""
    found: dict[str, list[str]] = {}
    for row in rows:
        names = found.setdefault(row["budget_meaning"], [])
        names += [] if row["method"] in names else [row["method"]]
    told = [f"{MEANINGS[meaning]} ({', '.join(names)})" for meaning, names in found.items()]
    return [f"budget: {'; '.join(told)}"] if told else []


def missing(rows: Sequence[Row]) -> list[str]:
    """Why rows have no figures, where a table has no room for it."""
    told = [f"{label(row)}: {row['failed']}: {row['why']}" for row in rows if "why" in row]
    return list(dict.fromkeys(told))


def crossovers(rows: Sequence[Row]) -> list[str]:
    """Where whole answers behind the localizer, one after the other, beat dense: with a 95 % interval above 1."""
    found: dict[tuple[str, int], list[str]] = {}
    few = 0
    for row in rows:
        if row["localizer"] is None or "answers" not in row:
            continue
        lengths = sorted(int(length) for length in row["answers"] if length != "step")
        pairs = row["answers"][str(lengths[0])]["speedup"]["localizer"]["pairs"]
        if pairs < FEWEST:
            few = pairs
            continue
        wins = [n for n in lengths if row["answers"][str(n)]["speedup"]["localizer"]["interval"][0] > 1]
        found.setdefault((label(row), row["batch"]), []).append(f"at {row['budget']} {_where(wins, lengths)}")
    lines = [
        f"{name}, batch {batch}, localizer first: the total beats dense (interval above 1) {', '.join(told)}"
        for (name, batch), told in found.items()
    ]
    if few:
        lines.append(f"from how many tokens on the total beats dense takes {FEWEST} pairs of answers, here are {few}")
    return lines


def overlapping(rows: Sequence[Row]) -> list[str]:
    """What the computed column of answers compares."""
    answers = [answer for row in rows for length, answer in row.get("answers", {}).items() if length != "step"]
    if not any("overlapped" in answer["speedup"] for answer in answers):
        return []
    return ["overlapped: computed for two devices, one of them the localizer's alone, against dense on one device"]


def _where(wins: Sequence[int], lengths: Sequence[int]) -> str:
    """Some of the measured lengths, in words."""
    measured = f"{lengths[0]} to {lengths[-1]}" if len(lengths) > 1 else str(lengths[0])
    if not wins:
        return f"never in the measured range ({measured} new tokens)"
    if len(wins) == len(lengths):
        return f"at all measured lengths ({measured} new tokens)"
    if list(wins) == lengths[-len(wins) :]:
        return f"from {wins[0]} new tokens on"
    if list(wins) == lengths[: len(wins)]:
        return f"up to {wins[-1]} new tokens"
    return f"with {' and '.join(map(str, wins))} new tokens only"
