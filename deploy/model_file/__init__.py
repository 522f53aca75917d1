"""What a .tflite file is, said without running it: what it holds, what it costs, what is odd about it."""

from deploy.model_file.arena import Arena, arena
from deploy.model_file.facts import ModelFacts, Weights, operator_names, read
from deploy.model_file.layers import KERNELS, Cost, Layer, cost, layers
from deploy.model_file.observe import observe
from deploy.model_file.oddities import Met, Oddity, observed, oddities

__all__ = [
    "KERNELS",
    "Arena",
    "Cost",
    "Layer",
    "Met",
    "ModelFacts",
    "Oddity",
    "Weights",
    "arena",
    "cost",
    "layers",
    "observe",
    "observed",
    "oddities",
    "operator_names",
    "read",
]
