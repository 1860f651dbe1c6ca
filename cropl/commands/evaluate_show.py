"""What `cropl evaluate` prints of a study."""

from __future__ import annotations

from pathlib import Path

from cropl.commands.printing import table_console
from cropl.evaluation import tables
from cropl.evaluation.outcome import Outcome


def show(outcome: Outcome, path: Path) -> None:
    """Print the tables and where the report is."""
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
