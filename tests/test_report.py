"""The report against a definition by pairs, and truth tables."""

import json
import re
from itertools import combinations

from nni_naslid import ranking_report
from nni_naslid.analysis.baselines import nasbench201_costs
from nni_naslid.analysis.ranking import format_table
from nni_naslid.analysis.truth import (
    DIGITS_TRUTH,
    arch_name,
    load_truth,
    nasbench201_arch,
    nasbench201_architectures,
    nasbench201_sample,
    truth_setting,
)

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import rankdata


def tau_b(a, b) -> float:
    signs = [(np.sign(a[i] - a[j]), np.sign(b[i] - b[j])) for i, j in combinations(range(len(a)), 2)]
    agree = sum(x * y for x, y in signs)
    return agree / np.sqrt(sum(x != 0 for x, _ in signs) * sum(y != 0 for _, y in signs))


@settings(deadline=None, max_examples=30)
@given(st.integers(20, 60), st.integers(0, 2**31))
def test_against_definitions(n, seed):
    rng = np.random.RandomState(seed)
    estimates, truth = rng.randint(0, 20, n), rng.permutation(n)
    report = ranking_report(estimates, truth)
    assert report['tau'] == pytest.approx(tau_b(estimates, truth))
    assert report['spearman'] == pytest.approx(np.corrcoef(rankdata(estimates), rankdata(truth))[0, 1])
    top = np.argsort(truth)[-max(2, round(n / 10)) :]
    expected = tau_b(estimates[top], truth[top]) if len(set(estimates[top])) > 1 else np.nan
    assert report['tau_top'] == pytest.approx(expected, nan_ok=True)
    assert report['picked'] == truth[estimates == estimates.max()].mean()
    assert report['best'] == n - 1


def test_bad_estimates():
    with pytest.raises(ValueError, match=r'lists of one length, but got \(2,\), \(3,\)'):
        ranking_report([1, 2], [1, 2, 3])
    with pytest.raises(ValueError, match='1 estimates and 0 true values are NaN'):
        ranking_report([1, np.nan], [1, 2])


@pytest.mark.parametrize('top', [10, 1.01, 0, -1, np.nan, None, '0.1'])
def test_bad_top(top):
    with pytest.raises(ValueError, match=f'^top must be a part of the architectures, .* but got {top!r}'):
        ranking_report([1, 2, 3], [1, 2, 3], top=top)


def test_top_of_all_is_all():
    report = ranking_report([3, 1, 2, 4], [1, 2, 3, 4], top=1)
    assert report['tau_top'] == report['tau'] == pytest.approx((4 - 2) / 6)  # of six pairs, two are the wrong way


@pytest.mark.parametrize(
    'values', ['abc', {'a': 1}, [1, 'x', 2], [[1], [1, 2]], torch.ones(3, requires_grad=True), [1j]]
)
def test_what_are_no_numbers(values):
    with pytest.raises(TypeError, match=r'^estimates must be a list of numbers, but got a '):
        ranking_report(values, [1, 2, 3])
    with pytest.raises(TypeError, match=r'^truth must be a list of numbers, but got a '):
        ranking_report([1, 2, 3], values)


def test_infinite_estimates_are_the_largest_and_the_smallest():
    """A diverged network has an infinite loss."""
    truth = [70, 60, 80, 90, 50]
    for infinite, finite in (
        ([-np.inf, 1, 2, 3, -np.inf], [0, 1, 2, 3, 0]),
        ([-np.inf, 1, 2, np.inf, 0], [-1, 1, 2, 3, 0]),
        ([np.inf, 1, 2, np.inf, -np.inf], [3, 1, 2, 3, 0]),
    ):
        assert ranking_report(infinite, truth) == ranking_report(finite, truth)
        assert not np.isnan(list(ranking_report(infinite, truth).values())).any()
    with pytest.raises(ValueError, match=r'^2 true values are infinite'):
        ranking_report([1, 2, 3], [np.inf, 2, -np.inf])


