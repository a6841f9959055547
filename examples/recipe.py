"""What the example scripts share: the images and the training recipe, so that truth and search use the same."""

from __future__ import annotations

import functools
import io
import math
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple
from zipfile import BadZipFile

from nni_naslid.analysis.truth import nasbench201_sample

import nni
import numpy as np
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from lightning_fabric import Fabric
from nni.nas.evaluator.pytorch import DataLoader, Lightning, LightningModule, Trainer
from nni.nas.hub.pytorch import NasBench201
from PIL import Image
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from sklearn.datasets import load_digits
from torch import Tensor
from torch.optim import SGD
from torch.optim.lr_scheduler import OneCycleLR
from torch.utils.data import TensorDataset, default_collate
from torchmetrics.functional import accuracy
from torchvision.datasets import CIFAR10


@nni.trace
class Images(TensorDataset):
    """One part of a data set: ``'train'`` for the weights, ``'valid'`` for the search, ``'test'`` for truth.

    Traced, so that NNI sends what makes it, and not the images, to trials on other machines.
    """

    def __init__(self, path: str, resolution: int, part: str):
        super().__init__(*load_images(path, resolution)[part])


class Data(NamedTuple):
    """Three disjoint sets."""

    train: TensorDataset
    valid: TensorDataset
    test: TensorDataset


@nni.trace
class Batched(TensorDataset):
    """The same data, of which whole batches are taken, on the device where they are used; with :func:`collate`.

    It is the process that takes batches which looks for the device, once: a trial may run on another machine.
    """

    def __init__(self, data: TensorDataset, accelerator: str = 'cpu'):
        super().__init__(*data.tensors)
        self.accelerator = accelerator
        self._placed: list[Tensor] = []  # before Python 3.12, a cached_property cannot go to other processes

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, ...]:
        if not self._placed:
            device = Fabric(accelerator=self.accelerator, devices=1).device
            self._placed = [tensor.to(device) for tensor in self.tensors]
        # Not blocking: else a GPU would have to finish the step before.
        at = torch.tensor(indices).to(self._placed[0].device, non_blocking=True)
        return tuple(tensor[at] for tensor in self._placed)


def collate(batch: tuple[Tensor, ...] | list) -> tuple[Tensor, ...] | list:
    """A batch of :class:`Batched` as it is; of a list of samples, what torch makes of them."""
    return batch if isinstance(batch, tuple) else default_collate(batch)


def load_data(path: str, resolution: int) -> Data:
    """The three parts of a data set."""
    return Data(*(Images(path, resolution, part) for part in Data._fields))


def integer(least: int, most: float = math.inf) -> Callable[[str], int]:
    """The type of an option: an integer of at least ``least`` and at most ``most``."""

    def integer(text: str) -> int:  # argparse names it where the text is no number
        if not least <= (number := int(text)) <= most:
            raise ArgumentTypeError(
                f'must be at least {least}{f" and at most {most}" * (most < math.inf)}, but is {number}'
            )
        return number

    return integer


def positive(text: str) -> float:
    """The type of an option: a number above 0."""
    if not 0 < (number := float(text)) < math.inf:
        raise ArgumentTypeError(f'must be a number above 0, but is {text}')
    return number


def at_least_0(text: str) -> float:
    """The type of an option: a number of at least 0."""
    if not 0 <= (number := float(text)) < math.inf:
        raise ArgumentTypeError(f'must be a number of at least 0, but is {text}')
    return number


def fraction(text: str) -> float:
    """The type of an option: a number from 0 to 1."""
    if not 0 <= (number := float(text)) <= 1:
        raise ArgumentTypeError(f'must be a number from 0 to 1, but is {text}')
    return number


