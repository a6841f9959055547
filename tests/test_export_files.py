"""Exported files: what NNI or onnxruntime alone make of them is the network that was ranked."""

import json
import shutil
import sys
from pathlib import Path

from nni_naslid import SubSpace, load_network
from nni_naslid.cli import main
from nni_naslid.run.files import read_json, write_json
from nni_naslid.search import to_onnx

import finished_project
import nni
import nni.nas.nn.pytorch as nas
import pytest
import torch
import torch.nn.functional as F
from finished_project import some_digits, space
from nni.nas.hub.pytorch import DARTS, AutoFormer, NASNet
from small import Plain, brightened
from small import make_evaluator as make_small
from test_cli import command, content_of
from test_export import Widths
from test_search import Deep, Images, op, small_mobilenet
from torch import nn

NAMED = '--space', 'finished_project.space', '--evaluator', 'finished_project.evaluator'


@pytest.fixture(autouse=True)
def _importable(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent))


def read(folder: Path) -> dict:
    return json.loads((folder / 'architecture.json').read_text())


def with_weights(folder: Path) -> nn.Module:
    """The network, by what NNI and PyTorch have."""
    network = space().freeze(read(folder)['sample'])
    network.load_state_dict(torch.load(folder / 'weights.pt', weights_only=True))
    return network.eval()


def validation() -> tuple[torch.Tensor, torch.Tensor]:
    return brightened(some_digits().valid).tensors


def test_nni_and_torch_alone_have_the_networks_that_were_ranked(finished_run, tmp_path, capsys):
    before = content_of(finished_run)
    assert main(['export', str(finished_run), *NAMED, '--top', '3', '--out', str(tmp_path / 'out')]) == 0
    assert content_of(finished_run) == before
    found = read_json(finished_run / 'search.json', ())['found']
    images, labels = validation()
    lines = capsys.readouterr().out.splitlines()
    assert {path.name for path in (tmp_path / 'out').iterdir()} == {'1', '2', '3'}
    for rank in (1, 2, 3):
        folder = tmp_path / 'out' / str(rank)
        assert {path.name for path in folder.iterdir()} == {'architecture.json', 'weights.pt'}
        content, network = read(folder), with_weights(folder)
        assert (content['sample'], content['score']) == (found[rank - 1]['choices'], found[rank - 1]['score'])
        with torch.no_grad():
            logits = network(images)
        # To rounding: Lightning takes the mean of means.
        assert F.cross_entropy(logits, labels).item() == pytest.approx(-content['score'], rel=1e-5)
        assert (logits.argmax(1) == labels).float().mean().item() == pytest.approx(content['metrics']['val_acc'])
        n = sum(parameter.numel() for parameter in network.parameters())
        assert content['costs']['parameters'] == n
        assert content['inputs'] == [{'shape': [3, 8, 8], 'dtype': 'float32'}]
        assert content['space'] == {
            'className': 'nni.nas.hub.pytorch.nasbench201.NasBench201',
            'classArgs': {'stem_out_channels': 4, 'num_modules_per_stack': 1, 'num_labels': 10},
        }
        assert lines[rank - 1].startswith(f'{folder}: val_loss {content["metrics"]["val_loss"]:.4f}, {n:,} parameters')
        assert torch.equal(load_network(folder, space())(images), network(images))


