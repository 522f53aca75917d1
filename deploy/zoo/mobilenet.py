"""
A. Howard et al.: MobileNets: Efficient Convolutional Neural Networks for Mobile Vision Applications, 2017.

At a quarter of the width and 96 x 96 pixels it is the person detector of MLPerf Tiny.
"""

from __future__ import annotations

from typing import Any

from deploy.zoo.layers import classify, conv, depthwise

# (channels at full width, stride) of the separable convolutions: table 1 of the paper.
BLOCKS = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5, (1024, 2), (1024, 1))


def mobilenet_v1_025(shape: tuple[int, ...], classes: int) -> Any:
    """MobileNetV1 at a quarter of the width."""
    return mobilenet_v1(shape, classes, 0.25)


def mobilenet_v1(shape: tuple[int, ...], classes: int, width: float) -> Any:
    """MobileNetV1; `width` multiplies the channels of every layer."""
    import keras

    image = keras.Input(shape, name="image")
    x = conv(image, "stem", int(32 * width), stride=2)
    for block, (channels, stride) in enumerate(BLOCKS, 1):
        x = depthwise(x, f"block{block}_depthwise", stride=stride)
        x = conv(x, f"block{block}_pointwise", int(channels * width), kernel=1)
    x = keras.layers.GlobalAveragePooling2D(name="pool")(x)
    return keras.Model(image, classify(x, classes), name="mobilenet_v1")
