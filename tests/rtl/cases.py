"""Networks that are hard in one way each: name -> a function that makes the graph and its model."""

from __future__ import annotations

from collections.abc import Callable

from tests.rtl.graphs import SAME, VALID, Graph

Case = Callable[[], tuple[Graph, bytes]]


def _one(seed: int, shape: tuple[int, ...], build: Callable[[Graph], int]) -> Case:
    def make() -> tuple[Graph, bytes]:
        graph = Graph(seed, *shape)
        return graph, graph.model(build(graph))

    return make


def _residual(stride: int) -> Case:
    """An addition that ends a block, with a shortcut that is a convolution where the size changes, as ResNets have."""

    def build(graph: Graph) -> int:
        x = graph.conv(graph.input, 16)
        y = graph.conv(x, 24 if stride == 2 else 16, stride=stride, activation="RELU")
        y = graph.conv(y, 24 if stride == 2 else 16)
        shortcut = graph.conv(x, 24, kernel=(1, 1), stride=2) if stride == 2 else x
        return graph.add(shortcut, y, activation="RELU")

    return _one(30 + stride, (1, 9, 7, 5), build)


def _two_outputs() -> tuple[Graph, bytes]:
    graph = Graph(41, 1, 8, 8, 3)
    x = graph.conv(graph.input, 8)
    left, right = graph.conv(x, 4, kernel=(1, 1)), graph.conv(x, 12)
    return graph, graph.model(left, right)


def _many_sums(graph: Graph) -> int:
    """More additions than there are sets of tables."""
    x = graph.conv(graph.input, 8)
    for _ in range(5):
        x = graph.add(graph.conv(x, 8, kernel=(1, 1)), x)
    return x


def _three_sides(graph: Graph) -> int:
    """A tensor that is added to something long after it was made."""
    x = graph.conv(graph.input, 8)
    y = graph.conv(graph.conv(graph.conv(x, 8), 16), 8)
    return graph.add(x, y)


def _binary(graph: Graph) -> int:
    """As CNV has it: bits of a convolution, of the largest of four, and of a vector."""
    x = graph.conv(graph.input, 64, padding=VALID)
    x = graph.conv(graph.signs(x), 40, padding=VALID, kind="binary")
    x = graph.conv(
        graph.signs(graph.pool(x, (2, 2), 2, largest=True)), 130, kernel=(3, 2), padding=VALID, kind="binary"
    )
    x = graph.dense(graph.signs(graph.flat(x)), 70, kind="binary")
    return graph.dense(graph.signs(x), 9, kind="binary")


def _binary_residual(graph: Graph) -> int:
    """Values that are wanted as bits and as they are; bits of a sum."""
    x = graph.conv(graph.input, 24)
    x = graph.add(graph.conv(graph.signs(x), 24, kind="binary"), x)
    y = graph.conv(graph.signs(x), 24, kind="binary")
    return graph.conv(graph.signs(graph.add(y, x)), 16, kind="binary")


