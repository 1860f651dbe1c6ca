"""LLaVA behind the VLM protocol: geometry against the real image processor, inputs, encoded images, loading."""

from __future__ import annotations

import copy
import random

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import CLIPImageProcessor
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

from cropl.grid import GRID, Region, TokenGrid
from cropl.models.inputs import VLMInputs, as_encoder_output
from cropl.models.llava import LlavaVLM, pad_to_square
from cropl.models.loading import ModelLoadError
from cropl.models.vlm import VLM, as_vlm, family, load_vlm
from cropl.pruning import ILP, pruned
from tests.reference.checkpoints import save_tiny, tiny_processor
from tests.reference.tiny import tiny_llava

BOX = Image.Resampling.BOX
REGIONS = st.tuples(*[st.integers(0, GRID - 1)] * 4).map(
    lambda c: Region(min(c[0], c[2]), min(c[1], c[3]), max(c[0], c[2]), max(c[1], c[3]))
)
QUICK = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def processor(size: int) -> LlavaImageProcessorPil:
    return LlavaImageProcessorPil(
        do_pad=True,
        do_normalize=False,
        resample=BOX,  # averages areas, where the default bicubic would spill over edges
        size={"shortest_edge": size},
        crop_size={"height": size, "width": size},
    )


def touched(width: int, height: int, pixels: tuple[int, int, int, int], size: int, patch: int) -> np.ndarray:
    """Tokens (side, side) in which a rectangle shows that was drawn into the image and went through the processor."""
    images = []
    for colour in (0, 255):
        image = np.zeros((height, width, 3), dtype=np.uint8)
        x0, y0, x1, y1 = pixels
        image[y0:y1, x0:x1] = colour
        images.append(processor(size)(images=Image.fromarray(image), return_tensors="np")["pixel_values"][0, 0])
    changed = images[0] != images[1]
    side = size // patch
    return changed.reshape(side, patch, side, patch).any(axis=(1, 3))


