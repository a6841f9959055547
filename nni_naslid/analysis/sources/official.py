"""The official files of NAS-Bench-201 and of the topology space of NATS-Bench, and the objects of their own packages.

A file holds, for each architecture, the results of the short and of the long training; these hold the runs by data set
and seed; and a run holds its accuracies by the images it was tested on and the epoch, which counts from 0.
"""

from __future__ import annotations

import bz2
import pickle
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from nni_naslid.analysis.sources.columns import benchmark_column
from nni_naslid.analysis.sources.plain import NotPlainError, load_plain

__all__ = ['is_official', 'official_rows']

META = 'meta.pickle.pbz2'

# A network that was trained on all training images of CIFAR-10 has none left to validate on. The other data sets have
# 'ori-test' too, but there it is both the validation and the test images.
RUNS = {('cifar10', 'valid'): ('cifar10-valid', 'x-valid'), ('cifar10', 'test'): ('cifar10', 'ori-test')}

# NAS-Bench-201's names of what NATS-Bench calls '12' and '200'.
OLD_NAMES = {12: 'less', 200: 'full'}


def is_official(source: Any) -> bool:
    """Whether this is such a file, a folder of files, or an object of ``nas_201_api`` or ``nats_bench``."""
    if not isinstance(source, (str, Path)):
        return hasattr(source, 'meta_archs') and hasattr(source, 'arch2infos_dict')
    return Path(source).suffix in ('.pth', '.pbz2') or (Path(source) / META).exists()


def official_rows(source: Any, column: str, trust: bool) -> Iterator[tuple[str, str, int, Any]]:
    """Where each run is, its architecture, its seed and its accuracy."""
    dataset, split, epochs = benchmark_column(column)
    data, images = RUNS.get((dataset, split), (dataset, f'x-{split}'))
    for where, name, infos in _architectures(source, trust):
        try:
            info = infos.get(str(epochs), infos.get(OLD_NAMES[epochs]))
            if info is None:
                continue
            arch, results = _get(info, 'arch_str'), _get(info, 'all_results')
            runs = {seed: _get(run, 'eval_acc1es') for (trained_on, seed), run in results.items() if trained_on == data}
            accuracies = {seed: accuracies[f'{images}@{epochs - 1}'] for seed, accuracies in runs.items()}
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f'{where} is not in the official layout: {type(error).__name__}: {error}.') from error
        if arch != name:
            raise ValueError(f'{where}: meta_archs says {name!r:.200}, but the results are of {arch!r:.200}.')
        for seed, accuracy in accuracies.items():
            yield where, arch, seed, accuracy


def _get(thing: Any, name: str) -> Any:
    """What a file keeps in a dict, the packages make an attribute of an object."""
    return thing[name] if isinstance(thing, dict) else getattr(thing, name)


def _architectures(source: Any, trust: bool) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Where each architecture is, its name, and its results by the length of training."""
    if not isinstance(source, (str, Path)):
        yield from _of_api(source)
    elif Path(source).is_dir():
        meta = Path(source) / META
        for index, name in enumerate(_part(_load(meta, trust), 'meta_archs', list, meta)):
            path = Path(source) / f'{index:06d}.pickle.pbz2'
            yield str(path), name, _load(path, trust)
    else:
        content = _load(Path(source), trust)
        names, infos = _part(content, 'meta_archs', list, source), _part(content, 'arch2infos', dict, source)
        for index, info in infos.items():
            where = f'{source}, architecture {index}'
            if index not in range(len(names)):
                raise ValueError(f'{where}: meta_archs has {len(names)} architectures only.')
            yield where, names[index], info


def _part(content: Any, name: str, kind: type, source: Any) -> Any:
    if not isinstance(content, dict) or not isinstance(content.get(name), kind):
        raise ValueError(f'{source} is not in the official layout: it must be a dict with a {kind.__name__} {name!r}.')
    return content[name]


def _of_api(api: Any) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for index, name in enumerate(api.meta_archs):
        if getattr(api, 'fast_mode', False) and index not in api.arch2infos_dict:
            api.reload(api.archive_dir, index)
        if index in api.arch2infos_dict:
            yield f'{type(api).__name__}, architecture {index}', name, api.arch2infos_dict[index]


def _load(path: Path, trust: bool) -> Any:
    with path.open('rb') as file:
        try:
            if path.suffix == '.pth':
                return _load_trusted(file) if trust else _load_plain_torch(file)
            unpacked = bz2.BZ2File(file)
            return pickle.load(unpacked) if trust else load_plain(unpacked)
        except NotPlainError as error:
            raise ValueError(
                f'{path} cannot be read safely: {error}. With trust=True it can, which runs any code that is in it.'
            ) from error
        except Exception as error:  # a broken pickle can raise anything
            reason = ' '.join(str(error).split()) or type(error).__name__
            raise ValueError(f'{path} cannot be read: {reason}.') from error


def _load_plain_torch(file: BinaryIO) -> Any:
    """What ``torch.save`` has written, as far as it is plain.

    ``torch.load(weights_only=True)`` is as careful, but takes 13 times as long: a quarter of an hour for all of it.
    """
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            (name,) = (name for name in archive.namelist() if name.split('/')[1:] == ['data.pkl'])
            with archive.open(name) as content:
                return load_plain(content)
    # Before torch 1.6, as the official file: a magic number, a version and the byte order come first.
    file.seek(0)
    for _ in range(3):
        load_plain(file)
    return load_plain(file)


def _load_trusted(file: BinaryIO) -> Any:
    import torch  # reading anything else does not need it

    return torch.load(file, map_location='cpu', weights_only=False)
