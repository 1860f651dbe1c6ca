"""Recipes: found by name or path, listed, copied, merged, and told apart from typos."""

import subprocess
import sys
from pathlib import Path

import pytest

from cropl import recipe
from cropl.cli import main
from cropl.errors import UsageError, check_keys, exit_code, guarded, one_line


@pytest.fixture
def recipes(tmp_path, monkeypatch):
    root = tmp_path / "recipes"
    (root / "testbed").mkdir(parents=True)
    (root / "testbed/study.yaml").write_text("# What it is.\na: {b: 1, c: [1, 2]}\nx: ${a.b}\n")
    (root / "testbed/other.yaml").write_text("a: {b: 5}\n")
    monkeypatch.setattr(recipe, "folder", lambda: root)
    return root


def test_names_find_and_describe(recipes):
    assert recipe.names() == ["testbed/other", "testbed/study"]
    assert recipe.names("testbed/s") == ["testbed/study"]
    assert recipe.find("testbed/study") == recipes / "testbed/study.yaml"
    assert recipe.find(str(recipes / "testbed/study.yaml")) == recipes / "testbed/study.yaml"
    assert recipe.describe("testbed/study") == "What it is."
    assert recipe.describe("testbed/other") == ""


@pytest.mark.parametrize(
    ("typo", "meant"),
    [("testbed/studdy", "testbed/study"), ("study", "testbed/study"), ("testbed/othr.yaml", "testbed/other")],
)
def test_unknown_name_says_what_was_meant(recipes, typo, meant):
    with pytest.raises(UsageError, match=f"did you mean '{meant}'"):
        recipe.find(typo)


def test_a_file_that_is_missing_is_no_unknown_name(recipes):
    with pytest.raises(UsageError, match=r"^recipe 'nope.yaml': no such file$"):
        recipe.find("nope.yaml")


@pytest.mark.parametrize("text", ["just words", "word"])
def test_a_file_of_words_is_no_recipe(recipes, text):
    (recipes / "words.yaml").write_text(text)
    with pytest.raises(UsageError, match="a recipe is a mapping of keys to values"):
        recipe.load([recipes / "words.yaml"])


@pytest.mark.parametrize(
    ("module", "told"),
    [
        ("raise RuntimeError('no licence')", "RuntimeError: no licence"),
        ("def (", "SyntaxError"),
        ("raise SystemExit(5)", "SystemExit: 5"),
        ("import absent_package", "No module named 'absent_package'$"),
    ],
)
def test_a_module_that_cannot_be_imported_is_told(tmp_path, monkeypatch, module, told):
    (tmp_path / "of_others.py").write_text(module)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "of_others", raising=False)
    with pytest.raises(UsageError, match=rf"class_path 'of_others.Thing' cannot be imported: .*{told}"):
        recipe.load_object("of_others.Thing")
    with pytest.raises(UsageError, match=r"No module named 'not_here'; .*PYTHONPATH=\.$"):
        recipe.load_object("not_here.Thing")


@pytest.mark.parametrize("name", ["", "../secrets", "testbed", "no/such"])
def test_no_recipe(recipes, name):
    with pytest.raises(UsageError):
        recipe.find(name)


def test_interpolation_follows_overlays_and_flags(recipes, tmp_path):
    overlay = tmp_path / "overlay.yaml"
    overlay.write_text("a: {b: 2, c: [9]}\n")
    assert recipe.load(["testbed/study"])["x"] == 1
    merged = recipe.load(["testbed/study", overlay])
    assert merged == {"a": {"b": 2, "c": [9]}, "x": 2}  # dicts merge, lists replace
    assert recipe.load(["testbed/study", overlay], {"a.b": 3})["x"] == 3
    assert recipe.label(["testbed/study", overlay]) == "testbed/study+overlay.yaml"


def test_a_built_in_recipe_has_its_name_by_whatever_path(monkeypatch):
    monkeypatch.chdir(recipe.folder() / "testbed")
    assert recipe.label(["study.yaml", "../testbed/study.yaml"]) == "testbed/study+testbed/study"


def test_flags():
    args = ["-c", "one", "--config=two", "--a.b", "3", "--list=[1, x]", "--on", "--max-tokens", "-1", "--none", "null"]
    recipes_given, overrides = recipe.parse_flags(args)
    assert recipes_given == ["one", "two"]
    assert overrides == {"a.b": 3, "list": [1, "x"], "on": True, "max_tokens": -1, "none": None}


