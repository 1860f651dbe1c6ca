"""The rows of the pruning bench as tables, for a terminal and for Markdown, and what they say in words."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import Any

Row = dict[str, Any]
Table = tuple[list[str], list[list[str]]]

NAME = ["method", "budget", "kept", "batch"]
"""`kept` are the visual tokens of the last layer."""


def prefill_table(rows: Sequence[Row]) -> Table:
    """Header and cells: a prefill of each arm and its speed-up in three columns.

    `ideal` is what FLOPs allow; `unpatched` what this machine does, layer by layer, on sequences that are so short from
    the start.
    """
    head = [*NAME, "ms", "dense ms", "LLM", "95 %", "ideal", "of ideal", "unpatched"]
    head += ["+ vision", "of ideal", "+ localizer", "of ideal"]
    return head, [_prefill(row) if "failed" not in row else _failed(row, head) for row in rows]


def _prefill(row: Row) -> list[str]:
    prefill, columns = row["prefill"], row["prefill"]["speedup"]
    llm = columns["llm"]
    cells = [*_name(row), f"{1e3 * prefill['seconds']:,.1f}", f"{1e3 * prefill['dense']['seconds']:,.1f}"]
    cells += [_times(llm["measured"]), _interval(llm), _times(llm["ideal"]), _percent(llm["of_ideal"])]
    cells.append("" if prefill["unpatched"] is None else _times(1 / prefill["unpatched"]))
    for name in ("vision", "localizer"):
        found = columns.get(name)
        cells += [_times(found["measured"]), _percent(found["of_ideal"])] if found else ["", ""]
    return cells


def memory_table(rows: Sequence[Row]) -> Table:
    """Header and cells: what else a prefill takes, beside dense.

    `layer average` is of visual tokens; `computed` the counted linear FLOPs of what the rows need: above 1 is padding,
    and what a method computes to choose.
    """
    head = [*NAME, "layer average", "GFLOP", "dense", "computed", "KV MiB", "dense", "peak MiB", "dense"]
    made = []
    for row in rows:
        if "failed" not in row:
            cells = [*_name(row), f"{row['layer_average']:.0f}"]
            cells += [f"{row['flops'][which] / 1e9:,.1f}" for which in ("pruned", "dense")]
            cells.append(f"{row['counted_linear_flops']['pruned'] / row['linear_flops']['pruned']:.2f}")
            for name in ("kv_bytes", "peak_bytes"):
                cells += [f"{row[name][which] / 2**20:,.1f}" for which in ("pruned", "dense")]
            made.append(cells)
    return head, made


def answer_table(rows: Sequence[Row]) -> Table:
    """Header and cells: whole answers of each length with the language model alone and with all that goes before."""
    rows = [row for row in rows if "answers" in row]
    lengths = [key for key in rows[0]["answers"] if key != "step"] if rows else []
    head = [*NAME, "step ms", "dense ms", "step"]
    for length in lengths:
        head += [f"{length} tokens s", "LLM", "+ localizer"]
    made = []
    for row in rows:
        step = row["answers"].get("step")
        cells = [f"{1e3 * step['seconds']:.1f}", f"{1e3 * step['dense']:.1f}", _times(step["speedup"])] if step else []
        cells = [*_name(row), *(cells or ["", "", ""])]
        for length in lengths:
            answer = row["answers"][length]
            speedup = answer["speedup"]
            cells += [f"{answer['seconds']:.2f}", _times(speedup["llm"]["measured"])]
            cells.append(_times(speedup["localizer"]["measured"]))
        made.append(cells)
    return head, made


def overhead_table(rows: Sequence[Row]) -> Table:
    """Header and cells of `prune_overhead.overhead`."""
    head = ["patch", "prefill us/layer", "95 %", "step us/layer", "95 %", "entering us"]
    made = []
    for row in rows:
        cells = [row["case"]]
        for part in ("prefill", "step"):
            low, high = row[part]["interval"]
            cells += [f"{row[part]['us_per_layer']:.1f}", f"{low:.1f} to {high:.1f}"]
        made.append([*cells, f"{row['enter_us']:,.0f}"])
    return head, made


def growth(rows: Sequence[Row]) -> list[tuple[int, float]]:
    """Tokens that ILP keeps on equal rows, and time against FLOPs there, of what dense has: 1.0 is proportional."""
    batch = next((row["batch"] for row in rows if row["series"] == "growth"), None)
    found = {
        round(fmean(row["kept"])): 1 / row["prefill"]["speedup"]["llm"]["of_ideal"]
        for row in rows
        if "failed" not in row and row["method"] == "ilp" and row["series"] != "ragged" and row["batch"] == batch
    }
    return sorted(found.items())


def sentences(rows: Sequence[Row]) -> list[str]:
    """What the figures of one shape say."""
    rows = [row for row in rows if "failed" not in row]
    lines = []
    methods = [row for row in rows if row["series"] == "methods"]
    for name in dict.fromkeys(row["method"] for row in methods):
        prefills = [row["prefill"] for row in methods if row["method"] == name]
        shares = [prefill["speedup"]["llm"]["of_ideal"] for prefill in prefills]
        line = f"{name}: prefill at {_percent(min(shares))} to {_percent(max(shares))} of its ideal speed-up"
        own = [p["speedup"]["llm"]["measured"] * p["unpatched"] for p in prefills if p["unpatched"] is not None]
        if own:
            line += f", and at {_percent(min(own))} to {_percent(max(own))} of unpatched layers of its lengths"
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
                f"ragged batch of {row['batch']}, {kept} tokens a row: {_times(llm['measured'])} of "
                f"{_times(llm['ideal'])}, {_percent(llm['of_ideal'])}"
            )
    return lines


def markdown(table: Table) -> str:
    """A table in Markdown; all columns but the first are right-aligned."""
    head, cells = table
    lines = [head, ["---", *("---:" for _ in head[1:])], *cells]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _name(row: Row) -> list[str]:
    kept = row["kept"]
    tokens = f"{kept[0]}" if min(kept) == max(kept) else f"{min(kept)}-{max(kept)}"
    return [row["method"], str(row["budget"]), tokens, str(row["batch"])]


def _failed(row: Row, head: list[str]) -> list[str]:
    return [row["method"], str(row["budget"]), "", str(row["batch"]), row["failed"], *("" for _ in head[5:])]


def _times(ratio: float) -> str:
    return f"{ratio:.2f}x"


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _interval(found: Row) -> str:
    low, high = found["interval"]
    return f"{low:.2f}-{high:.2f}"
