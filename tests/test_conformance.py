"""What every space, every kind of sub-space and every criterion must do. A new one joins its list here."""

import json
import logging
from dataclasses import dataclass, replace
from typing import ClassVar

from nni_naslid import LID, Bands, Fixed, Gradient, Joint, RandomSplit, Split, SubSpace, ZeroCost
from nni_naslid.criteria.criterion import Context
from nni_naslid.criteria.named import check_travels
from nni_naslid.run.settings import Settings
from nni_naslid.space.additive import AdditiveScore, Term
from nni_naslid.space.band import Band
from nni_naslid.train.path import PathModule, set_path
from nni_naslid.train.rng import seeded

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from nni.mutable import Categorical, CategoricalMultiple
from nni.nas.evaluator.pytorch import DataLoader
from nni.nas.strategy import RandomOneShot
from small import Convs, make_evaluator, same_weights
from test_export import SPACES
from torch import nn
from torch.utils.data import TensorDataset

# Sub-spaces, small enough to list all their samples.


def narrowed():
    space = SubSpace({'a': Categorical(['x', 'y', 'z'], label='a'), 'b': Categorical([1, 2], label='b')})
    return space.split('a', [[0, 2], [1]])[0]


def band(low: int, high: int):
    space = SubSpace({name: Categorical(['skip', 'conv', 'pool'], label=name) for name in 'abc'})
    score = AdditiveScore(space, [Term((name,), [0, 1, 0]) for name in 'abc'], 'convolutions')
    return Band(space, score, low, high)


SUBSPACES = {
    'choices': lambda: SubSpace({name: Categorical([1, 2, 3], label=name) for name in 'abc'}),
    'of other types': lambda: SubSpace({'a': Categorical([(1, 2), None, True], label='a')}),
    'weighted': lambda: SubSpace({'a': Categorical([1, 2], weights=[0.9, 0.1], label='a')}),
    'one input of three': lambda: SubSpace({'a': CategoricalMultiple([0, 1, 2], n_chosen=1, label='a')}),
    'two inputs of three': lambda: SubSpace({'a': CategoricalMultiple([0, 1, 2], n_chosen=2, label='a')}),
    'narrowed': narrowed,
    'band': lambda: band(1, 2),
    'band with fewer candidates': lambda: band(0, 0),
    'band of two scores': lambda: limited(band(1, 2)),
    'narrowed band': lambda: band(1, 2).narrow({'a': [1]}),
}


def drawn(subspace: SubSpace, n: int = 300) -> set[str]:
    random_state = np.random.RandomState(0)
    return {repr(sorted(subspace.sample(random_state).items())) for _ in range(n)}


@pytest.mark.parametrize('name', SUBSPACES)
def test_a_sub_space(name):
    subspace = SUBSPACES[name]()
    samples = drawn(subspace)
    assert len(samples) == subspace.size
    for sample in (dict(eval(text)) for text in samples):
        assert sample in subspace
        assert subspace.decode(json.loads(json.dumps(subspace.encode(sample)))) == sample
    assert all(sample in subspace for sample in subspace.extremes)
    assert drawn(subspace, 5) == drawn(subspace, 5)
    choices = SubSpace(subspace.mutables)
    again = SubSpace.from_dict(json.loads(json.dumps(choices.to_dict(), default=str)), choices.multiple)
    assert again.size == choices.size
    kept = choices.decode_part(json.loads(json.dumps(choices.encode_part(subspace))))
    assert kept.size == subspace.size
    assert drawn(kept, 5) == drawn(subspace, 5)
    for label, candidates in subspace.splittable.items():
        groups = [[0], list(range(1, len(candidates)))]
        parts = [drawn(part) for part in subspace.split(label, groups)]
        assert parts[0] | parts[1] == samples
        assert not parts[0] & parts[1]


# Criteria: they split any sub-space into parts, or object, and leave no trace.


@dataclass(frozen=True)
class Figures:
    """The evidence of :class:`TwoLabels`."""

    largest: float
    objection: str | None = None

    def describe(self) -> str:
        return f'largest weight {self.largest:.3f}'

    def figure(self, title: str) -> None:
        return None

    def to_dict(self) -> dict:
        return {'largest': self.largest, 'objection': self.objection}


