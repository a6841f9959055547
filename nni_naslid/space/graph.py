"""Cells whose edges are choices, as NNI's ``NasBench101Cell``: what makes a difference to one. Without torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from nni.mutable import Sample

__all__ = ['Graph']


class Graph(NamedTuple):
    """The labels of such a cell. Vertex 0 is its input, the last one its output; those between have an operation.

    Attributes
    ----------
    num_nodes
        How many vertices there are, the first and the last included.
    ops
        The operations of vertices 1, 2, ...
    inputs
        From which vertices edges go to vertices 1, 2, ...: any number of those before.
    """

    num_nodes: str
    ops: Sequence[str]
    inputs: Sequence[str]

    @property
    def labels(self) -> list[str]:
        """All of them."""
        return [self.num_nodes, *self.ops, *self.inputs]

    def read(self, sample: Mapping[str, Any]) -> Sample:
        """What makes a difference to the cell that a sample describes.

        That is the number of vertices, the operations of those on a way from the input to the output, and where edges
        come from to those that have a way to the output. Of these edges, such as come from the input by some way.

        Parameters
        ----------
        sample
            Label to choice. What is missing has no edges.

        Returns
        -------
        The same as a sample, without what makes no difference.
        """
        n = sample.get(self.num_nodes, 0)
        if not isinstance(n, int) or not 2 <= n <= len(self.inputs) + 1:
            return {self.num_nodes: n}
        last = n - 1
        given = [sample.get(label) for label in self.inputs[:last]]
        sources = [(), *(each if isinstance(each, (list, tuple)) else () for each in given)]
        reached, useful = {0}, {last}
        for vertex in range(1, last + 1):
            if not reached.isdisjoint(sources[vertex]):
                reached.add(vertex)
        for vertex in range(last, 0, -1):
            if vertex in useful:
                useful.update(sources[vertex])
        read = {self.num_nodes: last + 1}
        for vertex in range(1, last):
            if vertex in reached and vertex in useful:
                read[self.ops[vertex - 1]] = sample.get(self.ops[vertex - 1])
        for vertex in range(1, last + 1):
            if vertex in useful:
                read[self.inputs[vertex - 1]] = sorted(reached.intersection(sources[vertex]))
        return read

    def shortest(self, read: Mapping[str, Any], sizes: Sequence[int]) -> Sample:
        """The same cell with no more vertices behind those that it uses than there must be.

        Vertices that are used keep their numbers, and so their modules; the output has one module for all numbers.

        Parameters
        ----------
        read
            What :meth:`read` has returned.
        sizes
            How many vertices there may be.
        """
        if read.keys() == {self.num_nodes}:  # no cell
            return dict(read)
        last = read[self.num_nodes] - 1
        used = [vertex for vertex, label in enumerate(self.ops, 1) if label in read]
        size = min((size for size in sizes if max(used, default=0) + 1 < size <= last), default=last + 1)
        of_used = [label for vertex in used for label in (self.ops[vertex - 1], self.inputs[vertex - 1])]
        return {
            self.num_nodes: size,
            **{label: read[label] for label in of_used},
            self.inputs[size - 2]: read[self.inputs[last - 1]],
        }
