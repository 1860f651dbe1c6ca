"""Result rows as tables: HTML for the report, rich for the terminal. One place decides names, order and rounding."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from rich.table import Table

from cropl.evaluation.names import name

Row = Mapping[str, Any]

RELACC = (
    "RelAcc is 100 times accuracy / dense accuracy over all questions: the paper's mean of such ratios over "
    "benchmarks, of the one benchmark of this study."
)
"""What every table with such a column says of it."""

RELSCORE = RELACC.replace("accuracy / dense accuracy over all questions", "score / dense score")
"""The same where the benchmark has a score of its own."""


def percent(value: float | None, digits: int = 1) -> str:
    """0.8731 as "87.3"; "-" for None."""
    return "-" if value is None else f"{100 * value:.{digits}f}"


def interval(pair: Sequence[float] | None, sign: bool = False) -> str:
    """A 95 % interval of accuracies as "85.1..89.4"."""
    if not pair or pair[0] is None:
        return ""
    return f"{100 * pair[0]:+.1f}..{100 * pair[1]:+.1f}" if sign else f"{100 * pair[0]:.1f}..{100 * pair[1]:.1f}"


def amount(value: float | None, unit: str) -> str:
    """A count with an SI prefix: 2.51 GFLOP, 1.2 MB."""
    if value is None:
        return "-"
    for prefix, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= size:
            return f"{value / size:.3g} {prefix}{unit}"
    return f"{value:.0f} {unit}"


def excludes_zero(pair: Sequence[float] | None) -> bool:
    """Whether an interval lies wholly on one side of 0."""
    return bool(pair) and pair is not None and pair[0] is not None and (pair[0] > 0 or pair[1] < 0)


def scored(rows: Sequence[Row]) -> bool:
    """Whether the rows have scores of their benchmark's own, in its unit, beside the accuracy of each question."""
    return any(row.get("scorer") for row in rows)


def relacc_note(rows: Sequence[Row]) -> str:
    """What RelAcc is in a table of these rows."""
    return RELSCORE if scored(rows) else RELACC


def score(row: Row) -> tuple[str, str]:
    """A row's score with its interval: its benchmark's own where it has one, else the accuracy."""
    if not row.get("scorer"):
        return percent(row["accuracy"]), interval(row["accuracy_ci95"])
    own, pair = row.get("score"), row.get("score_ci95")
    return "-" if own is None else f"{own:.1f}", f"{pair[0]:.1f}..{pair[1]:.1f}" if pair else ""


def _budget(comparison: Row) -> str:
    return "" if comparison["budget"] is None else str(comparison["budget"])


def budget(row: Row) -> str:
    """The budget as it was asked for: "64", "22.2 %", with its meaning where that is the layer average."""
    value = row["budget"]
    if value is None:
        return ""
    text = f"{100 * value:.3g} %" if isinstance(value, float) else str(value)
    return f"{text} per layer" if row["budget_meaning"] == "layer_average" else text


def relative(row: Row) -> str:
    """RelAcc of a row: "98.6"; "-" where it has none."""
    return "-" if row["rel_acc"] is None else f"{row['rel_acc']:.1f}"


def _cells(row: Row) -> list[str]:
    if row.get("infeasible"):
        return ["infeasible", "", "", "", "", "", "", ""]
    kept = f"{row['tokens_kept_mean']:.1f}"
    spread = "" if row["tokens_kept_min"] == row["tokens_kept_max"] else (
        f"{row['tokens_kept_min']}..{row['tokens_kept_max']}"
    )  # fmt: skip
    return [
        *score(row),
        relative(row),
        kept,
        spread,
        f"{row['layer_average_tokens']:.0f}",
        amount(row["prefill_flops"], "FLOP"),
        amount(row["kv_bytes"], "B"),
    ]


def results_html(rows: Sequence[Row]) -> str:
    """The main table of the report."""
    heads = [
        " ",
        "K",
        "budget",
        "score" if scored(rows) else "accuracy",
        " ",
        "RelAcc",
        "kept",
        " ",
        "per layer",
        "prefill (LLM)",
        "KV cache",
        "seconds",
    ]
    body, last = [], ""
    for row in rows:
        cells = _cells(row)
        seconds = "" if row.get("seconds") is None else f"{row['seconds']:.1f}"
        values = [row["layer"] if row["layer"] is not None else "", budget(row), *cells, seconds]
        quiet = {3, 6}  # the interval and the spread belong to the number on their left
        line = "".join(
            f'<td class="n">{"<i>" if i in quiet else ""}{escape(str(value))}{"</i>" if i in quiet else ""}</td>'
            for i, value in enumerate(values)
        )
        group = f"{name(row, rows)}/{row['layer']}"
        classes = "gap " * (bool(last) and group != last) + "dense" * (row["method"] == "dense")
        body.append(f'<tr class="{classes}"><td>{escape(name(row, rows))}</td>{line}</tr>')
        last = group
    head = "".join(f"<th{' class=n' if i else ''}>{escape(text)}</th>" for i, text in enumerate(heads))
    caption = f'<caption style="caption-side: bottom; text-align: left">{escape(relacc_note(rows))}</caption>'
    return f"<table>{caption}<thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table>"


