"""Four steps give what `generate` gives, and the tree gives the probability of every rectangle, one by one."""

from __future__ import annotations

import pytest
import torch
from transformers import LogitsProcessor, LogitsProcessorList

from cropl.datamodules.testbed import collate_scenes
from cropl.grid import GRID, Region
from cropl.models.coordinates import positions
from cropl.models.inputs import as_encoder_output
from cropl.models.localizer import Localizer
from cropl.models.region_distribution import coordinates
from cropl.modules.localizer import LocalizerModule
from cropl.prompt import RegionCodec, localizer_prompt
from cropl.testbed.build import build_qwen2_vl
from cropl.testbed.cache import SceneCache
from cropl.testbed.samples import samples
from tests.reference.qwen2_5_vl import build_qwen2_5_vl

BUILD = {"qwen2_vl": build_qwen2_vl, "qwen2_5_vl": build_qwen2_5_vl}


class Constraint(LogitsProcessor):
    """The reference, by the library's own decoding: one coordinate a step, no maximum below its minimum."""

    def __init__(self, ids, prompt_length, coverage=0.0):
        self.ids, self.start, self.coverage = torch.as_tensor(ids).reshape(2, GRID), prompt_length, coverage

    def __call__(self, input_ids, scores):
        step = input_ids.shape[1] - self.start
        ids_G = self.ids[step % 2]
        scores_BG = scores[:, ids_G]
        if step >= 2:
            least_B1 = (input_ids[:, self.start + step - 2, None] == ids_G).int().argmax(1, keepdim=True)
            scores_BG = scores_BG.masked_fill(torch.arange(GRID) < least_B1, float("-inf"))
        chosen_B1 = ids_G[coordinates(scores_BG, step, self.coverage)][:, None]
        return torch.full_like(scores, float("-inf")).scatter(1, chosen_B1, 0.0)


@pytest.fixture(scope="module", params=list(BUILD))
def folder(request, tmp_path_factory):
    """An untrained localizer's checkpoint."""
    base = BUILD[request.param](tmp_path_factory.mktemp(request.param), layers=2, width=64)
    torch.manual_seed(1)
    target = tmp_path_factory.mktemp("localizer")
    LocalizerModule(str(base)).export(target)
    return str(target)


@pytest.fixture(scope="module")
def exact(folder):
    return Localizer.from_pretrained(folder, dtype=torch.float64)


def asked(count=7):
    made = samples("val", 6 * count)[::6]
    return [s.image for s in made], [s.question for s in made]


@pytest.mark.parametrize("coverage", [0.0, 0.9])
def test_four_steps_are_those_of_generate(exact, coverage):
    images, questions = asked()
    exact.readout = type(exact.readout).parse(f"coverage:{coverage}" if coverage else "greedy")
    found = exact.locate(images, questions)
    inputs = exact.vlm.inputs(images, [localizer_prompt(question) for question in questions])
    assert not inputs.tensors["attention_mask"].all(), "rows of several lengths"
    start = inputs.tensors["input_ids"].shape[1]
    constraint = Constraint(exact._ids_2G, start, coverage)
    options = {"do_sample": False, "max_new_tokens": 4, "logits_processor": LogitsProcessorList([constraint])}
    ids_BS = exact.vlm.model.generate(**inputs.kwargs(), **options)[:, start:]
    texts = exact.vlm.processor.batch_decode(ids_BS, skip_special_tokens=False)
    assert found == [exact.codec.decode(text) for text in texts] and len(set(found)) > 1
    assert found == [exact.locate([i], [q])[0] for i, q in zip(images, questions)]
    assert found == exact.distribution(images, questions).read(exact.readout)


