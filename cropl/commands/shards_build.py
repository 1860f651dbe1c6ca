"""cropl shards build -c RECIPE [-c OVERLAY ...] [--key value ...]

Reads published annotation files and images, and writes them as WebDataset shards with grid labels. A build that was
interrupted is continued by the same command. Rows that cannot be used are counted by reason and listed in
rejected.jsonl; too many are an error (max_bad).

  cropl shards build -c data/viscot_benchmark --vars.name gqa --vars.root ~/visual-cot
  cropl shards build -c data/crop_mix --out /data/crop_mix --workers 16 --resize 1024
  cropl shards build -c data/viscot_metadata --placeholder       # painted pictures instead of images: a dry run

`cropl ls data/` lists the recipes, `cropl show data/crop_mix` says where its files come from, `cropl check
data/crop_mix` what of them is missing.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cropl import recipe
from cropl.commands.arguments import check_writable
from cropl.commands.printing import table_console
from cropl.errors import UsageError

if TYPE_CHECKING:
    from cropl.data.manifest import Manifest


def run(args: Sequence[str]) -> int:
    """The command; returns its exit code."""
    if not args or "-h" in args or "--help" in args:
        print(__doc__)
        if args:
            print(_keys())
        return 0 if args else 2
    recipes, overrides = recipe.parse_flags(args)
    if not recipes:
        raise UsageError("no recipe given: cropl shards build -c data/viscot_benchmark (`cropl ls data/` lists them)")

    for name in recipes:
        recipe.expect("sources", name)

    from cropl.data.recipe import DataRecipe

    given = DataRecipe.from_config(recipe.load(recipes, overrides))
    out = Path(given.out)
    sources = given.open()
    missing = given.missing(sources)
    if missing:
        text = recipe.label(recipes)
        raise UsageError(f"{'; '.join(missing)} (`cropl show {text}` says where the files come from)")
    check_writable(out)

    from cropl.data.build import build
    from cropl.data.selection import select
    from cropl.evaluation.progress import Stages

    with Stages() as stages:
        stages.stage("reading annotations")
        selection = select(
            sources, given.start_of_keys, given.caps, given.shuffle, given.seed, lambda n: stages.advance("", n)
        )
        homeless = [c for c in selection.candidates if c.annotation.image is not None and c.images is None]
        if homeless and not given.placeholder:
            raise UsageError(
                f"{len(homeless):,} rows have images and the recipe names no folder: give `images` to their reader, or "
                "--placeholder to paint pictures instead"
            )
        stages.stage("writing samples", len(selection.candidates))
        manifest = build(
            out,
            given.start_of_keys,
            selection,
            given.labelling,
            given.samples_per_shard,
            given.max_bad,
            given.processes,
            {"recipe": recipe.label(recipes)},
            lambda n: stages.advance("", n),
        )
    show(out, given.groups, manifest)
    return 0


def _keys() -> str:
    """The keys of a data recipe, from its docstring."""
    from cropl.data.recipe import DataRecipe

    text = inspect.getdoc(DataRecipe) or ""
    return "Keys of a data recipe; --KEY VALUE sets one:\n" + text.partition("Attributes:")[2].rstrip()


def show(out: Path, groups: dict[str, Any], manifest: Manifest) -> None:
    """Print what was read, chosen and written, by source and by the recipe's groups."""
    from rich.table import Table

    from cropl.data.build import REJECTED, REPORT

    report = json.loads((out / REPORT).read_text(encoding="utf-8"))
    console = table_console()
    columns = ("read", "chosen", "written")
    table = Table("source", *(_right(name) for name in columns))
    for name, counts in report["sources"].items():
        table.add_row(name, *(f"{counts[key]:,}" for key in columns))
    if len(report["sources"]) > 1:
        totals = [sum(counts[key] for counts in report["sources"].values()) for key in columns]
        table.add_section()
        table.add_row("total", *(f"{total:,}" for total in totals))
    console.print(table)
    if groups:
        console.print(_groups(groups, report["sources"]))
    for what, counted in (("rejected", report["rejected"]), ("repaired", report["repaired"])):
        for reason, count in counted.items():
            console.print(f"{what}: {count:,} x {reason}", highlight=False)
    if report["rejected"]:
        console.print(f"every rejected row: {out / REJECTED}", highlight=False, soft_wrap=True)
    size = sum(shard.bytes for shard in manifest.shards)
    console.print(
        f"{out}: {len(manifest):,} samples in {len(manifest.shards):,} shards, {size / 1e6:,.1f} MB; "
        f"`cropl shards inspect {out}` draws them",
        highlight=False,
        soft_wrap=True,
    )


def _groups(groups: dict[str, Any], sources: dict[str, dict[str, int]]) -> Any:
    from rich.table import Table

    table = Table("group", _right("written"), _right("published"), "sources")
    for name, group in groups.items():
        written = sum(sources.get(source, {"written": 0})["written"] for source in group["sources"])
        published = f"{group['published']:,}" if group.get("published") else ""
        table.add_row(name, f"{written:,}", published, ", ".join(group["sources"]))
    return table


def _right(name: str) -> Any:
    from rich.table import Column

    return Column(name, justify="right")