def kinds_html(rows: Sequence[Row]) -> str:
    """Accuracy per kind of question; each kind's best pruned value is not marked, the intervals overlap too much."""
    study, rows = rows, [row for row in rows if not row.get("infeasible")]
    found = [row["accuracy_by_kind"] or {} for row in rows]  # none where a server scores the answers
    kinds = sorted({kind for by_kind in found for kind in by_kind})
    counts = {kind: by_kind[kind]["n"] for by_kind in found for kind in by_kind}
    head = "".join(f"<th class=n>{escape(kind)}<br><i>n={counts[kind]}</i></th>" for kind in kinds)
    body = []
    for row, by_kind in zip(rows, found, strict=True):
        cells = ""
        for kind in kinds:
            one = by_kind.get(kind)
            tip = f' title="95 % interval {interval(one["ci95"])}"' if one else ""
            cells += f'<td class="n"{tip}>{percent(one["accuracy"]) if one else "-"}</td>'
        body.append(f'<tr><td>{escape(name(row, study))}</td><td class="n">{escape(budget(row))}</td>{cells}</tr>')
    return (
        f"<table><thead><tr><th></th><th class=n>budget</th>{head}</tr></thead><tbody>{''.join(body)}</tbody></table>"
    )


def comparisons_html(comparisons: Sequence[Mapping[str, Any]]) -> str:
    """Paired differences; empty text where there are none."""
    if not comparisons:
        return ""
    body = []
    for one in comparisons:
        color = ("good" if one["difference"] > 0 else "bad") if excludes_zero(one["ci95"]) else "soft"
        body.append(
            f"<tr><td>{escape(one['a'])}</td><td>{escape(one['b'])}</td><td class=n>{escape(_budget(one))}</td>"
            f'<td class="n {color}">{100 * one["difference"]:+.1f}</td>'
            f"<td class=n><i>{interval(one['ci95'], sign=True)}</i></td></tr>"
        )
    return (
        "<table><thead><tr><th>run</th><th>against</th><th class=n>budget</th><th class=n>difference</th>"
        f"<th class=n></th></tr></thead><tbody>{''.join(body)}</tbody></table>"
    )


def provenance_html(row: Row, results: Mapping[str, Any]) -> str:
    """What a reader needs to repeat the run, and the raw summary."""
    facts = {key: row.get(key) for key in (
        "model", "benchmark", "n", "num_layers", "hardware", "threads", "dtype", "attention", "seed", "batch_size",
        "recipe", "commit", "versions", "encode_seconds", "localizer_seconds", "localizer_resolution",
        "localizer_readout", "max_new_tokens",
    )}  # fmt: skip
    lines = []
    for key, value in facts.items():
        if value is not None:
            text = ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, Mapping) else str(value)
            lines.append(f"<tr><td>{escape(key.replace('_', ' '))}</td><td>{escape(text)}</td></tr>")
    summary = json.dumps(results.get("localizer"), indent=1)
    return f"<table>{''.join(lines)}</table><details><summary>localizer</summary><pre>{escape(summary)}</pre></details>"


def results_table(rows: Sequence[Row], title: str) -> Table:
    """The same table for the terminal."""
    table = Table(
        title=title,
        title_justify="left",
        header_style="bold",
        title_style="bold",
        caption=relacc_note(rows),
        caption_justify="left",
    )
    table.add_column("run", no_wrap=True)
    for head in (
        "K",
        "budget",
        "score" if scored(rows) else "acc %",
        "95 %",
        "RelAcc",
        "kept",
        "per layer",
        "prefill",
        "KV",
        "s",
    ):
        table.add_column(head, justify="right", no_wrap=True)
    last = None
    for row in rows:
        group = (name(row, rows), row["layer"])
        if last is not None and group != last:
            table.add_section()
        last = group
        accuracy, ci, rel, kept, _, average, flops, kv = _cells(row)
        seconds = "" if row.get("seconds") is None else f"{row['seconds']:.1f}"
        layer = "" if row["layer"] is None else str(row["layer"])
        table.add_row(name(row, rows), layer, budget(row), accuracy, ci, rel, kept, average, flops, kv, seconds)
    return table


def comparisons_table(comparisons: Sequence[Mapping[str, Any]], title: str) -> Table:
    """Paired differences for the terminal, in points of accuracy."""
    table = Table(title=title, title_justify="left", header_style="bold", title_style="bold")
    table.add_column("run", no_wrap=True)
    table.add_column("against", no_wrap=True)
    for head in ("budget", "difference", "95 %"):
        table.add_column(head, justify="right", no_wrap=True)
    for one in comparisons:
        style = ("green" if one["difference"] > 0 else "red") if excludes_zero(one["ci95"]) else "dim"
        difference = f"[{style}]{100 * one['difference']:+.1f}[/]"
        table.add_row(one["a"], one["b"], _budget(one), difference, interval(one["ci95"], sign=True))
    return table
