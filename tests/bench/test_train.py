"""Training steps: every path computes the same, figures belong together, and slips are one clear line."""

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import LlavaForConditionalGeneration, Qwen2VLForConditionalGeneration

from cropl import cli
from cropl.bench import train
from cropl.bench.device import BF16_TFLOPS, PeakMemory, peak_flops
from cropl.bench.train import PATHS, Step, measure, speed
from cropl.bench.train_inputs import SIZES, TASKS, Lengths, _flops, llava_7b, qwen2_vl_2b
from cropl.data.packing import IGNORE
from cropl.grid import Region

CPU = torch.device("cpu")


@pytest.fixture(scope="module", autouse=True)
def small() -> Iterator[None]:
    """The testbed's models with one layer each, and samples of which one is as long as two of the others together."""
    llava, qwen, _ = SIZES["testbed"]

    def shallow(make: Any, depth: str) -> Any:
        config = make()
        config.text_config.num_hidden_layers = 1
        config.text_config.layer_types = ["full_attention"]
        setattr(config.vision_config, depth, 1)
        config.vision_config.image_size = 96
        return config

    models = [partial(shallow, llava, "num_hidden_layers"), partial(shallow, qwen, "depth")]
    uneven = Lengths(before=3, question=(8, 10), short=(2, 3), long=(90, 95))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SIZES, "testbed", (*models, uneven))
        yield


@pytest.fixture(scope="module", params=list(TASKS))
def step(request: pytest.FixtureRequest) -> Step:
    return Step(TASKS[request.param]("testbed", 4, CPU, torch.float64))


def test_every_path_has_the_same_loss_and_the_same_gradients(step: Step, monkeypatch: pytest.MonkeyPatch) -> None:
    trained = step.task.trained()
    found: list[list[torch.Tensor]] = []
    monkeypatch.setattr(step.optimizer, "step", lambda: found.append([p.grad.clone() for p in trained]))
    losses = {name: step(path) for name, path in PATHS.items()}
    for name, loss, gradients in zip(losses, losses.values(), found, strict=True):
        assert loss == pytest.approx(losses["naive"], rel=1e-6), name  # its logits are float32
        for mine, theirs in zip(gradients, found[-1], strict=True):
            torch.testing.assert_close(mine, theirs, atol=1e-6 * float(theirs.abs().max()), rtol=1e-4)
    assert all(grad.abs().sum() > 0 for grad in found[0])
    mine = set(map(id, trained))
    assert {id(p) for p in step.task.vlm.projector.parameters()} <= mine
    assert not any(p.requires_grad for p in step.task.vlm.tower.parameters() if id(p) not in mine)


def test_paths_do_what_their_names_say(step: Step) -> None:
    task = step.task
    made: list[tuple[str, tuple[int, ...]]] = []
    hooks = [
        task.vlm.model.get_output_embeddings().register_forward_hook(
            lambda _, __, out: made.append(("logits", out.shape))
        ),
        task.vlm.decoder.register_forward_hook(lambda _, __, out: made.append(("rows", out.last_hidden_state.shape))),
    ]
    seen: dict[str, dict[str, tuple[int, ...]]] = {}
    reached: dict[str, list[int]] = {}
    grads: list[int] = []
    block = next(p for p in task.vlm.tower.modules() if isinstance(p, nn.LayerNorm))
    hooks.append(block.register_full_backward_hook(lambda *_: grads.append(1)))
    for name, path in PATHS.items():
        made.clear()
        step(path)
        seen[name] = dict(made)
        reached[name] = grads.copy()
        grads.clear()
    for hook in hooks:
        hook.remove()
    for name, path in PATHS.items():
        assert ("logits" in seen[name]) == (not path.chunked) and bool(reached[name]) == (not path.frozen)
        assert seen[name]["rows"][0] == (len(step.order[True]) if path.packed else len(task.documents))
        assert step.padding(path) == pytest.approx(
            1 - task.tokens / (seen[name]["rows"][0] * seen[name]["rows"][1]), abs=1e-5
        )


