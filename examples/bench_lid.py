"""Time the LID of a batch of points: this package against every other way we know.

    python examples/bench_lid.py

One process, one thread, all sizes and ways interleaved; on the CPU it is the time of the processor that counts, so that
a busy machine disturbs less. Rows go to bench_lid.csv beside this script (appended, never edited) and from there into
one picture and one table in Markdown. Peers that are not installed are skipped: faiss-cpu (with which torchid searches
on the CPU), scikit-dimension and scikit-learn are taken if they are there.
"""

from __future__ import annotations

import os

os.environ.update(OMP_NUM_THREADS='1', OPENBLAS_NUM_THREADS='1', MKL_NUM_THREADS='1')  # read when libraries load

import ctypes
import platform
import shutil
import subprocess
import time
from argparse import ArgumentDefaultsHelpFormatter, ArgumentParser
from collections.abc import Callable
from datetime import datetime, timezone
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from nni_naslid import lid_mle
from nni_naslid.lid.reference import lid_mle_published, nearest_neighbors_reference

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from torch import Tensor

K = 20
SIZES = [(64, 256), (64, 16384), (128, 16384), (128, 4096), (256, 4096), (512, 4096), (1024, 1024), (4096, 256)]
HARD = ['offset 1000', 'near-duplicates', 'tight clusters']
CASES = [('batch norm', *size) for size in SIZES] + [(kind, 128, 16384) for kind in HARD]
OURS = 'nni_naslid'


def from_squares(squared: Tensor) -> Tensor:
    """Unbiased LID from squared distances to neighbours, ascending or not."""
    return (K - 2) / (torch.log(squared.amax(-1, keepdim=True) / squared).sum(-1) / 2)


def torch_mm(x: Tensor) -> Tensor:
    """The least one can do in plain torch; it does not notice where distances cancel."""
    return from_gram(x @ x.T)


def torch_mm_centred(x: Tensor) -> Tensor:
    """The same, which notices in the Gram matrix that the origin is far away, and begins anew with centred points."""
    gram = x @ x.T
    norm = gram.diagonal().mean()
    if norm > 16 * (norm - gram.mean()):
        x = x - x.mean(0)
        gram = x @ x.T
    return from_gram(gram)


def from_gram(gram: Tensor) -> Tensor:
    norms = gram.diagonal()
    squared = (norms[:, None] + norms - 2 * gram).fill_diagonal_(torch.inf)
    return from_squares(squared.topk(K, largest=False, sorted=False).values)


def torch_cdist(x: Tensor) -> Tensor:
    return from_squares(torch.cdist(x, x).fill_diagonal_(torch.inf).topk(K, largest=False).values.square())


def torch_cdist_compiled(x: Tensor) -> Tensor:
    """What torch.compile takes: it cannot fill a diagonal in place."""
    itself = torch.eye(len(x), dtype=torch.bool, device=x.device)
    return from_squares(torch.cdist(x, x).masked_fill(itself, torch.inf).topk(K, largest=False).values.square())


def faiss_knn(x: Tensor) -> Tensor:
    import faiss

    faiss.omp_set_num_threads(1)
    return from_squares(torch.from_numpy(faiss.knn(x.numpy(), x.numpy(), K + 1)[0][:, 1:]))


def sklearn_knn(x: Tensor) -> Tensor:
    from sklearn.neighbors import NearestNeighbors

    return from_squares(torch.from_numpy(NearestNeighbors(n_neighbors=K).fit(x.numpy()).kneighbors()[0]).square())


def scikit_dimension(x: Tensor) -> Tensor:
    import skdim

    return torch.from_numpy(skdim.id.MLE(unbiased=True).fit_transform_pw(x.numpy(), n_neighbors=K))


