"""The testbed as a task of lmms-eval: the same questions and pixels as its samples, and cropl's own score."""

from __future__ import annotations

import importlib.util
import json

import numpy as np
import pytest
import yaml

from cropl.integrations import lmms_tasks
from cropl.testbed.samples import samples


class Loader(yaml.SafeLoader):
    """Reads `!function` as the name that stands behind it."""


Loader.add_constructor("!function", lambda loader, node: node.value)


def written(folder, **options):
    task = yaml.load(lmms_tasks.write(folder, **options).read_text(encoding="utf-8"), Loader)
    spec = importlib.util.spec_from_file_location("utils", folder / "utils.py")
    utils = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(utils)
    return task, utils


def test_a_task_holds_the_questions_the_pictures_and_the_functions(tmp_path):
    folder = tmp_path / 'a "folder"'
    task, utils = written(folder, count=8, split="val", name="mine")
    assert task["task"] == "mine" and task["test_split"] == "val" and task["generation_kwargs"]["until"] == []
    ((split, file),) = task["dataset_kwargs"]["data_files"].items()
    assert split == "val" and file == str(folder / "mine.jsonl")
    with open(file, encoding="utf-8") as lines:
        docs = [json.loads(line) for line in lines]
    wanted = samples("val", 8)
    functions = {name: getattr(utils, value.split(".")[1]) for name, value in task.items() if "utils." in str(value)}
    assert set(functions) == {"doc_to_visual", "doc_to_text", "doc_to_target", "process_results"}
    for doc, one in zip(docs, wanted, strict=True):
        assert doc["key"] == one.key and functions["doc_to_text"](doc) == one.question
        assert functions["doc_to_target"](doc) == one.answers[0]
        (image,) = functions["doc_to_visual"](doc)
        assert np.array_equal(np.asarray(image), np.asarray(one.picture()))
        answer = f" {one.answers[0].upper()}. "
        assert functions["process_results"](doc, [answer]) == {"exact_match": 1.0}
        assert functions["process_results"](doc, ["something else"]) == {"exact_match": 0.0}
    assert len(list((folder / "images").iterdir())) == len({id(one.image) for one in wanted}) < 8


def test_a_wrong_count_is_refused(tmp_path):
    with pytest.raises(ValueError, match="count must be at least 1"):
        lmms_tasks.write(tmp_path, count=0)
