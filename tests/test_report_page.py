"""The page about a run: its numbers, that it loads nothing, how it looks in a browser; and what it is made from."""

import json
import re
import shutil
import subprocess
from dataclasses import dataclass, replace
from html import escape
from html.parser import HTMLParser
from importlib.resources import files
from itertools import pairwise
from pathlib import Path

from nni_naslid import LID, SubSpace
from nni_naslid.analysis.figures import front
from nni_naslid.analysis.html import html_table
from nni_naslid.analysis.report import Column, report_page
from nni_naslid.analysis.truth import nasbench201_arch
from nni_naslid.cli import main
from nni_naslid.criteria.criterion import Context
from nni_naslid.criteria.evidence import ByLabel
from nni_naslid.run.files import read_json, read_lines, write_json
from nni_naslid.run.record import read_record
from nni_naslid.train.path import PathModule

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure
from nni.nas.strategy import RandomOneShot
from numpy.random import RandomState
from PIL import Image
from scipy.stats import kendalltau
from small import Convs, Plain, images, make_evaluator
from test_conformance import Figures, TwoLabels
from torch.utils.data import DataLoader

VOID = {'meta', 'br', 'link', 'img'}
CHROMIUM = shutil.which('chromium') or shutil.which('google-chrome')


class Page(HTMLParser):
    """Text by section, and everything that could be wrong with the form of a page."""

    def __init__(self, text: str):
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.text = ''
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}
        self.ids += [value for name, value in attrs if name == 'id']
        self.links += [value for name, value in attrs if name.endswith('href') or name == 'src']
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f'</{tag}> at {self.getpos()}'

    def handle_data(self, data):
        if self.open and self.open[-1] != 'style':
            self.text += data


def page_of(workdir: Path, *options: str) -> tuple[Page, str]:
    out = workdir.parent / 'page.html'
    assert main(['report', str(workdir), '--out', str(out), *map(str, options)]) == 0
    return Page(out.read_text()), out.read_text()


@pytest.fixture
def truth(finished_run, tmp_path):
    """A table that knows all networks that the run has scored but two, with their parameters."""
    record = read_record(finished_run)
    rows = pd.DataFrame({'arch': [nasbench201_arch(score.sample) for score in record.scores]})
    random_state = np.random.RandomState(1)
    rows['test_acc'] = random_state.uniform(50, 90, len(rows)).round(2)
    rows['params'] = random_state.randint(1000, 9000, len(rows))
    path = tmp_path / 'truth.csv'
    rows[2:].to_csv(path, index=False)
    tau = kendalltau([-score.metrics['val_loss'] for score in record.scores[2:]], rows['test_acc'][2:]).statistic
    return path, len(rows) - 2, tau


@pytest.mark.slow
def test_form(finished_run, truth):
    page, text = page_of(finished_run, '--truth', truth[0])
    assert len(page.ids) == len(set(page.ids))
    assert not re.search(r'https?:|//[a-z]', text.lower())
    assert all(link.startswith(('#', 'data:image/png;base64,')) for link in page.links)
    assert {link[1:] for link in page.links if link.startswith('#')} <= set(page.ids)
    assert {*re.findall(r'url\(#([^)]*)\)', text)} <= set(page.ids)
    assert not page.tags & {'script', 'iframe', 'object', 'link', 'base', 'form'}
    assert not any(name.startswith('on') for name in page.attributes)
    assert "default-src 'none'" in text and 'width=device-width' in text
    assert len(text) < 400_000
    assert page_of(finished_run, '--truth', truth[0])[1] == text  # the same each time


def test_its_numbers_are_those_of_the_run(finished_run):
    page, text = page_of(finished_run)
    tree = json.loads((finished_run / 'tree.json').read_text())
    assert 'missing' not in page.ids and 'The run is finished' in page.text
    for node in tree['nodes']:
        report = json.loads((finished_run / f'node-{node["name"]}.json').read_text())['report']
        assert (
            f'{node["name"]} epochs {node["start_epoch"]}-{node["end_epoch"]} · {node["size"]:,} architectures · '
            f'val_loss {report["val_loss"]:.4g}'
        ) in page.text
        for label, choices in node['subspace'].items():
            assert len(choices) == 5 or f'{label}: {", ".join(choices)}' in page.text
    evidence = tree['nodes'][0]['split']['evidence']
    best = evidence['partition']
    assert f'Split by {evidence["label"]} (contrast {best["score"]:.3f}, 95 % {best["lower"]:.3f} to' in page.text
    for value in np.array(best['similarity']).flat:
        assert f'>{value:.3f}</text>' in text
    assert {f'>{name}</text>' for name in (*evidence['layers'], *evidence['contrasts'])} <= set(
        re.findall(r'>[^<>]*</text>', text)
    )
    found = json.loads((finished_run / 'search.json').read_text())['found'][0]
    best = min(line['metrics']['val_loss'] for line in read_lines(finished_run / 'scores.jsonl', ()))
    assert best <= -found['score']  # others were scored, too
    assert f'{best:.4g}best val_loss of a network' in page.text
    assert f'One supernet of {tree["cost"]} epochs would cost as much, or {5 / 3:.1f} supernets as long' in page.text


