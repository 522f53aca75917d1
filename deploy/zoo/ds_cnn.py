"""
Depthwise-separable convolutions over a spectrogram.

Y. Zhang, N. Suda, L. Lai, V. Chandra: Hello Edge: Keyword Spotting on Microcontrollers, 2017; the small one is the
keyword spotter of MLPerf Tiny.
"""

from __future__ import annotations

from typing import Any

from deploy.zoo.layers import classify, conv, depthwise

WIDTH = 64
BLOCKS = 4


def ds_cnn(shape: tuple[int, ...], classes: int) -> Any:
    """Time by frequency by 1, as 49 x 10 MFCCs of a second."""
    import keras

    sound = keras.Input(shape, name="features")
    x = conv(sound, "stem", WIDTH, kernel=(10, 4), stride=2)
    x = keras.layers.Dropout(0.2, name="stem_dropout")(x)
    for block in range(1, BLOCKS + 1):
        x = depthwise(x, f"block{block}_depthwise")
        x = conv(x, f"block{block}_pointwise", WIDTH, kernel=1)
    x = keras.layers.Dropout(0.4, name="dropout")(x)
    x = keras.layers.GlobalAveragePooling2D(name="pool")(x)
    return keras.Model(sound, classify(x, classes), name="ds_cnn")
