"""The recurrent cell of DARTS as a model space of a user's own, and characters of the Zen of Python to predict."""

import codecs
import io
from contextlib import redirect_stdout

import torch
import torch.nn.functional as F
from nni.nas.evaluator.pytorch import DataLoader
from nni.nas.nn.pytorch import InputChoice, LayerChoice, ModelSpace
from small import Plain
from torch import Tensor, nn
from torch.utils.data import TensorDataset

with redirect_stdout(io.StringIO()):  # it prints itself
    import this

TEXT = codecs.decode(this.s, 'rot13')
CHARACTERS = sorted(set(TEXT))
ACTIVATIONS = {'tanh': nn.Tanh, 'relu': nn.ReLU, 'sigmoid': nn.Sigmoid, 'identity': nn.Identity}


class Cell(nn.Module):
    """Nodes that come from one node before, by an activation and a gate; the output is their mean.

    As in https://arxiv.org/abs/1806.09055: all choices are read anew in each step of time.
    """

    def __init__(self, width: int, n_nodes: int):
        super().__init__()
        self.first = nn.Linear(2 * width, 2 * width, bias=False)
        self.weights = nn.ModuleList(nn.Linear(width, 2 * width, bias=False) for _ in range(n_nodes))
        self.inputs = nn.ModuleList(InputChoice(i + 1, 1, label=f'input{i}') for i in range(n_nodes))
        self.activations = nn.ModuleList(
            LayerChoice({name: make() for name, make in ACTIVATIONS.items()}, label=f'activation{i}')
            for i in range(n_nodes)
        )

    def forward(self, x: Tensor, hidden: Tensor) -> Tensor:
        gate, new = self.first(torch.cat([x, hidden], 1)).chunk(2, 1)
        states = [hidden + gate.sigmoid() * (new.tanh() - hidden)]
        for weight, choice, activation in zip(self.weights, self.inputs, self.activations, strict=True):
            source = choice(states)
            gate, new = weight(source).chunk(2, 1)
            states.append(source + gate.sigmoid() * (activation(new) - source))
        return torch.stack(states[1:]).mean(0)


class Recurrent(ModelSpace):
    """Logits of the next characters, of shape ``[B, V, T]``."""

    def __init__(self, width: int = 12, n_nodes: int = 4):
        super().__init__()
        self.embedding = nn.Embedding(len(CHARACTERS), width)
        self.cell = Cell(width, n_nodes)
        self.decoder = nn.Linear(width, len(CHARACTERS))

    def forward(self, characters: Tensor) -> Tensor:
        x = self.embedding(characters)
        hidden, outputs = torch.zeros_like(x[:, 0]), []
        for t in range(x.shape[1]):
            hidden = self.cell(x[:, t], hidden)
            outputs.append(hidden)
        return self.decoder(torch.stack(outputs, 1)).transpose(1, 2)


def texts(n_steps: int = 7) -> TensorDataset:
    """All pieces of the text, each with the characters that come next."""
    codes = torch.tensor([CHARACTERS.index(character) for character in TEXT])
    pieces = codes.unfold(0, n_steps + 1, 1)
    return TensorDataset(pieces[:, :-1].contiguous(), pieces[:, 1:].contiguous())


class NextCharacter(Plain):
    """A language model; the loss in validation is that of the last character."""

    def loss(self, batch):
        return F.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        logits = self(batch[0])
        self.log('val_loss', F.cross_entropy(logits[:, :, -1], batch[1][:, -1]))
        self.log('val_acc', (logits.argmax(1) == batch[1]).float().mean())


def loaders(batch_size: int = 64) -> tuple[DataLoader, DataLoader]:
    """For training and validation."""
    data = texts()
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(0))
    parts = [TensorDataset(*(tensor[some] for tensor in data.tensors)) for some in order.split([640, len(data) - 640])]
    return DataLoader(parts[0], batch_size, shuffle=True), DataLoader(parts[1], batch_size)
