"""
The VGG-like network "CNV" that binary networks on FPGAs are measured with.

Y. Umuroglu et al.: FINN: A Framework for Fast, Scalable Binarized Neural Network Inference, 2017 (section 4.2), after
M. Courbariaux et al.: Binarized Neural Networks, 2016.
"""

from __future__ import annotations

from typing import Any

from deploy.zoo.layers import classify, conv, dense

STAGES = (64, 128, 256)
DENSE = (512, 512)


def cnv(shape: tuple[int, ...], classes: int) -> Any:
    """Pairs of 3x3 convolutions without padding, pooled after the first and the second pair, and dense layers."""
    import keras

    image = keras.Input(shape, name="image")
    x = image
    for stage, channels in enumerate(STAGES, 1):
        x = conv(x, f"stage{stage}_conv1", channels, padding="valid")
        x = conv(x, f"stage{stage}_conv2", channels, padding="valid")
        if stage < len(STAGES):
            x = keras.layers.MaxPooling2D(2, name=f"stage{stage}_pool")(x)
    x = keras.layers.Flatten(name="flatten")(x)
    for number, units in enumerate(DENSE, 1):
        x = dense(x, f"dense{number}", units)
    return keras.Model(image, classify(x, classes), name="cnv")
