"""The report and its parts: self-contained, escaped, and honest about what is shown."""

from __future__ import annotations

import io
import random
import re
import xml.etree.ElementTree as ET

import pytest
from PIL import Image

from cropl.evaluation import gallery, report, tables
from cropl.evaluation.files import write_atomically, write_json
from cropl.evaluation.names import name
from cropl.evaluation.overlay import draw_overlay, kept_outline, kept_runs, svg_overlay
from cropl.evaluation.plot import Series, accuracy_plot
from cropl.grid import Region, TokenGrid

GRID = TokenGrid.padded_square(24, 120, 90)
EVIL = '<script>alert("x")</script>'


def row(method="ilp", source="predicted", budget=64, accuracy=0.8, **changes):
    layers = {"dense": None, "prune": 0}.get(method, 1)
    made = {
        "arm": f"{method}-{source}-{budget}", "method": method, "region_source": source, "control": None,
        "layer": layers, "num_layers": 6, "budget": budget, "budget_meaning": "post_prune", "model": "m",
        "benchmark": EVIL, "n": 10, "seed": 0, "seeds": None, "infeasible": None, "accuracy": accuracy,
        "accuracy_ci95": [accuracy - 0.1, accuracy + 0.1], "rel_acc": 95.0, "tokens_kept_mean": budget or 576,
        "tokens_kept_min": 3, "tokens_kept_max": 90, "layer_average_tokens": 149.3, "prefill_flops": 1e9,
        "kv_bytes": 1e6, "seconds": 1.0, "recipe": "r", "hardware": "h", "dtype": "float32", "attention": "sdpa",
        "accuracy_by_kind": {"text": {"accuracy": accuracy, "ci95": [0.1, 0.9], "n": 10}},
    }  # fmt: skip
    return {**made, **changes}


def prediction(key, pruned, dense, kind="text", image=None):
    arm = {"prediction": EVIL, "correct": pruned, "region": [0, 0, 3, 3], "tokens_kept": 64}
    kept = gallery.pack([index % 9 == 0 for index in range(576)])
    return {
        "key": key, "image_key": image or key, "kind": kind, "question": EVIL, "answers": [EVIL],
        "region": [1, 1, 2, 2], "predicted_region": [0, 0, 3, 3], "grid": vars(GRID),
        "arms": {"ilp-predicted-64": {**arm, "kept": kept}, "dense-none-None": {"prediction": "b", "correct": dense}},
    }  # fmt: skip


RESULTS = {
    "rows": [row("dense", "none", None, 0.9), row(), row(budget=128), row("random", "none", 64, 0.4, seeds=[0, 1])],
    "localizer": {"mean_recall": 0.9, "recall_gt_0.5": 1.0, "recall_gt_0.7": 0.9, "recall_gt_0.9": 0.8, "n": 10},
    "comparisons": [{"a": "x", "b": EVIL, "budget": 64, "difference": 0.2, "ci95": [0.1, 0.3]}],
}


def test_report_is_self_contained_and_escaped(tmp_path):
    lines = [prediction("a", True, True), prediction("b", False, True)]
    path = report.write(RESULTS, lines, lambda p: Image.new("RGB", (120, 90), "red"), tmp_path / "report.html")
    page = path.read_text()
    assert EVIL not in page and "&lt;script&gt;" in page
    links = re.findall(r'(?:src|href)="(?!data:)([^"]*)"', page)
    assert not links and "url(" not in page
    assert page.count("data:image/jpeg;base64,") == 2 and "Right with every token, wrong after pruning" in page


def test_report_without_gallery_or_dense():
    page = report.render({"rows": [row()]}, [], None)
    assert "What was kept" not in page and "80.0" in page


def test_gallery_takes_each_image_once_and_spreads_kinds():
    lines = [prediction(f"k{i}", True, True, kind="text" if i < 6 else "count", image=f"i{i // 2}") for i in range(8)]
    chosen = gallery.choose(lines, "ilp-predicted-64", "dense-none-None", per_group=3)
    assert [p["key"] for p in chosen["agree"]] == ["k0", "k6", "k2"]
    groups = {group: gallery.group_of(prediction("x", p, d), "ilp-predicted-64", "dense-none-None")
              for group, p, d in (("rescued", 1, 0), ("lost", 0, 1), ("both wrong", 0, 0))}  # fmt: skip
    assert all(name == found for name, found in groups.items())


