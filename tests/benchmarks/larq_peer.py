"""
Times one binary convolution, 14x14x256, 3x3, in larq-compute-engine; runs in a virtual environment that has it.

Prints ``ready``, then for each line on stdin the median nanoseconds of an invocation by the thread's clock, of its
direct or its indirect matrix multiplication, whichever is faster.
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
# Threads, reference convolution, indirect multiplication, XNNPACK for all else.
interpreters = [interpreter_wrapper_lite.LiteInterpreter(model, 1, False, indirect, True) for indirect in (False, True)]
inputs = [np.random.default_rng(0).normal(size=(1, 14, 14, 256)).astype(np.float32)]
print("ready", flush=True)
for _ in sys.stdin:
    medians = []
    for interpreter in interpreters:
        times = []
        for _ in range(20):
            started = time.thread_time_ns()
            interpreter.predict(inputs)
            times.append(time.thread_time_ns() - started)
        medians.append(float(np.median(times)))
    print(json.dumps(min(medians)), flush=True)
