"""The testbed's questions as a task of lmms-eval that needs no network: images, a JSONL file, the task, its functions.

```bash
python -c "from cropl.integrations import lmms_tasks; lmms_tasks.write('tasks')"
python -m lmms_eval --include_path tasks --tasks cropl_testbed --model cropl \\
    --model_args pretrained=testbed:llava,localizer=testbed:localizer,method=ilp,layer=1,keep=64
```
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from cropl.evaluation.files import write_jsonl
from cropl.evaluation.pictures import by_image, displayed
from cropl.metrics.answer import exact_match
from cropl.testbed.samples import samples

TASK = """\
# Made by cropl. The answers are short; exact_match is that of `cropl evaluate`.
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{{split}: {file}}}}}
test_split: {split}
output_type: generate_until
doc_to_visual: !function utils.doc_to_visual
doc_to_text: !function utils.doc_to_text
doc_to_target: !function utils.doc_to_target
process_results: !function utils.process_results
generation_kwargs: {{max_new_tokens: {max_new_tokens}, do_sample: false, until: []}}
metric_list:
  - {{metric: exact_match, aggregation: mean, higher_is_better: true}}
metadata: [{{version: 1}}]
"""

UTILS = '''\
"""The functions of the task beside this file. Made by cropl."""

from pathlib import Path

from cropl.integrations.lmms_tasks import doc_to_target, doc_to_text, process_results, visuals


def doc_to_visual(doc):
    return visuals(doc, Path(__file__).parent)


__all__ = ["doc_to_target", "doc_to_text", "doc_to_visual", "process_results"]
'''


def write(
    folder: str | Path, count: int = 200, split: str = "test", name: str = "cropl_testbed", max_new_tokens: int = 16
) -> Path:
    """Write the first `count` questions of a testbed split as a task into a folder, for `--include_path`.

    Args:
        folder: made where it is missing. The task names it absolutely, so a folder that moved is written anew.
        count: of questions.
        split: train, val or test.
        name: of the task.
        max_new_tokens: of an answer.

    Returns:
        The task's YAML file.

    Raises:
        ValueError: no such split, or a count below 1.
    """
    folder = Path(folder).absolute()
    (folder / "images").mkdir(parents=True, exist_ok=True)
    asked = samples(split, count)
    files: dict[int, str] = {}
    for group in by_image(asked):
        file = f"images/{asked[group[0]].key}.png"
        displayed(asked[group[0]]).save(folder / file)
        files |= dict.fromkeys(group, file)
    write_jsonl(folder / f"{name}.jsonl", [
        {"key": one.key, "image": files[index], "question": one.asked, "answers": one.answers, "kind": one.kind}
        for index, one in enumerate(asked)
    ])  # fmt: skip
    (folder / "utils.py").write_text(UTILS, encoding="utf-8")
    file = json.dumps(str(folder / f"{name}.jsonl"))
    task = folder / f"{name}.yaml"
    task.write_text(TASK.format(name=name, split=split, file=file, max_new_tokens=max_new_tokens), encoding="utf-8")
    return task


def visuals(doc: Mapping[str, Any], folder: Path) -> list[Image.Image]:
    """The document's image, in a list, as tasks give them."""
    with Image.open(folder / doc["image"]) as image:  # lmms-eval lets PIL fill damaged files in, which cropl refuses
        return [image.convert("RGB")]


def doc_to_text(doc: Mapping[str, Any], lmms_eval_specific_kwargs: Mapping[str, Any] | None = None) -> str:
    """What the model is asked."""
    return str(doc["question"])


def doc_to_target(doc: Mapping[str, Any]) -> str:
    """The first accepted answer."""
    return str(doc["answers"][0])


def process_results(doc: Mapping[str, Any], results: list[str]) -> dict[str, float]:
    """The score of one document: cropl's own exact match."""
    return {"exact_match": float(exact_match(results[0], list(doc["answers"])))}
