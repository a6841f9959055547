"""The tables and figures of study.py: each question is a function of the rows that draws a figure, returns a table."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from nni_naslid.analysis.bootstrap import Interval
from nni_naslid.analysis.compare import interval, tau
from nni_naslid.analysis.measures import precision_at_top, true_ranks
from nni_naslid.analysis.ranking import ranking_report
from nni_naslid.analysis.stability import s_tau
from nni_naslid.run.text import rounded

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from scipy.stats import rankdata

N_BOOTSTRAP = 500
SHARES = 0.125, 0.25  # of the architectures, called the worst and the best
COLORS = ('#4269d0', '#efb118', '#ff725c', '#6cc5b0', '#9c6b4e', '#a463f2')


class Rows:
    """The rows of a study; estimates and truth with larger values for better architectures."""

    def __init__(self, path: Path):
        self.rows = pd.read_csv(path, dtype={'values': str})
        self.spaces = list(dict.fromkeys(self.rows['space']))

    def select(self, space: str, what: str, metric: str = 'loss', **at: float) -> dict[tuple, np.ndarray]:
        """Rankings by seed and step."""
        rows = self.rows.query('space == @space and what == @what and metric == @metric')
        for name, value in at.items():
            rows = rows[rows[name] == value]
        sign = -1 if metric == 'loss' else 1
        values = (sign * np.array(text.split(), float) for text in rows['values'])
        return dict(zip(zip(rows['seed'], rows['step'], strict=True), values, strict=True))

    def truth(self, space: str) -> np.ndarray:
        """Accuracies of architectures trained alone, the mean of the seeds."""
        return np.mean(list(self.select(space, 'truth', 'accuracy').values()), 0)

    def parameters(self, space: str) -> np.ndarray:
        return next(iter(self.select(space, 'parameters', 'parameters').values()))

    def steps(self, space: str) -> list[int]:
        """At which all supernets were looked at."""
        found = [step for seed, step in self.select(space, 'supernet', tuned=0, calibrated=1) if seed > 0]
        return sorted(map(int, set(found)))

    def final(self, space: str, metric: str = 'loss', tuned: int = 0, calibrated: int = 1) -> list[np.ndarray]:
        """Of the fully trained supernets, by seed."""
        at = {'step': self.steps(space)[-1], 'tuned': tuned, 'calibrated': calibrated}
        return list(self.select(space, 'supernet', metric, **at).values())

    def window(self, space: str, end: int, calibrated: int) -> dict[int, np.ndarray]:
        """One supernet after each of some mini-batches in a row, by step."""
        found = self.select(space, 'supernet', tuned=0, calibrated=calibrated, seed=0)
        return {int(step): each for (_, step), each in found.items() if end - 8 < step <= end}


def over_seeds(values: list[float]) -> str:
    return ', '.join(rounded(value, 2) for value in values)


def text(value: Interval) -> str:
    return f'{rounded(value.value, 2)} [{rounded(value.low, 2)}, {rounded(value.high, 2)}]'


def stability(rows: Rows, figure: Figure) -> pd.DataFrame:
    """S-Tau over seeds and over epochs, beside GT-Tau and the agreement of two truths."""
    table, drawn = [], []
    for space in rows.spaces:
        truth, finals = rows.truth(space), rows.final(space)
        alone = s_tau(rows.select(space, 'truth', 'accuracy'), N_BOOTSTRAP)
        seeds = s_tau(dict(enumerate(finals)), N_BOOTSTRAP)
        looks = rows.select(space, 'supernet', tuned=0, calibrated=1)
        epochs = [
            s_tau({step: looks[seed, step] for step in rows.steps(space)[1:]}).value for seed in range(len(finals))
        ]
        gt = [tau(each, truth) for each in finals]
        mean_rank = np.mean([rankdata(each) for each in finals], 0)
        table.append({
            'space': space, 'two truths': text(alone), 'seeds': text(seeds), 'epochs, by seed': over_seeds(epochs),
            'tau with truth, by seed': over_seeds(gt), 'of their mean rank': f'{tau(mean_rank, truth):.2f}',
        })  # fmt: skip
        drawn.append([[alone.value], [seeds.value], epochs, gt])
    names = 'two truths', 'supernets: seeds', 'supernets: epochs', 'supernet and truth'
    dots(figure, rows.spaces, dict(zip(names, zip(*drawn, strict=True), strict=True)), "Kendall's tau")
    return pd.DataFrame(table)


def batches(rows: Rows, figure: Figure) -> pd.DataFrame:
    """S-Tau over mini-batches in a row, half-way and at the end of training."""
    table, drawn = [], []
    for space in rows.spaces:
        last, truth, row, values = rows.steps(space)[-1], rows.truth(space), {'space': space}, []
        for end, when in ((last // 2, 'half-way'), (last, 'end')):
            for calibrated, norms in ((0, 'stored'), (1, 'recalibrated')):
                window = rows.window(space, end, calibrated)
                swing = np.ptp([true_ranks(each) for each in window.values()], axis=0).mean() / (len(truth) - 1)
                agreement = s_tau(window)
                gt = [tau(each, truth) for each in window.values()]
                row[f'{when}, {norms}'] = f'{agreement.value:.2f}; {swing:.0%}; {min(gt):.2f} to {max(gt):.2f}'
                values.append([agreement.value])
        table.append(row)
        drawn.append(values)
    dots(
        figure, rows.spaces, dict(zip(list(table[0])[1:], zip(*drawn, strict=True), strict=True)), 'S-Tau of 8 batches'
    )
    return pd.DataFrame(table)


def tuning(rows: Rows, figure: Figure) -> pd.DataFrame:
    """Tau with the truth by batches of fine-tuning, with batch norms as they are and recalibrated."""
    table = []
    numbers = sorted(map(int, rows.rows['tuned'].dropna().unique()))
    truths = {space: rows.truth(space) for space in rows.spaces}

    def mean_tau(space: str, *of: object) -> float:
        return np.mean([tau(each, truths[space]) for each in rows.final(space, *of)])

    axes = figure.subplots(1, len(rows.spaces), sharey=True, squeeze=False)[0]
    for space, ax in zip(rows.spaces, axes, strict=True):
        for calibrated, label in ((0, 'stored'), (1, 'recalibrated')):
            taus = [mean_tau(space, 'loss', n, calibrated) for n in numbers]
            ax.plot(range(len(numbers)), taus, 'o-', label=label, color=COLORS[calibrated])
        ax.set_xticks(range(len(numbers)), numbers)
        ax.set_title(space, fontsize=9)
    axes[0].set_ylabel('tau with the truth')
    axes[0].legend(fontsize=7)
    figure.supxlabel('batches of fine-tuning', fontsize=9)
    for name, spaces in {**{space: [space] for space in rows.spaces}, 'all': rows.spaces}.items():
        row = {'space': name}
        for column, of in (
            ('stored', ('loss', 0, 0)), (f'stored, {numbers[-1]} batches', ('loss', numbers[-1], 0)),
            ('recalibrated', ('loss', 0, 1)), ('the same by accuracy', ('accuracy', 0, 1)),
        ):  # fmt: skip
            row[column] = f'{np.mean([mean_tau(space, *of) for space in spaces]):.2f}'
        plain = {space: rows.final(space) for space in spaces}
        stored = [(plain[space], rows.final(space, calibrated=0), truths[space]) for space in spaces]
        row['gain of recalibration'] = text(gain(stored))
        for n in numbers[1:]:
            row[f'then of {n} batches'] = text(gain([(rows.final(s, tuned=n), plain[s], truths[s]) for s in spaces]))
        table.append(row)
    return pd.DataFrame(table)


def gain(cases: list[tuple[list[np.ndarray], list[np.ndarray], np.ndarray]]) -> Interval:
    """By how much the mean tau of our rankings is larger than that of others, in pairs: each case with its truth."""

    def difference(half: np.ndarray) -> float:
        means = [
            [np.mean([tau(each[half], truth[half]) for each in rankings]) for rankings in (ours, others)]
            for ours, others, truth in cases
        ]
        return np.mean([ours - others for ours, others in means])

    return interval(difference, len(cases[0][2]))


def worst(share: float, estimate: np.ndarray, truth: np.ndarray) -> float:
    """Which part of the estimated worst belongs to the true worst."""
    return best(share, -estimate, -truth)


def best(share: float, estimate: np.ndarray, truth: np.ndarray) -> float:
    """Which part of the estimated best belongs to the true best."""
    return precision_at_top(estimate, truth, max(1, round(share * len(truth))))


def worst_less_best(share: float, estimate: np.ndarray, truth: np.ndarray) -> float:
    return worst(share, estimate, truth) - best(share, estimate, truth)


def best_kept(share: float, estimate: np.ndarray, truth: np.ndarray) -> float:
    """Which part of the true best is still there when the estimated worst half is gone."""
    is_best = truth >= np.sort(truth)[-max(1, round(share * len(truth)))]
    return (estimate[is_best] >= np.median(estimate)).mean()


def tau_kept(estimate: np.ndarray, truth: np.ndarray) -> float:
    """Tau when the estimated worst half is gone."""
    is_kept = estimate >= np.median(estimate)
    return tau(estimate[is_kept], truth[is_kept])


def pruning(rows: Rows, figure: Figure) -> pd.DataFrame:
    """Precision of the estimated worst and of the estimated best of the same number; what is left of half of them."""
    pairs = {space: [(each, rows.truth(space)) for each in rows.final(space)] for space in rows.spaces}
    pairs['all'] = [pair for of_space in pairs.values() for pair in of_space]
    n = len(pairs['all'][0][1])

    def mean(measure: Callable[..., float], space: str, chosen: np.ndarray | slice = slice(None)) -> float:
        return np.nanmean([measure(estimate[chosen], truth[chosen]) for estimate, truth in pairs[space]])

    table, drawn = [], {}
    for space in pairs:
        row = {'space': space}
        for share in SHARES:
            for name, measure in (('worst', worst), ('best', best)):
                value = mean(partial(measure, share), space)
                drawn.setdefault(f'{name} {share:.1%}', []).append([value])
                row[f'{name} {share:.1%}'] = f'{value:.2f}'
            row[f'difference {share:.1%}'] = text(interval(partial(mean, partial(worst_less_best, share), space), n))
        row['best half'] = f'{mean(partial(best, 0.5), space):.2f}'
        row[f'true best {SHARES[0]:.1%} kept'] = f'{mean(partial(best_kept, SHARES[0]), space):.2f}'
        row['tau'] = f'{mean(tau, space):.2f}'
        row['tau in the kept half'] = f'{mean(tau_kept, space):.2f}'
        table.append(row)
    dots(figure, list(pairs), drawn, 'precision')
    return pd.DataFrame(table)


def grouping(rows: Rows, figure: Figure) -> pd.DataFrame:
    """Groups of similar candidates against random ones, at equal cost."""
    table, drawn = [], {}
    spaces = [space for space in rows.spaces if rows.select(space, 'random')]
    for space in spaces:
        truth, unsplit = rows.truth(space), rows.final(space)
        random = list(rows.select(space, 'random').values())
        for name in ('one supernet', 'random', 'LID', 'kind'):
            ours = unsplit if name == 'one supernet' else list(rows.select(space, name).values())
            found = rows.rows.query('space == @space and what == @name and metric == "loss"')
            values = [tau(each, truth) for each in ours]
            drawn.setdefault(name, []).append(values)
            table.append({
                'space': space, 'groups': name, 'tau, by seed': over_seeds(values),
                'minus one supernet': '' if ours is unsplit else text(gain([(ours, unsplit, truth)])),
                'minus random': '' if name in ('one supernet', 'random') else text(gain([(ours, random, truth)])),
                'leaves': ', '.join(f'{n:.0f}' for n in found['leaves']),
                'epochs': ', '.join(f'{n:.0f}' for n in found['cost']),
            })  # fmt: skip
    dots(figure, spaces, drawn, 'tau with the truth')
    return pd.DataFrame(table)


def bias(rows: Rows, figure: Figure) -> pd.DataFrame:
    """What estimates know beyond the number of parameters."""
    table, drawn = [], []
    for space in rows.spaces:
        truth, parameters, finals = rows.truth(space), rows.parameters(space), rows.final(space)
        reports = [ranking_report(each, truth, costs={'parameters': parameters}) for each in finals]
        rho = [report.figures['estimates']['spearman'].value for report in reports]
        partial = [report.partial['parameters'].value for report in reports]
        table.append({
            'space': space, 'tau of parameters': text(reports[0].figures['parameters']['tau']),
            'Spearman of estimates': over_seeds(rho), 'given parameters': over_seeds(partial),
            'first seed given parameters': text(reports[0].partial['parameters']),
            'tau of estimates with parameters': over_seeds([tau(each, parameters) for each in finals]),
            'tau of truth with parameters': f'{tau(truth, parameters):.2f}',
        })  # fmt: skip
        drawn.append([[reports[0].figures['parameters']['spearman'].value], rho, partial])
    names = 'parameters', 'estimates', 'estimates given parameters'
    dots(
        figure,
        rows.spaces,
        dict(zip(names, zip(*drawn, strict=True), strict=True)),
        "Spearman's correlation with truth",
    )
    return pd.DataFrame(table)


QUESTIONS = {each.__name__: each for each in (stability, batches, tuning, pruning, grouping, bias)}


def dots(figure: Figure, spaces: list[str], groups: dict[str, tuple[list[float], ...]], label: str) -> None:
    """A line for each space, and on it the values of each group."""
    ax = figure.subplots()
    for i, (name, values) in enumerate(groups.items()):
        points = [(x, y) for y, each in enumerate(values) for x in each]
        offset = (i - (len(groups) - 1) / 2) * 0.18
        x, y = np.array(points).T
        ax.plot(x, y + offset, 'o', color=COLORS[i], label=name, markersize=5)
    ax.axvline(0, color='#999999', linewidth=0.8)
    ax.set_yticks(range(len(spaces)), spaces)
    ax.invert_yaxis()
    ax.set_xlabel(label)
    ax.legend(fontsize=7, loc='center left', bbox_to_anchor=(1, 0.5))


def tables(rows: Rows, folder: Path) -> Iterator[tuple[str, str]]:
    """The table of each question as Markdown; its figure goes into the folder."""
    for name, question in QUESTIONS.items():
        figure = Figure(figsize=(7, 2.6), layout='constrained')
        table = question(rows, figure)
        with matplotlib.rc_context({'svg.hashsalt': name, 'font.size': 8}):  # the same rows, the same file
            figure.savefig(folder / f'{name}.svg', metadata={'Date': None})
        yield name, markdown(table)


def markdown(table: pd.DataFrame) -> str:
    lines = [list(table), ['---'] * len(table.columns), *table.to_numpy().tolist()]
    return '\n'.join(f'| {" | ".join(map(str, line))} |' for line in lines)


def report(path: Path) -> None:
    """Print the tables, draw the figures beside the rows, and put the tables into the text, where there is one."""
    folder, page = path.with_suffix(''), path.with_suffix('.md')
    folder.mkdir(exist_ok=True)
    content = page.read_text() if page.exists() else ''
    for name, table in tables(Rows(path), folder):
        print(f'\n{name}: {folder / name}.svg\n{table}')
        content = re.sub(rf'(<!-- {name} -->\n).*?(<!-- end -->)', rf'\1{table}\n\2', content, flags=re.DOTALL)
    if page.exists():
        page.write_text(content)
