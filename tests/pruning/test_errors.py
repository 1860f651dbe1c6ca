"""Everything that pruning does not work with is one clear error."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, StaticCache

from cropl.pruning import ILP, Dense, InnerLLM, NotSupportedError, PruningError, RandomTokens, pruned
from tests.reference.tiny import SMALL, batch, pixels, prompt, tiny_llava


@pytest.mark.parametrize("layer", [0, 1])
@torch.no_grad()
def test_a_pruned_cache_cannot_be_misread(model, inputs, layer) -> None:
    token = torch.tensor([[5]])
    with pruned(model, ILP(layer), regions=[SMALL]):
        cache = model(**inputs).past_key_values
        with pytest.raises(NotSupportedError, match="second turn"):
            model(input_ids=torch.tensor([[5, 6]]), past_key_values=copy.deepcopy(cache))
        with pytest.raises(PruningError, match="2 rows on a cache of 1 rows"):
            model(input_ids=token.repeat(2, 1), past_key_values=cache)
        model(input_ids=token, past_key_values=cache)
        with pytest.raises(PruningError, match="only 1 follow"):
            cache.crop(-2)
    for cached in (cache, copy.deepcopy(cache)):
        with pytest.raises(PruningError, match="cannot be continued outside"):
            model(input_ids=token, past_key_values=cached)
    with pruned(model, ILP(layer), regions=[SMALL]), pytest.raises(PruningError, match="another pruned"):
        model(input_ids=token, past_key_values=cache)
    with pruned(model, Dense()), pytest.raises(PruningError):
        model(input_ids=token, past_key_values=cache)


@torch.no_grad()
def test_images_on_a_filled_cache(model, inputs) -> None:
    cache = model(input_ids=prompt(3, images=0)[None]).past_key_values
    with pruned(model, ILP(1), regions=[SMALL]):
        with pytest.raises(NotSupportedError, match="filled cache"):
            model(**inputs, past_key_values=cache)
        with pytest.raises(ValueError, match="prefill_chunk_size"):
            model.generate(**inputs, prefill_chunk_size=20, max_new_tokens=2)


@torch.no_grad()
def test_unsupported_ways_to_decode(model, inputs) -> None:
    assistant = (
        LlamaForCausalLM(
            LlamaConfig(
                vocab_size=100,
                hidden_size=8,
                intermediate_size=8,
                num_hidden_layers=1,
                num_attention_heads=1,
                eos_token_id=None,
            )
        )
        .double()
        .eval()
    )
    with pruned(model, ILP(1), regions=[SMALL]):
        with pytest.raises(NotSupportedError, match="assisted decoding"):
            model.generate(**inputs, assistant_model=assistant, max_new_tokens=8, do_sample=False)
        with pytest.raises(NotSupportedError, match="StaticCache"):
            model.generate(**inputs, cache_implementation="static", max_new_tokens=2)
        with pytest.raises(NotSupportedError, match="StaticCache"):
            model(**inputs, past_key_values=StaticCache(config=model.config.text_config, max_cache_len=90))
        with pytest.raises(NotSupportedError, match="input_ids"):
            model(inputs_embeds=torch.zeros(1, 4, 32, dtype=torch.float64))
        with pytest.raises(NotSupportedError, match="shape of input_ids"):
            model(**inputs, attention_mask=torch.ones(1, 1, 72, 72, dtype=torch.bool))
        with pytest.raises(NotSupportedError, match="logits_to_keep"):
            model(**inputs, logits_to_keep=torch.tensor([70]))
        with pytest.raises(NotSupportedError, match="labels"):
            model(**inputs, logits_to_keep=1, labels=inputs["input_ids"])
        with pytest.raises(NotSupportedError, match="call the model"):
            model.model.language_model(inputs_embeds=torch.zeros(1, 4, 32, dtype=torch.float64))
        assert model(**inputs).logits.shape[1] == 8 + SMALL.area


@torch.no_grad()
def test_right_padded_prompts_are_not_continued(model) -> None:
    ragged = batch([prompt(4), prompt(9, seed=1)], side="right")
    with pruned(model, ILP(1), regions=[SMALL, SMALL]):
        cache = model(**ragged, pixel_values=pixels(2)).past_key_values
        with pytest.raises(NotSupportedError, match="pad on the left"):
            model(input_ids=torch.tensor([[5], [6]]), past_key_values=cache)


@torch.no_grad()
def test_short_attention_mask_in_a_step(model) -> None:
    ragged = batch([prompt(4), prompt(9, seed=1)])
    with pruned(model, ILP(1), regions=[SMALL, SMALL]):
        cache = model(**ragged, pixel_values=pixels(2)).past_key_values
        with pytest.raises(ValueError, match="attention_mask has 3 columns"):
            model(input_ids=torch.tensor([[5], [6]]), past_key_values=cache, attention_mask=torch.ones(2, 3))


def test_models_that_cannot_be_pruned() -> None:
    text = LlamaForCausalLM(LlamaConfig(vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=1))
    for wrong in (text, torch.nn.Linear(2, 2), "model"):
        with pytest.raises(ValueError, match="supported model types: llava"), pruned(wrong, Dense()):
            pass
    sliding = tiny_llava(2, text="mistral")
    sliding.config.text_config.sliding_window = 16
    with pytest.raises(NotSupportedError, match="sliding"), pruned(sliding, Dense()):
        pass
    flex = tiny_llava(2)
    flex.config.text_config._attn_implementation = "flex_attention"
    with pytest.raises(NotSupportedError, match="flex_attention"), pruned(flex, Dense()):
        pass
    compiled = tiny_llava(2)
    compiled.model.language_model._compiled_call_impl = object()  # what compile() sets
    with pytest.raises(NotSupportedError, match="compile"), pruned(compiled, Dense()):
        pass


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (ILP(4), "choose ascending layers from 0 .* to 3"),
        (RandomTokens(4, layer=9), "3 decoder layers"),
        ("ilp", "must be an InnerLLM"),
        (ILP(1), "needs regions"),
    ],
)
def test_methods_that_do_not_fit(model, method, message) -> None:
    with pytest.raises(ValueError, match=message), pruned(model, method):
        pass


@pytest.mark.parametrize("layer", [-1, 1.5, True, "2", None])
def test_layer_must_be_a_count(layer) -> None:
    with pytest.raises(ValueError, match="layer="):
        ILP(layer)


def test_positions_must_be_known() -> None:
    with pytest.raises(ValueError, match="'original' or 'compact'"):
        ILP(1, positions="new")  # type: ignore[arg-type]


NONE = torch.zeros(64, dtype=torch.bool)


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"regions": [SMALL], "keep": [~NONE]}, "not both"),
        ({"image_sizes": [(4, 4)]}, "give regions with them"),
        ({"regions": [SMALL], "image_sizes": [(4, 4)] * 2}, "2 image_sizes for 1 regions"),
        ({"regions": []}, "is empty"),
        ({"regions": SMALL}, "must be a list"),
        ({"keep": [NONE.float()]}, "bool"),
        ({"keep": [NONE]}, "no visual token"),
        ({"keep": [~NONE[:5]]}, "row 0 has 64 visual tokens"),
        ({"regions": [SMALL, SMALL]}, "2 regions .* for 1 rows"),
    ],
)
def test_requests_that_do_not_fit(model, inputs, request_, message) -> None:
    with pytest.raises(ValueError, match=message), pruned(model, ILP(1), **request_):
        model(**inputs)


def test_two_images_in_a_row_need_keep(model) -> None:
    ids = prompt(5, images=2)[None]
    with pytest.raises(ValueError, match="one image per row"), pruned(model, ILP(1), regions=[SMALL]):
        model(input_ids=ids, pixel_values=pixels(2))


class Nothing(InnerLLM):
    name, layers = "nothing", (1,)

    def keep(self, view):
        return torch.zeros_like(view.visual_BS)


class Wrong(Nothing):
    def keep(self, view):
        return view.hidden_BSD


def test_methods_that_answer_nonsense(model, inputs) -> None:
    with pytest.raises(ValueError, match="Nothing keeps no visual token"), pruned(model, Nothing()):
        model(**inputs)
    with pytest.raises(ValueError, match="must return a bool tensor"), pruned(model, Wrong()):
        model(**inputs)
