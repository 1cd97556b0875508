"""A gate's findings for those who read them: JSON, JUnit XML, annotations of a pull request."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any
from xml.etree import ElementTree

from clipq.errors import one_line
from clipq.evaluate.verdicts.gate import Finding, outcome

# XML 1.0 has no way to write these characters, not even escaped.
_NOT_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def as_json(findings: Sequence[Finding]) -> dict[str, Any]:
    """The outcome and every finding."""
    return {"outcome": outcome(findings), "findings": [asdict(one) for one in findings]}


def as_junit(findings: Sequence[Finding]) -> str:
    """JUnit XML: a suite per engine, a case per finding; fail is a failure, investigate an error.

    Most CI systems know no third state: an undecided rule must not turn green there.
    """
    root = ElementTree.Element("testsuites", _counts(findings), name="clipq gate")
    engines: dict[str, list[Finding]] = {}
    for one in findings:
        engines.setdefault(one.engine, []).append(one)
    for engine, mine in engines.items():
        suite = ElementTree.SubElement(root, "testsuite", _counts(mine), name=_clean(engine or "policy"))
        for one in mine:
            place = f" on {one.view}" if one.view else ""
            group = f" ({one.group})" if one.group else ""
            case = ElementTree.SubElement(
                suite, "testcase", classname=_clean(engine or "policy"), name=_clean(one.rule + place + group), time="0"
            )
            if one.state != "pass":
                tag = "failure" if one.state == "fail" else "error"
                said = ElementTree.SubElement(case, tag, message=_clean(sentence(one)), type=one.state)
                said.text = _clean(sentence(one))
    ElementTree.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(root, encoding="unicode") + "\n"


def as_annotations(findings: Sequence[Finding]) -> list[str]:
    """GitHub workflow commands: an error per failure, a warning per rule to investigate, a notice for the outcome."""
    lines = [
        f"::{'error' if one.state == 'fail' else 'warning'} title={_property(f'clipq gate: {one.engine}')}::"
        f"{_data(sentence(one))}"
        for one in findings
        if one.state != "pass"
    ]
    passed = sum(one.state == "pass" for one in findings)
    return [*lines, f"::notice title=clipq gate::{outcome(findings)}: {passed} of {len(findings)} checks passed"]


def sentence(finding: Finding) -> str:
    """What was asked, what was found, and why that passes or not."""
    where = f" on {finding.view}" if finding.view else ""
    group = f" ({finding.group})" if finding.group else ""
    return f"{finding.rule}{where}{group}: {figures(finding)}{finding.reason}"


def figures(finding: Finding) -> str:
    """The value with its interval and n."""
    if finding.value is None or finding.low is None or finding.high is None:
        return ""
    if finding.low == finding.high:
        return f"{finding.value:.6g}, "
    return f"{finding.value:.4g} [{finding.low:.4g}, {finding.high:.4g}] (n = {finding.n}), "


def _counts(findings: Sequence[Finding]) -> dict[str, str]:
    states = [one.state for one in findings]
    return {
        "tests": str(len(states)),
        "failures": str(states.count("fail")),
        "errors": str(states.count("investigate")),
        "skipped": "0",
        "time": "0",
    }


def _clean(text: str) -> str:
    return _NOT_XML.sub("\ufffd", text)


def _data(text: str) -> str:
    return one_line(text).replace("%", "%25")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")
