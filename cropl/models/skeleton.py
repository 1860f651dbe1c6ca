"""Models without weights, on the `meta` device: shapes and types of a checkpoint from its config alone.

The configs of the models that the paper trains are kept in `published/`, as they are on the hub: nothing is fetched.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import AutoConfig
from transformers.configuration_utils import PreTrainedConfig

from cropl.models.loading import load_config, load_tokenizer
from cropl.models.vlm import VLM, family

PUBLISHED = {
    "Qwen/Qwen2-VL-2B-Instruct": "qwen2_vl_2b",
    "llava-hf/llava-1.5-7b-hf": "llava_1_5_7b",
    "llava-hf/llava-1.5-13b-hf": "llava_1_5_13b",
}
"""Names on the hub, and the files in `published/`."""


def config_of(name_or_path: str) -> PreTrainedConfig:
    """The config of a local folder, or of a published model that is kept here.

    Raises:
        ValueError: it is neither.
    """
    path = Path(name_or_path).expanduser()
    if path.is_dir():
        return load_config(str(path))
    if name_or_path not in PUBLISHED:
        raise ValueError(
            f"{name_or_path} is no local folder and not one of the models whose shapes are known here: "
            f"{', '.join(PUBLISHED)}; download it and give its folder"
        )
    kept = Path(__file__).parent / "published" / f"{PUBLISHED[name_or_path]}.json"
    config: PreTrainedConfig = AutoConfig.for_model(**json.loads(kept.read_text(encoding="utf-8")))
    return config


def skeleton(name_or_path: str, dtype: torch.dtype = torch.float32, new_tokens: Sequence[str] = ()) -> VLM:
    """The model of a checkpoint on the `meta` device, without a processor.

    Args:
        name_or_path: see `config_of`.
        dtype: of all its weights.
        new_tokens: that the tokenizer is to know. The embedding table of a local folder grows where they do not fit;
            Qwen2-VL's published one is padded, and has room for hundreds.

    Raises:
        ValueError: the model is not known here, or its family is not supported.
    """
    config = config_of(name_or_path)
    wrapper = family(config.model_type)
    with torch.device("meta"):
        model = wrapper.model_class._from_config(config, dtype=dtype)
    model.tie_weights()
    if new_tokens and name_or_path not in PUBLISHED:
        tokenizer = load_tokenizer(name_or_path)
        tokenizer.add_tokens(list(new_tokens), special_tokens=True)
        if len(tokenizer) > model.get_input_embeddings().weight.shape[0]:
            model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    return wrapper(model.eval())
