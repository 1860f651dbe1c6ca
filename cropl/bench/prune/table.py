"""The rows of the pruning bench as tables, for a terminal and for Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from cropl.bench.prune.time import FEWEST

Row = dict[str, Any]
Table = tuple[list[str], list[list[str]]]

LEAST_MOST = "least-most"
"""Heads the columns of intervals that too few pairs were measured for."""

NAME = ["method", "budget", "kept", "batch"]
"""`kept` are the visual tokens of the last layer; what a budget counts differs by method, see `words`."""


def prefill_table(rows: Sequence[Row]) -> Table:
    """Header and cells: a prefill of each arm and its speed-up in three columns.

    `ideal` is what FLOPs allow; `unpatched` what this machine does, layer by layer, on sequences that are so short from
    the start.
    """
    told = _level(row["prefill"]["speedup"]["llm"]["pairs"] for row in rows if "failed" not in row)
    head = [*NAME, "ms", "dense ms", "LLM", told, "ideal", "of ideal", "unpatched"]
    head += ["+ vision", "of ideal", "+ localizer", "of ideal"]
    return head, [_prefill(row) if "failed" not in row else _failed(row, head) for row in rows]


def _prefill(row: Row) -> list[str]:
    prefill, columns = row["prefill"], row["prefill"]["speedup"]
    llm = columns["llm"]
    cells = [*_name(row), f"{1e3 * prefill['seconds']:,.1f}", f"{1e3 * prefill['dense']['seconds']:,.1f}"]
    cells += [times(llm["measured"]), _interval(llm), times(llm["ideal"]), percent(llm["of_ideal"])]
    cells.append("" if prefill["unpatched"] is None else times(1 / prefill["unpatched"]))
    for name in ("vision", "localizer"):
        found = columns.get(name)
        cells += [times(found["measured"]), percent(found["of_ideal"])] if found else ["", ""]
    return cells


def memory_table(rows: Sequence[Row]) -> Table:
    """Header and cells: what else a prefill takes, beside dense.

    `layer average` is of visual tokens; `computed` the counted linear FLOPs of what the rows need: above 1 is padding,
    and what a method computes to choose.
    """
    head = [*NAME, "layer average", "GFLOP", "dense", "computed", "KV MiB", "dense", "peak MiB", "dense"]
    made = []
    for row in rows:
        if "failed" not in row and not row["compiled"]:  # of compiled ones the buffers count, see `compiled_table`
            cells = [*_name(row), f"{row['layer_average']:.0f}"]
            cells += [f"{row['flops'][which] / 1e9:,.1f}" for which in ("pruned", "dense")]
            cells.append(f"{row['counted_linear_flops']['pruned'] / row['linear_flops']['pruned']:.2f}")
            for name in ("kv_bytes", "peak_bytes"):
                cells += [f"{row[name][which] / 2**20:,.1f}" for which in ("pruned", "dense")]
            made.append(cells)
    return head, made


def answer_table(rows: Sequence[Row]) -> Table:
    """Header and cells: whole answers of each length with the language model alone and with all that goes before.

    "+ localizer" is one after the other, as measured; the last column is computed from the same times: while the model
    answers, the localizer is at the next batch on a device of its own, and the longer of the two counts.
    """
    told = _level(answer["speedup"]["llm"]["pairs"] for row in rows for _, answer in _answers(row))
    head = [*NAME, "new tokens", "s", "dense s", "LLM", told, "+ localizer", told, "overlapped (max of stages)"]
    made = []
    for row in rows:
        for length, answer in _answers(row):
            speedup = answer["speedup"]
            cells = [*_name(row), length, f"{answer['seconds']:.2f}", f"{answer['dense']['seconds']:.2f}"]
            for name in ("llm", "localizer"):
                found = speedup.get(name)
                cells += [times(found["measured"]), _interval(found)] if found else ["", ""]
            cells.append(times(speedup["overlapped"]["measured"]) if "overlapped" in speedup else "")
            made.append(cells)
    return head, made


def step_table(rows: Sequence[Row]) -> Table:
    """Header and cells: a decoding step."""
    head = [*NAME, "step ms", "dense ms", "step"]
    steps = [(row, row["answers"]["step"]) for row in rows if "step" in row.get("answers", {})]
    return head, [
        [*_name(row), f"{1e3 * step['seconds']:.1f}", f"{1e3 * step['dense']:.1f}", times(step["speedup"])]
        for row, step in steps
    ]


def compiled_table(rows: Sequence[Row]) -> Table:
    """Header and cells: what is compiled, against dense compiled and against eager dense.

    `buckets` are the lengths that the layers ran at, and `ideal of buckets` the ratio of their FLOPs; `first s` is the
    first answer, with the compilation.
    """
    ran = [row for row in rows if row["compiled"] and "failed" not in row]
    told = _level(part["speedup"]["llm"]["pairs"] for row in ran for _, part in _parts(row))
    head = [*NAME, "part", "s", "compiled dense s", "speed-up", told, "eager dense s", "speed-up", told]
    head += ["ideal", "ideal of buckets", "buckets", "KV MiB", "first s"]
    made = []
    for row in ran:
        prefill, buckets = row["prefill"], ", ".join(map(str, row["buckets"]))
        rest = [times(prefill["speedup"]["llm"]["ideal"]), times(prefill["ideal_of_buckets"]), buckets]
        rest += [f"{row['kv_bytes']['pruned'] / 2**20:,.1f}", f"{row['first_s']:.1f}"]
        for name, part in _parts(row):
            cells = [*_name(row), name, f"{part['seconds']:.3f}"]
            for dense, speedup in ((part["dense"], part["speedup"]["llm"]), (part["eager"]["dense"], part["eager"])):
                cells += [f"{dense['seconds']:.3f}", times(speedup["measured"]), _interval(speedup)]
            made.append([*cells, *(rest if part is prefill else [""] * len(rest))])
    return head, made


def _answers(row: Row) -> list[tuple[str, Row]]:
    return [(length, answer) for length, answer in row.get("answers", {}).items() if length != "step"]


def _parts(row: Row) -> list[tuple[str, Row]]:
    return [("prefill", row["prefill"]), *((f"{length} tokens", answer) for length, answer in _answers(row))]


def _level(pairs: Iterable[int]) -> str:
    """What the intervals of so many pairs each are."""
    found = {count >= FEWEST for count in pairs}
    return "95 %" if found <= {True} else LEAST_MOST if found == {False} else f"95 %, {LEAST_MOST} below {FEWEST} pairs"


def overhead_table(rows: Sequence[Row]) -> Table:
    """Header and cells of `overhead.overhead`."""
    told = _level(row["rounds"] for row in rows)
    head = ["patch", "prefill us/layer", told, "step us/layer", told, "entering us"]
    made = []
    for row in rows:
        cells = [row["case"]]
        for part in ("prefill", "step"):
            low, high = row[part]["interval"]
            cells += [f"{row[part]['us_per_layer']:.1f}", f"{low:.1f} to {high:.1f}"]
        made.append([*cells, f"{row['enter_us']:,.0f}"])
    return head, made


def markdown(table: Table) -> str:
    """A table in Markdown; all columns but the first are right-aligned."""
    head, cells = table
    lines = [head, ["---", *("---:" for _ in head[1:])], *cells]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _name(row: Row) -> list[str]:
    kept = row["kept"]
    tokens = f"{kept[0]}" if min(kept) == max(kept) else f"{min(kept)}-{max(kept)}"
    return [label(row), str(row["budget"]), tokens, str(row["batch"])]


def label(row: Row) -> str:
    """What ran: the method, and whether it was compiled."""
    return f"{row['method']}, compiled" if row["compiled"] else str(row["method"])


def _failed(row: Row, head: list[str]) -> list[str]:
    return [label(row), str(row["budget"]), "", str(row["batch"]), row["failed"], *("" for _ in head[5:])]


def times(ratio: float) -> str:
    """A speed-up."""
    return f"{ratio:.2f}x"


def percent(share: float) -> str:
    """A share."""
    return f"{100 * share:.0f} %"


def _interval(found: Row) -> str:
    low, high = found["interval"]
    return f"{low:.2f}-{high:.2f}"
