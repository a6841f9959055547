"""The example scripts as a user starts them, and the images they read."""

import importlib
import io
import json
import os
import pickle
import re
import subprocess
import sys
from argparse import Namespace
from itertools import pairwise
from pathlib import Path

from nni_naslid.analysis.truth import load_truth, nasbench201_architectures, truth_setting
from nni_naslid.run.record import read_record
from nni_naslid.train import path

import nni
import numpy as np
import pandas as pd
import pytest
import rows
import torch
from matplotlib.figure import Figure
from PIL import Image
from recipe import Data, load_data, make_evaluator
from scipy.stats import kendalltau
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader, TensorDataset

EXAMPLES = Path(__file__).parents[1] / 'examples'


def one_thread() -> dict[str, str]:
    return {**os.environ, 'OMP_NUM_THREADS': '1'}


def start(script: str, *options: str, cwd: Path) -> subprocess.CompletedProcess:
    command = [sys.executable, str(EXAMPLES / script), *options]
    return subprocess.run(command, cwd=cwd, env=one_thread(), capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_the_benchmark_of_lid(tmp_path, monkeypatch):
    import bench_lid

    monkeypatch.setattr(bench_lid, 'CASES', [('batch norm', 40, 30), ('near-duplicates', 30, 2100)])
    monkeypatch.setattr(sys, 'argv', ['bench_lid.py', '--rounds', '2', '--output', str(tmp_path / 'rows.csv')])
    bench_lid.main()
    first = pd.read_csv(tmp_path / 'rows.csv')
    monkeypatch.setattr(bench_lid.shutil, 'which', lambda name: None)  # without a compiler for torch.compile
    bench_lid.main()
    rows = pd.read_csv(tmp_path / 'rows.csv')
    pd.testing.assert_frame_equal(rows[: len(first)], first)  # rows are appended
    assert 'torch.compile of cdist' not in set(rows['provider'][len(first) :])
    latest = bench_lid.latest(tmp_path / 'rows.csv')
    assert {'nni_naslid', 'torch mm + topk', 'scikit-learn', 'scikit-dimension'} < set(latest['provider'])
    assert (latest['p20_ms'] <= latest['p80_ms']).all()
    ours = latest[latest['provider'] == 'nni_naslid']
    assert len(ours) == 2
    assert (ours['max_error'] < 1e-4).all()
    assert (tmp_path / 'rows.png').stat().st_size > 10000


@pytest.mark.slow
def test_the_benchmark_of_lid_of_whole_networks(tmp_path, monkeypatch):
    import bench_lid

    monkeypatch.setattr(bench_lid, 'CASES', [('batch norm', 40, 30)])
    monkeypatch.setattr(bench_lid, 'MAPS', [(2, 4, 4), (3, 2, 2), (3, 2, 2)])
    monkeypatch.setattr(
        sys, 'argv', ['bench_lid.py', '--rounds', '1', '--profiles', '--output', str(tmp_path / 'rows.csv')]
    )
    bench_lid.main()
    rows = pd.read_csv(tmp_path / 'rows.csv').set_index(['points', 'provider'])
    whole = rows.loc[list(bench_lid.PROFILES)]
    assert set(whole.loc['profile of 17 maps', 'D']) == {32 + 12 + 12}
    assert set(whole.loc['profiles of 5 x 17 maps', 'D']) == {5 * (32 + 12 + 12)}
    assert len(whole) == 2 * len(rows.loc['batch norm'])
    assert (whole['max_error'] < 1e-4).all()


def test_new_columns_are_empty_in_the_rows_before(tmp_path):
    path = tmp_path / 'rows.csv'
    path.write_text('case,ms\n"a, b",1.50\n')
    rows.append(pd.DataFrame({'launches': [2], 'case': ['c']}), path)
    rows.append(pd.DataFrame({'case': ['d'], 'ms': [3]}), path)
    assert path.read_text() == 'case,ms,launches\n"a, b",1.50,\nc,,2\nd,3,\n'


@pytest.mark.parametrize('command', ['git', 'no-such-git'])
def test_without_history_the_commit_is_unknown(command, tmp_path, monkeypatch):
    run = subprocess.run
    monkeypatch.setattr(rows, '__file__', str(tmp_path / 'rows.py'))
    monkeypatch.setattr(rows.subprocess, 'run', lambda args, **others: run([command, *args[1:]], **others))
    assert rows.commit() == 'unknown'


def test_the_readme_has_the_table_of_the_committed_rows():
    import bench_lid

    table = bench_lid.table(bench_lid.latest(EXAMPLES / 'bench_lid.csv'))
    assert table in (EXAMPLES.parent / 'nni_naslid' / 'lid' / 'README.md').read_text()


@pytest.mark.slow
def test_the_benchmark_of_a_step(tmp_path, monkeypatch):
    """All ways train the same paths; rows are appended."""
    import bench_step

    set_path, trained = path.set_path, []

    def noted(supernet, sample):
        trained.append(sample)
        set_path(supernet, sample)

    monkeypatch.setattr(path, 'set_path', noted)
    options = '--channels 4 --cells 1 --resolution 8 --batch-size 10 --steps 8 --rounds 1 --warm-up 2'
    monkeypatch.setattr(sys, 'argv', ['bench_step.py', *options.split(), '--output', str(tmp_path / 'rows.csv')])
    for runs in (1, 2):
        bench_step.main()
        rows = pd.read_csv(tmp_path / 'rows.csv')
        assert list(rows['way'][:7]) == [bench_step.NETWORK, *bench_step.BASES] and len(rows) == 10 * runs
    assert (rows['ms'] > 0).all()
    ms, table = rows.groupby('way')['ms'].median(), bench_step.table(rows)['ms']
    host = ms[bench_step.DRAWING] + ms[bench_step.SETTING]
    expected = ms[bench_step.NASLID_RUN] - ms[bench_step.ON_DEVICE] + host
    assert table[bench_step.OURS] == pytest.approx(expected, abs=2e-3)

    sizes = {'channels': 4, 'cells': 1, 'resolution': 8, 'batch_size': 10, 'steps': 8, 'rounds': 1, 'warm_up': 2}
    bench = bench_step.Bench(Namespace(**sizes, accelerator='cpu'))
    expected = [bench.path(bench.ours().subspace, epoch, step) for epoch in range(2) for step in range(bench.steps)]
    for way in (bench_step.ON_DEVICE, bench_step.NASLID_RUN):
        trained.clear()
        bench.measured(way)
        assert trained[: len(expected)] == expected


@pytest.mark.slow
def test_the_benchmark_of_what_was_left_out(tmp_path, monkeypatch, capsys):
    """All prototypes train equally long; what has a row is not measured again."""
    import bench_left_out

    monkeypatch.setattr(bench_left_out, 'PROFILED', 60)
    monkeypatch.setattr(bench_left_out, 'COMPARED', 3)
    size = '--resolution 4 --channels 4 --batch-size 6000 --epochs 16 --ranked 20 --seeds 0 --calibration-batches 1'
    output = tmp_path / 'rows.csv'
    monkeypatch.setattr(sys, 'argv', ['bench_left_out.py', *size.split(), '--output', str(output)])
    bench_left_out.main()
    rows = pd.read_csv(output)
    assert list(rows['method']) == list(bench_left_out.METHODS)
    assert set(rows['steps']) == {16 * 4}
    assert 'Mean losses of the bands' in capsys.readouterr().out
    bench_left_out.main()
    assert output.read_text().count('\n') == 1 + len(rows)

    args = Namespace(channels=4, cells=1, data='digits', lr=0.2, batch_size=6000, calibration_batches=1)
    proto = bench_left_out.Prototype(args, load_data('digits', 4), 0)
    everything = [np.arange(len(proto.samples))]
    proto.train([proto.root], everything, 0, 1, 4)
    before = [weight.clone() for weight in proto.root.parameters()]
    proto.train([proto.root], everything, 1, 0, 4)  # going on is no step
    assert all(map(torch.equal, before, proto.root.parameters()))


@pytest.mark.slow
def test_the_main_job(tmp_path):
    size = '--resolution 4 --channels 4 --batch-size 2000'
    options = '--epochs 4 --split-epochs 2 --criterion random --ranked 20 --search-budget 4'
    done = start('nasbench201.py', *size.split(), *options.split(), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / 'runs' / 'digits-random-seed0'
    result = json.loads((folder / 'result.json').read_text())
    assert result['cost'] == 2 + 2 * 2
    assert 'Seed 0: 2 leaves; each method trained 72 steps.' in done.stdout
    different = 'resolution 8 instead of 4, channels 8 instead of 4, batch_size 120 instead of 2000'
    assert f'Beware: this truth was measured with {different}.' in done.stdout
    methods = 'a tree', 'one supernet', 'SPOS'
    names = [f'{method} by {metric}' for method in methods for metric in ('val_acc', 'val_loss')]
    assert list(result['report']) == [*names, 'parameters', 'live parameters']
    for name in result['report']:
        tau = kendalltau(result['estimates'][name], [*result['truth'].values()]).statistic
        assert result['report'][name]['tau'][0] == pytest.approx(tau)
        assert re.search(rf'^{name} +{tau:.2f} \[', done.stdout, re.MULTILINE)
    assert all(len(line) < 120 for line in re.search(r'\n +tau(.|\n)*?\n\n', done.stdout)[0].splitlines())
    assert [(instance, len(found)) for instance, found in read_record(folder / 'naslid').instances.items()] == [
        ((2, 5), 20),
        ((4, 5), 24),
    ]
    assert all(len(values) == 20 for values in result['estimates'].values())
    assert re.search(r'Node 0 is split: cell/\d_\d into .* \| .* \(at random\)', done.stdout)
    for name in ('ranking.png', 'naslid/tree.png', 'naslid/tree.json', 'one-supernet/tree.json', 'spos/tree.json'):
        assert (folder / name).stat().st_size > 0
    said = done.stdout + done.stderr
    assert said.count('\n') < 80  # two screens
    assert '\r' not in said  # no progress bars


@pytest.mark.slow
def test_the_study_goes_on_where_it_was(tmp_path, monkeypatch, capsys, caplog):
    """Started again it measures only what is missing, and ends with the same rows."""
    import study

    monkeypatch.setattr('nni_naslid.analysis.compare.N_BOOTSTRAP', 20)
    monkeypatch.setattr('study_report.N_BOOTSTRAP', 20)
    options = '--spaces MobileNetV3 --architectures 5 --seeds 2 --batches 4 --truth-epochs 1 --output rows.csv'
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, 'argv', ['study.py', *options.split()])
    study.main()
    rows, printed = (tmp_path / 'rows.csv').read_bytes(), capsys.readouterr().out
    names = {path.name for path in (tmp_path / 'rows').iterdir()}
    assert names == {f'{name}.svg' for name in ('stability', 'batches', 'tuning', 'pruning', 'grouping', 'bias')}
    for lost in ('truth-3-1.json', 'supernet-1-rows.json'):
        (tmp_path / 'runs' / 'study' / 'MobileNetV3' / lost).unlink()
    (tmp_path / 'rows.md').write_text('Before.\n<!-- bias -->\n<!-- end -->\nAfter.\n')
    caplog.clear()
    study.main()
    said = [record.getMessage() for record in caplog.records if record.name == 'study']
    assert said == ['MobileNetV3: supernet-1-rows', 'MobileNetV3: truth-3-1']
    assert (tmp_path / 'rows.csv').read_bytes() == rows
    before, _, *table, _, after = (tmp_path / 'rows.md').read_text().splitlines()
    assert (before, after) == ('Before.', 'After.')
    assert len(table) == 3 and '\n'.join(table) in printed


@pytest.mark.slow
def test_a_grouping_of_the_study(tmp_path, monkeypatch):
    """Convolutions in one group, the rest in the other, at the cost of one supernet; pieces of one setting only."""
    import study

    options = ['study.py', '--architectures', '10', '--batches', '2', '--workdir', str(tmp_path)]
    monkeypatch.setattr(sys, 'argv', options)
    args = study.parse()
    study.check_setting(args)
    rows = study.Study('Chain', args).grouping_rows('kind', 0)
    assert {(row['metric'], row['leaves'], row['cost'], len(row['values'].split())) for row in rows} == {
        (metric, 4, args.epochs, 10) for metric in ('loss', 'accuracy')
    }
    root = read_record(tmp_path / 'Chain' / 'kind-0').root
    for leaf in root.leaves:
        for choices in leaf.subspace.narrowed(root.subspace).values():
            assert choices in (['conv1', 'conv3', 'conv5', 'depthconv3'], ['pool', 'skip'])
    monkeypatch.setattr(sys, 'argv', [*options, '--epochs', '16'])
    with pytest.raises(SystemExit, match=r"holds pieces of another setting: \{'architectures': 10, 'epochs': 8,"):
        study.check_setting(study.parse())


def test_the_text_of_the_study_has_the_tables_of_the_committed_rows():
    from study_report import Rows, batches, markdown

    assert markdown(batches(Rows(EXAMPLES / 'study.csv'), Figure())) in (EXAMPLES / 'study.md').read_text()


@pytest.mark.slow
def test_a_project_of_your_own(tmp_path):
    options = '--waves 200 --epochs 5 --search-budget 4 --workdir run'
    done = start('own_project.py', *options.split(), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    best = json.loads((tmp_path / 'run' / 'search.json').read_text())['found'][0]
    assert f'The best of 4 networks: {best["choices"]}' in done.stdout
    weights = torch.load(tmp_path / 'run' / 'best.pt')
    n = sum(value.numel() for name, value in weights.items() if name.endswith(('weight', 'bias')))
    assert f'{n:,} parameters' in done.stdout
    assert re.search(r'With the weights of the supernet: val_acc 0\.\d{3}', done.stdout)
    assert re.search(r'Trained from scratch for 2 epochs: val_acc 0\.\d{3}', done.stdout)


@pytest.mark.slow
def test_a_criterion_of_your_own(tmp_path):
    """It splits between the better candidates and the worse ones of the label with the largest difference."""
    done = start('own_criterion.py', '--workdir', 'run', cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    split = json.loads((tmp_path / 'run' / 'tree.json').read_text())['nodes'][0]['split']
    losses = split['evidence']['losses']
    spread = {label: max(of.values()) - min(of.values()) for label, of in losses.items()}
    label = max(spread, key=spread.get)
    assert len(losses) == 6 and split['evidence']['label'] == label
    assert f'losses differ by {spread[label]:.3f}; see run/split-0.png' in done.stdout
    assert (tmp_path / 'run' / 'split-0.png').read_bytes().startswith(b'\x89PNG')
    better = sorted(losses[label], key=losses[label].get)[:2]
    log = done.stdout + done.stderr
    parts = re.search(rf'Node 0 is split: {label} into (.*) \| (.*) \(losses differ by', log).groups()
    assert set(parts[0].split(', ')) == set(better)
    assert set(parts[1].split(', ')) == set(losses[label]) - set(better)


TRUTH = '# {"data": "digits"}\narch,test_acc\n' + '\n'.join(f'{arch},50' for arch in nasbench201_architectures()[:1])


@pytest.mark.parametrize(
    'script, options, said',
    [
        *(
            ('nasbench201', options, said)
            for options, said in (
                ('--ranked 0', 'argument --ranked: must be at least 2, but is 0'),
                ('--ranked 1', 'argument --ranked: must be at least 2, but is 1'),
                ('--ranked=-5', 'argument --ranked: must be at least 2, but is -5'),
                ('--ranked ten', "argument --ranked: invalid integer value: 'ten'"),
                ('--epochs 0', 'argument --epochs: must be at least 1, but is 0'),
                ('--split-epochs 0 4', 'argument --split-epochs: must be at least 1, but is 0'),
                ('--split-epochs 8 4', '--split-epochs must increase, and be below --epochs=14, but are [8, 4].'),
                ('--epochs 4', '--split-epochs must increase, and be below --epochs=4, but are [8].'),
                ('--channels 0', 'argument --channels: must be at least 1, but is 0'),
                ('--cells 0', 'argument --cells: must be at least 1, but is 0'),
                ('--resolution 2', 'argument --resolution: must be at least 4, but is 2'),
                ('--lr 0', 'argument --lr: must be a number above 0, but is 0'),
                ('--lr nan', 'argument --lr: must be a number above 0, but is nan'),
                ('--criterion lids', "argument --criterion: invalid choice: 'lids'"),
                ('--monitor loss', "argument --monitor: invalid choice: 'loss'"),
                ('--repeats 7', 'argument --repeats: must be at least 8, but is 7'),
                ('--search-budget 0', 'argument --search-budget: must be at least 1, but is 0'),
                ('--seed 4294967296', 'argument --seed: must be at least 0 and at most 4294967295, but is 4294967296'),
                ('--batch-size 0', 'argument --batch-size: must be at least 1, but is 0'),
                ('--batch-size 20', '--batch-size must be above 20, the neighbours of LID, but is 20.'),
                ('--batch-size 24001', '--batch-size must be at most the 24000 training images, but is 24001.'),
                ('--accelerator abacus', '--accelerator abacus with 1 device(s) and --precision 32-true: '),
                ('--devices 0', 'argument --devices: must be at least 1, but is 0'),
                ('--precision abacus', "and --precision abacus: Precision 'abacus' is invalid."),
                ('--data none.npz', 'argument --data: none.npz is no file'),
                ('--data none', 'argument --data: none is no folder (make an empty one to download CIFAR-10)'),
                ('--data broken.npz', '--data: broken.npz cannot be read: '),
                ('--truth none.csv', "--truth: [Errno 2] No such file or directory: 'none.csv'"),
                ('--truth none', '--truth: A truth must be a .csv, .npz, .db, .pth or .pbz2 file, a folder of NATS'),
                ('--truth broken.npz', '--truth: broken.npz cannot be read: '),
                ('--truth one.csv', '--truth must hold at least 2 architectures, but one.csv holds 1.'),
                ('--truth-column acc', "has no column 'acc'; it has arch, seed, valid_acc, test_acc."),
                ('--output one.csv', '--output must be a folder, but one.csv is a file.'),
            )
        ),
        ('measure_truth', '--epochs 0', 'argument --epochs: must be at least 1, but is 0'),
        ('measure_truth', '--seeds 0', 'argument --seeds: must be at least 1, but is 0'),
        ('measure_truth', '--workers 0', 'argument --workers: must be at least 1, but is 0'),
        ('measure_truth', '--architectures 15626', 'must be at least 1 and at most 15625, but is 15626'),
        ('measure_truth', '--accelerator abacus', '--accelerator abacus with 1 device(s) and --precision 32-true: '),
        ('measure_truth', '--data none.npz', 'argument --data: none.npz is no file'),
        ('measure_truth', '--data broken.npz', '--data: broken.npz cannot be read: '),
        (
            'measure_truth',
            '--batch-size 24001',
            '--batch-size must be at most the 24000 training images, but is 24001.',
        ),
        ('measure_truth', '--output none/truth.csv', '--output must be a file in a folder that exists, but is none/t'),
        ('bench_lid', '--rounds 0', '--rounds must be at least 1, but is 0.'),
        ('bench_lid', '--output none/rows.csv', '--output must be a CSV file in a folder that exists'),
        ('bench_lid', '--table --output none.csv', '--output must be a CSV file in a folder that exists'),
    ],
)
def test_mistakes_on_the_command_line(script, options, said, tmp_path, monkeypatch, capsys):
    """As with any command: the usage, one line of what is wrong, exit code 2."""
    (tmp_path / 'one.csv').write_text(TRUTH)
    (tmp_path / 'broken.npz').write_bytes(b'PK')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, 'argv', [f'{script}.py', *options.split()])
    with pytest.raises(SystemExit) as caught:
        importlib.import_module(script).main() if script == 'bench_lid' else importlib.import_module(script).parse()
    assert caught.value.code == 2
    *usage, line = capsys.readouterr().err.splitlines()
    assert usage[0].startswith(f'usage: {script}.py')
    assert line.startswith(f'{script}.py: error: ')
    assert said in line


@pytest.mark.slow
def test_a_mistake_ends_the_script(tmp_path):
    done = start('nasbench201.py', '--ranked', '0', cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, '')
    assert 'Traceback' not in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_measuring_a_truth_and_ranking_by_it(tmp_path):
    """An interrupted measurement goes on; a pick outside of the table is trained as the table was."""
    size = ['--resolution', '8', '--channels', '4']
    measure = [*size, '--epochs', '1', '--seeds', '2', '--workers', '1']
    for architectures in ('2', '3'):
        done = start('measure_truth.py', *measure, '--architectures', architectures, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    assert '3 architectures x 2 seeds' in done.stdout
    assert (tmp_path / 'truth.csv').read_text().count('\n') == 2 + 6
    assert len(load_truth(tmp_path / 'truth.csv', 'test_acc')) == 3
    assert truth_setting(tmp_path / 'truth.csv')['channels'] == 4
    other = start('measure_truth.py', *measure, '--lr', '0.1', cwd=tmp_path)
    assert other.returncode != 0
    assert 'truth.csv holds another setting' in other.stderr
    options = ['--epochs', '1', '--split-epochs', '--search-budget', '1', '--truth', 'truth.csv']
    done = start('nasbench201.py', *size, *options, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count('measured now by 3 runs') == 3
    assert 'Beware' not in done.stdout


def jpegs(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    parts = []
    for image in images:
        Image.fromarray(image).save(file := io.BytesIO(), 'JPEG', quality=100)
        parts.append(file.getvalue())
    return np.frombuffer(b''.join(parts), np.uint8), np.cumsum([0, *map(len, parts)])


def test_images_from_npz(tmp_path):
    rng = np.random.RandomState(0)
    shade, y = rng.permutation(250)[:50], rng.randint(0, 10, 50)
    x = np.broadcast_to(shade[:, None, None, None], (50, 8, 8, 3)).astype(np.uint8)
    (train, train_offset), (test, test_offset) = jpegs(x[:40]), jpegs(x[40:])
    np.savez(tmp_path / 'a.npz', x=x, y=y)
    np.savez(
        tmp_path / 'b.npz', train_jpeg=train, train_offset=train_offset, y_train=y[:40], test_jpeg=test,
        test_offset=test_offset, y_test=y[40:],
    )  # fmt: skip
    for name, sizes in (('a', (28, 8, 14)), ('b', (32, 8, 10))):
        data = load_data(str(tmp_path / f'{name}.npz'), 4)
        assert tuple(map(len, data)) == sizes
        images, labels = (torch.cat([part.tensors[i] for part in data]) for i in (0, 1))
        assert images.shape == (50, 3, 4, 4)
        assert abs(data.train.tensors[0].mean()) < 1e-5
        assert data.train.tensors[0].std().item() == pytest.approx(1, abs=1e-2)
        assert labels[images[:, 0, 0, 0].argsort()].tolist() == y[shade.argsort()].tolist()
    np.savez(tmp_path / 'c.npz', z=x)
    with pytest.raises(ValueError, match=r"must hold x and y, or train_jpeg, .* but holds \['z'\]"):
        load_data(str(tmp_path / 'c.npz'), 4)


def test_every_digit_is_in_one_set_only():
    """1,797 originals; the drawings of one follow each other with a step of the number of originals in the set."""
    data = load_data('digits', 8)
    originals = [(1000, 24), (293, 4), (504, 16)]
    assert sum(n for n, _ in originals) == 1797
    counts = np.zeros(10, int)
    for part, (n, copies) in zip(data, originals, strict=True):
        labels = part.tensors[1].view(copies, n)
        assert (labels == labels[0]).all()
        counts += np.bincount(labels[0], minlength=10)
    assert counts.tolist() == np.bincount(load_digits().target).tolist()


@pytest.mark.parametrize(
    'traced, sent',
    [
        pytest.param(True, lambda loaders: loaders, id='here'),
        pytest.param(True, lambda loaders: nni.load(nni.dump(loaders)), id='in a trial'),
        pytest.param(True, lambda loaders: pickle.loads(pickle.dumps(loaders)), id='in a process of several devices'),
        pytest.param(False, lambda loaders: loaders, id='any data'),
    ],
)
def test_whole_batches_are_those_that_torch_makes_of_samples(traced, sent):
    """To the bit, in the same order, and with the same random numbers afterwards."""
    data = load_data('digits', 8)
    if not traced:
        data = Data(*(TensorDataset(*part[:n]) for part, n in zip(data, (250, 90, 90), strict=True)))
    made = make_evaluator(data, epochs=1, batch_size=40, accelerator='cpu', devices=1)
    loaders = sent([made.train_dataloaders, made.val_dataloaders])
    theirs = DataLoader(data.train, 40, shuffle=True, drop_last=True), DataLoader(data.valid, 500)
    for loader, their in zip(loaders, theirs, strict=True):
        found = []
        for each in (loader, their):
            torch.manual_seed(1)
            found.append([tensor for _ in range(2) for batch in each for tensor in batch] + [torch.rand(1)])
        assert len(found[0]) == 4 * len(their) + 1
        assert all(torch.equal(*pair) for pair in zip(*found, strict=True))


def front_in(said: str) -> list[tuple[float, float]]:
    """Losses and MFLOPs of a printed front, the cheapest first."""
    rows = [line.split()[:2] for line in said.splitlines() if re.match(r' +\d+\.\d+ +\d+\.\d+  \w+ ', line)]
    return [(float(loss), float(flops)) for loss, flops in rows]


def is_front(points: list[tuple[float, float]]) -> bool:
    return len(points) > 1 and all(
        one[1] <= other[1] and one[0] >= other[0] for one, other in pairwise(points)
    )  # fmt: skip


@pytest.mark.slow
def test_good_and_cheap_networks_beside_random_search(tmp_path, monkeypatch, capsys):
    import pareto

    options = '--epochs 1 --evaluations 24 --population 8 --seeds 2 --workdir run --output rows.csv'
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, 'argv', ['pareto.py', *options.split()])
    pareto.main()
    said = capsys.readouterr().out
    front = front_in(said)
    assert is_front(front)
    rows = pd.read_csv('rows.csv')
    assert list(rows['search']) == ['random', 'NSGA-II'] * 2 and list(rows['seed']) == [0, 0, 1, 1]
    assert rows['hypervolume'].between(0, 1).all()
    found = json.loads(Path('run/search.json').read_text())['found']
    assert len(front) == rows['front'].iloc[-1] == sum(each['rank'] == 0 for each in found)
    means = {name: float(mean) for name, mean in re.findall(r'^ *(random|NSGA-II)  (\d\.\d+) \+- ', said, re.M)}
    assert means == {
        name: pytest.approx(of['hypervolume'].mean(), abs=1e-4) for name, of in rows.groupby('search')
    }  # fmt: skip
    difference = rows.pivot(index='seed', columns='search', values='hypervolume').diff(axis=1)['random']
    told = re.search(r'^difference  (-?\d\.\d+) \+- ', said, re.M)[1]
    assert float(told) == pytest.approx(-difference.mean(), abs=1e-4)
    n_scored = len(Path('run/scores.jsonl').read_text().splitlines())
    assert 24 + 24 < n_scored < 4 * 24 + 1  # what several searches ask for is scored once


@pytest.mark.slow
@pytest.mark.parametrize('library', ['optuna', 'syne_tune'])
def test_searches_of_ones_own(library, tmp_path, monkeypatch, capsys):
    """Of the architectures that are printed none is beaten in both by another one."""
    pytest.importorskip(library)
    script = importlib.import_module(f'ask_tell_{library}')
    options = ['--epochs', '1', '--evaluations', '25', '--workdir', str(tmp_path / 'run')]
    monkeypatch.setattr(sys, 'argv', [f'{script.__name__}.py', *options])
    script.main()
    assert is_front(front_in(capsys.readouterr().out))
    assert 20 <= len((tmp_path / 'run' / 'scores.jsonl').read_text().splitlines()) <= 26