def test_a_gallery_shows_what_was_judged_by_most_of_the_credit():
    lines = [prediction(f"k{i}", True, True) for i in range(4)]
    lines[0]["arms"]["ilp-predicted-64"] |= {"credit": 0.3}  # an exact match of a dissenter's answer
    lines[1]["arms"]["ilp-predicted-64"] |= {"credit": None, "correct": None}
    lines[2]["grid"] = None  # a question without a picture
    del lines[3]["arms"]["dense-none-None"]
    chosen = gallery.choose(lines, "ilp-predicted-64", "dense-none-None")
    assert {group: [p["key"] for p in found] for group, found in chosen.items() if found} == {"lost": ["k0"]}


def test_scores_of_a_benchmarks_own_take_the_place_of_accuracies():
    own = {"scorer": "mme", "score_source": "local", "score_ci95": [1800.0, 1900.0]}
    rows = [row("dense", "none", None, 0.9, score=1850.25, **own), row(score=None, scorer="mme", accuracy_by_kind=None)]
    page = report.render({"rows": rows}, [], None)
    assert "1850.2" in page and "1800.0..1900.0" in page and "score / dense score" in page
    assert "Scores in the benchmark" in page and "Scores in the benchmark" not in report.render(RESULTS, [], None)


def test_the_row_of_the_gallery():
    rows = [row("dense", "none", None), row("ilp", "gt", 32), row(), row(budget=128), row(budget=None)]
    assert report.gallery_row(rows)["arm"] == "ilp-predicted-64"
    assert report.gallery_row(rows[:2])["region_source"] == "gt"
    assert report.gallery_row(rows[:1]) is None


@pytest.mark.parametrize("count", [1, 3, 4, 64, 575, 576])
def test_masks_survive_packing(count):
    keep = [random.Random(count).random() < 0.3 for _ in range(count)]
    assert gallery.unpack(gallery.pack(keep), count) == keep


