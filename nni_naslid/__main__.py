"""``python -m nni_naslid``: without arguments the trial command of experiments whose tuner is
:class:`~nni_naslid.tuner.NASLIDTuner`; with arguments the command line, see :mod:`nni_naslid.cli`."""

import sys


def run_trial() -> None:
    """Carry out the task that NNI's manager has for this process."""
    from nni_naslid.trial import perform_by_name

    import nni

    parameters = nni.get_next_parameter()
    if not {'task', 'recipe'} <= parameters.keys():
        raise SystemExit(
            'python -m nni_naslid is a trial command, for NNI experiments whose tuner is nni_naslid.tuner.NASLIDTuner: '
            'start one by `nnictl create --config`. To look at a run: `python -m nni_naslid --help`.'
        )
    perform_by_name(parameters)


if __name__ == '__main__':
    if len(sys.argv) == 1:
        run_trial()
    else:
        from nni_naslid.cli import main

        sys.exit(main())
