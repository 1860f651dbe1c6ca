"""cropl demo: a local web page to try pruning on, with the testbed's models or real ones."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial

from cropl.commands.arguments import Parser, integer
from cropl.commands.ask_options import GROUNDING, LOCALIZER, MODEL
from cropl.errors import UsageError
from cropl.extras import remedy

PORT = 8765

DESCRIPTION = (
    "A web page on this machine: choose or upload an image, ask, choose method, budget and K, draw the "
    "region yourself, and see both answers, the tokens that are kept and what it costs."
)
EPILOG = f"""\
examples:
  cropl demo
  cropl demo --model testbed:plc
  cropl demo --model llava-hf/llava-1.5-7b-hf --localizer ./localizer --dtype bfloat16
  cropl demo --model llava-hf/llava-1.5-7b-hf --zero-shot {GROUNDING}

Without a localizer of its own, a model other than the testbed's answers about regions that you draw.
"""


def run(args: Sequence[str]) -> int:
    """The command; returns its exit code."""
    given = _parser().read(args)
    if given is None:
        return 0
    port = integer("port", given.port, 0)
    if port > 65535:
        raise UsageError(f"--port {port}: ports end at 65535")
    try:
        from cropl.integrations.demo.serve import is_loopback, serve
    except ModuleNotFoundError as error:
        if error.name not in ("starlette", "uvicorn"):
            raise
        raise UsageError(f"the page needs {error.name}: {remedy('demo')}") from None

    from cropl.commands.models import TESTBED, checkpoint, open_localizer, open_vlm
    from cropl.integrations.demo.engine import Engine
    from cropl.integrations.demo.locating import Locator

    if not is_loopback(given.host):
        print(
            f"cropl: warning: on {given.host} everyone who reaches this machine can use the page and its model; "
            "there is no password",
            file=sys.stderr,
        )
    name = given.localizer
    if name is None and given.zero_shot is None and given.model.startswith(TESTBED):
        name = LOCALIZER
    print("loading the models ...", flush=True)
    vlm = open_vlm(given.model, given.device, given.dtype)
    localizer = None if name is None else open_localizer(name, given.device, given.dtype)
    grounding = None if given.zero_shot is None else open_vlm(given.zero_shot, given.device, given.dtype)
    names = {"model": given.model, "localizer": name or (f"{given.zero_shot}, zero-shot" if given.zero_shot else "")}
    engine = Engine(vlm, Locator(localizer, grounding), checkpoint(given.model), names)
    engine.warm_up()
    serve(engine, given.host, port, not given.no_browser, tell=partial(print, flush=True))
    return 0


def _parser() -> Parser:
    parser = Parser("demo", DESCRIPTION, EPILOG)
    parser.add_argument("--model", metavar="NAME_OR_PATH", default=MODEL, help=f"model that answers (default: {MODEL})")
    where = parser.add_mutually_exclusive_group()
    where.add_argument(
        "--localizer", metavar="PATH", help=f"trained localizer (default with the testbed's models: {LOCALIZER})"
    )
    where.add_argument("--zero-shot", metavar="NAME", help=f"Qwen2-VL that grounds untrained, e.g. {GROUNDING}")
    parser.add_argument("--device", help="cpu, cuda, cuda:1, ... (default: cuda where there is one)")
    parser.add_argument("--dtype", help="float32, bfloat16, float16 or auto (default: float32 on a CPU, else auto)")
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to serve on (default: 127.0.0.1, this machine alone)"
    )
    parser.add_argument("--port", default=str(PORT), help=f"(default: {PORT}; a free one where it is taken)")
    parser.add_argument("--no-browser", action="store_true", help="only print the page's address")
    return parser
