"""Progress and figures where a notebook shows them."""

import importlib
import io
import sys
import time
from typing import Any

from rich.console import Console

_QUIET = 2.0
"""Seconds before anything is shown."""


class Line:
    """A line that changes, in a notebook or a terminal, from the third second on; nothing elsewhere."""

    def __init__(self) -> None:
        self._console = Console(highlight=False, markup=False)
        self._began = time.perf_counter()
        self._shown: Any = None  # a display of IPython's, or a status of rich's

    def __enter__(self) -> "Line":
        return self

    def __exit__(self, *_: object) -> None:
        if self._shown is not None and not self._console.is_jupyter:
            self._shown.stop()

    def show(self, text: str) -> None:
        """Takes the place of what the line said before."""
        if time.perf_counter() - self._began < _QUIET:
            return
        if self._console.is_jupyter:
            if self._shown is None:
                self._shown = importlib.import_module("IPython.display").display(display_id=True)
            self._shown.update({"text/plain": text}, raw=True)
        elif self._console.is_terminal:
            if self._shown is None:
                self._shown = self._console.status(text)
                self._shown.start()
            self._shown.update(text)


def show_figures() -> None:
    """Has IPython, where that is running, show every figure of Matplotlib's, unless it knows how already."""
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    if shell is None:
        return
    figure = importlib.import_module("matplotlib.figure").Figure
    pictures = shell.display_formatter.formatters["image/png"]
    if figure not in pictures:
        pictures.for_type(figure, _picture_of)


def _picture_of(figure: Any) -> bytes:
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=72)
    return content.getvalue()
