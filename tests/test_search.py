"""The search over the leaves: what it scores is what it lists, whatever strategy of NNI makes the samples."""

import nni.nas.nn.pytorch as nas
import pytest
from nni.nas.strategy import GridSearch
from torch import nn


class Digits(nas.ModelSpace):
    """A stem of three candidates and a body of three, for images of 8 x 8."""

    def __init__(self):
        super().__init__()
        self.stem = nas.LayerChoice([self.op(3, 1), self.op(3, 3), self.op(3, 5)], label='stem')
        self.body = nas.LayerChoice([self.op(4, 1), self.op(4, 3), nn.Identity()], label='body')
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 10))

    @staticmethod
    def op(channels: int, kernel: int) -> nn.Module:
        return nn.Sequential(nn.Conv2d(channels, 4, kernel, padding=kernel // 2), nn.BatchNorm2d(4), nn.ReLU())

    def forward(self, x):
        return self.head(self.body(self.stem(x)))


def keys(models) -> set[str]:
    return {repr(sorted(model.sample.items())) for model in models}


@pytest.mark.parametrize('shuffle', [False, True])
@pytest.mark.parametrize('budget, n', [(5, 5), (20, 9)])
def test_a_grid_search_lists_the_samples_that_it_scored(run, shuffle, budget, n):
    """NNI's grid writes one sample after another into one dict."""
    search = GridSearch(shuffle=shuffle, seed=0)
    strategy = run((), space=Digits(), epochs=1, search=search, search_budget=budget, monitor='val_loss', mode='min')
    models = list(strategy.list_models(limit=None))
    assert len(models) == len(keys(models)) == n
    losses = [metrics['val_loss'] for metrics in strategy.evaluate([model.sample for model in models])]
    assert losses == [-model.metric for model in models]
