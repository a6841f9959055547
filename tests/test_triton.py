"""The Triton kernels, also without a GPU: their numbers in the interpreter, their machine code from the compiler.

Both in processes of their own: whether Triton interprets is decided when it is imported.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

from nni_naslid.lid.op import _say

import pytest
import torch

kernels = pytest.importorskip('nni_naslid.lid.kernels', exc_type=ImportError)

HERE = Path(__file__).parent


def run(*command: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, *command], env={**os.environ, **environment}, cwd=HERE.parent, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-5000:]
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize('which', ['not slow', 'slow'])
def test_numbers(which):
    """Every case of kernel_cases.py, which runs by itself where there is a GPU."""
    interpret = '0' if torch.cuda.is_available() else '1'
    out = run(
        '-m', 'pytest', '-n', '0', '-q', '-m', which, '-p', 'no:cacheprovider', str(HERE / 'kernel_cases.py'),
        TRITON_INTERPRET=interpret, OMP_NUM_THREADS='1',
    )  # fmt: skip
    assert ' passed' in out
    print(out)


@pytest.mark.slow
@pytest.mark.parametrize('capability', (80, 86, 89, 90, 100, 120))
def test_machine_code(capability):
    """Every configuration compiles, keeps all but a number or two in registers, and multiplies on tensor cores."""
    built = [json.loads(line) for line in run(str(HERE / 'compile_kernels.py'), str(capability)).splitlines()]
    assert len(built) == 12
    assert max(each['stack'] for each in built) <= 16
    assert max(each['shared'] for each in built) < 99 * 2**10  # what the smallest of them has
    multiplying = [each for each in built if each['kernel'] == '_products_kernel']
    assert len(multiplying) == 6
    assert all(each['tensor_core'] and not each['spills'] for each in multiplying)


def test_why_plain_torch_is_taken():
    assert kernels.unsupported(torch.randn(256, 5)) is None
    assert kernels.unsupported(torch.randn(30, 5).double()) == 'float64 has no kernel'
    assert kernels.unsupported(torch.randn(257, 5)) == '257 points are more than 256'


def test_it_is_said_once(caplog):
    _say('a test')
    _say('a test')
    assert caplog.text.count('searched by plain torch: a test') == 1


@pytest.mark.parametrize('bits, bound', [(11, 1e-3), (8, 5e-3)], ids=['high', 'medium'])
def test_accuracy_of_lower_precision(bits, bound):
    """LID of points that are centred and rounded as the kernels do for TF32 and bfloat16, in exact arithmetic."""
    from nni_naslid.lid.reference import nearest_neighbors_reference

    torch.manual_seed(0)
    x = torch.randn(128, 40) @ torch.randn(40, 4096) / 6 + torch.randn(128, 4096) / 3 + 1
    centred = x - x[:16].mean(0)
    mantissa, exponent = torch.frexp(centred)
    rounded = torch.ldexp((mantissa * 2**bits).round() / 2**bits, exponent)
    lids = [
        1 / (squared[:, -1:] / squared).log().sum(1)
        for squared in (nearest_neighbors_reference(each, 20)[0] for each in (rounded, x))
    ]
    error = ((lids[0] - lids[1]) / lids[1]).abs().max()
    assert 0 < error < bound
