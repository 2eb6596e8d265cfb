"""Omniglot: 1,623 handwritten characters of 50 alphabets, each drawn by 20 people, in the published files."""

import zipfile
from collections import ChainMap, defaultdict
from collections.abc import Iterator, Sequence
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from twmaml.errors import ConfigurationError
from twmaml.tasks.images.base import Images
from twmaml.tasks.images.reading import Encoded, categories_of, decode_classes, list_folder, read_class_list, reason_of


@dataclass(frozen=True, config=ConfigDict(strict=True, extra="forbid"))
class Omniglot:
    """Drawn characters: a class each, an instance a drawer, by alphabet. A character of two sets is used once.

    `alphabets`, `classes` and `shuffled` each leave out characters; what all of them keep is used.

    Args:
        data_dir: folder that holds, for each of `sets`, the published zip file or the folder in it.
        sets: names of the files, such as images_background, images_evaluation, images_background_small1.
        alphabets: those to use, in this order; null for all.
        classes: path of a text file with a line `alphabet/character` for each to use, such as those of published splits
            (a `/rot090` at the end does not count); null for all.
        shuffled: [start, stop]: use so many out of one random order of all characters; null for all.
        size: height and width, in pixels, that the drawings of 105 are scaled to.

    References:
        Lake, Salakhutdinov, Tenenbaum 2015, Human-level concept learning through probabilistic program induction.
        Vinyals et al. 2016, Matching networks for one shot learning (28 pixels; a split by classes).
        Finn, Abbeel, Levine 2017, Model-agnostic meta-learning, section 5.2 (1,200 characters in random order, and the
            rest).
    """

    data_dir: str
    sets: Annotated[Sequence[str], Field(min_length=1)]
    alphabets: Annotated[Sequence[str], Field(min_length=1)] | None = None
    classes: str | None = None
    shuffled: Annotated[Sequence[Annotated[int, Field(ge=0)]], Field(min_length=2, max_length=2)] | None = None
    size: Annotated[int, Field(ge=1, le=105)] = 28

    channels = 1
    category = "alphabet"

    def __post_init__(self) -> None:
        if self.shuffled is not None and not self.shuffled[0] < self.shuffled[1]:
            raise ValueError(f"shuffled must be [start, stop] with start < stop. Got {[*self.shuffled]}")

    def categories(self) -> Sequence[str]:
        """The alphabets of which a character is used."""
        return [*dict.fromkeys(categories_of(self._characters()))]

    def load(self) -> Images:
        """The drawings, with ink 255."""
        images = decode_classes(self._characters(), self.size, self.channels)
        for drawings, count in zip(images.pixels, images.counts, strict=True):
            np.subtract(255, drawings[:count], out=drawings[:count])  # in the files ink is 0
        return images

    def _characters(self) -> dict[str, list[Encoded]]:
        """The drawings of each character to use."""
        found = dict(sorted(ChainMap(*map(self._read_set, self.sets)).items()))  # of two with a name the first
        known = [*dict.fromkeys(categories_of(found))]
        alphabets = self.alphabets or known
        if unknown := {*alphabets} - {*known}:
            listed = f"{', '.join(sorted(unknown))} must be among those in {', '.join(self.sets)}: {', '.join(known)}"
            raise ConfigurationError(f"task.source.alphabets: {listed}")
        kept = self._in_shuffled_part([*found])
        if self.classes is not None:
            kept &= read_class_list(self.classes, found, r"/rot\d+")
        chosen = {
            name: found[name] for one in alphabets for name in found if name.startswith(f"{one}/") and name in kept
        }
        if not chosen:
            limits = f"alphabets={self.alphabets} classes={self.classes} shuffled={self.shuffled}"
            raise ConfigurationError(f"task.source: {limits}: no character is left by all of them together")
        return chosen

    def _in_shuffled_part(self, names: Sequence[str]) -> set[str]:
        start, stop = self.shuffled or (0, len(names))
        if stop > len(names):
            raise ConfigurationError(
                f"task.source.shuffled=[{start},{stop}]: there are {len(names)} characters in {', '.join(self.sets)}"
            )
        order: list[int] = np.random.default_rng(0).permutation(len(names)).tolist()
        return {names[i] for i in order[start:stop]}

    def _read_set(self, name: str) -> dict[str, list[Encoded]]:
        """The drawings of each character in a set, sorted by file name."""
        wanted = f"task.source.data_dir={self.data_dir}: must be a folder that holds {name}.zip or {name}/"
        zipped, folder = (Path(self.data_dir) / each for each in (f"{name}.zip", name))
        folders, files = list_folder(Path(self.data_dir), wanted)
        if zipped not in files and folder not in folders:
            raise ConfigurationError(f"{wanted} (published at https://github.com/brendenlake/omniglot)")
        drawings = _in_zip(zipped, name) if zipped in files else _in_folder(folder)
        characters = defaultdict(list)
        for drawing in sorted(drawings, key=itemgetter(0)):
            _, alphabet, character, _ = drawing.name.rsplit("/", 3)
            characters[f"{alphabet}/{character}"].append(drawing)
        if not characters:
            raise ConfigurationError(f"{wanted}, in it <alphabet>/<character>/*.png. There is none")
        return dict(characters)


def _in_folder(folder: Path) -> Iterator[Encoded]:
    for alphabet in list_folder(folder).folders:
        for character in list_folder(alphabet).folders:
            drawings = (file for file in list_folder(character).files if file.suffix == ".png")
            yield from (Encoded(file.as_posix(), file.read_bytes) for file in drawings)


def _in_zip(path: Path, name: str) -> Iterator[Encoded]:
    try:
        archive = zipfile.ZipFile(path)  # closed when the last of its drawings is gone
    except (OSError, ValueError, NotImplementedError, zipfile.BadZipFile) as error:
        reason = reason_of(error, "it is damaged, or no zip file")
        raise ConfigurationError(f"task.source.data_dir: cannot read {path}: {reason}") from error
    for member in archive.namelist():
        match member.split("/"):
            case [top, _, _, file] if top == name and file.endswith(".png") and not file.startswith("."):
                yield Encoded(f"{path.as_posix()}/{member}", partial(archive.read, member))
