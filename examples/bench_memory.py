"""Count the memory of the split phase: LID profiles of all candidates against their gradients.

    python examples/bench_memory.py
    python examples/bench_memory.py --device cuda

All candidates of all labels are put in place on one path, the largest, with one batch. (Profiles of large images are of
the first labels only. Those of others take no more: their paths are computed from where they differ on, or in the same
cells, on maps of the same size or smaller ones. A test compares.) Counted is what operations of torch allocate, to the
byte, whatever the data are: the highest sum of all storages that are alive at the same time.
LID is the package's own code on real tensors of the full size, as it looks at values; gradients, which would need up to
11 GiB, are its own code on fake tensors, which have shapes and no data. Libraries allocate work space besides, which is
not counted; that of the LID op is, for the CPU. Then both are timed where they fit, on one thread, in turn. Rows go to
bench_memory.csv beside this script (appended, never edited).

On a GPU nothing is counted: all run on real tensors, with the profiles of all labels, and the allocator of torch tells
the most that was allocated by it beyond the weights, work space of cuBLAS included. Besides, of that the part that had
stayed from a call before but is neither weights nor batch (kept_mib: most of it this work space, the same whatever the
images), and all that the allocator took from the GPU (reserved_mib, with weights). Then all are timed, in turn.
"""

from __future__ import annotations

import os

os.environ.update(OMP_NUM_THREADS='1', OPENBLAS_NUM_THREADS='1', MKL_NUM_THREADS='1')  # read when libraries load

import gc
import platform
import time
import tracemalloc
import weakref
from argparse import ArgumentDefaultsHelpFormatter, ArgumentParser
from collections.abc import Callable
from datetime import datetime, timezone
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

from nni_naslid import SubSpace, lid_mle
from nni_naslid.criteria.matching import candidate_similarities, gradient, gradient_similarity
from nni_naslid.criteria.repeats import candidate_profiles
from nni_naslid.train.data import Inputs
from nni_naslid.train.path import labels_read, set_path
from nni_naslid.traits.places import Place
from nni_naslid.traits.profile import profile_layers

import pandas as pd
import torch
import torch.nn.functional as F
from nni.mutable import Sample
from nni.nas.hub.pytorch import NasBench201, ProxylessNAS
from nni.nas.nn.pytorch import ModelSpace
from nni.nas.strategy import RandomOneShot
from rows import append, commit, processor
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

K = 20


class Case(NamedTuple):
    make: Callable[[], ModelSpace]
    image: int
    batch: int = 32
    profiled: int | None = None  # labels; all by default


CASES = {
    'NAS-Bench-201, 16 channels, 5 cells': Case(lambda: NasBench201(16, 5, 10), 224, profiled=1),
    'NAS-Bench-201, 16 channels, 5 cells, small images': Case(lambda: NasBench201(16, 5, 10), 32),
    'ProxylessNAS': Case(lambda: ProxylessNAS(1000), 224, profiled=3),
    'NAS-Bench-201, 4 channels, 1 cell': Case(lambda: NasBench201(4, 1, 10), 8),  # to try the script
}
TIMED = 'NAS-Bench-201, 16 channels, 5 cells, small images'
HELD, STREAMED, LID = 'gradients, of all labels held', 'gradients, of one label at a time', 'LID'
FORWARD = 'a forward pass, without LID'  # the least that any criterion takes which looks at features


