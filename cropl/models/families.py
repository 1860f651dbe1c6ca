"""The model families of this package: `config.model_type` -> dotted path of its `VLM` class.

A family outside the package needs no entry: a study names its class (`family`), and in Python one constructs it.
"""

FAMILIES = {
    "llava": "cropl.models.llava.LlavaVLM",
    "llava_next": "cropl.models.llava_next.LlavaNextVLM",
    "internvl": "cropl.models.internvl.InternVLVLM",
    "qwen2_vl": "cropl.models.qwen2_vl.Qwen2VLVLM",
    "qwen2_5_vl": "cropl.models.qwen2_5_vl.Qwen2_5_VLVLM",
}