def providers(device: str) -> dict[str, tuple[Callable[[Tensor], Tensor], str]]:
    """Ways to compute the LID of points, and the package whose version counts."""
    ways = {
        OURS: (lid_mle, 'nni-naslid'),
        'torch mm + topk': (torch_mm, 'torch'),
        'torch mm, centring + topk': (torch_mm_centred, 'torch'),
        'torch cdist + topk': (torch_cdist, 'torch'),
        'published code': (lambda x: lid_mle_published(x, K) * (K - 2) / K, 'torch'),
    }
    if device == 'cuda' or shutil.which('g++'):
        ways['torch.compile of cdist'] = (torch.compile(torch_cdist_compiled, dynamic=False), 'torch')
    else:
        print('Skipped: torch.compile needs a C++ compiler.')
    if device == 'cpu':
        ways['faiss'] = (faiss_knn, 'faiss-cpu')
        ways['scikit-learn'] = (sklearn_knn, 'scikit-learn')
        ways['scikit-dimension'] = (scikit_dimension, 'scikit-dimension')
    else:
        ways[f'{OURS}, high'] = (partial(lid_mle, precision='high'), 'nni-naslid')
        ways[f'{OURS}, medium'] = (partial(lid_mle, precision='medium'), 'nni-naslid')
    for name, (_, package) in list(ways.items()):
        try:
            version(package)
        except PackageNotFoundError:
            print(f'Skipped: {package} is not installed.')
            del ways[name]
    return ways


