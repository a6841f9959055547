"""The winner of a search, trained properly: what is trained, from which weights, and what a kill leaves."""

import json
import pickle
import re
import signal
import subprocess
import sys
from pathlib import Path

from nni_naslid import SubSpace, load_network

import numpy as np
import pandas as pd
import pytest
import pytorch_lightning as pl
import retrain
import torch
import torch.nn.functional as F
from nni.nas.hub.pytorch import NasBench201, ProxylessNAS
from PIL import Image
from recipe import Data, make_evaluator
from small import QUIET, brightened, same_weights
from test_examples import EXAMPLES, one_thread, start
from torch import nn
from torchvision.datasets import CIFAR100

SAMPLE = {
    'cell/0_1': 'conv_3x3', 'cell/0_2': 'skip_connect', 'cell/1_2': 'avg_pool_3x3', 'cell/0_3': 'none',
    'cell/1_3': 'conv_1x1', 'cell/2_3': 'conv_3x3',
}  # fmt: skip
HUB = 'nni.nas.hub.pytorch.NasBench201'
ARGUMENTS = {'stem_out_channels': 4, 'num_modules_per_stack': 1, 'num_labels': 10}
EXPORTED = {
    'space': {'className': HUB, 'classArgs': ARGUMENTS}, 'sample': SAMPLE, 'rebuild': 'freeze',
    'places': SubSpace.of(NasBench201(**ARGUMENTS)).encode(SAMPLE),
}  # fmt: skip


def write_folder(folder: Path, network: nn.Module | None = None, arguments: dict = ARGUMENTS, **architecture) -> Path:
    folder.mkdir()
    content = {**EXPORTED, 'space': {'className': HUB, 'classArgs': arguments}, **architecture}
    (folder / 'architecture.json').write_text(json.dumps(content))
    if network is not None:
        torch.save(network.state_dict(), folder / 'weights.pt')
    return folder


@pytest.fixture
def folder(tmp_path) -> Path:
    return write_folder(tmp_path / 'found', NasBench201.frozen_factory(SAMPLE)(**ARGUMENTS))


@pytest.fixture
def retrained(tmp_path, monkeypatch, digits):
    """Run the script on a few bright digits in this process, and return its folder."""
    few = Data(*map(brightened, digits))
    monkeypatch.setattr(retrain, 'load_data', lambda *_: few)

    def run(*options: object, output: str = 'out') -> Path:
        options = ['--epochs', 2, '--warmup-epochs', 1, '--batch-size', 40, *options, '--output', tmp_path / output]
        monkeypatch.setattr(sys, 'argv', ['retrain.py', *map(str, options)])
        retrain.main()
        return tmp_path / output

    return run


def accuracy(network: nn.Module, images) -> float:
    x, y = images.tensors
    with torch.no_grad():
        return (network.eval()(x).argmax(1) == y).float().mean().item()


def test_the_mean_of_the_weights_and_the_result(retrained, folder, digits, monkeypatch):
    """The mean is that of the formula after each step; the result is another folder of the same form."""
    steps = []

    class Weights(pl.Callback):
        def on_train_batch_end(self, trainer, pl_module, *_):
            steps.append({name: value.clone() for name, value in pl_module.network.named_parameters()})

    make_trainer = retrain.make_trainer

    def with_weights(args):
        trainer = make_trainer(args)
        trainer.callbacks.append(Weights())
        return trainer

    monkeypatch.setattr(retrain, 'make_trainer', with_weights)
    output = retrained(folder, '--ema', 0.7, '--lr', 0.02)
    assert len(steps) == 10
    mean = steps[0]
    for weights in steps[1:]:
        mean = {name: 0.7 * mean[name] + 0.3 * weights[name] for name in mean}
    network = load_network(output, NasBench201(**ARGUMENTS))
    for name, value in network.named_parameters():
        torch.testing.assert_close(value, mean[name])

    result = json.loads((output / 'result.json').read_text())
    test = brightened(digits.test)
    p, n, z = accuracy(network, test), len(test), 1.959964
    middle, half = (p + z**2 / (2 * n)) / (1 + z**2 / n), z * (p * (1 - p) / n + z**2 / (4 * n**2)) ** 0.5
    half /= 1 + z**2 / n
    assert result['EMA'] == pytest.approx({'top1': p, 'low': middle - half, 'high': middle + half}, abs=1e-5)
    network.load_state_dict(steps[-1], strict=False)
    checkpoint = torch.load(output / 'last.ckpt', weights_only=True)
    last = {name.removeprefix('network.'): value for name, value in checkpoint['current_model_state'].items()}
    assert same_weights({name: last[name] for name in steps[-1]}, steps[-1])
    network.load_state_dict(last)
    assert result['last']['top1'] == pytest.approx(accuracy(network, test))
    log = pd.read_csv(output / 'log.csv')
    assert log['epoch'].tolist() == [0, 1, 2]
    decays = {
        group['weight_decay']: sorted(group['params']) for group in checkpoint['optimizer_states'][0]['param_groups']
    }
    assert [len(decays[0.0]), len(decays[5e-4])] == [
        sum(value.ndim == 1 for value in steps[0].values()), sum(value.ndim > 1 for value in steps[0].values())
    ]  # fmt: skip


