"""Time the LID of a batch of points: this package against every other way we know.

    python examples/bench_lid.py
    python examples/bench_lid.py --device cuda

One process, one thread, all sizes and ways interleaved; on the CPU it is the time of the processor that counts, so that
a busy machine disturbs less. Rows go to bench_lid.csv beside this script (appended, never edited) and from there into
one picture and one table in Markdown. Peers that are not installed are skipped: faiss-cpu (with which torchid searches
on the CPU), scikit-dimension and scikit-learn are taken if they are there.

On a GPU (and with --profiles) the LIDs of all feature maps of a network are computed, too: ours in one call, by the
others map by map; D is then the number of features of all maps. There the time of a call is until the GPU has finished.
As the host decides how long small calls take, a profiler counts in one call more what the GPU was given (launches:
kernels, copies and memsets), and how long that took on the GPU (kernel_ms). No way that reads its points from memory
and computes all their scalar products takes less than floor_ms, by what this GPU reached in a large copy and in a large
matrix product; points of a few MiB may be read faster, as they are still in the cache.
"""

from __future__ import annotations

import os

os.environ.update(OMP_NUM_THREADS='1', OPENBLAS_NUM_THREADS='1', MKL_NUM_THREADS='1')  # read when libraries load

import ctypes
import json
import math
import platform
import shutil
import time
from argparse import ArgumentDefaultsHelpFormatter, ArgumentParser
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from nni_naslid import __version__, lid_mle, lid_profile
from nni_naslid.lid.reference import lid_mle_published, nearest_neighbors_reference

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from rows import append, commit, processor
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

K = 20
SIZES = [(64, 256), (64, 16384), (128, 16384), (128, 4096), (256, 4096), (512, 4096), (1024, 1024), (4096, 256)]
HARD = ['offset 1000', 'near-duplicates', 'tight clusters']
CASES = [('batch norm', *size) for size in SIZES] + [(kind, 128, 16384) for kind in HARD]
# Feature maps of a path of NAS-Bench-201 with 16 channels and 5 cells per stage, for images of 32x32; and of how many.
MAPS = [(16, 32, 32)] * 5 + [(32, 16, 16)] * 6 + [(64, 8, 8)] * 6
PROFILES = {'profile of 17 maps': 1, 'profiles of 5 x 17 maps': 5}
BATCH = 128
OURS = 'nni_naslid'

Points = Tensor | list[Tensor]  # points [N, D], or feature maps [N, ...]


class Way(NamedTuple):
    """A way to compute the LID of each of some points, or the mean LID of each of some feature maps."""

    of_points: Callable[[Tensor], Tensor]
    package: str  # whose version counts
    of_maps: Callable[[list[Tensor]], Tensor] | None = None  # where it takes all at once
    precision: str = 'highest'

    def __call__(self, x: Points) -> Tensor:
        if not isinstance(x, list):
            return self.of_points(x)
        if self.of_maps is not None:
            return self.of_maps(x)
        return torch.stack([self.of_points(points.flatten(1)).mean() for points in x])


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


def providers(device: str) -> dict[str, Way]:
    ways = {
        OURS: ours('highest'),
        'torch mm + topk': Way(torch_mm, 'torch'),
        'torch mm, centring + topk': Way(torch_mm_centred, 'torch'),
        'torch cdist + topk': Way(torch_cdist, 'torch'),
        'published code': Way(lambda x: lid_mle_published(x, K) * (K - 2) / K, 'torch'),
    }
    if shutil.which('g++') or device == 'cuda':
        torch._dynamo.config.recompile_limit = 64  # one of each size
        ways['torch.compile of cdist'] = Way(torch.compile(torch_cdist_compiled, dynamic=False), 'torch')
    else:
        print('Skipped: torch.compile needs a C++ compiler.')
    if device == 'cpu':
        ways['faiss'] = Way(faiss_knn, 'faiss-cpu')
        ways['scikit-learn'] = Way(sklearn_knn, 'scikit-learn')
        ways['scikit-dimension'] = Way(scikit_dimension, 'scikit-dimension')
    else:
        ways[f'{OURS}, high'] = ours('high')
        ways[f'{OURS}, medium'] = ours('medium')
    for name, way in list(ways.items()):
        try:
            version_of(way.package)
        except PackageNotFoundError:
            print(f'Skipped: {way.package} is not installed.')
            del ways[name]
    return ways


def ours(precision: str) -> Way:
    of_points, of_maps = (partial(compute, n_neighbors=K, precision=precision) for compute in (lid_mle, lid_profile))
    return Way(of_points, 'nni-naslid', of_maps, precision)


def version_of(package: str) -> str:
    return __version__ if package == 'nni-naslid' else version(package)