def test_names_out_of_the_data_keep_their_hyphens():
    args = ["--caps.photos-captions", "0", "--vars.a-b.c-d=x-y", "--max-bad", "1", "--samples-per-shard=3"]
    known = {"caps.photos-captions": 0, "vars.a-b.c-d": "x-y", "max_bad": 1, "samples_per_shard": 3}
    assert recipe.parse_flags(args) == ([], known)


@pytest.mark.parametrize("args", [["oops"], ["-x", "1"], ["-c"], ["--a", "[1"]])
def test_bad_flags(args):
    with pytest.raises(UsageError):
        recipe.parse_flags(args)


def test_lightning_flags_become_files(recipes):
    study = str(recipes / "testbed/study.yaml")
    assert recipe.resolve_config_flags(["-c", "testbed/study", "--x", "-c"]) == ["-c", study, "--x", "-c"]
    assert recipe.resolve_config_flags(["--config=testbed/study"]) == [f"--config={study}"]
    with pytest.raises(UsageError, match="did you mean"):
        recipe.resolve_config_flags(["-c", "testbed/stdy"])


@pytest.mark.parametrize("text", ["- a\n- b\n", "a: [1\n", "a: ${no.such}\n", "a: ${b}\nb: ${a}\n", "\x00"])
def test_broken_recipe_is_one_usage_error(tmp_path, text):
    path = tmp_path / "broken.yaml"
    path.write_text(text)
    with pytest.raises(UsageError):
        recipe.load([path])


def test_unknown_variable(tmp_path):
    path = tmp_path / "study.yaml"
    path.write_text("vars: {budgets: [1]}\n")
    with pytest.raises(UsageError, match="did you mean 'vars.budgets'"):
        recipe.load([path], {"vars.budgts": 3})


def test_copy(recipes, tmp_path):
    target = recipe.copy("testbed/study", tmp_path / "mine")
    assert target == tmp_path / "mine.yaml" and target.read_text() == (recipes / "testbed/study.yaml").read_text()
    with pytest.raises(UsageError, match="exists"):
        recipe.copy("testbed/study", tmp_path / "mine.yaml")
    assert recipe.copy("testbed/other", tmp_path / "mine.yaml", clobber=True).read_text() == "a: {b: 5}\n"
    (tmp_path / "folder").mkdir()
    assert recipe.copy("testbed/study", tmp_path / "folder") == tmp_path / "folder/study.yaml"


def test_no_torch_is_imported():
    code = "import sys, cropl.recipe, cropl.commands.ls; cropl.recipe.names(); sys.exit('torch' in sys.modules)"
    root = Path(__file__).resolve().parent.parent
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0


def test_check_keys_names_the_nearest():
    with pytest.raises(UsageError, match="did you mean 'budget'"):
        check_keys({"buget": 1}, ["budget", "layer"], "study arms")
    with pytest.raises(UsageError, match="valid keys: budget, layer"):
        check_keys({"zzz": 1}, ["budget", "layer"], "study arms")


def test_errors_are_one_line_and_have_a_code(capsys, tmp_path):
    def fail(error):
        def run():
            raise error

        return run

    assert guarded(lambda: None) == 0 and guarded(lambda: 3) == 3
    assert guarded(fail(ValueError("two\n  lines"))) == 2
    assert capsys.readouterr().err == "cropl: error: two lines\n"
    assert guarded(fail(OSError("no network"))) == 1
    assert guarded(lambda: (tmp_path / "none").read_text() and 0) == 2
    assert "no such file" in capsys.readouterr().err
    with pytest.raises(TypeError):  # a bug of ours keeps its traceback
        guarded(fail(TypeError("x")))
    assert exit_code(MemoryError()) == 1 and one_line(MemoryError()) == "out of memory"


def test_debug_lets_the_exception_through(monkeypatch):
    monkeypatch.setenv("CROPL_DEBUG", "1")

    def run():
        raise ValueError("x")

    with pytest.raises(ValueError):
        guarded(run)


@pytest.mark.parametrize(
    ("command", "right"),
    [
        (["fit", "-c", "data/photos"], "data/photos is a data recipe: cropl shards build -c data/photos"),
        (["fit", "--config=testbed/study"], "testbed/study is a study: cropl evaluate -c testbed/study"),
        (["evaluate", "-c", "testbed/llava"], "testbed/llava is a training recipe: cropl fit -c testbed/llava"),
        (["shards", "build", "-c", "testbed/study"], "testbed/study is a study: cropl evaluate -c testbed/study"),
    ],
)
def test_a_recipe_of_another_kind_names_its_command(command, right, capsys):
    assert main(command) == 2
    assert capsys.readouterr().err == f"cropl: error: {right}\n"