def test_a_region_costs_a_prefill_and_three_positions(exact):
    lengths: list[int] = []

    def note(module, args, kwargs):
        given = kwargs.get("inputs_embeds")
        lengths.append((kwargs["input_ids"] if given is None else given).shape[1])

    def refuse(*args):
        raise AssertionError("the vocabulary's head ran")

    images, questions = asked(3)
    exact.readout = type(exact.readout)()
    hooks = [
        exact.vlm.decoder.register_forward_pre_hook(note, with_kwargs=True),
        exact.vlm.model.get_output_embeddings().register_forward_pre_hook(refuse),
    ]
    try:
        exact.locate(images, questions)
        assert lengths[0] > 50 and lengths[1:] == [1, 1, 1]
        lengths.clear()
        exact.distribution(images, questions)
        assert lengths[0] > 50 and lengths[1:] == [8 + 64 + 288]
    finally:
        for hook in hooks:
            hook.remove()


def test_the_model_remembers_nothing_of_it(exact):
    """An answer that is being generated goes on as it would have, whatever is located meanwhile."""
    images, questions = asked(3)
    vlm = exact.vlm
    vlm.generate(vlm.inputs(images[:1], ["What?"]), max_new_tokens=2)
    before = vlm.base.rope_deltas
    exact.locate(images, questions)
    exact.distribution(images, questions)
    assert vlm.base.rope_deltas is before


def test_positions_are_the_models_own(exact):
    images, questions = asked()
    inputs = exact.vlm.inputs(images, questions)
    names = ("input_ids", "mm_token_type_ids", "image_grid_thw", "attention_mask")
    own_RBS, delta_B1 = exact.vlm.base.get_rope_index(**{name: inputs.tensors[name] for name in names})
    found_RBS, next_B = positions(exact.vlm, inputs)
    assert torch.equal(found_RBS, own_RBS)
    assert torch.equal(
        next_B, inputs.tensors["input_ids"].shape[1] + delta_B1[:, 0] - (inputs.tensors["attention_mask"] == 0).sum(1)
    )


def brute_force(localizer, image, question, every=1):
    """Probability of rectangles (R,), each as an answer of its own, teacher-forced, and their corners (4, R).

    All 1,296, or every so many.
    """
    vlm, ids_2G = localizer.vlm, localizer._ids_2G
    inputs = vlm.inputs([image], [localizer_prompt(question)]).tensors
    feature = vlm.encode_images([image])[0]
    p = []
    regions = [(x, y, u, v) for x in range(8) for y in range(8) for u in range(x, 8) for v in range(y, 8)]
    assert len(regions) == 1296
    regions = regions[::every]
    for start in range(0, len(regions), 324):
        part = regions[start : start + 324]
        answers_B4 = torch.tensor([[int(ids_2G[i % 2, c]) for i, c in enumerate(region)] for region in part])
        ids_BS = torch.cat([inputs["input_ids"].expand(len(part), -1), answers_B4], dim=1)
        logits_B4W = vlm.model(
            input_ids=ids_BS, attention_mask=torch.ones_like(ids_BS), mm_token_type_ids=vlm.visual_mask(ids_BS).int(),
            image_grid_thw=inputs["image_grid_thw"].expand(len(part), -1), logits_to_keep=5,
            mm_encoder_outputs=as_encoder_output([feature] * len(part)),
        ).logits[:, :-1]  # fmt: skip
        for region, logits_4W in zip(part, logits_B4W):
            joint = 1.0
            for step, coordinate in enumerate(region):
                least = region[step - 2] if step >= 2 else 0
                joint *= float(logits_4W[step, ids_2G[step % 2][least:]].softmax(0)[coordinate - least])
            p.append(joint)
    return torch.tensor(p, dtype=torch.double), tuple(torch.tensor(regions).T)


@pytest.mark.parametrize("every", [23, pytest.param(1, marks=pytest.mark.slow)])
@torch.inference_mode()
def test_the_tree_is_every_rectangle_by_itself(exact, every):
    images, questions = asked(2)
    together = exact.distribution(images, questions).p_BXYUV
    for i in range(2):
        p, corners = brute_force(exact, images[i], questions[i], every)
        assert every > 1 or float(p.sum()) == pytest.approx(1, abs=1e-9)
        torch.testing.assert_close(together[i][corners], p, rtol=1e-8, atol=1e-13)
        alone = exact.distribution(images[i : i + 1], questions[i : i + 1]).p_BXYUV[0]
        torch.testing.assert_close(alone[corners], p, rtol=1e-8, atol=1e-13)


