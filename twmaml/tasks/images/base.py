"""The protocol by which images plug into few-shot classification."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int32, UInt8


class Images(NamedTuple):
    """Images by class, on the host."""

    names: list[str]
    """The classes', unique."""
    categories: list[str]
    """The category of each class."""
    pixels: UInt8[np.ndarray, "classes instances height width channels"]
    """Padded with zeros where a class has fewer instances than another."""
    counts: Int32[np.ndarray, " classes"]
    """Instances of each class."""


@runtime_checkable
class ImageSource(Protocol):
    """Where images come from. Construction reads nothing, so that a trained network needs no images to be used."""

    @property
    def size(self) -> int:
        """Height and width of an image, in pixels."""
        ...

    @property
    def channels(self) -> int:
        """1 for grey, 3 for colour."""
        ...

    @property
    def category(self) -> str:
        """The word for a group of classes, `alphabet` say: the name of the axis."""
        ...

    def categories(self) -> Sequence[str]:
        """The names of the groups, in order; reads no image.

        Raises:
            ConfigurationError: if there is nothing where images should be; one line that says what was expected where.
        """
        ...

    def load(self) -> Images:
        """All images; their categories are those of `categories`.

        Raises:
            ConfigurationError: for a missing, empty or damaged image.
        """
        ...


_loaded: dict[str, Images] = {}


def load_once(source: ImageSource) -> Images:
    """The images of a source, loaded once a process for all families that have the same."""
    key = repr(source)
    if key not in _loaded:
        _loaded[key] = source.load()
    return _loaded[key]
