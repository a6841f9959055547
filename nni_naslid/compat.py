"""Faults of NNI 3.0 (frozen since 2023-09) on today's libraries, each with its cure and when the cure can go.

Imported by whatever module of ours imports ``nni.nas``, before that. What the dependency list can settle is settled
there: ``setuptools<82`` for ``pkg_resources``, which nnictl imports.
"""

from __future__ import annotations

import logging

from nni_naslid.run.identity import ARGUMENTS

# First: entered by another door, NNI's circular imports leave placeholders that cannot run in place of its strategies.
import nni.nas.strategy  # noqa: F401
from nni.nas.oneshot.pytorch.supermodule.operation import MixedOperation
from nni.nas.oneshot.pytorch.supermodule.sampling import PathSamplingRepeat
from nni.nas.strategy.base import Strategy
from nni.nas.strategy.middleware import StrategyMiddleware


def _freeze(self: MixedOperation, sample: dict) -> object:
    """``MixedOperation.freeze`` that leaves out parameters which do not exist.

    NNI loads ``bias=None`` into an operation built with ``bias=False``: "Unexpected key(s) in state_dict: "bias"", so
    no ProxylessNAS, MobileNetV3Space or ShuffleNetSpace can be frozen after one-shot training. Goes when NNI drops
    the ``None`` itself.
    """
    arguments = {**self.init_arguments}
    arguments.update({name: mutable.freeze(sample) for name, mutable in self.mutable_arguments.items()})
    operation = self.bound_type(**arguments)
    weights = {name: value for name, value in self.freeze_weight(**arguments).items() if value is not None}
    operation.load_state_dict(weights)
    return operation


MixedOperation.freeze = _freeze

_repeat = PathSamplingRepeat.forward


def _forward(self: PathSamplingRepeat, x: object) -> object:
    """``PathSamplingRepeat.forward`` that repeats no block where the depth is 0, as the frozen network does.

    NNI runs the first block, and fails for want of outputs: a bare AssertionError. Goes when NNI returns its input.
    """
    return x if self._sampled == 0 else _repeat(self, x)


PathSamplingRepeat.forward = _forward


def _note_arguments(cls: type) -> None:
    """Let strategies keep what they were made with, as NNI's model spaces and evaluators do.

    Their ``repr`` leaves out seeds and what a filter does, so two searches could not be told apart. Goes when NNI's
    strategies are traceable.
    """

    def new(made: type, *args: object, **kwargs: object) -> object:
        self = object.__new__(made)
        vars(self)[ARGUMENTS] = args, kwargs
        return self

    cls.__new__ = new


for _class in (Strategy, StrategyMiddleware):
    _note_arguments(_class)


# NNI's default configuration warns ten times a run that its own setting has no effect. Goes when it no longer does.
logging.getLogger('nni.nas.experiment.config.experiment').addFilter(
    lambda record: not record.getMessage().startswith('`training_service` will be ignored')
)


from nni.experiment import launcher  # noqa: E402
from nni.runtime.tuner_command_channel import TunerCommandChannel  # noqa: E402

_receive_known = TunerCommandChannel.receive


def _receive(self: TunerCommandChannel) -> object:
    """``TunerCommandChannel.receive`` that skips commands it does not know.

    On resume NNI's manager always sends the finished trials, a command that makes the listening thread of a NAS
    experiment die; its strategy then waits forever. Goes when NNI knows the command.
    """
    while True:
        try:
            return _receive_known(self)
        except ValueError as error:
            if 'Unknown command type' not in str(error):
                raise


TunerCommandChannel.receive = _receive

# NNI gives its manager three seconds to start, too few on a busy machine ("Connection refused"): a minute.
launcher._check_rest_server.__defaults__ = (60, None)
