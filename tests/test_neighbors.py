"""The op: nearest neighbours against scikit-learn and the reference, in every layout, dtype and corner."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from nni_naslid.lid import cpu, lid_mle
from nni_naslid.lid.op import nearest_neighbors as op
from nni_naslid.lid.reference import nearest_neighbors_reference

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.neighbors import NearestNeighbors
from torch import nn

DEVICES = ['cpu', *(['cuda'] if torch.cuda.is_available() else [])]
# Relative to a squared distance. Float32 products are off by some 1e-7 of |x|^2 + |y|^2, and count where the squared
# distance is at least 2^-5 of that. Where a test has 1e-5 or 5e-6 instead, its points are spread around the origin, so
# that hardly anything cancels. Indices are compared where no two distances are that close; they, and distances of two
# runs of one and the same computation on one machine, are compared bit for bit.
TOLERANCE = {torch.float16: 1e-4, torch.bfloat16: 1e-4, torch.float32: 1e-4, torch.float64: 1e-8}


@pytest.fixture(params=DEVICES)
def device(request):
    return request.param


@pytest.fixture(params=[1, 2])
def n_threads(request):
    """The number of threads of torch: with one, products of few points are numpy's."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def check(x, k, device='cpu', **options):
    squared, index = (each[0].cpu() for each in op([x.to(device)], k, **options))
    expected, _ = nearest_neighbors_reference(x, k)
    torch.testing.assert_close(squared.double(), expected, rtol=TOLERANCE[x.dtype], atol=0)
    chosen = torch.gather(x.double(), -2, index.flatten(-2)[..., None].expand(*x.shape[:-2], -1, x.shape[-1]))
    difference = chosen.view(*index.shape, -1) - x.double().unsqueeze(-2)
    torch.testing.assert_close(difference.square().sum(-1), expected, rtol=TOLERANCE[x.dtype], atol=0)
    assert (index != torch.arange(x.shape[-2]).unsqueeze(-1)).all()
    assert (squared.diff() >= 0).all()


def test_reference_agrees_with_scikit_learn():
    x = torch.randn(60, 9, dtype=torch.float64)
    distances, index = NearestNeighbors(n_neighbors=8, algorithm='brute').fit(x).kneighbors()
    squared, neighbor = nearest_neighbors_reference(x, 8)
    torch.testing.assert_close(squared.sqrt(), torch.from_numpy(distances), rtol=TOLERANCE[x.dtype], atol=0)
    assert torch.equal(neighbor, torch.from_numpy(index))


@pytest.mark.parametrize('dtype', TOLERANCE)
@pytest.mark.parametrize(
    'n, d, k',
    [(3, 1, 1), (3, 1, 2), (64, 40, 20), (65, 7, 64), (127, 1500, 20), (129, 33, 5), (300, 20, 20), (600, 9, 2),
     (1100, 5, 33), (700, 6, 400), (1100, 6, 400), (2050, 40, 1)],
)  # fmt: skip
def test_agrees_with_the_reference(n, d, k, dtype, device):
    check(torch.randn(n, d).to(dtype), k, device)


def test_layouts(device):
    x = torch.randn(6, 5, 4, 300)
    check(x[0, 0].T, 3, device)
    check(torch.randn(300, 300)[:, 20:260], 20, device)
    check(torch.randn(300, 300)[::2, ::3], 20, device)
    check(x.permute(3, 0, 2, 1)[:, 2], 2, device)
    check(torch.randn(7, 8, 9, 10).contiguous(memory_format=torch.channels_last), 4, device)
    check(torch.randn(100, 40, 3), 7, device)  # more than fits one piece of work
    check(torch.randn(3, 280, 5), 7, device)
    assert op([torch.randn(0, 30, 4, device=device)], 5)[0].shape == (1, 0, 30, 5)


@pytest.mark.parametrize('batch', [(), (2,)])
def test_several_sets_at_once(batch, device):
    sets = [torch.randn(*batch, 90, d, device=device) for d in (3, 1100, 64)]
    squared, index = op(sets, 10)
    assert squared.shape == index.shape == (3, *batch, 90, 10)
    for i, points in enumerate(sets):
        alone = op([points], 10)
        torch.testing.assert_close(squared[i], alone[0][0], rtol=TOLERANCE[torch.float32], atol=0)
        assert torch.equal(index[i], alone[1][0])