def existing(text: str) -> str:
    """The type of an option: images that are there."""
    if text != 'digits' and not (Path(text).is_file() if text.endswith('.npz') else Path(text).is_dir()):
        kind = 'file' if text.endswith('.npz') else "folder (make an empty one to download CIFAR-10), nor 'digits'"
        raise ArgumentTypeError(f'{text} is no {kind}')
    return text


def check_devices(parser: ArgumentParser, accelerator: str, devices: int = 1, precision: str = '32-true') -> None:
    """A usage error for devices that Lightning does not know or find, or for a precision that it does not know."""
    try:
        pl.Trainer(
            accelerator=accelerator, devices=devices, precision=precision, logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False,
        )  # fmt: skip
    except (ImportError, ValueError, MisconfigurationException) as error:
        tried = f'--accelerator {accelerator} with {devices} device(s) and --precision {precision}'
        parser.error(f'{tried}: {" ".join(str(error).split())}')


def data_of(parser: ArgumentParser, args: Namespace) -> Data:
    """The images that the options name; a usage error if they cannot be read, or are less than a batch."""
    try:
        data = load_data(args.data, args.resolution)
    except (OSError, ValueError, KeyError, RuntimeError, BadZipFile) as error:
        parser.error(f'--data: {args.data} cannot be read: {" ".join(str(error).split())}')
    if args.batch_size > len(data.train):
        parser.error(f'--batch-size must be at most the {len(data.train)} training images, but is {args.batch_size}.')
    return data


def add_size_arguments(parser: ArgumentParser) -> None:
    """Data and size options; a truth holds for networks of one size only, so both scripts take the same."""
    group = parser.add_argument_group('data and size')
    group.add_argument(
        '--data',
        default='digits',
        type=existing,
        metavar='PATH',
        help=(
            "'digits' (default, no download), a torchvision root of CIFAR-10 (downloaded if empty), or an .npz with "
            'uint8 images x [N, H, W, 3] and labels y, or JPEG bytes train_jpeg, train_offset, y_train, test_jpeg, ...'
        ),
    )
    group.add_argument('--resolution', type=integer(4), default=8, help='image side in pixels (default %(default)s)')
    group.add_argument('--channels', type=integer(1), default=8, help='channels of the stem (default %(default)s)')
    group.add_argument('--cells', type=integer(1), default=1, help='cells per stage, of three (default %(default)s)')
    group.add_argument('--batch-size', type=integer(1), default=120, help='images per step (default %(default)s)')
    group.add_argument('--lr', type=positive, default=0.2, help='highest learning rate (default %(default)s)')


# Drawings of each original digit: many of those to train on, so that a network never meets the same image often; of the
# others, so that their accuracy is less noisy. No original is in two sets.
DRAWINGS = (24, 4, 16)
NOISE = 0.1  # standard deviation; paper is 0, ink is 1


@functools.lru_cache(maxsize=2)
def load_images(path: str, resolution: int) -> dict[str, tuple[Tensor, Tensor]]:
    """Images ``[N, 3, resolution, resolution]``, normalised by the training set, and labels of 10 classes."""
    if path == 'digits':
        x, y, test_x, test_y = *_digits(), None, None
    elif path.endswith('.npz'):
        x, y, test_x, test_y = _npz(Path(path))
    else:
        download = not (Path(path) / CIFAR10.base_folder).is_dir()
        train, test = (CIFAR10(path, train=part, download=download) for part in (True, False))
        x, y, test_x, test_y = train.data, train.targets, test.data, test.targets
    generator = torch.Generator().manual_seed(0)
    x, y = _tensors(x, y)
    order = torch.randperm(len(x), generator=generator)
    x, y = x[order], y[order]
    if test_x is None:  # no test set of its own: the last part of the shuffled images
        cut = len(x) * 72 // 100
        x, y, test_x, test_y = x[:cut], y[:cut], x[cut:], y[cut:]
    else:
        test_x, test_y = _tensors(test_x, test_y)
    n_train = 1000 if path == 'digits' else len(x) * 80 // 100
    parts = [(x[:n_train], y[:n_train]), (x[n_train:], y[n_train:]), (test_x, test_y)]
    if path == 'digits':
        parts = [
            (_draw(x.repeat(n, 1, 1, 1), resolution, generator), y.repeat(n))
            for (x, y), n in zip(parts, DRAWINGS, strict=True)
        ]
    else:
        size = (resolution, resolution)
        parts = [(F.interpolate(x, size, mode='bilinear', antialias=True), y) for x, y in parts]
    mean = parts[0][0].mean((0, 2, 3), keepdim=True)
    std = parts[0][0].std((0, 2, 3), keepdim=True)
    return {part: ((x - mean) / std, y) for part, (x, y) in zip(Data._fields, parts, strict=True)}


