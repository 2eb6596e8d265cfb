"""Images in a folder for each class, as mini-ImageNet, tieredImageNet and CIFAR-FS are passed on."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from twmaml.errors import ConfigurationError
from twmaml.tasks.images.base import Images
from twmaml.tasks.images.reading import Encoded, categories_of, decode_classes, list_folder, read_class_list

_SPLITS = ("train", "val", "validation", "test")

_SUFFIXES = (".png", ".jpg", ".jpeg")


@dataclass(frozen=True, config=ConfigDict(strict=True, extra="forbid"))
class ImageFolder:
    """The images at `<data_dir>/<split>/[<group>/]<class>/*.png` (or jpg, jpeg), of any shape.

    A class is called `class`, or `group/class` where there are groups, and then groups are the categories; otherwise
    each class is one.

    Args:
        data_dir: folder that holds a folder for each split; train, val, validation and test may share no class.
        split: folder to read.
        size: height and width, in pixels, that images are scaled to, after the longer side is cut.
        colour: three channels instead of one.
        classes: path of a text file with the name of a class to use in each line; null for all.
    """

    data_dir: str
    split: str
    size: Annotated[int, Field(ge=1, le=1024)]
    colour: bool
    classes: str | None = None

    @property
    def channels(self) -> int:
        """3 for colour, otherwise 1."""
        return 3 if self.colour else 1

    @property
    def category(self) -> str:
        """`group` if there are groups; `class` if not, or if the folder is not there."""
        try:
            return "group" if list_folder(self._outer_folders()[0]).folders else "class"
        except ConfigurationError:
            return "class"

    def categories(self) -> Sequence[str]:
        """The groups, or the classes."""
        return [*dict.fromkeys(categories_of(self._class_folders()))]

    def load(self) -> Images:
        """The images of all classes, each of which must have two at least."""
        classes = {name: _images(folder) for name, folder in self._class_folders().items()}
        return decode_classes(classes, self.size, self.channels)

    def _class_folders(self) -> dict[str, Path]:
        """The folder of each class to use."""
        folders = self._outer_folders()
        if self.category == "group":
            folders = [inner for group in folders for inner in _folders_in(group)]
        root = Path(self.data_dir) / self.split
        found = {folder.relative_to(root).as_posix(): folder for folder in folders}
        kept = found if self.classes is None else read_class_list(self.classes, found)
        chosen = {name: folder for name, folder in found.items() if name in kept}
        self._check_other_splits(chosen)
        return chosen

    def _outer_folders(self) -> list[Path]:
        """Groups or classes."""
        root = Path(self.data_dir) / self.split
        wanted = f"task.source.data_dir={self.data_dir}: must be a folder with a folder for each split"
        splits = list_folder(Path(self.data_dir), wanted).folders
        if root not in splits:
            there = ", ".join(split.name for split in splits) or "none"
            raise ConfigurationError(
                f"task.source.split={self.split}: must be a folder in {self.data_dir}. There is {there}"
            )
        return _folders_in(root)

    def _check_other_splits(self, names: Iterable[str]) -> None:
        for split in list_folder(Path(self.data_dir)).folders:
            if self.split in _SPLITS and split.name in _SPLITS and split.name != self.split:
                shared = next((name for name in names if os.path.isdir(split / name)), None)
                if shared is not None:
                    raise ConfigurationError(
                        f"task.source.data_dir={self.data_dir}: a class must be in one split only. "
                        f"Got {shared} in {self.split} and in {split.name}"
                    )


def _look(folder: Path) -> tuple[list[Path], list[Path]]:
    """Folders and images in a folder, which must not hold both."""
    folders, files = list_folder(folder)
    images = [file for file in files if file.suffix.lower() in _SUFFIXES]
    if folders and images:
        raise ConfigurationError(
            f"task.source.data_dir: {folder} must hold folders or images. Got both: {folders[0].name}, {images[0].name}"
        )
    return folders, images


def _folders_in(folder: Path) -> list[Path]:
    folders, _ = _look(folder)
    if not folders:
        raise ConfigurationError(
            f"task.source.data_dir: {folder} must hold a folder of images for each class. Got none"
        )
    return folders


def _images(folder: Path) -> list[Encoded]:
    folders, images = _look(folder)
    if folders:
        raise ConfigurationError(
            f"task.source.data_dir: {folder} must hold images of a class, as others do. Got a folder {folders[0].name}"
        )
    if len(images) < 2:
        wanted = f"must hold at least 2 images, for support and query ({', '.join(_SUFFIXES)})"
        raise ConfigurationError(f"task.source.data_dir: {folder} {wanted}. Got {len(images)}")
    return [Encoded(str(image), image.read_bytes) for image in images]
