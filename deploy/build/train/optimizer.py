"""
Adam and momentum in one fused operator a variable; a network here has many small ones, and steps are short.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-7
MOMENTUM = 0.9


class Optimizer:
    """
    Attributes:
        rate: the learning rate, a variable that is not part of the state.
        variables: the state, for checkpoints.
    """

    def __init__(self, trained: Sequence[Any], kind: str = "adam") -> None:
        """
        Args:
            trained: Keras variables; each one's constraint holds after a step.
            kind: ``adam`` (Kingma and Ba 2015) or ``sgd``, with Nesterov's momentum.
        """
        self.trained, self.kind = list(trained), kind
        self.rate = tf.Variable(0.0, dtype=tf.float32)
        self.powers = [tf.Variable(beta, dtype=tf.float32) for beta in (BETA1, BETA2)]
        count = 2 if kind == "adam" else 1
        self.slots = [[tf.Variable(tf.zeros(v.shape)) for _ in range(count)] for v in self.trained]

    @property
    def variables(self) -> list[Any]:
        return [*self.powers, *(slot for slots in self.slots for slot in slots)]

    def apply(self, gradients: Sequence[Any]) -> Any:
        """One step; None as a gradient is zero.  Returns True, for `tf.cond`."""
        for variable, slots, gradient in zip(self.trained, self.slots, gradients, strict=True):
            gradient = tf.zeros(variable.shape) if gradient is None else gradient
            handles = [v.handle for v in (variable.value, *slots)]
            if self.kind == "adam":
                tf.raw_ops.ResourceApplyAdam(
                    var=handles[0],
                    m=handles[1],
                    v=handles[2],
                    beta1_power=self.powers[0],
                    beta2_power=self.powers[1],
                    lr=self.rate,
                    beta1=BETA1,
                    beta2=BETA2,
                    epsilon=EPSILON,
                    grad=gradient,
                )
            else:
                tf.raw_ops.ResourceApplyKerasMomentum(
                    var=handles[0],
                    accum=handles[1],
                    lr=self.rate,
                    grad=gradient,
                    momentum=MOMENTUM,
                    use_nesterov=True,
                )
            if variable.constraint is not None:
                variable.assign(variable.constraint(tf.convert_to_tensor(variable)))
        for power, beta in zip(self.powers, (BETA1, BETA2), strict=True):
            power.assign(power * beta)
        return tf.constant(True)
