"""The faults of NNI that compat.py mends."""

import subprocess
import sys

from nni_naslid import SubSpace
from nni_naslid.sampling import set_path

import numpy as np
import pytest
import torch
from nni.nas.strategy import RandomOneShot


@pytest.mark.parametrize('first', ['import nni_naslid', 'from nni.nas.hub.pytorch import NasBench201'])
def test_imports_in_any_order_and_without_warnings_when_first(first):
    code = f'{first}; import nni_naslid; print(hasattr(nni_naslid.NASLID, "mutate_model"))'
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == 'True'
    assert ('is found to be not' in done.stderr) == ('NasBench201' in first)


def test_a_space_with_operations_without_bias_freezes_with_its_weights(proxyless):
    """NNI alone: Unexpected key(s) in state_dict: "bias"."""
    supernet = RandomOneShot().mutate_model(proxyless()).eval()
    sample = SubSpace.of(supernet).sample(np.random.RandomState(0))
    set_path(supernet, sample)
    x = torch.randn(4, 3, 32, 32)
    torch.testing.assert_close(supernet.freeze(sample).eval()(x), supernet(x))
