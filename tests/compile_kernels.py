"""Compile every configuration of the Triton kernels for one GPU, without having it; print what the machine code needs.

``python tests/compile_kernels.py 90`` for compute capability 9.0. One line for each: kernel, constants, registers,
bytes of stack, instructions that spill registers, instructions of tensor cores.
"""

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from nni_naslid.lid import kernels

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

TOOLS = Path(triton.__file__).parent / 'backends' / 'nvidia' / 'bin'
TYPES = {
    'x_ptr': '*fp32', 'table_ptr': '*i64', 'chunks_ptr': '*i64', 'partial_ptr': '*fp32',
    'found_ptr': '*fp32', 'index_ptr': '*i64', 'status_ptr': '*i32', 'n_points': 'i32',
    'k': 'i32', 'correction': 'i32',
}  # fmt: skip


def configurations() -> Iterator[tuple[triton.JITFunction, dict]]:
    for precision in kernels.PRECISION.values():
        for aligned in (False, True):
            yield kernels._products_kernel, {'PRECISION': precision, **kernels.products_sizes(aligned)}
    for n_points in (64, 128, 256):
        for lid in (False, True):
            yield kernels._finish_kernel, {'LID': lid, **kernels.finish_sizes(n_points), **kernels.FINISH}


def build(kernel: triton.JITFunction, settings: dict, capability: int) -> dict:
    options = {name: value for name, value in settings.items() if name.startswith('num_')}
    constants = {name: value for name, value in settings.items() if name not in options}
    signature = {name: 'constexpr' if name in constants else TYPES[name] for name in kernel.arg_names}
    pointers = {(i,): [['tt.divisibility', 16]] for i, name in enumerate(kernel.arg_names) if name.endswith('_ptr')}
    source = ASTSource(kernel, signature, constants, pointers)
    compiled = triton.compile(source, target=GPUTarget('cuda', capability, 32), options=options)
    with tempfile.NamedTemporaryFile(suffix='.cubin') as file:
        file.write(compiled.asm['cubin'])
        file.flush()
        usage = subprocess.check_output([TOOLS / 'cuobjdump', '-res-usage', file.name], text=True)
        code = subprocess.check_output([TOOLS / 'nvdisasm', '-c', file.name], text=True, stderr=subprocess.DEVNULL)
    registers, stack = re.search(r'REG:(\d+) STACK:(\d+)', usage).groups()
    return {
        'kernel': kernel.__name__,
        'constants': constants,
        'registers': int(registers),
        'stack': int(stack),
        'shared': compiled.metadata.shared,
        'spills': len(re.findall(r'\b(?:LDL|STL)\b', code)),
        'tensor_core': len(re.findall(r'\b(?:HMMA|HGMMA|UTC\w*MMA)\b', code)),
    }


if __name__ == '__main__':
    for kernel, settings in configurations():
        print(json.dumps(build(kernel, settings, int(sys.argv[1]))), flush=True)
