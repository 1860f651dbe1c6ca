"""Pictures of a terminal: what a command really prints, in its colours, as a window of a Chromium shows it."""

from __future__ import annotations

import html
import io
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from rich.console import Console
from rich.terminal_theme import TerminalTheme
from rich.text import Text

THEME = TerminalTheme(
    (24, 27, 33), (214, 218, 226),
    [(60, 64, 74), (240, 113, 120), (150, 205, 130), (240, 200, 110), (120, 170, 250), (205, 150, 235), (110, 205, 215),
     (214, 218, 226)],
)  # fmt: skip

PAGE = """<!doctype html><meta charset="utf-8"><style>
body {{ margin: 0; display: inline-block; background: #fff; }}
figure {{ margin: 12px; border-radius: 10px; background: #181b21; color: #d6dae2; display: inline-block;
  padding: 14px 20px 18px; box-shadow: 0 3px 12px #0004; }}
pre {{ margin: 0; font: 14px/1.18 "DejaVu Sans Mono", monospace; white-space: pre; }}
.bar {{ margin: 0 0 12px; }}
.bar i {{ display: inline-block; width: 12px; height: 12px; border-radius: 6px; margin-right: 7px;
  background: #3c404a; }}
.prompt {{ color: #96cd82; }}
</style><figure><div class="bar"><i></i><i></i><i></i></div><pre><span class="prompt">$</span> <b>{command}</b>
{output}</pre></figure>"""


def printed(args: Sequence[str], folder: Path, columns: int) -> str:
    """What `cropl ARGS` writes to a terminal of so many columns in `folder`, in colour; its progress is left out.

    Raises:
        RuntimeError: it fails.
    """
    environment = {**os.environ, "FORCE_COLOR": "1", "COLUMNS": str(columns), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "cropl", *args]
    run = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    if run.returncode:
        raise RuntimeError(f"cropl {' '.join(args)}: exit code {run.returncode}\n{run.stderr[-2000:]}")
    return run.stdout


def picture(browser: Any, command: str, output: str, columns: int, path: Path) -> None:
    """Write a picture of a terminal in which `command` printed `output`, which may have colours.

    Args:
        browser: Playwright's.
        columns: of the terminal; longer lines are wrapped.
    """
    console = Console(record=True, width=columns, file=io.StringIO(), force_terminal=True, color_system="truecolor")
    console.print(Text.from_ansi(output.rstrip()))
    lines = console.export_html(theme=THEME, inline_styles=True, code_format="{code}")
    text = "\n".join(line.rstrip() for line in lines.rstrip().splitlines())
    page = browser.new_page(viewport={"width": 1600, "height": 1000}, device_scale_factor=1.5)
    page.set_content(PAGE.format(command=html.escape(command), output=text))
    page.locator("body").screenshot(path=path)
    page.close()
    small(path)


def small(path: Path) -> None:
    """Keep 128 colours of a picture that has few anyway: a quarter of the bytes."""
    Image.open(path).convert("RGB").quantize(128).save(path, optimize=True)
