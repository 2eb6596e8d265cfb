"""Ways in which images are varied on the device."""

import jax
import jax.numpy as jnp
from jax.scipy.ndimage import map_coordinates
from jaxtyping import Array, Float, Int, Key
from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from twmaml.types import NotNegativeReal


@dataclass(frozen=True, config=ConfigDict(strict=True, extra="forbid"))
class Jitter:
    """A small affine transformation, drawn anew for every image, each number uniformly from both sides of 0.

    Args:
        rotation: at most so far, in radians.
        shear: at most so much, as a fraction.
        shift: at most so far, in pixels, along both axes.
    """

    rotation: NotNegativeReal
    shear: NotNegativeReal
    shift: NotNegativeReal

    def apply(
        self, key: Key[Array, ""], images: Float[Array, "examples height width channels"]
    ) -> Float[Array, "examples height width channels"]:
        """Every image transformed by itself, interpolated linearly; what comes in from outside is 0."""
        angle, shear, *shift = jax.random.uniform(key, (4, len(images)), minval=-1.0)
        cos, sin, shear = jnp.cos(self.rotation * angle), jnp.sin(self.rotation * angle), self.shear * shear
        matrices = jnp.array([[cos, cos * shear - sin], [sin, sin * shear + cos]])  # a turn after a shear
        middle = (images.shape[1] - 1) / 2
        steps = jnp.arange(images.shape[1]) - middle
        grid = jnp.stack(jnp.meshgrid(steps, steps, indexing="ij")).reshape(2, -1)

        def transform(image: Array, matrix: Array, shift: Array) -> Array:
            rows, columns = matrix @ grid + shift[:, None] + middle
            pixels = jax.vmap(lambda channel: map_coordinates(channel, [rows, columns], 1), -1, -1)(image)
            return pixels.reshape(image.shape)

        return jax.vmap(transform, (0, 2, 0))(images, matrices, self.shift * jnp.stack(shift, axis=1))


def turn(
    images: Float[Array, "examples height width channels"], turns: Int[Array, " examples"]
) -> Float[Array, "examples height width channels"]:
    """Every image turned clockwise by so many quarter turns."""
    turns = turns[:, None, None, None]
    images = jnp.where(turns % 2 == 1, jnp.swapaxes(images, 1, 2), images)
    images = jnp.where(turns >= 2, images[:, ::-1], images)
    return jnp.where((turns == 1) | (turns == 2), images[:, :, ::-1], images)
