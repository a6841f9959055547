"""The best networks of a search as files that can be read without this package: weights, architecture, ONNX."""

from __future__ import annotations

import copy
import inspect
import json
import logging
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import nni_naslid
from nni_naslid import compat as compat  # before nni.nas
from nni_naslid.run.checks import brief, integer
from nni_naslid.run.files import replacing
from nni_naslid.run.text import rounded
from nni_naslid.search.export import by_freeze, by_model_context, difference
from nni_naslid.search.fixed import path_network
from nni_naslid.search.score import LeafScorer
from nni_naslid.search.to_onnx import check_onnx, write_onnx
from nni_naslid.space.subspace import SubSpace
from nni_naslid.train.data import Inputs, call, n_samples, tensors_in
from nni_naslid.train.supernet import make_supernet
from nni_naslid.traits.passes import counted

import torch
from nni.mutable import Sample
from nni.nas.nn.pytorch import ModelSpace
from nni.nas.oneshot.pytorch.supermodule.base import BaseSuperNetModule
from pytorch_lightning.utilities.seed import isolate_rng
from torch import nn

__all__ = ['check_top', 'export_networks', 'load_network']

_logger = logging.getLogger(__name__)

WEIGHTS, ARCHITECTURE, ONNX = 'weights.pt', 'architecture.json', 'model.onnx'
SAME = ('run', 'weights', 'calibration_batches', 'places')  # networks with the same of these are the same


def _by_path_network(space: ModelSpace, sample: Sample) -> nn.Module:
    return path_network(make_supernet(space), sample)


# How a network of the right structure is made of a space, the simplest way first.
WAYS: dict[str, Callable[[ModelSpace, Sample], nn.Module]] = {
    'freeze': by_freeze,
    'model_context': by_model_context,
    'path_network': _by_path_network,
}


def load_network(folder: str | Path, space: ModelSpace, *, weights: bool = True) -> nn.Module:
    """A network that was exported, in evaluation mode on the CPU.

    Parameters
    ----------
    folder
        What :meth:`NASLID.export <nni_naslid.strategy.NASLID.export>` has written of one network, such as
        ``'runs/first/export/1'``. No code that it names is imported.
    space
        The model space, made anew with the arguments of the search. It stays as it is.
    weights
        Whether it gets the weights that were exported; else it has initial ones, as the space makes them.

    Raises
    ------
    FileNotFoundError
        If a file is missing.
    TypeError
        If ``space`` is no model space, but a class, say.
    ValueError
        If the space is another one, the network is not one that can be made of a space, or a file is damaged.
    """
    if not isinstance(space, ModelSpace):
        raise TypeError(f'space must be a model space, made with the arguments of the search, but is {brief(space)}.')
    content = _read(Path(folder) / ARCHITECTURE)
    if content['rebuild'] not in WAYS:
        raise ValueError(
            f'{folder} holds a network that cannot be made of its space: {content["rebuild"]!r} is none of '
            f'{", ".join(WAYS)}.'
        )
    sample = _decode(content, space, folder)
    kept = _read_weights(Path(folder) / WEIGHTS) if weights else None
    try:
        return _rebuilt(content['rebuild'], space, sample, kept)
    except RuntimeError as error:
        text = ' '.join(str(error).split())
        raise ValueError(f'{folder} holds weights of another space than {type(space).__name__}: {text:.200}') from error


def _read_weights(path: Path) -> dict[str, Any]:
    try:
        weights = torch.load(path, map_location='cpu', weights_only=True)
    except (EOFError, RuntimeError, UnpicklingError):
        weights = None
    if not isinstance(weights, dict):
        raise ValueError(f'{path} is damaged, or not of an exported network.')
    return weights


def _rebuilt(way: str, space: ModelSpace, sample: Sample, weights: dict[str, Any] | None) -> nn.Module:
    """A network made of a copy of a space, with weights if there are some."""
    network = copy.deepcopy(WAYS[way](copy.deepcopy(space), sample))
    if weights is not None:
        network.load_state_dict(weights, assign=True)  # which keeps their dtype
    return network.eval()