def test_the_teacher_is_learnt_from_by_the_formula():
    torch.manual_seed(0)
    network, teacher = nn.Linear(6, 4), nn.Linear(6, 4)
    options = {'label_smoothing': 0.2, 'mixup': 0, 'cutmix': 0, 'seed': 0, 'distill': 0.3, 'temperature': 2.0}
    args = retrain.Namespace(**options)
    x, y = torch.randn(5, 6), torch.tensor([0, 1, 2, 3, 0])
    loss = retrain.Training(args, network, 4, teacher).training_step((x, y), 0)
    smooth = 0.8 * F.one_hot(y, 4) + 0.2 / 4
    labels = -(smooth * network(x).log_softmax(1)).sum(1).mean()
    p, q = (teacher(x) / 2).softmax(1), (network(x) / 2).softmax(1)
    torch.testing.assert_close(loss, 0.7 * labels + 0.3 * 4 * (p * (p / q).log()).sum(1).mean())
    loss.backward()
    assert teacher.weight.grad is None
    assert len(list(retrain.Training(args, network, 4, teacher).parameters())) == 2


@pytest.mark.parametrize(
    'options, match',
    [
        (['nothing'], "No such file or directory: 'nothing/architecture.json'"),
        ([], 'name a folder that has architecture.json, or --space'),
        (['empty', '--init', 'inherited'], "No such file or directory: 'empty/weights.pt'"),
        (['--space', 'nni.nas.hub.pytorch.NasBench202'], 'space: nni.nas.hub.pytorch.NasBench202 cannot be imported'),
        (['--space', 'NasBench201'], 'space: NasBench201 cannot be imported'),
        (['--space', HUB], r'NasBench201 has choices: name a folder that has architecture\.json\.'),
        (['yours'], r'yours/architecture.json: the class of the space is torch.nn.Linear; to import it'),
        (['local'], 'local/architecture.json: the class of the space is not known; to import it, name it by --space'),
        (['copy'], 'copy holds a network that cannot be made of its space: None is none of freeze, '),
        (['other', '--init', 'inherited'], 'other holds weights of another space than NasBench201: .*size mismatch'),
        (['text', '--init', 'inherited'], r'text/weights.pt is damaged, or not of an exported network\.'),
        (['found', '--output', './found'], r'--output ./found would replace the network that is read there'),
        (['found', '--teacher', 'other', '--output', 'other/'], r'--output other/ would replace the network'),
        (['list'], r'list/architecture.json is not of an exported network\.'),
        (['classes'], r'the output for two images must be of shape \[2, 10\], as the classes, but is \[2, 7\]'),
        (['yours', '--space', 'torch.nn.Linear'], r'the network cannot take images of shape \[3, 8, 8\]'),
        (['found', '--data', 'cifar10', '--root', 'gone'], r'gone has no cifar-10-batches-py: unpack https:.* there'),
        (['found', '--data', 'folder', '--root', 'gone'], 'gone/train'),
        (['found', '--batch-size', '300'], '--batch-size must be at most 200, the training images, but is 300'),
        (['found', '--warmup-epochs', '20'], '--warmup-epochs must be below --epochs 20, but is 20'),
        (['found', '--randaugment', '9'], '--randaugment is for photographs, not for digits'),
        (['found', '--ema', '1.5'], '--ema: must be a number from 0 to 1, but is 1.5'),
        (['found', '--mixup', '-1'], '--mixup: must be a number of at least 0, but is -1'),
        (['found', '--teacher', 'nothing'], "No such file or directory: 'nothing/architecture.json'"),
        (['found', '--accelerator', 'abacus'], '--accelerator abacus'),
        (['found', '--precision', '17'], r"Precision '17' is invalid"),
    ],
    ids=lambda value: ' '.join(value) if isinstance(value, list) else None,
)  # fmt: skip
def test_what_cannot_work_is_one_line(options, match, folder, tmp_path, monkeypatch, digits, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(retrain, 'load_data', lambda *_: digits)
    write_folder(Path('empty'))
    write_folder(Path('other'), NasBench201.frozen_factory(SAMPLE)(8, 1, 10))
    write_folder(Path('text'))
    Path('text/weights.pt').write_text('weights')
    write_folder(Path('list'))
    Path('list/architecture.json').write_text('[]')
    write_folder(Path('classes'), arguments={**ARGUMENTS, 'num_labels': 7})
    linear = {'className': 'torch.nn.Linear', 'classArgs': {'in_features': 5, 'out_features': 10}}
    write_folder(Path('yours'), space=linear)
    write_folder(Path('local'), space=None)
    write_folder(Path('copy'), rebuild=None)
    monkeypatch.setattr(sys, 'argv', ['retrain.py', *options])
    with pytest.raises(SystemExit) as ended:
        retrain.main()
    assert ended.value.code == 2
    usage, error = capsys.readouterr().err.splitlines()
    assert usage.startswith('usage: ')
    assert re.search(match, error), error
    assert not Path('runs').exists()


@pytest.mark.slow
def test_a_network_that_nni_makes_by_freezing_is_made_so(tmp_path):
    """NNI's two ways give ProxylessNAS other batch norms: only what the export names computes what was trained."""
    space = ProxylessNAS(num_labels=10, base_widths=(8,) * 9)
    whole = SubSpace.of(space)
    sample = whole.sample(np.random.RandomState(0))
    network = space.freeze(sample).eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_var.fill_(0.01)  # a small one, so that it matters what is added
    spec = {'className': 'nni.nas.hub.pytorch.ProxylessNAS', 'classArgs': {'num_labels': 10, 'base_widths': (8,) * 9}}
    known = {'space': spec, 'sample': sample, 'places': whole.encode(sample), 'rebuild': 'freeze'}
    folder = write_folder(tmp_path / 'found', network, **known)
    architecture = retrain.read_architecture(folder, retrain.Namespace(space=None, arguments={}))
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(retrain.make_network(architecture, folder, weights=True)(images), network(images))
    other = write_folder(tmp_path / 'other', network, **{**known, 'rebuild': 'model_context'})
    made = retrain.make_network(architecture, other, weights=True)
    assert not torch.allclose(made(images), network(images))
    made = retrain.make_network(architecture, folder, weights=False)
    assert not torch.allclose(made(images), network(images))


def test_a_finished_training_is_not_done_again(retrained, folder, capsys):
    options = ['--epochs', 1, '--warmup-epochs', 0]
    result = (retrained(folder, *options) / 'result.json').read_bytes()
    assert 'epoch 1,' in capsys.readouterr().out
    assert (retrained(folder, *options) / 'result.json').read_bytes() == result
    assert 'epoch 1,' not in capsys.readouterr().out
    with pytest.raises(SystemExit):
        retrained(folder, *options, '--lr', 0.3)
    assert 'holds a training with lr 0.2 (now 0.3); name another --output.' in capsys.readouterr().err
    sample = {**SAMPLE, 'cell/0_3': 'conv_1x1'}
    write_folder(folder.parent / 'other', sample=sample, places=SubSpace.of(NasBench201(**ARGUMENTS)).encode(sample))
    with pytest.raises(SystemExit):
        retrained(folder.parent / 'other', *options)
    assert 'holds a training with sample ' in capsys.readouterr().err


@pytest.mark.slow
def test_a_network_starts_with_what_it_inherits(naslid, nasbench201, digits, retrained, tmp_path):
    """What is measured before training is what the supernet's path has been scored with."""
    evaluator = make_evaluator(Data(*map(brightened, digits)), epochs=5, batch_size=40, **QUIET)
    strategy = naslid((), search_budget=5).fit(nasbench201(), evaluator)
    model = next(strategy.list_models())
    assert model.metric > 0.3
    (found,) = strategy.export(tmp_path / 'found')
    log = pd.read_csv(retrained(found, '--init', 'inherited') / 'log.csv')
    assert log['val_acc'][0] == pytest.approx(model.metric)
    assert pd.read_csv(retrained(found, output='scratch') / 'log.csv')['val_acc'][0] < 0.2


def write_photos(root: Path) -> Path:
    """Images of another shape than networks take; their colour tells their class."""
    rng = np.random.RandomState(0)
    for part, n in (('train', 40), ('val', 20)):
        for name, channel in (('red', 0), ('blue', 2)):
            folder = root / part / name
            folder.mkdir(parents=True)
            for i in range(n):
                pixels = rng.randint(0, 60, (40, 50, 3), dtype=np.uint8)
                pixels[..., channel] += 150
                Image.fromarray(pixels).save(folder / f'{i}.png')
    return root


@pytest.mark.slow
@pytest.mark.parametrize('kind', ['digits', 'photographs'])
def test_a_killed_training_ends_as_an_undisturbed_one(kind, tmp_path):
    """Same log and weights, bit for bit: with the mean of the weights, and with all that is random, also in workers."""
    options = '--mixup 0.2 --cutmix 1 --batch-size 1000'
    if kind == 'photographs':
        options = (
            f'--data folder --root {write_photos(tmp_path / "photos")} --image-size 32 --batch-size 16 --workers 2'
        )
        options += ' --randaugment 9'
    write_folder(tmp_path / 'found', arguments={**ARGUMENTS, 'num_labels': 10 if kind == 'digits' else 2})
    options = ['found', *options.split(), '--epochs', '4', '--output']
    done = start('retrain.py', *options, 'whole', cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    command = [sys.executable, str(EXAMPLES / 'retrain.py'), *options, 'killed']
    with subprocess.Popen(command, cwd=tmp_path, env=one_thread(), stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            if line.startswith('epoch 3'):  # its checkpoint is not there yet
                process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert not (tmp_path / 'killed' / 'weights.pt').exists()
    done = start('retrain.py', *options, 'killed', cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert 'epoch 1,' not in done.stdout
    for name in ('log.csv', 'result.json'):
        assert (tmp_path / 'killed' / name).read_bytes() == (tmp_path / 'whole' / name).read_bytes()
    for key in ('state_dict', 'current_model_state'):
        states = [torch.load(tmp_path / each / 'last.ckpt', weights_only=True)[key] for each in ('killed', 'whole')]
        assert same_weights(*states)


@pytest.mark.slow
def test_photographs_in_folders_with_a_teacher(retrained, tmp_path):
    """A network of torchvision teaches one of a space."""
    root = write_photos(tmp_path / 'photos')
    data = ['--data', 'folder', '--root', root, '--image-size', 32, '--epochs', 6, '--batch-size', 16]
    arguments = json.dumps({'num_classes': 2})
    teacher = retrained('--space', 'torchvision.models.shufflenet_v2_x0_5', '--arguments', arguments, *data, output='t')
    write_folder(tmp_path / 'found', arguments={**ARGUMENTS, 'num_labels': 2})
    options = ['--randaugment', 5, '--mixup', 0.2, '--cutmix', 1, '--teacher', teacher, '--lr', 0.05, '--ema', 0.5]
    output = retrained(tmp_path / 'found', *data, *options)
    assert json.loads((output / 'result.json').read_text())['EMA']['top1'] > 0.9


@pytest.mark.slow
def test_cifar_that_is_there(retrained, tmp_path, monkeypatch):
    monkeypatch.setattr(CIFAR100, '_check_integrity', lambda self: True)  # of the true files
    folder = tmp_path / CIFAR100.base_folder
    folder.mkdir()
    rng = np.random.RandomState(0)
    for name in ('train', 'test'):
        content = {'data': rng.randint(0, 256, (60, 3072), dtype=np.uint8), 'fine_labels': rng.randint(0, 100, 60)}
        (folder / name).write_bytes(pickle.dumps(content))
    (folder / 'meta').write_bytes(pickle.dumps({'fine_label_names': [str(i) for i in range(100)]}))
    monkeypatch.setattr(CIFAR100, 'meta', {**CIFAR100.meta, 'md5': None})
    write_folder(tmp_path / 'found', arguments={**ARGUMENTS, 'num_labels': 100})
    output = retrained(tmp_path / 'found', '--data', 'cifar100', '--root', tmp_path, '--randaugment', 9)
    assert json.loads((output / 'result.json').read_text())['EMA']['top1'] < 0.2
