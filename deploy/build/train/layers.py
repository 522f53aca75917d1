"""
Layers that compute on the integer grids of the file while they are trained.

Values stay float32 and lie on grids: ``step * integer``.  Rounding has no useful slope, so gradients pass through it as
if it were not there (straight-through, Bengio et al. 2013), and the step is learned with the weights (LSQ, Esser et
al. 2020).  Steps are kept as logarithms (TQT, Jain et al. 2020): Adam then changes small and large ones alike.
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from deploy.build.graph import Floats, Node
from deploy.build.grid import WEIGHT_LIMITS, Grid
from deploy.build.quantized import Weights
from deploy.build.rounding import best_scale

KINDS = {"w8": "8", "w4": "4", "w2": "2", "ternary": "ternary"}
"""What recipes call the weights of a layer -> what grids call them; there are ``binary`` and ``float`` besides."""

BINARY = 64
"""Binary weights are +64 and -64 in the file: its bias counts in steps of weight times input, and one bit times one bit
would be too coarse a step for it."""

CELL = 0.45
"""Of a step: how far from its integer a weight begins at most; at 0.5 the first touch would tip it over."""

MOMENTUM = 0.9
"""Of running means and variances, in training."""

GAMMA_LEAST = 1e-4
"""A norm's factor stays positive, so that no folded scale is zero and no grid has to change its sign."""


def on_grid(values: Any, log_step: Any, low: float, high: float, share: Any, back: bool) -> Any:
    """
    Round `values` to ``step * n``, n an integer in [low, high], ``step = exp(log_step)``.

    Args:
        values: [..., C].
        log_step: [C], or [1] for a whole tensor.
        share: what the gradient of the step is multiplied with.
        back: whether what lies outside gets the gradients that lead back to the grid.  Weights need them: with few
            integers many lie at the end of the grid, and would be lost as soon as the step shrinks.
    """

    # Each line here is a pass over all activations of a batch; a fifth of a step's time went into passes saved since.
    @tf.custom_gradient  # type: ignore[untyped-decorator]
    def rounded_to_grid(values: Any, log_step: Any) -> Any:
        step = tf.exp(log_step)
        steps = values / step
        clipped = tf.clip_by_value(steps, low, high)
        rounded = tf.round(clipped)

        def gradient(upstream: Any) -> tuple[Any, Any]:
            passing = tf.equal(clipped, steps)
            slope = upstream * tf.where(passing, rounded - clipped, rounded)
            if log_step.shape[0] != 1:
                slope = tf.reduce_sum(tf.reshape(slope, [-1, log_step.shape[0]]), axis=0)
            else:
                slope = tf.reshape(tf.reduce_sum(slope), [1])
            if back:
                home = tf.where(steps > high, upstream > 0, tf.logical_and(steps < low, upstream < 0))
                passing = tf.logical_or(passing, home)
            return tf.where(passing, upstream, 0.0), slope * step * share

        return rounded * step, gradient

    return rounded_to_grid(values, log_step)


@tf.custom_gradient  # type: ignore[untyped-decorator]
def rounded_through(values: Any) -> Any:
    """The nearest integers; the gradient passes."""
    return tf.round(values), lambda upstream: upstream


@tf.custom_gradient  # type: ignore[untyped-decorator]
def sign_through(values: Any, width: Any) -> Any:
    """+1 where values >= 0, else -1; the gradient passes where the value lies within `width` of 0."""
    near = tf.cast(tf.abs(values) <= width, values.dtype)
    return tf.where(values >= 0, 1.0, -1.0), lambda upstream: (upstream * near, None)


def requantized(values: Any, unit: Any, step: Any) -> Any:
    """
    What TFLite's convolutions and means make of their sums before the grid rounds them; the gradient passes.

    Sums of `unit` come to `step` by a multiplier in [0.5, 1) and a shift to the right, and both round: with few shifts,
    as low-bit weights have them, one value in sixteen comes out higher than if it had been rounded once.

    Args:
        values: [N, ..., C], multiples of `unit`.
        unit: [C], real value of one step of the sums.
        step: [1], of the output.
    """
    ratio = unit / step
    fraction = tf.pow(2.0, tf.maximum(-tf.floor(tf.math.log(ratio) / np.float32(np.log(2.0)) + 1), 0.0))
    steps = values / step
    # The second rounding takes halves away from zero, tf.round to even: a nudge makes them agree.
    twice = tf.round(steps * fraction) / fraction + tf.sign(steps) * 1e-4
    return values + tf.stop_gradient(twice * step - values)