def test_what_choosing_a_split_took_is_told_apart(finished_run, tmp_path):
    workdir = shutil.copytree(finished_run, tmp_path / 'run')
    path = workdir / 'node-0.json'
    kept = read_json(path, ())
    assert 0 < kept['choosing'] < kept['seconds']
    assert read_json(workdir / 'node-0.0.json', ())['choosing'] == 0

    def times_of_the_root(result: dict) -> tuple[str, str]:
        write_json(path, result)
        _, text = page_of(workdir)
        (row,) = re.findall(r'<tr><td class=text>0</td><td>1</td>(.*)</tr>', text)
        time, _, choosing, _ = re.findall('<td>(.*?)</td>', row)
        return time, choosing

    result = {**kept, 'seconds': 300.0, 'choosing': 123.0}
    assert times_of_the_root(result) == ('5 min', '2 min')
    del result['choosing']  # as of an earlier version
    assert times_of_the_root(result) == ('5 min', '')


def test_a_run_that_goes_on(unfinished_run):
    page, _ = page_of(unfinished_run)
    assert 'missing' in page.ids and 'The run is not finished' in page.text
    state = 'epoch 2 of 3; no process of this machine is at it'
    assert f'Not there yetNode 0.1: {state}.The search has not begun.' in page.text
    assert not {'networks', 'truth'} & set(page.ids)
    assert {'tree', 'curves', 'splits', 'cost'} <= set(page.ids)
    for path in unfinished_run.glob('node-*'):
        path.unlink()
    page, _ = page_of(unfinished_run)
    assert 'Node 0: waiting.The search has not begun.' in page.text
    assert not {'networks', 'curves', 'splits', 'cost'} & set(page.ids)


def test_estimates_against_truth(finished_run, truth):
    path, n, tau = truth
    page, _ = page_of(finished_run, '--truth', path)
    assert f"Kendall's tau {tau:.3f} (95 % " in page.text
    assert f'on the {n} of {n + 2} scored networks that the truth knows' in page.text
    assert {'truth', 'pareto'} <= set(page.ids)  # as the table has parameters
    page, _ = page_of(finished_run, '--costs', path)
    assert 'pareto' in page.ids and 'truth' not in page.ids
    page, _ = page_of(finished_run)
    assert not {'truth', 'pareto'} & set(page.ids)


def test_truth_that_knows_too_few(finished_run):
    record = read_record(finished_run)
    arch = nasbench201_arch(record.scores[0].sample)
    page = Page(report_page(record, Column('acc', pd.Series([90.0], [arch]))))
    assert 'The truth knows only 1 of the scored networks: too few for a correlation.' in page.text


def test_names_are_text_whatever_they_are(finished_run, tmp_path):
    workdir = tmp_path / 'run'
    shutil.copytree(finished_run, workdir)
    content = read_json(workdir / 'tree.json', ())
    for choices in content['space'].values():
        choices[:2] = ['<script>alert(1)</script>', '$x$ & "y"']
    write_json(workdir / 'tree.json', content)
    page, _ = page_of(workdir)
    assert 'script' not in page.tags and '<script>alert(1)</script>' in page.text
    assert '$x$ & "y"' in page.text


def test_other_criteria_and_spaces(small, tmp_path):
    """Splits by lot have no pictures; choices are numbers."""
    small(criterion='random')
    page, _ = page_of(tmp_path)
    assert 'Split by stem (at random)' in page.text or 'Split by body (at random)' in page.text
    assert 'splits' not in page.ids and 'networks' in page.ids


def test_a_node_that_is_not_split(small, tmp_path):
    small(criterion=LID(n_neighbors=5, repeats=8, min_contrast=0.9))
    page, _ = page_of(tmp_path)
    assert 'Not split: ' in page.text and '1leaf' in page.text


@dataclass(frozen=True)
class Drawn(Figures):
    """Evidence of a user's, with all that evidence may have."""

    def figure(self, title: str) -> Figure:
        figure = Figure()
        figure.suptitle(f'{title} as its user draws it')
        return figure

    def scalars(self) -> dict:
        return {'passes': 1234, 'largest': self.largest}


