"""Untrained checkpoint folders as fixtures: real architectures and processors, narrow and random weights."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="session")
def tiny_llava(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Folder of an untrained LLaVA: 12x12 visual tokens, three narrow decoder layers, the testbed's vocabulary."""
    import torch
    from transformers import AutoProcessor, LlavaConfig, LlavaForConditionalGeneration

    from cropl.testbed.build import build_llava

    folder = build_llava(tmp_path_factory.mktemp("llava"), layers=3, width=32)
    config, processor = LlavaConfig.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
    config.vision_config.image_size, config.image_seq_length = 96, 144
    config.vision_config.num_hidden_layers = 1
    torch.manual_seed(0)
    LlavaForConditionalGeneration(config).save_pretrained(folder)
    processor.image_processor.size = {"shortest_edge": 96}
    processor.image_processor.crop_size = {"height": 96, "width": 96}
    processor.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def tiny_localizer(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Folder of an untrained localizer: a Qwen2-VL whose tokenizer knows the coordinate tokens."""
    from transformers import AutoTokenizer, Qwen2VLForConditionalGeneration

    from cropl.prompt import RegionCodec
    from cropl.testbed.build import build_qwen2_vl

    folder = build_qwen2_vl(tmp_path_factory.mktemp("localizer"), layers=2, width=128)
    model, tokenizer = Qwen2VLForConditionalGeneration.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(RegionCodec().added_tokens, special_tokens=True)
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)