@dataclass(frozen=True)
class TwoLabels:
    """A criterion of a user's own, which splits two labels at once into three parts."""

    max_groups: int = 3
    least: float = 0.0

    uses_metric: ClassVar[bool] = False

    def check(self, context):
        if len(context.subspace.splittable) < 2:
            raise ValueError('TwoLabels needs two labels.')
        return {'first two': list(context.subspace.splittable)[:2]}

    def cost(self, space):
        return 0

    def can_split(self, subspace):
        return len(subspace.splittable) > 1

    def choose(self, context):
        largest = max(weight.abs().max().item() for weight in context.supernet.parameters())
        left = [label for label in context.checked['first two'] if label in context.subspace.splittable]
        if largest < self.least or len(left) < 2:
            return Split([], Figures(largest, 'its weights are small'))
        rest = {label: list(range(1, len(context.subspace.splittable[label]))) for label in left}
        one, two = left
        parts = [{one: [0]}, {one: rest[one], two: [0]}, {one: rest[one], two: rest[two]}]
        return Split([context.subspace.narrow(part) for part in parts], Figures(largest))

    def read_evidence(self, content):
        return Figures(**content)


def sharpness(network, inputs):
    """A score of a user's, which leaves gradients and other weights behind."""
    output = network(inputs)
    output.square().mean().backward()
    with torch.no_grad():
        for weight in network.parameters():
            weight.mul_(2)
    return -output.std()


CRITERIA = {
    'lid': lambda: LID(n_neighbors=5, repeats=8, min_contrast=0),
    'two neighbours': lambda: LID(
        repeats=8, min_contrast=0, estimator='two_nn', similarity='euclidean', partition='spectral'
    ),
    'effective rank': lambda: LID(
        repeats=8, min_contrast=0, estimator='effective_rank', similarity='pearson', partition='stoer_wagner'
    ),
    'cosine': lambda: LID(n_neighbors=5, repeats=32, min_contrast=0, similarity='cosine', partition='gaussian_mixture'),
    'gradient': lambda: Gradient(repeats=8, min_contrast=0),
    'gradient, spectral': lambda: Gradient(repeats=8, min_contrast=0, partition='spectral'),
    'naswot': lambda: ZeroCost(repeats=16, min_contrast=0),
    'synflow': lambda: ZeroCost('synflow', repeats=8, min_contrast=0),
    'lid as a score': lambda: ZeroCost('lid', repeats=32, min_contrast=0),
    'a score of a user': lambda: ZeroCost(sharpness, repeats=8, min_contrast=0),
    'joint': lambda: Joint(LID(n_neighbors=5, repeats=16, min_contrast=0), [['stem', 'body']]),
    'joint by gradient': lambda: Joint(Gradient(repeats=8, min_contrast=0), [['stem', 'body']]),
    'joint at random': lambda: Joint('random', [['stem', 'body']]),
    'bands': lambda: Bands('convolutions', max_groups=3),
    'random bands': lambda: Bands('random', max_groups=2),
    'predicted bands': lambda: Bands({'parameters': 1, 'lid': 0.5}, max_groups=2, paths=50),
    'fixed': lambda: Fixed({'body': [[0, 2], [1]], 'stem': [[1], [0], [2]]}),
    'random': RandomSplit,
    'of a user': TwoLabels,
}
VARIANTS = (  # slow
    'lid as a score', 'effective rank', 'cosine', 'gradient, spectral', 'synflow', 'joint by gradient',
    'joint at random',
)  # fmt: skip
NAMES = [pytest.param(name, marks=pytest.mark.slow) if name in VARIANTS else name for name in CRITERIA]


def limited(space: SubSpace) -> Band:
    """Six of the nine networks: those whose choices add up to less than three."""
    return Band(space, AdditiveScore(space, [Term((label,), [0, 1, 2]) for label in space.mutables], 'cost'), 0, 2)


