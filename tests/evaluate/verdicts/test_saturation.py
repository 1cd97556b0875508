"""What a sentence says of an engine's integers on this CPU and on others."""

from __future__ import annotations

import pytest
from synthetic import predictions, record

from clipq.evaluate.results.record import SaturationRecord
from clipq.evaluate.verdicts.saturation import in_a_clause

SATURATES = "8-bit products saturate on this CPU"
ELSEWHERE = "another engine on a CPU without VNNI (16-bit sums that saturate: image tower 0.02 %)"
EVERYWHERE = "the same integers on every CPU"


@pytest.mark.parametrize(
    ("cpu", "bits", "verdict", "said"),
    [
        ("avx512-vnni", 8, "differs without VNNI", ELSEWHERE),
        ("avx512-vnni", 8, "none saturated", ""),
        ("avx512-vnni", 8, "unknown", ""),
        ("avx512-vnni", 8, None, ""),
        ("avx512-vnni", 7, "exact everywhere", EVERYWHERE),
        ("avx2", 8, "differs without VNNI", SATURATES),
        # Where kernels were looked at, no integer product was among them.
        ("avx2", 8, None, ""),
        ("avx2", 7, "exact everywhere", EVERYWHERE),
        ("avx2", 7, None, ""),
        # Small weights of 8 bits are as good.
        ("avx2", 8, "exact everywhere", EVERYWHERE),
        ("avx2-exact", 8, "differs without VNNI", "8-bit products kept exact on this CPU: the session that ships"),
        ("", 8, None, ""),
    ],
)
def test_what_cpus_make_of_integers(cpu, bits, verdict, said):
    made, *_ = record("int8", {"test": predictions(50)}, cpu=cpu, milliseconds=2.0)
    found = None if verdict is None else SaturationRecord(verdict=verdict, share=0.0002, samples=8)
    scheme = made.bundle.scheme.model_copy(update={"weight_bits": bits})
    made = made.model_copy(
        update={
            "bundle": made.bundle.model_copy(update={"scheme": scheme}),
            "census": tuple(one.model_copy(update={"saturation": found}) for one in made.census),
        }
    )
    clause = in_a_clause(made)
    assert clause.startswith(said) and bool(clause) == bool(said)
    assert in_a_clause(made.model_copy(update={"simulated": True})) == ""
