"""The localizer decodes four coordinates that always form a region, alike one by one and in a batch."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

from cropl.commands import check_memory
from cropl.commands.models import open_localizer
from cropl.grid import Region
from cropl.models.localizer import Localizer
from cropl.models.qwen2_vl import DEFAULT_MAX_PIXELS
from cropl.models.vlm import load_vlm
from cropl.modules.localizer import LocalizerModule, add_tokens
from cropl.prompt import RegionCodec
from cropl.testbed.build import build_qwen2_vl
from cropl.testbed.samples import samples


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return str(build_qwen2_vl(tmp_path_factory.mktemp("qwen2_vl"), layers=2, width=64))


@pytest.fixture(scope="module")
def trained(base, tmp_path_factory):
    """A localizer's checkpoint (untrained, but with its tokens), written by the module that trains it."""
    torch.manual_seed(1)
    module = LocalizerModule(base)
    folder = tmp_path_factory.mktemp("localizer")
    module.export(folder)
    return module, str(folder)


def test_a_readout_travels_with_the_checkpoint(base, tmp_path):
    module = LocalizerModule(base, readout="expected_recall:0.8")
    module.export(tmp_path)
    assert str(Localizer.from_pretrained(str(tmp_path)).readout) == "expected_recall:0.8"
    assert str(Localizer.from_pretrained(str(tmp_path), readout="greedy").readout) == "greedy"
    assert str(LocalizerModule(str(tmp_path)).readout) == "expected_recall:0.8"
    with pytest.raises(ValueError, match="readout 'coverage:1.5': give 0 < level < 1"):
        Localizer.from_pretrained(str(tmp_path), readout="coverage:1.5")
    with pytest.raises(ValueError, match="digits"):
        LocalizerModule(base, codec="digits", readout="expected_recall:0.8")


def test_the_input_size_travels_with_the_checkpoint(base, tmp_path):
    module = LocalizerModule(base, model_options={"max_pixels": 20000})
    module.export(tmp_path / "small")
    small = str(tmp_path / "small")
    made = samples("val", 1)[0].image.resize((300, 200))
    (grid,) = module.vlm.inputs([made], ["?"]).grids
    assert Localizer.from_pretrained(small).vlm.inputs([made], ["?"]).grids == [grid]
    assert load_vlm(base).inputs([made], ["?"]).grids != [grid]
    assert Localizer.from_pretrained(small).vlm.max_pixels == open_localizer(small).vlm.max_pixels == 20000
    assert open_localizer(small, max_pixels=30000).vlm.max_pixels == 30000
    assert LocalizerModule(small).vlm.max_pixels == 20000  # trained further as it was trained
    config = json.loads((tmp_path / "small/config.json").read_text())
    for size, says in ((0, "is 0"), ("big", "is 'big'"), (True, "is True"), (100, "max_pixels=100 is below")):
        (tmp_path / "small/config.json").write_text(json.dumps(config | {"cropl_max_pixels": size}))
        with pytest.raises(ValueError, match=says):
            Localizer.from_pretrained(small)


def test_a_size_above_the_default_travels_too(base, tmp_path):
    """Which the image processor alone would not tell: without a size of its own a checkpoint gets the default."""
    shutil.copytree(base, tmp_path / "base")
    path = tmp_path / "base/preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"size": {"shortest_edge": 3136, "longest_edge": 10**6}}))
    base = str(tmp_path / "base")
    assert load_vlm(base).max_pixels == DEFAULT_MAX_PIXELS
    LocalizerModule(base, model_options={"max_pixels": 500_000}).export(tmp_path / "large")
    assert Localizer.from_pretrained(str(tmp_path / "large")).vlm.max_pixels == 500_000


def test_the_codec_travels_with_the_checkpoint(base, tmp_path):
    LocalizerModule(base, codec="digits").export(tmp_path)
    made = samples("val", 2)
    for localizer in (Localizer.from_pretrained(str(tmp_path)), open_localizer(str(tmp_path))):
        assert localizer.codec.style == "digits"
        assert len(localizer.locate([s.image for s in made], [s.question for s in made])) == 2
    with pytest.raises(ValueError, match="coordinate tokens"):
        Localizer.from_pretrained(str(tmp_path), codec=RegionCodec("tokens"))
    again, other = LocalizerModule(str(tmp_path)), LocalizerModule(str(tmp_path), codec="tokens")
    assert (again.codec.style, other.codec.style) == ("digits", "tokens")
    assert again.model.config.region_codec == "digits" and other.model.config.region_codec == "tokens"
    config = json.loads((tmp_path / "config.json").read_text())
    for style in ("words", 3):
        (tmp_path / "config.json").write_text(json.dumps(config | {"region_codec": style}))
        with pytest.raises(ValueError, match=f"region_codec in a localizer's config.json.*{style!r}"):
            Localizer.from_pretrained(str(tmp_path))


