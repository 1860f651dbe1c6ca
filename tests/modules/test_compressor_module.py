"""Training PLC: what trains, whose region compresses which picture, and that generation answers what was trained."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from cropl.cli import main
from cropl.data.collate import SampleCollate
from cropl.data.sample import Sample
from cropl.grid import Region
from cropl.models.llava import LlavaVLM
from cropl.models.packed import places
from cropl.models.vlm import load_vlm
from cropl.modules.compressor import CompressorModule
from cropl.pruning import PLC, pruned
from tests.modules.gradients import mixed


def sample(key: str, box: tuple[int, int, int, int] | None = None, **options) -> Sample:
    boxes = () if box is None else (box,)
    region = Region.full() if box is None else Region.from_boxes(boxes, 64, 48)
    image = Image.effect_noise((64, 48), 60).convert("RGB")
    return Sample(
        key=key, question=f"What is {key}?", answers=("red",), region=region, boxes=boxes, width=64, height=48,
        image=image,
        kind="", source="made", split="train", **options,
    )  # fmt: skip


def batch_of(module: CompressorModule, samples: list[Sample]) -> dict:
    return SampleCollate(module.vlm.prepare)(samples)


@pytest.fixture(scope="module")
def module(tiny_llava) -> CompressorModule:
    torch.manual_seed(0)
    return CompressorModule(str(tiny_llava))


def test_each_question_is_a_document_of_68_consecutive_tokens(module) -> None:
    batch = batch_of(module, mixed())
    rows, logits, targets = module(batch)
    ids_BS = rows.packed.input_ids_BS
    pictures = sum(image is not None for image in batch["images"])
    assert int(module.vlm.visual_mask(ids_BS).sum()) == 68 * pictures == sum(map(len, rows.features))
    visual = module.vlm.visual_mask(ids_BS)[0].nonzero().flatten()[:68]
    positions = rows.packed.position_ids_RBS[0, 0, visual]
    assert torch.equal(positions, torch.arange(int(positions[0]), int(positions[0]) + 68))
    assert len(logits) == len(targets) > 0


def test_what_could_not_answer_or_would_do_nothing_is_refused(tiny_llava, monkeypatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(LlavaVLM, "prunable", False)
        with pytest.raises(ValueError, match="llava model, which cannot answer over compressed tokens"):
            CompressorModule(str(tiny_llava))
    for option in ({"stride": 2}, {"evidence_weight": 1.0}):
        with pytest.raises(ValueError, match=f"{next(iter(option))}.*on a grid"):
            CompressorModule(str(tiny_llava), **option)


def test_a_batch_trains_what_its_samples_train_alone(tiny_llava) -> None:
    torch.manual_seed(0)
    module = CompressorModule(str(tiny_llava))
    module.eval()
    samples = [sample("a", (4, 4, 30, 30)), sample("b"), sample("c", (0, 0, 5, 40)), *mixed()[4:6]]
    with torch.no_grad():
        rows, logits, _ = module(batch_of(module, samples))
        order = [row["key"] for asked in rows.asked for row in asked]
        alone = [module(batch_of(module, [one]))[1] for key in order for one in samples if one.key == key]
    torch.testing.assert_close(logits, torch.cat(alone), atol=2e-4, rtol=1e-3)


def test_queries_projector_and_decoder_train_and_the_tower_never(module) -> None:
    batch = batch_of(module, [sample("a", (4, 4, 30, 30)), sample("b")])
    module.train()
    module.zero_grad()
    module._start_window()
    module.log = module.log_dict = lambda *args, **kwargs: None
    module.training_step(batch, 0).backward()
    moved = {name for name, p in module.named_parameters() if p.grad is not None and bool(p.grad.abs().sum() > 0)}
    tower = {name for name, _ in module.named_parameters() if "vision_tower" in name}
    trained = {name for name, p in module.named_parameters() if p.requires_grad}
    assert tower and not tower & (moved | trained)
    for part in ("compressor.inner.content", "compressor.outer.encoding", "multi_modal_projector", "layers.0.mlp"):
        assert any(part in name for name in moved), part


def test_texts_alone_keep_the_compressor_in_step(module) -> None:
    module.train()
    module.zero_grad()
    module.log = module.log_dict = lambda *args, **kwargs: None
    texts = [one for one in mixed() if one.image is None]
    module.training_step(batch_of(module, texts), 0).backward()
    for name, parameter in module.named_parameters():
        assert not parameter.requires_grad or parameter.grad is not None, name


@pytest.mark.parametrize(
    ("source", "expected"), [("gt", (0, 0, 3, 4)), ("whole", (0, 0, 7, 7)), ("predicted", (1, 1, 2, 2))]
)
def test_regions_come_from_where_they_are_asked(tiny_llava, source, expected) -> None:
    module = CompressorModule(str(tiny_llava), regions=source)
    row = {"key": "a", "region": [0, 0, 3, 4], "localize": True, "predicted": [1, 1, 2, 2]}
    assert module.region(row).as_tuple() == expected
    assert module.region({**row, "localize": False}) == Region.full()
    if source == "predicted":
        del row["predicted"]
        with pytest.raises(ValueError, match=r"sample 'a' has no predicted region.*cropl predict"):
            module.region(row)


def test_predicted_regions_are_asked_for_before_the_first_step(tiny_llava, monkeypatch) -> None:
    module = CompressorModule(str(tiny_llava), regions="predicted")
    monkeypatch.setattr(module, "_trainer", SimpleNamespace(datamodule=SimpleNamespace(regions=None)))
    with pytest.raises(ValueError, match="model.regions predicted: give data.regions"):
        module.setup("fit")
    module.trainer.datamodule.regions = "regions.jsonl"
    module.setup("fit")


def test_coordinates_may_be_the_target(tiny_llava) -> None:
    module = CompressorModule(str(tiny_llava), target="coordinates")
    row = {"question": "What is it?", "answer": "red", "region": [0, 1, 3, 4], "localize": True}
    turn = module.as_turn(row, True)
    said = module.tokenizer.decode([token for token in turn.labels if token != -100])
    assert said.replace(" .", ".").startswith("0 1 3 4.")
    assert "red" in module.tokenizer.decode(module.as_turn({**row, "localize": False}, True).ids)


@pytest.mark.parametrize(("family", "anchors"), [("llava", True), ("llava", False), ("localizer", False)])
def test_the_export_answers_with_the_tokens_that_were_trained(request, tmp_path, family, anchors) -> None:
    torch.manual_seed(1)
    few = {} if family == "llava" else {"queries": 20}  # a Qwen2-VL, whose pictures have fewer tokens
    checkpoint = str(request.getfixturevalue(f"tiny_{family}"))
    module = CompressorModule(checkpoint, anchors=anchors, unit=3.0, **few)
    module.eval()
    module.export(tmp_path)
    vlm, plc = load_vlm(str(tmp_path)), PLC.from_pretrained(tmp_path)
    samples = [sample("a", (4, 4, 30, 30)), sample("b")]
    batch = batch_of(module, samples)
    with torch.no_grad():
        rows, logits, _ = module(batch)
    inputs = vlm.inputs([one.picture() for one in samples], [one.question for one in samples])
    with torch.no_grad(), pruned(vlm, plc, regions=[one.region for one in samples], grids=inputs.grids):
        last_BW = vlm.model(**inputs.kwargs(), logits_to_keep=1).logits[:, -1]
    places_T = list(zip(*(part.tolist() for part in places(rows.packed))))
    first = [places_T.index(place) for place in dict.fromkeys(places_T)]
    torch.testing.assert_close(logits[first], last_BW, atol=2e-4, rtol=1e-3)
    again = CompressorModule(str(tmp_path), compressor=str(tmp_path))
    assert again.compressor.config == module.compressor.config


def test_a_picture_with_too_few_tokens_is_named(tiny_localizer) -> None:
    module = CompressorModule(str(tiny_localizer), queries=60, anchors=False)
    small, large = sample("small", (4, 4, 30, 30)), sample("large")
    large.image = large.image.resize((256, 256))
    large.width = large.height = 256
    batch = batch_of(module, [large, small])
    counts = [tokens.num_tokens for tokens in batch["tokens"]]
    assert counts[0] == 64 > counts[1]
    with pytest.raises(
        ValueError, match=f"sample 'small': PLC makes 64 tokens of the {counts[1]} .*leave small pictures"
    ):
        module(batch)
    module(batch_of(module, [large]))
    module(batch_of(module, mixed()[4:6]))  # the picture that stands for none may be small


def test_options_that_do_not_fit_are_named(tiny_llava, tmp_path) -> None:
    with pytest.raises(ValueError, match="regions 'none'"):
        CompressorModule(str(tiny_llava), regions="none")
    with pytest.raises(ValueError, match="tune 'half'"):
        CompressorModule(str(tiny_llava), tune="half")
    with pytest.raises(ValueError, match="lora: unknown key 'rnak'"):
        CompressorModule(str(tiny_llava), tune="lora", lora={"rnak": 4})
    with pytest.raises(ValueError, match="no effect with tune 'full'"):
        CompressorModule(str(tiny_llava), lora={"rank": 4})
    with pytest.raises(ValueError, match="no exported PLC"):
        CompressorModule(str(tiny_llava), compressor=str(tmp_path))


@pytest.mark.parametrize(("tune", "decoder"), [("full", True), ("projector", False)])
def test_what_is_tuned(tiny_llava, tune, decoder) -> None:
    module = CompressorModule(str(tiny_llava), tune=tune)
    trained = {name for name, p in module.named_parameters() if p.requires_grad}
    assert any("language_model" in name for name in trained) == decoder
    assert any("compressor" in name for name in trained) and any("projector" in name for name in trained)


def test_a_recipe_trains_exports_and_is_evaluated(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    flags = {
        "model.checkpoint": "untrained:llava", "data.checkpoint": "untrained:llava", "data.scenes": 8,
        "data.val_scenes": 2, "data.batch_size": 4, "trainer.max_steps": 2, "trainer.val_check_interval": 2,
        "trainer.log_every_n_steps": 1,
    }  # fmt: skip
    given = [part for name, value in flags.items() for part in (f"--{name}", str(value))]
    assert main(["fit", "-c", "testbed/plc", *given]) == 0
    folder = "runs/testbed/plc/export"
    study = ["--vars.plc", folder, "--vars.no_anchor", folder, "--localizer", "testbed:localizer", "--limit", "3"]
    arms = '[{"method": "plc", "model": "runs/testbed/plc/export", "region_source": ["gt", "center"]}]'
    assert main(["evaluate", "-c", "testbed/plc_study", *study, "--arms", arms, "--out", "out"]) == 0
    rows = json.loads((tmp_path / "out" / "results.json").read_text())["rows"]
    assert [row["method"] for row in rows] == ["dense", "plc", "plc"]
    assert rows[1]["tokens_kept_mean"] == rows[1]["layer_average_tokens"] == 68
    assert rows[1]["model"] == folder and rows[1]["kv_bytes"] < rows[0]["kv_bytes"]
    assert rows[1]["prefill_flops_with_vision"] > rows[1]["prefill_flops"]
