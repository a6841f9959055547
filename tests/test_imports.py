"""Who imports whom."""

import subprocess
import sys


def imported(module: str) -> set[str]:
    """The modules that importing one in a new process brings."""
    code = f'import sys, {module}; print(*sys.modules)'
    return set(subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout.split())


def test_lid_needs_nothing_of_ours_and_no_nni():
    ours = {name for name in imported('nni_naslid.lid.estimators') if name.split('.')[0] in ('nni', 'nni_naslid')}
    assert {name for name in ours if not name.startswith('nni_naslid.lid')} == {'nni_naslid'}


def test_lid_loads_nothing_before_it_is_used():
    assert 'torch' not in imported('nni_naslid.lid')