CASES: dict[str, Case] = {
    "3x3": _one(1, (1, 8, 8, 16), lambda g: g.conv(g.input, 16)),
    "one pixel": _one(2, (1, 1, 1, 3), lambda g: g.conv(g.input, 5, kernel=(1, 1))),
    "width of 1: a tile has 12 rows": _one(3, (1, 30, 1, 4), lambda g: g.conv(g.input, 9, kernel=(3, 1))),
    "width of 5: a tile has two rows and a bit": _one(4, (1, 25, 5, 9), lambda g: g.conv(g.input, 8)),
    "width of 13: a row has a tile and a bit": _one(5, (1, 5, 13, 4), lambda g: g.conv(g.input, 17)),
    "even kernel, stride 2": _one(6, (1, 49, 10, 1), lambda g: g.conv(g.input, 16, kernel=(10, 4), stride=2)),
    "odd sides, stride 2": _one(7, (1, 9, 7, 6), lambda g: g.conv(g.input, 8, stride=2)),
    "even sides, stride 2": _one(8, (1, 10, 12, 3), lambda g: g.conv(g.input, 8, stride=2, activation="RELU6")),
    "no padding": _one(9, (1, 9, 11, 5), lambda g: g.conv(g.input, 8, kernel=(3, 2), padding=VALID)),
    "no padding, stride 2": _one(10, (1, 11, 10, 5), lambda g: g.conv(g.input, 8, stride=2, padding=VALID)),
    "dilation": _one(11, (1, 9, 9, 5), lambda g: g.conv(g.input, 8, dilation=2)),
    "kernel larger than the image": _one(12, (1, 3, 3, 4), lambda g: g.conv(g.input, 8, kernel=(7, 5))),
    "one scale": _one(13, (1, 6, 6, 4), lambda g: g.conv(g.input, 10, scales=1, activation="RELU_N1_TO_1")),
    "many channels": _one(14, (1, 4, 4, 70), lambda g: g.conv(g.input, 50, kernel=(1, 1))),
    "depthwise": _one(15, (1, 7, 9, 19), lambda g: g.conv(g.input, 19, depthwise=True)),
    "depthwise, stride 2": _one(16, (1, 9, 8, 16), lambda g: g.conv(g.input, 16, depthwise=True, stride=2)),
    "dense": _one(17, (1, 100), lambda g: g.dense(g.dense(g.input, 30, "RELU"), 11)),
    "dense, several rows": _one(18, (14, 20), lambda g: g.dense(g.input, 9)),
    "dense after an image": _one(19, (1, 3, 4, 9), lambda g: g.dense(g.flat(g.conv(g.input, 5)), 12)),
    "average": _one(20, (1, 6, 6, 10), lambda g: g.pool(g.input, (3, 2))),
    "average of an even count, stride 2": _one(21, (1, 8, 6, 10), lambda g: g.pool(g.input, (2, 2), stride=2)),
    "average of all": _one(22, (1, 8, 8, 12), lambda g: g.pool(g.conv(g.input, 12), (8, 8), stride=8)),
    "maximum": _one(23, (1, 7, 7, 10), lambda g: g.pool(g.input, (3, 3), stride=2, largest=True, padding=SAME)),
    "mean": _one(46, (1, 8, 8, 12), lambda g: g.dense(g.mean(g.conv(g.input, 20)), 9)),
    "mean of an odd count": _one(47, (1, 5, 7, 12), lambda g: g.mean(g.input, keep=True)),
    "addition alone": _one(24, (1, 5, 5, 12), lambda g: g.add(g.pool(g.input, (1, 1), largest=True), g.input)),
    "x + x": _one(25, (1, 5, 5, 12), lambda g: g.add(g.input, g.input)),
    "residual": _residual(1),
    "residual, stride 2": _residual(2),
    "five residuals": _one(33, (1, 6, 6, 4), _many_sums),
    "long residual": _one(34, (1, 6, 10, 4), _three_sides),
    "two outputs": _two_outputs,
    "int4": _one(36, (1, 7, 9, 7), lambda g: g.conv(g.conv(g.input, 16, kind="int4"), 9, kernel=(1, 1), kind="int4")),
    "small weights, depthwise": _one(37, (1, 7, 9, 16), lambda g: g.conv(g.input, 16, depthwise=True, kind="small")),
    "int4, residual": _one(38, (1, 6, 6, 8), lambda g: g.add(g.conv(g.input, 8, kind="int4"), g.input)),
    "int4, dense": _one(39, (1, 45), lambda g: g.dense(g.input, 11, kind="int4")),
    "binary": _one(42, (1, 10, 8, 3), _binary),
    "binary, padding, stride 2": _one(
        43, (1, 9, 7, 66), lambda g: g.conv(g.signs(g.input), 20, stride=2, kind="binary", activation="RELU")
    ),
    "binary, one threshold, negative": _one(
        44, (1, 6, 6, 30), lambda g: g.conv(g.signs(g.input, -2, 0, -1, thresholds=1), 12, dilation=2, kind="binary")
    ),
    "binary, residual": _one(45, (1, 7, 6, 4), _binary_residual),
    "CPU in the middle": _one(35, (1, 40), lambda g: g.dense(g.softmax(g.dense(g.input, 16)), 8)),
}  # fmt: skip
