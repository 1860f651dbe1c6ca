"""The arguments of `cropl ask`, checked before anything is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cropl.commands.arguments import Parser, budget, integer
from cropl.errors import UsageError
from cropl.grid import Region

MODEL, LOCALIZER = "testbed:llava", "testbed:localizer"
GROUNDING = "Qwen/Qwen2-VL-2B-Instruct"
"""Where the region comes from when the model is not the testbed's and nothing else is said: nobody has published a
trained CROP localizer yet, and this model can ground without training."""

DESCRIPTION = "One question about one image: the region, the tokens kept, the answer, and what it costs against dense."
WITHOUT_REGIONS = (
    "fastv", "sparsevlm", "sparsevlm+", "pyramiddrop", "visionzip", "vispruner", "divprune", "uniform", "random"
)  # fmt: skip
"""Methods that choose tokens by themselves, as many as the budget says."""
MERGING = ("visionzip", "vispruner")
"""Those whose tokens are not of one place each."""
EPILOG = """\
examples:
  cropl ask testbed:4 "What word is on the red sign?" -o overlay.png
  cropl ask testbed:4 "What word is on the red sign?" --model testbed:plc
  cropl ask testbed:4 "What word is on the red sign?" --method fastv --budget 64 --compare
  cropl ask photo.jpg "What is the man holding?" --model llava-hf/llava-1.5-7b-hf --region 2,1,5,6 --budget 64
  cropl ask photo.jpg "What is the man holding?" --model llava-hf/llava-1.5-7b-hf    # zero-shot region, Qwen2-VL-2B
  curl -s https://example.org/sign.jpg | cropl ask - "What word is on the red sign?"
"""


@dataclass
class Options:
    """What the user asked for; numbers and the region are parsed, everything checkable without a model is checked."""

    image: Path | None
    question: str
    model: str
    overlay: Path | None
    localizer: str | None
    region: Region | None
    regions: Path | None
    zero_shot: str | None
    method: str | None
    layer: int | None
    budget: int | float | None
    max_new_tokens: int
    compare: bool
    device: str | None
    dtype: str | None
    scene: int | None = None
    """Of the testbed's test split, instead of an image."""


def read(args: Sequence[str]) -> Options | None:
    """Parse and check the arguments; None when help was asked for. UsageError names what is wrong."""
    given = _parser().read(args)
    if given is None:
        return None
    options = Options(**vars(given))
    if not given.image:
        raise UsageError("the image path is empty: give a JPEG, PNG or WebP file")
    if not options.question.strip():
        raise UsageError("the question is empty: ask something about the image")
    if given.image.startswith("testbed:"):
        number = given.image.removeprefix("testbed:")
        if not number.isdecimal():
            raise UsageError(f"{given.image}: testbed:4 is a test scene, and so is every number")
        options.image, options.scene = None, int(number)
    else:
        options.image = None if given.image == "-" else Path(given.image)
    options.region = None if given.region is None else Region.parse(given.region)
    options.regions = None if given.regions is None else _file(given.regions)
    options.overlay = None if given.overlay is None else _overlay(given.overlay)
    options.layer = None if given.layer is None else integer("layer", given.layer, 0)
    options.max_new_tokens = integer("max_new_tokens", given.max_new_tokens, 1)
    if options.method in WITHOUT_REGIONS:
        for flag in ("localizer", "region", "regions", "zero_shot"):
            if vars(given)[flag] is not None:
                raise UsageError(
                    f"--{flag.replace('_', '-')} has no effect with --method {options.method}: leave it out"
                )
        if options.overlay is not None and options.method in MERGING:
            raise UsageError(
                f"--overlay has nothing to show with --method {options.method}: its tokens are merged ones"
            )
        if given.budget is None:
            raise UsageError(
                f"--method {options.method} needs --budget: how many visual tokens, or which share, to keep"
            )
    for flag in ("budget", "localizer", "region", "regions", "zero_shot"):
        if options.method == "dense" and vars(given)[flag] is not None:
            raise UsageError(f"--{flag.replace('_', '-')} has no effect with --method dense, which keeps every token")
    if given.budget is not None:
        options.budget = budget(given.budget)
    return options


def _parser() -> Parser:
    parser = Parser("ask", DESCRIPTION, EPILOG)
    parser.add_argument("image", help="JPEG, PNG or WebP file; - is standard input; testbed:4 is a test scene")
    parser.add_argument("question")
    parser.add_argument("-o", "--overlay", metavar="PNG", help="write the image with grid, region and kept tokens")
    parser.add_argument("--model", metavar="NAME_OR_PATH", default=MODEL, help=f"model that answers (default: {MODEL})")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--localizer", metavar="PATH", help=f"trained localizer (default with {MODEL}: {LOCALIZER})")
    where.add_argument("--region", metavar="X0,Y0,X1,Y1", help="region on the 8x8 grid, inclusive, each 0 to 7")
    where.add_argument("--regions", metavar="FILE", help="regions.jsonl with a line for this image")
    where.add_argument("--zero-shot", metavar="NAME", help=f"Qwen2-VL that grounds untrained, e.g. {GROUNDING}")
    parser.add_argument(
        "--method",
        choices=("ilp", "prune", "plc", "dense", *WITHOUT_REGIONS),
        metavar="NAME",
        help=f"ilp, prune, plc, dense, {', '.join(WITHOUT_REGIONS)} (default: plc with a compressor, else ilp)",
    )
    parser.add_argument("--layer", metavar="K", help="decoder layers that see every token (default: 1 per 16 layers)")
    parser.add_argument(
        "--budget", metavar="N", help="visual tokens to keep, or a share like 0.2 (default: the region's)"
    )
    parser.add_argument("--max-new-tokens", default="32", metavar="N")
    parser.add_argument("--compare", action="store_true", help="answer with every token, too, and tell its time")
    parser.add_argument("--device", help="cpu, cuda, cuda:1, ... (default: cuda where there is one)")
    parser.add_argument("--dtype", help="float32, bfloat16, float16 or auto (default: float32 on a CPU, else auto)")
    return parser


def _file(text: str) -> Path:
    if not Path(text).is_file():
        raise UsageError(f"--regions {text}: no such file")
    return Path(text)


def _overlay(text: str) -> Path:
    path = Path(text)
    if path.suffix.lower() not in (".png", ".jpg", ".jpeg", ".webp"):
        raise UsageError(f"--overlay {text}: the name must end in .png (or .jpg, .webp)")
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise UsageError(f"--overlay {text}: its folder does not exist, or it is a folder itself")
    return path
