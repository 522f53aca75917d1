"""
Handwritten digits: 1,797 real 8x8 images that come with scikit-learn, and a small convolutional network.

The images are the test part of UCI's "Optical Recognition of Handwritten Digits" (E. Alpaydin, C. Kaynak).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

EPOCHS = 15
TEST_SHARE = 0.25


def data() -> dict[str, NDArray[Any]]:
    """``x_train``, ``y_train``, ``x_test``, ``y_test``; images uint8 [N, 8, 8, 1] in [0, 16]; always the same split."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    x = digits.images.astype(np.uint8)[..., np.newaxis]
    order = np.random.default_rng(0).permutation(len(x))
    cut = int(len(x) * TEST_SHARE)
    test, train = order[:cut], order[cut:]
    return {"x_train": x[train], "y_train": digits.target[train], "x_test": x[test], "y_test": digits.target[test]}


def model() -> Any:
    """A trained Keras model: [N, 8, 8, 1] pixels in [0, 16] to 10 probabilities; some five seconds on one core."""
    import keras

    arrays = data()
    net = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            keras.layers.Rescaling(1 / 16),
            keras.layers.Conv2D(16, 3, padding="same", activation="relu"),
            keras.layers.Conv2D(32, 3, strides=2, padding="same", activation="relu"),
            keras.layers.Conv2D(32, 3, padding="same", activation="relu"),
            keras.layers.Flatten(),
            keras.layers.Dense(10, activation="softmax"),
        ]
    )
    net.compile("adam", "sparse_categorical_crossentropy")
    net.fit(arrays["x_train"], arrays["y_train"], batch_size=32, epochs=EPOCHS, verbose=0)
    return net
