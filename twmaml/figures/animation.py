"""Moving pictures."""

from collections.abc import Callable
from pathlib import Path

from matplotlib.animation import FuncAnimation, PillowWriter
from matplotlib.axes import Axes
from matplotlib.figure import Figure


def save_gif(path: Path, draw: Callable[[Axes, int], None], frames: int, per_second: int) -> None:
    """Writes frames, each drawn into empty axes, as a GIF that repeats.

    Args:
        path: of the file, which must end in `.gif`.
        draw: draws a frame, by its index.
        frames: how many.
        per_second: shown in a second.
    """
    figure = Figure(figsize=(4, 4), layout="constrained")
    axes = figure.subplots()

    def show(frame: int) -> list[Axes]:
        axes.clear()
        draw(axes, frame)
        axes.set_title(f"step {frame}", loc="left", fontsize=9)
        return [axes]

    FuncAnimation(figure, show, frames=frames).save(path, writer=PillowWriter(fps=per_second), dpi=72)
