"""InternVL in its one file: its token map against rendered rectangles, encoded images, pruning, costs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from cropl.grid import Region
from cropl.metrics import cost
from cropl.models.internvl import InternProcessor, InternVLVLM
from cropl.models.vlm import as_vlm, load_vlm
from cropl.pruning import ILP, pruned
from cropl.tiling import covered
from tests.families import QUESTIONS, pictures
from tests.reference.tiny_intern import PATCH, TILE, intern_images, intern_processor, intern_tokenizer, tiny_internvl
from tests.test_grid import regions

SIDE = TILE // PATCH
RENDERED = intern_images(resample=Image.Resampling.BOX, do_normalize=False)  # bicubic would spill over edges


@pytest.fixture(scope="module")
def vlm() -> InternVLVLM:
    return InternVLVLM(tiny_internvl(3), intern_processor())


def touched(vlm: InternVLVLM, width: int, height: int, pixels: tuple[int, int, int, int]) -> np.ndarray:
    """Visual tokens in which a rectangle shows that went through the processor and the model's own pixel shuffle."""
    made = []
    for colour in (0, 255):
        image = np.zeros((height, width, 3), dtype=np.uint8)
        x0, y0, x1, y1 = pixels
        image[y0:y1, x0:x1] = colour
        crops_PHW = RENDERED(images=[Image.fromarray(image)], crop_to_patches=True, return_tensors="pt")[
            "pixel_values"
        ][:, 0]
        patch_PRCE = crops_PHW.unflatten(1, (SIDE, PATCH)).unflatten(3, (SIDE, PATCH)).transpose(2, 3).flatten(3)
        made.append(vlm.model.model.pixel_shuffle(patch_PRCE, scale_factor=0.5).flatten(0, 2))
    return (made[0] != made[1]).any(-1).numpy()