def test_runs_cover_exactly_what_is_kept():
    rng = random.Random(0)
    keep = [rng.random() < 0.4 for _ in range(GRID.num_tokens)]
    covered = [False] * GRID.num_tokens
    for first_row, first_col, rows, cols in kept_runs(keep, GRID):
        for r in range(first_row, first_row + rows):
            for c in range(first_col, first_col + cols):
                assert not covered[r * GRID.cols + c]
                covered[r * GRID.cols + c] = True
    assert covered == keep
    square = [3 <= i // 24 < 7 and 2 <= i % 24 < 9 for i in range(576)]
    assert kept_runs(square, GRID) == [(3, 2, 4, 7)]
    assert len(kept_outline(square, GRID)) == 2 * (4 + 7)
    cross = [(i // 24 in (9, 10)) or (i % 24 in (3, 4)) for i in range(576)]
    assert kept_runs(cross, GRID) == [(0, 3, 9, 2), (9, 0, 2, 24), (11, 3, 13, 2)]


def test_overlays():
    image = Image.new("RGB", (120, 90), "red")
    keep = [i // 24 == 12 for i in range(576)]
    picture = draw_overlay(image, GRID, keep, Region(1, 1, 3, 3), Region.full())
    assert picture.size == (640, 480) and image.getpixel((60, 45)) == (255, 0, 0)
    middle, faded = picture.getpixel((330, 250)), picture.getpixel((330, 40))
    assert faded[1] > middle[1]  # what was dropped is paler
    assert ET.fromstring(svg_overlay(image, GRID, keep, Region(1, 1, 3, 3), None)).tag.endswith("svg")
    assert ET.fromstring(svg_overlay(image, GRID, None, None, None)).tag.endswith("svg")


def test_plot_is_valid_and_empty_without_points():
    svg = accuracy_plot([Series(EVIL, [(64, 0.5, 0.4, 0.6)]), Series("b", [(64, 0, 0, 0)])], (576, 1, 1, 1))
    assert ET.fromstring(svg).tag.endswith("svg") and EVIL not in svg
    assert accuracy_plot([]) == "" and accuracy_plot([Series("flat", [(64, 0.5, 0.5, 0.5)])])


def test_numbers():
    assert tables.amount(1.5e12, "FLOP") == "1.5 TFLOP" and tables.amount(999, "B") == "999 B"
    assert tables.percent(None) == "-" and tables.percent(0.8731) == "87.3"
    assert tables.interval([0.1, 0.2]) == "10.0..20.0" and tables.interval([-0.1, 0.2], sign=True) == "-10.0..+20.0"
    assert [tables.excludes_zero(pair) for pair in ([0.01, 0.2], [-0.2, -0.1], [-0.01, 0.2], None)] == [1, 1, 0, 0]
    assert name(row("ilp", "gt", layer=6)) == "ILP, K = L, true regions"
    assert tables.budget(row(budget=0.222)) == "22.2 %"


def test_names_tell_apart_what_differs_in_the_study():
    rows = [row("dense", "none", None), row("prune", positions="compact"), row(positions="original"),
            row("random", "none", positions="original")]  # fmt: skip
    assert [name(r, rows) for r in rows[1:]] == [
        "prune, predicted regions", "ILP, predicted regions", "random tokens"
    ]  # fmt: skip
    rows += [row(layer=2, positions="original"), row(layer=6, positions="compact", arm="full")]
    assert [name(r, rows) for r in rows[1:]] == [
        "prune, predicted regions",
        "ILP, K = 1, predicted regions, original positions",
        "random tokens",
        "ILP, K = 2, predicted regions, original positions",
        "ILP, K = L, predicted regions, compact positions",
    ]
    assert "K = 2" in report.plot(rows) and "K = L" not in report.plot(rows)
    assert "ILP, K = 2" in tables.results_html(rows) and "ILP, K = 2" in tables.kinds_html(rows)


def test_names_tell_arguments_apart():
    one = {"class_path": "cropl.pruning.ilp.ILP", "init_args": {"layer": 1}}
    late = {"class_path": "cropl.pruning.fastv.FastV", "init_args": {"layer": 3, "tokens": 32}}
    later = {**late, "init_args": {"layer": 4, "tokens": 32}}
    rows = [
        row("hybrid", options={"outside": 0.1, "by": "norm"}),
        row("hybrid", options={"outside": 0.25, "by": "norm"}, positions="original"),
        row("hybrid", options={"by": "norm"}, positions="compact"),
        row("schedule", layer=None, options={"methods": [one, late]}),
        row("schedule", layer=None, options={"methods": [one, later]}),
        row("plc", model="a/plc", model_name="plc", options={"compressor": "a/plc"}),
        row("plc", model="b/plc", model_name="b/plc", options={"compressor": "b/plc"}),
        row("sparsevlm+", "none", options={"recycle": 0.0}),
        row("sparsevlm+", "none", options={"recycle": 0.0, "first": 2}),
    ]
    assert [name(one, rows) for one in rows] == [
        "hybrid, predicted regions, outside 0.1",
        "hybrid, predicted regions, outside 0.25, original positions",
        "hybrid, predicted regions, compact positions",
        "schedule, predicted regions, methods ILP(layer=1)+FastV(layer=3,tokens=32)",
        "schedule, predicted regions, methods ILP(layer=1)+FastV(layer=4,tokens=32)",
        "PLC (plc), predicted regions",
        "PLC (b/plc), predicted regions",
        "SparseVLM+",
        "SparseVLM+, first 2",
    ]
    assert name(rows[0]) == "hybrid, predicted regions"
    assert report.plot(rows).count("hybrid, ") == 3


def test_every_table_with_relacc_says_what_it_is():
    from rich.console import Console

    console = Console(width=200, file=io.StringIO())
    console.print(tables.results_table(RESULTS["rows"], "t"))
    assert "mean of such ratios over benchmarks" in " ".join(console.file.getvalue().split())
    assert "<caption" in tables.results_html(RESULTS["rows"]) and "RelAcc is 100 times" in report.render(
        RESULTS, [], None
    )


def test_files_are_whole_or_absent(tmp_path):
    path = write_atomically(tmp_path / "new/a.txt", "one")
    assert path.read_text() == "one"
    with pytest.raises(TypeError):
        write_atomically(path, 3)  # type: ignore[arg-type]
    assert path.read_text() == "one" and [p.name for p in path.parent.iterdir()] == ["a.txt"]
    assert "null" in write_json(tmp_path / "b.json", {"x": float("nan")}).read_text()


def test_the_note_on_controls_counts_the_seeds_of_the_rows():
    tokens, regions = row("random", "none", 64, seeds=[0, 1, 2]), row("ilp", "random", seeds=[0, 1, 2])
    full = row("ilp", "random", seeds=[0], layer=6)
    assert report._controls_note([row()]) == ""
    assert report._controls_note([row(), tokens, regions]) == "Random controls are means over 3 seeds."
    assert report._controls_note([full]) == "Random controls are runs of one seed."
    assert report._controls_note([tokens, regions, full]) == (
        "Random controls are means over 3 seeds (ILP, K = L, random regions: 1 seed)."
    )
    assert report._controls_note([row("random", "none", 64, seeds=[0], infeasible="why"), row()]) == ""
