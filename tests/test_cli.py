"""The command line: what it prints, its exit codes, and that it leaves runs alone."""

import json
import os
import re
import shutil
import subprocess
import sys
from itertools import product

from nni_naslid.analysis.compare import compare, interval
from nni_naslid.analysis.truth import nasbench201_arch, nasbench201_architectures
from nni_naslid.cli import main
from nni_naslid.run.files import locked, read_json, write_json
from nni_naslid.run.record import read_record

import numpy as np
import pandas as pd
import pytest
from scipy.stats import kendalltau


def command(*arguments, code: int = 0, **kwargs) -> subprocess.CompletedProcess:
    """What ``python -m nni_naslid`` has printed, if it has ended with this code."""
    line = [sys.executable, '-m', 'nni_naslid', *map(str, arguments)]
    process = subprocess.run(line, capture_output=True, text=True, **kwargs)
    assert process.returncode == code, process.stderr
    return process


def content_of(folder) -> dict:
    return {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.iterdir()}


@pytest.fixture
def truth(finished_run, tmp_path):
    """A table that knows all networks that the run has scored but two, and what its estimates and accuracies are."""
    record = read_record(finished_run)
    archs = [nasbench201_arch(score.sample) for score in record.scores][2:]
    losses = [score.metrics['val_loss'] for score in record.scores][2:]
    accuracies = np.random.RandomState(0).uniform(50, 90, len(archs)).round(2)
    lines = [f'{arch},0,{accuracy}' for arch, accuracy in zip(archs, accuracies, strict=True)]
    path = tmp_path / 'truth.csv'
    path.write_text('\n'.join(['arch,seed,test_acc', *lines, '']))
    return path, np.array(losses), accuracies


def test_tree(finished_run):
    before = content_of(finished_run)
    lines = command('tree', finished_run).stdout.splitlines()
    assert content_of(finished_run) == before
    nodes = json.loads((finished_run / 'tree.json').read_text())['nodes']
    assert len(nodes) == 3
    for node in nodes:
        (line,) = [line for line in lines if line.split()[0] == node['name']]
        result = json.loads((finished_run / f'node-{node["name"]}.json').read_text())
        assert f'epochs {node["start_epoch"]}-{node["end_epoch"]}  {node["size"]:,} architectures' in line
        assert f'val_loss {result["report"]["val_loss"]:.4f}' in line
        assert len(line) - len(line.lstrip()) == 2 * node['name'].count('.')
    evidence = nodes[0]['split']['evidence']
    assert lines[1].startswith(f'  is split: {evidence["label"]} into ')
    assert f'contrast {evidence["partition"]["score"]:.3f}' in lines[1]
    n = len((finished_run / 'scores.jsonl').read_text().splitlines())
    assert lines[-1] == f'2 leaves, 5 epochs, {n} networks scored, the search has ended'


def test_tree_of_a_run_that_goes_on(unfinished_run, capsys):
    def tree() -> str:
        assert main(['tree', str(unfinished_run)]) == 0
        return capsys.readouterr().out

    lines = tree().splitlines()
    assert [line.split()[0] for line in lines] == ['0', 'is', '0.0', '0.1', '2']
    assert '(epoch 2 of 3; no process of this machine is at it)' in lines[3] and '(' not in lines[2]
    before = content_of(unfinished_run)
    with locked(unfinished_run / 'node-0.1.lock', 'node 0.1'):
        assert '(epoch 2 of 3)' in tree()
        assert '(epoch 2 of 3)' in tree()  # to look is not to be at it
    assert '(epoch 2 of 3; no' in tree()
    assert content_of(unfinished_run).keys() == before.keys() | {'node-0.1.lock'}
    assert lines[-1] == '2 leaves, 3 epochs, 0 networks scored, the search has not ended'
    next(unfinished_run.glob('node-0.1-to-*')).unlink()
    assert '(waiting)' in tree()
    (unfinished_run / 'failed-node-0.1.txt').write_text('Traceback ...\nValueError: bad luck\n')
    assert '(failed: ValueError: bad luck)' in tree()


