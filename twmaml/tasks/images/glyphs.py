"""Characters of many scripts, rendered from the fonts that Matplotlib ships: no download."""

import logging
import os
import unicodedata
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from jaxtyping import Float32, Int32, UInt8
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from twmaml.errors import ConfigurationError
from twmaml.tasks.images.base import Images

log = logging.getLogger(__name__)

ALPHABETS: Mapping[str, Sequence[tuple[int, int]]] = {
    "Georgian": [(0x10A0, 0x10FF), (0x2D00, 0x2D25)],
    "Hebrew": [(0x05D0, 0x05EA), (0xFB20, 0xFB4F)],
    "Greek": [(0x0370, 0x03FF)],
    "Old Italic": [(0x10300, 0x1032F)],
    "Lao": [(0x0E81, 0x0EDF)],
    "Latin": [(0x0041, 0x005A), (0x0061, 0x007A)],
    "Latin accented": [(0x00C0, 0x017F)],
    "Latin extended": [(0x0180, 0x024F), (0x1E00, 0x1EFF)],
    "Latin additions": [(0x2C60, 0x2C7F), (0xA720, 0xA7FF)],
    "phonetic": [(0x0250, 0x02AF), (0x1D00, 0x1DBF)],
    "modifiers": [(0x02B0, 0x02FF)],
    "Cyrillic": [(0x0400, 0x052F), (0xA640, 0xA69F)],
    "Armenian": [(0x0531, 0x0587)],
    "Arabic": [(0x0620, 0x06FF), (0xFB50, 0xFDFB), (0xFE70, 0xFEFC)],
    "Canadian": [(0x1400, 0x167F)],
    "Lisu": [(0xA4D0, 0xA4FF)],
    "numbers": [(0x0030, 0x0039), (0x2070, 0x209F), (0x2150, 0x218F)],
    "letterlike": [(0x2100, 0x214F)],
    "punctuation": [(0x0021, 0x002F), (0x003A, 0x0040), (0x005B, 0x0060), (0x007B, 0x00BF), (0x2010, 0x205E)],
    "arrows": [(0x2190, 0x21FF), (0x27F0, 0x27FF), (0x2900, 0x297F), (0x2B00, 0x2BFF)],
    "operators": [(0x2200, 0x22FF), (0x27C0, 0x27EF), (0x2980, 0x2AFF)],
    "technical": [(0x2300, 0x23FF)],
    "Braille": [(0x2800, 0x28FF)],
}
"""Code points, both ends included. A character that looks like one of an alphabet before is left out."""

_FACES = ("Sans", "Serif", "SansMono")
_STYLES = ("", "-Bold", "-Oblique", "-Italic", "-BoldOblique", "-BoldItalic")

_SIZE, _BOX = 28, 22
_MOST_CLASSES, _MOST_INSTANCES = 64, 8
_SAME_CLASS, _SAME_INSTANCE = 0.92, 0.995
"""Correlations of pixels above which two characters count as one, and two renderings of a character."""


@dataclass(frozen=True, config=ConfigDict(strict=True, extra="forbid"))
class Glyphs:
    """Characters as the faces of DejaVu draw them: a class each, an instance a face, by alphabet.

    Characters that look alike are one class, of the alphabet that comes first in `ALPHABETS`: no two alphabets share
    one. Of an alphabet at most 64 classes are used, spread evenly over it, of a class at most 8 faces.

    Args:
        alphabets: names out of `ALPHABETS`.
        instances: faces that a class must have to be used.
    """

    alphabets: Annotated[Sequence[str], Field(min_length=1)]
    instances: Annotated[int, Field(ge=2, le=_MOST_INSTANCES)] = 4

    size = _SIZE
    channels = 1
    category = "alphabet"

    def __post_init__(self) -> None:
        for name in self.alphabets:
            if name not in ALPHABETS:
                raise ValueError(f"alphabets: {name} is not one of {', '.join(ALPHABETS)}")
        if len({*self.alphabets}) < len(self.alphabets):
            raise ValueError(f"alphabets must all differ. Got {', '.join(self.alphabets)}")

    def categories(self) -> Sequence[str]:
        """The alphabets."""
        return self.alphabets

    def load(self) -> Images:
        """The characters that have enough faces, from the user's cache folder if they are there."""
        rendered = _render_once()
        enough = rendered["counts"] >= self.instances
        if missing := sorted({*self.alphabets} - {*rendered["alphabets"][enough].tolist()}):
            raise ConfigurationError(
                f"task.source.instances={self.instances}: no character of {', '.join(missing)} has so many renderings; "
                "leave out of task.source.alphabets what has none"
            )
        chosen = []
        for alphabet in self.categories():
            places = np.flatnonzero((rendered["alphabets"] == alphabet) & enough)
            spread = np.linspace(0, len(places) - 1, min(len(places), _MOST_CLASSES)).round().astype(int)
            chosen.append(places[spread])
        rows = np.concatenate(chosen)
        names = [
            f"{a} U+{code:04X}" for a, code in zip(rendered["alphabets"][rows], rendered["codes"][rows], strict=True)
        ]
        return Images(names, rendered["alphabets"][rows].tolist(), rendered["pixels"][rows], rendered["counts"][rows])


