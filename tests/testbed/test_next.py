"""The tiny LLaVA-NeXT: made of a LLaVA's parts, tuned on the testbed's pictures."""

from __future__ import annotations

import pytest
import torch

from cropl.data.collate import cells_in
from cropl.datamodules.testbed_pictures import Scenes, TestbedPictures, collate
from cropl.metrics.answer import exact_match
from cropl.models.packed import packed_losses
from cropl.models.vlm import load_vlm
from cropl.modules.instruction import InstructionModule
from cropl.testbed import weights
from cropl.testbed.build import build_llava_next
from cropl.testbed.cache import evidence
from cropl.testbed.questions import questions
from cropl.testbed.samples import samples
from cropl.testbed.scenes import scene
from cropl.tiling import TileGrid
from tests.reference.checkpoints import tiny_llava as tiny_llava


@pytest.fixture(scope="module")
def folder(tiny_llava, tmp_path_factory) -> str:
    return str(build_llava_next(tmp_path_factory.mktemp("next"), tiny_llava))


def test_its_parts_are_those_of_the_llava(folder, tiny_llava) -> None:
    made, source = load_vlm(folder, device="cpu"), load_vlm(tiny_llava, device="cpu")
    weights = made.model.state_dict()
    newline = weights.pop("model.image_newline")
    assert weights.keys() == source.model.state_dict().keys()
    assert all(torch.equal(weights[name], value) for name, value in source.model.state_dict().items())
    stop = made.tokenizer.convert_tokens_to_ids(".")
    assert torch.equal(newline, source.model.get_input_embeddings().weight[stop])
    assert made.tile == source.image_size and made.prompt_ids("what?") == source.prompt_ids("what?")
    tokens = made.inputs([scene("val", 0).render()], ["what?"]).grids[0]
    assert len(tokens.grids) == 2 and tokens.crops <= 5


def test_evidence_lies_on_base_and_tiles_and_not_on_newlines(folder) -> None:
    vlm = load_vlm(folder, device="cpu")
    one = scene("val", 1)
    tokens = vlm.token_map(one.width, one.height)
    box = questions(one)[0].boxes[0]
    found = iter(cells_in([box], tokens).tolist())
    for grid in tokens.grids:
        newline = isinstance(grid, TileGrid) and grid.newline
        for row in range(grid.rows):
            for col in range(grid.cols):
                x = (grid.left + (col + 0.5) * grid.width / grid.cols) * one.width / grid.image_width
                y = (grid.top + (row + 0.5) * grid.height / grid.rows) * one.height / grid.image_height
                assert next(found) == (box[0] < x < box[2] and box[1] < y < box[3])
            assert not (newline and next(found))
    assert next(found, None) is None
    assert evidence(questions(one)[0], tokens).shape == (2, tokens.num_tokens)


def test_training_sees_what_inference_sees(folder) -> None:
    module = InstructionModule(folder).eval()
    scenes = [scene("val", 2), scene("val", 3)]
    batch = collate(module.collate.prepare, scenes)
    for rows in batch["questions"]:
        del rows[1:]
    with torch.no_grad():
        rows, logits_TW, _ = module(batch)
        asked = {row["question"]: place for place, row in enumerate(row for one in rows.asked for row in one)}
        answers = [len(module.as_turn(row, True).ids) for one in rows.asked for row in one]
        assert len(asked) == 2 and len(answers) == 2
        starts = [0, len(logits_TW) // 2]  # both answers are a word and the end
        for one, start in zip(sorted(scenes, key=lambda s: asked[questions(s)[0].text]), starts):
            inputs = module.vlm.inputs([one.render()], [questions(one)[0].text])
            expected = module.model(**inputs.kwargs(), logits_to_keep=1).logits[0, -1]
            torch.testing.assert_close(logits_TW[start], expected, atol=1e-4, rtol=1e-3)


def test_a_step_trains_the_newline_and_leaves_the_tower(folder) -> None:
    module = InstructionModule(folder, stride=4, max_tokens=4096).train()
    module.log = module.log_dict = lambda *args, **options: None  # type: ignore[method-assign, assignment]
    batch = collate(module.collate.prepare, [scene("train", 0)])
    rows = module._rows(batch, stride=4)
    assert sum(map(len, rows.features)) < 0.3 * sum(tokens.num_tokens for tokens in batch["tokens"])
    packed_losses(module.vlm, rows.packed, rows.features)[0].sum().backward()
    assert module.model.model.image_newline.grad.abs().sum() > 0
    assert all(weight.grad is None for weight in module.vlm.tower.parameters())


def test_pictures_in_seeded_order() -> None:
    data = TestbedPictures(scenes=6, val_scenes=2, batch_size=2)
    assert len(Scenes("train", 6)) == 6 and Scenes("val", 2)[1].index == scene("val", 1).index
    assert (data.batch_size, data.seed) == (2, 0)


def test_what_ships_has_the_tables_geometry() -> None:
    vlm = load_vlm(weights.resolve("testbed:llava_next"), device="cpu", protocol="fixed")
    assert vlm.token_grids([(300, 200)])[0].num_tokens == 2880
    tokens = load_vlm(weights.resolve("testbed:llava_next"), device="cpu").token_grids([(384, 384)])[0]
    assert (tokens.num_tokens, tokens.crops) == (2928, 5)  # as LLaVA-NeXT's 672 x 672


@pytest.mark.slow
@pytest.mark.parametrize("protocol", ["anyres", "fixed"])
def test_what_ships_answers(protocol) -> None:
    vlm = load_vlm(weights.resolve("testbed:llava_next"), device="cpu", protocol=protocol)
    right = []
    for sample in samples("val", 24):
        answer = vlm.generate(vlm.inputs([sample.picture()], [sample.question]), max_new_tokens=4)[0]
        right.append(exact_match(answer, sample.answers))
    assert sum(right) / len(right) > 0.5  # untuned: a fifth to a quarter