@settings(deadline=None, max_examples=40)
@given(st.data())
def test_any_points(data):
    """Clusters of any tightness, anywhere, with duplicates."""
    n, d = data.draw(st.integers(3, 150)), data.draw(st.sampled_from([1, 2, 5, 40, 300, 3000]))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**31)))
    centres = torch.randn(data.draw(st.integers(1, 4)), d, generator=generator)
    which = torch.randint(len(centres), (n,), generator=generator)
    spread, offset = 10.0 ** data.draw(st.integers(-7, 1)), 10.0 ** data.draw(st.integers(-3, 3))
    x = centres[which] + spread * torch.randn(n, d, generator=generator) + offset
    x[: data.draw(st.integers(0, n))] = x[0].clone()
    k = data.draw(st.integers(1, n - 1))
    check(x, k)
    check(x.unsqueeze(0), k)  # not by numpy
    if k > 2:  # LID has a search of its own, for distances alone
        squared, _ = nearest_neighbors_reference(x, k)
        n_apart = (squared > 0).sum(1)
        logs = torch.where(squared > 0, (squared[:, -1:] / squared).log() / 2, 0).sum(1)
        lid = lid_mle(x, k).double()
        assert torch.equal(lid > 0, n_apart > 2)
        some = lid > 0
        torch.testing.assert_close(1 / lid[some], (logs / (n_apart - 2))[some], rtol=1e-4, atol=2e-4)


@pytest.fixture(scope='module')
def features():
    """Feature maps after a convolution and a batch norm, of smooth noisy images."""
    torch.manual_seed(0)
    images = nn.functional.interpolate(torch.randn(128, 3, 8, 8), 32, mode='bilinear') + torch.randn(128, 3, 32, 32) / 9
    convolution = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU())
    with torch.no_grad():
        return nn.Sequential(convolution, nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16))(images).flatten(1)


def error(x, device) -> float:
    """Largest relative error of LID."""
    lid = [
        1 / (squared[..., -1:] / squared).log().sum(-1)
        for squared in (op([x.to(device)], 20)[0][0].cpu().double(), nearest_neighbors_reference(x, 20)[0])
    ]
    return ((lid[0] - lid[1]) / lid[1]).abs().max().item()


@pytest.mark.parametrize('batched', [False, True])  # by numpy, or by torch
def test_accuracy(features, batched, device):
    points = features.unsqueeze(0) if batched else features
    assert error(points, device) <= 5e-6
    assert error(points + 1000, device) <= 1e-4
    for distance in (1, 0.1, 0.01, 1e-3, 1e-5):
        copies = points[..., :64, :] + distance * torch.randn(64, features.shape[1])
        assert error(torch.cat([points[..., :64, :], copies], -2), device) <= 1e-4


@pytest.mark.parametrize(
    'change',
    [
        lambda x: x, lambda x: x + 1000, lambda x: x.view(512, -1), lambda x: x.view(300 * 16, -1)[:300],
        lambda x: torch.cat([x, x[:1]]), lambda x: torch.cat([x[:64], x[:64] + 1e-3 * x[64:]]), lambda x: x[:3],
        lambda x: x.view(1024, -1),
    ],
)  # fmt: skip
def test_ordinary_points_are_searched_by_numpy(features, change, n_threads):
    points = change(features[:, :4800].contiguous())
    k = min(20, len(points) - 1)
    squared, index = cpu.find_neighbors(points, k)
    expected, neighbors = nearest_neighbors_reference(points, k)
    torch.testing.assert_close(squared.double(), expected, rtol=1e-4, atol=0)
    assert (index == neighbors).float().mean() > 0.99


@pytest.mark.filterwarnings('error::RuntimeWarning')
@pytest.mark.parametrize(
    'change',
    [
        lambda x: x.double(), lambda x: x.unsqueeze(0), lambda x: x.view(512, -1)[:, ::2],
        lambda x: x.view(2048, -1)[:1025],
        lambda x: x / 0, lambda x: x * 1e30, lambda x: x * 1e-30, lambda x: x * 0,
        lambda x: torch.cat([x[:2], x[:1].expand(60, -1)]), lambda x: torch.cat([x, x[:2] * 1e-22]),
    ],
)  # fmt: skip
def test_other_points_are_not(features, change):
    assert cpu.find_neighbors(change(features), 20) is None


