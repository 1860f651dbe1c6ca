"""cropl evaluate -c RECIPE [-c OVERLAY ...] [--key value ...]

Runs a study: one model, one set of questions, a list of methods, region sources and budgets. Writes results.json,
predictions.jsonl and report.html into --out (default runs/<recipe name>/) and prints the table.

  cropl evaluate -c testbed/study
  cropl evaluate -c testbed/study --vars.budgets "[64]" --limit 200 --out runs/small
  cropl evaluate -c my_study.yaml --model ./llava-1.5-7b-hf --device cuda
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cropl import recipe
from cropl.commands.arguments import check_writable
from cropl.commands.printing import table_console
from cropl.errors import UsageError

if TYPE_CHECKING:
    from cropl.data.sample import Sample
    from cropl.evaluation.run import Outcome
    from cropl.evaluation.study import Study


def run(args: Sequence[str]) -> int:
    """The command; returns its exit code."""
    if not args or "-h" in args or "--help" in args:
        print(__doc__)
        return 0 if args else 2
    recipes, overrides = recipe.parse_flags(args)
    if not recipes:
        raise UsageError("no recipe given: cropl evaluate -c testbed/study")
    evaluate(recipes, overrides)
    return 0


def evaluate(recipes: Sequence[str], overrides: dict[str, Any] | None = None, quiet: bool = False) -> Outcome:
    """Load, run and save a study, and print its tables.

    Args:
        recipes: names or paths, merged from left to right.
        overrides: dotted keys and values, merged last.
        quiet: print nothing but progress.
    """
    from cropl.evaluation.study import Study

    for name in recipes:
        recipe.expect("arms", name)
    config = recipe.load(recipes, overrides)
    study = Study.from_config(config)
    label = recipe.label(recipes)
    out = Path(study.out or f"runs/{label.removesuffix('.yaml').replace('+', '-')}")
    check_writable(out)
    for arm in study.arms:
        recipe.load_object(arm.class_path)
    samples = load_samples(study)

    from cropl.commands.models import open_localizer, open_vlm
    from cropl.evaluation.progress import Stages
    from cropl.evaluation.run import run_study, save

    vlm = open_vlm(study.model, study.device, study.dtype, study.attention, study.protocol)
    localizer = open_localizer(study.localizer, study.device, study.dtype) if study.localizer else None
    grounding = open_vlm(study.grounding, study.device, study.dtype) if study.grounding else None
    names = dict.fromkeys(arm.model for arm in study.arms if arm.model)
    models = {name: open_vlm(name, study.device, study.dtype, study.attention, study.protocol) for name in names}
    with Stages() as stages:
        outcome = run_study(study, samples, vlm, localizer, grounding, label, stages, models)
        path = save(outcome, samples, out, study.gallery)
    if not quiet:
        show(outcome, path)
    return outcome


def load_samples(study: Study) -> list[Sample]:
    """The questions, from the recipe's `data`: a class or function that gives `Sample`s, a sequence or an iterable."""
    samples = recipe.instantiate(study.data, "data")
    if hasattr(samples, "__len__") and hasattr(samples, "__getitem__"):
        return [samples[index] for index in range(min(len(samples), study.limit or len(samples)))]
    return list(islice(samples, study.limit))


def show(outcome: Outcome, path: Path) -> None:
    """Print the tables and where the report is."""
    from cropl.evaluation import tables

    console = table_console(160)
    rows = outcome.results["rows"]
    found = outcome.results["localizer"]
    console.print()
    console.print(tables.results_table(rows, f"{rows[0]['model']} on {rows[0]['benchmark']}, n = {rows[0]['n']}"))
    comparisons = outcome.results["comparisons"]
    if comparisons:
        console.print()
        console.print(tables.comparisons_table(comparisons, "Paired differences, points of accuracy"))
    if found:
        shares = ", ".join(f"> {t}: {100 * found[f'recall_gt_{t}']:.1f} %" for t in ("0.5", "0.7", "0.9"))
        region = f"regions of {100 * outcome.results['localizer_details']['region_share']:.0f} % of the image"
        console.print(
            f"\nlocalizer: mean area recall {found['mean_recall']:.3f} ({shares}; n = {found['n']}), {region}"
        )
    console.print(f"report: {path}", soft_wrap=True, highlight=False)
