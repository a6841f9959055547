"""What a run by another estimator, similarity or partition leaves, and what it is not mixed up with."""

import json

from nni_naslid import LID, Gradient
from nni_naslid.criteria.lid import PARTITIONS, SIMILARITIES
from nni_naslid.criteria.named import check_travels
from nni_naslid.lid import ESTIMATORS
from nni_naslid.run.files import read_json

import pytest
from nni.nas.evaluator.pytorch import DataLoader
from small import brightened, images, make_evaluator

OTHERS = {'estimator': ESTIMATORS[1:], 'similarity': SIMILARITIES[1:], 'partition': PARTITIONS[1:]}


def of_rank(**kwargs) -> LID:
    return LID(repeats=8, min_contrast=0, estimator='effective_rank', **kwargs)


def bright():
    """An evaluator whose networks are above chance after an epoch."""
    return make_evaluator(train=DataLoader(brightened(images()), 24), val=DataLoader(brightened(images(48, 1)), 24))


def test_evidence_names_what_was_measured(small, tmp_path):
    strategy = small(bright(), criterion=of_rank())
    evidence = strategy.tree.split.evidence
    assert evidence.estimator == 'effective_rank'
    assert max(max(row) for row in evidence.profile) <= 23  # of 24 samples, one less than these
    names = {name.partition('/')[0] for name in evidence.scalars()}
    assert 'effective_rank' in names and 'lid' not in names
    texts = [axes.get_title() + axes.get_ylabel() for axes in evidence.figure('Node 0').axes]
    assert any(text.startswith('Effective rank of their layers') for text in texts)
    assert not any('LID' in text for text in texts)
    kept = json.loads((tmp_path / 'node-0.json').read_text())['split']['evidence']
    del kept['estimator']  # as of an earlier version
    assert LID().read_evidence(kept).estimator == 'mle'


@pytest.mark.slow
def test_a_run_is_not_mistaken_for_one_by_another_estimator(small, tmp_path):
    """Nor for one of another similarity or partition. The profiles in its notes are not its either."""
    small(bright(), criterion=of_rank())
    run = read_json(tmp_path / 'tree.json', ('run', 'criterion'))
    assert run['criterion']['estimator'] == 'effective_rank'
    for change in ({'estimator': 'two_nn'}, {'estimator': 'mle'}, {'similarity': 'cosine'}, {'partition': 'spectral'}):
        (name,) = change
        settings = {'estimator': 'effective_rank', **change}
        with pytest.raises(ValueError, match=rf'holds a run with (no )?{name}.*, but this one has (no )?{name}'):
            small(bright(), criterion=LID(repeats=8, min_contrast=0, **settings))
    other = tmp_path / 'other'
    strategy = small(bright(), criterion=LID(n_neighbors=5, repeats=8, min_contrast=0), workdir=other)
    assert read_json(other / 'tree.json', ('run',))['run'] != run['run']
    assert strategy.tree.split.evidence.estimator == 'mle'


def test_runs_of_earlier_versions_go_on(small, tmp_path):
    """They have no such settings, which is what the defaults are."""
    for criterion in (LID(n_neighbors=5, repeats=8), Gradient(repeats=8)):
        workdir = tmp_path / type(criterion).__name__
        small(bright(), criterion=criterion, workdir=workdir)
        kept = read_json(workdir / 'tree.json', ('criterion',))['criterion']
        of_both = {'criterion', 'repeats', 'min_contrast', 'max_groups'}
        assert kept.keys() - of_both == (
            {'similarity'} if isinstance(criterion, Gradient) else {'n_neighbors', 'layers'}
        )


def test_other_estimators_need_no_neighbours(small):
    """Batches of 24 have not 40 neighbours; batches of 2 have nothing."""
    for estimator in ESTIMATORS[1:]:
        criterion = LID(n_neighbors=40, repeats=8, estimator=estimator)
        with pytest.raises(
            ValueError, match=rf"^estimator='{estimator}' needs batches of at least 3 points, but got batches of 2\.$"
        ):
            small(make_evaluator(train=DataLoader(images(), 2)), criterion=criterion)
    small(bright(), criterion=LID(n_neighbors=40, repeats=8, min_contrast=0, estimator='effective_rank'))


@pytest.mark.parametrize('name', OTHERS)
def test_trials_make_the_same_criterion(name):
    for value in OTHERS[name]:
        check_travels(LID(**{name: value}))
        assert LID(**{name: value}) != LID()
    check_travels(Gradient(partition='spectral'))
