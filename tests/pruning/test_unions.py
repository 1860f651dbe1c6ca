"""Several regions per question: their union is kept once, by every way that regions come in."""

from __future__ import annotations

import pytest
import torch

from cropl.grid import Region, TokenGrid
from cropl.models.compressor import Compressor, CompressorConfig
from cropl.models.placement import WINDOW, Placement
from cropl.pruning import ILP, PLC, keep_mask, pruned, region_mask
from cropl.tiling import TokenMap
from tests.families import QUESTIONS, llava, llava_next, pictures
from tests.reference.masked import masked_generate, masked_logits
from tests.reference.tiny import IMAGE, SIDE, batch, pixels, prompt, tiny_llava

CORNERS = [Region(0, 0, 1, 2), Region(6, 5, 7, 7)]
OVERLAPPING = [Region(1, 1, 4, 4), Region(3, 3, 5, 6), Region(2, 2, 3, 3)]
SQUARE = TokenGrid.padded_square(SIDE, 1, 1)


def blocks(union: list[Region]) -> torch.Tensor:
    """Bool (64,): on a square image of 8 x 8 tokens, a token is a block."""
    cells = {cell for region in union for cell in region.cells()}
    return torch.tensor([(x, y) in cells for y in range(8) for x in range(8)])


@pytest.mark.parametrize("union", [CORNERS, OVERLAPPING, tuple(CORNERS), [Region(2, 2, 2, 2)]])
def test_a_union_is_every_token_of_a_member_once(union) -> None:
    keep_V = region_mask(union, SQUARE)
    assert torch.equal(keep_V, blocks(list(union)))
    assert torch.equal(keep_mask(union, SQUARE), keep_V)
    assert int(keep_mask(union, SQUARE, 20).sum()) == 20


@pytest.mark.parametrize("layer", [0, 1, 2])
@pytest.mark.parametrize("compact", [False, True])
@torch.no_grad()
def test_union_against_the_masked_reference(layer, compact) -> None:
    model, positions = tiny_llava(3, 2), "compact" if compact else "original"
    prompts, pixel = [prompt(5), prompt(8, seed=1), prompt(6, seed=2)], pixels(3)
    wanted = [CORNERS, None, OVERLAPPING]
    inputs = batch(prompts) | {"pixel_values": pixel}
    with pruned(model, ILP(layer, positions), regions=wanted) as patch:
        logits = model(**inputs).logits
        texts = model.generate(**inputs, max_new_tokens=3)[:, inputs["input_ids"].shape[1] :]
    for row, union in enumerate(wanted):
        keep_V = torch.ones(64, dtype=torch.bool) if union is None else blocks(union)
        assert patch.kept_B[row] == keep_V.sum()
        ids_S, features = prompts[row], model.get_image_features(pixel_values=pixel[row : row + 1]).pooler_output[0]
        keep_S = torch.ones(len(ids_S), dtype=torch.bool)
        keep_S[ids_S == IMAGE] = keep_V
        expected = masked_logits(model, ids_S, features, keep_S, layer, compact)[keep_S]
        torch.testing.assert_close(logits[row, -len(expected) :], expected, atol=1e-4, rtol=1e-4)
        assert texts[row].tolist() == masked_generate(model, ids_S, features, keep_S, layer, 3, compact)


@torch.no_grad()
def test_a_map_with_newlines_against_the_masked_reference() -> None:
    vlm = llava_next()
    inputs = vlm.inputs(pictures(2), QUESTIONS[:2])
    features, wanted = vlm.encode_images(pictures(2)), [CORNERS, Region(2, 2, 5, 5)]
    with pruned(vlm, ILP(1), regions=wanted, grids=inputs.grids):
        logits = vlm.model(**inputs.kwargs()).logits
    for row, union in enumerate(wanted):
        ids_S = inputs.tensors["input_ids"][row][inputs.tensors["attention_mask"][row].bool()]
        keep_S = torch.ones(len(ids_S), dtype=torch.bool)
        keep_S[ids_S == IMAGE] = region_mask(union, inputs.grids[row])
        expected = masked_logits(vlm.model, ids_S, features[row], keep_S, 1)[keep_S]
        torch.testing.assert_close(logits[row, -len(expected) :], expected, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_beams_repeat_a_union_and_one_member_is_the_region_itself() -> None:
    vlm = llava()
    inputs = vlm.inputs(pictures(2), QUESTIONS[:2])
    keep = [region_mask(CORNERS, inputs.grids[0]), region_mask(Region(1, 1, 3, 3), inputs.grids[1])]
    for wanted in ([CORNERS, Region(1, 1, 3, 3)], [tuple(CORNERS), [Region(1, 1, 3, 3)]]):
        with pruned(vlm, ILP(1), regions=wanted, grids=inputs.grids):
            found = vlm.generate(inputs, max_new_tokens=3, num_beams=2)
        with pruned(vlm, ILP(1), keep=keep):
            assert vlm.generate(inputs, max_new_tokens=3, num_beams=2) == found


@pytest.mark.parametrize("bad", [[], ["0,0,1,1"], [Region.full(), 3], 5])
def test_what_is_no_union_is_refused_at_the_door(bad) -> None:
    model = tiny_llava(2)
    with pytest.raises(ValueError, match="give a Region, or a sequence"), pruned(model, ILP(1), regions=[bad]):
        pass


def test_plc_places_a_union_and_its_window_around_it() -> None:
    grids = [TokenGrid.padded_square(16, 1, 1), TokenGrid.stretched(10, 12, 300, 200)]
    place = Placement.of(grids, [CORNERS, Region(2, 3, 4, 4)], "cpu")
    for row, (grid, union) in enumerate(zip(grids, [CORNERS, [Region(2, 3, 4, 4)]], strict=True)):
        inside_V = place.inside_BV[row, : grid.num_tokens]
        assert torch.equal(inside_V, region_mask(union, grid))
        assert torch.equal(place.outside_BV[row, : grid.num_tokens], ~inside_V)
        assert not place.inside_BV[row, grid.num_tokens :].any()
    # The rectangle around both corners is the whole grid: its middle is that of the image.
    rows, cols = place.anchor_BR[0] // 16, place.anchor_BR[0] % 16
    assert rows.min() == cols.min() == 4 and rows.max() == cols.max() == 3 + WINDOW
    alone = Placement.of(grids[1:], [Region(2, 3, 4, 4)], "cpu")
    assert torch.equal(alone.anchor_BR[0], place.anchor_BR[1])


def test_plc_refuses_several_grids() -> None:
    compressor = Compressor(CompressorConfig(width=32, side=8)).double()
    tokens = llava_next().token_grids([(64, 40)])[0]
    assert isinstance(tokens, TokenMap)
    with pytest.raises(ValueError, match="one plain grid"):
        PLC(compressor).count(tokens)
    vlm = llava_next()
    inputs = vlm.inputs(pictures(1), QUESTIONS[:1])
    with (
        pytest.raises(ValueError, match="one plain grid"),
        pruned(vlm, PLC(compressor), regions=[CORNERS[0]], grids=inputs.grids),
    ):
        vlm.generate(inputs, max_new_tokens=1)
