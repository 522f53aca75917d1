"""
Times one binary convolution, 14x14x256, 3x3, in larq-compute-engine; runs in a virtual environment that has it.

Prints ``ready``, then for each line on stdin the median nanoseconds of an invocation, by the thread's clock.
"""

import json
import sys
import time

import larq
import larq_compute_engine as lce
import numpy as np
import tensorflow as tf
from larq_compute_engine.tflite.python import interpreter_wrapper_lite

x = tf.keras.Input((14, 14, 256), batch_size=1)
y = larq.layers.QuantConv2D(
    256, 3, padding="same", pad_values=1.0, input_quantizer="ste_sign", kernel_quantizer="ste_sign", use_bias=False
)(x)
model = lce.convert_keras_model(tf.keras.Model(x, y))
interpreter = interpreter_wrapper_lite.LiteInterpreter(model, 1, False)
inputs = [np.random.default_rng(0).normal(size=(1, 14, 14, 256)).astype(np.float32)]
interpreter.predict(inputs)
print("ready", flush=True)
for _ in sys.stdin:
    times = []
    for _ in range(20):
        started = time.thread_time_ns()
        interpreter.predict(inputs)
        times.append(time.thread_time_ns() - started)
    print(json.dumps(float(np.median(times))), flush=True)
