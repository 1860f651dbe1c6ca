"""The command line as a user meets it: verbs, recipes by name, one-line errors, exit codes."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
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
        (["fit"], "which recipe? cropl fit -c NAME_OR_PATH"),
        (["fit", "my.yaml"], "recipes stand behind -c: cropl fit -c my.yaml"),
        (["evaluate", "testbed/study"], "recipes are written -c NAME"),
        (["fit", "-c", "testbed/localizer", "--model.init_args.lrr", "1"], "'lrr' is not accepted; did you mean 'lr'?"),
        (["fit", "-c", "testbed/localizer", "--data.batchsize", "1"], "did you mean 'batch_size'?"),
        (["fit", "-c", "testbed/localizer", "--max_steps", "1"], "did you mean 'trainer.max_steps'?"),
        (["fit", "-c", "testbed/localizer", "--trainer.max_step", "1"], "did you mean 'trainer.max_steps'?"),
        (["fit", "-c", "testbed/localizer", "--trainer.max_stpes", "1"], "did you mean 'trainer.max_steps'?"),
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


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("", "the recipe is empty"),
        ("modle: {a: 1}", "did you mean 'model'?"),
        ("trainer: {max_stepz: 1}", "max_steps'?"),
    ],
)
def test_a_wrong_recipe_is_one_clear_line(capsys, tmp_path, content, expected):
    (tmp_path / "my.yaml").write_text(content)
    code, _, err = call(capsys, "fit", "-c", str(tmp_path / "my.yaml"))
    assert code == 2 and expected in err and len(err.strip().splitlines()) == 1, err


@pytest.mark.parametrize("verb", ["test", "predict"])
def test_a_verb_that_a_recipe_has_nothing_for(verb, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    scenes = ["--data.init_args.scenes", "2", "--data.init_args.val_scenes", "2"]
    code, _, err = call(capsys, verb, "-c", "testbed/localizer", *scenes)
    assert code == 2 and f"this recipe has nothing to {verb}" in err.splitlines()[-1]
    assert "cropl validate -c RECIPE --ckpt_path last" in err.splitlines()[-1]


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_ctrl_c_ends_a_training_with_its_own_exit_code(tmp_path):
    settings = ["--data.init_args.scenes", "8", "--data.init_args.val_scenes", "2", "--data.init_args.batch_size", "4",
                "--trainer.max_steps", "10000", "--trainer.val_check_interval", "1"]  # fmt: skip
    command = [sys.executable, "-m", "cropl", "fit", "-c", "testbed/localizer", *settings]
    run = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    saved = tmp_path / "runs/testbed/localizer/checkpoints"
    deadline = time.monotonic() + 120
    while not list(saved.glob("step-*")) and time.monotonic() < deadline:
        time.sleep(0.2)
    run.send_signal(signal.SIGINT)
    _, err = run.communicate(timeout=60)
    assert run.returncode == 130 and "cropl: interrupted" in err and "Traceback" not in err, err


def test_what_is_validated_is_told(capsys, monkeypatch, tmp_path):
    """Without --ckpt_path it is the base, where a training has left checkpoints."""
    base = build_qwen2_vl(tmp_path / "base", layers=5, width=64)
    monkeypatch.chdir(tmp_path)
    small = [f"--model.init_args.checkpoint={base}", f"--data.init_args.checkpoint={base}", "--data.init_args.scenes=8",
             "--data.init_args.val_scenes=2", "--data.init_args.batch_size=4"]  # fmt: skip
    one = ["--trainer.max_steps=1", "--trainer.val_check_interval=1"]
    assert call(capsys, "fit", "-c", "testbed/localizer", *small, *one)[0] == 0
    code, out, err = call(capsys, "validate", "-c", "testbed/localizer", *small)
    assert code == 0 and "as it was trained: --ckpt_path last" in out + err
    code, out, err = call(capsys, "validate", "-c", "testbed/localizer", *small, "--ckpt_path=last")
    assert code == 0 and "as it was trained" not in out + err


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
