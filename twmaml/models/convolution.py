"""The pieces of convolutional networks: convolution, normalisation, pooling."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key
from pydantic import ConfigDict, PositiveInt
from pydantic.dataclasses import dataclass

from twmaml.models.factored import Dense

Norm = Literal["batch", "layer"]

Precision = Literal["float32", "bfloat16"]


class ConvolutionLayer(NamedTuple):
    """A convolution without bias, and the scale and shift of the normalisation after it."""

    kernel: Float[Array, "height width channels filters"]
    scale: Float[Array, " filters"]
    shift: Float[Array, " filters"]


@dataclass(frozen=True, config=ConfigDict(strict=True, extra="forbid"))
class ConvolutionalNetwork:
    """The keys that all convolutional networks have.

    Args:
        norm: by the statistics of the batch, which makes predictions transductive, or of each image alone.
        precision: of the products; everything else is in single precision.
        outputs: units of the last layer.
    """

    norm: Norm = "batch"
    precision: Precision = "float32"
    outputs: PositiveInt = 1

    @property
    def protocol(self) -> str:
        """Whether a prediction depends on the other examples that are predicted with it."""
        return "batch statistics (transductive)" if self.norm == "batch" else "layer normalisation (not transductive)"

    def convolve(
        self, inputs: Float[Array, "examples height width channels"], layer: ConvolutionLayer, stride: int = 1
    ) -> Float[Array, "examples height_out width_out filters"]:
        """A convolution and the normalisation after it."""
        return normalise(convolve(inputs, layer.kernel, stride, self.precision), layer, self.norm)


def init_convolution(key: Key[Array, ""], size: int, channels: int, filters: int) -> ConvolutionLayer:
    """Fresh weights: He's normal for the kernel, and a normalisation that changes nothing."""
    kernel = jax.nn.initializers.he_normal()(key, (size, size, channels, filters), jnp.float32)
    return ConvolutionLayer(kernel, jnp.ones(filters), jnp.zeros(filters))


def init_dense(key: Key[Array, ""], inputs: int, outputs: int) -> Dense:
    """Fresh weights of a layer without an activation after it."""
    return Dense(jax.nn.initializers.lecun_normal()(key, (inputs, outputs), jnp.float32), jnp.zeros(outputs))


def check_images(example_input: Float[Array, "..."], halvings: int) -> None:
    """Refuses inputs that are no images, or too small to be halved so often.

    Raises:
        ValueError: with the shape.
    """
    if example_input.ndim != 3 or min(example_input.shape[:2]) >> halvings == 0:
        raise ValueError(
            f"model: takes images [height, width, channels] of at least {2**halvings} pixels. Got {example_input.shape}"
        )


def convolve(
    inputs: Float[Array, "examples height width channels"],
    kernel: Float[Array, "size size channels filters"],
    stride: int,
    precision: Precision,
) -> Float[Array, "examples height_out width_out filters"]:
    """A convolution padded so that stride 1 keeps the size.

    The patches of all pixels are laid beside each other and multiplied once. What vmap over the kernels of several
    tasks makes of the library's convolution is a grouped one, for which neither a CPU nor a GPU has a fast form.
    """
    exact = inputs.dtype
    if precision == "bfloat16":
        inputs, kernel = inputs.astype(jnp.bfloat16), kernel.astype(jnp.bfloat16)
    examples, size, filters = len(inputs), len(kernel), kernel.shape[-1]
    out = [-(-side // stride) for side in inputs.shape[1:3]]
    columns = _patches(inputs, size, stride, out)
    product = jnp.matmul(columns, kernel.reshape(-1, filters), preferred_element_type=exact)
    return product.reshape(examples, *out, filters)


def _patches(
    inputs: Float[Array, "examples height width channels"], size: int, stride: int, out: Sequence[int]
) -> Float[Array, "patches pixels"]:
    """The neighbourhood of every pixel that comes out, as a row."""
    missing = [max((n - 1) * stride + size - side, 0) for n, side in zip(out, inputs.shape[1:3], strict=True)]
    padded = jnp.pad(inputs, ((0, 0), *((m // 2, m - m // 2) for m in missing), (0, 0)))
    rows, columns = (slice(0, (n - 1) * stride + 1, stride) for n in out)
    shifted = [padded[:, i:, j:][:, rows, columns] for i in range(size) for j in range(size)]
    return jnp.concatenate(shifted, axis=-1).reshape(-1, size * size * inputs.shape[-1])


def normalise(
    inputs: Float[Array, "examples height width filters"], layer: ConvolutionLayer, norm: Norm
) -> Float[Array, "examples height width filters"]:
    """Activations with mean 0 and variance 1, then scaled and shifted.

    `batch`: over the examples that are predicted together, and the pixels, for each filter. No running averages are
    kept: a prediction depends on the other examples, which is called transductive. `layer`: for each example by itself.

    References:
        Nichol, Achiam, Schulman 2018, On first-order meta-learning algorithms, section 6.1 (transduction).
    """
    axes = (0, 1, 2) if norm == "batch" else (1, 2, 3)
    mean = jnp.mean(inputs, axes, keepdims=True)
    variance = jnp.mean((inputs - mean) ** 2, axes, keepdims=True)
    return (inputs - mean) * jax.lax.rsqrt(variance + 1e-3) * layer.scale + layer.shift


def max_pool(
    inputs: Float[Array, "examples height width filters"],
) -> Float[Array, "examples height_out width_out filters"]:
    """The largest of every 2 x 2 pixels; an odd last row or column is left out."""
    even = inputs[:, : inputs.shape[1] // 2 * 2, : inputs.shape[2] // 2 * 2]
    # Not a reduction: its gradient looks for what equals the largest, and divides by 0 where rounding has hidden it.
    rows = jnp.maximum(even[:, ::2], even[:, 1::2])
    return jnp.maximum(rows[:, :, ::2], rows[:, :, 1::2])