def test_tree_is_quick(finished_run):
    code = (
        'import sys; from nni_naslid.cli import main; main(sys.argv[1:]); '
        'print(sorted({"torch", "matplotlib"} & {*sys.modules}))'
    )
    line = [sys.executable, '-c', code, 'tree', str(finished_run)]
    assert subprocess.run(line, capture_output=True, text=True, check=True).stdout.endswith('[]\n')


def test_a_criterion_of_others_is_not_imported(finished_run, tmp_path, capsys):
    """A work folder is data: what it names is not run. What the evidence said is there."""
    workdir = tmp_path / 'run'
    shutil.copytree(finished_run, workdir)
    (tmp_path / 'evil.py').write_text('raise SystemExit("imported")')
    content = read_json(workdir / 'tree.json', ())
    content['criterion']['criterion'] = 'evil.Criterion'
    write_json(workdir / 'tree.json', content)
    line = [sys.executable, '-m', 'nni_naslid', 'tree', str(workdir)]
    environment = {**os.environ, 'PYTHONPATH': f'{tmp_path}{os.pathsep}{os.environ.get("PYTHONPATH", "")}'}
    printed = subprocess.run(line, capture_output=True, text=True, check=True, env=environment).stdout
    assert main(['tree', str(finished_run)]) == 0
    assert printed == capsys.readouterr().out


def test_report(finished_run, tmp_path):
    before = content_of(finished_run)
    out, figures = tmp_path / 'page.html', tmp_path / 'figures'
    printed = command('report', finished_run, '--out', out, '--figures', figures).stdout
    assert re.fullmatch(rf'{re.escape(str(out))} \(\d+ kB\)\n{re.escape(str(figures))} \(figures\)\n', printed)
    assert content_of(finished_run) == before
    assert out.read_text().startswith('<!DOCTYPE html>')
    names = {path.stem for path in figures.iterdir()}
    assert names == {'tree', 'curve-val_loss', 'curve-val_acc', 'split-0', 'scores'}
    for name in names:
        assert (figures / f'{name}.png').read_bytes().startswith(b'\x89PNG')
        assert '<svg' in (figures / f'{name}.svg').read_text()


def test_report_goes_into_the_work_folder(unfinished_run):
    assert main(['report', str(unfinished_run)]) == 0
    assert (unfinished_run / 'report.html').read_text().startswith('<!DOCTYPE html>')


def test_compare(finished_run, unfinished_run, truth, tmp_path):
    table, losses, accuracies = truth
    other = tmp_path / 'copy'
    shutil.copytree(finished_run, other)
    lines = command('compare', finished_run, other, '--truth', table).stdout.splitlines()
    assert lines[0].split() == [
        'run', 'state', 'criterion', 'settings', 'leaves', 'epochs', 'minutes', 'scored', 'first', 'known', 'tau',
        'P@10%',
    ]  # fmt: skip
    tau = kendalltau(-losses, accuracies).statistic
    n = len(losses)
    for line, name in zip(lines[1:3], ('run', 'copy'), strict=True):
        figures = rf'2 +5 +\d+\.\d +{n + 2} +val_loss \d\.\d{{4}} +{n} +{tau:.3f} \['
        assert re.match(rf'{name} +finished +LID\(n_neighbors=5, min_contrast=0\.0\) +lr_by_size=True +{figures}', line)
    none = '+0.000 [+0.000, +0.000]'
    assert lines[4] == f'copy less run: tau {none}, P@10% {none} on {n} architectures of both.'
    best = [set(values.argsort()[::-1][: round(n / 10)]) for values in (-losses, accuracies)]
    share = len(best[0] & best[1]) / round(n / 10)
    assert all(re.search(rf'\] +{share:.3f} \[', line) for line in lines[1:3])
    lines = command('compare', finished_run, unfinished_run).stdout.splitlines()
    assert len(lines) == 3
    assert re.match(r'unfinished +unfinished +LID\(.*\) +lr_by_size=True +2 +3 +\d+\.\d +0$', lines[2])
    lines = command('compare', finished_run, unfinished_run, '--truth', table).stdout.splitlines()
    assert 'unfinished less run: only 0 architectures are scored by both and known to the truth.' in lines


