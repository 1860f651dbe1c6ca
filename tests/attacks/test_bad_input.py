"""Bad input of every sort: one clear line on stderr, the right exit code, no traceback."""

from __future__ import annotations

import pytest
from PIL import Image

from cropl.cli import main

USAGE, FAILED = 2, 1


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    Image.effect_noise((64, 48), 80).convert("RGB").save(folder / "good.jpg")
    whole = (folder / "good.jpg").read_bytes()
    (folder / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "page.png").write_text("<html>404</html>")
    Image.new("L", (4, 4)).save(folder / "picture.gif")
    (folder / "regions.jsonl").write_text('{"image": "other.jpg", "region": [0, 0, 1, 1]}\n')
    (folder / "broken.jsonl").write_text('{"image": "good.jpg", "region": [0, 0, 8, 1]}\n')
    (folder / "list.yaml").write_text("- a\n")
    return folder


def one_error(capsys, args):
    """Run; the exit code and the only line on stderr."""
    code = main([str(arg) for arg in args])
    told = capsys.readouterr()
    assert told.err.startswith("cropl: error: ") and told.err.count("\n") == 1, told.err
    assert "Traceback" not in told.err + told.out
    return code, told.err


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("none.jpg", "no such file"),
        ("cut.jpg", "cut.jpg"),
        ("empty.jpg", "not a JPEG, PNG or WebP"),
        ("page.png", "not a JPEG, PNG or WebP"),
        ("picture.gif", "not a JPEG, PNG or WebP"),
        (".", "directory"),
    ],
)
def test_images(files, capsys, name, says):
    code, message = one_error(capsys, ["ask", files / name, "What?"])
    assert code == USAGE and says in message


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--region", "0,0,8,1"], "0 to 7"),
        (["--region", "0,-1,3,3"], "0 to 7"),
        (["--region", "5,0,2,3"], "reversed"),
        (["--region", "1,2,3"], "four integers"),
        (["--region", "a,b,c,d"], "four integers"),
        (["--layer", "-1"], "at least 0"),
        (["--layer", "1.5"], "integer"),
        (["--budget", "0"], "at least 1 token"),
        (["--budget", "-3"], "at least 1 token"),
        (["--budget", "1.5"], "share in (0, 1]"),
        (["--budget", "many"], "number of tokens"),
        (["--budget", "nan"], "share in (0, 1]"),
        (["--max-new-tokens", "0"], "at least 1"),
        (["--method", "best"], "invalid choice"),
        (["--regions", "/no/such.jsonl"], "no such file"),
        (["--overlay", "/no/such/folder/x.png"], "folder does not exist"),
        (["--overlay", "x.txt"], "must end in"),
        (["--region", "0,0,1,1", "--localizer", "x"], "not allowed with"),
        (["--layer", "1", "--method", "prune"], "--layer goes with"),
        (["--method", "dense", "--budget", "8"], "--budget has no effect with --method dense"),
        (["--method", "dense", "--region", "0,0,1,1"], "--region has no effect"),
        (["--method", "dense", "--localizer", "x"], "--localizer has no effect"),
        (["--method", "dense", "--zero-shot", "x"], "--zero-shot has no effect"),
        (["--colour"], "unrecognized arguments"),
    ],
)
def test_flags_of_ask(files, capsys, flags, says):
    code, message = one_error(capsys, ["ask", files / "good.jpg", "What?", *flags])
    assert code == USAGE and says in message


@pytest.mark.parametrize("question", ["", "   ", "\n"])
def test_empty_question(files, capsys, question):
    code, message = one_error(capsys, ["ask", files / "good.jpg", question])
    assert code == USAGE and "question is empty" in message


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--region", "0,0,1,1", "--layer", "4"], "give 0 to 3"),
        (["--region", "0,0,1,1", "--budget", "145"], "144 visual tokens"),
        (["--regions", "regions.jsonl"], "no region for"),
        (["--regions", "broken.jsonl"], "broken.jsonl: line 1"),
        (["--region", "0,0,1,1", "--device", "cuda:99"], "cuda:99"),
        (["--region", "0,0,1,1", "--dtype", "int3"], "int3"),
    ],
)
def test_flags_that_need_the_model(files, capsys, tiny_llava, flags, says, monkeypatch):
    monkeypatch.chdir(files)
    code, message = one_error(capsys, ["ask", "good.jpg", "What?", "--model", tiny_llava, *flags])
    assert code == USAGE and says in message