def _decode(content: dict[str, Any], space: ModelSpace, folder: str | Path) -> Sample:
    """The sample in an ``architecture.json``, of choices as the space has them."""
    whole = SubSpace(space.simplify())
    try:
        sample = whole.decode(content['places'])
    except (KeyError, IndexError, TypeError):
        sample = None
    if sample is None or _plain(sample) != content['sample']:
        raise ValueError(
            f'{folder} holds a network of another space than this {type(space).__name__}: it is {content["sample"]}.'
        )
    return sample


def check_top(top: int, found: int) -> int:
    """How many networks are exported.

    Raises
    ------
    ValueError
        If it is not a number from 1 to that of the networks that the search scored.
    """
    top = integer('top', top, 1)
    if top > found:
        raise ValueError(f'top must be at most {found}, as many networks as the search scored, but got {top}.')
    return top


def export_networks(
    scorer: LeafScorer,
    found: Sequence[tuple[Sample, float]],
    folder: Path,
    onnx: bool = False,
    tell: Callable[[str], object] = _logger.info,
) -> list[Path]:
    """Write networks that a search found, each into a folder of its own: ``1``, ``2``, ...

    Parameters
    ----------
    scorer
        What makes networks, with recalibrated batch norms.
    found
        The networks and their scores, the best first.
    folder
        Where those folders are made. Files of the same networks there are replaced.
    onnx
        Whether ``model.onnx`` is written, too.
    tell
        What gets a line for each file of interest.

    Returns
    -------
    The folders.

    Raises
    ------
    ModuleNotFoundError
        If a package for ONNX is missing; before anything is written, as the following ones.
    FileExistsError
        If there is another network in one of the folders, or a file that is not from here.
    OSError
        If a file cannot be written.
    ValueError
        If a network cannot be had as ONNX. All other files are written then.
    """
    if onnx:
        check_onnx()
    whole = SubSpace(scorer.supernet.simplify())
    told = [_identify(scorer, whole, sample) for sample, _ in found]
    folders = [folder / str(rank) for rank in range(1, len(found) + 1)]
    for path, each in zip(folders, told, strict=True):
        _check_free(path, each)
    for path in folders:  # a folder that cannot be written to is told before networks are made
        path.mkdir(parents=True, exist_ok=True)
    fresh, failed = _fresh_space(scorer.supernet), []
    for rank, (path, each, (sample, score)) in enumerate(zip(folders, told, found, strict=True), 1):
        network, inputs = scorer.instance(sample), scorer.example()
        content = {**each, 'rank': rank, 'score': score, **_describe(scorer, sample, network, inputs)}
        content['rebuild'] = _way(fresh, sample, network, inputs)
        with replacing(path / ARCHITECTURE) as unfinished:
            unfinished.write_text(json.dumps(_plain(content), indent=1) + '\n')
        with replacing(path / WEIGHTS) as unfinished:
            torch.save(network.state_dict(), unfinished)
        tell(_line(path, content))
        if onnx:
            try:
                with replacing(path / ONNX) as unfinished:
                    differs, largest = write_onnx(network, inputs, unfinished)
            except ValueError as error:
                failed.append(f'{path / ONNX} ({error})')
            else:
                tell(f'{path / ONNX}: onnxruntime differs by {differs:.2g} at most, where outputs go to {largest:.2g}')
    if failed:
        raise ValueError(f'Not written: {"; ".join(failed)}. The other files are.')
    return folders


def _identify(scorer: LeafScorer, whole: SubSpace, sample: Sample) -> dict[str, Any]:
    """What tells a network, and where its weights are from."""
    return _plain(
        {
            'sample': sample,
            'places': whole.encode(sample),
            'run': scorer.run.id,
            'weights': scorer.leaf_of(sample).weights,
            'calibration_batches': scorer.calibration_batches,
        }
    )


def _describe(scorer: LeafScorer, sample: Sample, network: nn.Module, inputs: Inputs) -> dict[str, Any]:
    """What else there is to say of a network."""
    tensors = tensors_in(inputs)
    return {
        'space': _space_spec(scorer.supernet),
        'leaf': scorer.leaf_of(sample).name,
        'monitor': scorer.run.settings.monitor,
        'mode': scorer.run.settings.mode,
        'metrics': scorer.metrics(sample),
        'costs': _costs(network, inputs),
        'inputs': [{'shape': list(tensor.shape[1:]), 'dtype': str(tensor.dtype)[6:]} for tensor in tensors],
        'versions': {'nni_naslid': nni_naslid.__version__, 'torch': torch.__version__},
    }


