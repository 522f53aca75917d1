"""
The anomaly detector of MLPerf Tiny: what it reconstructs badly is unusual.

Y. Koizumi et al.: Description and Discussion on DCASE2020 Challenge Task 2, 2020 (its baseline), and C. Banbury et al.:
MLPerf Tiny Benchmark, 2021.
"""

from __future__ import annotations

from typing import Any

from deploy.zoo.layers import dense

WIDTH = 128
CODE = 8
DEPTH = 4


def ad_autoencoder(shape: tuple[int, ...], classes: int) -> Any:
    """
    Five frames of 128 mel bands in, the same out.

    Args:
        classes: without meaning here.
    """
    import keras

    x = sound = keras.Input(shape, name="features")
    for layer in range(1, DEPTH + 1):
        x = dense(x, f"encoder{layer}", WIDTH)
    x = dense(x, "code", CODE)
    for layer in range(1, DEPTH + 1):
        x = dense(x, f"decoder{layer}", WIDTH)
    return keras.Model(sound, keras.layers.Dense(shape[0], name="dense")(x), name="ad_autoencoder")
