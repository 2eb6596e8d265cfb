"""Few-shot image classification: N classes to tell apart by K images of each."""

import zlib
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int, Int32, Key, UInt8
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from twmaml.errors import ConfigurationError
from twmaml.space.axis import Axis, Categories, Interval
from twmaml.space.grid import ParameterGrid
from twmaml.statistics import counted
from twmaml.tasks.base import AdaptationPath, Part, TaskFamily
from twmaml.tasks.images.base import ImageSource, load_once
from twmaml.tasks.images.transforms import Jitter, turn
from twmaml.types import Metric, NotNegativeReal, Outcome, PositiveReal, Predict, Real

_SHOWN = 3
"""Support images of a class in a picture, at most, and query images."""

_PICTURES = 0x70696374
"""Seed of the noise in pictures, which is neither training's nor evaluation's."""


class ClassImages(NamedTuple):
    """Images by class, as the compiled programs read them."""

    pixels: UInt8[Array | np.ndarray, "classes instances height width channels"]
    counts: Int32[Array | np.ndarray, " classes"]
    """Instances of each class; the rest is padding."""
    members: Bool[Array | np.ndarray, "categories classes"]
    """Marks the classes of each category."""


class Episode(NamedTuple):
    """The part that support and query of a task share. The class in row i has label i."""

    images: ClassImages
    classes: Int[Array, " ways"]
    order: Int[Array, "ways instances"]
    """The instances of each class, shuffled; padding comes last."""
    turns: Int[Array, " ways"]
    """Quarter turns of each class."""
    noise: Float[Array, ""]


class Examples(NamedTuple):
    """Images with their labels."""

    images: Float[Array, "examples height width channels"]
    labels: Int[Array, " examples"]