class Peak(TorchDispatchMode):
    """Counts the bytes of all storages that are alive of those that operations return, and of others it is told."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.highest = 0
        self.seen = WeakIdKeyDictionary()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        returned = func(*args, **(kwargs or {}))
        self.count(returned)
        return returned

    def count(self, anything: object) -> None:
        for tensor in tree_leaves(anything):
            if isinstance(tensor, Tensor) and (storage := tensor.untyped_storage()) not in self.seen:
                self.seen[storage] = True
                self.now += storage.nbytes()
                self.highest = max(self.highest, self.now)
                weakref.finalize(storage, self.free, storage.nbytes())

    def free(self, size: int) -> None:
        self.now -= size


def as_fake(model: nn.Module, mode: FakeTensorMode) -> nn.Module:
    """The model with tensors that have no data, of the same shapes."""
    for module in model.modules():
        for tensors in (module._parameters, module._buffers):
            for name, tensor in tensors.items():
                if tensor is not None:
                    fake = mode.from_tensor(tensor.detach())
                    tensors[name] = nn.Parameter(fake) if isinstance(tensor, nn.Parameter) else fake
    return model


class Work:
    """A supernet, its largest path, and a batch."""

    def __init__(self, case: Case, mode: FakeTensorMode | None = None):
        torch.manual_seed(0)
        self.supernet = RandomOneShot().mutate_model(case.make())
        self.subspace = SubSpace.of(self.supernet)
        self.profiled = case.profiled
        self.labels = self.subspace.splittable
        # Of numbers and of names such as k7e6, the largest comes last.
        self.path = {label: 'conv_3x3' if 'conv_3x3' in c else c[-1] for label, c in self.labels.items()}
        self.read = labels_read(self.supernet, self.path)
        self.x = torch.randn(case.batch, 3, case.image, case.image)
        self.y = torch.zeros(case.batch, dtype=torch.long)
        if mode is not None:
            as_fake(self.supernet, mode)
            self.x, self.y = mode.from_tensor(self.x), mode.from_tensor(self.y)
        self.weights = list(self.supernet.parameters())

    def gradient_of(self, sample: Sample) -> tuple[Tensor | None, ...]:
        set_path(self.supernet.train(), sample)
        return gradient(lambda: F.cross_entropy(self.supernet(self.x), self.y), self.weights)

    def streamed(self) -> None:
        candidate_similarities(self.gradient_of, self.path, self.labels, self.read, 'cosine')

    def held(self) -> None:
        of_label = {
            label: [self.gradient_of({**self.path, label: candidate}) for candidate in candidates]
            for label, candidates in self.labels.items()
        }
        for gradients in of_label.values():
            for pair in combinations(gradients, 2):
                gradient_similarity(*pair)

    def forward(self) -> None:
        set_path(self.supernet, self.path)
        with torch.no_grad():
            self.supernet(self.x)

    def lid(self) -> None:
        places = {name: Place() for name in profile_layers(self.supernet)}
        others = list(self.labels)[self.profiled :] if self.profiled else []
        part = self.subspace.narrow({label: [self.labels[label].index(self.path[label])] for label in others})
        candidate_profiles(self.supernet, part, [Inputs((self.x,), {})], places, paths=[self.path], n_neighbors=K)


def count(case: Case, method: str) -> tuple[int, int]:
    """Bytes of the weights and buffers, and the most that there are besides them."""
    mode = None if method == LID else FakeTensorMode()
    work = Work(case, mode)
    peak = Peak()
    peak.count([*work.weights, *work.supernet.buffers()])
    weights = peak.now
    peak.count([work.x, work.y])
    if mode is None:
        with peak:
            work.lid()
        return weights, peak.highest - weights + work_space(case)
    with mode, peak:
        {HELD: work.held, STREAMED: work.streamed, FORWARD: work.forward}[method]()
    return weights, peak.highest - weights


def work_space(case: Case) -> int:
    """Bytes that the LID op allocates by numpy, where torch does not see them, for a map of 16 channels."""
    points = torch.randn(case.batch, 16 * case.image**2)
    tracemalloc.start()
    lid_mle(points, K)
    space = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return space


def seconds(rounds: int, case: Case) -> dict[str, float]:
    """Median processor time of the profiles, and of the gradients, of one repeat."""
    work = Work(case)
    ways = {LID: work.lid, STREAMED: work.streamed}
    times = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            start = time.process_time()
            way()
            times[name].append(time.process_time() - start)
    return {name: float(pd.Series(found).median()) for name, found in times.items()}


class Allocated(NamedTuple):
    """Bytes on a GPU."""

    weights: int  # and buffers
    beyond: int  # at the peak
    kept: int  # of these from before, without the batch
    reserved: int  # at the peak, with the weights


def on_cuda(case: Case, rounds: int) -> tuple[dict[str, Allocated], dict[str, float]]:
    """Memory of each method, and median seconds until the GPU has finished, of one repeat."""
    torch.backends.cudnn.benchmark = False  # which would try kernels that need other work space
    forget_work_space()
    start = torch.cuda.memory_allocated()
    work = Work(case._replace(profiled=None))
    work.supernet.cuda()
    weights = torch.cuda.memory_allocated() - start
    work.x, work.y = work.x.cuda(), work.y.cuda()
    present = torch.cuda.memory_allocated()
    ways = {HELD: work.held, STREAMED: work.streamed, LID: work.lid, FORWARD: work.forward}
    allocated = {}
    for method in (FORWARD, LID, STREAMED, HELD):
        if method != HELD:  # which has the kernels and the work space of the one before
            forget_work_space()
            ways[method]()
        forget_cache()
        kept = torch.cuda.memory_allocated() - present
        torch.cuda.reset_peak_memory_stats()
        ways[method]()
        torch.cuda.synchronize()
        beyond = torch.cuda.max_memory_allocated() - start - weights
        allocated[method] = Allocated(weights, beyond, kept, torch.cuda.max_memory_reserved())
        print(f'{method}: {beyond / 2**20:.1f} MiB', flush=True)
    times = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            torch.cuda.synchronize()
            began = time.perf_counter()
            way()
            torch.cuda.synchronize()
            times[name].append(time.perf_counter() - began)
    return allocated, {name: float(pd.Series(found).median()) for name, found in times.items() if found}


def forget_cache() -> None:
    torch.cuda.synchronize()
    gc.collect()
    torch.cuda.empty_cache()


def forget_work_space() -> None:
    """That of cuBLAS, of which each thread that has used it keeps its own: a method shall not have another's."""
    torch.cuda.synchronize()
    torch._C._cuda_clearCublasWorkspaces()
    forget_cache()


