"""The pruning bench: shapes as published, prices by hand, rows that say what ran, and a patch that adds nothing."""

import json
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from cropl.bench.prune import shapes as published
from cropl.bench.prune.inputs import arm, prompts
from cropl.bench.prune.methods import METHODS
from cropl.bench.prune.overhead import SHAPE, overhead, tiny
from cropl.bench.prune.plan import Plan
from cropl.bench.prune.run import Bench, measure
from cropl.bench.prune.runs import Localizing, Subject
from cropl.bench.prune.shapes import build, names, shape_of, sizes
from cropl.bench.prune.time import Clock
from cropl.metrics.cost import decoder_flops
from cropl.pruning import ILP, Dense, pruned

CPU, META = torch.device("cpu"), torch.device("meta")
PUBLISHED = published.FOLDER
LAYERS, WIDTH, INNER, VOCAB, VISUAL, TEXT = 8, 32, 48, 1100, 16, 6
LLAVA = {
    "about": "tiny LLaVA: for tests",
    "grid": [4, 4],
    "budgets": [8, 0.25],
    "text_tokens": TEXT,
    "localizer": "finder",
    "config": {
        "model_type": "llava",
        "image_token_index": VOCAB - 1,
        "tie_word_embeddings": False,
        "text_config": {
            "model_type": "llama", "hidden_size": WIDTH, "intermediate_size": INNER, "num_hidden_layers": LAYERS,
            "num_attention_heads": 2, "num_key_value_heads": 2, "vocab_size": VOCAB, "max_position_embeddings": 512,
        },
        "vision_config": {
            "model_type": "clip_vision_model", "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
            "num_attention_heads": 2, "image_size": 56, "patch_size": 14,
        },
    },
}  # fmt: skip
FINDER = {
    "about": "tiny Qwen2-VL: for tests",
    "grid": [2, 2],
    "budgets": [0.5],
    "text_tokens": 5,
    "config": {
        "model_type": "qwen2_vl", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": VOCAB, "image_token_id": VOCAB - 1,
        "video_token_id": VOCAB - 2, "vision_start_token_id": VOCAB - 3, "vision_end_token_id": VOCAB - 4,
        "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]}, "tie_word_embeddings": True,
        "vision_config": {"depth": 1, "embed_dim": 16, "num_heads": 2, "hidden_size": 32, "patch_size": 14},
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a tiny model and its localizer instead of the published ones."""
    folder = tmp_path_factory.mktemp("shapes")
    for name, shape in (("small", LLAVA), ("finder", FINDER)):
        (folder / f"{name}.json").write_text(json.dumps(shape))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(published, "FOLDER", folder)
        yield folder


@pytest.fixture(autouse=True)
def _published(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests that do not ask for the tiny shapes see the published ones, whatever ran before them."""
    if "shapes" not in request.fixturenames:
        monkeypatch.setattr(published, "FOLDER", PUBLISHED)


@pytest.mark.parametrize(
    ("name", "llm", "whole"),
    [
        # Vicuna's 6,738,415,616 and 13,015,864,320 with 64 more rows in both tables; Qwen2's as published.
        ("llava_1_5_7b", 6_738_415_616 + 2 * 64 * 4096, 7.06e9),
        ("llava_1_5_13b", 13_015_864_320 + 2 * 64 * 5120, 13.35e9),
        ("qwen2_vl_2b", 1_543_714_304, 2.21e9),
        ("qwen2_vl_7b", 7_615_616_512, 8.29e9),
    ],
)
def test_published_shapes_have_the_published_number_of_parameters(name: str, llm: int, whole: float) -> None:
    vlm = build(shape_of(name), META, torch.bfloat16)
    assert {p.device.type for p in vlm.model.parameters()} == {"meta"}
    assert {p.dtype for p in vlm.model.parameters()} == {torch.bfloat16}
    found = sizes(vlm)
    assert found["llm"] == llm and found["all"] == pytest.approx(whole, rel=2e-3)


def test_every_shape_belongs_together() -> None:
    for shape in map(shape_of, names()):
        config = shape.model_config()
        rows, columns = shape.patches(config)
        merge = 1 if config.model_type == "llava" else config.vision_config.spatial_merge_size**2
        assert shape.visual_tokens == shape.crops * rows * columns // merge, shape.name
        assert shape.localizer is None or shape.localizer in names()
    pairs = [("llava_next_7b", "llava_1_5_7b"), ("llava_next_13b", "llava_1_5_13b")]
    assert all(shape_of(a).config == shape_of(b).config for a, b in pairs)
    assert shape_of("llava_next_7b").visual_tokens == 2880
    text = shape_of("scaled").model_config().text_config
    assert (text.num_hidden_layers >= 16, text.hidden_size >= 768, shape_of("scaled").visual_tokens) == (
        True,
        True,
        576,
    )


@pytest.mark.parametrize(
    ("name", "teraflop", "ratios"),
    [
        ("llava_1_5_7b", 8.48, {192: 0.440, 128: 0.347, 64: 0.255}),
        ("llava_1_5_13b", 16.56, {192: 0.433, 128: 0.339, 64: 0.245}),
        ("llava_next_7b", 40.5, {640: 0.278, 320: 0.180, 160: 0.132}),
        ("llava_next_13b", 78.4, {640: 0.271, 320: 0.171, 160: 0.121}),
    ],
)
def test_flops_are_those_that_were_worked_out_beforehand(name: str, teraflop: float, ratios: dict[int, float]) -> None:
    shape = shape_of(name)
    text = shape.model_config().text_config
    layers, length = text.num_hidden_layers, shape.text_tokens + shape.visual_tokens
    dense = decoder_flops(text, [length] * layers)
    assert dense == pytest.approx(1e12 * teraflop, rel=2e-3)
    assert shape.budgets == tuple(ratios)
    for kept, ratio in ratios.items():
        (first,) = arm("ilp", kept, shape, layers, 1).layers
        assert first == 2
        pruned_flops = decoder_flops(text, [length] * first + [shape.text_tokens + kept] * (layers - first))
        assert pruned_flops / dense == pytest.approx(ratio, abs=1e-3)


def test_the_localizer_costs_what_was_worked_out_beforehand() -> None:
    locate = Localizing(shape_of("qwen2_vl_2b"), 1, META, torch.bfloat16)
    assert locate.pixels == 448 * 448
    assert locate.flops == pytest.approx((1.48 + 0.80) * 1e12, rel=0.01)


REGIONAL = ("ilp", "prune", "hybrid", "schedule")


@pytest.mark.parametrize("method", [name for name in METHODS if name != "plc"])
def test_a_row_says_what_was_run(method: str, shapes: Path) -> None:
    plan = Plan([method], [8], [2], [1, 3], pairs=2, answer_pairs=1)
    (row,) = measure("small", plan, CPU, torch.float32, 1)
    assert row["series"] == "methods" and row["batch"] == 2 and "failed" not in row
    flops, kept = row["flops"], row["kept"]
    length = TEXT + VISUAL
    layer = 2 * (4 * WIDTH**2 + 3 * WIDTH * INNER)
    head = 2 * WIDTH * VOCAB
    assert flops["dense"] == 2 * (LAYERS * (layer * length + 2 * WIDTH * length**2) + head)
    assert row["linear_flops"]["dense"] == 2 * (LAYERS * layer * length + head) == row["counted_linear_flops"]["dense"]
    assert row["kv_bytes"]["dense"] == 2 * LAYERS * length * 2 * WIDTH * 4
    counted = row["counted_linear_flops"]["pruned"] / row["linear_flops"]["pruned"]
    if method in ("ilp", "prune", "fastv", "uniform", "random", "divprune", "visionzip", "vispruner", "hybrid"):
        (first,) = row["layers"]
        lengths = [length] * first + [TEXT + 8] * (LAYERS - first)
        assert kept == [8, 8] and row["layer_average"] == pytest.approx(sum(lengths) / LAYERS - TEXT)
        assert flops["pruned"] == 2 * (sum(layer * n + 2 * WIDTH * n**2 for n in lengths) + head)
        assert row["kv_bytes"]["pruned"] == 2 * sum(lengths) * 2 * WIDTH * 4
    if method in ("ilp", "prune", "uniform", "random", "dense"):
        assert counted == 1
    if method in ("fastv", "pyramiddrop", "sparsevlm", "sparsevlm+", "divprune", "hybrid", "schedule"):
        assert counted > 1  # ranking is work that the rows do not need
    if method == "schedule":
        assert kept == [8, 8] and len(row["layers"]) == 2
    if method == "dense":
        assert flops["pruned"] == flops["dense"] and row["kv_bytes"]["pruned"] == row["kv_bytes"]["dense"]
    prefill, regional = row["prefill"], method in REGIONAL
    assert len(prefill["pairs"]) == 2 and min(map(min, prefill["pairs"])) > 0
    assert (row["localizer"] is not None) == regional
    vision, columns = row["vision"]["flops"], prefill["speedup"]
    assert columns["llm"]["ideal"] == flops["dense"] / flops["pruned"]
    assert columns["vision"]["ideal"] == (flops["dense"] + vision) / (flops["pruned"] + vision)
    extra = row["localizer"]["flops"] if regional else 0
    assert columns["localizer"]["ideal"] == (flops["dense"] + vision) / (flops["pruned"] + vision + extra)
    for column in columns.values():
        low, high = column["interval"]
        assert low <= column["measured"] <= high
        assert column["of_ideal"] == pytest.approx(column["measured"] / column["ideal"])
    unpatched = prefill["unpatched"]
    assert unpatched == 1 if method == "dense" else unpatched > 0
    answers = row["answers"]
    assert ("overlapped" in answers["3"]["speedup"]) == regional and row["compiled"] is False
    assert set(answers) == {"1", "3", "step"} and 0 < answers["1"]["seconds"] < answers["3"]["seconds"]
    assert min(row["peak_bytes"].values()) > 0


def test_a_ragged_batch_is_measured_against_rows_without_padding(shapes: Path) -> None:
    plan = Plan([], None, [], [], pairs=1, answer_pairs=0, ragged=[6])
    (row,) = measure("small", plan, CPU, torch.float32, 1)
    assert row["series"] == "ragged" and len(row["kept"]) == 6 and len(set(row["kept"])) > 1
    layer, head = 2 * (4 * WIDTH**2 + 3 * WIDTH * INNER), 2 * WIDTH * VOCAB
    needed = 6 * head
    for kept in row["kept"]:
        needed += sum(layer * n + 2 * WIDTH * n**2 for n in [TEXT + VISUAL] + [TEXT + kept] * (LAYERS - 1))
    assert row["flops"]["pruned"] == needed and row["prefill"]["unpatched"] is None
    assert row["counted_linear_flops"]["pruned"] >= row["linear_flops"]["pruned"]


def test_growth_keeps_what_it_says_and_series_follow_the_plan(shapes: Path) -> None:
    plan = Plan(["fastv"], None, [1], [], pairs=1, answer_pairs=0, growth=[2, 12])
    rows = measure("small", plan, CPU, torch.float32, 1)
    assert [(row["series"], row["method"], row["kept"]) for row in rows] == [
        ("methods", "fastv", [8]), ("methods", "fastv", [4]), ("growth", "ilp", [2]), ("growth", "ilp", [12]),
    ]  # fmt: skip
    assert plan.steps(shape_of("small")) == 4


def test_what_does_not_fit_is_a_row_that_says_so(shapes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Subject.pruned

    def scarce(self: Subject, one: Any, *stamp: Any) -> Any:
        if self.batch == 2 or (one is not None and one.name == "fastv"):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(self, one, *stamp)

    monkeypatch.setattr(Subject, "pruned", scarce)
    seen: list[str] = []
    bench = Bench("small", Plan(["ilp", "fastv"], [8], [1, 2], [], 1, 0), CPU, torch.float32, 1)
    rows = bench.rows(seen.append)
    assert [row.get("failed") for row in rows] == [None] + 3 * ["out of memory"] and len(seen) == 4


def test_weights_are_drawn_where_and_as_they_are_wanted(shapes: Path) -> None:
    one, two = (build(shape_of("small"), CPU, torch.bfloat16).model.state_dict() for _ in range(2))
    assert all(value.dtype == torch.bfloat16 for name, value in one.items() if value.is_floating_point())
    assert all(torch.equal(value, two[name]) for name, value in one.items())


def test_the_clock_counts_every_token(shapes: Path) -> None:
    subject = Subject(build(shape_of("small"), CPU, torch.float32), shape_of("small"), 2)
    for threads in (1, 2):
        stamps = Clock(CPU, threads).stamps(lambda stamp: subject.answer(None, 5, stamp))
        assert len(stamps) == 6 and stamps == sorted(stamps) and stamps[0] > 0
    assert Clock(CPU, 1).name != Clock(CPU, 2).name


class Operators(TorchDispatchMode):
    """Notes every operation: its name, and whether it takes or gives numbers with a fraction."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, bool]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        tensors = [one for one in tree_leaves((args, kwargs, made)) if isinstance(one, torch.Tensor)]
        self.seen.append((str(func), any(one.is_floating_point() for one in tensors)))
        return made


@pytest.mark.parametrize("method", [Dense(), ILP(4), ILP(2), ILP(0)], ids=["dense", "K=L", "K=2", "K=0"])
def test_a_patch_that_prunes_nothing_runs_the_same_operators(method: Any) -> None:
    vlm = tiny(4)
    inputs = prompts(vlm, SHAPE, 2)
    keep = [torch.ones(SHAPE.visual_tokens, dtype=torch.bool)] * 2

    @torch.inference_mode()
    def run(patched: bool) -> Iterator[list[tuple[str, bool]]]:
        with pruned(vlm, method, keep=keep) if patched else nullcontext():
            with Operators() as prefill:
                cache = vlm.model(**inputs.kwargs(), use_cache=True, logits_to_keep=1).past_key_values
            with Operators() as step:
                vlm.model(input_ids=inputs.tensors["input_ids"][:, -1:], past_key_values=cache, use_cache=True)
        yield from (prefill.seen, step.seen)

    (prefill, step), (patched, patched_step) = run(False), run(True)
    assert patched_step == step
    # A prefill looks for the visual tokens once, in ids and masks; what computes is the same, in the same order.
    assert [name for name, computes in patched if computes] == [name for name, computes in prefill if computes]
    assert len(patched) - len(prefill) <= 40


def test_overhead_has_a_row_for_every_patch() -> None:
    rows = overhead(2, layers=2)
    assert [row["case"] for row in rows] == ["dense", "ilp, whole image", "ilp, half"]
    for row in rows:
        assert row["enter_us"] > 0 and row["prefill"]["unpatched_us_per_layer"] > 0
        low, high = row["step"]["interval"]
        assert low <= row["step"]["us_per_layer"] <= high
