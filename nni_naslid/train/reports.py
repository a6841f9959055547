"""What is reported to NNI while a trainer runs, and what is logged."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import nni
from nni.runtime.trial_command_channel import (
    TrialCommandChannel,
    get_default_trial_command_channel,
    set_default_trial_command_channel,
)
from torch import Tensor

__all__ = [
    'CapturedReport',
    'IntermediateReports',
    'as_numbers',
    'as_report',
    'current_trial',
    'hushed',
    'quiet',
    'reporting_to',
]


def as_report(logged: dict[str, float], reported: Any, monitor: str) -> dict[str, Any]:
    """All logged metrics, with ``'default'``: the metric that NNI and its web UI use.

    It is what the user's module reported to NNI; if it reported nothing, what it logged as ``monitor``.
    """
    if isinstance(reported, dict) and 'default' in reported:
        return {**logged, **reported}
    return {'default': logged.get(monitor) if reported is None else reported, **logged}


def as_numbers(metrics: dict[str, Tensor]) -> dict[str, float]:
    return {name: value.item() for name, value in metrics.items()}


class IntermediateReports(TrialCommandChannel):
    def __init__(self, channel: TrialCommandChannel):
        self.channel = channel
        self.final: Any = None

    def receive_parameter(self) -> Any:
        return self.channel.receive_parameter()

    def send_metric(self, type: str, parameter_id: Any, trial_job_id: str, sequence: int, value: Any) -> None:
        if type == 'FINAL':
            self.final = value
        else:
            self.channel.send_metric(type, parameter_id, trial_job_id, sequence, value)


@contextmanager
def reporting_to(channel: TrialCommandChannel) -> Iterator[None]:
    """Inside, reports to NNI go to another channel."""
    before = get_default_trial_command_channel()
    set_default_trial_command_channel(channel)
    try:
        yield
    finally:
        set_default_trial_command_channel(before)


@contextmanager
def current_trial() -> Iterator[None]:
    """Restore NNI's current trial, and its number of reports, at the end."""
    before = nni.trial._params, nni.trial._intermediate_seq
    try:
        yield
    finally:
        nni.trial._params, nni.trial._intermediate_seq = before


class CapturedReport(TrialCommandChannel):
    def __init__(self) -> None:
        self.reported: Any = None

    def receive_parameter(self) -> None:
        return None

    def send_metric(self, type: str, parameter_id: Any, trial_job_id: str, sequence: int, value: Any) -> None:
        self.reported = value


@contextmanager
def quiet() -> Iterator[None]:
    """Without the messages and warnings that trainers made by us (not by the user) print each time."""
    with hushed(logging.ERROR), warnings.catch_warnings():
        warnings.simplefilter('ignore')
        yield


@contextmanager
def hushed(level: int) -> Iterator[None]:
    """Without what Lightning and NNI log below a level; what this package logs is still relay_reports."""
    ours, *noisy = (logging.getLogger(name) for name in ('nni_naslid', 'nni', 'pytorch_lightning', 'lightning_fabric'))
    levels = {logger: logger.level for logger in (ours, *noisy)}
    try:
        ours.setLevel(ours.getEffectiveLevel())
        for logger in noisy:
            logger.setLevel(max(level, logger.getEffectiveLevel()))
        yield
    finally:
        for logger, before in levels.items():
            logger.setLevel(before)
