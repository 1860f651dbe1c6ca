"""Arms that answer with a model of their own are planned and told as that model, not as the study's."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoProcessor, LlavaConfig, LlavaForConditionalGeneration

from cropl.errors import UsageError
from cropl.evaluation.names import name
from cropl.evaluation.run import run_study
from cropl.evaluation.study import Study
from cropl.metrics import cost
from cropl.models.vlm import load_vlm
from cropl.testbed.samples import samples as scenes


@pytest.fixture(scope="module")
def models(tiny_llava, tmp_path_factory):
    """The study's, of three layers, and a deeper one with a deeper tower in another dtype; both with 12 x 12 tokens."""
    folder = tmp_path_factory.mktemp("deep")
    config = LlavaConfig.from_pretrained(tiny_llava)
    config.text_config.num_hidden_layers, config.vision_config.num_hidden_layers = 5, 2
    config.text_config.layer_types = None
    torch.manual_seed(1)
    LlavaForConditionalGeneration(config).save_pretrained(folder)
    AutoProcessor.from_pretrained(tiny_llava).save_pretrained(folder)
    return load_vlm(tiny_llava), load_vlm(str(folder), dtype=torch.bfloat16, attn_implementation="eager")


def study(*arms):
    own = [{"method": "ilp", "model": "x/deep", "region_source": "gt", "budget": 16, **arm} for arm in arms]
    config = {"model": "m", "data": {"class_path": "a.b"}, "arms": own, "max_new_tokens": 2, "bootstrap": 20}
    return Study.from_config(config)


def test_rows_are_those_of_the_model_that_answered(models):
    vlm, deep = models
    asked = study({"layer": "all"}, {"layer": 4}, {"layer": 2, "budget_meaning": "layer_average", "budget": 100})
    rows = run_study(asked, scenes("test", 3), vlm, models={"x/deep": deep}).results["rows"]
    dense, full, four, average = rows
    assert [row["num_layers"] for row in rows] == [3, 5, 5, 5]
    assert full["layer"] == 5 and full["tokens_kept_mean"] == full["layer_average_tokens"] == 144
    assert name(full, rows) == "ILP (deep), K = L, true regions"
    assert four["layer"] == 4 and four["layer_average_tokens"] == pytest.approx(
        (4 * 144 + four["tokens_kept_mean"]) / 5
    )
    assert average["layer_average_tokens"] == pytest.approx(100, abs=1)
    assert (dense["dtype"], full["dtype"]) == ("float32", "bfloat16")
    assert (dense["attention"], full["attention"]) == ("sdpa", "eager")
    seen = full["prefill_flops_with_vision"] - full["prefill_flops"]
    assert seen == cost.vision_flops(deep.model.config) > cost.vision_flops(vlm.model.config)


def test_layers_above_its_own_are_refused(models):
    vlm, deep = models
    with pytest.raises(UsageError, match="layer 6 is above 5"):
        run_study(study({"layer": 6}), scenes("test", 2), vlm, models={"x/deep": deep})
    with pytest.raises(UsageError, match="layer 4 is above 3"):
        run_study(study({"layer": 4}), scenes("test", 2), deep, models={"x/deep": vlm})


def test_a_model_that_was_not_loaded_is_told(models):
    with pytest.raises(UsageError, match="'x/deep' was not loaded"):
        run_study(study({"layer": 1}), scenes("test", 2), models[0])