def test_series_belong_together_by_their_index():
    truth = pd.Series([90.0, 70, 80, 60], index=['a', 'b', 'c', 'd'])
    estimates = pd.Series([1, 2, 4, 3], index=['d', 'b', 'a', 'c'])  # in the order of the truth: 4, 2, 3, 1
    assert ranking_report(estimates, truth)['tau'] == 1
    assert ranking_report(estimates, truth)['picked'] == 90
    by_position = ranking_report(estimates.to_numpy(), truth)
    assert by_position['tau'] == pytest.approx((2 - 4) / 6)
    with pytest.raises(ValueError, match=r"same index, but 1 entries are in one of them only, such as 'd'"):
        ranking_report(estimates.drop('d'), truth)
    with pytest.raises(ValueError, match=r"^The index of estimates has 'b' more than once"):
        ranking_report(estimates.rename({'d': 'b'}), truth)
    with pytest.raises(ValueError, match='same index, but 8 entries'):
        ranking_report(pd.Series([4, 2, 3, 1]), truth)


def test_table():
    text = format_table({'SPOS': {'tau': 0.5, 'best': 94.3731}, 'NASLID': {'tau': -0.25, 'best': 94.3731}})
    assert text.splitlines() == [
        '             tau      best',
        'SPOS       0.500    94.373',
        'NASLID    -0.250    94.373',
    ]


def test_architectures_are_the_space_of_nni(nasbench201):
    archs = nasbench201_architectures()
    assert len(set(archs)) == 15625
    space = nasbench201()
    for arch in archs[::997]:
        assert space.check_contains(nasbench201_sample(arch)) is None


@pytest.mark.parametrize(
    'arch',
    [
        '', '|none~0|', '|a~0|+|a~0|a~1|+|a~0|a~1|a~2|', '|none~0|+|none~0|none~0|', None, b'|none~0|',
        'x' + nasbench201_architectures()[0], nasbench201_architectures()[0] + 'skip_connect~2|',
    ],
)  # fmt: skip
def test_bad_architecture(arch):
    with pytest.raises(ValueError, match='Not a NAS-Bench-201 architecture'):
        nasbench201_sample(arch)


def test_bad_sample():
    sample = nasbench201_sample(nasbench201_architectures()[7])
    with pytest.raises(ValueError, match="sample has 'nor_conv_3x3' for 'cell/0_1', which must be one of 'none', "):
        nasbench201_arch({**sample, 'cell/0_1': 'nor_conv_3x3'})
    with pytest.raises(ValueError, match="sample has no choice for 'cell/2_3', which must be one of 'none', "):
        nasbench201_arch({label: choice for label, choice in sample.items() if label != 'cell/2_3'})
    with pytest.raises(ValueError, match="sample has 8 for 'channels', which is no label of the space; its labels "):
        nasbench201_arch({**sample, 'channels': 8})


def test_truth_of_the_package_is_what_the_readme_of_examples_says():
    table = pd.read_csv(DIGITS_TRUTH, comment='#').pivot(index='arch', columns='seed', values='test_acc')
    assert table.shape == (500, 6)
    assert not table.isna().any().any()
    assert set(table.index) <= set(nasbench201_architectures())
    values = table.to_numpy()
    assert np.median(values) > 80  # networks that have learned
    taus = [ranking_report(values[:, a], values[:, b])['tau'] for a, b in combinations(range(6), 2)]
    assert np.mean(taus) == pytest.approx(0.64, abs=0.005)
    halves = [ranking_report(values[:, half].mean(1), np.delete(values, half, axis=1).mean(1))['tau']
              for half in map(list, combinations(range(6), 3))]  # fmt: skip
    assert np.mean(halves) == pytest.approx(0.76, abs=0.005)
    error = np.sqrt(values.var(1, ddof=1).mean() / 6)
    for seed in range(6):  # the top tenth by the others is ahead of the median by three standard errors of a mean
        top = np.delete(values, seed, axis=1).mean(1).argsort()[-50:]
        assert values[top, seed].mean() - np.median(values[:, seed]) > 3 * error
    truth = load_truth(DIGITS_TRUTH, 'test_acc')
    assert truth[table.index].to_numpy() == pytest.approx(values.mean(1))
    costs = nasbench201_costs(truth.index, channels=8, cells=1, image_size=8)
    report = ranking_report(costs['parameters'], truth)
    assert 0.4 < report['tau'] < 0.6  # parameters say something, and not all


