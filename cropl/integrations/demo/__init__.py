"""The page to try cropl on, `cropl demo`: one model, one picture, one question, and what every method makes of it.

The page is plain HTML, CSS and JavaScript over a small Starlette server (the extra `demo`): a region is drawn on the
picture and answered while it changes, which the widgets of ready-made interfaces do not offer, and nothing is loaded
from, or told to, anyone but this server.
"""
