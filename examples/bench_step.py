"""Time what a training step of a supernet costs: the network, Lightning, the loader, and this package.

    python examples/bench_step.py --accelerator gpu
    python examples/bench_step.py --channels 4 --cells 1 --resolution 8 --steps 40      # a CPU

NAS-Bench-201 on random images, some minutes on a GPU. All ways train the same paths on batches of the same size, in
turns; each is a training of two epochs, of which the first ``--warm-up`` steps and the time between the epochs are not
measured. Steps are timed together: a GPU is waited for where measuring begins and ends, not in each step. `network` is
a plain loop that draws paths and sets them as this package does; what that takes of the host is in rows of its own.
`NASLID` is a whole run without splits; `NNI RandomOneShot` is NNI's module, which is told the paths, so that drawing
them is free. `ours` is what NASLID takes more than Lightning and the loader, and drawing and setting paths.
`ours (host)` is the same without a network: paths, and learning rates by their size. Rows go to bench_step.csv beside
this script as soon as they are there (appended, never edited).
"""

from __future__ import annotations

import os

os.environ.update(OMP_NUM_THREADS='1', OPENBLAS_NUM_THREADS='1', MKL_NUM_THREADS='1')  # read when libraries load

import logging
import platform
import tempfile
import time
from argparse import ArgumentDefaultsHelpFormatter, ArgumentParser, Namespace
from collections.abc import Iterable, Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from nni_naslid import NASLID, SubSpace
from nni_naslid.run.settings import PLAIN
from nni_naslid.train.learning_rate import LearningRateBySize
from nni_naslid.train.path import SubSupernetModule, set_path, uniformly
from nni_naslid.train.reports import current_trial
from nni_naslid.train.supernet import make_supernet

import numpy as np
import pandas as pd
import pytorch_lightning as pl
import torch
from bench_splits import hush
from lightning_fabric import Fabric
from nni.mutable import Sample
from nni.nas.evaluator.pytorch import DataLoader
from nni.nas.hub.pytorch import NasBench201
from nni.nas.oneshot.pytorch.sampling import RandomSamplingLightningModule
from recipe import Batched, Data, Recipe, check_devices, collate, integer, make_evaluator, make_optimizer
from rows import append, commit, processor
from torch.utils.data import TensorDataset

LR = 0.05
SEED = 0
EPOCHS = 2
NETWORK, LIGHTNING, ONE_BY_ONE = 'network', '+ Lightning', '+ loader, one image at a time'
WHOLE, ON_DEVICE, NASLID_RUN, NNI = '+ loader, whole batches', '+ loader, on the device', 'NASLID', 'NNI RandomOneShot'
DRAWING, SETTING, OURS, OURS_HOST = 'drawing a path (host)', 'set_path (host)', 'ours', 'ours (host)'
BASES = {
    LIGHTNING: NETWORK, ONE_BY_ONE: LIGHTNING, WHOLE: LIGHTNING, ON_DEVICE: LIGHTNING, NASLID_RUN: ON_DEVICE,
    NNI: '',  # which draws no paths: ON_DEVICE does
}  # fmt: skip
QUIET = {
    'logger': False, 'enable_checkpointing': False, 'enable_progress_bar': False, 'enable_model_summary': False,
    'num_sanity_val_steps': 0,
}  # fmt: skip


class Clock(pl.Callback):
    """Notes when the measured steps of both epochs begin, and when the first epoch has ended."""

    def __init__(self, device: torch.device, warm_up: int, steps: int):
        self.device = device
        self.begin = warm_up, 0  # the first measured step of each epoch
        self.last = steps - 1
        self.begun: dict[tuple[int, int], float] = {}
        self.ended = 0.0

    def __deepcopy__(self, memo: dict) -> Clock:
        return self  # of a node's trainer, too

    def now(self) -> float:
        getattr(torch, self.device.type).synchronize()
        return time.perf_counter()

    def step_begins(self, epoch: int, step: int) -> None:
        if step in (self.begin[epoch], self.last):
            self.begun[epoch, step] = self.now()

    def step_ends(self, epoch: int, step: int) -> None:
        if (epoch, step) == (0, self.last):
            self.ended = self.now()

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.step_begins(trainer.current_epoch, batch_idx)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.step_ends(trainer.current_epoch, batch_idx)

    def is_measured(self, epoch: int, step: int) -> bool:
        return self.begin[epoch] <= step < self.last

    @property
    def step_ms(self) -> float:
        seconds = sum(self.begun[epoch, self.last] - self.begun[epoch, self.begin[epoch]] for epoch in range(EPOCHS))
        return 1000 * seconds / sum(self.last - begin for begin in self.begin)

    @property
    def between_epochs_ms(self) -> float:
        return 1000 * (self.begun[1, 0] - self.ended)


class Batches(list):
    """Batches in a list, which Lightning would take for a list of loaders."""