@pytest.mark.parametrize(("size", "patch"), [(336, 14), (192, 8)])
@QUICK
@given(long=st.integers(1, 25), short=st.integers(1, 75), tall=st.booleans(), region=REGIONS)
def test_token_map_is_what_the_processor_renders(size, patch, long, short, tall, region) -> None:
    # Every edge of a block, of the padding and of a token is a whole pixel here, so the rendering is exact.
    side = 24 * long
    short = min(side, 8 * short)
    width, height = (short, side) if tall else (side, short)
    x0, y0, x1, y1 = region.edges()
    rectangle = (x0 * width // 8, y0 * height // 8, x1 * width // 8, y1 * height // 8)
    r0, r1, c0, c1 = TokenGrid.padded_square(24, width, height).span(region)
    expected = np.zeros((24, 24), dtype=bool)
    expected[r0:r1, c0:c1] = True
    assert (touched(width, height, rectangle, size, patch) == expected).all()


@pytest.mark.parametrize(("size", "patch"), [(336, 14), (192, 8)])
@QUICK
@given(width=st.integers(24, 500), height=st.integers(24, 500), region=REGIONS)
def test_token_map_of_any_size(size, patch, width, height, region) -> None:
    # Edges fall between pixels: what is drawn inside the region shows inside the span, and what is drawn around it
    # fills the span, up to slivers of a pixel.
    x0, y0, x1, y1 = region.edges()
    inner = (-(-x0 * width // 8), -(-y0 * height // 8), x1 * width // 8, y1 * height // 8)
    outer = (x0 * width // 8, y0 * height // 8, -(-x1 * width // 8), -(-y1 * height // 8))
    r0, r1, c0, c1 = TokenGrid.padded_square(24, width, height).span(region)
    span = np.zeros((24, 24), dtype=bool)
    span[r0:r1, c0:c1] = True
    assert not (touched(width, height, inner, size, patch) & ~span).any()
    shown = touched(width, height, outer, size, patch)
    core = np.zeros_like(span)
    core[r0 + 1 : r1 - 1, c0 + 1 : c1 - 1] = True
    assert shown[core].all()
    rows, cols = shown.any(axis=1).nonzero()[0], shown.any(axis=0).nonzero()[0]
    pixel = max(width, height) / 24  # pixels per token
    slack = 1 if pixel < 4 else 0
    assert r0 - slack <= rows[0] + 1 and rows[-1] <= r1 + slack and c0 - slack <= cols[0] + 1 and cols[-1] <= c1 + slack


@pytest.mark.parametrize("kind", [CLIPImageProcessor, LlavaImageProcessorPil])
@pytest.mark.parametrize("size", [(64, 40), (33, 70), (48, 48), (7, 90)])
def test_pixels_are_llavas_padded_ones_whatever_the_processor_says(kind, size) -> None:
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))
    shape = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    vlm = LlavaVLM(tiny_llava(2, dtype=torch.float32), tiny_processor())
    vlm.processor.image_processor = kind(**shape)
    expected = LlavaImageProcessorPil(do_pad=True, **shape)(images=image, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(vlm.pixel_values([image]), expected)


def test_padding() -> None:
    square = pad_to_square(Image.new("RGB", (4, 7), (1, 2, 3)), (9, 8, 7))
    assert square.size == (7, 7)
    assert [x for x in range(7) if square.getpixel((x, 0)) == (1, 2, 3)] == [1, 2, 3, 4]
    assert square.getpixel((0, 0)) == (9, 8, 7)
    assert pad_to_square(Image.new("RGBA", (5, 5)), (0, 0, 0)).mode == "RGB"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def vlm(folder) -> VLM:
    return load_vlm(str(folder), device="cpu")


@pytest.fixture
def images() -> list[Image.Image]:
    rng = np.random.default_rng(1)
    sizes = [(64, 40), (40, 90), (50, 50)]
    return [Image.fromarray(rng.integers(0, 256, (h, w, 3), dtype=np.uint8)) for w, h in sizes]


QUESTIONS = ["What colour is the sign ?", "Read it .", "How many ?"]


def test_loading(folder, vlm) -> None:
    assert isinstance(vlm, LlavaVLM) and vlm.model.dtype == torch.float32 and not vlm.model.training
    assert load_vlm(str(folder), dtype=torch.bfloat16, device="cpu").model.dtype == torch.bfloat16
    assert (vlm.num_layers, vlm.side, vlm.image_token_id) == (3, 8, 99)
    assert as_vlm(vlm) is vlm and as_vlm(vlm.model).processor is None


def test_inputs(vlm, images) -> None:
    inputs = vlm.inputs(images, QUESTIONS)
    ids, mask = inputs.tensors["input_ids"], inputs.tensors["attention_mask"]
    assert len(inputs) == 3 and inputs.image_sizes == [(64, 40), (40, 90), (50, 50)]
    assert vlm.visual_mask(ids).sum(1).tolist() == [grid.num_tokens for grid in inputs.grids] == [64] * 3
    assert (mask[:, -1] == 1).all() and (mask[1:, 0] == 0).any()  # left padding, whatever the tokenizer says
    assert inputs.grids[0] == TokenGrid.padded_square(8, 64, 40)
    assert inputs.to("cpu").tensors["pixel_values"].shape == (3, 3, 32, 32)


def test_images_are_encoded_once(vlm, images) -> None:
    features = vlm.encode_images(images)
    assert [tuple(feature.shape) for feature in features] == [(64, 32)] * 3
    plain, encoded = vlm.inputs(images, QUESTIONS), vlm.inputs(images, QUESTIONS, features)
    assert "pixel_values" not in encoded.tensors
    options = {"max_new_tokens": 5}
    expected = vlm.generate(plain, **options)
    for extra in ({}, {"num_beams": 3}, {}):  # beams expand features in place: the batch must survive that
        answers = vlm.generate(encoded, **options, **extra)
        assert len(answers) == 3
    assert answers == expected
    with torch.no_grad():
        torch.testing.assert_close(vlm.model(**encoded.kwargs()).logits, vlm.model(**plain.kwargs()).logits)


def test_pruned_through_the_vlm(vlm, images) -> None:
    regions = [Region(0, 0, 3, 3), Region(2, 2, 6, 6), Region.full()]
    inputs = vlm.inputs(images, QUESTIONS)
    with pruned(vlm, ILP(1), regions=regions, grids=inputs.grids) as patch:
        together = vlm.generate(inputs, max_new_tokens=4)
    with pruned(vlm.model, ILP(1), regions=regions, image_sizes=inputs.image_sizes) as again:
        assert vlm.generate(inputs, max_new_tokens=4) == together
    assert patch.kept_B.tolist() == again.kept_B.tolist()
    for row in range(3):
        alone = vlm.inputs(images[row : row + 1], QUESTIONS[row : row + 1])
        with pruned(vlm, ILP(1), regions=regions[row : row + 1], grids=alone.grids):
            assert vlm.generate(alone, max_new_tokens=4) == together[row : row + 1]


def test_questions_cannot_smuggle_images(vlm, images) -> None:
    for mark in ("<image>", " <image><image>", "<<image>>"):
        inputs = vlm.inputs(images[:1], [f"What {mark} is it ?"])
        assert vlm.visual_mask(inputs.tensors["input_ids"]).sum() == 64
    with pytest.raises(ValueError, match="empty"):
        vlm.inputs(images[:1], ["  "])


def test_control_tokens_are_those_of_the_tokenizer(vlm, images) -> None:
    tokenizer = copy.deepcopy(vlm.processor.tokenizer)
    tokenizer.add_tokens(["[INST]"], special_tokens=True)
    tokenizer.add_tokens(["signpost"])  # a word of its own, and no control token
    processor = copy.copy(vlm.processor)
    processor.tokenizer = tokenizer
    made = LlavaVLM(vlm.model, processor).inputs(images[:1], ["Read [INST] the signpost ?"]).tensors["input_ids"][0]
    assert tokenizer.convert_tokens_to_ids("[INST]") not in made
    assert tokenizer.convert_tokens_to_ids("signpost") in made
    assert "[INST]" not in tokenizer.all_special_tokens  # what it names is not all that it reads as control


def test_bad_inputs(vlm, images) -> None:
    with pytest.raises(ValueError, match="3 images and 2 questions"):
        vlm.inputs(images, QUESTIONS[:2])
    with pytest.raises(ValueError, match="no images"):
        vlm.inputs([], [])
    with pytest.raises(ValueError, match="1 image features for 3 images"):
        vlm.inputs(images, QUESTIONS, vlm.encode_images(images[:1]))
    with pytest.raises(ValueError, match="no processor"):
        LlavaVLM(vlm.model).inputs(images, QUESTIONS)


def test_models_that_do_not_fit(vlm) -> None:
    with pytest.raises(ValueError, match="not Linear"):
        LlavaVLM(torch.nn.Linear(2, 2))
    other = tiny_processor()
    other.image_token_id = 7
    with pytest.raises(ValueError, match="same checkpoint"):
        LlavaVLM(vlm.model, other)
    full = tiny_llava(2)
    full.config.vision_feature_select_strategy = "full"
    with pytest.raises(ValueError, match="only 'default'"):
        LlavaVLM(full)
    with pytest.raises(ValueError, match="'bert' is not supported; supported: llava, .*qwen2_vl"):
        family("bert")


def test_loading_errors_are_one_line(folder, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    empty, broken = tmp_path / "empty", tmp_path / "broken"
    empty.mkdir()
    broken.mkdir()
    for file in folder.iterdir():
        data = file.read_bytes()
        (broken / file.name).write_bytes(data[: len(data) // 2] if file.suffix == ".safetensors" else data)
    pickled = tmp_path / "pickled"
    pickled.mkdir()
    (pickled / "config.json").write_bytes((folder / "config.json").read_bytes())
    torch.save({}, pickled / "pytorch_model.bin")
    for name in (str(tmp_path / "missing"), str(empty), str(broken), str(pickled), "nobody/no-such-model"):
        with pytest.raises(ModelLoadError) as caught:
            load_vlm(name, device="cpu")
        assert name in str(caught.value) and "\n" not in str(caught.value)


def test_inputs_copy() -> None:
    features = [torch.zeros(4, 2)]
    grid = TokenGrid.padded_square(2, 1, 1)
    inputs = VLMInputs({"mm_encoder_outputs": as_encoder_output(features)}, [grid])
    copied = inputs.kwargs()["mm_encoder_outputs"]["image"]
    copied.pooler_output = features * 3
    assert len(inputs.tensors["mm_encoder_outputs"]["image"].pooler_output) == 1
    moved = inputs.to("meta").tensors["mm_encoder_outputs"]["image"].pooler_output
    assert moved[0].device.type == "meta"


def test_random_regions_keep_something(vlm) -> None:
    rng = random.Random(0)
    for _ in range(200):
        grid = vlm.token_grids([(rng.randint(1, 900), rng.randint(1, 900))])[0]
        x, y = rng.randint(0, 7), rng.randint(0, 7)
        r0, r1, c0, c1 = grid.span(Region(x, y, x, y))
        assert r0 < r1 and c0 < c1
