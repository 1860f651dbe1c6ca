"""Which settings of a run are others than its checkpoint's: none passes silently, and none is made up."""

from __future__ import annotations

from typing import Any

import pytest

from cropl import cli, recipe
from cropl.callbacks.identity import check_settings, differences, settings_of

MODULE = "cropl.modules.instruction.InstructionModule"


def config(trainer: dict[str, Any] | None = None, **arguments: Any) -> dict[str, Any]:
    return {
        "model": {"class_path": MODULE, "init_args": {"checkpoint": "x", **arguments}},
        "data": {"class_path": "cropl.datamodules.testbed.TestbedScenes", "init_args": {"scenes": 8}},
        "trainer": trainer or {"precision": "32-true"},
        "seed_everything": 0,
    }


def settings(trainer: dict[str, Any] | None = None, **arguments: Any) -> dict[str, Any]:
    return settings_of(config(trainer, **arguments))


def fsdp2(compute_dtype: str) -> dict[str, Any]:
    strategy = {"class_path": "cropl.parallel.FSDP2", "init_args": {"compute_dtype": compute_dtype}}
    return {"precision": "32-true", "strategy": strategy}


@pytest.mark.parametrize(
    "before, after, told",
    [
        ({"max_pixels": 5}, None, "model_options.max_pixels: 5 in the checkpoint, None now"),
        (None, {"max_pixels": 5}, "model_options.max_pixels: None in the checkpoint, 5 now"),
        ({"max_pixels": 5}, {"max_pixels": 5, "min_pixels": 1}, "model_options.min_pixels: None in the checkpoint, 1"),
        ({"max_pixels": 5}, {}, "model_options.max_pixels: 5 in the checkpoint, None now"),
    ],
)
def test_options_that_are_mappings(before, after, told):
    saved, now = settings(model_options=before), settings(model_options=after)
    with pytest.raises(ValueError, match=told):
        check_settings(saved, now, allow=False)
    assert check_settings(saved, now, allow=True)
    assert not check_settings(saved, saved, allow=False)
    assert not check_settings(settings(model_options=None), settings(model_options={}), allow=False)


def test_an_option_that_is_newer_than_the_checkpoint_had_its_default():
    old = settings(lr=0.5)
    assert not differences(old, settings(lr=0.5, loss_weighting="token", warmup=0.03, betas=[0.9, 0.98], lora=None))
    (told,) = differences(old, settings(lr=0.5, loss_weighting="sample"))
    assert told == "model.init_args.loss_weighting: 'token' in the checkpoint, 'sample' now"
    (told,) = differences(old, settings(lr=0.5, lora={"rank": 4}))
    assert told == "model.init_args.lora.rank: None in the checkpoint, 4 now"
    irrelevant = dict(old) | {"data.init_args.micro_batch": 2}  # as a version may have seen it
    assert not differences(irrelevant, old)


def test_precision_is_compared_by_what_computes():
    float32, bfloat16 = settings(fsdp2("float32")), settings(fsdp2("bfloat16"))
    mixed, plain = settings({"precision": "bf16-mixed"}), settings({"precision": None})
    assert differences(float32, bfloat16) == ["trainer.compute_dtype: 'float32' in the checkpoint, 'bfloat16' now"]
    assert not differences(bfloat16, mixed) and not differences(mixed, bfloat16) and not differences(float32, plain)
    assert differences(plain, mixed) and differences(mixed, float32)
    assert differences(mixed, settings({"precision": "bf16-true"}))


def test_checkpoints_without_a_compute_dtype_have_a_precision():
    def old(trainer):
        return {name: value for name, value in settings(trainer).items() if name != "trainer.compute_dtype"}

    assert not differences(old({"precision": "bf16-mixed"}), settings({"precision": "bf16-mixed"}))
    assert not differences(old(fsdp2("bfloat16")), settings(fsdp2("bfloat16")))
    (told,) = differences(old({"precision": "bf16-mixed"}), settings({"precision": "32-true"}))
    assert told == "trainer.precision: 'bf16-mixed' in the checkpoint, '32-true' now"


def test_of_another_class_only_the_class_is_told():
    now = config()
    now["data"] = {"class_path": "cropl.datamodules.mixed.MixedShards", "init_args": {"global_batch": 4}}
    (told,) = differences(settings(), settings_of(now))
    assert told.startswith("data.class_path")
    assert not differences({}, settings()) and not differences(settings(), {}), "saved without the command line"


def test_a_recipe_is_the_same_on_one_gpu_and_on_many():
    def parsed(*names: str) -> dict[str, Any]:
        flags = [part for name in names for part in ("--config", str(recipe.find(name)))]
        parser = cli.training_cli(flags, run=False, instantiate=False)
        return settings_of(parser.config.as_dict())

    one, many = (parsed("localizer/qwen2_vl_2b", each) for each in ("trainer/single_gpu", "trainer/fsdp2"))
    assert one["trainer.precision"] != many["trainer.precision"]
    assert one["trainer.compute_dtype"] == many["trainer.compute_dtype"] == "bfloat16"
    assert [told for told in differences(one, many) if not told.startswith("data.")] == []