def test_lengths_are_those_of_training(step: Step) -> None:
    task = step.task
    compressed = task.compressor is not None
    visual = [len(tokens) for tokens in task.visual_tokens()]
    assert visual == [document.prefix.count(task.vlm.image_token_id) for document in task.documents]
    assert set(visual) == {68} if compressed else len(set(visual)) > 1
    labels = [label for document in task.documents for label in document.turns[0].labels]
    assert task.supervised == sum(label != IGNORE for label in labels) > 0
    assert task.vlm.image_token_id not in labels


def test_flops_grow_with_what_is_trained(step: Step) -> None:
    task = step.task
    documents, patches = task.documents, task.patches
    once, twice = _flops(task.vlm, documents, patches), _flops(task.vlm, documents * 2, patches * 2)
    assert twice == pytest.approx(2 * once)
    text, tower = _flops(task.vlm, documents, []), _flops(task.vlm, [], patches)
    assert text + tower == pytest.approx(once) and text > 0 and tower > 0
    weights = sum(p.numel() for name, p in task.vlm.decoder.named_parameters() if p.ndim == 2 and "embed" not in name)
    assert 6 * weights * task.tokens < text < 8 * weights * task.tokens  # and attention, and the head
    assert task.flops == once if task.compressor is None else once < task.flops < 1.2 * once


def test_figures_are_what_their_names_say() -> None:
    row = speed([2.0, 1.0, 4.0], naive=5.0, tokens=100, flops=3e12, peak=1e13)
    assert row["seconds"] == 2 and row["spread"] == [1, 4] and row["rounds_seconds"] == [2, 1, 4]
    assert row["tokens_per_s"] == 50 and row["speedup"] == 2.5 and row["mfu"] == pytest.approx(0.15)
    assert speed([2.0], 2.0, 1, 1.0, None)["mfu"] is None


def test_paths_that_compute_something_else_are_not_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = train.packed_losses

    def wrong(*args: Any) -> Any:
        losses, correct = honest(*args)
        return losses * 1.01, correct

    monkeypatch.setattr(train, "packed_losses", wrong)
    with pytest.raises(ValueError, match="cropl, a row per sample, tower in the graph: another loss"):
        measure("plc", "testbed", 2, 1, CPU, torch.float32)


@pytest.mark.parametrize(
    ("make", "kind", "parameters"),
    [(llava_7b, LlavaForConditionalGeneration, 7.06e9), (qwen2_vl_2b, Qwen2VLForConditionalGeneration, 2.21e9)],
)
def test_published_sizes_are_those_of_the_checkpoints(make: Any, kind: Any, parameters: float) -> None:
    with torch.device("meta"):
        model = kind._from_config(make(), dtype=torch.bfloat16)
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(parameters, rel=2e-3)
    assert model.dtype == torch.bfloat16


@pytest.mark.parametrize("name", list(TASKS))
def test_published_steps_are_built(name: str) -> None:
    """On the meta device: no memory is needed for that."""
    task = TASKS[name]("published", 6, torch.device("meta"), torch.bfloat16)
    visual = [document.prefix.count(task.vlm.image_token_id) for document in task.documents]
    if name == "plc":
        assert visual == [68] * 6 and all(pixels.shape == (3, 336, 336) for pixels in task.pixels)
        assert all(isinstance(region, Region) for region in task.regions) and task.patches == [(24, 24)] * 6
    else:
        assert visual == [rows * columns // 4 for rows, columns in task.patches]
        assert [pixels.shape for pixels in task.pixels] == [(4 * count, 3 * 2 * 14 * 14) for count in visual]
        assert all(190 < count <= 256 for count in visual) and len(set(visual)) > 1
    assert task.tokens > sum(visual) + 6 * 50 and 1e13 < task.flops < 3e14
    assert all(p.device.type == "meta" and p.dtype == torch.bfloat16 for p in task.trained())


def test_peaks_are_of_dense_matrices(monkeypatch: pytest.MonkeyPatch) -> None:
    names = {
        "NVIDIA H200": 989e12, "NVIDIA H100 80GB HBM3": 989e12, "NVIDIA H100 PCIe": 756e12, "NVIDIA L4": 121e12,
        "NVIDIA A100-SXM4-80GB": 312e12, "NVIDIA L40S": 362e12, "NVIDIA A10G": 70e12, "NVIDIA GeForce RTX 4090": 165e12,
        "NVIDIA GH200 480GB": 989e12, "NVIDIA RTX A4000": None, "Some Other Card": None,
    }  # fmt: skip
    for name, peak in names.items():
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device, name=name: name)
        assert peak_flops(torch.device("cuda"), torch.bfloat16) == peak, name
        assert peak_flops(torch.device("cuda"), torch.float32) is None
    assert peak_flops(CPU, torch.bfloat16) is None and max(BF16_TFLOPS.values()) < 3000


