"""The command line: look at runs. What a command needs is imported when it is called, so that others are quick."""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nni_naslid.analysis.report import Column
    from nni_naslid.run.record import Record
    from nni_naslid.space.tree import Node

__all__ = ['main']

EPILOG = """RUN is the work folder of a run (`workdir`), finished or still running. No command changes a run, and none
imports what is named in its folder: `export` imports what you name.
Exit codes: 0 done, 1 a run or table cannot be read or a file cannot be written, 2 wrong usage.
Without any arguments this is the trial command of NNI experiments."""

ACCURACY, COST = 'test_acc', 'params'  # the columns that are read by default

EXAMPLES = {
    'report': """examples:
  python -m nni_naslid report runs/dropin
  python -m nni_naslid report runs/dropin --truth truth.csv --truth-column test_acc
  python -m nni_naslid report runs/dropin --truth truth.csv --costs costs.csv --cost-column params --cost-column naswot
  python -m nni_naslid report runs/dropin --out page.html --figures figures/""",
    'compare': """examples:
  python -m nni_naslid compare runs/lid runs/random
  python -m nni_naslid compare runs/lid runs/random --truth truth.csv""",
    'tree': """example:
  python -m nni_naslid tree runs/dropin""",
    'export': """examples:
  python -m nni_naslid export naslid --yaml examples/nasbench201.yml --top 3
  python -m nni_naslid export runs/first --space project.space --evaluator project.evaluator --onnx

Each network gets a folder: weights.pt (a state_dict), architecture.json and, with --onnx, model.onnx. Batch norms are
recalibrated as in the search; for that the data of the run are needed. From Python: strategy.export(top=3).""",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Returns
    -------
    The exit code: 1 after one line on stderr if a run or table cannot be read, or a file cannot be written.
    """
    args = _parser().parse_args(arguments)
    if mistake := _mistake(args):
        args.usage_error(mistake)
    try:
        args.command(args)
        sys.stdout.flush()
    except BrokenPipeError:  # `... tree RUN | head`
        sys.stderr.close()
    except (ImportError, OSError, ValueError) as error:
        print(f'python -m nni_naslid: {" ".join(str(error).split())}', file=sys.stderr)
        return 1
    return 0


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        'python -m nni_naslid',
        description='Look at runs of NASLID.',
        epilog=EPILOG,
        formatter_class=RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True, metavar='COMMAND')
    for name, command, short in (
        ('report', _report, 'write a page about a run: tree, splits, curves, networks, cost'),
        ('compare', _compare, 'a table of runs, and how much better one ranks than another'),
        ('tree', _tree, 'print the tree of a run'),
        ('export', _export, 'write the best networks of a finished run as files'),
    ):
        sub = commands.add_parser(
            name,
            help=short,
            description=f'{short[0].upper()}{short[1:]}.',
            epilog=EXAMPLES[name],
            formatter_class=RawDescriptionHelpFormatter,
        )
        sub.set_defaults(command=command, usage_error=sub.error)
        if name == 'compare':
            sub.add_argument('runs', metavar='RUN', type=Path, nargs='+', help='work folders')
        else:
            sub.add_argument('run', metavar='RUN', type=Path, help='the work folder')
        if name == 'export':
            _add_export(sub)
        if name in ('report', 'compare'):
            sub.add_argument(
                '--truth',
                metavar='SOURCE',
                help='a .csv or .npz with measured accuracies and a column `arch`: NAS-Bench-201 strings, or for '
                'other spaces dicts of label to choice as JSON, {"stem": "conv3", ...}, where choices that a network '
                'does not read, as in blocks beyond its depth, make no difference; or a benchmark (see '
                'nni_naslid.analysis.truth.load_truth)',
            )
            sub.add_argument(
                '--truth-column',
                metavar='NAME',
                help=f'which accuracy of that file (default: {ACCURACY})',
            )
        if name == 'report':
            sub.add_argument(
                '--costs',
                metavar='FILE',
                type=Path,
                help='such a file with what networks cost, or what other scores say of them; by default the file of '
                '--truth, if it has that column',
            )
            sub.add_argument(
                '--cost-column',
                metavar='NAME',
                action='append',
                help=f'which of them; may be repeated (default: {COST})',
            )
            sub.add_argument('--out', metavar='FILE', type=Path, help='the page (default: RUN/report.html)')
            sub.add_argument(
                '--figures', metavar='FOLDER', type=Path, help='put each figure there, too, as .svg and as .png'
            )
    return parser


def _add_export(sub: ArgumentParser) -> None:
    sub.add_argument(
        '--yaml', metavar='FILE', type=Path, help='the YAML of the experiment, whose space and evaluator are made'
    )
    sub.add_argument(
        '--space',
        metavar='MODULE.FUNCTION',
        help='a function of yours without arguments that returns the model space of the run',
    )
    sub.add_argument('--evaluator', metavar='MODULE.FUNCTION', help='one that returns its evaluator')
    sub.add_argument('--top', metavar='N', type=int, default=1, help='how many of the best networks (default: 1)')
    sub.add_argument('--out', metavar='FOLDER', type=Path, help='where to put them (default: RUN/export)')
    sub.add_argument('--onnx', action='store_true', help='write model.onnx, too, and compare it by onnxruntime')


def _mistake(args: Namespace) -> str | None:
    """What is said in vain: a column without the table that has it; what is said twice, or not at all."""
    if args.command is _export:
        if args.top < 1:
            return f'--top must be at least 1, but is {args.top}'
        named = args.space, args.evaluator
        if args.yaml is None and None in named:
            return 'whose networks? A work folder is data, so name the code: --yaml, or --space and --evaluator'
        if args.yaml is not None and named != (None, None):
            return '--yaml has a space and an evaluator: leave out --space and --evaluator'
        return None
    options = vars(args)
    if options.get('truth_column') and args.truth is None:
        return f'--truth-column {args.truth_column} needs --truth, which has that column'
    if options.get('cost_column') and args.truth is None and args.costs is None:
        return f'--cost-column {args.cost_column[0]} needs --costs, or a --truth that has that column, too'
    return None


def _read(path: Path) -> Record:
    """A run. What it has of criteria that are not of this package is left as text: reading runs no code of others."""
    from nni_naslid.criteria.named import CRITERIA, described
    from nni_naslid.run.record import read_record

    evidence = {f'{cls.__module__}.{cls.__qualname__}': cls().read_evidence for cls in CRITERIA.values()}
    return read_record(path, evidence, described)


def _column(path: str | Path, name: str) -> Column:
    from nni_naslid.analysis.report import Column
    from nni_naslid.analysis.truth import load_truth

    return Column(name, load_truth(path, name))


def _report(args: Namespace) -> None:
    from nni_naslid.analysis.report import report_figures, report_page
    from nni_naslid.analysis.sources.table import is_table, table_columns

    record = _read(args.run)
    truth = None if args.truth is None else _column(args.truth, args.truth_column or ACCURACY)
    source = args.truth if args.costs is None else args.costs
    table = Path(args.truth or '')
    # A column that was asked for must be there, the usual one is shown if it is.
    usual = args.costs is not None or (is_table(table) and COST in table_columns(table))
    costs = [_column(source, name) for name in dict.fromkeys(args.cost_column or [COST] * usual)]
    out = args.run / 'report.html' if args.out is None else args.out
    page = report_page(record, truth, costs).encode()
    _write(out, lambda file: file.write_bytes(page))
    print(f'{out} ({len(page) / 1000:,.0f} kB)')
    if args.figures is not None:
        args.figures.mkdir(parents=True, exist_ok=True)
        for name, figure in report_figures(record, truth, costs).items():
            for suffix in ('svg', 'png'):
                file = args.figures / f'{name.replace("/", "-")}.{suffix}'
                _write(file, lambda file, figure=figure, suffix=suffix: figure.savefig(file, format=suffix, dpi=150))
        print(f'{args.figures} (figures)')


def _write(path: Path, write: Callable[[Path], object]) -> None:
    from nni_naslid.run.files import replacing

    try:
        with replacing(path) as unfinished:
            write(unfinished)
    except OSError as error:
        reason = getattr(error.__cause__, 'strerror', None) or error
        raise OSError(f'{path} cannot be written ({reason}). Name another place for it.') from error


def _compare(args: Namespace) -> None:
    from nni_naslid.analysis.compare import compare

    records = [_read(path) for path in args.runs]
    truth = None if args.truth is None else _column(args.truth, args.truth_column or ACCURACY).values
    rows, lines = compare(records, truth)
    widths = {name: max(len(name), *(len(row[name]) for row in rows)) for name in rows[0]}
    for row in [dict(zip(rows[0], rows[0], strict=True)), *rows]:
        print('  '.join(f'{row[name]:<{width}}' for name, width in widths.items()).rstrip())
    if lines:
        print(*['', *lines], sep='\n')
    if truth is not None:
        print('In brackets: 95 % intervals, from random halves of the architectures; in pairs where runs are compared.')


def _tree(args: Namespace) -> None:
    record = _read(args.run)
    _print(record, record.root, None)
    n, n_leaves = len(record.scores), len(record.root.leaves)
    ended = 'the search has ended' if record.n_searched is not None else 'the search has not ended'
    leaves = '1 leaf' if n_leaves == 1 else f'{n_leaves} leaves'
    each = f' of {paths} paths a step' if (paths := record.settings.paths_per_step) > 1 else ''
    print(f'{leaves}, {record.root.cost} epochs{each}, {n:,} networks scored, {ended}')


def _export(args: Namespace) -> None:
    record = _read(args.run)
    if not record.finished:
        raise ValueError(
            f'{args.run} holds a run that has not finished: see `python -m nni_naslid tree {args.run}`. Start it again.'
        )
    if args.top > record.n_searched:
        raise ValueError(f'--top {args.top} is more than the {record.n_searched} networks that the search scored.')
    from nni_naslid.finished import open_search, project_by_name, project_of_yaml
    from nni_naslid.run.folder import RunFolder
    from nni_naslid.search.export_files import export_networks

    if (out := args.out) is None:
        out = RunFolder(args.run).export
    elif out.is_symlink():  # one of the user's; one in the work folder may be somebody's else
        out = out.resolve()
    try:
        made = project_by_name(args.space, args.evaluator) if args.yaml is None else project_of_yaml(args.yaml)
        scorer, found = open_search(args.run, *made)
        export_networks(scorer, found[: args.top], out, args.onnx, print)
    except (RuntimeError, TypeError) as error:  # of what was named, such as a space whose weights are others
        raise ValueError(f'{args.run}: {" ".join(str(error).split()):.500}') from error


def _print(record: Record, node: Node, parent: Node | None) -> None:
    """A node and all below, each in a line, children further to the right."""
    from nni_naslid.run.text import rounded
    from nni_naslid.space.tree import format_size

    indent, monitor = '  ' * len(node.path), record.settings.monitor
    value = record.metric(node.report)
    parts = [node.name, node.epochs, f'{format_size(node.subspace.size)} architectures']
    if value is not None:
        parts.append(f'{monitor} {rounded(value, 4)}')
    if record.state[node.name] != 'done':
        parts.append(f'({record.state[node.name]})')
    if parent is not None:
        for label, choices in node.subspace.narrowed(parent.subspace).items():
            parts.append(f'{label}: {", ".join(map(str, choices))}')
    print(indent + '  '.join(parts))
    if node.split is not None:
        evidence = node.split.evidence
        said = (
            f'is split: {node.split.describe(node.subspace)}' if node.children else f'not split: {evidence.objection}'
        )
        told = evidence.describe()
        print(f'{indent}  {said}{f" ({told})" if told else ""}')
    if node.stopped is not None:
        print(f'{indent}  {node.why_stopped}')
    for child in node.children:
        _print(record, child, node)
