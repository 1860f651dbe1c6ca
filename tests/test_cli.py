"""The command line as a user meets it: verbs, recipes by name, one-line errors, exit codes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import lightning.pytorch  # noqa: F401  # its log keeps the stream that it finds when it is first imported
import pytest

from cropl import __version__, cli, recipe
from cropl.testbed.build import build_qwen2_vl


def call(capsys, *args: str) -> tuple[int, str, str]:
    code = cli.main(list(args))
    out, err = capsys.readouterr()
    return code, out, err


def test_help_and_version(capsys):
    assert call(capsys, "--version")[:2] == (0, f"cropl {__version__}\n")
    code, out, _ = call(capsys, "--help")
    assert code == 0 and all(verb in out for verb in (*cli.TRAINING_VERBS, *cli.COMMANDS))
    assert call(capsys)[0] == 2


def test_the_light_verbs_do_not_load_torch():
    script = (
        "import sys; from cropl import cli; code = cli.main(['ls']); assert 'torch' not in sys.modules; sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0 and "testbed/study" in done.stdout, done.stderr


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["fitt"], "did you mean 'fit'"),
        (["fit", "-c", "testbed/localiser"], "did you mean 'testbed/localizer'"),
        (["show", "testbed/stdy"], "did you mean 'testbed/study'"),
        (["ls", "nothing/"], "no built-in recipe starts with"),
        (["fit", "-c", "testbed/localizer", "--model.init_args.lrr", "1"], "lrr"),
        (["fit", "-c", "testbed/localizer", "--trainer.max_stpes", "1"], "max_stpes"),
        (["fit", "-c", "testbed/localizer", "--trainer.max_steps", "many"], "max_steps"),
    ],
)
def test_a_slip_is_one_clear_line(capsys, args, expected):
    code, _, err = call(capsys, *args)
    assert code == 2
    assert expected in err and "Traceback" not in err and len(err.strip().splitlines()) == 1, err


def test_what_lightning_refuses_is_one_clear_line(capsys, monkeypatch, tmp_path):
    """A GPU asked for where there is none."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("lightning.pytorch.accelerators.cuda.CUDAAccelerator.is_available", staticmethod(lambda: False))
    code, _, err = call(capsys, "fit", "-c", "testbed/localizer", "--trainer.accelerator", "cuda")
    assert code == 2
    last = err.strip().splitlines()[-1]  # behind the progress of loading the model
    assert last.startswith("cropl: error: ") and "CUDA" in last and "Traceback" not in err, err


@pytest.mark.parametrize("name", [n for n in recipe.names("testbed/") if recipe.kind_of(recipe.load([n])) == "model"])
def test_every_training_recipe_parses(name, tmp_path):
    """All keys and types of a recipe are those of the classes it names."""
    from unittest.mock import patch

    import lightning.pytorch.cli as lightning_cli

    with patch.object(lightning_cli.LightningCLI, "instantiate_classes", lambda self: None):
        cli.training_cli(["--config", str(recipe.find(name))], run=False)


def test_fit_trains_the_localizer_and_leaves_what_one_needs(tmp_path, monkeypatch, capsys):
    """Two steps from an untrained base: checkpoint, resolved config, logs, overlay, and a localizer that loads."""
    from cropl.models.localizer import Localizer
    from cropl.testbed.samples import samples

    base = build_qwen2_vl(tmp_path / "base", layers=5, width=64)  # the recipe guides layers 1 to 4
    monkeypatch.chdir(tmp_path)
    settings = {
        "model.init_args.checkpoint": base,
        "data.init_args.checkpoint": base,
        "data.init_args.scenes": 8,
        "data.init_args.val_scenes": 2,
        "data.init_args.batch_size": 4,
        "data.init_args.cache": tmp_path / "cache",
        "trainer.max_steps": 2,
        "trainer.val_check_interval": 2,
    }
    flags = [part for key, value in settings.items() for part in (f"--{key}", str(value))]
    code, _, err = call(capsys, "fit", "-c", "testbed/localizer", *flags)
    assert code == 0, err
    run = tmp_path / "runs/testbed/localizer"
    assert (
        (run / "checkpoints/step-000002/checkpoint.ckpt").exists()
        and (run / "config.yaml").exists()
        and (run / "metrics.csv").exists()
    )
    assert list(run.glob("events.out.tfevents*")) and list(Path(run).rglob("step-*.png"))
    assert "mean_recall" in (run / "metrics.csv").read_text()
    (sample,) = samples("val", 1)
    Localizer.from_pretrained(str(run / "export")).locate([sample.image], [sample.question])
    saved = __import__("torch").load(run / "checkpoints/step-000002/checkpoint.ckpt", weights_only=True)["state_dict"]
    assert saved and not any(".visual.blocks." in name for name in saved), "the frozen tower is not in the checkpoint"

    code, _, err = call(
        capsys, "fit", "-c", "testbed/localizer", *flags, "--trainer.max_steps", "3", "--ckpt_path", "last"
    )
    assert code == 0, err
    continued = __import__("torch").load(run / "checkpoints/step-000003/checkpoint.ckpt", weights_only=True)
    assert continued["global_step"] == 3 and (run / "metrics.1.csv").exists()