@pytest.mark.slow
def test_from_python_and_from_the_command_line_are_the_same(run, evaluator, tmp_path, monkeypatch):
    """By default they are in the work folder; what is there of the same network is replaced, other files stay."""
    strategy = run((1,), epochs=2, search_budget=3)
    folders = strategy.export(top=2)
    assert folders == [tmp_path / 'export' / '1', tmp_path / 'export' / '2']
    monkeypatch.setattr(finished_project, 'plain_evaluator', lambda: evaluator(2), raising=False)
    weights = [torch.load(folder / 'weights.pt', weights_only=True) for folder in folders]
    for folder, model in zip(folders, strategy.list_models(limit=2), strict=True):
        images = torch.randn(3, 3, 8, 8)
        assert torch.equal(load_network(folder, space())(images), model.executable_model()(images))
        (folder / 'notes.txt').write_text('mine')
        (folder / 'weights.pt').write_bytes(b'damaged')
    told = [read(folder) for folder in folders]
    models = [model.sample for model in strategy.list_models(limit=2)]
    assert [content['costs'] for content in told] == strategy.costs(models, ['parameters', 'flops'])
    assert [content['metrics'] for content in told] == strategy.evaluate(models)
    named = ['--space', 'finished_project.space', '--evaluator', 'finished_project.plain_evaluator', '--top', '2']
    assert main(['export', str(tmp_path), *named]) == 0
    for folder, before, content in zip(folders, weights, told, strict=True):
        again = torch.load(folder / 'weights.pt', weights_only=True)
        assert all(torch.equal(again[name], before[name]) for name in before)
        assert read(folder) == content
        assert (folder / 'notes.txt').read_text() == 'mine'


class Strides(Images):
    """Choices that JSON does not keep as they are: tuples, and two of three inputs."""

    def __init__(self, channels=4):
        stride, width = nni.choice('stride', [(1, 2), (2, 1)]), nni.choice('width', [4, 8])
        super().__init__(nas.MutableConv2d(3, width, kernel_size=3, stride=stride, padding=1), nn.Identity(), channels)
        self.body = nas.MutableConv2d(width, channels, kernel_size=1)
        self.choice = nas.InputChoice(3, 2, label='input')

    def forward(self, x):
        x = self.body(self.stem(x))
        return self.head(self.choice([x, x.relu(), x.tanh()]))


@pytest.mark.parametrize(
    'make, way',
    [
        (Strides, 'freeze'),
        pytest.param(Widths, 'freeze', marks=pytest.mark.slow),
        pytest.param(Deep, 'freeze', marks=pytest.mark.slow),
        pytest.param(small_mobilenet, 'freeze', marks=pytest.mark.slow),
        pytest.param(lambda: DARTS(width=4, num_cells=3, dataset='cifar'), 'freeze', marks=pytest.mark.slow),
        pytest.param(lambda: NASNet(width=4, num_cells=3, dataset='cifar'), 'path_network', marks=pytest.mark.slow),
    ],
)
def test_a_network_is_loaded_into_its_space_made_anew(run, make, way):
    """NNI's MobileNetV3 has other eps of batch norms, and maybe other skips, by `model_context`."""
    strategy = run((), space=make(), epochs=1, search_budget=3)
    images = torch.randn(3, 3, 8, 8)
    for folder, model in zip(strategy.export(top=3), strategy.list_models(limit=3), strict=True):
        content = read(folder)
        assert content['rebuild'] == way
        assert SubSpace.of(make()).decode(content['places']) == model.sample
        expected = model.executable_model()
        network = load_network(folder, make())
        assert torch.equal(network(images), expected(images))
        n = sum(parameter.numel() for parameter in expected.parameters())
        assert content['costs']['parameters'] == sum(parameter.numel() for parameter in network.parameters()) == n
        assert not network.training


def test_a_space_that_is_another_one_is_told(run):
    (folder,) = run((), space=Strides(), epochs=1, search_budget=1).export()
    with pytest.raises(ValueError, match=r'holds a network of another space than this Deep: it is '):
        load_network(folder, Deep())
    with pytest.raises(TypeError, match='must be a model space, made with the arguments of the search, but is <class'):
        load_network(folder, Strides)
    with pytest.raises(
        ValueError, match=r'holds weights of another space than Strides: .*size mismatch for body\.weight'
    ):
        load_network(folder, Strides(2))
    with pytest.raises(FileNotFoundError, match=r'architecture\.json is not there'):
        load_network(folder.parent, Strides())
    (folder / 'weights.pt').write_bytes(b'damaged')
    with pytest.raises(ValueError, match=r'weights\.pt is damaged, or not of an exported network\.'):
        load_network(folder, Strides())
    assert not load_network(folder, Strides(), weights=False).training


