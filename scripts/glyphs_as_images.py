"""Makes a folder of colour images out of the rendered characters, to try `task=image_folder` without a download.

`python scripts/glyphs_as_images.py FOLDER` writes 64 classes to train on, 16 for validation and 20 to test on, 84 x 84
pixels, laid out as mini-ImageNet is passed on: FOLDER/<split>/<class>/<number>.png.
"""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image
from rich.progress import track

from twmaml.tasks.images.glyphs import Glyphs

SPLITS = {
    "train": (64, ["Cyrillic", "Armenian", "Canadian", "Latin"]),
    "val": (16, ["Lisu"]),
    "test": (20, ["Georgian", "Lao"]),
}
"""Number of classes, and the alphabets that they are taken from."""


def colour(glyph: np.ndarray, size: int, generator: np.random.Generator) -> Image.Image:
    """A character in one random colour before another, turned and moved a little."""
    ink = Image.fromarray(glyph[..., 0]).resize((size, size), Image.Resampling.BICUBIC)
    shift = tuple(generator.integers(-size // 10, size // 10 + 1, 2).tolist())
    ink = ink.rotate(float(generator.uniform(-15, 15)), translate=shift)
    paper, paint = (Image.new("RGB", (size, size), tuple(generator.integers(0, 256, 3).tolist())) for _ in range(2))
    return Image.composite(paint, paper, ink)


def main() -> None:
    """Writes the images."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folder", type=Path, help="where to write; created if it is not there")
    parser.add_argument("--images", type=int, default=20, help="of each class")
    parser.add_argument("--size", type=int, default=84, help="height and width in pixels")
    arguments = parser.parse_args()
    generator = np.random.default_rng(0)
    for split, (count, alphabets) in SPLITS.items():
        glyphs = Glyphs(alphabets).load()
        classes = np.linspace(0, len(glyphs.names) - 1, min(count, len(glyphs.names))).round().astype(int)
        for k in track(classes.tolist(), split):
            folder = arguments.folder / split / "_".join(glyphs.names[k].split())
            folder.mkdir(parents=True, exist_ok=True)
            for i in range(arguments.images):
                image = colour(glyphs.pixels[k, i % glyphs.counts[k]], arguments.size, generator)
                image.save(folder / f"{i:03}.png")


if __name__ == "__main__":
    main()
