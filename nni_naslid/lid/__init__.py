"""Local intrinsic dimension; see README.md beside this file."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nni_naslid.lid.estimators import lid_mle, lid_profile, mean_lid, to_points, two_nn
    from nni_naslid.lid.rank import effective_rank

__all__ = ['effective_rank', 'lid_mle', 'lid_profile', 'mean_lid', 'to_points', 'two_nn']

ESTIMATORS = ('mle', 'two_nn', 'effective_rank')  # of a profile, by their names in settings


def __getattr__(name: str) -> Any:
    """Import on first use, as :mod:`nni_naslid` does."""
    if name not in __all__:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    return getattr(import_module(f'{__name__}.{"rank" if name == "effective_rank" else "estimators"}'), name)