def context_of(criterion, notes, part: bool | str = False) -> Context:
    """A supernet of the small project that has been trained for a while."""
    pl.seed_everything(0, verbose=False)
    evaluator = make_evaluator()
    supernet = RandomOneShot().mutate_model(Convs())
    module = PathModule(evaluator.module)
    module.set_model(supernet)
    of = {'run': 'r', 'node': '0', 'checkpoint': 'c'}
    space = SubSpace.of(supernet)
    context = Context(
        '0', space, supernet, module, evaluator, 'val_loss', 'min', (0,), np.random.RandomState(0), {}, notes, of
    )
    context = replace(context, checked=json.loads(json.dumps(criterion.check(context))))
    optimizer = torch.optim.SGD(supernet.parameters(), lr=0.05, momentum=0.9)
    for _ in range(10):
        for batch in evaluator.train_dataloaders:
            set_path(module, space.sample(context.random_state))
            optimizer.zero_grad()
            module.training_step(batch, 0).backward()
            optimizer.step()
    subspace = limited(space) if part == 'limited' else space.split('stem', [[0], [1, 2]])[1] if part else space
    return replace(context, subspace=subspace)


def choose(criterion, context) -> Split:
    with seeded(*context.seed, data=context.evaluator.train_dataloaders) as random_state:
        return criterion.choose(replace(context, random_state=random_state))


@pytest.mark.parametrize('part', [False, True, pytest.param('limited', marks=pytest.mark.slow)])
@pytest.mark.parametrize('name', NAMES)
def test_a_criterion(name, part, tmp_path):
    criterion = CRITERIA[name]()
    context = context_of(criterion, tmp_path / 'notes.jsonl', part)
    whole = context.subspace
    before = {key: value.clone() for key, value in context.supernet.state_dict().items()}
    split = choose(criterion, context)
    if part == 'limited' and name == 'a score of a user':  # too few paths tell its candidates apart
        assert split.evidence.objection
        return
    assert split.separates
    assert same_weights(before, context.supernet.state_dict())

    assert 2 <= len(split.children) <= criterion.max_groups
    samples = [drawn(child) for child in split.children]
    assert set.union(*samples) == drawn(whole)
    assert sum(map(len, samples)) == whole.size

    kept = Split.from_dict(json.loads(json.dumps(split.to_dict(whole))), whole, criterion.read_evidence)
    assert [child.to_dict() for child in kept.children] == [child.to_dict() for child in split.children]
    assert kept.evidence == split.evidence
    assert kept.scalars() == split.scalars() and split.scalars()['separates'] == 1
    assert len(split.evidence.describe().splitlines()) == 1
    figure = split.evidence.figure('Node 0')
    assert figure is None or figure.axes

    again = choose(criterion, context)  # as after a kill before the result was kept
    assert again.to_dict(whole) == split.to_dict(whole)
    settings = Settings([1], criterion)
    assert Settings.from_dict(json.loads(json.dumps(settings.to_dict()))) == settings


@pytest.mark.parametrize('name', NAMES)
def test_a_run_with_a_criterion(small, name, tmp_path, caplog, monkeypatch):
    """The second run reads what the first has kept."""
    monkeypatch.setattr(logging.getLogger('nni'), 'propagate', True)
    trees = []
    for _ in range(2):
        with caplog.at_level(logging.INFO):
            strategy = small(make_evaluator(epochs=8), split_epochs=(6,), criterion=CRITERIA[name]())
        split = strategy.tree.split
        trees.append([(node.name, node.subspace.to_dict(), node.metric) for node in strategy.tree])
        assert [child.subspace.to_dict() for child in strategy.tree.children] == [
            child.to_dict() for child in split.children
        ]
        assert f'({split.evidence.describe()})' in caplog.text
    assert trees[0] == trees[1]
    assert len(list(strategy.list_models(limit=6))) == 6
    assert (tmp_path / 'split-0.png').exists() == (split.evidence.figure('') is not None)


@pytest.mark.slow
@pytest.mark.parametrize(
    'criterion',
    [
        RandomSplit(max_groups=[2, 3]),
        Bands('parameters', max_groups=[3, 2]),
        Joint('random', [['stem', 'body']], [4, 2]),
    ],
    ids=['random', 'bands', 'joint'],
)
def test_a_number_of_groups_for_each_level(small, tmp_path, criterion):
    """Splits have at most as many children as their level says; a run by another list is another run."""
    strategy = small(make_evaluator(epochs=3), split_epochs=(1, 2), criterion=criterion)
    widest = [len(strategy.tree.children), max(len(child.children) for child in strategy.tree.children)]
    assert min(widest) >= 2
    assert all(n <= most for n, most in zip(widest, criterion.max_groups, strict=True))
    check_travels(criterion)
    with pytest.raises(ValueError, match=r'holds a run with max_groups=\[\d, \d\], but this one has max_groups=\d'):
        small(make_evaluator(epochs=3), split_epochs=(1, 2), criterion=replace(criterion, max_groups=3))