def test_model_that_cannot_be_fetched(files, capsys, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # no waiting for retries
    args = ["ask", files / "good.jpg", "What?", "--model", "llava-hf/no-such-model", "--region", "0,0,1,1"]
    code, message = one_error(capsys, args)
    assert code == FAILED and "llava-hf/no-such-model" in message


def test_model_folder_without_model(files, capsys):
    code, message = one_error(capsys, ["ask", files / "good.jpg", "What?", "--model", str(files)])
    assert code == USAGE and f"{files} holds no model (no config.json)" in message
    code, message = one_error(capsys, ["ask", files / "good.jpg", "What?", "--model", "nowhere"])
    assert code == USAGE and "nowhere: no such folder of a model" in message
    code, message = one_error(capsys, ["ask", files / "good.jpg", "What?", "--model", "testbed:lava"])
    assert code == USAGE and "lava" in message


def test_the_folder_of_a_training_is_told_from_its_export(tmp_path, files, capsys):
    (tmp_path / "run" / "export").mkdir(parents=True)
    (tmp_path / "run" / "export" / "config.json").write_text("{}")
    args = ["ask", files / "good.jpg", "What?", "--localizer", tmp_path / "run"]
    code, message = one_error(capsys, args)
    assert code == USAGE and f"is the folder of a training: its model is {tmp_path / 'run'}/export" in message


def test_a_localizer_that_is_none(files, capsys, tiny_llava):
    args = ["ask", files / "good.jpg", "What?", "--model", tiny_llava, "--localizer", tiny_llava]
    code, message = one_error(capsys, args)
    assert code == USAGE and "is a llava checkpoint" in message


def test_pruning_a_family_without_surgery(files, capsys, tiny_localizer, monkeypatch):
    monkeypatch.setattr("cropl.models.qwen2_vl.Qwen2VLVLM.prunable", False)
    args = ["ask", files / "good.jpg", "What?", "--model", tiny_localizer, "--region", "0,0,1,1"]
    code, message = one_error(capsys, args)
    assert code == USAGE and "--method dense" in message


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["-c", "testbed/studdy"], "did you mean 'testbed/study'"),
        (["-c", "testbed/study", "--layr", "2"], "unknown key 'layr'"),
        (["-c", "testbed/study", "--batchsize", "2"], "did you mean 'batch_size'"),
        (["-c", "testbed/study", "--vars.budgts", "2"], "did you mean 'vars.budgets'"),
        (["-c", "testbed/study", "--vars.budgets", "0"], "at least 1 token"),
        (["-c", "testbed/study", "--vars.budgets", "[x]"], "number of tokens"),
        (["-c", "testbed/study", "--vars.layer", "-1"], "layer -1"),
        (["-c", "testbed/study", "--arms", "[{method: il}]"], "did you mean 'ilp'"),
        (["-c", "testbed/study", "--arms", "[{method: ilp, regions: gt}]"], "unknown key 'regions'"),
        (["-c", "testbed/study", "--arms", "[{method: ilp, layer: 1}]"], "region_source"),
        (["-c", "testbed/study", "--arms", "[{method: no.such.Method}]"], "cannot be imported"),
        (["-c", "testbed/study", "--localizer", "null"], "needs a localizer"),
        (["-c", "testbed/study", "--controls", "[dark]"], "dark"),
        (["-c", "testbed/study", "--data.class_path", "cropl.nothing"], "cannot be imported"),
        (["-c", "testbed/study", "--data.init_args.splt", "x"], "splt"),
        (["-c", "testbed/study", "--data.init_args.split", "x"], "split 'x'"),
        (["-c", "testbed/study", "--limit", "0"], "limit 0"),
        (["-c", "testbed/study", "oops"], "unexpected argument 'oops'"),
        (["-c"], "needs the name"),
        (["--limit", "3"], "no recipe given"),
    ],
)
def test_evaluate(capsys, tmp_path, monkeypatch, args, says):
    monkeypatch.chdir(tmp_path)
    code, message = one_error(capsys, ["evaluate", *args])
    assert code == USAGE and says in message
    assert not list(tmp_path.glob("runs/**/*.json"))


def test_recipe_that_is_none(files, capsys):
    code, message = one_error(capsys, ["evaluate", "-c", files / "list.yaml"])
    assert code == USAGE and "list.yaml" in message


def test_out_is_a_file(files, capsys):
    code, message = one_error(capsys, ["evaluate", "-c", "testbed/study", "--out", files / "list.yaml"])
    assert code == USAGE and "is a file" in message


def test_out_that_cannot_be_written(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr("os.access", lambda path, mode: False)  # whoever runs this may be allowed everything
    code, message = one_error(capsys, ["evaluate", "-c", "testbed/study", "--out", tmp_path])
    assert code == USAGE and "cannot be written" in message


def test_unknown_command(capsys):
    code, message = one_error(capsys, ["evalute"])
    assert code == USAGE and "evaluate" in message
