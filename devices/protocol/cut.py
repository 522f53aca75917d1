"""
Cuts a .tflite file after some of its operators, by changing a few numbers in it.

The board does this itself, to time how long the first n operators take, and so does the host, to count their
instructions.  Of the first subgraph the vector of operators is made shorter, and what is still needed at the cut
becomes its output; signatures, which name outputs that are never made, go.  Weights are not touched or copied.

FlatBuffers, as far as needed here: a file begins with the offset of its root table.  A table begins with the distance
back to its vtable, which holds the size of itself and of the table, and then, for each field of the schema, where in
the table it lies (0: absent).  Fields that are vectors or tables hold the distance to them; a vector begins with its
length.  Field numbers are those of TensorFlow Lite's schema (version 3).
"""

from __future__ import annotations

import struct

_SUBGRAPHS, _SIGNATURES = 2, 7  # of the model
_INPUTS, _OUTPUTS, _OPERATORS = 1, 2, 3  # of a subgraph
_OP_INPUTS, _OP_OUTPUTS = 1, 2  # of an operator


class CutError(ValueError):
    """The file cannot be cut there."""


class Graph:
    """
    The first subgraph of a model, as far as its operators use its tensors.

    Attributes:
        inputs, outputs: numbers of tensors.
        operators: inputs and outputs of each, in the order of execution; an input that is left out is -1.

    Raises:
        CutError: not a .tflite file, or one that ends too early.
    """

    def __init__(self, model: bytes) -> None:
        self._model = model
        try:
            self._root = self._follow(0)
            subgraphs = self._field(self._root, _SUBGRAPHS)
            if subgraphs is None or self._length(subgraphs) == 0:
                raise CutError("no subgraph in the model")
            self._graph = self._follow(self._follow(subgraphs) + 4)
            self.inputs = self._numbers(self._graph, _INPUTS)
            self.outputs = self._numbers(self._graph, _OUTPUTS)
            self.operators = [
                (self._numbers(operator, _OP_INPUTS), self._numbers(operator, _OP_OUTPUTS))
                for operator in self._tables(self._graph, _OPERATORS)
            ]
        except (struct.error, IndexError):
            raise CutError(f"not a .tflite file, or cut short ({len(model)} bytes)") from None

    def live(self, count: int) -> list[int]:
        """
        The tensors that the first `count` operators make of the inputs, and that something after them, or the caller,
        needs.  What is made of constants alone, such as weights that are widened, is not among them: runtimes fold it,
        and refuse to give it out.
        """
        known = set(self.inputs)
        made = []
        for inputs, outputs in self.operators[:count]:
            if known.intersection(inputs):
                known.update(outputs)
                made += outputs
        needed = {tensor for inputs, _ in self.operators[count:] for tensor in inputs} | set(self.outputs)
        return [tensor for tensor in dict.fromkeys(made) if tensor in needed]

    def cuts(self, group: int = 1) -> list[int]:
        """Every `group`-th place at which the model can be cut, 0 and the whole model among them; rising."""
        every = len(self.operators)
        return [n for n in range(every + 1) if n in (0, every) or (n % group == 0 and self.live(n))]

    def cut(self, count: int) -> bytes:
        """
        The model with its first `count` operators; with none of them, its inputs are its outputs.

        Raises:
            CutError: there are not so many, or nothing that they make is needed.
        """
        if not 0 <= count <= len(self.operators):
            raise CutError(f"{count} operators of {len(self.operators)}")
        outputs = self.live(count) if count else self.inputs
        if not outputs:
            raise CutError(f"nothing that the first {count} operators make is needed")
        out = bytearray(self._model)
        out += bytes(-len(out) % 4)
        field = self._field(self._graph, _OUTPUTS)
        operators = self._field(self._graph, _OPERATORS)
        if field is None or operators is None:
            raise CutError("the model has no operators, or no outputs")
        struct.pack_into("<I", out, field, len(out) - field)
        out += struct.pack(f"<I{len(outputs)}i", len(outputs), *outputs)
        struct.pack_into("<I", out, self._follow(operators), count)
        signatures = self._field(self._root, _SIGNATURES)
        if signatures is not None:
            struct.pack_into("<I", out, self._follow(signatures), 0)
        return bytes(out)

    def _u32(self, at: int) -> int:
        (value,) = struct.unpack_from("<I", self._model, at)
        return int(value)

    def _follow(self, at: int) -> int:
        return at + self._u32(at)

    def _field(self, table: int, number: int) -> int | None:
        """Where a field of a table lies; None if it is absent."""
        (back,) = struct.unpack_from("<i", self._model, table)
        vtable = table - back
        size, _ = struct.unpack_from("<HH", self._model, vtable)
        if 4 + 2 * number >= size:
            return None
        (offset,) = struct.unpack_from("<H", self._model, vtable + 4 + 2 * number)
        return table + offset if offset else None

    def _length(self, field: int) -> int:
        return self._u32(self._follow(field))

    def _tables(self, table: int, number: int) -> list[int]:
        field = self._field(table, number)
        if field is None:
            return []
        first = self._follow(field) + 4
        return [self._follow(first + 4 * i) for i in range(self._length(field))]

    def _numbers(self, table: int, number: int) -> list[int]:
        field = self._field(table, number)
        if field is None:
            return []
        start = self._follow(field)
        return list(struct.unpack_from(f"<{self._u32(start)}i", self._model, start + 4))