def _tensors(x: np.ndarray, y: np.ndarray) -> tuple[Tensor, Tensor]:
    return torch.as_tensor(np.asarray(x)).permute(0, 3, 1, 2) / 255, torch.as_tensor(np.asarray(y)).long()


def _digits() -> tuple[np.ndarray, np.ndarray]:
    digits = load_digits()
    return np.repeat(digits.images[..., None] * (255 / 16), 3, axis=-1).astype(np.float32), digits.target


def _draw(x: Tensor, resolution: int, generator: torch.Generator) -> Tensor:
    """Each digit turned by up to 30 degrees, scaled by .8 to 1.2, shifted by up to 15 %, and some quarters negative.

    8x8 digits as they are saturate at 95 %, and then every architecture is as good as any other. Here each quarter of
    the image is positive or negative at random, so that brightness alone says nothing: a network must find strokes
    whatever their sign, which takes more than one layer.
    """
    n = len(x)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(n, *shape, generator=generator)

    angle, scale, shift = uniform(-math.pi / 6, math.pi / 6), uniform(0.8, 1.2), uniform(-0.3, 0.3, 2)  # in half images
    rotation = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], 1).view(n, 2, 2)
    matrix = torch.cat([rotation / scale.view(n, 1, 1), shift[..., None]], 2)
    grid = F.affine_grid(matrix, [n, 3, resolution, resolution], align_corners=False)
    sign = F.interpolate(torch.randint(2, (n, 1, 2, 2), generator=generator) * 2.0 - 1, (resolution, resolution))
    noise = NOISE * torch.randn(n, 1, resolution, resolution, generator=generator)
    return F.grid_sample(x, grid, align_corners=False) * sign + noise


def _npz(path: Path) -> tuple:
    file = np.load(path, allow_pickle=False)
    if 'train_jpeg' in file:

        def decode(part: str) -> np.ndarray:
            data, offset = file[f'{part}_jpeg'].tobytes(), file[f'{part}_offset']
            return np.stack([np.asarray(Image.open(io.BytesIO(data[a:b]))) for a, b in pairwise(offset)])

        return decode('train'), file['y_train'], decode('test'), file['y_test']
    if 'x' in file and 'y' in file:
        return file['x'], file['y'], None, None
    raise ValueError(f'{path} must hold x and y, or train_jpeg, train_offset, y_train, ..., but holds {file.files}.')


def make_optimizer(module: torch.nn.Module, lr: float, steps: int) -> tuple[SGD, OneCycleLR]:
    """Nesterov SGD, whose learning rate rises to ``lr`` in a quarter of the steps and falls to 0 in the others."""
    optimizer = SGD(module.parameters(), lr=lr, momentum=0.9, nesterov=True, weight_decay=5e-4)
    steps = max(steps, 2)  # it must rise for one step at least
    rising = max(0.25, 2 / steps)
    return optimizer, OneCycleLR(optimizer, lr, total_steps=steps, pct_start=rising, cycle_momentum=False)


