"""Suites as `cropl evaluate` writes them, without any model: what reports are tested with."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from cropl.evaluation.gallery import pack
from cropl.grid import Region, TokenGrid
from cropl.metrics.relative import relative_accuracy

DENSE = {"gqa": 61.0, "mme": 1850.0, "textvqa": 57.5, "scienceqa": 69.0, "vqav2": 78.0, "pope": 85.5}
SIX = tuple(DENSE)
FIVE = ("gqa", "mme", "textvqa", "scienceqa", "pope")


def arm(method: str, budget: float | None = None, **changes: Any) -> dict[str, Any]:
    """What identifies an arm."""
    source = "predicted" if method in ("ilp", "prune", "plc") else "none"
    made = {
        "method": method, "region_source": source, "layer": {"ilp": 2, "fastv": 2, "prune": 0}.get(method),
        "num_layers": 32, "budget": budget, "budget_meaning": "post_prune", "positions": None, "options": {},
        "model": "llava-hf/llava-1.5-7b-hf", "model_name": None, "control": None, "infeasible": None, "seeds": None,
    } | changes  # fmt: skip
    parts = (method, made["model_name"], made["control"], made["region_source"], made["layer"], budget)
    return {"arm": "-".join(str(part) for part in parts if part not in (None, "none")), **made}


def suite(
    arms: Sequence[Mapping[str, Any]],
    benchmarks: Sequence[str] = SIX,
    paper: str | None = "LLaVA-1.5-7B",
    tables: Sequence[str] | None = None,
    unscored: Sequence[str] = ("vqav2",),
    total: int = 576,
) -> dict[str, Any]:
    """The results of a suite: scores fall with fewer tokens, and with the layer before which they are dropped."""
    rows = [_row(one, benchmark, benchmark not in unscored, total) for benchmark in benchmarks for one in arms]
    lines = []
    for one in arms:
        mine = [row for row in rows if row["arm"] == one["arm"]]
        if one["infeasible"]:
            lines.append({**one, **dict.fromkeys(("scores", "scores_ci95", "rel_acc", "rel_acc_ci95", "tokens_kept",
                          "rel_acc_over", "tokens_kept_mean", "layer_average_tokens", "prefill_flops", "kv_bytes",
                          "seconds", "prefill_flops_with_localizer"))})  # fmt: skip
            continue
        scores = {row["benchmark"]: row["score"] for row in mine}
        known = [one for one in benchmarks if one not in unscored]
        relative = relative_accuracy(scores, {b: DENSE.get(b, 80.0) for b in known}) if known else None
        first = mine[0]
        lines.append({
            **one, "scores": scores, "scores_ci95": {row["benchmark"]: row["score_ci95"] for row in mine},
            "rel_acc": relative, "rel_acc_over": known,
            "rel_acc_ci95": [relative - 1, relative + 1] if relative else None,
            "tokens_kept": {row["benchmark"]: row["tokens_kept_mean"] for row in mine},
            **{key: first[key] for key in ("tokens_kept_mean", "layer_average_tokens", "prefill_flops", "kv_bytes",
                                           "prefill_flops_with_localizer")},
            "seconds": {row["benchmark"]: row["seconds"] for row in mine},
        })  # fmt: skip
    recall = {"mean_recall": 0.91, "recall_gt_0.5": 0.95, "recall_gt_0.7": 0.9, "recall_gt_0.9": 0.8, "n": 200}
    pair = {"a": "ILP", "b": "prune", "budget": 64, "difference": 0.05, "ci95": [0.01, 0.09], "benchmark": "gqa"}
    return {
        "kind": "suite", "benchmarks": list(benchmarks), "paper": paper, "tables": tables and list(tables),
        "recipe": "evaluate/llava_1_5_7b/table2", "rows": rows, "suite": lines, "comparisons": [pair],
        "localizer": {b: recall if b in ("textvqa", "gqa") else None for b in benchmarks},
    }  # fmt: skip


def _row(one: Mapping[str, Any], benchmark: str, local: bool, total: int) -> dict[str, Any]:
    shared = {
        **one, "benchmark": benchmark, "n": 100, "seed": 0, "recipe": "r", "scorer": benchmark, "primary": "score",
        "score_source": "local" if local else "server", "hardware": "h", "dtype": "bfloat16", "attention": "sdpa",
        "versions": {"torch": "2.13.0"}, "commit": "c0ffee",
    }  # fmt: skip
    measured = ("score", "score_ci95", "accuracy", "accuracy_ci95", "rel_acc", "tokens_kept_mean",
                "layer_average_tokens", "prefill_flops", "kv_bytes", "seconds",
                "prefill_flops_with_localizer")  # fmt: skip
    if one["infeasible"]:
        return {**shared, **dict.fromkeys(measured), "accuracy_by_kind": None}
    full = one["method"] == "dense" or one["layer"] == one["num_layers"]
    budget = one["budget"]
    share = 1.0 if full else 68 / total if budget is None else budget if isinstance(budget, float) else budget / total
    ratio = 0.4 if one["control"] else 1 - (1 - share) * (0.06 - 0.001 * (one["layer"] or 0))
    ratio -= {"gt": -0.01, "center": 0.1, "random": 0.15}.get(one["region_source"], 0.0)
    score = DENSE.get(benchmark, 80.0) * (1.0 if full and not one["control"] else ratio)
    return {
        **shared, "score": score if local else None, "score_ci95": [0.98 * score, 1.02 * score] if local else None,
        "accuracy": 0.8 * ratio if local else None, "accuracy_ci95": [0.6 * ratio, 0.9 * ratio] if local else None,
        "accuracy_by_kind": {}, "rel_acc": 100 * ratio if local else None, "tokens_kept_mean": share * total,
        "layer_average_tokens": share * total + 30, "prefill_flops": 1e12 * share, "kv_bytes": 1e8 * share,
        "prefill_flops_with_localizer": 1.1e12 * share, "seconds": 3000 * share + 100,
    }  # fmt: skip


def table2() -> dict[str, Any]:
    """Everything at once: all methods, two PLCs, seeds, controls, another model's arm, an infeasible budget."""
    arms = [arm("dense"), arm("dense", control="blank_image")]
    for budget in (192, 128, 64):
        arms += [arm(method, budget) for method in ("fastv", "sparsevlm", "visionzip", "ilp", "prune")]
        arms.append(arm("visionzip", budget, model="runs/visionzip", model_name="visionzip_tuned"))
        arms.append(arm("pyramiddrop", budget, infeasible="takes more" if budget == 64 else None))
        arms.append(arm("random", budget, layer=2, seeds=[0, 1, 2]))
    arms += [arm("ilp", 64, layer=layer) for layer in (1, 5, 10, 20, 32)]
    arms += [arm("ilp", 64, region_source=source) for source in ("gt", "center")]
    arms.append(arm("ilp", 64, region_source="random", seeds=[0, 1, 2]))
    arms += [arm("plc", model=f"runs/{name}/export", model_name=name) for name in ("plc_7b", "plc_7b_no_anchor")]
    return suite(arms)


