"""
Residual networks for small images.

K. He, X. Zhang, S. Ren, J. Sun: Deep Residual Learning for Image Recognition, 2016 (section 4.2); its smallest member
is the image classifier of MLPerf Tiny (C. Banbury et al., 2021).
"""

from __future__ import annotations

from typing import Any

from deploy.zoo.layers import classify, conv

WIDTHS = (16, 32, 64)


def resnet8(shape: tuple[int, ...], classes: int) -> Any:
    """One block a stage; the shortcut of a stage that shrinks is a 1x1 convolution with a bias, as MLPerf has it."""
    return _resnet("resnet8", shape, classes, blocks=1)


def resnet20(shape: tuple[int, ...], classes: int) -> Any:
    """Three blocks a stage."""
    return _resnet("resnet20", shape, classes, blocks=3)


def _resnet(name: str, shape: tuple[int, ...], classes: int, blocks: int) -> Any:
    import keras

    image = keras.Input(shape, name="image")
    x = conv(image, "stem", WIDTHS[0])
    for stage, width in enumerate(WIDTHS, 1):
        for block in range(1, blocks + 1):
            stride = 2 if stage > 1 and block == 1 else 1
            at = f"stage{stage}_block{block}"
            y = conv(x, f"{at}_conv1", width, stride=stride)
            y = conv(y, f"{at}_conv2", width, relu=False)
            if stride > 1:
                x = keras.layers.Conv2D(width, 1, stride, kernel_initializer="he_normal", name=f"{at}_shortcut")(x)
            x = keras.layers.ReLU(name=f"{at}_relu")(keras.layers.Add(name=f"{at}_add")([x, y]))
    x = keras.layers.GlobalAveragePooling2D(name="pool")(x)
    return keras.Model(image, classify(x, classes), name=name)