def test_the_difference_of_two_runs_is_on_what_both_have_scored(finished_run):
    """The other run has scored some networks only, and all the other way round."""
    one, other = read_record(finished_run), read_record(finished_run)
    accuracies = np.arange(len(one.scores), dtype=float)
    truth = pd.Series(accuracies, [nasbench201_arch(score.sample) for score in one.scores])  # the best come first
    del other.scores[20:]
    losses = [score.metrics['val_loss'] for score in other.scores]
    for score, loss in zip(other.scores, losses[::-1], strict=True):
        score.metrics['val_loss'] = loss
    _, (line,) = compare([one, other], truth)
    of_one, of_other = (kendalltau(sign * np.array(losses), accuracies[:20]).statistic for sign in (-1, 1))
    assert line.startswith(f'{finished_run} less {finished_run}: tau {of_other - of_one:+.3f} [+')
    assert line.endswith('] on 20 architectures of both.')


def test_intervals_are_of_pairs():
    """The interval of a mean is known; a difference in pairs has the noise of the pairs only."""
    values = np.random.RandomState(0).normal(3, 2, 400)
    value, low, high = interval(lambda half: values[half].mean(), 400)
    assert value == pytest.approx(values.mean())
    assert [low, high] == pytest.approx([value - 0.196, value + 0.196], abs=0.03)
    assert interval(lambda half: (values + 1)[half].mean() - values[half].mean(), 400) == pytest.approx((1, 1, 1))


def damaged(workdir, name: str) -> None:
    path = workdir / name
    path.write_bytes(path.read_bytes()[:-20])


@pytest.mark.parametrize('arguments', [['tree'], ['report'], ['compare']], ids=lambda each: each[0])
@pytest.mark.parametrize(
    'harm, message',
    [
        (lambda d: shutil.rmtree(d), r' is not a folder\. Give the work folder of a run'),
        (lambda d: (d / 'tree.json').unlink(), r' holds no run: it has no tree\.json\. Give the work folder'),
        (lambda d: damaged(d, 'tree.json'), r'tree\.json is damaged'),
        (lambda d: damaged(d, 'node-0.0.json'), r'node-0\.0\.json is damaged'),
        (lambda d: (d / 'tree.json').write_text('{}'), r'tree\.json is not from nni_naslid'),
    ],
    ids=['no-folder', 'no-run', 'damaged-tree', 'damaged-node', 'other-file'],
)
def test_runs_that_cannot_be_read(unfinished_run, capsys, arguments, harm, message):
    harm(unfinished_run)
    assert main([*arguments, str(unfinished_run)]) == 1
    printed, said = capsys.readouterr()
    assert not printed
    assert re.match(r'python -m nni_naslid: [^\n]*' + message, said) and said.count('\n') == 1


def test_tables_that_cannot_be_used(finished_run, small, truth, tmp_path, capsys):
    table = truth[0]
    known = {nasbench201_arch(score.sample) for score in read_record(finished_run).scores}
    other = tmp_path / 'other.csv'
    unknown = next(arch for arch in nasbench201_architectures() if arch not in known)
    other.write_text(f'arch,test_acc,params\n{unknown},90,1000\n')
    small(criterion='random', search_budget=6, workdir=tmp_path / 'convs')
    for run, options, message in (
        (
            finished_run,
            ['--truth', other],
            r'knows none of the .. networks that .*run has scored, such as \|.*such as \|',
        ),
        (finished_run, ['--truth', table, '--truth-column', 'valid_acc'], r'truth\.csv .*valid_acc'),
        (finished_run, ['--truth', tmp_path / 'none.csv'], r'none\.csv'),
        (finished_run, ['--costs', table], r'truth\.csv .*params'),
        (finished_run, ['--truth', table, '--cost-column', 'flops'], r'truth\.csv .*flops'),
        (finished_run, ['--out', tmp_path / 'no' / 'page.html'], r'page\.html cannot be written \(No such file'),
        (
            tmp_path / 'convs',
            ['--truth', table],
            r'none of the 6 networks that .*convs has scored, such as {"body": .*',
        ),
    ):
        assert main(['report', *map(str, (run, *options))]) == 1
        said = capsys.readouterr().err
        assert re.search(message, said) and said.count('\n') == 1