def _check_free(path: Path, told: dict[str, Any]) -> None:
    """Raise unless nothing is there, or the same network.

    A link in a work folder may be of somebody who wants files to be written elsewhere.
    """
    for link in (path.parent, path):
        if link.is_symlink():
            raise FileExistsError(f'{link} is a symbolic link, which is not followed. Name another folder.')
    if not any((path / name).exists() for name in (ARCHITECTURE, WEIGHTS, ONNX)):
        return
    try:
        content = _read(path / ARCHITECTURE)
    except (OSError, ValueError):
        content = {}
    if any(content.get(name) != told[name] for name in SAME):
        raise FileExistsError(f'{path} holds another network. Delete that folder, or name another one.')


def _read(path: Path) -> dict[str, Any]:
    """The content of an ``architecture.json``."""
    if not path.is_file():
        raise FileNotFoundError(f'{path} is not there: the folder of an exported network is needed.')
    try:
        content = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f'{path} is damaged ({error}).') from error
    if not isinstance(content, dict) or not {'sample', 'places', 'rebuild'} <= content.keys():
        raise ValueError(f'{path} is not of an exported network.')
    return content


def _plain(content: Any) -> Any:
    """What JSON keeps of it: lists of tuples, texts of what it does not know, null of numbers that are not finite."""
    return json.loads(json.dumps(content, default=str), parse_constant=lambda _: None)


def _fresh_space(supernet: ModelSpace) -> ModelSpace | None:
    """The space made anew; ``None`` where NNI cannot."""
    try:
        with isolate_rng():
            return supernet.trace_copy().get(traceable=False)
    except Exception as error:  # whatever the user's class raises
        _logger.warning('%s cannot be made anew, so it is not known how to load the weights: %s',
                        type(supernet).__name__, error)  # fmt: skip
        return None


def _way(space: ModelSpace | None, sample: Sample, network: nn.Module, inputs: Inputs) -> str | None:
    """The first of :data:`WAYS` that gives the same network; ``None`` if none does."""
    if space is None or any(isinstance(module, BaseSuperNetModule) for module in network.modules()):
        return None
    with torch.no_grad(), isolate_rng():
        expected = call(network, inputs)
        for way in WAYS:
            try:
                if difference(call(_rebuilt(way, space, sample, network.state_dict()), inputs), expected) is None:
                    return way
            except Exception:  # whatever does not fit
                continue
    return None


def _space_spec(supernet: ModelSpace) -> dict[str, Any] | None:
    """The class of a space with its arguments, as in a YAML; ``None`` where JSON does not have them."""
    cls = supernet.trace_symbol
    if supernet.trace_args or '<locals>' in cls.__qualname__:
        return None
    arguments = {
        name: value
        for name, value in supernet.trace_kwargs.items()
        if name in inspect.signature(getattr(cls, '_init_wrapped', cls.__init__)).parameters
    }
    try:
        json.dumps(arguments)
    except (TypeError, ValueError):
        return None
    return {'className': f'{cls.__module__}.{cls.__qualname__}', 'classArgs': arguments}


def _costs(network: nn.Module, inputs: Inputs) -> dict[str, int]:
    """Parameters, and floating-point operations for one sample."""
    with warnings.catch_warnings(), torch.no_grad(), isolate_rng():
        warnings.simplefilter('ignore')  # of TF32 on GPUs that are not there
        with counted() as counter:
            call(network, inputs)
    parameters = sum(parameter.numel() for parameter in network.parameters())
    return {'parameters': parameters, 'flops': round(counter.get_total_flops() / n_samples(inputs))}


def _line(path: Path, content: dict[str, Any]) -> str:
    """What is said of an exported network."""
    costs, monitor = content['costs'], content['monitor']
    loads = f'; made of its space by {content["rebuild"]}' if content['rebuild'] else '; not made of its space by NNI'
    return (
        f'{path}: {monitor} {rounded(content["metrics"][monitor], 4)}, {costs["parameters"]:,} parameters, '
        f'{costs["flops"]:,} FLOPs{loads}'
    )
