"""How a sub-space is split, and the evidence for it. Without torch: the tuner, which must start fast, reads it too."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import TYPE_CHECKING, Any, Protocol

from nni_naslid.space.subspace import SubSpace

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ['Evidence', 'Split', 'Told', 'WithoutFigures']


class Evidence(Protocol):
    """What speaks for a split, and what against it. Each criterion has a class of its own for it, a dataclass."""

    @property
    def objection(self) -> str | None:
        """Why the node is not split, for people; ``None`` if it is."""

    def describe(self) -> str:
        """The figures in one line, for the log; empty if there are none."""

    def figure(self, title: str) -> Figure | None:
        """A picture; ``None`` if there is nothing to see."""

    def scalars(self) -> dict[str, float]:
        """The figures by name, for the loggers of the user's trainer, such as TensorBoard; empty if there are none.

        A ``/`` in a name makes groups. ``passes`` is how many forward passes it took, for the page about a run.
        Evidence without this method has no figures there.
        """
        return {}

    def to_dict(self) -> dict[str, Any]:
        """In types that JSON has. The criterion's ``read_evidence`` makes it anew."""


class WithoutFigures:
    """Evidence that has a line for people, but no picture and no figures by name."""

    def figure(self, title: str) -> None:
        """No picture."""

    def scalars(self) -> dict[str, float]:
        """No figures."""
        return {}


@dataclass(frozen=True)
class Told(WithoutFigures):
    """What evidence has said of itself, for who cannot make it anew: a reader without the criterion."""

    objection: str | None
    figures: str

    def describe(self) -> str:
        """As the evidence did."""
        return self.figures

    def to_dict(self) -> dict[str, Any]:
        """Nothing: the evidence itself is not known."""
        return {}


@dataclass(frozen=True)
class Split:
    """Sub-spaces to split a sub-space into, with the evidence.

    Attributes
    ----------
    children
        Disjoint, together the whole: see :meth:`SubSpace.check_parts`. Where the evidence speaks against the split,
        these are the best that were found, and there may be none.
    evidence
        What speaks for it.
    """

    children: Sequence[SubSpace]
    evidence: Evidence

    @property
    def separates(self) -> bool:
        """Whether the node is split."""
        return self.evidence.objection is None

    def describe(self, whole: SubSpace) -> str:
        """In one line: what each child keeps of the whole."""
        parts = [child.narrowed(whole) for child in self.children]
        labels = dict.fromkeys(label for part in parts for label in part)
        groups = ['; '.join(', '.join(map(str, choices)) for choices in part.values()) for part in parts]
        return f'{" and ".join(labels)} into {" | ".join(groups)}'

    def scalars(self) -> dict[str, float]:
        """For loggers: the figures of the evidence by name, and ``separates``, 1 or 0.

        Raises
        ------
        TypeError
            If the evidence has something else than numbers by name.
        """
        found = getattr(self.evidence, 'scalars', dict)()
        if not isinstance(found, dict) or not all(
            isinstance(name, str) and isinstance(value, Real) for name, value in found.items()
        ):
            raise TypeError(
                f'scalars of its evidence must return a dict of numbers by name ({{}} for none), but returned '
                f'{found!r:.200}'
            )
        return {name: float(value) for name, value in found.items()} | {'separates': float(self.separates)}

    def to_dict(self, whole: SubSpace) -> dict[str, Any]:
        """For JSON."""
        return {
            'children': [whole.encode_part(child) for child in self.children],
            'evidence': self.evidence.to_dict(),
            'objection': self.evidence.objection,
            'figures': self.evidence.describe(),
            **({'told': True} if isinstance(self.evidence, Told) else {}),
        }

    @classmethod
    def from_dict(
        cls, content: dict[str, Any], whole: SubSpace, evidence: Callable[[dict[str, Any]], Evidence] | None
    ) -> Split:
        """From :meth:`to_dict`, with what makes the evidence anew; ``None`` to leave it at what it said.

        Raises
        ------
        ValueError
            If it is of another version.
        """
        try:
            children = [whole.decode_part(part) for part in content['children']]
            if evidence is None or content.get('told'):
                return cls(children, Told(content['objection'], content['figures']))
            return cls(children, evidence(content['evidence']))
        except (KeyError, TypeError) as error:
            raise ValueError(
                f'A split cannot be read; it is of another version of nni_naslid, or of its criterion: {error!r}'
            ) from error
