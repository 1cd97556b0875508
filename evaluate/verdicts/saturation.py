"""What CPUs without VNNI make of an engine's integer products, in words."""

from __future__ import annotations

from collections.abc import Iterable

from clipq.cpu import MOST_SAFE_BITS, SETTING, is_exact_by_choice, saturates
from clipq.evaluate.results.record import CensusRecord, Record, SaturationRecord
from clipq.hints import Hint


def in_words(found: SaturationRecord) -> str:
    """What was counted in one tower, and what that proves.

    >>> in_words(SaturationRecord(verdict="exact everywhere", share=0.0, samples=32))
    'exact everywhere: no weights that activations could bring out of 16 bits'
    >>> in_words(SaturationRecord(verdict="none saturated", share=0.0, samples=32, view="test"))
    'none saturated: no 16-bit sum of 32 samples of test; on others some could, without VNNI'
    """
    samples = f"{found.samples} samples of {found.view}" if found.view else f"{found.samples} plausible inputs"
    if found.verdict == "exact everywhere":
        said = "no weights that activations could bring out of 16 bits"
    elif found.verdict == "none saturated":
        said = f"no 16-bit sum of {samples}; on others some could, without VNNI"
    elif found.verdict == "differs without VNNI":
        worst = max(found.products, key=lambda one: one.saturated / max(one.sums, 1))
        said = (
            f"{percent(found.share)} of the 16-bit sums of {samples} saturate, most in {worst.name} "
            f"({percent(worst.saturated / max(worst.sums, 1))})"
        )
    else:
        said = found.unknown
    return f"{found.verdict}: {said}"


def in_a_clause(record: Record) -> str:
    """What CPUs make of an engine's integers: this one, else those without VNNI; empty where nobody has looked."""
    if record.simulated or record.bundle.scheme.arithmetic != "integer":
        return ""
    if is_exact_by_choice(record.cpu):
        return f"8-bit products kept exact on this CPU: {SETTING}"
    counted = [one.saturation for one in record.census if one.saturation is not None]
    if counted and all(one.verdict == "exact everywhere" for one in counted):
        return "the same integers on every CPU"
    if saturates_here(record):
        return "8-bit products saturate on this CPU, as they do in a session that nothing was told"
    return _without_vnni(record.census)


def _without_vnni(census: Iterable[CensusRecord]) -> str:
    """An engine's towers in a clause; empty where none was seen to differ."""
    shares = [
        f"{one.tower} tower {percent(one.saturation.share)}"
        for one in census
        if one.saturation is not None and one.saturation.verdict == "differs without VNNI"
    ]
    return f"another engine on a CPU without VNNI (16-bit sums that saturate: {', '.join(shares)})" if shares else ""


def saturates_here(record: Record) -> bool:
    """Whether an engine's products can saturate on the CPU that it ran on: not on one that keeps them exact.

    Nor where its weights are too small: proved where sums were counted, else by their bits.
    """
    if not saturates(record.cpu) or record.simulated or record.bundle.scheme.arithmetic != "integer":
        return False
    if record.census:
        found = [census.saturation for census in record.census]
        return any(one is not None and one.verdict != "exact everywhere" for one in found)
    return record.bundle.scheme.weight_bits > MOST_SAFE_BITS or any(hint.is_counted for hint in record.bundle.hints)


def open_hints(record: Record) -> list[Hint]:
    """A bundle's hints, but those that something better is known of: what saturates was counted, or does here."""
    counted = saturates(record.cpu) or any(census.saturation for census in record.census)
    return [hint for hint in record.bundle.hints if not (counted and hint.is_counted)]


def percent(share: float) -> str:
    """A share that may be very small, in percent.

    >>> percent(0.000265), percent(0.0)
    ('0.026 %', '0 %')
    """
    return f"{100 * share:.2g} %"