def test_truth_from_npz(tmp_path):
    archs = nasbench201_architectures()[:3]
    np.savez(tmp_path / 't.npz', arch=archs, c10=np.array([1, 2, 3], np.float32), matrix=np.eye(3))
    truth = load_truth(tmp_path / 't.npz', 'c10')
    assert dict(truth) == dict(zip(archs, [1.0, 2.0, 3.0], strict=True))


def test_bad_truth(tmp_path):
    np.savez(tmp_path / 't.npz', arch=['a'], c10=[1.0])
    with pytest.raises(ValueError, match="no column 'c100'; it has arch, c10"):
        load_truth(tmp_path / 't.npz', 'c100')
    with pytest.raises(ValueError, match=r'must be a \.csv, \.npz, .* file, .* but got .*t\.json'):
        load_truth(tmp_path / 't.json', 'c10')


ARCHS = nasbench201_architectures()[7:9]


@pytest.mark.parametrize(
    'rows, match',
    [
        ('', 't.csv is empty'),
        ('# setting\n\n', 't.csv is empty'),
        ('arch,seed,c10\n', 't.csv has no rows'),
        ('arch,seed\nA,0\n', "t.csv has no column 'c10'; it has arch, seed"),
        ('A,0,93.5\n', "t.csv has no column 'arch'; it has |"),
        ('arch;c10\nA;93,5\n', "t.csv has no column 'arch'; it has arch;c10"),
        ('arch,c10,c10\nA,1,2\n', "t.csv has more than one column 'c10'"),
        ('# setting\narch,seed,c10\nA,0,\n', "t.csv, line 3: c10 must be a number such as 93.5, but is ''"),
        ('arch,c10\nA,93.5%\n', "t.csv, line 2: c10 must be a number such as 93.5, but is '93.5%'"),
        ('arch,c10\nB,1\nA,"93,5"\n', "t.csv, line 3: c10 must be a number such as 93.5, but is '93,5'"),
        ('arch,c10\nA,93,5\n', 't.csv, line 2 has 3 fields, but the header has 2'),
        ('arch,seed,c10\nA,93.5\n', 't.csv, line 2 has 2 fields, but the header has 3'),
        ('arch,c10\nA,good\n', "t.csv, line 2: c10 must be a number such as 93.5, but is 'good'"),
        ('arch,c10\nA,inf\n', "t.csv, line 2: c10 must be a number such as 93.5, but is 'inf'"),
        ('arch,c10\nA,nan\n', "t.csv, line 2: c10 must be a number such as 93.5, but is 'nan'"),
        ('arch,c10\nresnet18,93.5\n', "t.csv, line 2: arch must be |op~0|+.*, but is 'resnet18'"),
        (
            'arch,c10\n"{""a"": 1",2\n',
            'line 2: arch must be .* or a dict of label to choice as JSON, but is \'{"a": 1\'',
        ),
        ('arch,c10\n[1],2\n', "line 2: arch must be .* or a dict of label to choice as JSON, but is '[1]'"),
        ('arch,c10\n{},2\n', "line 2: arch must be .* or a dict of label to choice as JSON, but is '{}'"),
        ('arch,seed,c10\nA,0,1\nA,1,2\n\nA,0,3\n', 't.csv, line 5: A with seed 0 comes twice, first in .*, line 2'),
    ],
)
def test_mistakes_in_a_table(tmp_path, rows, match):
    (tmp_path / 't.csv').write_text(rows.replace('A', ARCHS[0]).replace('B', ARCHS[1]))
    pattern = '.*'.join(map(re.escape, match.replace('A', ARCHS[0]).split('.*')))
    with pytest.raises(ValueError, match=pattern) as caught:
        load_truth(tmp_path / 't.csv', 'c10')
    assert len(str(caught.value).splitlines()) == 1
    assert str(tmp_path / 't.csv') in str(caught.value)


