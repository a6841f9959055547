"""What only a GPU shows: whole runs there. Skipped where there is none; the kernels have kernel_cases.py."""

from nni_naslid import LID, NASLID, Bands, Gradient, RandomSplit, ZeroCost

import pytest
import torch
from nni.nas.experiment import NasExperiment
from small import Convs, Plain, images, make_evaluator, seed_all
from test_resume import epochs, kill_when, outcome, repeats, start

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')

CRITERIA = {
    'lid': LID(repeats=8, n_neighbors=5, min_contrast=0),
    'two_nn': LID(repeats=8, estimator='two_nn', min_contrast=0),
    'gradient': Gradient(repeats=8, min_contrast=0),
    'zero_cost': ZeroCost('naswot', repeats=8, min_contrast=0),
    'bands of lid': Bands({'parameters': 1, 'lid': 0.5}, max_groups=2),
    'random': RandomSplit(),
}


def run(workdir, criterion, accelerator='gpu', precision='32-true', **settings):
    seed_all()
    settings = {'criterion': criterion, 'search_budget': 4, 'calibration_batches': 1, 'workdir': workdir, **settings}
    strategy = NASLID([1], **settings)
    experiment = NasExperiment(Convs(), make_evaluator(accelerator=accelerator, precision=precision), strategy)
    assert experiment.run()
    experiment.stop()
    return strategy


@pytest.mark.parametrize('precision', ['32-true', 'bf16-mixed', '16-mixed'])
@pytest.mark.parametrize('name', CRITERIA)
def test_a_run(name, precision, tmp_path):
    """It trains, looks for a split, and searches; its weights end on the CPU."""
    strategy = run(tmp_path / 'run', CRITERIA[name], precision=precision)
    assert strategy.tree.split is not None
    samples = [model.sample for model in strategy.list_models()]
    losses = [metrics['val_loss'] for metrics in strategy.evaluate(samples)]
    assert all(0 < loss < 10 for loss in losses)
    for leaf in strategy.leaves:
        strategy.load(leaf)
        assert all(weight.device.type == 'cpu' and weight.isfinite().all() for weight in strategy.supernet.parameters())


@pytest.mark.parametrize('momentum_bands', [1, 2])
def test_training_on_a_gpu_is_training_on_the_cpu(tmp_path, momentum_bands):
    """The same draws, so up to rounding the same losses; the children go on from all momenta of the root."""
    losses = []
    for accelerator in ('cpu', 'gpu'):
        strategy = run(tmp_path / accelerator, RandomSplit(), accelerator, momentum_bands=momentum_bands)
        samples = [{'stem': stem, 'body': body} for stem in range(3) for body in range(3)]
        losses.append(torch.tensor([metrics['val_loss'] for metrics in strategy.evaluate(samples)]))
    torch.testing.assert_close(*losses, rtol=0.02, atol=0)


def test_data_on_the_gpu(tmp_path):
    """Batches that are there already."""

    class OnGpu(Plain):
        def loss(self, batch):
            self.seen.append(batch[0].device.type)
            return super().loss(batch)

    data = images()
    data.tensors = tuple(tensor.cuda() for tensor in data.tensors)
    loader = torch.utils.data.DataLoader(data, 24, shuffle=True)
    seed_all()
    strategy = NASLID([1], criterion=CRITERIA['lid'], search_budget=4, workdir=tmp_path / 'run')
    evaluator = make_evaluator(OnGpu(), train=loader, accelerator='gpu')
    assert NasExperiment(Convs(), evaluator, strategy).run()
    assert set(OnGpu.seen) == {'cuda'}


def test_a_run_that_is_killed_on_a_gpu(tmp_path):
    """In training, and in profiling; it goes on where it was."""
    undisturbed, killed = tmp_path / 'undisturbed', tmp_path / 'killed'
    assert start(undisturbed, '--accelerator', 'gpu').wait() == 0, undisturbed.with_suffix('.log').read_text()
    kill_when(start(killed, '--accelerator', 'gpu'), lambda: epochs(killed, 'node-0-to-3'))
    kill_when(start(killed, '--accelerator', 'gpu'), lambda: len(repeats(killed)) >= 3)
    assert start(killed, '--accelerator', 'gpu').wait() == 0, killed.with_suffix('.log').read_text()
    one, other = outcome(undisturbed), outcome(killed)
    assert [node['name'] for node in one['tree']['nodes']] == [node['name'] for node in other['tree']['nodes']]
    for name, weights in one['weights'].items():
        for key, value in weights.items():
            torch.testing.assert_close(value, other['weights'][name][key], rtol=1e-3, atol=1e-4, msg=f'{name} {key}')
