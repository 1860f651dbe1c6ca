"""Ragged rows run packed: the same numbers, no padded work, and everything as it was afterwards."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from cropl.grid import Region
from cropl.metrics.cost import kv_bytes
from cropl.pruning import ILP, FastV, InnerLLM, PruningError, PyramidDrop, Schedule, SparseVLM, pruned
from cropl.pruning.packed import KERNEL, Packing
from tests.reference.tiny import FULL, SMALL, WIDE, batch, pixels, prompt, tiny_llava

# Rows start at other positions in a batch than alone, and transformers computes their angles in float32: hence 5e-5.
REGIONS = [SMALL, WIDE, FULL, Region(0, 0, 0, 0)]
IDS = [prompt(5), prompt(9, seed=1), prompt(2, seed=2), prompt(6, seed=3)]
METHODS: dict[str, Callable[[], InnerLLM]] = {
    "ilp": lambda: ILP(2),
    "prune": lambda: ILP(0, "compact"),
    "fastv": lambda: FastV(9, 1),
    "pyramiddrop": lambda: PyramidDrop(0.5, (1, 2, 3)),
    "sparsevlm": lambda: SparseVLM((40, 12), (0, 2)),
    "sparsevlm+": lambda: SparseVLM((40, 12), (0, 2), 0),
}


def run(model: Any, rows: list[int], method: InnerLLM, **options: Any) -> tuple[Any, Any]:
    images = pixels(len(IDS))[rows]
    regions = [REGIONS[row] for row in rows] if isinstance(method, ILP) else None
    with pruned(model, method, regions=regions) as patch:
        return model(**batch([IDS[row] for row in rows]), pixel_values=images, **options), patch


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=5), st.integers(0, 2**31))
def test_packing_and_padding_undo_each_other(lengths, seed):
    packing = Packing.of(lengths, torch.device("cpu"))
    x = torch.rand(1, sum(lengths), 2, 3, generator=torch.Generator().manual_seed(seed))
    padded = packing.pad(x)
    assert padded.shape == (len(lengths), max(lengths), 2, 3) and torch.equal(packing.pack(padded), x)
    assert torch.equal(packing.pad_heads(x.transpose(1, 2)).transpose(1, 2), padded)
    start = 0
    for row, length in zip(padded, lengths, strict=True):
        assert torch.equal(row[len(row) - length :], x[0, start : start + length]) and not row[: -length or None].any()
        start += length
    assert packing.waste == pytest.approx(len(lengths) * max(lengths) / sum(lengths))


@pytest.mark.parametrize("kv_heads", [4, 2])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("use_cache", [True, False])
@torch.no_grad()
def test_a_packed_batch_is_its_rows_one_by_one(method, kv_heads, use_cache):
    model = tiny_llava(4, kv_heads)
    together, patch = run(model, [0, 1, 2, 3], METHODS[method](), use_cache=use_cache)
    assert patch.packed and patch.waste > 1.05
    for row in range(4):
        alone, single = run(model, [row], METHODS[method](), use_cache=use_cache)
        assert not single.packed and single.waste == 1
        length = alone.logits.shape[1]
        torch.testing.assert_close(together.logits[row, -length:], alone.logits[0], atol=5e-5, rtol=0)


@pytest.mark.parametrize("words", [(5, 5, 5), (30, 31, 32)])
@pytest.mark.parametrize("use_cache", [True, False])
@torch.no_grad()
def test_rows_that_become_equal_or_nearly_so_are_unpacked(words, use_cache):
    """Ragged behind the region, but not behind the second prune."""
    model, regions = tiny_llava(4), [SMALL, WIDE, FULL]
    ids, images = [prompt(count, seed=row) for row, count in enumerate(words)], pixels(3)
    method = Schedule([ILP(1), FastV(4, 3)])
    with pruned(model, method, regions=regions) as patch:
        together = model(**batch(ids), pixel_values=images, use_cache=use_cache).logits
    assert not patch.packed and 1 <= patch.waste < 1.05
    for row in range(3):
        with pruned(model, method, regions=[regions[row]]):
            alone = model(input_ids=ids[row][None], pixel_values=images[row : row + 1]).logits
        torch.testing.assert_close(together[row, -alone.shape[1] :], alone[0], atol=5e-5, rtol=0)


@torch.no_grad()
def test_an_interrupted_forward_leaves_no_kernel_behind():
    model = tiny_llava(3)
    decoder = model.model.language_model

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    with pruned(model, ILP(1), regions=REGIONS):
        expected = model(**batch(IDS), pixel_values=pixels(4)).logits
        handle = decoder.layers[2].mlp.register_forward_pre_hook(interrupt)
        with pytest.raises(KeyboardInterrupt):
            model(**batch(IDS), pixel_values=pixels(4))
        handle.remove()
        assert torch.equal(model(**batch(IDS), pixel_values=pixels(4)).logits, expected)
    assert decoder.config._attn_implementation == "sdpa"


@torch.no_grad()
def test_a_layer_from_before_the_last_prune_cannot_be_watched():
    class Late(FastV):
        watches = (0,)

        def keep(self, view: Any) -> Tensor:
            return view.attention(0).mean(view.last_B[:, None], view.attended_BS)[:, 0] > 0

    model, said = tiny_llava(4), "layer 0 ran before tokens were dropped"
    with pruned(model, Schedule([ILP(1), Late(4, 3)]), regions=[SMALL]), pytest.raises(PruningError, match=said):
        model(**batch([IDS[0]]), pixel_values=pixels(1))


@torch.no_grad()
def test_layers_compute_the_tokens_that_are_there_and_no_padding():
    model, seen = tiny_llava(3), []
    layer = model.model.language_model.layers[1]
    handles = [part.register_forward_pre_hook(lambda m, args: seen.append(args[0].shape)) for part in (layer.mlp,)]
    _, patch = run(model, [0, 1, 2, 3], ILP(1))
    lengths = [len(IDS[row]) - 64 + REGIONS[row].area for row in range(4)]
    assert seen == [(1, sum(lengths), 32)]
    assert patch.waste == pytest.approx(4 * max(lengths) / sum(lengths))
    for handle in handles:
        handle.remove()


@torch.no_grad()
def test_nearly_equal_rows_are_padded():
    with pruned(model := tiny_llava(3), ILP(1), regions=[FULL, Region(0, 0, 7, 6)]) as patch:
        model(**batch([prompt(20), prompt(26)]), pixel_values=pixels(2))
    assert 1 < patch.waste < 1.05 and not patch.packed


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("method", METHODS)
def test_generation_on_the_padded_cache_is_that_of_single_rows(method, beams):
    model, options = tiny_llava(4), {"max_new_tokens": 6, "do_sample": False, "num_beams": beams}
    made = METHODS[method]()
    regions = REGIONS if isinstance(made, ILP) else None
    inputs = batch(IDS)
    with pruned(model, made, regions=regions) as patch:
        together = model.generate(**inputs, pixel_values=pixels(4), **options)[:, inputs["input_ids"].shape[1] :]
    assert patch.packed
    for row in range(4):
        with pruned(model, METHODS[method](), regions=regions and [regions[row]]):
            alone = model.generate(input_ids=IDS[row][None], pixel_values=pixels(4)[row : row + 1], **options)
        assert torch.equal(together[row], alone[0, len(IDS[row]) :])


@torch.no_grad()
def test_the_cache_holds_padded_rows_and_no_more():
    out, _ = run(tiny_llava(3), [0, 1, 2, 3], ILP(1))
    longest = max(len(IDS[row]) - 64 + REGIONS[row].area for row in range(4))
    shapes = [tuple(layer.keys.shape) for layer in out.past_key_values.layers]
    assert shapes == [(4, 4, 64 + 3 + 9, 8), (4, 4, longest, 8), (4, 4, longest, 8)]
    assert out.past_key_values.packing is None
    assert kv_bytes(out.past_key_values) == 2 * 8 * 4 * 32 * (76 + 2 * longest)


@torch.no_grad()
def test_the_kernel_is_swapped_only_while_packed_layers_run():
    model, seen = tiny_llava(3), []
    decoder = model.model.language_model
    for layer in decoder.layers:
        layer.self_attn.register_forward_pre_hook(lambda m, a: seen.append(decoder.config._attn_implementation))
    run(model, [0, 1, 2, 3], ILP(1))
    assert seen == ["sdpa", KERNEL, KERNEL] and decoder.config._attn_implementation == "sdpa"

    def fail(*_: Any) -> None:
        raise RuntimeError("out of memory")

    handle = decoder.layers[2].mlp.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        run(model, [0, 1, 2, 3], ILP(1))
    handle.remove()
    assert decoder.config._attn_implementation == "sdpa"
    before = model(**batch(IDS), pixel_values=pixels(4)).logits
    run(model, [0, 1, 2, 3], ILP(1))
    assert torch.equal(model(**batch(IDS), pixel_values=pixels(4)).logits, before)


@torch.no_grad()
def test_inner_states_and_gradients_are_of_padded_rows():
    model = tiny_llava(3)
    plain, packed = run(model, [0, 1, 2, 3], ILP(1))
    out, patch = run(model, [0, 1, 2, 3], ILP(1), output_hidden_states=True)
    assert packed.packed and not patch.packed
    assert [h.shape[:2] for h in out.hidden_states][-1] == plain.logits.shape[:2]
    with torch.enable_grad():
        trained, patch = run(model, [0, 1, 2, 3], ILP(1))
    assert not patch.packed
    for row in range(4):
        length = len(IDS[row]) - 64 + REGIONS[row].area
        for other in (out, trained):
            torch.testing.assert_close(plain.logits[row, -length:], other.logits[row, -length:], atol=5e-5, rtol=0)


@torch.no_grad()
def test_flash_attention_is_told_where_rows_end(monkeypatch):
    """A stand-in with flash attention's arguments: 2-D masks before the prune, lengths of packed rows behind it."""
    told: list[list[int]] = []

    def flash(module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **options: Any) -> Any:
        ends = options.pop("cu_seq_lens_q", None)
        if ends is None:
            causal = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool).tril()
            allowed = causal if mask is None else causal & mask.bool()[:, None, None]
            allowed = allowed | torch.eye(*allowed.shape[-2:], dtype=torch.bool)
            return sdpa_attention_forward(module, query, key, value, allowed, **options)
        assert mask is None and torch.equal(options.pop("cu_seq_lens_k"), ends) and ends.dtype == torch.int32
        lengths = ends.diff().tolist()
        assert options.pop("max_length_q") == options.pop("max_length_k") == max(lengths)
        told.append(lengths)
        rows = zip(*(part.split(lengths, dim=2) for part in (query, key, value)), strict=True)
        return torch.cat([sdpa_attention_forward(module, q, k, v, None, **options)[0] for q, k, v in rows], 1), None

    model = tiny_llava(3)
    expected, _ = run(model, [0, 1, 2, 3], ILP(1))
    monkeypatch.setitem(AttentionInterface._global_mapping, "flash_attention_2", flash)
    model.model.language_model.config._attn_implementation = "flash_attention_2"
    out, patch = run(model, [0, 1, 2, 3], ILP(1))
    lengths = [len(IDS[row]) - 64 + REGIONS[row].area for row in range(4)]
    assert patch.packed and told == [lengths] * 2
    for row, length in enumerate(lengths):
        torch.testing.assert_close(out.logits[row, -length:], expected.logits[row, -length:])