def measure(name: str, rounds: int, cuda: bool = False) -> list[dict]:
    case = CASES[name]
    if cuda:
        allocated, times = on_cuda(case, rounds)
        counted = {method: (each.weights, each.beyond) for method, each in allocated.items()}
    else:
        times = seconds(rounds, case) if rounds else {}
        allocated, counted = {}, {method: count(case, method) for method in (HELD, STREAMED, LID, FORWARD)}
    rows = []
    for method in (HELD, STREAMED, LID, FORWARD):
        weights, beyond = counted[method]
        of_gradients = counted[STREAMED][1]  # of the two, what takes less
        rows.append(
            {
                'space': name.removesuffix(', small images'), 'batch': case.batch, 'image': case.image,
                'method': method, 'tensors': 'real' if cuda or method == LID else 'fake',
                'weights_mib': mib(weights), 'beyond_weights_mib': mib(beyond),
                'with_weights_mib': mib(weights + beyond),
                'less_percent': 100 * (1 - beyond / of_gradients),
                'less_with_weights_percent': 100 * (1 - (weights + beyond) / (weights + of_gradients)),
                'rounds': rounds, 'seconds_p50': times.get(method),
                'of_gradients': times[method] / times[STREAMED] if method in times else None,
                'kept_mib': mib(allocated[method].kept) if cuda else None,
                'reserved_mib': mib(allocated[method].reserved) if cuda else None,
            }
        )  # fmt: skip
    return rows


def mib(size: int) -> float:
    return round(size / 2**20, 2)


def main() -> None:
    parser = ArgumentParser(description=__doc__.splitlines()[0], formatter_class=ArgumentDefaultsHelpFormatter)
    parser.add_argument('--device', default='cpu', choices=['cpu', 'cuda'])
    parser.add_argument(
        '--cases', nargs='+', choices=list(CASES), metavar='CASE', help='first three, on a GPU two, of %(choices)s'
    )
    parser.add_argument(
        '--timed', default=TIMED, choices=list(CASES), metavar='CASE', help='the one that is timed; on a GPU all are'
    )
    parser.add_argument('--rounds', default=3, type=int, help='rounds of it')
    parser.add_argument('--output', default=Path(__file__).with_suffix('.csv'), type=Path, help='the CSV')
    args = parser.parse_args()
    cuda = args.device == 'cuda'
    if cuda and not torch.cuda.is_available():
        parser.error('--device cuda: torch sees no GPU.')
    torch.set_num_threads(1)
    common = {
        'device': torch.cuda.get_device_name() if cuda else processor(), 'threads': 1, 'torch': torch.__version__,
        'python': platform.python_version(), 'commit': commit(),
        'date': datetime.now(timezone.utc).isoformat(timespec='seconds'),
    }  # fmt: skip
    rounded = {'less_percent': 2, 'less_with_weights_percent': 2, 'seconds_p50': 4 if cuda else 2, 'of_gradients': 3}
    shown = ['space', 'image', 'method', 'beyond_weights_mib', 'with_weights_mib', 'less_percent', 'seconds_p50']
    cases = [TIMED, next(iter(CASES))] if cuda else list(CASES)[:3]  # on a GPU the fast one first
    for name in args.cases or cases:
        measured = measure(name, args.rounds if cuda or name == args.timed else 0, cuda)
        rows = pd.DataFrame(measured).assign(**common).round(rounded)
        append(rows, args.output)
        print(rows[shown].to_string(index=False), flush=True)


if __name__ == '__main__':
    main()