class ActivationGrid(keras.layers.Layer):  # type: ignore[misc]
    """
    The grid of one tensor, or of several that share it: a learned step, a zero point that stays.

    Call it with activations [N, ..., C]; they come back on the grid.
    """

    def __init__(self, grid: Grid, learned: bool = True, **kwargs: Any) -> None:
        """
        Args:
            grid: per tensor; where training begins.
            learned: whether the step is trained.
        """
        super().__init__(**kwargs)
        self.grid = grid
        self.log_step = self.add_weight(
            name="log_step",
            shape=(1,),
            initializer=_constant(np.log(grid.scale)),
            trainable=learned,
        )

    @property
    def limits(self) -> tuple[float, float]:
        return float(self.grid.low - self.grid.zero_point), float(self.grid.high - self.grid.zero_point)

    @property
    def step(self) -> Any:
        return tf.exp(tf.convert_to_tensor(self.log_step))

    def call(self, values: Any) -> Any:
        low, high = self.limits
        # Every value of a batch pulls at one step: LSQ evens that out by the root of their number.
        share = float(max(high, 1.0) ** -0.5) * tf.math.rsqrt(tf.cast(tf.size(values), values.dtype))
        return on_grid(values, tf.convert_to_tensor(self.log_step), low, high, share, back=False)

    def export(self) -> Grid:
        """As it is now."""
        scale = array(self.step)
        return Grid(scale, self.grid.zero_point, self.grid.bits, self.grid.low, self.grid.high)


