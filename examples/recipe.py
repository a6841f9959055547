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
from nni.nas.evaluator.pytorch import DataLoader, Lightning, LightningModule, Trainer
from nni.nas.hub.pytorch import NasBench201
from PIL import Image
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from sklearn.datasets import load_digits
from torch import Tensor
from torch.utils.data import TensorDataset
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


def existing(text: str) -> str:
    """The type of an option: images that are there."""
    if text != 'digits' and not (Path(text).is_file() if text.endswith('.npz') else Path(text).is_dir()):
        kind = 'file' if text.endswith('.npz') else "folder (make an empty one to download CIFAR-10), nor 'digits'"
        raise ArgumentTypeError(f'{text} is no {kind}')
    return text


def check_devices(parser: ArgumentParser, accelerator: str, devices: int = 1) -> None:
    """A usage error for devices that Lightning does not know or find."""
    try:
        pl.Trainer(
            accelerator=accelerator, devices=devices, logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False,
        )  # fmt: skip
    except (ImportError, ValueError, MisconfigurationException) as error:
        parser.error(f'--accelerator {accelerator} with {devices} device(s): {" ".join(str(error).split())}')


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
    group.add_argument('--resolution', type=integer(4), default=16, help='image side in pixels (default %(default)s)')
    group.add_argument('--channels', type=integer(1), default=8, help='channels of the stem (default %(default)s)')
    group.add_argument('--cells', type=integer(1), default=1, help='cells per stage, of three (default %(default)s)')
    group.add_argument('--batch-size', type=integer(1), default=100, help='images per step (default %(default)s)')
    group.add_argument('--lr', type=positive, default=0.05, help='initial learning rate (default %(default)s)')


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
        # 8x8 digits as they are saturate at 95 %: turned, shifted and noisy ones tell architectures apart. Several
        # drawings of each held-out image make its accuracy less noisy; no original is in two sets.
        parts = [
            (_warp(x.repeat(n, 1, 1, 1), resolution, generator), y.repeat(n))
            for (x, y), n in zip(parts, (1, 2, 4), strict=True)
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


def _warp(x: Tensor, resolution: int, generator: torch.Generator) -> Tensor:
    """Turn by up to 30 degrees, shift by up to 15 % of the image, add noise of half a standard deviation."""
    n = len(x)
    angle = (torch.rand(n, generator=generator) * 2 - 1) * math.pi / 6
    shift = (torch.rand(n, 2, generator=generator) * 2 - 1) * 0.3  # in half images
    rotation = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], 1).view(n, 2, 2)
    grid = F.affine_grid(
        torch.cat([rotation, shift[..., None]], 2), [n, 3, resolution, resolution], align_corners=False
    )
    noise = 0.5 * x.std() * torch.randn(n, 1, resolution, resolution, generator=generator)
    return F.grid_sample(x, grid, padding_mode='border', align_corners=False) + noise


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


@nni.trace
class Recipe(LightningModule):
    """Cross-entropy, Nesterov SGD, cosine learning rate over all steps; optionally flips and shifts (photographs)."""

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
        optimizer = torch.optim.SGD(self.parameters(), lr=self.lr, momentum=0.9, nesterov=True, weight_decay=5e-4)
        steps = int(self.trainer.estimated_stepping_batches)
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        return {'optimizer': optimizer, 'lr_scheduler': {'scheduler': scheduler, 'interval': 'step'}}

    def on_validation_epoch_end(self) -> None:
        if nni.get_current_parameter() is not None and not self.trainer.sanity_checking:
            nni.report_intermediate_result(self.trainer.callback_metrics['val_acc'].item())

    def on_fit_end(self) -> None:
        if nni.get_current_parameter() is not None:
            nni.report_final_result(self.trainer.callback_metrics['val_acc'].item())


def make_evaluator(
    data: Data, *, epochs: int, lr: float = 0.05, batch_size: int = 100, augment: bool = False, **trainer: object
) -> Lightning:
    """The evaluator of one training run; the other arguments are those of Lightning's trainer."""
    return Lightning(
        Recipe(lr, augment),
        Trainer(max_epochs=epochs, **trainer),
        train_dataloaders=DataLoader(data.train, batch_size, shuffle=True, drop_last=True),
        val_dataloaders=DataLoader(data.valid, 500),
    )


def train_alone(arch: str, seed: int, args: Namespace, data: Data, epochs: int) -> dict[str, float]:
    """Train one architecture from scratch; its ``valid_acc`` and ``test_acc`` in percent."""
    pl.seed_everything(seed, verbose=False)
    network = NasBench201.frozen_factory(nasbench201_sample(arch))(args.channels, args.cells, 10)
    evaluator = make_evaluator(
        data, epochs=epochs, lr=args.lr, batch_size=args.batch_size, augment=args.data != 'digits',
        accelerator=args.accelerator, devices=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, limit_val_batches=0, num_sanity_val_steps=0,
    )  # fmt: skip
    evaluator.module.on_fit_end = lambda: None  # nothing is reported to NNI
    evaluator.evaluate(network)
    network.eval()
    return {'valid_acc': _accuracy(network, data.valid), 'test_acc': _accuracy(network, data.test)}


@torch.no_grad()
def _accuracy(network: torch.nn.Module, images: TensorDataset) -> float:
    right = sum((network(x).argmax(1) == y).sum().item() for x, y in DataLoader(images, 500))
    return round(100 * right / len(images), 3)
