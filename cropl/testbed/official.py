"""The testbed's scenes in the official format of each benchmark, and LLaVA's question files beside them.

So readers, prompts, scorers, submissions and tables of the real benchmarks run on the tiny models. Each benchmark has
scenes of its own, and asks them what the testbed asks, in its own words: GQA attributes, relations, counts and
existence, TextVQA words on signs, ScienceQA lettered options (a third of them about no picture, which the tiny models
cannot answer), VQAv2 attributes, counts and existence, POPE and all of MME's tasks existence.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from cropl.data.aside import written_aside
from cropl.data.readers.llava_questions import SHORT_ANSWER
from cropl.data.readers.scienceqa import OPTION_LETTER
from cropl.data.sample import Sample
from cropl.testbed.official_open import gqa, scienceqa, textvqa, vqav2
from cropl.testbed.official_yes_no import TASKS, mme, pope
from cropl.testbed.scenes import VERSION, scene

FORMATS = {"gqa": gqa, "textvqa": textvqa, "scienceqa": scienceqa, "vqav2": vqav2, "pope": pope, "mme": mme}
"""By the folder of each benchmark, in the order in which they take scenes."""

MARKER = "export.json"
EXPORT_VERSION = 1

_OPTION = re.compile(r"^([A-Z])\. ", re.MULTILINE)
_UNTRAINED = re.compile(
    rf"^Context: .*\n|\nReference OCR token:.*|\n{re.escape(OPTION_LETTER)}$|{re.escape(SHORT_ANSWER)}$", re.MULTILINE
)


def export(folder: str | Path, split: str = "test", count: int = 40, start: int = 0) -> Path:
    """Write every benchmark into a folder of its own below ``folder``, which is there whole or not at all.

    A folder that holds the same export is left as it is.

    Args:
        folder: a new folder.
        split: of the scenes; the files count as what their benchmark publishes (test, or val).
        count: scenes of each benchmark, at least one for each of MME's 14 tasks.
        start: the first scene; the six benchmarks take ``6 * count`` from there on.

    Raises:
        ValueError: fewer scenes than MME has tasks, or the folder holds another export, or anything else.
    """
    folder = Path(folder)
    if count < len(TASKS):
        raise ValueError(f"count must be at least {len(TASKS)}, one scene for each task of MME, got {count}")
    wanted = {"export": EXPORT_VERSION, "scenes": VERSION, "split": split, "count": count, "start": start}
    if _is_there(folder, wanted):
        return folder
    with written_aside(folder) as aside:
        for place, (name, write) in enumerate(FORMATS.items()):
            first = start + place * count
            write(aside / name, [scene(split, index) for index in range(first, first + count)])
        (aside / MARKER).write_text(json.dumps(wanted) + "\n", encoding="utf-8")
    return folder


def asked(sample: Sample) -> str:
    """A benchmark's prompt in the words that the tiny models were trained on.

    Without context, OCR tokens and the request for a short answer or a letter; options as ``A red B blue C white``.
    """
    text = _OPTION.sub(r"\1 ", _UNTRAINED.sub("", sample.asked)).replace("\n", " ")
    return re.sub(r" in th(?:e|is) image\?", "?", text).strip()


def _is_there(folder: Path, wanted: dict[str, object]) -> bool:
    """Whether the folder holds this export; ValueError if it holds something else."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    try:
        found = json.loads((folder / MARKER).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise ValueError(f"{folder}: holds other files and no {MARKER}; choose a new folder") from None
    if found != wanted:
        differs = ", ".join(f"{key} {found.get(key)!r}" for key in wanted if found.get(key) != wanted[key])
        raise ValueError(f"{folder}: holds another export ({differs}); remove it, or choose another folder")
    return True