def stored(folder: Path, results: Mapping[str, Any], pictures: bool = True) -> Path:
    """Write a suite's folder, with answers of a few questions per benchmark, and some pictures."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(json.dumps(results))
    Image.radial_gradient("L").resize((120, 90)).convert("RGB").save(folder / "photo.png")
    for place, benchmark in enumerate(results["benchmarks"]):
        lines = [_prediction(folder, results, benchmark, index + place, pictures) for index in range(12)]
        (folder / benchmark).mkdir(exist_ok=True)
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (folder / benchmark / "predictions.jsonl").write_text(text)
    return folder


def _prediction(folder: Path, results: Mapping[str, Any], benchmark: str, index: int, pictures: bool) -> Any:
    grid = TokenGrid.padded_square(24, 120, 90)
    truth, predicted = Region(1, 1, 4, 4), Region(index % 3, 0, 4, 2 + index % 4)
    keep = [reach <= 1 for reach in grid.reach(predicted)]
    arms = {}
    for place, row in enumerate(results["suite"]):
        if row["infeasible"]:
            continue
        for seed in row["seeds"] or [None]:
            right = (index + place) % 3 != 0
            arms[row["arm"] if seed is None else f"{row['arm']}#{seed}"] = {
                "prediction": f"<b>{row['method']}</b>", "correct": right, "credit": 0.9 if right else 0.3,
                "region": list(predicted.as_tuple()), "tokens_kept": sum(keep), "kept": pack(keep),
            }  # fmt: skip
    image = {0: None, 1: str(folder / "absent.png")}.get(index % 4, str(folder / "photo.png")) if pictures else None
    return {
        "key": f"{benchmark}-{index}", "image_key": str(index), "kind": "", "question": f"What is <{index}>?",
        "answers": ["a"], "region": list(truth.as_tuple()) if benchmark in ("textvqa", "gqa") else None,
        "predicted_region": list(predicted.as_tuple()), "grid": vars(grid), "image": image, "arms": arms,
    }  # fmt: skip
