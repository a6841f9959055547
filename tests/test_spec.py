"""Objects as a YAML names them, and what is said of mistakes in it."""

from fractions import Fraction

from nni_naslid.run.spec import check_spec, make

import pytest

ONE = {'className': 'fractions.Fraction', 'classArgs': {'numerator': 3}}


def test_objects_may_have_objects_as_arguments():
    nested = {'className': 'fractions.Fraction', 'classArgs': {'numerator': ONE, 'denominator': 2}}
    assert make(nested, 'space') == Fraction(3, 2)
    listed = {'className': 'builtins.dict', 'classArgs': {'a': [ONE, 2, [ONE]], 'b': {'plain': 'dict'}, 'c': None}}
    assert make(listed, 'space') == {'a': [Fraction(3), 2, [Fraction(3)]], 'b': {'plain': 'dict'}, 'c': None}
    assert make({'className': 'fractions.Fraction'}, 'space') == 0
    inside = {'className': 'builtins.dict', 'classArgs': {'a': {'b': [{'c': ONE, 1: 'className'}], 'class': 'x'}}}
    assert make(inside, 'space') == {'a': {'b': [{'c': Fraction(3), 1: 'className'}], 'class': 'x'}}


@pytest.mark.parametrize(
    'spec, match',
    [
        (None, r'^space must have a className \(and maybe classArgs\), but is None'),
        ({'class_name': 'a.B'}, r"^space must have a className .* but is {'class_name': 'a\.B'}"),
        ({'className': 'a.B', 'args': {}}, "^space has 'args', but may only have className and classArgs"),
        ({'className': 'B'}, r"^space\.className must be a full name such as 'package\.module\.Class', but is 'B'"),
        ({'className': 'a.b c'}, r"^space\.className must be .* but is 'a\.b c'"),
        ({'className': 3}, r'^space\.className must be .* but is 3'),
        ({'className': 'a.B', 'classArgs': [1]}, r'^space\.classArgs must be arguments by name, but is \[1\]'),
        ({'className': 'a.B', 3: {}, 'x': {}}, "^space has 3, 'x', but may only have className and classArgs"),
        (
            {'className': 'a.B', 'classArgs': {'x': [{'className': 'B'}]}},
            r'^space\.classArgs\.x\[0\]\.className must be a full name',
        ),
        (
            {'className': 'a.B', 'classArgs': {'x': {'y': {3: {'className': 'B'}}}}},
            r'^space\.classArgs\.x\.y\.3\.className must be a full name',
        ),
        *(
            (
                {'className': 'a.B', 'classArgs': {'x': {'y': [{key: 'a.C', 'other': 3}]}}},
                rf"^space\.classArgs\.x\.y\[0\] has '{key}', but must have a className .*; is {meant} meant\?",
            )
            for key, meant in (
                ('classname', 'className'),
                ('ClassName', 'className'),
                ('class_name', 'className'),
                ('classArgs', 'classArgs'),
                ('class_args', 'classArgs'),
            )
        ),
    ],
)
def test_mistakes_that_can_be_told_without_importing(spec, match):
    with pytest.raises(ValueError, match=match):
        check_spec(spec, 'space')


@pytest.mark.parametrize(
    'spec, match',
    [
        ({'className': 'no_such_module.B'}, r'^space\.className: no_such_module\.B cannot be imported \(No module'),
        ({'className': 'fractions.Frac'}, r'^space\.className: fractions\.Frac cannot be .* trialCodeDirectory'),
        (
            {'className': 'fractions.Fraction', 'classArgs': {'number': 3}},
            r'^space\.classArgs: fractions\.Fraction raised TypeError: .* unexpected keyword argument',
        ),
        (
            {'className': 'builtins.dict', 'classArgs': {'x': {'className': 'fractions.Frac'}}},
            r'^space\.classArgs\.x\.className: fractions\.Frac cannot be imported',
        ),
    ],
)
def test_mistakes_that_importing_shows(spec, match):
    with pytest.raises(ValueError, match=match):
        make(spec, 'space')
