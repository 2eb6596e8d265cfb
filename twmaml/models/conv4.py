"""The convolutional network of few-shot learning."""

from typing import Annotated, Literal, NamedTuple

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


class Conv4Params(NamedTuple):
    """Weights of the layers."""

    layers: tuple[ConvolutionLayer, ...]
    head: Dense


@dataclass(frozen=True, config=ConfigDict(strict=True, extra="forbid"))
class Conv4(ConvolutionalNetwork):
    """Four layers of 3 x 3 convolution, normalisation and ReLU, each of which halves the size; then a linear one.

    Args:
        norm: as of a `ConvolutionalNetwork`, like `precision` and `outputs`.
        filters: of each layer.
        downsample: halve by a stride of 2 (as the field does with Omniglot) or by max pooling (as with mini-ImageNet).
        features: what the linear layer takes: the mean over the pixels that are left, or all of them.
        layers: how many.

    References:
        Vinyals et al. 2016, Matching networks for one shot learning, section 4.1.1.
        Finn, Abbeel, Levine 2017, Model-agnostic meta-learning, section 5.2.
    """

    filters: PositiveInt = 64
    downsample: Literal["stride", "max_pool"] = "stride"
    features: Literal["mean", "flatten"] = "mean"
    layers: Annotated[int, Field(ge=1, le=12)] = 4

    @property
    def head(self) -> tuple[str]:
        """The linear layer."""
        return ("head",)

    def init(self, key: Key[Array, ""], example_input: Float[Array, "..."]) -> Conv4Params:
        """Fresh weights for images [height, width, channels]."""
        check_images(example_input, self.layers if self.downsample == "max_pool" else 0)
        *keys, head_key = jax.random.split(key, self.layers + 1)
        channels = [example_input.shape[-1], *[self.filters] * (self.layers - 1)]
        layers = tuple(init_convolution(k, 3, c, self.filters) for k, c in zip(keys, channels, strict=True))
        features = jax.eval_shape(self._features, layers, example_input[None])
        return Conv4Params(layers, init_dense(head_key, features.shape[-1], self.outputs))

    def apply(
        self, params: Conv4Params, inputs: Float[Array, "examples height width channels"]
    ) -> Float[Array, "examples outputs"]:
        """The logits."""
        return params.head(self._features(params.layers, inputs))

    def _features(
        self, layers: tuple[ConvolutionLayer, ...], inputs: Float[Array, "examples height width channels"]
    ) -> Float[Array, "examples features"]:
        stride = 2 if self.downsample == "stride" else 1
        hidden = inputs
        for layer in layers:
            hidden = jax.nn.relu(self.convolve(hidden, layer, stride))
            if self.downsample == "max_pool":
                hidden = max_pool(hidden)
        return hidden.mean(axis=(1, 2)) if self.features == "mean" else hidden.reshape(len(hidden), -1)