def test_the_level_of_a_node_is_how_many_splits_led_to_it(tmp_path):
    """Candidates that are all apart: three groups for the root by its list, two for its child."""
    criterion = RandomSplit(max_groups=[3, 2])
    context = context_of(criterion, tmp_path / 'notes.jsonl')
    context = replace(context, subspace=SubSpace({'a': Categorical(range(9), label='a')}))
    for seed, most in (((0,), 3), ((0, 1), 2), ((0, 1, 0), 2)):
        sizes = {len(choose(criterion, replace(context, seed=(i, *seed[1:]))).children) for i in range(20)}
        assert max(sizes) == most


class LeavesEvalMode(TwoLabels):
    def choose(self, context):
        context.module.eval()
        return super().choose(context)


def test_the_mode_that_a_criterion_leaves_is_not_what_children_are_trained_in(small, tmp_path):
    """In trials the supernet is made anew; in this process it is the same one."""
    weights = []
    for criterion in (TwoLabels(), LeavesEvalMode()):
        strategy = small(make_evaluator(), criterion=criterion, workdir=tmp_path / type(criterion).__name__)
        weights.append([node.weights for node in strategy.tree])
    assert weights[0] == weights[1] and len(weights[0]) == 4


@dataclass(frozen=True)
class Fading(Figures):
    """Evidence that objects only after it was read."""

    def to_dict(self) -> dict:
        return {'largest': self.largest, 'objection': 'too old'}


def quarters(whole: SubSpace) -> list[SubSpace]:
    return [part for half in whole.split('stem', [[0], [1, 2]]) for part in half.split('body', [[0], [1, 2]])]


def with_split(change):
    """A criterion whose splits are wrong."""

    class Wrong(TwoLabels):
        def choose(self, context):
            return change(super().choose(context), context.subspace)

    return Wrong()


@pytest.mark.parametrize(
    'change, match',
    [
        (lambda split, _: replace(split, children=split.children[:2]), 'the parts have 5 architectures together, but'),
        (lambda split, _: replace(split, children=split.children[:1]), 'at least two parts, but this one has 1'),
        (lambda split, _: replace(split, children=[split.children[0]] * 3), 'two parts have architectures in common'),
        (lambda split, whole: replace(split, children=whole.split('stem', [[0], [1], [2]])), None),
        (lambda split, whole: replace(split, children=quarters(whole)), 'it has 4 parts, but max_groups=3'),
        (lambda split, _: replace(split, evidence=Figures(np.float32(0.5))), 'float32 is not JSON serializable'),
        (
            lambda split, _: replace(split, evidence=Fading(0.5)),
            'its evidence is another one after it was written as JSON and read',
        ),
    ],
)  # fmt: skip
def test_a_split_that_is_none_is_refused_before_it_is_kept(small, tmp_path, change, match):
    if match is None:
        assert len(small(make_evaluator(), criterion=with_split(change)).leaves) == 3
        return
    with pytest.raises(ValueError, match=f'has no usable split of node 0: .*{match}'):
        small(make_evaluator(), criterion=with_split(change))
    assert json.loads((tmp_path / 'node-0.json').read_text())['split'] is None


def test_what_is_no_split_is_named(small):
    with pytest.raises(TypeError, match=r'choose of .*Wrong.* must return a Split, but returned None'):
        small(make_evaluator(), criterion=with_split(lambda split, whole: None))


@pytest.mark.parametrize('returned', [None, {'a': {1, 2}}, {'a': np.float32(1)}, {1: 2}, {'a': (1, 2)}])
def test_what_a_check_finds_must_be_plain(small, tmp_path, returned):
    class Wrong(TwoLabels):
        def check(self, context):
            return returned

    with pytest.raises(ValueError, match=r'check of .*Wrong.* must return a dict of what JSON has'):
        small(make_evaluator(), criterion=Wrong())
    assert not (tmp_path / 'tree.json').exists()