@pytest.mark.parametrize('k', [1, 20])
@pytest.mark.parametrize(
    'change',
    [
        lambda x: x + 1000, lambda x: torch.cat([x, x[5:9]]), lambda x: x * torch.linspace(1e-4, 1, 1200).unsqueeze(1),
        lambda x: x[torch.arange(1200) // 3 * 3] + 1e-4 * x,  # products of float32 do not tell which copy is nearer
    ],
)  # fmt: skip
def test_more_points_than_numpy_takes(change, k, device):
    check(change(torch.randn(1200, 64)), k, device)


@pytest.mark.parametrize('spread', [1e-1, 1e-3, 1e-5])
def test_accuracy_in_tight_clusters(spread, device):
    """All neighbours are near-duplicates: three clusters of forty points, five-dimensional, on a plane far away."""
    plane = torch.randn(5, 300, dtype=torch.float64)
    centres = torch.randn(3, 1, 300, dtype=torch.float64)
    x = (centres + spread * torch.randn(3, 40, 5, dtype=torch.float64) @ plane).flatten(0, 1).float()
    assert error(x, device) <= 1e-4


@pytest.mark.parametrize('scale', [1e-42, 1e-30, 1e-18, 1e18, 1e30, 3e37])
def test_range(scale, device):
    """Squares that float32 does not have: those of a point are multiplied by one power of four."""
    x = torch.rand(40, 10)
    x = torch.stack([x, x * scale])
    squared, index = (each[0].cpu().double() for each in op([x.to(device)], 5))
    expected, neighbor = nearest_neighbors_reference(x, 5)
    factor = squared / expected
    torch.testing.assert_close(factor[0], torch.ones(40, 5).double(), rtol=1e-4, atol=0)
    torch.testing.assert_close(factor[1], factor[1, :, :1].expand(40, 5), rtol=1e-4, atol=0)
    exponents = torch.log2(factor[1]) / 2
    torch.testing.assert_close(exponents, exponents.round(), rtol=0, atol=1e-4)
    assert torch.equal(index, neighbor.double())


@pytest.mark.parametrize('small', [1e-20, 1e-22, 1e-25, 1e-30, 1e-40])
@pytest.mark.parametrize('outlier', [0, 30])
def test_one_point_of_another_size(small, outlier, device):
    x = torch.randn(60, 10)
    for scale in (small, 1 / max(small, 1e-37)):
        y = x.clone() * scale if scale < 1 else x.clone()
        y[outlier] = 1 if scale < 1 else scale
        inliers = [i for i in range(60) if i != outlier]
        squared, index = (each[0].cpu() for each in op([y.to(device)], 5))
        expected, neighbor = nearest_neighbors_reference(y, 5)
        assert torch.equal(index[inliers], neighbor[inliers])
        ratio = (squared / squared[:, -1:]).double()[inliers]
        torch.testing.assert_close(ratio, (expected / expected[:, -1:])[inliers], rtol=1e-4, atol=0)


def test_float64_range():
    x = torch.rand(40, 10, dtype=torch.float64)
    assert torch.equal(op([x * 2.0**700], 5)[1], op([x], 5)[1])
    assert torch.equal(op([x * 2.0**-700], 5)[1], op([x], 5)[1])


def test_non_finite_points(device):
    x = torch.randn(3, 40, 10)
    x[1, 7, 3] = torch.nan
    x[2, 5], x[2, 9] = torch.inf, -torch.inf
    with pytest.raises(ValueError, match=r'but points \(1, 7\), \(2, 5\), \(2, 9\) hold NaN or infinity'):
        op([x.to(device)], 5)
    with pytest.raises(ValueError, match='but point 7 holds NaN or infinity'):
        op([x[0].to(device), x[1].to(device)], 5)
    squared, index = (each[0].cpu() for each in op([x.to(device)], 5, non_finite='nan'))
    assert squared[1, 7].isnan().all()
    assert (index[2, [5, 9]] == -1).all()
    assert squared.isnan().sum() == 15
    good = [i for i in range(40) if i not in (5, 9)]
    expected, neighbor = nearest_neighbors_reference(x[2, good], 5)
    torch.testing.assert_close(squared[2, good].double(), expected, rtol=1e-5, atol=0)
    assert torch.equal(index[2, good], torch.tensor(good)[neighbor])
    x[1, 4:] = torch.nan  # four are left: three neighbours for each
    squared, index = (each[0, 1].cpu() for each in op([x.to(device)], 5, non_finite='nan'))
    assert squared[:4, :3].isfinite().all()
    assert squared[:4, 3:].isinf().all()
    assert (index[:4, 3:] == -1).all()


def test_many_non_finite_points_are_counted():
    with pytest.raises(ValueError, match=r'points 0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and 30 more hold NaN'):
        op([torch.full((40, 3), torch.nan)], 5)


@pytest.mark.parametrize(
    'features, options, error, match',
    [
        ([torch.ones(30, 5, dtype=torch.long)], {}, TypeError, 'floating point, but got torch.int64'),
        (
            [torch.ones(30, 5), torch.ones(30, 5).double()],
            {},
            TypeError,
            'one dtype, but got torch.float32 and torch.fl',
        ),
        ([], {}, ValueError, 'at least one set of points'),
        ([torch.ones(30)], {}, ValueError, r'shape \[..., N, D\] with D > 0, but got \(30,\)'),
        ([torch.ones(30, 0)], {}, ValueError, r'D > 0, but got \(30, 0\)'),
        ([torch.ones(2, 5)], {}, ValueError, 'at least 3 points, but got N = 2'),
        ([torch.ones(30, 5), torch.ones(29, 5)], {}, ValueError, r'but got \(30, 5\) and \(29, 5\)'),
        ([torch.ones(30, 5), torch.ones(30, 5, device='meta')], {}, ValueError, 'one device, but are on cpu and meta'),
        ([torch.ones(30, 5)], {'n_neighbors': 30}, ValueError, r'in \[1, N\) with N = 30 points, but got 30'),
        ([torch.ones(30, 5)], {'n_neighbors': 0}, ValueError, 'but got 0'),
        ([torch.ones(30, 5)], {'precision': 'low'}, ValueError, "precision must be one of .* but got 'low'"),
        ([torch.ones(30, 5)], {'non_finite': 'omit'}, ValueError, "must be 'raise' or 'nan', but got 'omit'"),
    ],
)
def test_bad_input(features, options, error, match):
    with pytest.raises(error, match=match):
        op(features, **{'n_neighbors': 5, **options})


@pytest.mark.parametrize('dtype', [torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize('batch', [(), (2,)])
def test_opcheck(batch, dtype, device):
    features = [torch.randn(*batch, 40, d, device=device).to(dtype) for d in (3, 8)]
    torch.library.opcheck(torch.ops.nni_naslid.nearest_neighbors.default, (features, 5))
    torch.library.opcheck(torch.ops.nni_naslid.nearest_neighbors.default, (features, 5, 'high', 'nan'))


@pytest.mark.parametrize('shape', [(140, 300), (1, 140, 300), (1100, 30)])
def test_settings_of_the_process_change_nothing(shape, n_threads, device):
    x = torch.randn(shape, device=device)
    expected = op([x], 20)
    torch.set_float32_matmul_precision('medium')
    try:
        with torch.autocast(device, torch.bfloat16), torch.no_grad():
            found = op([x], 20)
        with torch.inference_mode():
            inferred = op([x], 20)
        torch.set_default_dtype(torch.float64)
        other = op([x], 20)
        assert torch.get_float32_matmul_precision() == 'medium'
    finally:
        torch.set_float32_matmul_precision('highest')
        torch.set_default_dtype(torch.float32)
    for squared, index in (found, inferred, other, op([x.clone().requires_grad_()], 20)):
        assert torch.equal(squared, expected[0])
        assert torch.equal(index, expected[1])


def test_threads_do_not_disturb_each_other():
    """The precision settings are those of the process."""
    x = torch.randn(1, 200, 400)  # not by numpy, which has no such setting
    expected = op([x], 20)[0]
    torch.set_float32_matmul_precision('medium')
    try:
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(lambda _: op([x], 20)[0], range(200)))
        assert torch.backends.mkldnn.matmul.fp32_precision == 'bf16'
    finally:
        torch.set_float32_matmul_precision('highest')
    assert all(torch.equal(squared, expected) for squared in found)


@pytest.mark.skipif(not Path('/proc/self/clear_refs').exists(), reason='needs the peak memory of Linux')
def test_memory():
    """At most twice the Gram matrix beside the points, and what the allocator keeps; copies of points would be 64."""
    from bench_lid import peak_megabytes

    for x, k in (
        (torch.randn(2048, 8192), 20), (torch.randn(4096, 40), 256), (torch.randn(256, 65536), 20),
        (torch.randn(256, 65536).half(), 20),
    ):  # fmt: skip
        op([x], k)
        assert peak_megabytes(lambda points, k=k: op([points], k), x) < 2 * len(x) ** 2 * 4 / 2**20 + 16


@pytest.mark.parametrize('n', [260, 1100])
def test_the_same_each_time(n, device):
    x = torch.randn(n, 70, device=device).round(decimals=1)  # with ties
    assert all(torch.equal(op([x], 20)[1], op([x], 20)[1]) for _ in range(3))
