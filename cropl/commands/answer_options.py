"""The arguments of `cropl answer`, checked before anything is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cropl.commands.arguments import Parser, budget, integer, number
from cropl.commands.ask_options import GROUNDING, LOCALIZER, MODEL
from cropl.errors import UsageError

STDIN = "-"

DESCRIPTION = """\
Answers a file or stream of questions about images: while one batch is answered, the localizer, in a process of its own,
works on those behind it. One bad image never stops the rest: its line says what is wrong."""
EPILOG = """\
QUESTIONS has a line for each question: {"image": "a.jpg", "question": "..."} or image, tab, question. A "key", or a
third column, names it, and no other (default: the number of its line). A line that is no question has an error
and a key like "line 2". Relative images lie beside the file, or in --images.

Each line of ANSWERS has key, image, question, answer, region, kept and total visual tokens, settings, seconds;
`fallback` says why every token was kept, `error` why there is no answer (and no region). The file serves as
`regions` of a study. The exit code is 1 if not a single question was answered.

examples:
  cropl answer questions.jsonl -o answers.jsonl
  cropl answer questions.tsv -o answers.jsonl --model ./llava-1.5-7b-hf --localizer ./localizer --budget 64
  camera | cropl answer - --device cuda:0 --localizer-device cuda:1 --batch-size 1 --window 1
"""


@dataclass
class Options:
    """What the user asked for; numbers are parsed, everything checkable without a model is checked."""

    questions: str
    images: Path | None
    out: Path | None
    resume: bool
    model: str
    localizer: str | None
    zero_shot: str | None
    in_thread: bool
    method: str | None
    layer: int | None
    budget: int | float | None
    factor: float | None
    batch_size: int
    window: int
    ahead: int
    max_new_tokens: int
    timeout: float
    must_localize: bool
    device: str | None
    localizer_device: str | None
    threads: int | None
    dtype: str | None

    @property
    def settings(self) -> dict[str, Any]:
        """What decides the answers, as each line keeps it; None stands for the default."""
        names = ("model", "method", "layer", "budget", "factor", "max_new_tokens")
        return {"localizer": self.locates, **{name: getattr(self, name) for name in names}}

    @property
    def grounding(self) -> bool:
        """Whether the regions come from a model that was never trained as a localizer."""
        return self.localizer is None

    @property
    def locates(self) -> str:
        """The name of what locates."""
        return self.localizer or self.zero_shot or GROUNDING


def read(args: Sequence[str]) -> Options | None:
    """Parse and check the arguments; None when help was asked for. UsageError names what is wrong."""
    given = _parser().read(args)
    if given is None:
        return None
    options = Options(**vars(given))
    if options.questions != STDIN and not Path(options.questions).is_file():
        raise UsageError(f"questions {options.questions!r}: no such file (- reads standard input)")
    options.images = None if given.images is None else Path(given.images)
    if options.images is not None and not options.images.is_dir():
        raise UsageError(f"--images {given.images}: no such folder")
    options.out = None if given.out is None else _out(given.out, options)
    if options.resume and (options.out is None or options.questions == STDIN):
        raise UsageError("--resume continues a file of answers from the file of questions: give both")
    for name, least in (("batch_size", 1), ("window", 1), ("ahead", 1), ("max_new_tokens", 1)):
        setattr(options, name, integer(name, vars(given)[name], least))
    for name, least in (("layer", 0), ("threads", 1)):
        if vars(given)[name] is not None:
            setattr(options, name, integer(name, vars(given)[name], least))
    options.timeout = number("timeout", given.timeout)
    if given.factor is not None:
        options.factor = number("factor", given.factor)
        if options.factor == 0 or options.budget is not None:
            raise UsageError("--factor scales regions, above 0, instead of --budget: give one of the two")
    if given.budget is not None:
        options.budget = budget(given.budget)
    if options.localizer is None and options.zero_shot is None and options.model.startswith("testbed:"):
        options.localizer = LOCALIZER
    return options


def _parser() -> Parser:
    parser = Parser("answer", DESCRIPTION, EPILOG)
    parser.add_argument("questions", metavar="QUESTIONS", help="JSONL or TSV file; - is standard input")
    parser.add_argument("-o", "--out", metavar="ANSWERS", help="JSONL file (default: standard output)")
    parser.add_argument("--resume", action="store_true", help="keep the answers of ANSWERS; answer what has none")
    parser.add_argument("--images", metavar="FOLDER", help="of relative images (default: that of QUESTIONS)")
    parser.add_argument("--model", metavar="NAME_OR_PATH", default=MODEL, help=f"model that answers (default: {MODEL})")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--localizer", metavar="PATH", help=f"trained localizer (default with testbed:*: {LOCALIZER})")
    where.add_argument("--zero-shot", metavar="NAME", help=f"Qwen2-VL that grounds untrained (default: {GROUNDING})")
    parser.add_argument("--method", choices=("ilp", "prune", "plc"), help="(default: plc with a compressor, else ilp)")
    parser.add_argument("--layer", metavar="K", help="decoder layers that see every token (default: 1 per 16 layers)")
    parser.add_argument("--budget", metavar="N", help="visual tokens of each image, or a share (default: the region's)")
    parser.add_argument("--factor", metavar="F", help="scale regions by a factor found on another set, instead")
    parser.add_argument("--batch-size", metavar="N", default="8")
    parser.add_argument("--window", metavar="N", default="1", help="batches sorted together by length (default: 1)")
    parser.add_argument("--ahead", metavar="N", default="2", help="windows localized ahead at most (default: 2)")
    parser.add_argument("--max-new-tokens", metavar="N", default="32")
    parser.add_argument(
        "--timeout", metavar="S", default="300", help="seconds to wait for regions, 0: no limit (default: 300)"
    )
    parser.add_argument("--must-localize", action="store_true", help="stop if the localizer ends (default: keep all)")
    parser.add_argument("--in-thread", action="store_true", help="localize in a thread, not in a process of its own")
    parser.add_argument("--device", help="cpu, cuda, cuda:1, ... (default: cuda where there is one)")
    parser.add_argument("--localizer-device", metavar="DEVICE", help="(default: that of the model)")
    parser.add_argument("--threads", metavar="N", help="of the localizer's process (default: half of all, on a CPU)")
    parser.add_argument("--dtype", help="float32, bfloat16, float16 or auto (default: float32 on a CPU, else auto)")
    return parser


def _out(text: str, options: Options) -> Path:
    path = Path(text)
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise UsageError(f"--out {text}: its folder does not exist, or it is a folder itself")
    if options.questions != STDIN and path.exists() and path.samefile(options.questions):
        raise UsageError(f"--out {text}: is the file of questions itself; give another name")
    if path.exists() and not options.resume:
        raise UsageError(f"--out {text}: exists; give another name, or --resume to continue it")
    return path
