"""Flat arguments as an arm of a study: what they become, where regions come from, and what is refused."""

from __future__ import annotations

import pytest

from cropl.errors import UsageError
from cropl.integrations.arm_options import ArmOptions
from cropl.models import region_sources as sources


def test_they_become_an_arm_of_a_study():
    given = {"pretrained": "m", "localizer": "l", "layer": 2, "keep": 64, "positions": "compact"}
    arm = ArmOptions.of(given).arm
    assert arm.key == "ilp-predicted-k2-64-compact" and arm.budget_meaning == "post_prune"
    arm = ArmOptions.of({"pretrained": "m", "method": "fastv", "keep": 0.5, "meaning": "layer_average"}).arm
    assert arm.key == "fastv-0.5-layer_average" and arm.region_source == "none"
    arm = ArmOptions.of({"pretrained": "m", "method": "random", "keep": 8, "seed": 3}).arm
    assert arm.runs() == [3]
    arm = ArmOptions.of({"pretrained": "testbed:plc", "method": "plc", "regions": "r"}).arm
    assert arm.options == {"compressor": "testbed:plc"} and arm.region_source == "file"
    arm = ArmOptions.of({"pretrained": "m", "localizer": "l", "layer": "all", "init_args": '{"a": [1, 2]}'}).arm
    assert arm.layer == "all" and arm.options == {"a": [1, 2]}


def test_regions_come_from_what_is_given(tmp_path):
    file = tmp_path / "regions.jsonl"
    file.write_text('{"key": "a", "region": [0, 0, 1, 1]}\n', encoding="utf-8")
    base = {"pretrained": "testbed:llava", "device": "cpu"}
    found = ArmOptions.of({**base, "localizer": "testbed:localizer"}).open_source(2)
    assert isinstance(found, sources.Predicted) and found.batch_size == 2
    found = ArmOptions.of({**base, "grounding": "testbed:qwen2_vl"}).open_source(2)
    assert isinstance(found, sources.ZeroShotGrounding) and found.batch_size == 2
    assert isinstance(ArmOptions.of({**base, "regions": str(file)}).open_source(2), sources.FromFile)
    options = {**base, "regions": str(file)}
    center = ArmOptions.of({**options, "region_source": "center"}).open_source(2)
    assert isinstance(center, sources.Center) and isinstance(center.of, sources.FromFile)
    random = ArmOptions.of({**options, "region_source": "random", "seed": 7}).open_source(2)
    assert isinstance(random, sources.Random) and random.seed == 7
    assert ArmOptions.of({**base, "method": "dense"}).open_source(2) is None


def test_a_model_is_loaded_as_asked():
    given = {"pretrained": "testbed:llava", "method": "dense", "device": "cpu", "dtype": "bfloat16", "attn": "eager"}
    vlm = ArmOptions.of({**given, "system": True}).open_vlm()
    assert str(vlm.model.dtype) == "torch.bfloat16" and vlm.model.config._attn_implementation == "eager" and vlm.system


@pytest.mark.parametrize(
    "given, message",
    [
        ({"method": "fastvv"}, "unknown method 'fastvv'"),
        ({"method": "ilp"}, "needs a region_source"),
        ({"method": "dense", "keep": 64}, "budget 64 has no effect"),
        ({"method": "dense", "factor": 0.5}, "factor has no effect without regions"),
        ({"localizer": "a", "regions": "b"}, "localizer and regions both tell regions"),
        ({"region_source": "gt"}, "region_source: unknown value 'gt'"),
        ({"region_source": "center"}, "region_source center takes the size of others: set localizer"),
        ({"region_source": "file", "localizer": "a"}, "region_source file needs regions"),
        ({"localizer": "a", "keep": 64, "factor": 0.5}, "give one of the two"),
        ({"localizer": "a", "factor": -1}, "factor -1: must be a number above 0"),
        ({"localizer": "a", "meaning": "mean"}, "meaning: unknown value 'mean'"),
        ({"localizer": "a", "init_args": "{"}, "init_args: no JSON"),
        ({"localizer": "a", "dtype": "float8"}, "dtype: unknown value 'float8'"),
        ({"method": "dense", "protocol": "fixed"}, "is a llava model, which has none"),
        ({"pretrained": ""}, "pretrained '': must be text"),
    ],
)
def test_wrong_arguments_are_named(given, message):
    with pytest.raises(UsageError, match=message):
        options = ArmOptions.of({"pretrained": "testbed:llava", **given})
        assert options.arm
        options.open_vlm()
