"""What a run is made of, for all that takes part in it. Without torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from nni_naslid.run.folder import RunFolder
from nni_naslid.run.settings import Settings

if TYPE_CHECKING:
    from nni.nas.evaluator.pytorch import Lightning
    from nni.nas.nn.pytorch import ModelSpace
    from nni.nas.strategy.base import Strategy

__all__ = ['Run']


@dataclass(frozen=True)
class Run:
    """A run, as its tasks see it.

    Attributes
    ----------
    settings
        What the user has chosen.
    folder
        Where everything is kept.
    id
        The :func:`~nni_naslid.run.progress.run_id`: files that have another one are of another run.
    supernet
        The supernet; its weights are replaced by each task.
    evaluator
        The user's evaluator, never run itself.
    search
        The strategy of NNI for the search after training; regularized evolution if ``None``.
    """

    settings: Settings
    folder: RunFolder
    id: str
    supernet: ModelSpace
    evaluator: Lightning
    search: Strategy | None = None