@settings(max_examples=60, deadline=None)
@given(cols=st.integers(1, 6), rows=st.integers(1, 6), scale=st.sampled_from([0.5, 1, 2, 3]), region=regions())
def test_the_map_is_what_the_processor_renders(vlm, cols, rows, scale, region) -> None:
    # Of these sizes, every edge of a block is a whole pixel, in the image and in what it is stretched to.
    if cols * rows > 6:
        cols, rows = min(cols, 2), min(rows, 3)
    width, height = int(cols * TILE * scale), int(rows * TILE * scale)
    tokens = vlm.token_map(width, height)
    x0, y0, x1, y1 = (edge * size // 8 for edge, size in zip(region.edges(), (width, height, width, height)))
    shown = touched(vlm, width, height, (x0, y0, x1, y1))
    assert shown.tolist() == covered(tokens, region)
    assert tokens.num_tokens == len(shown) == tokens.crops * (SIDE // 2) ** 2


@settings(max_examples=40, deadline=None)
@given(width=st.integers(16, 300), height=st.integers(16, 300), region=regions())
def test_the_map_of_any_size(vlm, width, height, region) -> None:
    # What is drawn inside the region shows in its tokens alone, what is drawn around it in all but those at its border.
    x0, y0, x1, y1 = region.edges()
    inner = (-(-x0 * width // 8), -(-y0 * height // 8), x1 * width // 8, y1 * height // 8)
    outer = (x0 * width // 8, y0 * height // 8, -(-x1 * width // 8), -(-y1 * height // 8))
    tokens = vlm.token_map(width, height)
    kept = np.array(covered(tokens, region))
    assert not (touched(vlm, width, height, inner) & ~kept).any()
    shown, start = touched(vlm, width, height, outer), 0
    for grid in tokens.grids:
        order = np.argsort(grid.order()) if hasattr(grid, "order") else np.arange(grid.num_tokens)
        part = np.pad(kept[start + order].reshape(grid.rows, grid.cols), 1)
        core = part[1:-1, 1:-1] & part[:-2, 1:-1] & part[2:, 1:-1] & part[1:-1, :-2] & part[1:-1, 2:]
        assert shown[start + order].reshape(grid.rows, grid.cols)[core].all()
        start += grid.num_tokens


@torch.no_grad()
def test_images_are_encoded_once(vlm) -> None:
    plain, features = vlm.inputs(pictures(), QUESTIONS), vlm.encode_images(pictures())
    encoded = vlm.inputs(pictures(), QUESTIONS, features)
    assert [len(feature) for feature in features] == [grid.num_tokens for grid in plain.grids]
    assert vlm.visual_mask(plain.tensors["input_ids"]).sum(1).tolist() == [grid.num_tokens for grid in plain.grids]
    assert "pixel_values" not in encoded.tensors and as_vlm(vlm.model).processor is None
    torch.testing.assert_close(vlm.model(**encoded.kwargs()).logits, vlm.model(**plain.kwargs()).logits)
    for extra in ({}, {"num_beams": 2}, {}):
        options = {"max_new_tokens": 4, **extra}
        assert vlm.generate(encoded, **options) == vlm.generate(plain, **options)


def test_pruned_rows_are_those_of_one_by_one(vlm) -> None:
    wanted = [Region(0, 0, 3, 3), [Region(0, 0, 0, 0), Region(7, 7, 7, 7)], None]
    inputs = vlm.inputs(pictures(), QUESTIONS)
    with pruned(vlm, ILP(1), regions=wanted, image_sizes=inputs.image_sizes) as patch:
        together = vlm.generate(inputs, max_new_tokens=4)
    kept = [sum(covered(inputs.grids[row], wanted[row])) for row in range(2)]
    assert patch.kept_B.tolist() == [*kept, inputs.grids[2].num_tokens]
    for row in range(3):
        alone = vlm.inputs(pictures()[row : row + 1], QUESTIONS[row : row + 1])
        with pruned(vlm, ILP(1), regions=wanted[row : row + 1], grids=alone.grids):
            assert vlm.generate(alone, max_new_tokens=4) == together[row : row + 1]


def test_prompts(vlm) -> None:
    prompt = vlm.processor.prompt("Read <IMG_CONTEXT> it .", 2)
    assert prompt == (
        "<|im_start|>user <img><IMG_CONTEXT><IMG_CONTEXT></img>\nRead < IMG_CONTEXT> it .<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    with pytest.raises(ValueError, match="empty"):
        vlm.processor.prompt(" ", 2)


def test_loading_and_what_does_not_fit(vlm, tmp_path) -> None:
    tiny_internvl(2, dtype=torch.float32).save_pretrained(tmp_path)
    vlm.save_processor(tmp_path)
    loaded = load_vlm(str(tmp_path), device="cpu")
    assert isinstance(loaded, InternVLVLM)
    inputs = loaded.inputs(pictures(), QUESTIONS)
    assert torch.equal(inputs.tensors["input_ids"], vlm.inputs(pictures(), QUESTIONS).tensors["input_ids"])
    tokenizer = intern_tokenizer()
    tokenizer.chat_template = None
    with pytest.raises(ValueError, match="no chat_template"):
        InternProcessor(intern_images(), tokenizer)
    other = intern_images()
    other.size = {"height": 16, "width": 16}
    with pytest.raises(ValueError, match="one checkpoint"):
        InternVLVLM(vlm.model, InternProcessor(other, intern_tokenizer()))
    with pytest.raises(NotImplementedError, match="cannot be trained"):
        _ = vlm.prepare


@torch.no_grad()
def test_vision_flops_against_counts() -> None:
    vlm = InternVLVLM(tiny_internvl(2, dtype=torch.float32, attention="eager"), intern_processor())
    for picture in pictures():
        with FlopCounterMode(display=False) as counter:
            vlm.encode_images([picture])
        assert counter.get_total_flops() == cost.vision_flops(
            vlm.model.config, crops=vlm.token_map(*picture.size).crops
        )