def test_a_truth_of_another_space(small, tmp_path, capsys):
    """What a user has measured of samples of a space of their own; the labels come in another order there."""
    strategy = small(criterion='random')
    rows = ['arch,seed,test_acc,latency,naswot']
    for stem, body in product(range(3), range(3)):
        sample = {'stem': stem, 'body': body}
        arch = json.dumps(sample).replace('"', '""')
        rows += [f'"{arch}",{seed},{10 * stem + body + seed},{5 - stem},{10 * body - stem}' for seed in (0, 2)]
    (tmp_path / 'truth.csv').write_text('\n'.join(rows))
    models = list(strategy.list_models(limit=6))
    accuracies = [10 * model.sample['stem'] + model.sample['body'] + 1 for model in models]
    tau = kendalltau([model.metric for model in models], accuracies).statistic
    options = [str(tmp_path), '--truth', str(tmp_path / 'truth.csv')]
    assert main(['compare', *options]) == 0
    assert re.search(rf' 6 +{tau:.3f} \[', capsys.readouterr().out)
    costs = ['--cost-column', 'latency', '--cost-column', 'naswot']  # what it costs, and another score of it
    assert main(['report', *costs, *options, '--out', str(tmp_path / 'page.html')]) == 0
    page = (tmp_path / 'page.html').read_text()
    assert f'tau {tau:.3f}</b>' in page and 'on the 6 of 6 scored networks' in page
    assert 'val_loss of all leaves against latency, naswot' in page
    for name, other in (
        ('latency', [5 - model.sample['stem'] for model in models]),
        ('naswot', [10 * model.sample['body'] - model.sample['stem'] for model in models]),
    ):
        assert f'<td class=text>{name}</td><td>6</td><td>{kendalltau(other, accuracies).statistic:.3f}</td>' in page
        assert f'>minus {name}<' in page and f'>Spearman given {name}<' in page
    assert '>live parameters<' not in page


def test_wrong_usage():
    for arguments in (['trees', 'run'], ['tree'], ['compare'], ['tree', 'run', '--truth', 'x'], ['tree', 'a', 'b']):
        said = command(*arguments, code=2).stderr
        assert said.startswith('usage: python -m nni_naslid') and 'Traceback' not in said


def test_a_column_without_its_table_is_a_mistake(tmp_path):
    """Whether or not the run is there: it is said before anything is read."""
    for name in ('report', 'compare'):
        said = command(name, tmp_path, '--truth-column', 'valid_acc', code=2).stderr
        assert said.startswith(f'usage: python -m nni_naslid {name}')
        assert said.endswith(f'{name}: error: --truth-column valid_acc needs --truth, which has that column\n')
    said = command('report', tmp_path, '--cost-column', 'flops', code=2).stderr
    assert said.endswith('--cost-column flops needs --costs, or a --truth that has that column, too\n')


def test_help():
    text = command('--help').stdout
    assert all(name in text for name in ('report', 'compare', 'tree', 'Exit codes: 0', 'trial command'))
    for name in ('report', 'compare', 'tree'):
        assert f'python -m nni_naslid {name} runs/' in command(name, '--help').stdout


@pytest.mark.slow
def test_without_arguments_it_is_the_trial_command():
    said = command(code=1).stderr
    assert 'python -m nni_naslid is a trial command' in said and 'Traceback' not in said