class Binarize(keras.layers.Layer):  # type: ignore[misc]
    """Activations [N, ..., C] to +1 where they reach their channel's learned threshold, else -1."""

    def __init__(self, threshold: Floats, learned: bool, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.learned = learned
        self.threshold = self.add_weight(
            name="threshold",
            shape=threshold.shape,
            initializer=_constant(threshold),
            trainable=learned,
            constraint=lambda t: tf.maximum(t, threshold / 16),  # below the least value it would tell nothing
        )

    def call(self, values: Any) -> Any:
        return sign_through(values - tf.convert_to_tensor(self.threshold), 1.0)

    def export(self, grid: Grid) -> np.ndarray[Any, np.dtype[np.int32]]:
        """Integer thresholds [C] of `grid`: the lowest integer that reaches the real one."""
        # A threshold that lies on the grid must not climb a step by float32's last bit.
        steps = np.ceil(array(self.threshold).astype(np.float64) / float(grid.scale[0]) - 1e-4) + grid.zero_point
        return np.asarray(np.clip(steps, grid.low, grid.high), np.int32)


class Weighted(keras.layers.Layer):  # type: ignore[misc]
    """
    Convolution, depthwise convolution or dense layer with its batch normalization: weights are rounded *before* the
    normalization, which is then folded into scale and bias exactly.

    While it is `live` the normalization uses each batch's own mean and variance; otherwise the running ones, and the
    bias is rounded to what the file will hold.
    """

    def __init__(self, node: Node, kind: str, **kwargs: Any) -> None:
        """
        Args:
            kind: float, binary or one of `KINDS`.
        """
        super().__init__(**kwargs)
        assert node.kernel is not None
        self.node, self.kind = node, kind
        self.stage_float = False  # binary: weights stay float in the first of two stages
        learned = not node.attrs.get("fixed")
        kernel, bias, norm = node.kernel, node.bias, node.norm
        if norm is not None:
            # w, gamma, mean -> -w, -gamma, -mean is the same function; a bias moves the mean.
            sign = np.where(norm.gamma < 0, np.float32(-1), np.float32(1))
            kernel = (kernel.reshape(-1, node.channels) * sign).reshape(kernel.shape)
            mean = sign * (norm.mean - (0 if bias is None else bias))
            gamma = np.maximum(np.abs(norm.gamma), GAMMA_LEAST)
            self.gamma = self._weight("gamma", gamma, True, lambda g: tf.maximum(g, GAMMA_LEAST))
            self.beta = self._weight("beta", norm.beta, True)
            self.mean = self._weight("mean", mean, False)
            self.variance = self._weight("variance", norm.variance, False)
        else:
            self.bias = self._weight("bias", np.zeros(node.channels, np.float32) if bias is None else bias, learned)
        clip = (lambda k: tf.clip_by_value(k, -1.0, 1.0)) if kind == "binary" else None
        self.kernel = self._weight("kernel", kernel, learned, clip)
        self.mask = self._weight("mask", np.ones_like(kernel), False)
        self.momentum = tf.Variable(MOMENTUM, trainable=False)
        self.masked = False
        if kind in KINDS:
            steps = best_scale(kernel.reshape(-1, node.channels), KINDS[kind])
            self.log_step = self._weight("log_step", np.log(steps), learned)

    def begin(self, weights: Weights, in_scale: float, wanted: Floats) -> None:
        """
        Begin with integers that were found without training.

        Each weight goes where it rounds to its integer, as near to `wanted` as that allows.

        Args:
            weights: of the folded layer, on the grid of this layer's kind.
            in_scale: of the input's grid.
            wanted: the folded kernel.
        """
        low, high = WEIGHT_LIMITS[KINDS[self.kind]]
        integers = weights.values.reshape(-1, self.node.channels)
        steps = wanted.reshape(integers.shape) / weights.grid.scale
        steps = np.clip(steps, integers - CELL, integers + CELL).clip(low, high)
        scale = weights.grid.scale / array(self.factor())
        self.log_step.assign(np.log(scale))
        self.kernel.assign((steps * scale).reshape(self.node.kernel.shape))  # type: ignore[union-attr]
        if self.node.norm is None:  # a normalization finds its means by itself
            self.bias.assign(weights.bias * (in_scale * weights.grid.scale))

    def _weight(self, name: str, value: Any, trainable: bool, constraint: Any = None) -> Any:
        return self.add_weight(
            name=name,
            shape=value.shape,
            initializer=_constant(value),
            trainable=trainable,
            constraint=constraint,
        )

    def kept(self) -> Any:
        """The kernel without what is pruned."""
        kernel = tf.convert_to_tensor(self.kernel)
        if not self.masked:
            return kernel
        return kernel * tf.convert_to_tensor(self.mask)

    def quantized(self) -> Any:
        """The kernel on its grid."""
        kernel = self.kept()
        if self.kind == "float" or self.stage_float:
            return kernel
        if self.kind == "binary":
            return sign_through(kernel, 1.0) * tf.reshape(self.magnitude(), self._per_channel)
        low, high = WEIGHT_LIMITS[KINDS[self.kind]]
        columns = tf.reshape(kernel, [-1, self.node.channels])
        share = float((columns.shape[0] * high) ** -0.5)
        return tf.reshape(
            on_grid(columns, tf.convert_to_tensor(self.log_step), float(low), float(high), share, back=True),
            kernel.shape,
        )

    @property
    def _per_channel(self) -> list[int]:
        """Shape that spreads [out_c] over the kernel."""
        shape = self.node.kernel.shape  # type: ignore[union-attr]
        return [1, 1, *shape[2:]] if self.node.op == "depthwise" else [1] * (len(shape) - 1) + [shape[-1]]

    def magnitude(self) -> Any:
        """[out_c], of binary weights: the mean of what they were, which is their best fit (XNOR-Net, 2016)."""
        columns = tf.reshape(tf.convert_to_tensor(self.kernel), [-1, self.node.channels])
        return tf.maximum(tf.stop_gradient(tf.reduce_mean(tf.abs(columns), axis=0)), 1e-8)

    def scale(self) -> Any:
        """[out_c], real value of one integer step of the weights, before the normalization."""
        return self.magnitude() / BINARY if self.kind == "binary" else tf.exp(tf.convert_to_tensor(self.log_step))

    def factor(self) -> Any:
        """[out_c], what the normalization multiplies with, from the running variance."""
        if self.node.norm is None:
            return tf.ones([self.node.channels])
        variance = tf.convert_to_tensor(self.variance)
        return tf.convert_to_tensor(self.gamma) * tf.math.rsqrt(variance + self.node.norm.epsilon)

    def offset(self) -> Any:
        """[out_c], the real bias with the normalization folded in."""
        if self.node.norm is None:
            return tf.convert_to_tensor(self.bias)
        return tf.convert_to_tensor(self.beta) - tf.convert_to_tensor(self.mean) * self.factor()

    def call(self, values: Any, in_step: Any = None, out_step: Any = None, live: bool = False) -> Any:
        """
        Args:
            values: [N, ..., in_c], on their grid.
            in_step, out_step: of that grid and the output's; None where activations are float.
            live: use the batch's mean and variance, and let the running ones follow.
        """
        sums = self._product(values, self.quantized())
        if live and self.node.norm is not None:
            image = sums if len(sums.shape) == 4 else tf.reshape(sums, [-1, 1, 1, self.node.channels])
            out, mean, variance = tf.compat.v1.nn.fused_batch_norm(
                image,
                tf.convert_to_tensor(self.gamma),
                tf.convert_to_tensor(self.beta),
                epsilon=self.node.norm.epsilon,
                is_training=True,
            )
            for running, new in ((self.mean, mean), (self.variance, variance)):
                running.assign(self.momentum * running + (1 - self.momentum) * new)
            return tf.reshape(out, tf.shape(sums))
        floating = in_step is None or out_step is None or self.kind == "float" or self.stage_float
        if floating and self.node.norm is None:  # TensorFlow makes one operator of convolution, bias and ReLU
            return tf.nn.bias_add(sums, tf.convert_to_tensor(self.bias))
        offset, factor = self.offset(), self.factor()
        if floating:
            return sums * factor + offset
        unit = tf.stop_gradient(in_step * self.scale() * factor)
        out = sums * factor + rounded_through(offset / unit) * unit
        return out if self.node.op == "dense" else requantized(out, unit, out_step)

    def _product(self, values: Any, kernel: Any) -> Any:
        attrs = self.node.attrs
        if self.node.op == "dense":
            return tf.linalg.matmul(values, kernel) if len(values.shape) == 2 else tf.tensordot(values, kernel, 1)
        padding = attrs["padding"].upper()
        if self.node.op == "depthwise":
            strides, dilation = list(attrs["strides"]), list(attrs["dilation"])
            if strides[0] == strides[1]:
                return tf.nn.depthwise_conv2d(values, kernel, [1, *strides, 1], padding, dilations=dilation)
            shape = kernel.shape  # TensorFlow's own operator takes square strides only
            grouped = tf.reshape(kernel, [shape[0], shape[1], 1, shape[2] * shape[3]])
            return tf.nn.conv2d(values, grouped, strides, padding, dilations=dilation)
        return tf.nn.conv2d(values, kernel, list(attrs["strides"]), padding, dilations=list(attrs["dilation"]))

    def effective(self) -> Floats:
        """The kernel as it counts behind the normalization; what is pruned stays zero."""
        columns = tf.reshape(self.kernel * self.mask, [-1, self.node.channels]) * self.factor()
        return array(columns).reshape(self.kernel.shape)

    def integers(self) -> np.ndarray[Any, np.dtype[np.int8]]:
        """What `quantized` lies on, in the layout of the kernel."""
        columns = tf.reshape(self.quantized(), [-1, self.node.channels]) / self.scale()
        shape = self.node.kernel.shape  # type: ignore[union-attr]
        return np.asarray(np.rint(array(columns)), np.int8).reshape(shape)


def array(value: Any) -> np.ndarray[Any, Any]:
    """A copy of a variable's or a tensor's values."""
    return np.array(tf.convert_to_tensor(value).numpy())


def _constant(value: Any) -> Any:
    start = np.asarray(value, np.float32)
    return lambda shape, dtype=None: tf.constant(start, tf.float32)
