"""Reading what lies on disk, as every source of images does it: folders, lists of classes, image files."""

import io
import os
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8

from twmaml.errors import ConfigurationError, one_line
from twmaml.tasks.images.base import Images


class Encoded(NamedTuple):
    """An image file, which is not read before it is decoded."""

    name: str
    """Where it lies, for messages."""
    read: Callable[[], bytes]


class Entries(NamedTuple):
    """All in a folder that is not hidden, each sorted by name."""

    folders: list[Path]
    files: list[Path]


def reason_of(error: Exception, otherwise: str) -> str:
    """The system's reason for an error, or another if it is not the system's."""
    return (error.strerror if isinstance(error, OSError) else None) or otherwise


def list_folder(folder: Path, refusal: str | None = None) -> Entries:
    """Folders and files in a folder.

    Args:
        folder: to list.
        refusal: begins the message if that is not possible.

    Raises:
        ConfigurationError: if it does not exist or may not be read.
    """
    try:
        with os.scandir(folder) as entries:
            kinds = {Path(each.path): each.is_dir() for each in entries if not each.name.startswith(".")}
    except OSError as error:
        refusal = refusal or f"task.source.data_dir: cannot list {folder}"
        raise ConfigurationError(f"{refusal} ({error.strerror})") from error
    shown = sorted(kinds)
    return Entries([path for path in shown if kinds[path]], [path for path in shown if not kinds[path]])


def read_class_list(path: str, known: Collection[str], ignored: str = "") -> set[str]:
    """The classes that a file names, one a line.

    Args:
        path: of the file.
        known: all classes that there are.
        ignored: pattern of the end of a line that does not belong to the name.

    Raises:
        ConfigurationError: if the file cannot be read, names nothing, or a class that there is not.
    """
    try:
        lines = Path(path).read_text("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = reason_of(error, one_line(error))
        raise ConfigurationError(
            f"task.source.classes={path}: must be a text file, a class a line ({reason})"
        ) from error
    names = {re.sub(f"(?:{ignored})$", "", line.strip()) for line in lines if line.strip()}
    if not names:
        raise ConfigurationError(f"task.source.classes={path}: must name a class a line. Got an empty file")
    if unknown := sorted(names - {*known}):
        example = next(iter(known))
        raise ConfigurationError(f"task.source.classes={path}: {unknown[0]} must be a class, such as {example}")
    return names


def categories_of(names: Iterable[str]) -> list[str]:
    """The category of each class: its name up to the slash."""
    return [name.partition("/")[0] for name in names]


def decode_classes(classes: Mapping[str, Sequence[Encoded]], size: int, channels: int) -> Images:
    """All images, decoded in many threads; in a terminal a bar shows how far it is.

    Args:
        classes: instances of each class.
        size: as `decode` takes it.
        channels: as `decode` takes it.

    Raises:
        ConfigurationError: for the first file that is damaged.
    """
    from rich.console import Console  # noqa: PLC0415
    from rich.progress import track  # noqa: PLC0415

    counts = np.array([len(files) for files in classes.values()], np.int32)
    pixels = np.zeros((len(counts), counts.max(), size, size, channels), np.uint8)
    places = [(row[i], file) for row, own in zip(pixels, classes.values(), strict=True) for i, file in enumerate(own)]

    def fill(place: tuple[np.ndarray, Encoded]) -> None:
        place[0][...] = decode(place[1], size, channels)

    console = Console(stderr=True)
    options: dict[str, Any] = {"console": console, "disable": not console.is_terminal, "transient": True}
    with ThreadPoolExecutor() as pool:
        for _ in track(pool.map(fill, places), "reads the images", len(places), **options):
            pass
    return Images([*classes], categories_of(classes), pixels, counts)


def decode(file: Encoded, size: int, channels: int) -> UInt8[np.ndarray, "height width channels"]:
    """An image, cut to a square around its centre and scaled.

    Args:
        file: PNG or JPEG.
        size: height and width then.
        channels: 1 for grey, 3 for colour.

    Raises:
        ConfigurationError: if the file cannot be read or decoded.
    """
    from PIL import Image  # noqa: PLC0415

    try:
        with Image.open(io.BytesIO(file.read()), formats=("PNG", "JPEG")) as image:
            return _to_square(image, size, "L" if channels == 1 else "RGB")
    except MemoryError:
        raise
    except Exception as error:  # Pillow and zipfile answer damaged bytes with almost any
        reason = reason_of(error, "it is damaged, or neither PNG nor JPEG")
        raise ConfigurationError(f"task.source.data_dir: cannot read {file.name}: {reason}") from error


def _to_square(image: Any, size: int, mode: str) -> UInt8[np.ndarray, "height width channels"]:
    from PIL import Image, ImageOps  # noqa: PLC0415

    if image.mode.startswith("I"):  # 16 bits, which Pillow would clip
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.has_transparency_data:  # what lies under transparent pixels was never meant to be seen
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    square = ImageOps.fit(image.convert(mode), (size, size), Image.Resampling.LANCZOS)
    return np.asarray(square).reshape(size, size, -1)
