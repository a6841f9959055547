"""The trial command of experiments whose tuner is :class:`~nni_naslid.tuner.NASLIDTuner`: ``python -m nni_naslid``."""

from nni_naslid.trial import perform_by_name

import nni

if __name__ == '__main__':
    parameters = nni.get_next_parameter()
    if not {'task', 'recipe'} <= parameters.keys():
        raise SystemExit(
            'python -m nni_naslid is a trial command, for NNI experiments whose tuner is nni_naslid.tuner.NASLIDTuner: '
            'start one by `nnictl create --config`.'
        )
    perform_by_name(parameters)
