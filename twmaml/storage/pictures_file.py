"""pictures.npz: three tasks before and after adapting, as their family shows them."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from twmaml.storage.files import DamagedFileError, read_arrays, write_arrays

FILE = "pictures.npz"


class Pictures(NamedTuple):
    """Some tasks, and what a family's `picture` has made of each."""

    tasks: np.ndarray
    """Parameters in their configured units, [tasks, axes]."""
    arrays: Mapping[str, np.ndarray]
    """By the names that the family chose, [tasks, ...]."""

    def of(self, index: int) -> dict[str, np.ndarray]:
        """The picture of one task."""
        return {name: np.asarray(array[index]) for name, array in self.arrays.items()}


def write(folder: Path, pictures: Pictures) -> None:
    """Writes the pictures of the run in a folder, at once or not at all."""
    write_arrays(folder / FILE, **{**pictures.arrays, "tasks": pictures.tasks})


def read(folder: Path) -> Pictures | None:
    """Reads the pictures of the run in a folder; None if there are none.

    Raises:
        DamagedFileError: if they are not whole.
    """
    if not (folder / FILE).exists():
        return None
    arrays = read_arrays(folder / FILE)
    if "tasks" not in arrays:
        raise DamagedFileError(f"{FILE} is damaged: there are no tasks in it")
    return Pictures(arrays.pop("tasks"), arrays)
