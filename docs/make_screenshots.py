"""Takes the pictures of these pages: `python docs/make_screenshots.py [demo] [terminal] [report]`.

Needs the extra `dev`, and a Chromium.
"""

from __future__ import annotations

import shutil
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import uvicorn
from playwright.sync_api import Page, expect, sync_playwright
from terminal import picture, printed, small

from cropl.commands.models import checkpoint, open_localizer, open_vlm
from cropl.integrations.demo.app import make_app
from cropl.integrations.demo.engine import Engine
from cropl.integrations.demo.locating import Locator
from cropl.integrations.demo.serve import listening
from cropl.testbed.samples import samples

ROOT = Path(__file__).resolve().parent.parent
IMAGES = ROOT / "docs" / "images"
MODEL, LOCALIZER = "testbed:llava", "testbed:localizer"
SCENE = 4
"""The test scene that `cropl ask` is shown with."""


@contextmanager
def demo() -> Iterator[str]:
    """The address of a running demo page."""
    names = {"model": MODEL, "localizer": LOCALIZER}
    engine = Engine(open_vlm(MODEL, "cpu"), Locator(open_localizer(LOCALIZER, "cpu")), checkpoint(MODEL), names)
    engine.warm_up()
    listener = listening("127.0.0.1", 0)
    server = uvicorn.Server(uvicorn.Config(make_app(engine), log_level="warning", lifespan="off"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
        listener.close()


@contextmanager
def browser() -> Iterator[Any]:
    """A Chromium without a window."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield opened
        opened.close()


def answered(page: Page, address: str) -> None:
    """Open the demo page and wait for its first answer, then for another with nothing loading beside it."""
    page.goto(address)
    expect(page.locator("#dense-answer")).not_to_have_text("–", timeout=60_000)
    page.wait_for_timeout(1000)
    again(page)


def again(page: Page) -> None:
    """Ask, and wait for the answers."""
    page.click("#ask")
    expect(page.locator("#status")).to_have_text("", timeout=60_000)
    page.mouse.move(0, 0)


def demo_pictures(opened: Any) -> None:
    """`demo.png`, light, and `demo_region.png`, dark: a region of the user's, and the probabilities."""
    with demo() as address:
        page = opened.new_page(viewport={"width": 1280, "height": 1000})
        answered(page, address)
        page.screenshot(path=IMAGES / "demo.png", full_page=True)
        page.emulate_media(color_scheme="dark")
        page.check("[data-layer=heat]")
        for name, value in (("x0", 3), ("y0", 3), ("x1", 7), ("y1", 3)):
            page.fill(f"#{name}", str(value))
        page.locator("#y1").blur()
        page.wait_for_timeout(600)
        again(page)
        page.screenshot(path=IMAGES / "demo_region.png", full_page=True)


def terminal_pictures(opened: Any) -> None:
    """`terminal_ls.png`, `terminal_ask.png`, `terminal_evaluate.png` and `terminal_doctor.png`."""
    with TemporaryDirectory() as made:
        folder = Path(made)
        (sample,) = samples("test", 1, start=SCENE)
        study = ["evaluate", "-c", "testbed/study", "--vars.budgets", "[64]", "--limit", "120"]
        commands = {
            "ls": (["ls", "evaluate/llava"], 134),
            "ask": (["ask", f"testbed:{SCENE}", sample.question, "--compare"], 104),
            "evaluate": (study, 126),
            "doctor": (["doctor"], 112),
        }
        for name, (args, columns) in commands.items():
            output = printed(args, folder, columns)
            for place, shown in ((folder, "~/study"), (ROOT, "~/cropl"), (Path.home(), "~")):
                output = output.replace(str(place), shown)
            typed = "cropl " + " ".join(f'"{arg}"' if set(arg) & set(" [") else arg for arg in args)
            picture(opened, typed, output, columns, IMAGES / f"terminal_{name}.png")


def report_pictures(opened: Any) -> None:
    """`report.png`: the page of a small suite, its first table."""
    with TemporaryDirectory() as made:
        folder = Path(made)
        printed(["evaluate", "-c", "testbed/tables", "--limit", "24", "--out", "suite"], folder, 120)
        printed(["report", "suite", "-o", "report"], folder, 120)
        page = opened.new_page(viewport={"width": 1180, "height": 1500})
        page.goto((folder / "report" / "suite.html").as_uri())
        page.screenshot(path=IMAGES / "report.png")
        small(IMAGES / "report.png")


def main() -> None:
    """Make the pictures that are asked for, or all."""
    kinds = {"demo": demo_pictures, "terminal": terminal_pictures, "report": report_pictures}
    with browser() as opened:
        for kind in sys.argv[1:] or kinds:
            kinds[kind](opened)


if __name__ == "__main__":
    main()
