"""The benchmark of memory counts what torch itself counts, and fake tensors take what real ones take."""

import sys
from pathlib import Path

from nni_naslid.train.path import set_path

import bench_memory
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from bench_memory import CASES, Case, Peak, Work
from nni.nas.hub.pytorch import ProxylessNAS
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools.mem_tracker import MemTracker

EXAMPLES = Path(bench_memory.__file__).parent
TINY = 'NAS-Bench-201, 4 channels, 1 cell'


def network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 1), nn.Flatten(), nn.Linear(256, 3)
    )


def test_a_step_is_counted_as_by_torch():
    model, x, y = network(), torch.randn(6, 3, 8, 8), torch.zeros(6, dtype=torch.long)
    tracker = MemTracker()
    tracker.track_external(model, x, y)
    with tracker:
        F.cross_entropy(model(x), y).backward()
    right = tracker.get_tracker_snapshot('peak')[torch.device('cpu')]['Total']
    model.zero_grad(set_to_none=True)
    peak = Peak()
    peak.count([*model.parameters(), *model.buffers(), x, y])
    before = peak.now
    with peak:
        F.cross_entropy(model(x), y).backward()
    assert peak.highest == right > before
    model.zero_grad(set_to_none=True)
    assert peak.now == before


@pytest.mark.slow
@pytest.mark.parametrize('method', ['streamed', 'forward'])
def test_fake_tensors_take_what_real_ones_take(method):
    found = []
    for mode in (None, FakeTensorMode()):
        work, peak = Work(CASES[TINY], mode), Peak()
        peak.count([*work.weights, *work.supernet.buffers(), work.x, work.y])
        with peak:
            if mode is None:
                getattr(work, method)()
            else:
                with mode:
                    getattr(work, method)()
        found.append(peak.highest)
    assert found[0] == found[1]


@pytest.mark.parametrize(
    'case, profiled',
    [
        (CASES[TINY], 1),
        pytest.param(Case(lambda: ProxylessNAS(10, base_widths=(8,) * 9), 32), 3, marks=pytest.mark.slow),
    ],
    ids=['nasbench201', 'proxyless'],
)
def test_profiles_of_the_first_labels_take_the_memory_of_all(case, profiled):
    found = []
    for each in (case, case._replace(profiled=profiled)):
        found.append(bench_memory.count(each, bench_memory.LID)[1])
    assert found[0] == pytest.approx(found[1], rel=0.01)  # Python counts the work space of the op, not to the byte


def test_the_path_is_the_largest():
    work = Work(CASES[TINY])
    costs = []
    for sample in (work.path, *work.subspace.extremes):
        set_path(work.supernet, sample)
        peak = Peak()
        with peak:
            F.cross_entropy(work.supernet(work.x), work.y)
        costs.append(peak.highest)
    assert max(costs) == costs[0]


def test_the_readme_has_the_figures_of_the_rows():
    rows = pd.read_csv(EXAMPLES / 'bench_memory.csv')
    rows = rows[~rows['device'].str.startswith('NVIDIA')]  # those that are counted
    readme = (EXAMPLES / 'README.md').read_text()
    for _, of_case in rows.groupby(['space', 'image']):
        held, streamed, lid, forward = of_case.beyond_weights_mib
        digits = 0 if lid > 100 else 1
        figures = f'| {held:,.0f} | {streamed:,.0f} | {lid:,.{digits}f} | {of_case.less_percent.iloc[2]:.1f} % |'
        assert f'{figures} {forward:,.{digits}f} |' in readme


@pytest.mark.slow
def test_the_benchmark_of_memory(tmp_path, monkeypatch, capsys):
    arguments = ['--cases', TINY, '--timed', TINY, '--rounds', '1', '--output', str(tmp_path / 'rows.csv')]
    monkeypatch.setattr(sys, 'argv', ['bench_memory.py', *arguments])
    bench_memory.main()
    rows = pd.read_csv(tmp_path / 'rows.csv')
    held, streamed, lid, forward = (row for _, row in rows.iterrows())
    assert forward.beyond_weights_mib < lid.beyond_weights_mib < streamed.beyond_weights_mib < held.beyond_weights_mib
    assert lid.less_percent == pytest.approx(100 * (1 - lid.beyond_weights_mib / streamed.beyond_weights_mib), abs=1)
    assert len(set(rows.weights_mib)) == 1
    assert lid.seconds_p50 > 0 and streamed.of_gradients == 1
    assert 'gradients, of one label at a time' in capsys.readouterr().out
