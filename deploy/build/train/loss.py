"""
What training minimizes: cross-entropy with the labels, and with a teacher's softened answers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf


def cross_entropy(logits: Any, labels: Any) -> Any:
    return tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits))


def divergence(logits: Any, teacher: Any, temperature: float) -> Any:
    """
    Kullback-Leibler divergence of softened answers, times the temperature's square, which keeps the size of its
    gradient comparable with cross-entropy's (Hinton et al. 2015).

    Args:
        logits, teacher: [N, classes].
    """
    target = tf.nn.log_softmax(teacher / temperature)
    ours = tf.nn.log_softmax(logits / temperature)
    return tf.reduce_mean(tf.reduce_sum(tf.exp(target) * (target - ours), axis=-1)) * temperature**2


def distilled(
    teacher: Callable[[Any], Any] | None, temperature: float, balance: float
) -> Callable[[Any, Any, Any], Any]:
    """
    The loss of a batch: ``(1 - balance) * cross_entropy + balance * divergence``; cross-entropy without a teacher.

    Args:
        teacher: real inputs -> logits.

    Returns:
        function of logits, labels and real inputs.
    """

    def loss(logits: Any, labels: Any, x: Any) -> Any:
        hard = cross_entropy(logits, labels)
        if teacher is None:
            return hard
        soft = divergence(logits, tf.stop_gradient(teacher(x)), temperature)
        return (1 - balance) * hard + balance * soft

    return loss
