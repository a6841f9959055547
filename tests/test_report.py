"""The report against a definition by pairs, and truth tables."""

from itertools import combinations

from nni_naslid import ranking_report
from nni_naslid.benchmarks import DIGITS_TRUTH, load_truth, nasbench201_architectures, nasbench201_sample
from nni_naslid.report import format_table

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


@pytest.mark.parametrize('arch', ['', '|none~0|', '|a~0|+|a~0|a~1|+|a~0|a~1|a~2|', '|none~0|+|none~0|none~0|'])
def test_bad_architecture(arch):
    with pytest.raises(ValueError, match='Not a NAS-Bench-201 architecture'):
        nasbench201_sample(arch)


def test_truth_of_the_package_is_what_the_issue_promises():
    table = pd.read_csv(DIGITS_TRUTH, comment='#').pivot(index='arch', columns='seed', values='test_acc')
    assert table.shape[0] >= 300
    assert table.shape[1] == 3
    assert not table.isna().any().any()
    assert set(table.index) <= set(nasbench201_architectures())
    values = table.to_numpy()
    taus = [ranking_report(values[:, a], values[:, b])['tau'] for a, b in combinations(range(3), 2)]
    assert min(taus) > 0.7
    truth = load_truth(DIGITS_TRUTH, 'test_acc')
    assert truth[table.index].to_numpy() == pytest.approx(values.mean(1))


def test_truth_from_npz(tmp_path):
    archs = nasbench201_architectures()[:3]
    np.savez(tmp_path / 't.npz', arch=archs, c10=np.array([1, 2, 3], np.float32), matrix=np.eye(3))
    truth = load_truth(tmp_path / 't.npz', 'c10')
    assert dict(truth) == dict(zip(archs, [1.0, 2.0, 3.0], strict=True))


def test_bad_truth(tmp_path):
    np.savez(tmp_path / 't.npz', arch=['a'], c10=[1.0])
    with pytest.raises(ValueError, match="no column 'c100'; it has arch, c10"):
        load_truth(tmp_path / 't.npz', 'c100')
    with pytest.raises(ValueError, match=r'must be a .csv or .npz file, but got .*t.json'):
        load_truth(tmp_path / 't.json', 'c10')
    (tmp_path / 't.csv').write_text('# setting\narch,seed,c10\na,0,\n')
    with pytest.raises(ValueError, match="1 architectures have no number in column 'c10'"):
        load_truth(tmp_path / 't.csv', 'c10')
