"""`cropl check` of the questions that a study asks: everything that is read before a model is loaded."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cropl import recipe
from cropl.errors import UsageError, check_keys

if TYPE_CHECKING:
    from cropl.evaluation.study import Study


def questions_missing(study: Study, prepare: Mapping[str, Any] | None = None) -> Iterator[str]:
    """What a study does not find of its questions, their images and the annotations that score them.

    Args:
        study: it.
        prepare: what is called before the data is read, and writes what is missing of it.

    Raises:
        UsageError: a class or function that does not exist, or wrong arguments.
    """
    from cropl.benchmarks.names import benchmark, check_files
    from cropl.data.published import questions

    if study.scorer is not None:
        benchmark(study.scorer)
        if study.annotations:
            check_files(study.scorer, study.annotations, f"{study.benchmark}: annotations")
    if study.prompt is not None and not callable(recipe.load_object(study.prompt)):
        raise UsageError(f"prompt {study.prompt}: is no function from a sample to a text")
    if prepare is not None:
        _arguments(prepare, f"{study.benchmark}: prepare")
    arguments = _arguments(study.data, "data")
    found = []
    if recipe.load_object(study.data["class_path"]) is questions:
        found = _published(arguments.get("sources"))
    found += [f"{file}: no such annotation file" for file in study.annotations if not Path(file).exists()]
    if prepare is None:
        yield from dict.fromkeys(found)


def _arguments(spec: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Of a `class_path` and its `init_args`, checked by name."""
    if not isinstance(spec, Mapping) or not isinstance(spec.get("class_path"), str):
        raise UsageError(f"{where}: needs a class_path and init_args")
    arguments = dict(spec.get("init_args") or {})
    parameters = inspect.signature(recipe.load_object(spec["class_path"])).parameters
    if not any(one.kind is one.VAR_KEYWORD for one in parameters.values()):
        check_keys(arguments, list(parameters), f"{where} {spec['class_path']}")
    return arguments


def _published(sources: Any) -> list[str]:
    """Files, folders of images, and images that the first questions name."""
    from cropl.data.recipe import DataRecipe

    if not isinstance(sources, list) or not sources:
        raise UsageError("data: sources must be a list of readers")
    given = DataRecipe("", sources, max_bad=0)
    return given.missing(given.open())
