"""NAS-LID for NNI: one-shot search that splits the supernet where local intrinsic dimension tells candidates apart."""

import importlib
import logging
import os
import sys
import warnings
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nni_naslid.analysis.ranking import ranking_report
    from nni_naslid.analysis.truth import load_truth
    from nni_naslid.criteria.bands import Bands
    from nni_naslid.criteria.fixed import Fixed
    from nni_naslid.criteria.gradient import Gradient
    from nni_naslid.criteria.joint import Joint
    from nni_naslid.criteria.lid import LID
    from nni_naslid.criteria.random import RandomSplit
    from nni_naslid.criteria.zero_cost import ZeroCost
    from nni_naslid.lid import lid_mle, lid_profile, two_nn
    from nni_naslid.run.plan import plan_epochs
    from nni_naslid.search.export_files import load_network
    from nni_naslid.search.nsga2 import NSGA2
    from nni_naslid.space.split import Split
    from nni_naslid.space.subspace import SubSpace
    from nni_naslid.space.tree import Node
    from nni_naslid.strategy import NASLID
    from nni_naslid.traits.latency import measure_latency
    from nni_naslid.traits.lid_score import lid_score

__all__ = [
    'LID', 'NASLID', 'NSGA2', 'Bands', 'Fixed', 'Gradient', 'Joint', 'Node', 'RandomSplit', 'Split', 'SubSpace',
    'ZeroCost', 'lid_mle', 'lid_profile', 'lid_score', 'load_network', 'load_truth', 'measure_latency',
    'plan_epochs', 'ranking_report', 'two_nn',
]  # fmt: skip
__version__ = '0.1.0'

# Before nni.nas is imported. NNI wraps every class of torch.nn and warns about the new ones that are no modules;
# Lightning 2.6 asks torch 2.14 for `LeafSpec` in each fit. Each can go with a release that does not.
warnings.filterwarnings('ignore', message=r'.*is found to be not a nn\.Module.*', category=RuntimeWarning)
warnings.filterwarnings('ignore', message=r'.*isinstance\(treespec, LeafSpec\).*', category=FutureWarning)

# Before torch is imported, whose threads else wait for each other in a loop: on cores that others use too, profiling a
# small network by two threads took 44 s, where it takes 7 s like this, and 3 s by one thread.
if 'torch' not in sys.modules:
    os.environ.setdefault('OMP_WAIT_POLICY', 'PASSIVE')

# NNI prints and files what its own loggers say; ours join them, so that a run's progress is in one place.
logging.getLogger(__name__).parent = logging.getLogger('nni')

_HOMES = {
    'Bands': 'criteria.bands', 'Fixed': 'criteria.fixed', 'Gradient': 'criteria.gradient', 'Joint': 'criteria.joint',
    'LID': 'criteria.lid', 'NASLID': 'strategy', 'NSGA2': 'search.nsga2', 'Node': 'space.tree',
    'RandomSplit': 'criteria.random', 'Split': 'space.split', 'SubSpace': 'space.subspace',
    'ZeroCost': 'criteria.zero_cost', 'lid_mle': 'lid', 'lid_profile': 'lid', 'lid_score': 'traits.lid_score',
    'load_network': 'search.export_files', 'load_truth': 'analysis.truth', 'measure_latency': 'traits.latency',
    'plan_epochs': 'run.plan', 'ranking_report': 'analysis.ranking', 'two_nn': 'lid',
}  # fmt: skip


def __getattr__(name: str) -> Any:
    """Import on first use: NNI gives a tuner ten seconds to start, most of which torch and nni.nas would take."""
    if name not in _HOMES:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    return getattr(importlib.import_module(f'{__name__}.{_HOMES[name]}'), name)