def test_no_code_is_imported_that_a_folder_names(finished_run, tmp_path, capsys):
    assert main(['export', str(finished_run), *NAMED, '--out', str(tmp_path)]) == 0
    (tmp_path / 'evil.py').write_text('raise SystemExit("imported")')
    sys.path.insert(0, str(tmp_path))
    try:
        content = read(tmp_path / '1')
        content['space']['className'] = 'evil.Space'
        (tmp_path / '1' / 'architecture.json').write_text(json.dumps(content))
        load_network(tmp_path / '1', space())
        workdir = tmp_path / 'run'
        shutil.copytree(finished_run, workdir)
        tree = read_json(workdir / 'tree.json', ())
        tree['criterion']['criterion'] = 'evil.Criterion'
        tree['settings']['constraints'] = {'cost': [None, 1, 'evil.cost']}
        write_json(workdir / 'tree.json', tree)
        assert main(['export', str(workdir), *NAMED]) == 0
    finally:
        sys.path.remove(str(tmp_path))
    assert 'evil' not in sys.modules


def test_the_yaml_of_an_experiment_names_space_and_evaluator(finished_run, tmp_path):
    (tmp_path / 'code').mkdir()
    shutil.copy(finished_project.__file__, tmp_path / 'code' / 'moved_project.py')
    file = tmp_path / 'experiment.yml'
    file.write_text(
        'trialCodeDirectory: code\n'
        'tuner:\n'
        '  className: nni_naslid.tuner.NASLIDTuner\n'
        '  classArgs:\n'
        '    space: {className: nni.nas.hub.pytorch.NasBench201, classArgs: {stem_out_channels: 4, '
        'num_modules_per_stack: 1, num_labels: 10}}\n'
        '    evaluator: {className: moved_project.evaluator}\n'
    )
    path = list(sys.path)
    try:
        assert main(['export', str(finished_run), '--yaml', str(file), '--out', str(tmp_path / 'out')]) == 0
    finally:
        sys.path[:] = path
    assert read(tmp_path / 'out' / '1')['sample'] == read_json(finished_run / 'search.json', ())['found'][0]['choices']


@pytest.mark.slow
def test_networks_within_constraints_are_not_scored_again(small, tmp_path, monkeypatch):
    """Their places in the file are among all choices, though the run has fewer."""
    from small import Convs, make_evaluator

    small(split_epochs=(), constraints={'parameters': (None, 700)})
    scores = (tmp_path / 'scores.jsonl').read_bytes()
    monkeypatch.setattr(finished_project, 'small_space', Convs, raising=False)
    monkeypatch.setattr(finished_project, 'small_evaluator', make_evaluator, raising=False)
    named = ['--space', 'finished_project.small_space', '--evaluator', 'finished_project.small_evaluator']
    assert main(['export', str(tmp_path), *named, '--top', '2']) == 0
    assert (tmp_path / 'scores.jsonl').read_bytes() == scores
    for folder in (tmp_path / 'export').iterdir():
        content = read(folder)
        assert SubSpace.of(Convs()).decode(content['places']) == content['sample']
        assert content['costs']['parameters'] <= 700
        load_network(folder, Convs())


def test_modules_that_nni_has_no_supernet_of_are_known_to_the_command_line(small, tmp_path, monkeypatch):
    from test_nasbench101 import small_nasbench101

    strategy = small(split_epochs=(), space=lambda: small_nasbench101(n_nodes=4), search_budget=3)
    monkeypatch.setattr(finished_project, 'space101', lambda: small_nasbench101(n_nodes=4), raising=False)
    monkeypatch.setattr(finished_project, 'small_evaluator', make_small, raising=False)
    assert main(['export', str(tmp_path), *named('space101', 'small_evaluator')]) == 0
    images = torch.randn(3, 3, 8, 8)
    network = load_network(tmp_path / 'export' / '1', small_nasbench101(n_nodes=4))
    assert torch.equal(network(images), next(strategy.list_models()).executable_model()(images))


