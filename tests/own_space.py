"""A space of a user's own with each kind of choice that NNI has, and a constraint between two of them."""

import nni.nas.nn.pytorch as nas
from nni.mutable import Categorical, ExpressionConstraint
from torch import nn


# A cell keeps what makes its operations: functions at the top of a module, so that a network of it can be pickled.
def conv(*_) -> nn.Module:
    return nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8))


def pool(*_) -> nn.Module:
    return nn.MaxPool2d(3, 1, 1)


def skip(*_) -> nn.Module:
    return nn.Identity()


class Everything(nas.ModelSpace):
    """Widths, kernels, a depth, layers, one input and several, a cell; for images of four classes."""

    def __init__(self):
        super().__init__()
        width, kernel = Categorical([4, 6, 8], label='width'), Categorical([1, 3], label='kernel')
        depth = Categorical([1, 2, 3], label='depth')

        def block(i: int) -> nn.Module:
            return nn.Sequential(
                nas.MutableConv2d(width, width, kernel, padding=kernel // 2, bias=False),
                nas.MutableBatchNorm2d(width),
                nas.LayerChoice({'relu': nn.ReLU(), 'swish': nn.Hardswish()}, label=f'activation{i}'),
            )

        self.stem = nn.Sequential(nas.MutableConv2d(3, width, 3, padding=1, bias=False), nas.MutableBatchNorm2d(width))
        self.blocks = nas.Repeat(block, depth)
        self.several = nas.InputChoice(3, 2, label='several')
        self.head = nn.Sequential(nas.MutableConv2d(width, 8, 1), nn.BatchNorm2d(8))
        self.cell = nas.Cell(
            {'conv': conv, 'pool': pool, 'skip': skip},
            num_nodes=2, num_ops_per_node=1, num_predecessors=1, label='cell',
        )  # fmt: skip
        self.one = nas.InputChoice(2, 1, label='one')
        self.classifier = nn.Linear(16, 4)
        self.add_mutable(ExpressionConstraint(width * depth <= 18, label='budget'))

    def forward(self, x):
        first = self.stem(x)
        deep = self.blocks(first)
        x = self.head(self.several([first, deep, first + deep]))
        x = self.cell(x)
        return self.classifier(self.one([x.mean((2, 3)), x.amax((2, 3))]))