def test_kernels_of_attention(folder):
    images, questions = asked(3)
    known = Localizer.from_pretrained(folder).distribution(images, questions)
    eager = Localizer.from_pretrained(folder, attn_implementation="eager")
    torch.testing.assert_close(eager.distribution(images, questions).p_BXYUV, known.p_BXYUV, rtol=1e-3, atol=1e-7)
    assert eager.locate(images, questions) == known.read("greedy")
    eager.vlm.decoder.config._attn_implementation = "flash_attention_2"
    with pytest.raises(ValueError, match="'flash_attention_2'.*'sdpa' or 'eager'"):
        eager.distribution(images, questions)


def test_half_precision_is_not_read_in_half_precision(folder):
    images, questions = asked(3)
    known = Localizer.from_pretrained(folder, dtype=torch.bfloat16).distribution(images, questions)
    assert known.p_BXYUV.dtype == torch.float64
    torch.testing.assert_close(known.p_BXYUV.sum((1, 2, 3, 4)), torch.ones(3).double())
    first_BX = known.p_BXYUV.sum((2, 3, 4)).log()
    steps = (first_BX - first_BX[:, :1])[:, 1:]
    assert len(set(steps.flatten().tolist())) == steps.numel(), "logits would coincide if they were rounded to 8 bits"


def scenes(base, folder, count=2):
    cache = SceneCache(base, "val", count, folder)
    return [cache[i] for i in range(count)]


@pytest.mark.parametrize("readout", ["greedy", "coverage:0.9", "most_probable", "expected_recall:0.5"])
def test_packed_rows_are_read_as_separate_ones(folder, tmp_path, readout):
    """The module's questions share rows and a prompt's cache, `Localizer` has a row for each."""
    module = LocalizerModule(folder, readout=readout).eval().double()
    items = scenes(folder, tmp_path)
    batch = collate_scenes(items)
    batch["pixels"] = [pixels.double() for pixels in batch["pixels"]]
    found = module.validation_step(batch, 0)["regions"]
    pictures = [i.picture() for i in items for _ in i.questions]
    questions = [q["question"] for i in items for q in i.questions]
    alone = Localizer.from_pretrained(folder, dtype=torch.float64, readout=readout)
    expected = alone.locate(pictures, questions)
    same = sum(a == b for a, b in zip(found, expected))
    assert len(set(expected)) > 1 and same == len(expected)


def test_free_decoding_on_packed_rows_is_generate(folder, tmp_path):
    """A model that has seen a few answers of digits: some are regions, some are not."""
    torch.manual_seed(0)
    module = LocalizerModule(folder, codec="digits", readout="greedy", lr=1e-3)
    module.log = module.log_dict = lambda *args, **kwargs: None
    items = scenes(folder, tmp_path)
    batch = collate_scenes(items)
    optimizer = torch.optim.AdamW([p for p in module.parameters() if p.requires_grad], lr=3e-3)
    module.train()
    for _ in range(25):
        optimizer.zero_grad()
        module.training_step(batch, 0).backward()
        optimizer.step()
    module.eval()
    found = module.located(batch, [[True] * len(rows) for rows in batch["questions"]])
    alone = Localizer(module.vlm, RegionCodec("digits"))
    pictures = [i.picture() for i in items for _ in i.questions]
    questions = [q["question"] for i in items for q in i.questions]
    assert [one.region for one in found] == alone.locate(pictures, questions)
    assert sum(one.malformed for one in found) == alone.fallbacks
    assert any(one.region != Region.full() for one in found) and all(one.probability is None for one in found)
    with pytest.raises(ValueError, match="decoded freely"):
        alone.distribution(pictures, questions)
