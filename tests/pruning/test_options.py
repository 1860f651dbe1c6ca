"""Every way to call and to generate, with plain positions and under M-RoPE: right, or one clear error."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, StaticCache

from cropl.grid import Region
from cropl.models.vlm import VLM
from cropl.pruning import ILP, FastV, NotSupportedError, pruned
from tests.families import FAMILIES, QUESTIONS, pictures
from tests.pruning.rows import alone, longer, request, together

SMALL = Region(2, 3, 4, 4)
PRUNED = [ILP(0), ILP(1), ILP(1, "compact"), FastV(0.3, 2)]
NAMES = ["ilp-0", "ilp-1", "ilp-1-compact", "fastv"]


@pytest.fixture(scope="module", params=["llava", "qwen2_vl"])
def vlm(request: pytest.FixtureRequest) -> VLM:
    return FAMILIES[request.param](4)


@pytest.fixture(scope="module", params=["llava", "qwen2_vl"])
def eager(request: pytest.FixtureRequest) -> VLM:
    return FAMILIES[request.param](4, torch.float32, "eager")


def one(vlm: VLM) -> dict[str, Any]:
    return {key: value[:1] for key, value in request(vlm).items()}


def greedy(vlm: VLM, **options: Any) -> dict[str, Any]:
    return {"max_new_tokens": 4, "do_sample": False, "suppress_tokens": [vlm.image_token_id], **options}


@pytest.mark.parametrize("method", PRUNED, ids=NAMES)
@torch.no_grad()
def test_samples_are_drawn_from_each_rows_own_distribution(vlm, method) -> None:
    options = {"do_sample": True, "max_new_tokens": 1, "top_k": 0, "num_return_sequences": 3}
    with pruned(vlm, method, **request(vlm)) as patch:
        logits_BC = vlm.model(**together(vlm), logits_to_keep=1).logits[:, -1].float()
        torch.manual_seed(3)
        drawn = vlm.model.generate(**together(vlm), **options)[:, -1]
        assert patch.kept_B.tolist() == patch.kept_B[::3].repeat_interleave(3).tolist()
    torch.manual_seed(3)
    assert torch.equal(drawn, torch.multinomial(logits_BC.softmax(-1).repeat_interleave(3, 0), 1)[:, 0])


@pytest.mark.parametrize("method", PRUNED[:3], ids=NAMES[:3])
@torch.no_grad()
def test_generation_without_a_cache_is_that_with_one(vlm, method) -> None:
    for options in ({}, {"num_beams": 3, "num_return_sequences": 2}):
        with pruned(vlm, method, **request(vlm)) as patch:
            cached = vlm.model.generate(**together(vlm), **greedy(vlm, **options))
            assert patch.prefills == 1
            uncached = vlm.model.generate(**together(vlm), **greedy(vlm, **options, use_cache=False))
            assert patch.prefills == 5  # and it really had none
        assert torch.equal(cached, uncached)


@pytest.mark.parametrize("method", PRUNED, ids=NAMES)
@torch.no_grad()
def test_without_an_attention_mask_everything_is_attended_to(vlm, method) -> None:
    kwargs = alone(vlm, 0)
    with pruned(vlm, method, **one(vlm)):
        expected = vlm.model(**kwargs).logits
        found = vlm.model.generate(**kwargs, **greedy(vlm))
        del kwargs["attention_mask"]
        assert torch.equal(vlm.model(**kwargs).logits, expected)
        assert torch.equal(vlm.model(**kwargs, use_cache=False).logits, expected)
        assert torch.equal(vlm.model.generate(**kwargs, **greedy(vlm)), found)


@pytest.mark.parametrize("method", PRUNED, ids=NAMES)
@torch.no_grad()
def test_attentions_and_hidden_states_are_as_long_as_the_layers_sequences(eager, method) -> None:
    kwargs = alone(eager, 0)
    with pruned(eager, method, **one(eager)) as patch:
        out = eager.model(**kwargs, output_hidden_states=True, output_attentions=True)
        plain = eager.model(**kwargs)
    text = kwargs["input_ids"].shape[1] - int(patch.visual_B[0])
    lengths = [text + count for count in patch.visual_BL[0].tolist()]
    assert [tuple(a.shape[2:]) for a in out.attentions] == [(length, length) for length in lengths]
    # What the first layer is given, and what each makes of it.
    assert [h.shape[1] for h in out.hidden_states] == [lengths[0], *lengths]
    assert torch.equal(out.logits, plain.logits)
    for attention_BHSS in out.attentions:
        torch.testing.assert_close(attention_BHSS.sum(-1), torch.ones(attention_BHSS.shape[:-1]))
        assert not attention_BHSS.triu(1).any()


@torch.no_grad()
def test_what_generate_records_has_the_lengths_of_the_pruned_layers(eager) -> None:
    options = greedy(eager, output_attentions=True, output_scores=True, return_dict_in_generate=True)
    with pruned(eager, ILP(1), **one(eager)) as patch:
        out = eager.model.generate(**alone(eager, 0), **options)
    text = alone(eager, 0)["input_ids"].shape[1] - int(patch.visual_B[0])
    for step, layers in enumerate(out.attentions[1:], start=1):
        assert [a.shape[-1] for a in layers] == [text + count + step for count in patch.visual_BL[0].tolist()]


@torch.no_grad()
def test_labels_are_those_of_survivors(vlm) -> None:
    kwargs = together(vlm)
    labels = kwargs["input_ids"].masked_fill(
        vlm.visual_mask(kwargs["input_ids"]) | (kwargs["attention_mask"] == 0), -100
    )
    losses, count = [], 0
    for row in range(4):
        ids = alone(vlm, row)["input_ids"]
        with pruned(vlm, ILP(1), **{key: value[row : row + 1] for key, value in request(vlm).items()}) as patch:
            logits = vlm.model(**alone(vlm, row)).logits[0]
        kept = torch.arange(ids.shape[1]) if patch.survivors_BM is None else patch.survivors_BM[0]
        target = ids[0, kept].masked_fill(vlm.visual_mask(ids[0, kept]), -100)[1:]
        losses.append(torch.nn.functional.cross_entropy(logits[:-1].float(), target, reduction="sum"))
        count += int((target != -100).sum())
    with pruned(vlm, ILP(1), **request(vlm)):
        loss = vlm.model(**kwargs, labels=labels).loss
    torch.testing.assert_close(loss.float(), sum(losses) / count, atol=1e-4, rtol=1e-5)


@torch.no_grad()
def test_several_pictures_in_a_row_need_keep(vlm) -> None:
    first, second = alone(vlm, 0), alone(vlm, 1)
    both: dict[str, Any] = {
        key: torch.cat([first[key], second[key]], dim=1)
        for key in ("input_ids", "attention_mask", "mm_token_type_ids") if key in first
    }  # fmt: skip
    both |= {
        key: torch.cat([first[key], second[key]]) for key in ("pixel_values", "image_grid_thw") if key in first
    }  # fmt: skip
    total = int(vlm.visual_mask(both["input_ids"]).sum())
    keep = torch.rand(total, generator=torch.Generator().manual_seed(0)) < 0.3
    for method in PRUNED[:3]:
        with pruned(vlm, method, keep=[keep]) as patch:
            cached = vlm.model.generate(**both, **greedy(vlm))
            uncached = vlm.model.generate(**both, **greedy(vlm, use_cache=False))
            searched = vlm.model.generate(**both, **greedy(vlm, num_beams=2))
        assert torch.equal(cached, uncached) and patch.kept_B.tolist() == [int(keep.sum())] * 2 and len(searched) == 1
    with pytest.raises(ValueError, match="one image per row"), pruned(vlm, ILP(1), regions=[SMALL]):
        vlm.model(**both)


@torch.no_grad()
def test_right_padded_prompts_are_answered_but_not_continued(vlm) -> None:
    kwargs = together(vlm, "right")
    with pruned(vlm, ILP(1), **request(vlm)):
        cache = vlm.model(**kwargs).past_key_values
        mask = longer(kwargs, torch.full((4, 1), 5))["attention_mask"]
        with pytest.raises(NotSupportedError, match="pad on the left"):
            vlm.model(input_ids=torch.full((4, 1), 5), attention_mask=mask, past_key_values=cache)
        with pytest.raises(NotSupportedError, match="pad on the left"):
            vlm.model.generate(**kwargs, **greedy(vlm))


@torch.no_grad()
def test_what_is_not_supported_is_named(vlm) -> None:
    kwargs, config = alone(vlm, 0), vlm.model.config.get_text_config()
    small = LlamaConfig(
        vocab_size=config.vocab_size, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1,
        eos_token_id=None,
    )  # fmt: skip
    assistant = LlamaForCausalLM(small).double().eval()
    for method in PRUNED:
        with pruned(vlm, method, **one(vlm)):
            with pytest.raises(ValueError, match="assisted decoding|not used by the model"):  # the assistant takes text
                vlm.model.generate(**kwargs, **greedy(vlm, assistant_model=assistant, max_new_tokens=8))
            with pytest.raises(NotSupportedError, match="assisted decoding"):  # guesses what followed a word before
                vlm.model.generate(
                    **longer(kwargs, torch.tensor([[40, 41, 42, 43, 40, 41]])),
                    **greedy(vlm, prompt_lookup_num_tokens=3),
                )
            for kind in ("static", "offloaded_static"):
                with pytest.raises(NotSupportedError, match="StaticCache"):
                    vlm.model.generate(**kwargs, **greedy(vlm, cache_implementation=kind))
            with pytest.raises(NotSupportedError, match="StaticCache"):
                vlm.model(**kwargs, past_key_values=StaticCache(config=config, max_cache_len=200))
            cache = vlm.model(**kwargs).past_key_values
            with pytest.raises(NotSupportedError, match="second turn"):
                vlm.model(input_ids=torch.tensor([[5, 6]]), past_key_values=cache)
            with pytest.raises(NotSupportedError, match="input_ids"):
                vlm.model(inputs_embeds=torch.zeros(1, 4, config.hidden_size, dtype=torch.float64))
        with pytest.raises(ValueError, match="cannot be continued outside"):
            vlm.model(input_ids=torch.tensor([[5]]), past_key_values=cache)


@torch.no_grad()
def test_two_models_of_a_kind_and_one_is_pruned(vlm) -> None:
    other = FAMILIES[vlm.model.config.model_type](4)
    kwargs = vlm.inputs(pictures(2), QUESTIONS[:2]).kwargs
    plain = other.model(**kwargs()).logits
    state = getattr(other.base, "rope_deltas", None)
    with pruned(vlm, ILP(1), regions=[SMALL, SMALL]):
        assert vlm.model(**kwargs()).logits.shape[1] < plain.shape[1]
        assert torch.equal(other.model(**kwargs()).logits, plain)
        found = other.model.generate(**kwargs(), **greedy(vlm))
    assert torch.equal(vlm.model.generate(**kwargs(), **greedy(vlm)), found)
    assert state is None or torch.equal(other.base.rope_deltas, state)
