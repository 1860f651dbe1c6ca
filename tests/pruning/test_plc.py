"""PLC in a model: its answers are those of a model that is fed the compressed tokens, with a cache of so many."""

from __future__ import annotations

import os

import pytest
import torch
from transformers import DynamicCache

from cropl.grid import Region, TokenGrid
from cropl.models.compressor import Compressor, CompressorConfig
from cropl.pruning import ILP, PLC, Dense, PreLLM, pruned
from tests.reference.tiny import FULL, IMAGE, PAD, SIDE, SMALL, WIDE, pixels, prompt, tiny_llava

GREEDY = {"do_sample": False, "max_new_tokens": 5}
GRID = TokenGrid.padded_square(SIDE, 1, 1)


def compressor(queries: int = 9, seed: int = 0, anchors: bool = False, width: int = 32) -> Compressor:
    torch.manual_seed(seed)
    made = Compressor(CompressorConfig(width, queries, 2, anchors=anchors, side=SIDE))
    return made.double().eval()


def fed(model, plc: PLC, ids_S: torch.Tensor, pixel: torch.Tensor, region: Region, new: int) -> list[int]:
    """Greedy tokens of the plain language model over text embeddings and compressed tokens, without a cache."""
    features = model.get_image_features(pixel_values=pixel).pooler_output[0]
    [tokens] = plc.compress([features], [GRID], [region])
    text = model.get_input_embeddings()(ids_S)
    first = int((ids_S == IMAGE).nonzero()[0])
    embeds = torch.cat([text[:first], tokens, text[first + len(features) :]])
    out: list[int] = []
    for _ in range(new):
        hidden = model.model.language_model(
            inputs_embeds=embeds[None], position_ids=torch.arange(len(embeds))[None], use_cache=False
        ).last_hidden_state
        out.append(int(model.lm_head(hidden[0, -1]).argmax()))
        embeds = torch.cat([embeds, model.get_input_embeddings()(torch.tensor(out[-1:]))])
    return out


@pytest.mark.parametrize("region", [SMALL, WIDE, FULL])
@pytest.mark.parametrize("use_cache", [True, False])
@torch.no_grad()
def test_generation_is_that_of_a_model_fed_with_the_compressed_tokens(region, use_cache) -> None:
    model, plc = tiny_llava(3), PLC(compressor())
    ids, pixel = prompt(6), pixels(1)
    with pruned(model, plc, regions=[region]) as patch:
        out = model.generate(input_ids=ids[None], pixel_values=pixel, use_cache=use_cache, **GREEDY)
    assert out[0, len(ids) :].tolist() == fed(model, plc, ids, pixel, region, 5)
    assert patch.kept_B is not None and patch.kept_B.tolist() == [11]


@torch.no_grad()
def test_the_cache_holds_the_compressed_tokens_in_every_layer() -> None:
    model = tiny_llava(3)
    cache = DynamicCache(config=model.config)
    with pruned(model, PLC(compressor()), regions=[SMALL]):
        model(input_ids=prompt(6)[None], pixel_values=pixels(1), past_key_values=cache)
    assert [layer.keys.shape[-2] for layer in cache.layers] == [9 + 11] * 3


@torch.no_grad()
def test_a_row_does_not_depend_on_its_batch_and_beams_repeat_regions() -> None:
    model, plc = tiny_llava(3), PLC(compressor())
    texts, regions = (4, 7, 5), (SMALL, FULL, WIDE)
    rows = [prompt(length, seed=i) for i, length in enumerate(texts)]
    width = max(map(len, rows))
    ids = torch.stack([torch.cat([torch.full((width - len(row),), PAD), row]) for row in rows])
    with pruned(model, plc, regions=regions):
        out = model.generate(input_ids=ids, attention_mask=ids != PAD, pixel_values=pixels(3), **GREEDY)
    for i, row in enumerate(rows):
        assert out[i, width:].tolist() == fed(model, plc, row, pixels(3)[i : i + 1], regions[i], 5)
    with pruned(model, plc, regions=regions):
        beams = model.generate(
            input_ids=ids, attention_mask=ids != PAD, pixel_values=pixels(3), num_beams=2, num_return_sequences=2,
            **GREEDY,
        )  # fmt: skip
    for i, row in enumerate(rows):
        with pruned(model, plc, regions=[regions[i]]):
            alone = model.generate(
                input_ids=row[None], pixel_values=pixels(3)[i : i + 1], num_beams=2, num_return_sequences=2, **GREEDY
            )
        assert torch.equal(beams[2 * i : 2 * i + 2, width:], alone[:, len(row) :])


