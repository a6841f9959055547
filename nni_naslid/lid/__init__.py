"""Local intrinsic dimension; see README.md beside this file."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nni_naslid.lid.estimators import lid_mle, lid_profile, mean_lid, to_points, two_nn

__all__ = ['lid_mle', 'lid_profile', 'mean_lid', 'to_points', 'two_nn']


def __getattr__(name: str) -> Any:
    """Import on first use, as :mod:`nni_naslid` does."""
    if name not in __all__:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    from nni_naslid.lid import estimators

    return getattr(estimators, name)
