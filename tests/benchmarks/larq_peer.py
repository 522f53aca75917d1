"""
Times one binary convolution, 3x3, in larq-compute-engine: ``larq_peer.py SIZE CHANNELS``, in a virtual environment
that has it.

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

size, channels = map(int, sys.argv[1:])
x = tf.keras.Input((size, size, channels), batch_size=1)
y = larq.layers.QuantConv2D(
    channels, 3, padding="same", pad_values=1.0, input_quantizer="ste_sign", kernel_quantizer="ste_sign", use_bias=False
)(x)
model = lce.convert_keras_model(tf.keras.Model(x, y))
# Threads, reference convolution, indirect multiplication, XNNPACK for all else.
interpreters = [interpreter_wrapper_lite.LiteInterpreter(model, 1, False, indirect, True) for indirect in (False, True)]
inputs = [np.random.default_rng(0).normal(size=(1, size, size, channels)).astype(np.float32)]
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