@torch.no_grad()
def test_as_many_tokens_as_before_are_still_the_compressed_ones() -> None:
    model, plc = tiny_llava(2), PLC(compressor(62))  # 62 + 2 tokens of 64
    ids, pixel = prompt(6), pixels(1)
    with pruned(model, plc, regions=[WIDE]):
        out = model.generate(input_ids=ids[None], pixel_values=pixel, **GREEDY)
    assert out[0, len(ids) :].tolist() == fed(model, plc, ids, pixel, WIDE, 5)


@torch.no_grad()
def test_rows_without_an_image_pass_through_and_the_model_is_restored() -> None:
    model, plc = tiny_llava(2), PLC(compressor())
    ids = torch.tensor([[5, 6, 7, 8]])
    plain = model(input_ids=ids).logits
    with pruned(model, plc, regions=[None]):
        assert torch.equal(model(input_ids=ids).logits, plain)
    row = prompt(4)[None]
    before = model(input_ids=row, pixel_values=pixels(1)).logits
    with pruned(model, plc, regions=[SMALL]):
        model(input_ids=row, pixel_values=pixels(1))
    assert torch.equal(model(input_ids=row, pixel_values=pixels(1)).logits, before)


class Nothing(PreLLM):
    name = "nothing"

    def count(self, grid: TokenGrid) -> int:
        return 0

    def compress(self, features, grids, regions):
        return [feature[:0] for feature in features]


class Mean(PreLLM):
    """A method of one's own that needs no region: one token, the mean."""

    name = "mean"
    needs_regions = False

    def count(self, grid: TokenGrid) -> int:
        return 1

    def compress(self, features, grids, regions):
        assert all(region == Region.full() for region in regions)
        return [feature.mean(0, keepdim=True) for feature in features]


@torch.no_grad()
def test_what_does_not_fit_is_named() -> None:
    model, row = tiny_llava(2), prompt(4)[None]
    with pytest.raises(ValueError, match="PLC needs regions"), pruned(model, PLC(compressor())):
        pass
    with pytest.raises(ValueError, match="no region for row 0"), pruned(model, PLC(compressor()), regions=[None]):
        model(input_ids=row, pixel_values=pixels(1))
    keep = torch.ones(1, 64, dtype=torch.bool)
    with pytest.raises(ValueError, match="regions, not keep"), pruned(model, PLC(compressor()), keep=keep):
        model(input_ids=row, pixel_values=pixels(1))
    for method, message in ((Nothing(), "0 tokens of the 64"), (PLC(compressor(63)), "65 tokens of the 64")):
        with pytest.raises(ValueError, match=message), pruned(model, method, regions=[SMALL]):
            model(input_ids=row, pixel_values=pixels(1))
    with pytest.raises(ValueError, match="no exported PLC"):
        PLC.from_pretrained("nowhere")


@torch.no_grad()
def test_a_method_without_regions_sees_whole_images() -> None:
    model = tiny_llava(2)
    with pruned(model, Mean()) as patch:
        model(input_ids=prompt(4)[None], pixel_values=pixels(1))
    assert patch.kept_B is not None and patch.kept_B.tolist() == [1]


@torch.no_grad()
def test_methods_may_follow_one_another_on_one_model() -> None:
    model, row = tiny_llava(3), prompt(4)[None]
    for method, kept in ((PLC(compressor()), 11), (ILP(1), SMALL.area), (Dense(), 64)):
        with pruned(model, method, regions=[SMALL]) as patch:
            model(input_ids=row, pixel_values=pixels(1))
        assert patch.kept_B is not None and patch.kept_B.tolist() == [kept]


def test_a_folder_is_read_once_and_again_when_it_was_replaced(tmp_path) -> None:
    first, second = compressor(seed=0).float(), compressor(seed=1).float()
    first.save_pretrained(tmp_path)
    found = PLC(tmp_path).compressor
    assert PLC(str(tmp_path)).compressor is found
    second.save_pretrained(tmp_path)
    for number, path in enumerate(sorted(tmp_path.iterdir())):
        os.utime(path, (number, number))  # as after an hour of training, however coarse the file system's clock
    again = PLC(tmp_path).compressor
    assert torch.equal(found.inner.content, first.inner.content)
    assert torch.equal(again.inner.content, second.inner.content) and PLC(tmp_path).compressor is again
    (tmp_path / "compressor.json").unlink()
    with pytest.raises(ValueError, match="no compressor.json"):
        PLC(tmp_path)