@pytest.mark.slow
def test_onnx_is_the_same_network_for_any_number_of_images(finished_run, tmp_path):
    runtime = pytest.importorskip('onnxruntime', reason="onnxruntime is not installed: pip install -e '.[onnx]'")
    printed = command('export', finished_run, *NAMED, '--onnx', '--out', tmp_path, cwd=Path(__file__).parent).stdout
    assert printed.splitlines()[1].startswith(f'{tmp_path / "1" / "model.onnx"}: onnxruntime differs by ')
    session = runtime.InferenceSession(str(tmp_path / '1' / 'model.onnx'))
    network = with_weights(tmp_path / '1')
    images, _ = validation()
    for n in (1, 7, 100):
        (found,) = session.run(['output'], {'input': images[:n].numpy()})
        with torch.no_grad():
            torch.testing.assert_close(torch.as_tensor(found), network(images[:n]), rtol=1e-4, atol=1e-4)


class Undefined(Plain):
    """Logs what is not defined, beside the loss."""

    def validation_step(self, batch, batch_idx):
        super().validation_step(batch, batch_idx)
        self.log('val_auc', float('nan'))


@pytest.mark.slow
def test_what_is_not_a_number_is_null(small):
    (folder,) = small(make_small(Undefined()), split_epochs=()).export()
    content = json.loads((folder / 'architecture.json').read_text(), parse_constant=pytest.fail)
    assert content['metrics'] == {'val_loss': -content['score'], 'val_auc': None}


