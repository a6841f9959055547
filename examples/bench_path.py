"""Time how long a supernet takes to be set to a path, beside its forward pass and a training step.

    python examples/bench_path.py

One thread. The rival is what a plain one-shot strategy does: ``resample`` of every supernet module. Rows go to
bench_path.csv beside this script (appended, never edited). Paths are random, as in training; the first ``--warm-up``
ones are not measured.
"""

from __future__ import annotations

import os

os.environ.update(OMP_NUM_THREADS='1', OPENBLAS_NUM_THREADS='1', MKL_NUM_THREADS='1')  # read when libraries load

import platform
import time
from argparse import ArgumentDefaultsHelpFormatter, ArgumentParser
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path

from nni_naslid import SubSpace
from nni_naslid.train.path import set_path

import numpy as np
import pandas as pd
import torch
from nni.nas.hub.pytorch import DARTS, MobileNetV3Space, NasBench201, ProxylessNAS
from nni.nas.nn.pytorch import ModelSpace
from nni.nas.oneshot.pytorch.supermodule.base import BaseSuperNetModule
from nni.nas.strategy import RandomOneShot
from rows import append, commit, processor
from torch import nn

BATCH, IMAGE = 32, 32


def small_mobilenet() -> ModelSpace:
    return MobileNetV3Space(num_labels=10, base_widths=(8,) * 9, width_multipliers=(0.5, 1.0), expand_ratios=(1.0, 2.0))


SPACES: dict[str, Callable[[], ModelSpace]] = {
    'NasBench201(4, 1, 10)': lambda: NasBench201(4, 1, 10),
    'ProxylessNAS, width 8': lambda: ProxylessNAS(10, base_widths=(8,) * 9),
    'MobileNetV3Space, width 8': small_mobilenet,
    'DARTS(width=8, num_cells=3)': lambda: DARTS(width=8, num_cells=3, dataset='cifar'),
}


def resample_all(supernet: nn.Module, sample: dict) -> None:
    for module in supernet.modules():
        if isinstance(module, BaseSuperNetModule):
            module.resample(memo=sample)


def milliseconds(call: Callable[[], object]) -> float:
    start = time.process_time()
    call()
    return (time.process_time() - start) * 1000


def measure(name: str, paths: int, warm_up: int) -> list[dict]:
    supernet = RandomOneShot().mutate_model(SPACES[name]())
    subspace, random_state = SubSpace.of(supernet), np.random.RandomState(0)
    images = torch.randn(BATCH, 3, IMAGE, IMAGE)

    def step() -> None:
        outputs = supernet(images)
        (outputs[0] if isinstance(outputs, tuple) else outputs).square().sum().backward()

    samples = [subspace.sample(random_state) for _ in range(warm_up + paths)]
    for sample in samples[:warm_up]:
        set_path(supernet, sample)
    set_ms = {'nni_naslid': [], 'resample of every module': []}
    forward, training = [], []
    for sample in samples[warm_up:]:  # what is compared is interleaved, after a step, as in training
        step()
        set_ms['resample of every module'].append(milliseconds(lambda sample=sample: resample_all(supernet, sample)))
        training.append(milliseconds(step))
        set_ms['nni_naslid'].append(milliseconds(lambda sample=sample: set_path(supernet, sample)))
        with torch.no_grad():
            forward.append(milliseconds(lambda: supernet(images)))
    forward_ms, step_ms = np.median(forward), np.median(training)
    return [
        {
            'space': name, 'provider': provider, 'batch': BATCH,
            'set_p20_ms': np.percentile(times, 20).round(3), 'set_p50_ms': np.median(times).round(3),
            'set_p80_ms': np.percentile(times, 80).round(3), 'forward_ms': forward_ms.round(2),
            'step_ms': step_ms.round(2), 'of_forward': round(np.median(times) / forward_ms, 4),
            'of_step': round(np.median(times) / step_ms, 4),
        }
        for provider, times in set_ms.items()
    ]  # fmt: skip


def main() -> None:
    parser = ArgumentParser(description=__doc__.splitlines()[0], formatter_class=ArgumentDefaultsHelpFormatter)
    parser.add_argument('--paths', default=40, type=int, help='measured paths of each space')
    parser.add_argument('--warm-up', default=100, type=int, help='paths before these')
    parser.add_argument('--spaces', default=list(SPACES), nargs='+', choices=list(SPACES), metavar='SPACE')
    parser.add_argument('--output', default=Path(__file__).with_suffix('.csv'), type=Path, help='the CSV')
    args = parser.parse_args()
    torch.set_num_threads(1)
    common = {
        'on': 'cpu', 'device': processor(), 'threads': 1, 'torch': torch.__version__,
        'python': platform.python_version(),
        'commit': commit(),
        'date': datetime.now(timezone.utc).isoformat(timespec='seconds'),
    }  # fmt: skip
    rows = pd.DataFrame([{**row, **common} for name in args.spaces for row in measure(name, args.paths, args.warm_up)])
    append(rows, args.output)
    shown = ['space', 'provider', 'set_p50_ms', 'forward_ms', 'step_ms', 'of_forward', 'of_step']
    print(rows[shown].to_string(index=False))


if __name__ == '__main__':
    main()
