"""The residual network of few-shot learning."""

from collections.abc import Sequence
from typing import Annotated, NamedTuple

import jax
from jaxtyping import Array, Float, Key
from pydantic import ConfigDict, Field, PositiveInt
from pydantic.dataclasses import dataclass

from twmaml.models.convolution import (
    ConvolutionalNetwork,
    ConvolutionLayer,
    check_images,
    init_convolution,
    init_dense,
    max_pool,
)
from twmaml.models.factored import Dense


class ResidualBlock(NamedTuple):
    """Weights of a block: three convolutions, and the one beside them."""

    layers: tuple[ConvolutionLayer, ...]
    shortcut: ConvolutionLayer


class ResNet12Params(NamedTuple):
    """Weights of all blocks and of the linear layer."""

    blocks: tuple[ResidualBlock, ...]
    head: Dense


@dataclass(frozen=True, config=ConfigDict(strict=True, extra="forbid"))
class ResNet12(ConvolutionalNetwork):
    """Four residual blocks of three 3 x 3 convolutions, each block with max pooling; then mean and a linear layer.

    Args:
        norm: as of a `ConvolutionalNetwork`, like `precision` and `outputs`.
        filters: of each block.

    References:
        Oreshkin, Rodríguez López, Lacoste 2018, TADAM, supplement A (64, 128, 256, 512 filters).
        Lee et al. 2019, Meta-learning with differentiable convex optimization, section 4.1 (64, 160, 320, 640).
    """

    filters: Annotated[Sequence[PositiveInt], Field(min_length=1, max_length=8)] = (64, 128, 256, 512)

    @property
    def head(self) -> tuple[str]:
        """The linear layer."""
        return ("head",)

    def init(self, key: Key[Array, ""], example_input: Float[Array, "..."]) -> ResNet12Params:
        """Fresh weights for images [height, width, channels]."""
        check_images(example_input, len(self.filters))
        *keys, head_key = jax.random.split(key, len(self.filters) + 1)
        channels = [example_input.shape[-1], *self.filters[:-1]]
        blocks = []
        for block_key, before, after in zip(keys, channels, self.filters, strict=True):
            first, second, third, beside = jax.random.split(block_key, 4)
            layers = (
                init_convolution(first, 3, before, after),
                *(init_convolution(k, 3, after, after) for k in (second, third)),
            )
            blocks.append(ResidualBlock(layers, init_convolution(beside, 1, before, after)))
        return ResNet12Params(tuple(blocks), init_dense(head_key, self.filters[-1], self.outputs))

    def apply(
        self, params: ResNet12Params, inputs: Float[Array, "examples height width channels"]
    ) -> Float[Array, "examples outputs"]:
        """The logits."""
        hidden = inputs
        for block in params.blocks:
            beside, within = self.convolve(hidden, block.shortcut), hidden
            for layer in block.layers[:-1]:
                within = jax.nn.leaky_relu(self.convolve(within, layer), 0.1)
            hidden = max_pool(jax.nn.leaky_relu(self.convolve(within, block.layers[-1]) + beside, 0.1))
        return params.head(hidden.mean(axis=(1, 2)))
