"""A plan: its cost by hand, and that no epoch more would fit."""

from nni_naslid import LID, Bands, Fixed, Gradient, Joint, RandomSplit, ZeroCost, plan_epochs
from nni_naslid.criteria.advice import doubt_about_splits

import pytest
from hypothesis import given
from hypothesis import strategies as st


@given(st.integers(1, 3000), st.lists(st.integers(2, 5), max_size=3))
def test_a_plan_costs_at_most_the_total(total, groups):
    try:
        splits, end = plan_epochs(total, groups)
    except ValueError as error:
        least = int(str(error).split('at least ')[1].split()[0])
        assert total < least
        plan_epochs(least, groups)
        return
    assert len(splits) == len(groups)
    nodes, cost, start = 1, 0, 0
    for stop, groups_here in zip([*splits, end], [*groups, 1], strict=True):
        assert stop > start
        cost += nodes * (stop - start)
        nodes, start = nodes * groups_here, stop
    assert cost <= total < cost + nodes * max(1, len(groups))  # what is left is not an epoch of each leaf and level


@pytest.mark.parametrize(
    'arguments, match',
    [
        ((4, [4]), r'total must be at least 5 epochs, so that each node of a tree of \[4\] parts has one, but is 4'),
        ((0,), 'total must be an integer of at least 1, but got 0'),
        ((96, [1]), 'max_groups must be an integer of at least 2, but got 1'),
        ((96, '4'), "max_groups must be a list, but got '4'"),
    ],
)
def test_no_plan(arguments, match):
    with pytest.raises(ValueError, match=match):
        plan_epochs(*arguments)


def test_a_single_number_is_one_split():
    assert plan_epochs(96, 4) == plan_epochs(96, [4]) == plan_epochs(96) == ([24], 24 + 72 // 4)


@pytest.mark.parametrize(
    ('criterion', 'steps', 'said'),
    [
        (LID(), 199_999, 'here are at most 199,999'), (LID(), 200_000, None),
        (Gradient(), 7_680, 'splits of single choices'),
        (ZeroCost(), 100, 'splits of single choices'), (Joint(), 100, 'splits of single choices'),
        (Joint('random'), 100, None), (Bands('nonlinearities'), 100, None),
        (Bands('convolutions'), 7_679, 'better from 7,680 on; here are at most 7,679'),
        (Bands('convolutions'), 7_680, None),
        (Bands(), 2_559, 'here are at most 2,559'), (Bands(), 2_560, None),
        (Bands('random'), 100, None), (RandomSplit(), 100, None),
        (Fixed({'a': [[0], [1]]}), 100, None),
    ],
)  # fmt: skip
def test_what_is_known_of_where_splits_pay(criterion, steps, said):
    doubt = doubt_about_splits(criterion, steps)
    assert doubt is None if said is None else said in doubt