def test_the_memory_of_a_further_training_counts_the_checkpoints_own(base, tmp_path):
    """Its input size and its codec, where the recipe names none."""
    LocalizerModule(base, codec="digits", model_options={"max_pixels": 20000}).export(tmp_path)
    arguments = {
        "checkpoint": str(tmp_path), "codec": None, "tune": "full", "lora": None, "dtype": "float32",
        "freeze_projector": False, "model_options": None, "max_tokens": 100,
    }  # fmt: skip
    vlm, _ = check_memory.prepared(LocalizerModule, arguments)
    assert vlm.model.get_input_embeddings().weight.shape == load_vlm(base).model.get_input_embeddings().weight.shape
    patch = vlm.merge * vlm.model.config.vision_config.patch_size
    assert check_memory.batch_of(vlm, [], arguments, 1).visual == 20000 // patch**2
    asked = {**arguments, "model_options": {"max_pixels": 30000}}
    assert check_memory.batch_of(vlm, [], asked, 1).visual == 30000 // patch**2


def test_older_checkpoints_have_their_coverage(base, tmp_path):
    """Whose config knows `region_coverage` alone, as that of the testbed's localizer."""
    LocalizerModule(base).export(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config.pop("region_readout") == "greedy"
    assert config.pop("region_codec") == "tokens" and config.pop("cropl_max_pixels")
    (tmp_path / "config.json").write_text(json.dumps(config | {"region_coverage": 0.8}))
    old = Localizer.from_pretrained(str(tmp_path))
    assert str(old.readout) == "coverage:0.8" and old.codec.style == "tokens"
    assert old.vlm.max_pixels == load_vlm(base).max_pixels
    module = LocalizerModule(str(tmp_path))
    module.export(tmp_path / "again")
    written = json.loads((tmp_path / "again/config.json").read_text())
    assert written["region_readout"] == "coverage:0.8" and "region_coverage" not in written
    (tmp_path / "config.json").write_text(json.dumps(config | {"region_coverage": 1.5}))
    with pytest.raises(ValueError, match="region_coverage.* is 1.5"):
        Localizer.from_pretrained(str(tmp_path))


def test_an_export_needs_nothing_of_the_folder_that_it_came_from(base, tmp_path):
    """As with a base from the hub, whose processor is not in a folder here."""
    shutil.copytree(base, tmp_path / "base")
    module = LocalizerModule(str(tmp_path / "base"))
    shutil.rmtree(tmp_path / "base")
    module.export(tmp_path / "export", dtype="float16")
    made = samples("val", 1)[0]
    assert len(Localizer.from_pretrained(str(tmp_path / "export")).locate([made.image], [made.question])) == 1


def test_a_batch_gives_what_its_rows_give_alone(trained):
    localizer = Localizer.from_pretrained(trained[1])
    made = samples("val", 7)
    images, questions = [s.image for s in made], [s.question for s in made]
    together = localizer.locate(images, questions)
    assert all(isinstance(region, Region) for region in together) and localizer.fallbacks == 0
    assert together == [localizer.locate([i], [q])[0] for i, q in zip(images, questions)]
    assert localizer.locate([], []) == [] and len(localizer.distribution([], [])) == 0


def test_a_model_without_coordinate_tokens_is_no_localizer(base):
    with pytest.raises(ValueError, match="coordinate tokens"):
        Localizer.from_pretrained(base)


def test_digits_need_no_tokens_and_fall_back_to_the_whole_image(base):
    localizer = Localizer.from_pretrained(base, codec=RegionCodec("digits"))
    made = samples("val", 2)
    assert localizer.locate([s.image for s in made], [s.question for s in made]) == [Region.full()] * 2
    assert localizer.fallbacks == 2


def test_the_embedding_table_only_grows(base):
    vlm = load_vlm(base)
    model, tokenizer = vlm.model, vlm.processor.tokenizer
    known = len(tokenizer)
    model.resize_token_embeddings(known + 40)  # a padded table, like the real checkpoint's
    before = model.get_input_embeddings().weight.detach().clone()
    add_tokens(model, tokenizer, RegionCodec().added_tokens)
    after = model.get_input_embeddings().weight
    assert len(after) == len(before) == known + 40
    assert torch.equal(after[:known], before[:known])
    assert model.get_output_embeddings().weight is after  # tied, and still so
    rows = after[known : known + 16]
    assert rows.std(0).mean() > 0 and len(torch.unique(rows, dim=0)) == 16