@nni.trace
class Recipe(LightningModule):
    """Cross-entropy and the optimizer of :func:`make_optimizer`; optionally flips and shifts (photographs)."""

    def __init__(self, lr: float, augment: bool):
        super().__init__()
        self.lr = lr
        self.augment = augment

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        if self.augment:
            flip = torch.rand(len(x), 1, 1, 1, device=x.device) < 0.5
            x = torch.where(flip, x.flip(-1), x)
            pad = x.shape[-1] // 8
            dx, dy = torch.randint(2 * pad + 1, (2,)).tolist()
            x = F.pad(x, [pad] * 4)[..., dy : dy + x.shape[-2], dx : dx + x.shape[-1]]
        return F.cross_entropy(self(x), y)

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        x, y = batch
        logits = self(x)
        self.log('val_loss', F.cross_entropy(logits, y), prog_bar=True)
        self.log('val_acc', accuracy(logits, y, 'multiclass', num_classes=10), prog_bar=True)

    def configure_optimizers(self) -> dict:
        optimizer, scheduler = make_optimizer(self, self.lr, int(self.trainer.estimated_stepping_batches))
        return {'optimizer': optimizer, 'lr_scheduler': {'scheduler': scheduler, 'interval': 'step'}}

    def on_validation_epoch_end(self) -> None:
        if nni.get_current_parameter() is not None and not self.trainer.sanity_checking:
            nni.report_intermediate_result(self.trainer.callback_metrics['val_acc'].item())

    def on_fit_end(self) -> None:
        if nni.get_current_parameter() is not None:
            nni.report_final_result(self.trainer.callback_metrics['val_acc'].item())


def make_evaluator(
    data: Data, *, epochs: int, lr: float = 0.2, batch_size: int = 120, augment: bool = False, **trainer: object
) -> Lightning:
    """The evaluator of one training run; the other arguments are those of Lightning's trainer.

    For a trainer of one device the data are put there, once.
    """
    place = trainer.get('accelerator', 'auto') if trainer.get('devices') == 1 else 'cpu'
    train, valid = (Batched(part, place) for part in (data.train, data.valid))
    return Lightning(
        Recipe(lr, augment),
        Trainer(max_epochs=epochs, **trainer),
        train_dataloaders=DataLoader(train, batch_size, shuffle=True, drop_last=True, collate_fn=collate),
        val_dataloaders=DataLoader(valid, 500, collate_fn=collate),
    )


def train_alone(arch: str, seed: int, args: Namespace, data: Data, epochs: int) -> dict[str, float]:
    """Train one architecture from scratch; its ``valid_acc`` and ``test_acc`` in percent.

    In a plain loop: for networks this small, a third of the time would go to the trainer and to collecting batches.
    """
    pl.seed_everything(seed, verbose=False)
    device = Fabric(accelerator=args.accelerator, devices=1).device
    network = NasBench201.frozen_factory(nasbench201_sample(arch))(args.channels, args.cells, 10)
    recipe = Recipe(args.lr, augment=args.data != 'digits')
    recipe.set_model(network)
    recipe.to(device).train()
    images, labels = data.train.tensors
    steps = len(images) // args.batch_size
    optimizer, scheduler = make_optimizer(recipe, args.lr, epochs * steps)
    for _ in range(epochs):
        for batch in torch.randperm(len(images))[: steps * args.batch_size].view(steps, -1):
            optimizer.zero_grad()
            recipe.training_step((images[batch].to(device), labels[batch].to(device)), 0).backward()
            optimizer.step()
            scheduler.step()
    network.eval()
    return {f'{part}_acc': _accuracy(network, getattr(data, part), device) for part in ('valid', 'test')}


@torch.no_grad()
def _accuracy(network: torch.nn.Module, images: TensorDataset, device: torch.device) -> float:
    batches = zip(*(tensor.split(500) for tensor in images.tensors), strict=True)
    right = sum((network(x.to(device)).argmax(1).cpu() == y).sum().item() for x, y in batches)
    return round(100 * right / len(images), 2)
