"""Text from data, recipes and models inside Markdown pages, so that none of it acts as markup."""

from __future__ import annotations

import re

_ESCAPES = str.maketrans({"<": "&lt;", **{mark: f"\\{mark}" for mark in "\\`|*[]~"}})

_EMPHASIS = re.compile(r"(?<![^\W_])_|_(?![^\W_])")
"""An underscore that is not inside a word: within one it is a letter like others."""


def cell(text: str) -> str:
    """Text in a table or a paragraph, on one line."""
    return _EMPHASIS.sub(r"\\_", " ".join(text.split("\n")).replace("\r", " ").translate(_ESCAPES))


def code(text: str) -> str:
    """Text between backticks, on one line, and without those that it may have itself."""
    return f"`{' '.join(text.split()).replace('`', chr(39))}`"