def test_tables_as_other_programs_write_them(tmp_path):
    """Byte order mark, comments, empty and blank lines, spaces, quotes, other columns, seeds."""
    one, two = ARCHS
    lines = [
        '# a, "b',
        'note, arch ,seed,c10',
        f'"x, y",{two},0, 50',
        '',
        ' # c',
        ',,,',
        f',"{one}",1,"90.5"',
        f',{one},2,91.5',
    ]
    (tmp_path / 't.CSV').write_text('\r\n'.join(lines), encoding='utf-8-sig', newline='')
    assert dict(load_truth(tmp_path / 't.CSV', 'c10')) == {two: 50, one: 91}
    np.savez(tmp_path / 't.npz', arch=np.array([one, two], 'S'), c10=np.array(['90.5', '50']), seed=777)
    assert dict(load_truth(tmp_path / 't.npz', 'c10')) == {two: 50, one: 90.5}
    np.savez(tmp_path / 't.npz', arch=[one, two, one], c10=[1, 2, 4])
    assert dict(load_truth(tmp_path / 't.npz', 'c10')) == {one: 2.5, two: 2}


def test_a_table_of_another_space(tmp_path):
    """Samples are one architecture whatever the order of their labels; one of NasBench201 has its official string."""
    sample = {'normal/op_2_0': 'sep_conv_3x3', 'normal/input_2_0': [0], 'ratio': 0.5}
    turned = dict(reversed(sample.items()))
    archs = [
        json.dumps(sample),
        json.dumps(turned),
        json.dumps({**sample, 'ratio': 1}),
        json.dumps(nasbench201_sample(ARCHS[0])),
    ]
    pd.DataFrame({'architecture': archs, 'seed': [1, 2, 1, 1], 'acc': [90, 91, 70, 60]}).to_csv(tmp_path / 't.csv')
    truth = load_truth(tmp_path / 't.csv', 'acc')
    assert truth.to_list() == [90.5, 70, 60]
    assert truth[json.dumps(turned, sort_keys=True)] == truth[arch_name(sample)] == 90.5
    assert truth[ARCHS[0]] == 60


@pytest.mark.parametrize(
    'arrays, match',
    [
        ({'arch': ARCHS, 'c10': [1.0]}, r'c10 must have one value for each arch, .* \(1,\), \(2,\)'),
        ({'arch': ARCHS, 'c10': [[1.0], [2.0]]}, r'c10 must have one value for each arch, .* \(2, 1\), \(2,\)'),
        ({'arch': ARCHS, 'c10': [1.0, np.inf]}, r"row 1: c10 must be a number such as 93\.5, but is 'inf'"),
        ({'arch': ARCHS, 'c10': ['1', '2 %']}, r"row 1: c10 must be a number such as 93\.5, but is '2 %'"),
        ({'arch': [0, 1], 'c10': [1.0, 2.0]}, r"row 0: arch must be .* but is '0'"),
        ({'arch': [], 'c10': []}, 'has no rows'),
        (
            {'arch': ARCHS[:1] * 2, 'c10': [1.0, 2.0], 'seed': [3, 3]},
            'row 1: .* with seed 3 comes twice, first in .*row 0',
        ),
        ({'arch': np.array(['A', None]), 'c10': [1.0, 2.0]}, 'cannot be read: Object arrays cannot be loaded'),
    ],
)
def test_mistakes_in_arrays(tmp_path, arrays, match):
    np.savez(tmp_path / 't.npz', **arrays)
    with pytest.raises(ValueError, match=f'^{re.escape(str(tmp_path / "t.npz"))}.*{match}'):
        load_truth(tmp_path / 't.npz', 'c10')


def test_files_that_are_no_tables(tmp_path):
    for name in ('t.npz', 't.csv'):
        for content in (b'', b'\xff\xfe\x00', b'arch,c10\n' + ARCHS[0].encode() + b',\xff\n'):
            (tmp_path / name).write_bytes(content)
            with pytest.raises(ValueError, match=f'^{re.escape(str(tmp_path / name))} (cannot be read|is empty)'):
                load_truth(tmp_path / name, 'c10')
    np.savez(tmp_path / 't.npz', arch=ARCHS, c10=[1, 2])
    whole = (tmp_path / 't.npz').read_bytes()
    (tmp_path / 't.npz').write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r't\.npz cannot be read'):
        load_truth(tmp_path / 't.npz', 'c10')
    with pytest.raises(FileNotFoundError, match=r'none\.csv'):
        load_truth(tmp_path / 'none.csv', 'c10')
    (tmp_path / 't.csv').write_text('# {"data": digits}\n')
    with pytest.raises(ValueError, match=r't\.csv, line 1 does not hold the setting as JSON'):
        truth_setting(tmp_path / 't.csv')
