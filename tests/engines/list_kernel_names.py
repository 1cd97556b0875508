"""Lists the kernels in a CUDA library, one of each kind: ``python list_kernel_names.py LIBRARY [CAPABILITY] > FILE``.

Needs NVIDIA's ``cuobjdump`` (PyPI ``nvidia-cuda-cuobjdump``) and ``c++filt``. A kind is a name without its numbers; of
each the shortest name is listed, and only names that speak of products, attention or quantization.
"""

from __future__ import annotations

import re
import subprocess
import sys

ABOUT = re.compile(r"gemm|gemv|prop|conv|mma|matmul|mha|flash|attention|fpa_intb|dot_kernel|quant", re.I)


def listed(library: str, capability: str = "sm_90") -> list[str]:
    command = ["cuobjdump", "-symbols", "-arch", capability, library]
    found = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    mangled = sorted({line.split()[-1] for line in found.splitlines() if line.startswith("FUNC") and "$" not in line})
    text = subprocess.run(["c++filt"], input="\n".join(mangled), capture_output=True, text=True, check=True).stdout
    kinds: dict[str, str] = {}
    for name in filter(ABOUT.search, text.splitlines()):
        kind = re.sub(
            r"\d+x\d+(x\d+)?|(?<![a-z0-9_])\d+|_(stage|align|warps|cga|tile|splitk|execute|bias|aux).*|Li\d+E|L[bm]\d+E",
            "",
            name,
        )
        if kind not in kinds or len(name) < len(kinds[kind]):
            kinds[kind] = name
    return sorted(kinds.values())


if __name__ == "__main__":
    print("\n".join(listed(*sys.argv[1:])))