@dataclass(frozen=True)
class DrawnLabels(TwoLabels):
    def choose(self, context):
        split = super().choose(context)
        return replace(split, evidence=Drawn(split.evidence.largest))

    def read_evidence(self, content):
        return Drawn(**content)


def test_a_criterion_of_the_user(small, tmp_path):
    """It is asked for what evidence has. Where it cannot split, the page does not say why: another one might."""
    criterion = DrawnLabels()
    strategy = small(make_evaluator(), split_epochs=(1, 2), criterion=criterion)
    assert [node.name for node in strategy.tree] == ['0', '0.0', '0.1', '0.2', '0.2.0', '0.2.1', '0.2.2']
    own = 'test_report_page.DrawnLabels'
    text = report_page(read_record(tmp_path, {own: criterion.read_evidence}))
    page = Page(text)
    assert all(f'>Node {name} as its user draws it</text>' in text for name in ('0', '0.2'))
    assert text.count('>1,234<') == 2
    assert page.text.count('Nothing is left to split.') == 2 and 'one choice' not in page.text
    page, _ = page_of(tmp_path)  # which reads what it said, and runs no code of it
    assert 'splits' not in page.ids and 'largest weight' in page.text


def test_each_panel_of_the_evidence_is_as_wide_as_a_phone(finished_run):
    """Text of 9 points in a picture of 4.6 inches: it is shown about as wide."""
    record = read_record(finished_run, {'nni_naslid.criteria.lid.LID': LID().read_evidence})
    figure = record.root.split.evidence.figure('Node 0')
    assert figure.get_figwidth() < 5
    titles = [axes.get_title() for axes in figure.axes if axes.get_title()]
    assert len(titles) == 3 and titles[0].startswith('Similarity of the candidates of ')
    figure.draw_without_rendering()
    left = {round(axes.get_position().y1, 2) for axes in figure.axes if axes.get_title()}
    assert len(left) == 3  # below each other


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=20))
@settings(deadline=None)
def test_front(points):
    costs, estimates = np.array(points, float).T
    best = front(costs, estimates)
    beaten = {
        (c, e) for c, e in points for d, f in points if d <= c and f >= e and (d, f) != (c, e)
    }  # fmt: skip
    assert {points[i] for i in best} == set(points) - beaten
    assert all(costs[i] < costs[j] and estimates[i] < estimates[j] for i, j in pairwise(best))


# What is kept for it while a run goes on.


def curve(workdir: Path, name: str) -> dict[int, dict[str, float]]:
    return read_record(workdir).curves[name]


def test_curves_end_with_what_nodes_report(finished_run):
    for node, epochs in (('0', [1]), ('0.0', [2, 3]), ('0.1', [2, 3])):
        found = curve(finished_run, node)
        assert list(found) == epochs
        report = json.loads((finished_run / f'node-{node}.json').read_text())['report']
        assert found[epochs[-1]] == {name: report[name] for name in ('val_loss', 'val_acc')}


class Counts(Plain):
    """Logs how often it was validated, and while training a metric that is no validation."""

    validations = 0

    def training_step(self, batch, batch_idx):
        self.log('train_loss', 1.0)
        return super().training_step(batch, batch_idx)

    def on_validation_start(self):
        self.validations += 1

    def validation_step(self, batch, batch_idx):
        super().validation_step(batch, batch_idx)
        self.log('n', float(self.validations))


@pytest.mark.parametrize(
    'trainer, numbers',
    [
        ({'num_sanity_val_steps': 2}, {1: 2, 2: 3, 3: 4}),  # the check before training is not in the curve
        ({'num_sanity_val_steps': 0, 'check_val_every_n_epoch': 2}, {2: 1, 3: 2}),  # and after the last one
        ({'num_sanity_val_steps': 0, 'val_check_interval': 2}, {1: 2, 2: 4, 3: 6}),  # the last of an epoch
    ],
    ids=['sanity-check', 'every-other', 'twice-an-epoch'],
)
def test_curves_have_each_validation(small, tmp_path, trainer, numbers):
    small(make_evaluator(Counts(), **trainer), split_epochs=(), search_budget=1)
    found = curve(tmp_path, '0')
    assert {epoch: at['n'] for epoch, at in found.items()} == numbers
    assert all(at.keys() == {'val_loss', 'n'} for at in found.values())