class ToldThePaths(RandomSamplingLightningModule):
    """NNI's module for ``RandomOneShot``, which sets the supernet to given paths, in its own way."""

    def __init__(self, training_module: pl.LightningModule, paths: Iterable[Sample]):
        super().__init__(training_module)
        self.paths: Iterator[Sample] = iter(paths)

    def resample(self) -> Sample:
        path = next(self.paths)
        for module in self.supernet_modules():
            module.resample(memo=path)
        return path


class Bench:
    """The ways, and what they share."""

    def __init__(self, args: Namespace):
        self.args = args
        self.device = Fabric(accelerator=args.accelerator, devices=1).device
        # Of a round: steps that are measured, those before, and the last one of each epoch.
        per_round = -(-args.steps // args.rounds)
        self.steps = max(args.warm_up + 2, -(-(per_round + args.warm_up + EPOCHS) // EPOCHS))  # of an epoch
        generator = torch.Generator().manual_seed(SEED)
        n = self.steps * args.batch_size
        images = torch.randn(n, 3, args.resolution, args.resolution, generator=generator)
        self.data = TensorDataset(images, torch.randint(10, (n,), generator=generator))
        self.host_ms: dict[str, float] = {}  # of a step of the plain loop

    def clock(self) -> Clock:
        return Clock(self.device, self.args.warm_up, self.steps)

    def recipe(self) -> Recipe:
        """The user's module around a new supernet."""
        pl.seed_everything(SEED, verbose=False)
        recipe = Recipe(LR, augment=True)
        recipe.set_model(make_supernet(self.space()))
        return recipe

    def space(self) -> NasBench201:
        return NasBench201(self.args.channels, self.args.cells, 10)

    def ours(self) -> SubSupernetModule:
        recipe = self.recipe()
        return SubSupernetModule(recipe, SubSpace.of(recipe.model), [SEED])

    def path(self, subspace: SubSpace, epoch: int, step: int) -> Sample:
        """What :class:`SubSupernetModule` draws for a step of training."""
        return uniformly(subspace, (SEED, False), epoch, step)

    def batches(self) -> Batches:
        """Those of an epoch, on the device."""
        return Batches(DataLoader(Batched(self.data, self.args.accelerator), self.args.batch_size, collate_fn=collate))

    def network(self) -> Clock:
        """A plain loop."""
        clock, module, batches = self.clock(), self.ours().to(self.device).train(), self.batches()
        recipe = module.training_module
        optimizer, scheduler = make_optimizer(recipe, LR, EPOCHS * self.steps)
        drawing, setting = [], []
        for epoch in range(EPOCHS):
            for step, batch in enumerate(batches):
                clock.step_begins(epoch, step)
                begun = time.perf_counter()
                path = self.path(module.subspace, epoch, step)
                drawn = time.perf_counter()
                set_path(module, path)
                ended = time.perf_counter()
                optimizer.zero_grad()
                recipe.training_step(batch, step).backward()
                optimizer.step()
                scheduler.step()
                clock.step_ends(epoch, step)
                if clock.is_measured(epoch, step):
                    drawing.append(drawn - begun)
                    setting.append(ended - drawn)
        self.host_ms = {DRAWING: 1000 * np.mean(drawing), SETTING: 1000 * np.mean(setting)}
        return clock

    def fit(self, module: pl.LightningModule, loader: Iterable) -> Clock:
        clock = self.clock()
        trainer = pl.Trainer(
            max_epochs=EPOCHS, accelerator=self.args.accelerator, devices=1, callbacks=[clock], **QUIET
        )  # fmt: skip
        trainer.fit(module, loader)
        return clock

    def loader(self, data: TensorDataset) -> DataLoader:
        return DataLoader(data, self.args.batch_size, shuffle=True, drop_last=True, collate_fn=collate)

    def nni(self) -> Clock:
        recipe = self.recipe()
        subspace = SubSpace.of(recipe.model)
        paths = [self.path(subspace, epoch, step) for epoch in range(EPOCHS) for step in range(self.steps)]
        return self.fit(ToldThePaths(recipe, paths), self.loader(Batched(self.data, self.args.accelerator)))

    def naslid(self) -> Clock:
        """A whole run: its checkpoints, validation and a search for one network are outside of the steps."""
        clock, few = self.clock(), TensorDataset(*self.data[: self.args.batch_size])
        pl.seed_everything(SEED, verbose=False)
        evaluator = make_evaluator(
            Data(self.data, few, few), epochs=EPOCHS, lr=LR, batch_size=self.args.batch_size, augment=True,
            accelerator=self.args.accelerator, devices=1, callbacks=[clock], check_val_every_n_epoch=EPOCHS, **QUIET,
        )  # fmt: skip
        with tempfile.TemporaryDirectory() as workdir, current_trial():
            strategy = NASLID(
                search_budget=1, calibration_batches=0, seed=SEED, workdir=workdir, **{**PLAIN, 'lr_by_size': True}
            )  # fmt: skip
            strategy.fit(self.space(), evaluator)
        return clock

    def measured(self, way: str) -> Clock:
        if way == NETWORK:
            return self.network()
        if way == NASLID_RUN:
            return self.naslid()
        if way == NNI:
            return self.nni()
        loaders = {
            LIGHTNING: self.batches,
            ONE_BY_ONE: lambda: self.loader(self.data),  # a list of samples, so torch's own way
            WHOLE: lambda: self.loader(Batched(self.data)),
            ON_DEVICE: lambda: self.loader(Batched(self.data, self.args.accelerator)),
        }
        return self.fit(self.ours(), loaders[way]())

    def ours_host_ms(self) -> float:
        """What of a step is ours, but the hooks of Lightning, without a network."""
        module = self.ours()
        optimizer, _ = make_optimizer(module, LR, EPOCHS * self.steps)
        rate = LearningRateBySize(module.model, module.subspace)
        seconds = []
        for step in range(EPOCHS * self.steps):
            begun = time.perf_counter()
            path = self.path(module.subspace, *divmod(step, self.steps))
            rate.scale([optimizer], path)
            set_path(module, path)
            rate.stepped()
            seconds.append(time.perf_counter() - begun)
        return 1000 * np.mean(seconds[self.args.warm_up :])


def measured(bench: Bench) -> Iterator[dict]:
    """Milliseconds of a step, and between the epochs: a row for each way and round, as soon as it is there."""
    for i in range(1, bench.args.rounds + 1):
        for way in (NETWORK, *BASES):
            clock = bench.measured(way)
            yield {'round': i, 'way': way, 'ms': clock.step_ms, 'between_epochs_ms': clock.between_epochs_ms}
        for way, ms in (bench.host_ms | {OURS_HOST: bench.ours_host_ms()}).items():
            yield {'round': i, 'way': way, 'ms': ms, 'between_epochs_ms': None}


def table(rows: pd.DataFrame) -> pd.DataFrame:
    """Medians of the rounds, and of what each way has more than another."""
    ms = rows.groupby('way', sort=False)['ms'].median()
    if {NASLID_RUN, ON_DEVICE, DRAWING, SETTING} <= {*ms.index}:
        ms[OURS] = ms[NASLID_RUN] - ms[ON_DEVICE] + ms[DRAWING] + ms[SETTING]
    found = pd.DataFrame({'ms': ms, 'beside': [BASES.get(way, '') for way in ms.index]})
    found['more_ms'] = [ms[way] - ms.get(BASES.get(way), 0.0) for way in ms.index]
    found['% of a step'] = 100 * found['more_ms'] / ms.get(NASLID_RUN, float('nan'))
    return found.round(3)


def main() -> None:
    parser = ArgumentParser(description=__doc__.splitlines()[0], formatter_class=ArgumentDefaultsHelpFormatter)
    parser.add_argument('--channels', default=16, type=integer(1), help='of the stem')
    parser.add_argument('--cells', default=5, type=integer(1), help='per stage, of three')
    parser.add_argument('--resolution', default=32, type=integer(8), help='image side in pixels')
    parser.add_argument('--batch-size', default=100, type=integer(2), help='images per step')
    parser.add_argument('--steps', default=150, type=integer(2), help='measured of each way, in all rounds, at least')
    parser.add_argument('--rounds', default=3, type=integer(1), help='of all ways')
    parser.add_argument('--warm-up', default=30, type=integer(1), help='steps before these, in each round')
    parser.add_argument('--accelerator', default='cpu', help='cpu, gpu, ... as in Lightning')
    parser.add_argument('--output', default=Path(__file__).with_suffix('.csv'), type=Path, help='the CSV')
    args = parser.parse_args()
    hush()
    check_devices(parser, args.accelerator)
    logging.getLogger('nni_naslid').setLevel(logging.WARNING)
    bench = Bench(args)
    is_gpu = bench.device.type == 'cuda'
    common = {
        'channels': args.channels, 'cells': args.cells, 'resolution': args.resolution, 'batch_size': args.batch_size,
        'steps': args.steps, 'rounds': args.rounds, 'on': bench.device.type,
        'device': torch.cuda.get_device_name(bench.device) if is_gpu else processor(), 'threads': 1,
        'torch': torch.__version__, 'python': platform.python_version(), 'commit': commit(),
        'date': datetime.now(timezone.utc).isoformat(timespec='seconds'),
    }  # fmt: skip
    rows = []
    for row in measured(bench):
        rows.append(row)
        append(pd.DataFrame([{**row, **common}]).round(4), args.output)
        print(f'Round {row["round"]}: {row["way"]}: {row["ms"]:.3f} ms', flush=True)
    print(table(pd.DataFrame(rows)).to_string())


if __name__ == '__main__':
    main()