def test_memory_on_a_cpu_is_that_of_living_tensors() -> None:
    before = torch.zeros(100_000)
    with PeakMemory(CPU) as needed:
        one = before + 1
        two = one * 2
        del one
        three = two.exp()
        three.view(10, -1)[0].add_(1)
        before.mul_(2)
    assert needed.bytes == 2 * 4 * 100_000
    linear = nn.Linear(500, 400, bias=False)
    with PeakMemory(CPU) as needed:
        linear(torch.ones(1000, 500)).exp().sum().backward()
    assert needed.bytes == 4 * (1000 * 500 + 2 * 1000 * 400 + 2)  # what goes in, two activations, two scalars
    with PeakMemory(CPU) as needed:
        for _ in range(5):
            torch.zeros(1000)
    assert needed.bytes == 4000


def test_the_command_measures_and_writes_everything(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "new" / "train.json"
    args = ["bench", "train", "--batch", "2", "--rounds", "1", "--vocabulary", "3000", "--peak-tflops", "1"]
    assert cli.main([*args, "--out", str(out)]) == 0
    shown, made = capsys.readouterr().out, json.loads(out.read_text())
    assert {"hardware", "seconds", "dtype", "memory", "versions", "commit", "rows"} <= set(made)
    assert [(row["task"], row["path"]) for row in made["rows"]] == [(task, path) for task in TASKS for path in PATHS]
    for row in made["rows"]:
        assert row["seconds"] > 0 and row["tokens_per_s"] == pytest.approx(row["tokens"] / row["seconds"])
        assert row["mfu"] == pytest.approx(row["flops"] / row["seconds"] / 1e12) and row["step_bytes"] > 1e6
    for name in TASKS:
        rows = {row["path"]: row for row in made["rows"] if row["task"] == name}
        assert rows["naive"]["speedup"] == 1 and f"{name}: {rows['cropl']['speedup']:.2f} times" in shown
        for path in ("all logits", "tower in the graph", "naive"):  # deterministic, unlike times
            assert rows[path]["step_bytes"] > rows["cropl"]["step_bytes"] + 1e5
        assert all(path in shown for path in PATHS)


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["--siz", "testbed"], "did you mean 'size'"),
        (["--size", "publishd"], "did you mean 'published'"),
        (["--tasks", "[plc,localiser]"], "did you mean 'localizer'"),
        (["--tasks", "[]"], "tasks is empty"),
        (["--dtype", "int8"], "unknown dtype 'int8'"),
        (["--batch", "0"], "batch must be at least 1"),
        (["--rounds", "many"], "rounds must be an integer"),
        (["--vocabulary", "2"], "vocabulary 2: must be at least"),
        (["--peak-tflops", "-1"], "peak_tflops must be a positive number"),
        (["--out", "{tmp}"], "give a file"),
    ],
)
def test_a_slip_is_one_clear_line(
    args: list[str], expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [arg.format(tmp=tmp_path) for arg in args]
    assert cli.main(["bench", "train", "--batch", "2", "--rounds", "1", *given]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("cropl: error: ") and expected in lines[0], lines


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_gpu_that_is_not_there_is_one_clear_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench", "train", "--device", "cuda"]) == 2
    assert "torch finds no GPU here" in capsys.readouterr().err


def test_help_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench", "train", "--help"]) == 0 == cli.main(["bench", "--help"])
    shown = capsys.readouterr().out
    assert "cropl bench train" in shown and "MFU" in shown
