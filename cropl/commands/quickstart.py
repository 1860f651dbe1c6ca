"""cropl quickstart: the whole path on the built-in testbed, in minutes on a CPU.

1. fine-tunes a localizer from the shipped base for a short run, and shows its area recall before and after;
2. compares pruning methods with the shipped, fully trained localizer, and writes a report;
3. asks one question about a real photograph.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from cropl.commands.arguments import Parser, check_writable
from cropl.errors import RunError

TRAINING, STUDY = "testbed/quickstart_localizer", "testbed/quickstart"
QUESTION = "What word is on the white sign?"


def run(args: Sequence[str], training_cli: Callable[..., Any]) -> int:
    """The command; returns its exit code. ``training_cli`` builds the parts of a training recipe."""
    parser = Parser("quickstart", __doc__)
    parser.add_argument("--out", default="runs/quickstart", help="folder of the results (default: %(default)s)")
    parser.add_argument("--skip-training", action="store_true", help="leave out step 1")
    given = parser.read(args)
    if given is None:
        return 0
    out, began = Path(given.out), time.perf_counter()
    check_writable(out)

    if not given.skip_training:
        _title("1. a localizer, fine-tuned from the shipped base for a short run")
        _train(training_cli, out)
    _title("2. pruning with the shipped localizer, against dense and the controls")
    _study(out)
    _title("3. the same path on a photograph")
    _ask(out)
    print(f"\ndone in {time.perf_counter() - began:.0f} s; open {out / 'report.html'}")
    return 0


def _title(text: str) -> None:
    print(f"\n== {text}\n", flush=True)


def _train(training_cli: Callable[..., Any], out: Path) -> None:
    """`cropl fit` on the training recipe into `out`, with a validation before the first step and after the last."""
    from cropl import recipe

    cli = training_cli(
        ["--config", str(recipe.find(TRAINING)), f"--trainer.default_root_dir={out.absolute()}"], run=False
    )

    def recall() -> dict[str, float]:
        found = cli.trainer.validate(cli.model, datamodule=cli.datamodule, verbose=False)[0]
        return {name.removeprefix("val/"): value for name, value in found.items()}

    before = recall()
    cli.trainer.fit(cli.model, datamodule=cli.datamodule)
    if cli.trainer.interrupted:
        raise KeyboardInterrupt
    after = recall()
    for name in before:
        if "recall" in name or name == "region_share":  # a large region has recall for free: show its size beside it
            print(f"localizer, {name.replace('_', ' '):<16} before {before[name]:.3f}   after {after[name]:.3f}")


def _study(out: Path) -> None:
    from cropl.commands.evaluate import evaluate

    evaluate([STUDY], {"out": str(out)})


def _ask(out: Path) -> None:
    """One question about the first photograph that the testbed keeps for its test split."""
    from cropl.commands import ask
    from cropl.testbed.world import PHOTO_FOLDER

    listed = json.loads((PHOTO_FOLDER / "photos.json").read_text(encoding="utf-8"))
    photo = next(entry for entry in listed if entry["split"] == "test")
    image = PHOTO_FOLDER / photo["file"]
    print("The tiny models know rendered shapes and signs only: here it is the path that counts, not the answer.")
    print(f'cropl ask {_short(image)} "{QUESTION}"   ({photo["license"]}, {photo["source"]})')
    code = ask.run([str(image), QUESTION, "-o", str(out / "overlay.png")])
    if code:
        raise RunError(f"asking about {image} failed (exit code {code})")


def _short(path: Path) -> str:
    """The path as one would type it here."""
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)