def make_points(kind: str, n: int, d: int, device: str, seed: int = 0) -> Tensor:
    """Points near a manifold of 30 dimensions, as they come from a batch norm; or harder ones."""
    generator = torch.Generator().manual_seed(n + d + seed)
    x = torch.randn(n, 30, generator=generator) @ torch.randn(30, d, generator=generator) / 30**0.5
    x += torch.randn(n, d, generator=generator) / 4
    if kind == 'offset 1000':
        x += 1000
    elif kind == 'tight clusters':  # of 30 points, more than there are neighbours
        x = x[torch.arange(n) // 30 * 30] + 1e-6 * x
    elif kind == 'near-duplicates':
        x[n // 2 :] = x[: n // 2] + 1e-3 * torch.randn(n // 2, d, generator=generator)
    return x.to(device)


def make_maps(n_profiles: int, device: str) -> list[Tensor]:
    shapes = MAPS * n_profiles
    return [
        make_points('batch norm', BATCH, math.prod(shape), device, seed).view(BATCH, *shape)
        for seed, shape in enumerate(shapes)
    ]


def lid_by_definition(x: Points) -> Tensor:
    """What all ways should return, in float64."""
    return Way(lambda points: from_squares(nearest_neighbors_reference(points, K)[0]), 'nni-naslid')(x).cpu()


def milliseconds(way: Callable[[Points], Tensor], x: Points) -> float:
    """Time of one call, averaged over enough calls to take 20 ms."""
    cuda = x[0].is_cuda
    clock = time.perf_counter if cuda else time.process_time
    calls, start = 0, clock()
    while clock() - start < 0.02 or not calls:
        way(x)
        calls += 1
        if cuda:
            torch.cuda.synchronize()
    return (clock() - start) / calls * 1000


def peak_megabytes(way: Callable[[Points], Tensor], x: Points) -> float:
    """Memory that one call needs at its peak, beyond what was there before (on the CPU: Linux only, else NaN)."""
    if x[0].is_cuda:
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


def launches(way: Callable[[Points], Tensor], x: Points) -> tuple[int, float] | tuple[None, None]:
    """How much one call gives a GPU to do, and the milliseconds of that on the GPU, without the gaps in between."""
    try:
        with profile(activities=[ProfilerActivity.CUDA]) as profiler:
            way(x)
            torch.cuda.synchronize()
        with TemporaryDirectory() as folder:
            trace = Path(folder, 'trace.json')
            profiler.export_chrome_trace(str(trace))
            events = json.loads(trace.read_text(errors='replace'))['traceEvents']
    except Exception as error:  # a machine may not permit it, which is no reason to lose the times
        print(f'Nothing profiled: {error!r:.200}')
        return None, None
    took = [event['dur'] for event in events if event.get('cat') in ('kernel', 'gpu_memcpy', 'gpu_memset')]
    return (len(took), round(sum(took) / 1000, 4)) if took else (None, None)


def reached() -> dict[str, float]:
    """What the GPU reaches in a millisecond: bytes read or written, and operations at each precision."""

    def gpu_milliseconds(compute: Callable[[], object], calls: int = 5) -> float:
        compute()
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(calls):
            compute()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / calls

    source = torch.zeros(2**31, dtype=torch.uint8, device='cuda')
    target = torch.empty_like(source)
    found = {'bytes': 2 * source.nbytes / gpu_milliseconds(lambda: target.copy_(source))}
    matrix = torch.randn(8192, 8192, device='cuda')
    narrow = matrix.bfloat16()
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision('highest')  # float32
    found['highest'] = 2 * 8192**3 / gpu_milliseconds(lambda: matrix @ matrix)
    torch.set_float32_matmul_precision('high')  # TF32
    found['high'] = 2 * 8192**3 / gpu_milliseconds(lambda: matrix @ matrix)
    torch.set_float32_matmul_precision(before)
    found['medium'] = 2 * 8192**3 / gpu_milliseconds(lambda: narrow @ narrow)
    teras = {name: round(rate / 1e9, 2) for name, rate in found.items()}
    print(f'Reached, in 10^12 a second (bytes of a copy; operations of matrix products by precision): {teras}')
    found['highest'] = max(found['highest'], found['high'] / 3)  # three products of TF32 do as well
    return found


def measure(device: str, rounds: int, profiles: bool) -> Iterator[list[dict]]:
    """Rows, as soon as they are there."""
    ways = providers(device)
    name = torch.cuda.get_device_name() if device == 'cuda' else processor()
    common = {
        'n_neighbors': K, 'dtype': 'float32', 'on': device, 'device': name, 'threads': 1, 'torch': torch.__version__,
        'python': platform.python_version(), 'commit': commit(),
        'date': datetime.now(timezone.utc).isoformat(timespec='seconds'),
    }  # fmt: skip
    limits = reached() if device == 'cuda' else None
    points: dict[tuple[str, int, int], Points] = {case: make_points(*case, device) for case in CASES}
    if profiles:
        for kind, n_profiles in PROFILES.items():
            maps = make_maps(n_profiles, device)
            points[kind, BATCH, sum(each[0].numel() for each in maps)] = maps
    # On the CPU in turn over everything, as a machine may be slower for seconds or minutes.
    for cases in [[case] for case in points] if device == 'cuda' else [list(points)]:
        rows = measure_cases({case: points[case] for case in cases}, ways, rounds, limits)
        yield [{**row, **common} for row in rows]


def measure_cases(
    points: dict[tuple[str, int, int], Points], ways: dict[str, Way], rounds: int, limits: dict[str, float] | None
) -> list[dict]:
    """A row for each case and way; ways that fail are left out from here on."""
    errors = {}
    for case, x in points.items():
        expected = lid_by_definition(x)
        for name, way in list(ways.items()):  # also the warm-up
            try:
                lid = way(x).cpu().double()
            except Exception as error:  # a peer that does not work here is no reason to stop
                if name == OURS:
                    raise
                print(f'Skipped: {name} failed: {error!r:.200}')
                del ways[name]
                continue
            errors[case, name] = ((lid - expected) / expected).abs().max().item()
    times = {(case, name): [] for case in points for name in ways}
    for i in range(rounds):
        for (case, name), measured in times.items():
            measured.append(milliseconds(ways[name], points[case]))
        if not limits:
            print(f'Round {i + 1} of {rounds}', flush=True)
    if limits:  # the first time, the profiler may miss what comes at once
        launches(ways[OURS], next(iter(points.values())))
    rows = []
    for (case, name), measured in times.items():
        (kind, n, d), x, way = case, points[case], ways[name]
        p20, p50, p80 = np.percentile(measured, [20, 50, 80]).round(4)
        peak = round(peak_megabytes(way, x), 2)
        count, kernel_ms = launches(way, x) if limits else (None, None)
        floor = max(4 * n * d / limits['bytes'], 2 * n * n * d / limits[way.precision]) if limits else None
        rows.append({
            'op': 'LID', 'provider': name, 'version': version_of(way.package), 'points': kind, 'N': n, 'D': d,
            'p20_ms': p20, 'p50_ms': p50, 'p80_ms': p80, 'peak_mb': peak, 'max_error': f'{errors[case, name]:.1e}',
            'launches': count, 'kernel_ms': kernel_ms, 'floor_ms': floor and round(floor, 6),
        })  # fmt: skip
    return rows


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


def table_of_launches(rows: pd.DataFrame) -> str:
    """Markdown: launches, milliseconds on the GPU, and the least that these could be."""
    lines = ['| points | N x D | provider | ms | launches | ms on the GPU | at least |', '|---' * 7 + '|']
    for row in rows.itertuples():
        figures = (row.p50_ms, row.launches, row.kernel_ms, row.floor_ms)
        cells = ['' if pd.isna(figure) else f'{figure:.3g}' for figure in figures]  # profiling may have failed
        lines.append(f'| {row.points} | {row.N} x {row.D} | {row.provider} | ' + ' | '.join(cells) + ' |')
    return '\n'.join(lines)


def draw(rows: pd.DataFrame, path: Path) -> None:
    """Times relative to ours, one group of bars per size."""
    rows = rows[rows['points'] == 'batch norm'].assign(size=lambda r: r['N'].astype(str) + ' x ' + r['D'].astype(str))
    times = rows.pivot_table(index='size', columns='provider', values='p50_ms', sort=False)
    times.div(times[OURS], axis=0).plot.bar(figsize=(11, 4), width=0.85, logy=True, rot=0)
    plt.axhline(1, color='black', linewidth=0.8)
    plt.ylabel(f'time, relative to {OURS}')
    plt.xlabel('N x D')
    on = ('one thread, ' if rows['on'].iloc[0] == 'cpu' else '') + rows['device'].iloc[0]
    plt.title(f'Mean LID of N points, {K} neighbours, {on}')
    plt.legend(fontsize='small', ncols=3)
    plt.tight_layout()
    plt.savefig(path, dpi=120)


def main() -> None:
    parser = ArgumentParser(description=__doc__.splitlines()[0], formatter_class=ArgumentDefaultsHelpFormatter)
    parser.add_argument('--device', default='cpu', choices=['cpu', 'cuda'])
    parser.add_argument('--rounds', default=15, type=int, help='measurements of each')
    parser.add_argument('--profiles', action='store_true', help='also of whole networks; on a GPU always')
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
        for rows in measure(args.device, args.rounds, args.profiles or args.device == 'cuda'):
            append(pd.DataFrame(rows).astype({'launches': 'Int64'}), args.output)
            if args.device == 'cuda':
                print(table_of_launches(pd.DataFrame(rows)), flush=True)
        draw(latest(args.output, args.device), args.output.with_suffix('.png'))
    rows = latest(args.output, args.device)
    print(table(rows))
    if args.device == 'cuda' and args.table:
        print(table_of_launches(rows))


if __name__ == '__main__':
    main()
