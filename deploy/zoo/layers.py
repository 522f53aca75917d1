"""What the builders share: convolution, normalisation and activation under one name."""

from __future__ import annotations

from typing import Any


def conv(
    x: Any, name: str, channels: int, kernel: Any = 3, stride: Any = 1, padding: str = "same", relu: bool = True
) -> Any:
    """A convolution without bias, batch normalisation (which brings one) and, unless told, ReLU."""
    import keras

    x = keras.layers.Conv2D(channels, kernel, stride, padding, use_bias=False, kernel_initializer="he_normal",
                            name=name)(x)  # fmt: skip
    return normalised(x, name, relu)


def depthwise(x: Any, name: str, kernel: Any = 3, stride: Any = 1) -> Any:
    """A convolution of each channel alone, batch normalisation, ReLU."""
    import keras

    x = keras.layers.DepthwiseConv2D(kernel, stride, "same", use_bias=False, depthwise_initializer="he_normal",
                                     name=name)(x)  # fmt: skip
    return normalised(x, name)


def dense(x: Any, name: str, units: int) -> Any:
    """A dense layer without bias, batch normalisation, ReLU."""
    import keras

    x = keras.layers.Dense(units, use_bias=False, kernel_initializer="he_normal", name=name)(x)
    return normalised(x, name)


def normalised(x: Any, name: str, relu: bool = True) -> Any:
    import keras

    x = keras.layers.BatchNormalization(name=f"{name}_norm")(x)
    return keras.layers.ReLU(name=f"{name}_relu")(x) if relu else x


def classify(x: Any, classes: int) -> Any:
    """The last layer: probabilities."""
    import keras

    return keras.layers.Dense(classes, activation="softmax", kernel_initializer="he_normal", name="dense")(x)
