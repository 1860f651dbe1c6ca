"""cropl shards inspect DIR [DIR ...]: count what is in shards, and draw their regions and some of their samples."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cropl.commands.arguments import Parser, check_writable
from cropl.commands.printing import table_console
from cropl.errors import UsageError

if TYPE_CHECKING:
    from PIL import Image
    from rich.table import Table

    from cropl.data.sample import Sample
    from cropl.data.shards import ShardReader
    from cropl.data.statistics import Counts, SourceCounts

MAX_TILES, MAX_SOURCES, BIN = 200, 8, 4


def run(args: Sequence[str]) -> int:
    """The command; returns its exit code."""
    parser = Parser("shards inspect", __doc__, "Regions are counted over samples with evidence boxes.")
    parser.add_argument("folders", nargs="+", metavar="DIR", help="folder with shards and their manifest.json")
    parser.add_argument("-o", "--out", type=Path, help="folder for the pictures (default: DIR-inspect, beside DIR)")
    parser.add_argument("--count", type=int, default=12, help="samples to draw (default: 12)")
    parser.add_argument("--seed", type=int, default=0, help="which samples (default: 0)")
    batch = "of a training: how much of it would be padding (default: %(default)s)"
    parser.add_argument("--global-batch", type=int, default=128, help=f"samples of a step {batch}")
    parser.add_argument("--micro-batch", type=int, default=8, help=f"samples of a forward pass {batch}")
    given = parser.read(args)
    if given is None:
        return 0
    if not 1 <= given.count <= MAX_TILES:
        raise UsageError(f"--count {given.count}: must be 1 to {MAX_TILES}")
    if given.out is None and "://" in given.folders[0]:
        raise UsageError("--out is needed: shards at an address have no folder beside them")
    from cropl.data.padding import padding
    from cropl.data.shards import ShardReader
    from cropl.data.statistics import count_samples
    from cropl.drawing import BOX, TRUE, contact_sheet
    from cropl.evaluation.progress import Stages

    reader = ShardReader(given.folders)
    first = Path(given.folders[0]).resolve()
    out = given.out or first.with_name(f"{first.name}-inspect")
    check_writable(out)
    with Stages() as stages:
        counts = count_samples(given.folders, stages)
    table_console().print(table(counts))
    if counts.sizes:
        smallest, median, largest = (counts.sizes[i] for i in (0, len(counts.sizes) // 2, -1))
        sizes = [f"{width}x{height}" for width, height in (median, smallest, largest)]
        print("images: {} (median), {} (smallest), {} (largest)".format(*sizes))
    print(f"shards: {counts.shards:,}, {counts.bytes / 1e6:,.1f} MB")
    shares = padding(reader, given.global_batch, given.micro_batch)
    print(
        f"padding: {_percent(shares.packed)} in forward passes of {given.micro_batch} of a global batch of "
        f"{given.global_batch} ({_percent(shares.dealt)} if no sample shared a row, {_percent(shares.random)} if they "
        "came in random order); estimated"
    )
    draw_histogram(counts, out / "regions.png")
    tiles = [tile(reader[index]) for index in choose(reader, given.count, given.seed)]
    contact_sheet(tiles, {"region": TRUE, "evidence boxes": BOX}).save(out / "samples.png")
    print(f"drawn:  {out / 'regions.png'}, {out / 'samples.png'}")
    return 0


def table(counts: Counts) -> Table:
    """Counts per source, and of all together."""
    from rich.table import Table
    from rich.text import Text

    made = Table(title="samples by source", title_justify="left")
    made.add_column("source", overflow="fold")
    for heading in ("samples", "with image", "with boxes", "mean region", "mean chars"):
        made.add_column(heading, justify="right")

    def row(name: str, one: SourceCounts) -> list[Text]:
        region = "-" if one.mean_region is None else _percent(one.mean_region)
        shares = (_percent(one.images / one.samples), _percent(one.boxed / one.samples))
        cells = (_plain(name), f"{one.samples:,}", *shares, region, f"{one.characters / one.samples:,.0f}")
        return [Text(cell) for cell in cells]

    for name, one in counts.sources.items():
        made.add_row(*row(name, one))
    if len(counts.sources) > 1:
        made.add_section()
        made.add_row(*row("all", counts.total))
    return made


def draw_histogram(counts: Counts, path: Path) -> None:
    """Region sizes as stacked bars, the largest sources by name and the rest as one."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from cropl.data.statistics import SourceCounts
    from cropl.evaluation.plot import COLORS
    from cropl.grid import GRID

    blocks = GRID * GRID
    boxed = [(_plain(name), one) for name, one in counts.sources.items() if one.boxed]
    boxed.sort(key=lambda item: -item[1].boxed)
    shown, rest = boxed[:MAX_SOURCES], boxed[MAX_SOURCES:]
    if rest:
        shown.append((f"{len(rest)} other", sum((one for _, one in rest), SourceCounts())))
    figure = Figure(figsize=(9, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    lefts, total = list(range(0, blocks, BIN)), counts.total
    bottoms = [0.0] * len(lefts)
    for (name, one), colour in zip(shown, (*COLORS, "#9aa0ac")):
        # A bar from 4 to 8 counts regions of 5 to 8 blocks.
        shares = [100 * sum(one.blocks[left + 1 : left + BIN + 1]) / total.boxed for left in lefts]
        label = f"{name}: {one.boxed:,}, {_percent(one.mean_region or 0)}"
        axes.bar(lefts, shares, BIN * 0.92, bottoms, align="edge", color=colour, label=f" {label}")
        bottoms = [bottom + share for bottom, share in zip(bottoms, shares)]
    axes.set_title(f"Size of the evidence region, {total.boxed:,} samples with boxes")
    axes.set_xlabel(f"region in blocks of the {GRID}x{GRID} grid ({blocks}: the whole image)")
    axes.set_ylabel("samples, %")
    axes.set_xlim(0, blocks)
    axes.set_xticks(range(0, blocks + 1, GRID))
    axes.spines[["top", "right"]].set_visible(False)
    if shown:
        legend = axes.legend(frameon=False, fontsize=9, title="source: samples, mean region", alignment="left")
        for text in legend.get_texts():
            text.set_parse_math(False)  # a "$" in a source's name is a "$"
    else:
        axes.text(blocks / 2, 0.5, "no sample has evidence boxes", ha="center", va="center")
        axes.set_ylim(0, 1)
        axes.set_yticks([])
    figure.savefig(path, dpi=120)


def choose(reader: ShardReader, count: int, seed: int) -> list[int]:
    """Random samples, from each source in turn, so that a small source is seen as well."""
    rng = random.Random(seed)
    queues = [(reader.source_N == number).nonzero()[0].tolist() for number in range(len(reader.sources))]
    queues = [rng.sample(queue, min(count, len(queue))) for queue in queues]
    turns = [(turn, number) for number, queue in enumerate(queues) for turn in range(len(queue))]
    chosen = sorted(turns)[:count]
    return [queues[number][turn] for turn, number in sorted(chosen, key=lambda one: (one[1], one[0]))]


def tile(sample: Sample) -> Image.Image:
    """The sample's image, region and boxes, with its question and answers beneath."""
    from cropl.drawing import TRUE, draw_regions

    image = None if sample.image is None else sample.picture()
    answers = " | ".join(dict.fromkeys(sample.answers)) or "no answer is published"
    more = f" (and {len(sample.followups)} more)" if sample.followups else ""
    caption = [sample.question, f"{answers}{more}", f"{sample.source}, {sample.key}"]
    return draw_regions(image, caption, [] if image is None else [(sample.region, TRUE)], sample.boxes)


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _plain(name: str) -> str:
    """A source's name for a terminal or a legend: no control characters, not endless."""
    return "".join(letter if letter.isprintable() else "?" for letter in name[:40]) or "(no name)"
