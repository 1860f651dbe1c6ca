"""From answers to result rows: accuracy with its uncertainty, tokens, cost and circumstances.

A row holds everything that is needed to judge its number and to repeat it. Every accuracy is the mean over questions of
a score in 0..1. A random control is run with several seeds and a question's score is its mean over them, so that
intervals resample questions, never seeds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np

from cropl.benchmarks.base import Counts
from cropl.evaluation.answers import Answers
from cropl.evaluation.arm_run import Run, default_of
from cropl.evaluation.arms import METHODS, Arm
from cropl.evaluation.costs import Costs
from cropl.evaluation.names import name
from cropl.evaluation.official import UNSCORED, Official, spread
from cropl.evaluation.study import Study
from cropl.metrics.answer import exact_match
from cropl.metrics.bootstrap import bootstrap_ci, paired_bootstrap_ci, resampled
from cropl.metrics.relative import relative_accuracy

if TYPE_CHECKING:
    from cropl.data.sample import Sample

Scores = dict[str, np.ndarray]
"""For every key of an arm or a run, one score per question (float, N)."""

Texts = Mapping[str, Sequence[str]]
"""For every run key, one answer per question."""

RIVALS = (("ilp", "gt"), ("ilp", "center"), ("ilp", "random"), ("random", "none"), ("prune", "predicted"))
"""What ILP with predicted regions is compared with at each budget: (method, region source). So are all from outside."""


def score_exactly(samples: Sequence[Sample], texts: Texts) -> Scores:
    """Whether every answer is right, 0 or 1, by the key of its run."""
    return {
        key: np.array([float(exact_match(text, sample.answers)) for text, sample in zip(said, samples, strict=True)])
        for key, said in texts.items()
    }


def score_arms(runs: Sequence[Run], credits: Scores) -> Scores:
    """Means over the seeds of each arm; infeasible arms, and those that nobody here can score, have none."""
    collected: dict[str, list[np.ndarray]] = {}
    for run in runs:
        if run.key in credits:
            collected.setdefault(run.arm.key, []).append(credits[run.key])
    return {key: np.mean(parts, axis=0) for key, parts in collected.items()}


def build_rows(
    study: Study,
    samples: Sequence[Sample],
    runs: Sequence[Run],
    answers: Answers,
    scores: Scores,
    official: Official | None,
    counts: Mapping[str, Counts],
    costs: Mapping[str, Costs],
    shared: Mapping[str, Any],
) -> list[dict[str, Any]]:
    """One row per arm, in the order of the study.

    Args:
        study: what was asked for.
        samples: the questions, those without an image too.
        runs: of all arms.
        answers: to the questions that have an image.
        scores: of `score_arms`; none where only a server knows the answers.
        official: the benchmark's own rules; None for exact match.
        counts: what the answers of every run come to by those rules, by its key.
        costs: for every run key.
        shared: circumstances, recipe, and what else all rows carry.
    """
    kinds = [sample.kind for sample in samples]
    rows = []
    for arm in study.arms:
        mine = [run for run in runs if run.arm == arm]
        row: dict[str, Any] = _identity(study, arm, mine[0], len(samples))
        row |= {**dict.fromkeys(_MEASURED), **UNSCORED}
        if mine[0].infeasible is not None:
            row |= {"infeasible": mine[0].infeasible, "score_source": None}
        else:
            row |= _measured(mine, answers, costs)
            if scores:
                row |= _accuracy(scores[arm.key], scores["dense"], kinds, study)
                if official is None:
                    row |= _in_percent(row, scores[arm.key], scores["dense"], study)
                else:
                    seeds = [counts[run.key] for run in mine]
                    row |= official.scores(seeds, counts["dense"], study.seed, study.bootstrap)
        rows.append(row | dict(shared))
    return rows


_MEASURED = (
    "accuracy", "accuracy_ci95", "accuracy_by_kind", "vs_dense", "tokens_kept_mean", "tokens_kept_min",
    "tokens_kept_max", "visual_tokens_mean", "layer_average_tokens", "budget_factor", "budget_residual",
    "prefill_flops", "prefill_flops_with_vision", "prefill_flops_with_localizer", "kv_bytes", "seconds",
)  # fmt: skip


def _identity(study: Study, arm: Arm, run: Run, n: int) -> dict[str, Any]:
    row = {
        "arm": arm.key,
        "method": arm.method,
        "region_source": arm.region_source,
        "control": arm.control,
        "layer": run.layer,
        "budget": arm.budget,
        "budget_meaning": arm.budget_meaning,
        "positions": arm.positions or default_of(arm, "positions"),
        "options": dict(arm.options),
        "model": arm.model or study.model,
        "model_name": arm.model_name,
        "family": study.family,
        "benchmark": study.benchmark,
        "scorer": study.scorer,
        "limit": study.limit,
        "n": n,
        "seed": study.seed,
        "seeds": list(arm.seeds) or None,
        "infeasible": None,
    }
    if arm.budget is not None and not run.meets_budget:
        row["budget_scope"] = "set-calibrated"
    return row


def _accuracy(score: np.ndarray, dense: np.ndarray, kinds: Sequence[str], study: Study) -> dict[str, Any]:
    n, seed = study.bootstrap, study.seed
    by_kind = {}
    for kind in sorted(set(kinds)):
        part = score[[i for i, other in enumerate(kinds) if other == kind]]
        by_kind[kind] = {"accuracy": float(part.mean()), "ci95": list(bootstrap_ci(part, n, seed)), "n": len(part)}
    return {
        "accuracy": float(score.mean()),
        "accuracy_ci95": list(bootstrap_ci(score, n, seed)),
        "accuracy_by_kind": by_kind,
        "vs_dense": {
            "difference": float((score - dense).mean()),
            "ci95": list(paired_bootstrap_ci(score, dense, n, seed)),
        },
    }


def _in_percent(row: Mapping[str, Any], ours: np.ndarray, dense: np.ndarray, study: Study) -> dict[str, Any]:
    """The official fields where exact match is the score: the accuracies, in percent."""
    reference = float(dense.mean())
    drawn = [resampled(values, study.bootstrap, study.seed) for values in (ours, dense)]
    score, ci95, difference = (_percent(row[name]) for name in ("accuracy", "accuracy_ci95", "vs_dense"))
    return {
        "primary": "accuracy",
        "score": score,
        "score_ci95": ci95,
        "scores": {"accuracy": score},
        "scores_ci95": {"accuracy": ci95},
        "score_vs_dense": difference,
        "rel_acc": relative_accuracy({"": row["accuracy"]}, {"": reference}) if reference else None,
        "rel_acc_sd": spread(*drawn) if reference else None,
        "score_source": "exact match",
    }


def _percent(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _percent(one) for name, one in value.items()}
    return [_percent(one) for one in value] if isinstance(value, list) else 100 * value


def _measured(runs: Sequence[Run], answers: Answers, costs: Mapping[str, Costs]) -> dict[str, Any]:
    visual = np.asarray([layers for run in runs for layers in answers.visual[run.key]], dtype=float)
    kept = visual[:, -1]  # as the last layer saw them: at K = L nothing is dropped, whatever the budget
    mine = [costs[run.key] for run in runs]
    return {
        "tokens_kept_mean": float(kept.mean()),
        "tokens_kept_min": int(kept.min()),
        "tokens_kept_max": int(kept.max()),
        "visual_tokens_mean": mine[0].visual_tokens,
        "layer_average_tokens": float(visual.mean()),
        "budget_factor": _mean([run.factor for run in runs]),
        "budget_residual": _mean([run.residual for run in runs]),
        "prefill_flops": float(np.mean([cost.prefill_flops for cost in mine])),
        "prefill_flops_with_vision": _mean([cost.with_vision for cost in mine]),
        "prefill_flops_with_localizer": _mean([cost.with_localizer for cost in mine]),
        "kv_bytes": float(np.mean([cost.kv_bytes for cost in mine])),
        "positions": answers.positions.get(runs[0].key),
        "seconds": float(np.mean([answers.seconds[run.key] for run in runs])),
    }


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def compare(study: Study, rows: Sequence[Mapping[str, Any]], scores: Scores) -> list[dict[str, Any]]:
    """ILP with predicted regions against its `RIVALS`, at every budget, and PLC models of the same regions."""
    scored = [row for row in rows if row["arm"] in scores]
    pairs = [
        (a, b)
        for a in scored
        if (a["method"], a["region_source"]) == ("ilp", "predicted") and _prunes(a)
        for b in sorted(scored, key=_place)
        if _are_rivals(a, b)
    ]
    compressed = [row for row in scored if row["method"] == "plc"]
    pairs += [(a, b) for a, b in combinations(compressed, 2) if a["region_source"] == b["region_source"]]
    comparisons = []
    for a, b in pairs:
        difference = scores[a["arm"]] - scores[b["arm"]]
        interval = paired_bootstrap_ci(scores[a["arm"]], scores[b["arm"]], study.bootstrap, study.seed)
        comparisons.append({
            "a": name(a, rows), "b": name(b, rows), "arm_a": a["arm"], "arm_b": b["arm"],
            "budget": a["budget"], "difference": float(difference.mean()), "ci95": list(interval),
            "n": len(difference),
        })  # fmt: skip
    return comparisons


def _prunes(row: Mapping[str, Any]) -> bool:
    """Inside the language model, and before its end."""
    return row["layer"] is not None and bool(row["layer"] < row["num_layers"])


def _place(row: Mapping[str, Any]) -> int:
    """Among the `RIVALS`, which methods from outside the package follow."""
    rival = (row["method"], row["region_source"])
    return RIVALS.index(rival) if rival in RIVALS else len(RIVALS)


def _are_rivals(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    if any(a[knob] != b[knob] for knob in ("budget", "budget_meaning")):
        return False
    if b["method"] not in METHODS:
        return True  # where it prunes is its own affair
    if _place(b) == len(RIVALS) or not _prunes(b):
        return False
    # `prune` has one layer and one way to number positions; it is the same rival for every ILP.
    return b["method"] == "prune" or all(a[knob] == b[knob] for knob in ("layer", "positions"))