def test_the_evidence_has_the_mean_profile_of_its_label(tmp_path):
    """Of all repeats that it is about, by layer; and it survives JSON."""
    criterion = LID(n_neighbors=5, repeats=8, min_contrast=0)
    made = make_evaluator(train=DataLoader(images(), 24), val=DataLoader(images(48, seed=1), 24))
    supernet = RandomOneShot().mutate_model(Convs())
    module = PathModule(made.module)
    module.set_model(supernet)
    notes = tmp_path / 'notes.jsonl'
    given = ('0', SubSpace.of(supernet), supernet, module, made, 'val_loss', 'min', (0,), RandomState(0))
    checked = criterion.check(Context(*given, {}))
    context = Context(*given, json.loads(json.dumps(checked)), notes, {'run': 'run'})
    evidence = criterion.choose(context).evidence
    if not isinstance(evidence, ByLabel):
        pytest.fail(evidence.objection)
    lines = read_lines(notes, ('repeat', 'profiles'))[: evidence.n_repeats]
    mean = np.mean([line['profiles'][evidence.label] for line in lines], 0)
    assert np.array(evidence.profile) == pytest.approx(mean, abs=6e-4)
    assert len(evidence.layers) == len(evidence.profile[0]) and set(evidence.layers) <= set(checked)
    assert ByLabel.from_dict(json.loads(json.dumps(evidence.to_dict()))).profile == evidence.profile


# In a browser.


def chromium(*arguments: str) -> str:
    options = ('--headless', '--no-sandbox', '--disable-gpu', '--hide-scrollbars')
    return subprocess.run(
        [CHROMIUM, *options, *arguments], capture_output=True, text=True, timeout=60, check=True
    ).stdout


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason='chromium is not installed')
@pytest.mark.parametrize('width', [390, 1280])
def test_in_a_browser(finished_run, truth, tmp_path, width):
    """On a phone as on a desk, nothing is wider than the window, and the figures are drawn."""
    _, text = page_of(finished_run, '--truth', truth[0])
    page = tmp_path / 'page.html'
    page.write_text(text)
    picture = tmp_path / 'page.png'
    chromium(f'--window-size={width},4000', f'--screenshot={picture}', page.as_uri())
    pixels = np.array(Image.open(picture).convert('RGB'))
    assert pixels.shape[:2] == (4000, width)
    assert (pixels[0, 0] == 255).all()
    for color in ((31, 119, 180), (255, 127, 14)):  # of the two leaves: in the tree and in figures
        rows = np.flatnonzero((pixels == color).all(-1).any(-1))
        assert len(rows) > 50 and np.ptp(rows) > 1000
    # A window is at least 500 wide, but for pictures; a frame is not. Its script needs a page that allows it.
    inner = re.sub(r'<meta http-equiv[^>]*>', '', text).replace('<details', '<details open')
    page.write_text(
        f'<iframe width="{width}" height="900" style="border:0" srcdoc="{escape(inner)}" '
        'onload="document.title = this.contentDocument.documentElement.scrollWidth"></iframe>'
    )
    assert f'<title>{width}</title>' in chromium('--window-size=1400,1000', '--dump-dom', page.as_uri())


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason='chromium is not installed')
def test_a_table_that_is_cut_has_a_shadow_where_it_goes_on(tmp_path):
    """On the right before it is scrolled, on both sides half-way, on the left at its end; none if all of it is seen."""
    style = files('nni_naslid.analysis').joinpath('report.css').read_text()
    wide = html_table([f'column {i}' for i in range(20)], [])
    tables = [(wide, 0), (wide, 500), (wide, 1e6), (html_table(['a', 'b'], []), 0)]
    boxes = ''.join(f'<div style="position:absolute;left:50px;width:300px;top:{100 * i}px">{table}</div>'
                    for i, (table, _) in enumerate(tables))  # fmt: skip
    scroll = ''.join(f'boxes[{i}].scrollLeft = {left};' for i, (_, left) in enumerate(tables))
    script = f'<script>const boxes = document.querySelectorAll(".scroll"); {scroll}</script>'
    (tmp_path / 'page.html').write_text(f'<style>{style}</style>{boxes}{script}')
    picture = tmp_path / 'page.png'
    chromium('--window-size=600,500', f'--screenshot={picture}', (tmp_path / 'page.html').as_uri())
    pixels = np.array(Image.open(picture).convert('L'))
    rows = [100 * i + 2 for i in range(len(tables))]  # above the text
    assert [(pixels[row, 51] < 240, pixels[row, 348] < 240) for row in rows] == [
        (False, True), (True, True), (True, False), (False, False)
    ]  # fmt: skip
    assert all(pixels[row, 200] == 255 for row in rows)
