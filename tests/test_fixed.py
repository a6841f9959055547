"""Splits that the user gives."""

from nni_naslid import Fixed

import pytest
from small import make_evaluator


def test_few_shot_of_each_candidate_and_then_of_another_label(small):
    criterion = Fixed({'body': [[0], [1], [2]], 'stem': [[0, 2], [1]]})
    strategy = small(make_evaluator(epochs=4), split_epochs=(1, 2), criterion=criterion)
    assert [leaf.subspace.to_dict() for leaf in strategy.leaves] == [
        {'stem': stem, 'body': [body]} for body in range(3) for stem in ([0, 2], [1])
    ]


def test_groups_are_of_the_whole_space_in_narrowed_nodes_too(small):
    """Of the group of two candidates, nothing is left to split at the second level."""
    groups = {'body': [[1, 2], [0]], 'stem': [[2], [0], [1]]}
    strategy = small(make_evaluator(epochs=4), split_epochs=(1, 2, 3), criterion=Fixed(groups))
    assert len(strategy.leaves) == 6
    assert [node.split.evidence.objection for node in strategy.tree.leaves if node.split] == [
        'no label has candidates of two groups left'
    ] * 3
    assert {str(leaf.subspace.to_dict()['body']) for leaf in strategy.leaves} == {'[1, 2]', '[0]'}


@pytest.mark.parametrize(
    'groups',
    [
        {'body': [[0, 1, 2]]},
        {'body': [[0], []]},
        {'body': [[0, 1], [1, 2]]},
        {'body': 'each'},
        {'body': 3},
        {'body': [0, [1, 2]]},
        {},
        [[0], [1]],
    ],
)
def test_what_are_no_groups_is_refused(groups):
    with pytest.raises(ValueError, match=r'^groups (of .body. )?must be'):
        Fixed(groups)


@pytest.mark.parametrize(
    'groups, match',
    [
        ({'Body': [[0], [1, 2]]}, r"Fixed: 'Body' must be one of (stem, body|body, stem), which can be split"),
        ({'body': [[0], [1]]}, "Fixed: groups of 'body' must hold its 3 candidates, 0, 1, 2, but hold 2"),
    ],
)
def test_what_the_space_has_not_is_named_before_training(small, tmp_path, groups, match):
    with pytest.raises(ValueError, match=match):
        small(make_evaluator(), criterion=Fixed(groups))
    assert not (tmp_path / 'tree.json').exists()
