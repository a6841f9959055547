"""NAS-LID for NNI: one-shot search that splits the supernet where local intrinsic dimension tells candidates apart."""

import logging

from nni_naslid import compat as compat  # first: it mends NNI before anything uses it
from nni_naslid.lid import lid_mle, lid_profile, two_nn
from nni_naslid.report import ranking_report
from nni_naslid.split import Split
from nni_naslid.strategy import NASLID
from nni_naslid.subspace import SubSpace
from nni_naslid.tree import Node

__all__ = ['NASLID', 'Node', 'Split', 'SubSpace', 'lid_mle', 'lid_profile', 'ranking_report', 'two_nn']
__version__ = '0.1.0'

# NNI prints and files what its own loggers say; ours join them, so that a run's progress is in one place.
logging.getLogger(__name__).parent = logging.getLogger('nni')
