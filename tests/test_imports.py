"""Who imports whom."""

import re
import subprocess
import sys
from pathlib import Path

import nni_naslid

PACKAGE = Path(nni_naslid.__file__).parent


def imported(module: str) -> set[str]:
    """The modules that importing one in a new process brings."""
    code = f'import sys, {module}; print(*sys.modules)'
    return set(subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout.split())


def test_lid_needs_nothing_of_ours_and_no_nni():
    ours = {name for name in imported('nni_naslid.lid.estimators') if name.split('.')[0] in ('nni', 'nni_naslid')}
    assert {name for name in ours if not name.startswith('nni_naslid.lid')} == {'nni_naslid'}


def test_lid_loads_nothing_before_it_is_used():
    assert 'torch' not in imported('nni_naslid.lid')


def modules_of(*rooms: str) -> list[str]:
    return [f'nni_naslid.{room}.{path.stem}' for room in rooms for path in (PACKAGE / room).glob('[!_]*.py')]


def imports_of(room: str) -> set[str]:
    """The rooms of ours that the files of one of them import from, wherever they do."""
    texts = [path.read_text() for path in PACKAGE.glob(f'{room}/*.py' if room else '*.py')]
    return {found for text in texts for found in re.findall(r'from nni_naslid\.(\w+)[\w.]* import', text)} - {room}


def test_space_run_and_the_settings_of_criteria_need_no_torch():
    loaded = imported(', '.join([*modules_of('space', 'run'), 'nni_naslid.criteria.named']))
    assert not {name for name in loaded if re.match(r'torch$|pytorch_lightning$|lightning|nni\.nas', name)}


def test_the_rooms_know_each_other_in_one_direction():
    assert imports_of('lid') == set()
    assert imports_of('space') == set()
    assert imports_of('run') <= {'space'}
    assert imports_of('train') <= {'space', 'run'}
    assert imports_of('traits') <= {'lid', 'space', 'run', 'train'}
    assert imports_of('criteria') <= {'lid', 'space', 'run', 'train', 'traits'}
    assert imports_of('search') <= {'space', 'run', 'train', 'traits'}
    assert imports_of('analysis') <= {'space', 'run'}


def test_what_a_room_holds_is_loaded_when_it_is_used():
    """Their ``__init__`` is empty, but for that of ``lid``, which is tested above."""
    for path in PACKAGE.glob('*/__init__.py'):
        assert path.parent.name == 'lid' or not path.read_text().strip()
