"""Studies: lists of knobs become arms, and every key and value is checked before anything is loaded."""

from __future__ import annotations

import pytest

from cropl.errors import UsageError
from cropl.evaluation.study import Study

BASE = {"model": "m", "localizer": "l", "data": {"class_path": "a.b"}}


def study(arms, **changes):
    return Study.from_config({**BASE, "arms": arms, **changes})


def test_lists_are_products_in_the_order_written():
    made = study([{"method": "ilp", "region_source": ["gt", "predicted"], "layer": [1, 2], "budget": [64, 0.25]}])
    assert [arm.key for arm in made.arms] == [
        "dense", "ilp-gt-k1-64", "ilp-gt-k1-0.25", "ilp-gt-k2-64", "ilp-gt-k2-0.25",
        "ilp-predicted-k1-64", "ilp-predicted-k1-0.25", "ilp-predicted-k2-64", "ilp-predicted-k2-0.25",
    ]  # fmt: skip


def test_names_say_what_differs():
    made = study(
        [
            {"method": "prune", "region_source": "gt", "budget": 64},
            {"method": "ilp", "region_source": "random", "layer": "all", "positions": "compact", "seeds": [3, 4]},
            {"method": "ilp", "region_source": "gt", "budget": 64, "budget_meaning": "layer_average"},
            {"method": "cropl.pruning.random.RandomTokens", "init_args": {"tokens": 5}},
        ],
        controls=["blank_image"],
    )
    assert [arm.key for arm in made.arms] == [
        "dense", "dense-blank_image", "prune-gt-k0-64", "ilp-random-kall-compact", "ilp-gt-64-layer_average",
        "randomtokens-tokens=5",
    ]  # fmt: skip
    assert made.arms[3].runs() == [3, 4] and made.arms[2].runs() == [None]
    assert made.arms[2].positions == "compact"


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"modle": "x"}, "did you mean 'model'"),
        ({"model": None}, "'model' is missing"),
        ({"data": {"init_args": {}}}, "class_path"),
        ({"data": {"class_path": "a", "initargs": {}}}, "did you mean 'init_args'"),
        ({"arms": "dense"}, "list of mappings"),
        ({"batch_size": 0}, "batch_size 0"),
        ({"batch_size": True}, "batch_size True"),
        ({"seeds": []}, "at least one"),
        ({"seeds": [1.5]}, "list of integers"),
        ({"controls": ["blank"]}, "did you mean 'blank_image'"),
        ({"batch_size": None}, "batch_size None"),
        ({"max_new_tokens": None}, "max_new_tokens None"),
        ({"max_new_tokens": "8"}, "max_new_tokens '8'"),
        ({"model": ["m"]}, r"model \['m'\]"),
        ({"localizer": 3}, "localizer 3 must be text or null"),
        ({"grounding": True}, "grounding True"),
        ({"regions": ["r.jsonl"]}, "regions .* must be text or null"),
        ({"out": 1}, "out 1"),
        ({"device": 0}, "device 0"),
        ({"dtype": 16}, "dtype 16"),
        ({"benchmark": None}, "benchmark None"),
        ({"data": {"class_path": 3}}, "class_path 3"),
        ({"data": {}}, "key 'data' is missing"),
        ({"data": {"a": 1}}, "e.g. cropl.testbed.samples.samples"),
        ({"data": {"class_path": "a", "init_args": [1]}}, r"init_args \[1\] must be a mapping"),
    ],
)
def test_study_errors(changes, says):
    with pytest.raises(UsageError, match=says):
        Study.from_config({**BASE, "arms": [{"method": "dense"}], **changes})


@pytest.mark.parametrize(
    ("arm", "says"),
    [
        ({"method": "ilq", "region_source": "gt"}, "did you mean 'ilp'"),
        ({}, "unknown method"),
        ({"method": "ilp"}, "needs a region_source"),
        ({"method": "ilp", "region_source": "pred"}, "did you mean 'predicted'"),
        ({"method": "ilp", "region_source": "gt", "layer": -1}, "layer -1"),
        ({"method": "ilp", "region_source": "gt", "layer": "first"}, "layer 'first'"),
        ({"method": "ilp", "region_source": "gt", "budget": 0}, "budget 0"),
        ({"method": "ilp", "region_source": "gt", "budget": 1.2}, "budget 1.2"),
        ({"method": "ilp", "region_source": "gt", "budget": "64"}, "budget '64'"),
        ({"method": "ilp", "region_source": "gt", "budget_meaning": "average"}, "budget_meaning"),
        ({"method": "ilp", "region_source": "gt", "positions": "kept"}, "positions"),
        ({"method": "prune", "region_source": "gt", "layer": 1}, "is ILP with layer 0"),
        ({"method": "random", "layer": 1}, "need a budget"),
        ({"method": "ilp", "region_source": "file"}, "needs the key 'regions'"),
        ({"method": "ilp", "region_source": "gt", "layers": 1}, "did you mean 'layer'"),
        ({"method": "ilp", "region_source": "gt", "layer": []}, "layer is an empty list"),
        ({"method": "ilp", "region_source": "gt", "init_args": [1]}, r"init_args \[1\] must be a mapping"),
        ({"method": "random", "budget": 4, "seeds": ["a"]}, r"seeds \['a'\] must be a list of integers"),
        ({"method": "dense", "budget": 64}, "budget 64 has no effect"),
        ({"method": "dense", "layer": 0}, "layer 0 has no effect"),
        ({"method": "dense", "region_source": "gt"}, "region_source 'gt' has no effect"),
        ({"method": "dense", "positions": "compact"}, "positions 'compact' has no effect"),
        ({"method": "cropl.pruning.dense.Dense", "init_args": {"a": 1}}, "init_args .* has no effect"),
    ],
)
def test_arm_errors(arm, says):
    with pytest.raises(UsageError, match=says):
        study([arm])


def test_no_arm_twice():
    with pytest.raises(UsageError, match="listed twice"):
        study([{"method": "ilp", "region_source": "gt", "budget": [64, 64]}])


def test_sizes_of_controls_need_a_source():
    with pytest.raises(UsageError, match="'center' needs a localizer"):
        study([{"method": "ilp", "region_source": "center", "budget": 64}], localizer=None)
    study([{"method": "ilp", "region_source": ["file", "center"], "budget": 64}], localizer=None, regions="r.jsonl")


@pytest.mark.parametrize(
    ("models", "names"),
    [
        (["testbed:plc"], [None]),
        (["testbed:plc", "testbed:plc_no_anchor"], [None, "plc_no_anchor"]),
        (["testbed:plc", "runs/testbed/plc/export"], ["testbed/plc", "runs/testbed/plc"]),
        (["a/mine/export", "b/mine/export", "c/other"], ["a/mine", "b/mine", "other"]),
        (["x/a/mine", "y/a/mine/"], ["x/a/mine", "y/a/mine"]),
        (["a/mine", "a/mine/export"], ["a/mine", "a/mine/export"]),
        (["export"], ["export"]),
    ],
)
def test_models_are_named_as_far_as_they_differ(models, names):
    made = study([{"method": "plc", "model": model, "region_source": "gt"} for model in models])
    assert [arm.model_name for arm in made.arms[1:]] == names
    assert [arm.model for arm in made.arms[1:]] == models
    keys = [arm.key for arm in made.arms]
    assert keys[1:] == ["-".join(part for part in ("plc", name, "gt") if part) for name in names]


def test_one_model_twice_is_an_arm_twice():
    with pytest.raises(UsageError, match="listed twice"):
        study([{"method": "plc", "model": "a/mine", "region_source": "gt"}] * 2)
