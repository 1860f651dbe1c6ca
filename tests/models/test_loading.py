"""A checkpoint that is not whole is refused in one line; pictures are prepared by PIL wherever it is loaded."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlavaForConditionalGeneration, Qwen2VLForConditionalGeneration
from transformers.image_processing_backends import PilBackend
from transformers.image_processing_utils import BaseImageProcessor
from transformers.models.auto import image_processing_auto

from cropl.evaluation.facts import circumstances
from cropl.models import loading
from cropl.models.loading import ModelLoadError, load_image_processor, load_model, load_processor
from cropl.models.vlm import load_vlm
from cropl.testbed.build import build_llava, build_qwen2_vl


@pytest.fixture
def folder(tmp_path):
    return build_llava(tmp_path / "model", layers=1, width=32)


def rewrite(folder, change):
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def refused(folder, capsys, **options) -> str:
    with pytest.raises(ModelLoadError) as caught:
        load_model(LlavaForConditionalGeneration, str(folder), device="cpu", **options)
    message = str(caught.value)
    assert str(folder) in message and "\n" not in message
    assert "MISSING" not in "".join(capsys.readouterr())
    return message


def test_a_whole_checkpoint_loads(folder):
    assert not load_model(LlavaForConditionalGeneration, str(folder), device="cpu").training


def test_tied_weights_are_not_missing(tmp_path):
    folder = build_qwen2_vl(tmp_path, layers=1, width=64)
    assert not any("lm_head" in name for name in load_file(folder / "model.safetensors"))
    model = load_model(Qwen2VLForConditionalGeneration, str(folder), device="cpu")
    assert model.lm_head.weight is model.get_input_embeddings().weight


def test_missing_weights_are_named(folder, capsys):
    rewrite(folder, lambda tensors: [tensors.pop(name) for name in list(tensors) if "mlp" in name and "layers" in name])
    message = refused(folder, capsys)
    assert "mlp" in message and "is missing" in message and "more)" in message


def test_wrong_shapes_are_named(folder, capsys):
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["intermediate_size"] = 40
    (folder / "config.json").write_text(json.dumps(config))
    message = refused(folder, capsys)
    assert "mlp.down_proj.weight has the shape (32, 96), and the config asks for (32, 40)" in message


@pytest.mark.parametrize("error", [RuntimeError, ImportError, ValueError, KeyError])
def test_every_failure_is_one_line(folder, capsys, monkeypatch, error):
    def fails(*args, **kwargs):
        raise error("first line\nsecond line")

    monkeypatch.setattr(LlavaForConditionalGeneration, "from_pretrained", fails)
    assert "first line second line" in refused(folder, capsys)


def test_attention_that_is_not_installed(folder, capsys):
    assert "flash" in refused(folder, capsys, attn_implementation="flash_attention_2").lower()


def test_out_of_memory_is_no_damaged_checkpoint(folder, monkeypatch):
    def fails(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(LlavaForConditionalGeneration, "from_pretrained", fails)
    with pytest.raises(torch.OutOfMemoryError):
        load_model(LlavaForConditionalGeneration, str(folder), device="cpu")


@pytest.fixture(params=[build_llava, build_qwen2_vl])
def any_folder(request, tmp_path):
    return request.param(tmp_path / "model", layers=1, width=64)


def prefers(monkeypatch, any_folder, backend):
    """Make the checkpoint ask for a torchvision processor, and note which backend is asked for."""
    for path in any_folder.glob("*processor_config.json"):
        path.write_text(path.read_text().replace("ImageProcessorPil", "ImageProcessorFast"))
    asked = []
    real = image_processing_auto._resolve_backend

    def resolve(given, *others):
        asked.append(given)
        return real(given or backend, *others)

    monkeypatch.setattr(image_processing_auto, "_resolve_backend", resolve)
    return asked


def test_the_image_processor_is_the_pil_one(any_folder, monkeypatch):
    asked = prefers(monkeypatch, any_folder, "torchvision")
    assert type(load_image_processor(str(any_folder))).__name__ in (
        "LlavaImageProcessorPil",
        "Qwen2VLImageProcessorPil",
    )
    assert asked == ["pil"]


def test_the_processor_holds_the_pil_one_and_the_tokenizer_its_own_backend(folder, monkeypatch):
    asked = prefers(monkeypatch, folder, "torchvision")
    processor = load_processor(str(folder))
    assert isinstance(processor.image_processor, PilBackend) and asked[-1] == "pil"
    assert processor.tokenizer.init_kwargs["backend"] == "tokenizers"
    assert isinstance(load_vlm(str(folder), device="cpu").processor.image_processor, PilBackend)


def test_another_backend_is_refused(folder, monkeypatch):
    class TorchvisionOnly(BaseImageProcessor):
        pass

    monkeypatch.setattr(loading.AutoImageProcessor, "from_pretrained", lambda *args, **options: TorchvisionOnly())
    for load in (load_image_processor, load_processor):
        with pytest.raises(ModelLoadError, match="TorchvisionOnly has no PIL backend") as caught:
            load(str(folder))
        assert str(folder) in str(caught.value)


def test_an_evaluation_records_the_image_processor(any_folder):
    vlm = load_vlm(str(any_folder), device="cpu")
    recorded = circumstances(vlm)["image_processor"]
    assert recorded == type(vlm.processor.image_processor).__name__ and recorded.endswith("Pil")
