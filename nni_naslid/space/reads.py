"""Which choices of a sample are read, from what is kept of a run: samples that differ in others are one network."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from nni_naslid.space.additive import choices_of
from nni_naslid.space.graph import Graph
from nni_naslid.space.subspace import SubSpace

from nni.mutable import Sample

__all__ = ['Condition', 'graphs_in', 'labels_of_network', 'network_of', 'same_network']

Condition = dict[str, list[int]]  # label to places of its choices


def same_network(
    space: SubSpace, read_if: Mapping[str, Sequence[Condition]], sample: Sample, graphs: Sequence[Graph] = ()
) -> Sample | None:
    """The sample that stands for all samples of the same network: it has the first choice for labels that are not read.

    Parameters
    ----------
    space
        All of the space.
    read_if
        By label, when it is read: see :func:`~nni_naslid.train.reads.conditions_of_labels`.
    sample
        Label to choice, as JSON has it: lists may stand for tuples. What is not read may be missing.
    graphs
        Cells of which only a part may be read.

    Returns
    -------
    ``None`` if the sample has other labels, or lacks one that is read.

    Examples
    --------
    >>> space = SubSpace.from_dict({'depth': [1, 2], 'first': ['a', 'b'], 'second': ['a', 'b']}, {})
    >>> same_network(space, {'second': [{'depth': [1]}]}, {'depth': 1, 'first': 'b', 'second': 'b'})
    {'depth': 1, 'first': 'b', 'second': 'a'}
    """
    choices = _choices_read(space, read_if, sample, graphs)
    return space.canonical(choices, choices) if choices is not None and sample.keys() <= space.mutables.keys() else None


def network_of(tree: Mapping[str, Any], space: SubSpace, sample: Sample) -> Sample | None:
    """The same, by what ``tree.json`` of a run has; one of an earlier version does not tell what is read."""
    return same_network(space, tree.get('read_if') or {}, sample, graphs_in(tree))


def labels_of_network(tree: Mapping[str, Any], space: SubSpace, sample: Sample) -> set[str]:
    """The labels that make a difference to a network of a run, given by what :func:`network_of` returns."""
    return set(_choices_read(space, tree.get('read_if') or {}, sample, graphs_in(tree)) or ())


def graphs_in(tree: Mapping[str, Any]) -> list[Graph]:
    """Cells of which only a part may be read, by ``tree.json`` of a run."""
    return [Graph(**each) for each in tree.get('graphs', ())]


def _choices_read(
    space: SubSpace, read_if: Mapping[str, Sequence[Condition]], sample: Sample, graphs: Sequence[Graph]
) -> Sample | None:
    """What is read, as :func:`~nni_naslid.train.path.choices_read` finds it; ``None`` if the sample lacks a part."""
    read = _on_path(space, read_if, sample)
    cells: Sample = {}
    for graph in graphs:
        if read.issuperset(graph.labels):
            part = graph.read(sample)
            if not part.keys() <= sample.keys():
                return None
            read = read.difference(graph.labels)
            cells |= graph.shortest(part, choices_of(space, graph.num_nodes))
    return {label: sample[label] for label in read} | cells if read <= sample.keys() else None


def _on_path(space: SubSpace, read_if: Mapping[str, Sequence[Condition]], sample: Sample) -> set[str]:
    """Labels that are read; of cells of which only a part may be read, all."""
    gates = {label for conditions in read_if.values() for condition in conditions for label in condition}
    places = {}
    for label in gates & sample.keys():
        choices = [_text(choice) for choice in choices_of(space, label)]
        if (choice := _text(sample[label])) in choices:
            places[label] = choices.index(choice)
    return {
        label
        for label in space.mutables
        if label not in read_if
        or any(all(places.get(gate) in kept for gate, kept in condition.items()) for condition in read_if[label])
    }


def _text(choice: object) -> str:
    return json.dumps(choice, default=str)
