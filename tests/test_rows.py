"""What the web UI shows of a run: a row per task, a column only for what can differ."""

from nni_naslid import RandomSplit
from nni_naslid.run.folder import RunFolder
from nni_naslid.run.progress import Progress, most_tasks
from nni_naslid.run.settings import Settings
from nni_naslid.space.tree import Node

import pytest

CHOICES = {'stem': ['none', 'skip_connect', 'conv_1x1', 'conv_3x3', 'avg_pool_3x3'], 'depth': [1, 2], 'width': [8, 16]}
COLUMNS = ['task', 'node', 'parent', 'depth', 'epochs', 'architectures']


@pytest.fixture
def progress(tmp_path):
    """A run of 8 epochs with splits after 2 and 4, whose root is trained."""
    identity = {'space': CHOICES, 'multiple': {}, 'training': {'max_epochs': 8, 'start_epoch': 0}}
    return Progress(RunFolder(tmp_path), Settings([2, 4], RandomSplit()), identity)


def split(node: Node, end_epoch: int, label: str, groups: list[list[int]]) -> None:
    node.end_epoch = end_epoch
    node.children = [
        Node(subspace, end_epoch, path=(*node.path, i)) for i, subspace in enumerate(node.subspace.split(label, groups))
    ]


def test_a_label_has_a_column_as_soon_as_a_node_has_narrowed_it(progress):
    root = {'task': 'node 0', 'node': '0', 'parent': '', 'depth': 0, 'epochs': '0-2', 'architectures': '20'}
    assert progress.row('node 0') == root
    split(progress.root, 2, 'stem', [[2, 3], [0, 1, 4]])
    child = {'node': '0.0', 'parent': '0', 'depth': 1, 'epochs': '2-4', 'architectures': '8'}
    child['stem'] = 'conv_1x1|conv_3x3'
    assert progress.row('node 0.0') == {'task': 'node 0.0', **child}
    split(progress.root.children[1], 4, 'width', [[0], [1]])
    rows = [progress.row(f'node {name}') for name in ('0.0', '0.1.1')]
    assert [(row['stem'], row['width']) for row in rows] == [
        ('conv_1x1|conv_3x3', ''), ('none|skip_connect|avg_pool_3x3', '16')
    ]  # fmt: skip
    assert progress.row('search') == dict.fromkeys([*COLUMNS, 'stem', 'width'], '') | {'task': 'search'}
    axes = progress.search_space
    assert list(axes) == [*COLUMNS, 'stem', 'width']
    assert axes['stem'] == {'_type': 'choice', '_value': ['conv_1x1|conv_3x3', 'none|skip_connect|avg_pool_3x3', '']}


def test_many_choices_are_cut_short(progress):
    split(progress.root, 2, 'stem', [[0], [1, 2, 3, 4]])
    assert progress.row('node 0.1')['stem'] == 'skip_connect|conv_1x1|conv_3x3|avg_pool…'


def test_a_label_with_the_name_of_a_column_leaves_the_column_alone(progress):
    split(progress.root, 2, 'depth', [[0], [1]])
    assert progress.row('node 0.1')['depth'] == 1


def test_the_tasks_of_a_run_are_its_nodes_and_the_search():
    assert [most_tasks(Settings(epochs, RandomSplit())) for epochs in ([], [2], [2, 4])] == [2, 4, 8]
    assert most_tasks(Settings([2, 4], RandomSplit(max_groups=3))) == 1 + 3 + 9 + 1
    assert most_tasks(Settings([2, 4, 6], RandomSplit(max_groups=[4, 2]))) == 1 + 4 + 8 + 16 + 1