def make_points(kind: str, n: int, d: int, device: str) -> Tensor:
    """Points near a manifold of 30 dimensions, as they come from a batch norm; or harder ones."""
    generator = torch.Generator().manual_seed(n + d)
    x = torch.randn(n, 30, generator=generator) @ torch.randn(30, d, generator=generator) / 30**0.5
    x += torch.randn(n, d, generator=generator) / 4
    if kind == 'offset 1000':
        x += 1000
    elif kind == 'tight clusters':  # of 30 points, more than there are neighbours
        x = x[torch.arange(n) // 30 * 30] + 1e-6 * x
    elif kind == 'near-duplicates':
        x[n // 2 :] = x[: n // 2] + 1e-3 * torch.randn(n // 2, d, generator=generator)
    return x.to(device)


def milliseconds(way: Callable[[Tensor], Tensor], x: Tensor) -> float:
    """Time of one call, averaged over enough calls to take 20 ms."""
    clock = time.perf_counter if x.is_cuda else time.process_time
    calls, start = 0, clock()
    while clock() - start < 0.02 or not calls:
        way(x)
        calls += 1
        if x.is_cuda:
            torch.cuda.synchronize()
    return (clock() - start) / calls * 1000


def peak_megabytes(way: Callable[[Tensor], Tensor], x: Tensor) -> float:
    """Memory that one call needs at its peak, beyond what was there before (on the CPU: Linux only, else NaN)."""
    if x.is_cuda:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        way(x)
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    status = Path('/proc/self/status')
    if not status.exists():
        return float('nan')

    def read(name: str) -> int:
        return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith(name))

    ctypes.CDLL(None).malloc_trim(0)  # give back what earlier calls have left, which would hide what this one takes
    Path('/proc/self/clear_refs').write_text('5')  # the peak so far is forgotten
    before = read('VmRSS:')
    way(x)
    return (read('VmHWM:') - before) / 2**10


def measure(device: str, rounds: int) -> list[dict]:
    ways = providers(device)
    name = torch.cuda.get_device_name() if device == 'cuda' else processor()
    common = {
        'n_neighbors': K, 'dtype': 'float32', 'on': device, 'device': name, 'threads': 1, 'torch': torch.__version__,
        'python': platform.python_version(), 'commit': commit(),
        'date': datetime.now(timezone.utc).isoformat(timespec='seconds'),
    }  # fmt: skip
    points = {case: make_points(*case, device) for case in CASES}
    errors = {}
    for case, x in points.items():
        expected = from_squares(nearest_neighbors_reference(x.cpu(), K)[0])
        for way, (compute, _) in list(ways.items()):  # also the warm-up
            try:
                lid = compute(x).cpu().double()
            except Exception as error:  # a peer that does not work here is no reason to stop
                if way == OURS:
                    raise
                print(f'Skipped: {way} failed: {error!r:.200}')
                del ways[way]
                continue
            errors[case, way] = ((lid - expected) / expected).abs().max().item()
    times = {(case, way): [] for case in CASES for way in ways}
    for i in range(rounds):  # over everything, as a machine may be slower for seconds or minutes
        for (case, way), measured in times.items():
            measured.append(milliseconds(ways[way][0], points[case]))
        print(f'Round {i + 1} of {rounds}', flush=True)
    rows = []
    for ((kind, n, d), way), measured in times.items():
        compute, package = ways[way]
        p20, p50, p80 = np.percentile(measured, [20, 50, 80]).round(4)
        rows.append({
            'op': 'LID', 'provider': way, 'version': version(package), 'points': kind, 'N': n, 'D': d,
            'p20_ms': p20, 'p50_ms': p50, 'p80_ms': p80,
            'peak_mb': round(peak_megabytes(compute, points[kind, n, d]), 2),
            'max_error': f'{errors[(kind, n, d), way]:.1e}', **common,
        })  # fmt: skip
    return rows


def processor() -> str:
    lines = Path('/proc/cpuinfo').read_text().splitlines() if Path('/proc/cpuinfo').exists() else []
    return next((line.split(': ')[1] for line in lines if line.startswith('model name')), platform.processor())


def commit() -> str:
    """Of this repository, as ``git describe`` has it."""
    describe = ['git', 'describe', '--always', '--dirty']
    return subprocess.run(describe, cwd=Path(__file__).parent, capture_output=True, text=True).stdout.strip()


def latest(path: Path, device: str = 'cpu') -> pd.DataFrame:
    """Rows of the latest run on a device."""
    rows = pd.read_csv(path)
    rows = rows[rows['on'] == device]
    return rows[rows['date'] == rows['date'].max()]


def table(rows: pd.DataFrame) -> str:
    """Markdown: our milliseconds, and how many times as long the others take."""
    rows = rows.set_index(['provider', 'points', 'N', 'D'])
    times, errors = (rows[column].unstack(['points', 'N', 'D'], sort=False) for column in ('p50_ms', 'max_error'))
    lines = ['| N x D | ' + ' | '.join(times.index) + ' |', '|---' * (len(times.index) + 1) + '|']
    for case in times.columns:
        kind, n, d = case
        label = f'{n} x {d}' + (f', {kind}' if kind != 'batch norm' else '')
        cells = [f'{times.loc[OURS, case]:.3g} ms']
        for way in times.index[1:]:
            wrong = '' if errors.loc[way, case] <= 1e-3 else f' (error {errors.loc[way, case]:.1g})'
            cells.append(f'{times.loc[way, case] / times.loc[OURS, case]:.2f}{wrong}')
        lines.append(f'| {label} | ' + ' | '.join(cells) + ' |')
    return '\n'.join(lines)


def draw(rows: pd.DataFrame, path: Path) -> None:
    """Times relative to ours, one group of bars per size."""
    rows = rows[rows['points'] == 'batch norm'].assign(size=lambda r: r['N'].astype(str) + ' x ' + r['D'].astype(str))
    times = rows.pivot_table(index='size', columns='provider', values='p50_ms', sort=False)
    times.div(times[OURS], axis=0).plot.bar(figsize=(11, 4), width=0.85, logy=True, rot=0)
    plt.axhline(1, color='black', linewidth=0.8)
    plt.ylabel(f'time, relative to {OURS}')
    plt.xlabel('N x D')
    plt.title(f'Mean LID of N points, {K} neighbours, one thread, {rows["device"].iloc[0]}')
    plt.legend(fontsize='small', ncols=3)
    plt.tight_layout()
    plt.savefig(path, dpi=120)


def main() -> None:
    parser = ArgumentParser(description=__doc__.splitlines()[0], formatter_class=ArgumentDefaultsHelpFormatter)
    parser.add_argument('--device', default='cpu', choices=['cpu', 'cuda'])
    parser.add_argument('--rounds', default=15, type=int, help='measurements of each')
    parser.add_argument('--output', default=Path(__file__).with_suffix('.csv'), type=Path, help='the CSV; also a .png')
    parser.add_argument('--table', action='store_true', help='only print the table of the latest rows')
    args = parser.parse_args()
    if args.rounds < 1:
        parser.error(f'--rounds must be at least 1, but is {args.rounds}.')
    if not args.output.parent.is_dir() or args.output.is_dir() or (args.table and not args.output.exists()):
        parser.error(
            f'--output must be a CSV file in a folder that exists (with --table: itself), but is {args.output}.'
        )
    if args.device == 'cuda' and not torch.cuda.is_available():
        parser.error('--device cuda: torch sees no GPU.')
    if not args.table:
        torch.set_num_threads(1)
        rows = pd.DataFrame(measure(args.device, args.rounds))
        rows.to_csv(args.output, mode='a', header=not args.output.exists(), index=False)
        draw(latest(args.output, args.device), args.output.with_suffix('.png'))
    print(table(latest(args.output, args.device)))


if __name__ == '__main__':
    main()
