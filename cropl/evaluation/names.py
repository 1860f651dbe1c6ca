"""What a person calls the run of a result row: its method, and whatever tells it from the others of the study."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cropl.evaluation.arms import PRESETS, short

Row = Mapping[str, Any]

SOURCES = {
    "gt": "true regions",
    "predicted": "predicted regions",
    "center": "centre regions",
    "random": "random regions",
    "file": "regions from a file",
    "zero_shot": "zero-shot regions",
}
CONTROLS = {
    "blank_image": "dense, no image content",
    "evidence_masked": "dense, evidence masked",
    "evidence_only": "dense, evidence only",
}

METHODS = {
    "divprune": "DivPrune",
    "fastv": "FastV",
    "hybrid": "hybrid",
    "ilp": "ILP",
    "plc": "PLC",
    "pyramiddrop": "PyramidDrop",
    "random": "random tokens",
    "sparsevlm": "SparseVLM",
    "sparsevlm+": "SparseVLM+",
    "uniform": "uniform tokens",
    "vispruner": "VisPruner",
    "visionzip": "VisionZip",
}

BENCHMARKS = {
    "gqa": "GQA",
    "mme": "MME",
    "pope": "POPE",
    "scienceqa": "SQA",
    "textvqa": "TextVQA",
    "vqav2": "VQAv2",
    "vqav2_val": "VQAv2 val",
}

FIXED = ("dense", "plc", "prune")
"""Methods that leave no choice of K and positions."""


def name(row: Row | None, rows: Sequence[Row] = ()) -> str:
    """What a person calls the run of a row: "ILP, predicted regions", "random tokens", ...

    K, arguments and positions are part of it where they differ among those of the same method in `rows`, the study's.
    """
    if row is None:
        return ""
    if row.get("control"):
        return CONTROLS.get(row["control"], f"dense, {row['control']}")
    source = SOURCES.get(row["region_source"], "" if row["region_source"] == "none" else row["region_source"])
    parts = (called(row), _layer(row, rows), source, variant(row, rows))
    return ", ".join(part for part in parts if part)


def called(row: Row) -> str:
    """Its method, with its model where that is not the study's: "ILP", "PLC (no_anchor)"."""
    method = METHODS.get(row["method"], str(row["method"]))
    return f"{method} ({row['model_name']})" if row.get("model_name") else method


def benchmark_name(benchmark: str) -> str:
    """What a column of a table calls a benchmark: "SQA" for scienceqa; a name that is not the paper's as it is."""
    return BENCHMARKS.get(benchmark, benchmark)


def variant(row: Row, rows: Sequence[Row]) -> str:
    """What else tells it from the others of its method: "outside 0.2, original positions"; empty where nothing does."""
    others = [other for other in rows if other["method"] == row["method"]]
    options, mine = [_options(other) for other in others], _options(row)
    differ = [key for key in mine if any(each.get(key) != mine[key] for each in options)]
    parts = [f"{key.replace('_', ' ')} {mine[key]}" for key in differ]
    positions = {other["positions"] for other in others if other.get("positions")}
    if row["method"] not in FIXED and row.get("positions") and len(positions) > 1:
        parts.append(f"{row['positions']} positions")
    return ", ".join(parts)


def _options(row: Row) -> dict[str, str]:
    """Its further arguments as text, without those that its method's name or its model says."""
    preset, given = PRESETS.get(row["method"], {}), row.get("options") or {}
    return {
        key: short(value)
        for key, value in sorted(given.items())
        if value != row.get("model") and not (key in preset and preset[key] == value)
    }


def _layer(row: Row, rows: Sequence[Row]) -> str:
    if row["method"] in FIXED:
        return ""
    if is_full(row):
        return "K = L"
    layers = {o["layer"] for o in rows if o["method"] == row["method"] and o["layer"] is not None and not is_full(o)}
    return f"K = {row['layer']}" if len(layers) > 1 and row["layer"] is not None else ""


def is_full(row: Row) -> bool:
    """Whether every layer sees every token, K = L."""
    return row["layer"] is not None and row["layer"] == row.get("num_layers")