@dataclass(frozen=True, config=ConfigDict(strict=True, extra="forbid", arbitrary_types_allowed=True))
class FewShot(TaskFamily):
    """Classification among N classes that are drawn anew for each task.

    A task is a category, from which the classes are drawn, and a level of noise. A category with fewer classes than
    ways is filled up with classes of others; a category of one class is that class among any others. Labels are
    redrawn for each task, or the network would learn the classes by heart. Support and query share no image.

    Args:
        source: of the images.
        ways: classes of a task.
        noise: standard deviation of the noise that is added to every pixel, whose range is 1: an axis, or a number.
        pooled: make all classes one category.
        rotations: turn each class of a task by a random multiple of 90°, which makes another class of it.
        jitter: varies every image; null for none.
        mean: of each channel, subtracted after scaling pixels to 0 ... 1; grey takes the mean of three.
        std: of each channel, divided by then; likewise.

    References:
        Vinyals et al. 2016, Matching networks for one shot learning, section 4.1 (episodes; rotations as classes).
        Finn, Abbeel, Levine 2017, Model-agnostic meta-learning, section 5.2.
    """

    source: ImageSource
    ways: Annotated[int, Field(ge=2, le=1000)]
    noise: Interval | NotNegativeReal = 0.0
    pooled: bool = False
    rotations: bool = False
    jitter: Jitter | None = None
    mean: Sequence[Real] = (0.0,)
    std: Sequence[PositiveReal] = (1.0,)

    evaluated_at_once = 4
    score = Metric("loss", "cross-entropy")
    metrics = (Metric("accuracy", "accuracy", higher_is_better=True, logarithmic=False),)

    def __post_init__(self) -> None:
        if isinstance(self.noise, Interval) and self.noise.low < 0:
            raise ValueError(f"noise.low={self.noise.low}: must not be negative")
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) not in (1, 3):
                raise ValueError(f"{name} needs one number, or one for each of 3 colours. Got {values}")

    @property
    def grid(self) -> ParameterGrid:
        """The categories, and the noise where it varies."""
        return self._grid

    @cached_property
    def _grid(self) -> ParameterGrid:
        axes: dict[str, Axis] = {"classes": Categories(["all"])}
        if not self.pooled:
            axes = {self.source.category: Categories(self.source.categories())}
        return ParameterGrid({**axes, "noise": self.noise} if isinstance(self.noise, Interval) else axes)

    @property
    def example_input(self) -> Float[Array, "height width channels"]:
        """One image."""
        return jnp.zeros((self.source.size, self.source.size, self.source.channels))

    @property
    def outputs(self) -> int:
        """A logit for each class of a task."""
        return self.ways

    @property
    def protocol(self) -> str:
        """Ways, whether rotations are used, and which classes a task is of."""
        of_all = self.pooled or self.source.category == "class"
        classes = f"{self.ways} ways out of {'all classes' if of_all else f'one {self.source.category}'}"
        return f"{classes}, rotations are {'classes of their own' if self.rotations else 'not used'}"

    def data(self) -> ClassImages:
        """All images of the source."""
        images = load_once(self.source)
        if len(images.names) < self.ways:
            raise ConfigurationError(f"task.ways={self.ways}: there are {len(images.names)} classes in {self.source}")
        members = np.array(self.source.categories())[:, None] == np.array(images.categories)
        if self.pooled:
            members = np.ones((1, len(images.names)), bool)
        return ClassImages(images.pixels, images.counts, members)

    def relate_data(self, data: ClassImages, training: ClassImages) -> str:
        """The number of classes, of those to judge on, that have the same images as one of training."""
        seen = {zlib.crc32(row.data) for row in np.asarray(training.pixels)}
        count = sum(zlib.crc32(row.data) in seen for row in np.asarray(data.pixels))
        total = len(data.pixels)
        return {0: "classes not seen in training", total: "classes seen in training"}.get(
            count, f"{count:,} of {total:,} classes seen in training"
        )

    def check_data(self, data: ClassImages, shots: int, queries: int) -> None:
        """Refuses more examples of a class than the smallest class has images."""
        least = int(np.argmin(data.counts))
        if data.counts[least] < shots + queries:
            name = load_once(self.source).names[least]
            raise ValueError(f"need {shots + queries} images of a class; {name} has {data.counts[least]}")

    def describe_data(self, data: ClassImages) -> str:
        """Numbers of classes and images, and their size."""
        classes, _, height, width, channels = data.pixels.shape
        kind = "colour" if channels == 3 else "grey"
        images = f"{int(np.sum(data.counts)):,} {kind} images of {height} x {width}"
        return f"{images} in {classes:,} classes ({np.min(data.counts)} to {np.max(data.counts)} each)"

    def episode(self, key: Key[Array, ""], task: Float[Array, " axes"], data: ClassImages) -> Episode:
        """Classes of the task's category in random order, and a random order of the instances of each."""
        classes_key, labels_key, order_key, turns_key = jax.random.split(key, 4)
        # The largest of random numbers are a draw without replacement; those of members are all above the others.
        members = data.members[task[0].astype(jnp.int32)]
        draws = jax.random.uniform(classes_key, members.shape)
        _, classes = jax.lax.top_k(draws + members, self.ways)
        classes = jax.random.permutation(labels_key, classes)  # which would tell those that fill up
        counts = data.counts[classes]
        shuffled = jax.random.uniform(order_key, (self.ways, data.pixels.shape[1]))
        padding = jnp.arange(data.pixels.shape[1]) >= counts[:, None]
        order = jnp.argsort(shuffled + padding, axis=1)
        turns = jax.random.randint(turns_key, (self.ways,), 0, 4 if self.rotations else 1)
        noise = task[1] if isinstance(self.noise, Interval) else jnp.float32(self.noise)
        return Episode(data, classes, order, turns, noise)

    def collect(self, key: Key[Array, ""], episode: Episode, part: Part, predict: Predict, n: int) -> Examples:
        """`n` images of each class: support from the front of the order of its instances, query from the back."""
        del predict
        places = jnp.broadcast_to(jnp.arange(n), (self.ways, n))
        if part == "query":
            places = episode.images.counts[episode.classes][:, None] - 1 - places
        return self._examples(key, episode, places)

    def _examples(self, key: Key[Array, ""], episode: Episode, places: Int[Array, "ways n"]) -> Examples:
        """The images at places of the order of each class."""
        n = places.shape[1]
        instances = jnp.take_along_axis(episode.order, places, axis=1)
        classes = jnp.repeat(episode.classes, n)
        images = episode.images.pixels[classes, instances.ravel()].astype(jnp.float32) / 255
        jitter_key, noise_key = jax.random.split(key)
        if self.rotations:
            images = turn(images, jnp.repeat(episode.turns, n))
        if self.jitter is not None:
            images = self.jitter.apply(jitter_key, images)
        if self.noise != 0:
            images = images + episode.noise * jax.random.normal(noise_key, images.shape)
        return Examples(self._normalise(images), jnp.repeat(jnp.arange(self.ways), n))

    def outcome(self, predict: Predict, examples: Examples) -> Outcome:
        """The mean cross-entropy, as loss and as score; the accuracy besides."""
        logits = predict(examples.images)
        if jnp.shape(logits) != (len(examples.labels), self.ways):
            raise ValueError(
                f"the network must have {self.ways} outputs for each of {len(examples.labels)} images. "
                f"Got an array {logits.shape}"
            )
        loss = jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, examples.labels))
        accuracy = jnp.mean(jnp.argmax(logits, axis=1) == examples.labels)
        return Outcome(loss=loss, score=loss, metrics={"accuracy": accuracy})

    def inputs_of(self, x: Any) -> Float[Array, "examples height width channels"]:
        """Images [examples, height, width(, channels)] with pixels from 0 to 1, normalised."""
        images, shape = jnp.asarray(x), self.example_input.shape
        if images.shape[1:] not in ((shape, shape[:2]) if self.source.channels == 1 else (shape,)):
            raise ValueError(f"images must have shape (examples, {', '.join(map(str, shape))}). Got {images.shape}")
        if not jnp.issubdtype(images.dtype, jnp.floating):
            raise ValueError(f"images must be floats from 0 to 1. Got {images.dtype}")
        return self._normalise(images.astype(jnp.float32).reshape(-1, *shape))

    def support_of(self, x: Any, y: Any) -> Examples:
        """Images as `inputs_of` takes them, and their labels 0 ... ways - 1."""
        images, labels = self.inputs_of(x), np.asarray(y)
        if labels.shape != images.shape[:1] or labels.size == 0:
            raise ValueError(f"there must be a label for each of {len(images)} images. Got an array {labels.shape}")
        if not np.issubdtype(labels.dtype, np.integer) or not ((labels >= 0) & (labels < self.ways)).all():
            raise ValueError(f"labels must be integers from 0 to {self.ways - 1}. Got {labels}")
        return Examples(images, jnp.asarray(labels, jnp.int32))

    def picture(self, episode: Episode, support: Examples, path: AdaptationPath) -> dict[str, Array]:
        """Some support and query images of each class, and what is predicted of the latter after each inner step."""
        images = support.images.reshape(self.ways, -1, *support.images.shape[1:])
        last = episode.images.counts[episode.classes][:, None] - 1
        places = jnp.maximum(last - jnp.arange(_SHOWN), images.shape[1])  # one again, where there are no more
        query = self._examples(jax.random.key(_PICTURES), episode, places)
        return {
            "support_images": self._restore(images[:, :_SHOWN]),
            "query_images": self._restore(query.images.reshape(self.ways, -1, *images.shape[2:])),
            "predictions": path(lambda predict: jnp.argmax(predict(query.images), axis=1).reshape(self.ways, -1)),
        }

    def draw_picture(self, axes: Any, picture: Mapping[str, np.ndarray]) -> None:
        """A column for each class: support images, and below them query images with what they are taken for."""
        support, query, predictions = picture["support_images"], picture["query_images"], picture["predictions"]
        first_query = support.shape[1] + 0.35
        style: dict[str, Any] = {"cmap": "gray_r" if self.source.channels == 1 else None, "vmin": 0, "vmax": 1}

        def place(image: np.ndarray, x: float, y: float) -> None:
            axes.imshow(image.squeeze(), extent=(x + 0.04, x + 0.96, y + 0.92, y), **style)

        for label in range(self.ways):
            axes.text(label + 0.5, -0.1, str(label), ha="center", fontsize=8)
            for i, image in enumerate(support[label]):
                place(image, label, i)
            for i, image in enumerate(query[label]):
                y = first_query + 1.3 * i
                place(image, label, y)
                before, after = predictions[0, label, i], predictions[-1, label, i]
                colour = "#009E73" if after == label else "#D55E00"
                axes.plot(
                    label + np.array([0.04, 0.96, 0.96, 0.04, 0.04]), y + np.array([0, 0, 0.92, 0.92, 0]), color=colour
                )
                axes.text(label + 0.5, y + 1.15, f"{before} → {after}", ha="center", color=colour, fontsize=7)
        below = first_query + 1.3 * query.shape[1]
        axes.text(-0.1, support.shape[1] / 2, "support", rotation=90, ha="right", va="center", fontsize=8)
        axes.text(-0.1, (first_query + below) / 2, "query", rotation=90, ha="right", va="center", fontsize=8)
        note = f"predicted class before → after {counted(len(predictions) - 1, 'inner step')}"
        axes.text(self.ways / 2, below + 0.2, note, ha="center", fontsize=7)
        axes.set(xlim=(-0.5, self.ways), ylim=(below + 0.3, -0.5), aspect="equal")
        axes.set_axis_off()

    def _normalise(self, images: Float[Array, "*any channels"]) -> Float[Array, "*any channels"]:
        if [*self.mean] == [0.0] and [*self.std] == [1.0]:
            return images
        return (images - self._of_channels(self.mean)) / self._of_channels(self.std)

    def _restore(self, images: Float[Array, "*any channels"]) -> Float[Array, "*any channels"]:
        return jnp.clip(images * self._of_channels(self.std) + self._of_channels(self.mean), 0, 1)

    def _of_channels(self, values: Sequence[float]) -> Float[Array, " channels"]:
        return jnp.array([sum(values) / len(values)] if self.source.channels == 1 else values)
