"""What a GPU kernel's name says: whether it multiplies matrices, and in which precision.

A kernel's own name says what it does (``MatMulFloat4BatchedKernel``); template arguments say in which types. Names of
libraries' launchers (``cutlass::Kernel<…>``) say nothing themselves, and their arguments say both. The patterns are
held against the names in ONNX Runtime's, cuBLAS's and cuDNN's libraries by ``tests/engines/test_kernel_names.py``.
"""

from __future__ import annotations

import ctypes
import re
from functools import cache

# Most telling first. Weight-only kernels widen the weights and multiply in floating point, whatever integers their
# names hold; i8i8_i8i32_f32 multiplies int8 though it names float accumulators too.
_PRECISIONS = (
    ("fp4 weights", re.compile(r"e2m1|fp4")),
    ("int2 weights", re.compile(r"int2detailsw|integer_subbyte(<|ili)2|float2b")),
    ("int4 weights", re.compile(r"int4detailsw|integer_subbyte(<|ili)4|u(int)?4b|floatint4|float4b|4_?bit")),
    ("int8 weights", re.compile(r"int8detailsw|dequant_?gemv|dqmma|fpa_?intb|mixedinput|float8b|8_?bit")),
    # Decoders' attention over 8-bit keys and values, in floating point.
    ("int8 cache", re.compile(r"::grp\d+\w*_int8")),
    (
        "int8",
        re.compile(r"i8i8|i8i32|i8816|i16832|i161616|[iu]gmma|imma|igemm|gemm_s8|int8|s8_?s8|_i8_|(?<!un)signed char"),
    ),
    ("fp8", re.compile(r"e4m3|e5m2|fp8|qmma|qgmma|nvjet_(sm\d+_)?q")),
    ("bf16", re.compile(r"bf16|bfloat|nvjet_(sm\d+_)?t")),
    ("tf32", re.compile(r"tf32|s1688gemm(?!_b?f)")),
    ("fp16", re.compile(r"f16|fp16|h884|h1688|h16816|hmma|half|hgemm|nvjet_(sm\d+_)?h")),
    ("fp64", re.compile(r"f64|dgemm|d884|double")),
    ("fp32", re.compile(r"f32|sgemm|ffma|scudnn|simt|fp32|float|nvjet_(sm\d+_)?s")),
)
_PRODUCT = re.compile(
    r"gemm(?!a)|gemv|[fd]prop|dgrad|conv(?!ert)|(?<!ge)mma|matmul|fmha|_mha\b|flash_fwd|attention_kernel|cudnn_|nvjet|myl_fc|_fc"
)
# Named after a product, and something else: what prepares its operands or gathers its parts.
_BESIDE = re.compile(
    r"dequant(?!_gemv)|quantizelinear|convert|pack(?!ed)|transpose|softmax|scales|combine|semaphore|addbias|biasadd"
    r"|attentionbias|splitkreduce|swiglukernel|(?<!no_)reorder|workspace|metadata|valid_masks|reduce_head"
)
_LAUNCHER = re.compile(r"(void )?cutlass\w*::")


def multiplies(kernel: str) -> bool:
    """Whether a kernel is a matrix multiplication, a convolution or attention."""
    unread = kernel.startswith("_Z")
    own = own_name(kernel).lower()
    says = kernel.lower() if unread or _LAUNCHER.match(kernel) else own
    return bool(_PRODUCT.search(says)) and (unread or not _BESIDE.search(own))


def precision(kernel: str) -> str:
    """What a product computes in: ``int8``, ``fp16``, …; ``int4 weights`` (widened first); empty where it is silent."""
    name = kernel.lower()
    return next((kind for kind, pattern in _PRECISIONS if pattern.search(name)), "")


def own_name(kernel: str) -> str:
    """A kernel's qualified name without template arguments, parameters and return type."""
    name, depth = "", 0
    for letter in kernel.replace("(anonymous namespace)::", "").replace("<unnamed>::", ""):
        depth += (letter in "<(") - (letter in ">)")
        if not depth and letter not in ">)":
            name += letter
    return name.strip().removeprefix("void ")


@cache
def demangle(kernel: str) -> str:
    """A kernel's name as it stands in its source; as it is where it is not mangled or nothing here can read it."""
    read = _demangler()
    if read is None or not kernel.startswith("_Z"):
        return kernel
    status = ctypes.c_int()
    found = read(kernel.encode(), None, None, ctypes.byref(status))
    if not found:
        return kernel
    try:
        return ctypes.string_at(found).decode()
    finally:
        ctypes.CDLL(None).free(ctypes.c_void_p(found))


@cache
def _demangler() -> ctypes._NamedFuncPointer | None:
    """The C++ library's own, which every runtime for GPUs on Linux brings along."""
    try:
        function = ctypes.CDLL("libstdc++.so.6").__cxa_demangle
    except (OSError, AttributeError):
        return None
    function.restype = ctypes.c_void_p
    return function