def small_autoformer() -> AutoFormer:
    return AutoFormer(
        search_embed_dim=(16, 24), search_mlp_ratio=(1.0, 2.0), search_num_heads=(1, 2), search_depth=(1, 2),
        img_size=8, patch_size=4, num_labels=10,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize('make', [small_autoformer, small_mobilenet])
def test_attention_and_squeeze_and_excitation_are_had_as_onnx(run, make):
    """What onnxruntime returns was compared with the network for 1, 2 and 5 images."""
    pytest.importorskip('onnxruntime', reason="onnxruntime is not installed: pip install -e '.[onnx]'")
    (folder,) = run((), space=make(), epochs=1, search_budget=1).export(onnx=True)
    assert (folder / 'model.onnx').is_file()


class Branching(Images):
    """What it computes depends on the numbers that it gets, which no ONNX file of it does."""

    def __init__(self):
        super().__init__(nas.LayerChoice([op(3, 1), op(3, 3)], label='stem'), nn.Identity())

    def forward(self, x):
        return super().forward(-x if x.sum().item() > 0 else x)


@pytest.mark.slow
def test_what_cannot_be_had_as_onnx_is_told_and_the_rest_is_there(run):
    pytest.importorskip('onnxruntime', reason="onnxruntime is not installed: pip install -e '.[onnx]'")
    strategy = run((), space=Branching(), epochs=1, search_budget=2)
    with pytest.raises(ValueError, match=r'^Not written: \S+/1/model\.onnx \(.+\); \S+/2/model\.onnx \(.+files are\.$'):
        strategy.export(top=2, onnx=True)
    for folder in (strategy.workdir / 'export').iterdir():
        assert {path.name for path in folder.iterdir()} == {'architecture.json', 'weights.pt'}
        load_network(folder, Branching())


def test_a_package_that_is_missing_is_told_before_anything_is_written(finished_run, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(to_onnx, 'PACKAGES', ('torch', 'onnx_of_nobody'))
    assert main(['export', str(finished_run), *NAMED, '--onnx', '--out', str(tmp_path / 'out')]) == 1
    assert capsys.readouterr().err == (
        'python -m nni_naslid: ONNX files take torch, onnx_of_nobody: pip install onnx_of_nobody '
        "(or pip install -e '.[onnx]').\n"
    )
    assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize(
    'options, match',
    [
        (['--top', '0', *NAMED], '--top must be at least 1, but is 0'),
        (['--top', 'all', *NAMED], "argument --top: invalid int value: 'all'"),
        ([], 'A work folder is data, so name the code: --yaml, or --space and --evaluator'),
        (NAMED[:2], 'so name the code'),
        (['--yaml', 'x.yml', *NAMED[2:]], '--yaml has a space and an evaluator: leave out --space and --evaluator'),
    ],
)
def test_wrong_usage(finished_run, capsys, options, match):
    with pytest.raises(SystemExit) as error:
        main(['export', str(finished_run), *options])
    assert error.value.code == 2
    assert match in capsys.readouterr().err


def named(of_space: str = 'space', of_evaluator: str = 'evaluator') -> list[str]:
    return ['--space', f'finished_project.{of_space}', '--evaluator', f'finished_project.{of_evaluator}']


@pytest.mark.parametrize(
    'options, match',
    [
        (['--top', '13', *NAMED], '--top 13 is more than the 12 networks that the search scored.'),
        (named('wide_space'), "holds a run with arguments of the space='"),
        (named(of_evaluator='other_data'), 'with first training batches='),
        (named(of_evaluator='other_module'), "with module='Recipe', but what is named here has module='OtherRecipe'"),
        (named('evaluator'), '--space must make a ModelSpace, but made a Lightning.'),
        (named(of_evaluator='space'), '--evaluator must make a Lightning evaluator, but made a NasBench201.'),
        (named('nothing'), '--space: finished_project.nothing cannot be imported'),
        (named('broken'), "--space: finished_project.broken raised KeyError: 'no such disk'"),
        (named('stops'), '--space: finished_project.stops raised SystemExit: 3'),
        (['--space', 'space', *NAMED[2:]], "--space must be a full name such as 'module.function', but is 'space'."),
        (['--yaml', '/none.yml'], '/none.yml'),
        (['--yaml', __file__], 'is not a YAML'),
        (['--yaml', str(Path(__file__).parents[1] / 'examples' / 'tuner.yml')], 'must be the YAML of an experiment'),
        ([*NAMED, '--out', f'{__file__}/out'], 'test_export_files.py/out/1'),
    ],
)
def test_what_does_not_fit_is_one_line(finished_run, tmp_path, capsys, options, match):
    out = [] if '--out' in options else ['--out', str(tmp_path / 'out')]
    assert main(['export', str(finished_run), *options, *out]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert match in line
    assert not (tmp_path / 'out').exists()


def test_a_script_is_not_taken_for_a_module(finished_run, tmp_path, capsys, monkeypatch):
    """It reads the command line when it is imported, and says that this is not its own."""
    (tmp_path / 'a_script.py').write_text('import argparse\nargparse.ArgumentParser().parse_args()\n')
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, 'argv', ['nni_naslid', 'export'])
    assert main(['export', str(finished_run), '--space', 'a_script.space', *NAMED[2:]]) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.endswith('--space: a_script.space is in a script. Put it into a module that only defines.')


def test_a_run_that_is_not_there_or_not_finished(unfinished_run, tmp_path, capsys):
    assert main(['export', str(tmp_path / 'none'), *NAMED]) == 1
    assert 'none is not a folder. Give the work folder of a run' in capsys.readouterr().err
    assert main(['export', str(unfinished_run), *NAMED]) == 1
    assert f'{unfinished_run} holds a run that has not finished' in capsys.readouterr().err
    assert not (unfinished_run / 'export').exists()


def test_other_networks_and_files_are_not_replaced(finished_run, tmp_path, capsys):
    def export() -> str:
        assert main(['export', str(finished_run), *NAMED, '--top', '2', '--out', str(tmp_path)]) == 1
        return capsys.readouterr().err

    other = tmp_path / '2'
    other.mkdir()
    (other / 'weights.pt').write_text('of somebody')
    assert f'{other} holds another network. Delete that folder, or name another one.' in export()
    assert not (tmp_path / '1').exists()
    (other / 'weights.pt').unlink()
    assert main(['export', str(finished_run), *NAMED, '--top', '1', '--out', str(tmp_path)]) == 0
    (tmp_path / '1').rename(tmp_path / 'first')
    shutil.copytree(tmp_path / 'first', other, dirs_exist_ok=True)  # the first is not the second
    assert f'{other} holds another network.' in export()
    shutil.rmtree(other)
    other.symlink_to(tmp_path / 'first')
    assert f'{other} is a symbolic link, which is not followed.' in export()


def test_before_the_end_of_a_run_nothing_is_exported(naslid):
    with pytest.raises(RuntimeError, match='NASLID has no trained leaves before it has run'):
        naslid().export()