def _render_once() -> Mapping[str, Any]:
    """All characters, rendered or read from the cache; the cache is keyed by all that they depend on."""
    from PIL import __version__, features  # noqa: PLC0415
    from platformdirs import user_cache_path  # noqa: PLC0415

    fonts = _fonts()
    contents = zlib.crc32(b"".join(path.read_bytes() for path in (Path(__file__), *fonts)))
    key = f"{contents:08x}-{__version__}-{features.version('freetype2')}-{np.__version__}"
    path = user_cache_path("twmaml") / "glyphs" / f"{key}.npz"
    try:
        with path.open("rb") as file:
            return dict(np.load(file))
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error):
        log.info("renders the glyphs (a few seconds); keeps them in %s", path)
    rendered = _render(fonts)
    partial = path.with_name(f".{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            np.savez_compressed(file, **rendered)
        partial.replace(path)
        for old in path.parent.glob("*.npz"):
            if old != path:  # of another version
                old.unlink(missing_ok=True)
    except OSError as error:  # a cache is a convenience
        log.info("the glyphs cannot be kept: %s", error)
    return rendered


def _fonts() -> list[Path]:
    import matplotlib as mpl  # noqa: PLC0415

    folder = Path(mpl.get_data_path()) / "fonts" / "ttf"
    paths = (folder / f"DejaVu{face}{style}.ttf" for face in _FACES for style in _STYLES)
    return [path for path in paths if path.exists()]


def _render(fonts: Sequence[Path]) -> dict[str, Any]:
    """Every distinct character that at least two distinct faces have."""
    from fontTools.ttLib import TTFont  # noqa: PLC0415
    from PIL import ImageFont  # noqa: PLC0415

    covered = []
    for path in fonts:
        with TTFont(path, lazy=True) as font:
            covered.append({*(font.getBestCmap() or ())})
    faces = [ImageFont.truetype(str(path), 64, layout_engine=ImageFont.Layout.BASIC) for path in fonts]
    alphabets, codes, pixels, counts = [], [], [], []
    for alphabet, code in _code_points():
        drawn = (_draw(chr(code), face) for face, own in zip(faces, covered, strict=True) if code in own)
        instances = _distinct([image for image in drawn if image is not None])[:_MOST_INSTANCES]
        if len(instances) >= 2:
            alphabets.append(alphabet)
            codes.append(code)
            counts.append(len(instances))
            pixels.append(np.pad(np.stack(instances), ((0, _MOST_INSTANCES - len(instances)), (0, 0), (0, 0))))
    stacked = np.stack(pixels)
    kept = _first_of_its_kind(_standardise(stacked[:, 0]))
    return {
        "alphabets": np.array(alphabets)[kept],
        "codes": np.array(codes)[kept],
        "pixels": stacked[kept][..., None],
        "counts": np.array(counts, np.int32)[kept],
    }


def _code_points() -> Iterator[tuple[str, int]]:
    for alphabet, ranges in ALPHABETS.items():
        for low, high in ranges:
            # Not marks, which join others, nor what cannot be seen.
            visible = (code for code in range(low, high + 1) if unicodedata.category(chr(code))[0] in "LNPS")
            yield from ((alphabet, code) for code in visible)


def _draw(character: str, face: Any) -> UInt8[np.ndarray, "28 28"] | None:
    """A character in the middle of an image, its longer side as long as the box; None if there is nothing to see."""
    from PIL import Image, ImageDraw  # noqa: PLC0415

    sheet = Image.new("L", (256, 256))
    ImageDraw.Draw(sheet).text((80, 64), character, fill=255, font=face)
    box = sheet.getbbox()
    if box is None:
        return None
    cut = sheet.crop(box)
    scale = _BOX / max(cut.size)
    width, height = (max(1, round(side * scale)) for side in cut.size)
    image = Image.new("L", (_SIZE, _SIZE))
    image.paste(cut.resize((width, height), Image.Resampling.LANCZOS), ((_SIZE - width) // 2, (_SIZE - height) // 2))
    return np.asarray(image)


def _distinct(images: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The images that look like none before them."""
    if not images:
        return []
    flat = _standardise(np.stack(images))
    return [image for image, first in zip(images, _greedy(flat @ flat.T > _SAME_INSTANCE), strict=True) if first]


def _first_of_its_kind(flat: Float32[np.ndarray, "characters pixels"]) -> Int32[np.ndarray, " kept"]:
    return np.flatnonzero(_greedy(flat @ flat.T > _SAME_CLASS)).astype(np.int32)


def _greedy(same: np.ndarray) -> np.ndarray:
    """Marks rows, each of which is the same as none that is marked before it."""
    kept = np.zeros(len(same), bool)
    for i, row in enumerate(same):
        kept[i] = not (row & kept).any()
    return kept


def _standardise(images: np.ndarray) -> Float32[np.ndarray, "images pixels"]:
    """Flat images whose products are correlations."""
    flat = images.reshape(len(images), -1).astype(np.float32)
    flat -= flat.mean(axis=1, keepdims=True)
    return flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-6)