def test_a_run_is_not_lost_for_a_picture(small, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger('nni'), 'propagate', True)
    monkeypatch.setattr(Figures, 'figure', lambda self, title: {}['missing'])
    with caplog.at_level(logging.WARNING):
        assert len(small(make_evaluator(), criterion=TwoLabels()).leaves) == 3
    assert "No picture split-0.png: KeyError: 'missing'" in caplog.text
    assert (tmp_path / 'tree.png').exists()


def test_other_code_does_not_go_on_with_the_splits_of_a_criterion(small):
    def made(first: int):
        class Mine(TwoLabels):
            def choose(self, context):
                split = super().choose(context)
                return replace(split, children=context.subspace.split('stem', [[first], sorted({0, 1, 2} - {first})]))

        return Mine()

    small(make_evaluator(), criterion=made(0))
    small(make_evaluator(), criterion=made(0))
    with pytest.raises(ValueError, match=r'holds a split of node 0 by .*Mine.*, but the criterion is .*Mine.* now'):
        small(make_evaluator(), criterion=made(1))


def test_a_criterion_that_was_mended_goes_on_from_what_is_trained(small, tmp_path):
    class Mine(TwoLabels):
        def choose(self, context):
            raise NotImplementedError

    with pytest.raises(NotImplementedError):
        small(make_evaluator(), criterion=Mine())
    trained = (tmp_path / 'node-0.ckpt').read_bytes()
    mended = type('Mine', (TwoLabels,), {'__module__': Mine.__module__, '__qualname__': Mine.__qualname__})
    strategy = small(make_evaluator(), criterion=dataclass(frozen=True)(mended)())
    assert len(strategy.leaves) == 3
    assert (tmp_path / 'node-0.ckpt').read_bytes() == trained


@dataclass(frozen=True)
class Tuples(TwoLabels):
    labels: tuple = (1, 2)


def test_what_trials_cannot_make_anew_is_refused():
    check_travels(TwoLabels())
    check_travels(LID(layers=['stem']))
    with pytest.raises(ValueError, match=r'trials would make Tuples\(.*\[1, 2\]\) of Tuples\(.*\(1, 2\)\)'):
        check_travels(Tuples())
    with pytest.raises(ValueError, match=r'trials cannot import with_split.<locals>.Wrong of test_conformance'):
        check_travels(with_split(None))
    with pytest.raises(ValueError, match='trials cannot import Mine of __main__; put it at the top of a module of its'):
        check_travels(type('Mine', (TwoLabels,), {'__module__': '__main__'})())


# Spaces: trained, profiled, split, searched, exported.


def spaces():
    for name, (make, size) in SPACES.items():
        yield pytest.param(make, size, marks=[] if name in ('nasbench201', 'repeat') else [pytest.mark.slow], id=name)
    yield pytest.param(Convs, 8, id='own')


@pytest.mark.parametrize('make, size', spaces())
def test_a_space(small, tmp_path, make, size):
    """From the first epoch to networks that compute what was scored; a second run finds all of it."""
    generator = torch.Generator().manual_seed(0)

    def loader(n):
        y = torch.randint(4, (n,), generator=generator)
        return DataLoader(TensorDataset(torch.randn(n, 3, size, size, generator=generator), y), 12)

    train, val = loader(24), loader(12)
    settings = {'search_budget': 3, 'criterion': 'random', 'split_epochs': (1,), 'calibration_batches': 1}
    strategy = small(make_evaluator(train=train, val=val, epochs=2), make, **settings)
    assert sum(leaf.subspace.size for leaf in strategy.leaves) == strategy.tree.subspace.size
    models = list(strategy.list_models(limit=3))
    assert len({repr(sorted(model.sample.items())) for model in models}) == len(models)
    for model in models:
        network = model.executable_model().eval()
        (metrics,) = strategy.evaluate([model.sample])
        with torch.no_grad():
            losses = [nn.functional.cross_entropy(network(x), y).item() for x, y in val]
        assert metrics['val_loss'] == pytest.approx(np.mean(losses), rel=1e-3)
    again = small(make_evaluator(train=train, val=val, epochs=2), make, **settings)
    assert [model.metric for model in again.list_models(limit=3)] == [model.metric for model in models]
