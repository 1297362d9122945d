"""The report of a benchmark under pytest: what its cases gave, printed after pytest's own summary, and
the result file.

Layout: `TimingReport`, of which a benchmark says title, columns and bars. Cases have `device`, `threads`
and `as_json()`. It is registered as a plugin once there are cases, so that pytest calls its hook.
"""

from __future__ import annotations

import importlib.metadata
import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Generic, TypeVar

import pytest

from bench.metrics import command_line, record, write_json
from bench.rd import Check

_Case = TypeVar("_Case")


class TimingReport(ABC, Generic[_Case]):
    """Gathers the cases of a run; prints them, and writes the result file, when all have run."""

    script: ClassVar[str]
    """Name of the benchmark without `.py`."""
    title: ClassVar[str]
    notes: ClassVar[Sequence[str]] = ()
    """Lines for a person, before the tables."""
    packages: ClassVar[Sequence[str]] = ()
    """Those that decide the figures, besides the ones that every result file names."""

    def __init__(self, config: pytest.Config) -> None:
        self.cases: list[_Case] = []
        self.config = config
        self.quick = bool(config.getoption("--quick"))
        self.load_before = os.getloadavg()[0]

    @abstractmethod
    def bars(self) -> list[Check]:
        """The bars over the cases."""

    @abstractmethod
    def lines(self) -> list[str]:
        """The tables of the cases."""

    def checks(self) -> list[Check]:
        """The bars; none if the shapes were tiny."""
        return [] if self.quick else self.bars()

    def body(self) -> dict[str, Any]:
        """The result file."""
        name = f"{self.script}.py"
        cases: list[Any] = list(self.cases)
        arguments = [str(x) for x in self.config.invocation_params.args if name not in x]
        head = record(self.script, arguments, cases[-1].device)
        del head["machine"]["torch_threads"]  # each case has its own number
        head["command"] = f"pytest bench/{name} {command_line(arguments)}".rstrip()
        for package in self.packages:
            try:
                head["versions"][package] = importlib.metadata.version(package)
            except importlib.metadata.PackageNotFoundError:
                continue
        return {
            **head,
            "quick": self.quick,
            "threads": sorted({case.threads for case in cases}),
            "load_average_before": round(self.load_before, 2),
            "cases": [case.as_json() for case in cases],
            "checks": [{"check": x.name, "value": x.value, "status": x.status} for x in self.checks()],
        }

    @pytest.hookimpl(trylast=True)
    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Hook: the tables and the bars, after pytest's own."""
        body = self.body()
        machine = body["machine"]
        write = terminalreporter.write_line
        terminalreporter.section(self.title)
        write(f"{machine['cpu']}, {machine['device']}; native kernels: {machine['native_kernels']}")
        write(f"load average before: {self.load_before:.2f} on {os.cpu_count()} CPUs")
        for line in self.notes:
            write(line)
        if self.quick:
            write("--quick: tiny shapes, the figures mean nothing")
        for line in ("", *self.lines(), ""):
            write(line)
        for check in self.checks():
            write(f"{check.status:<4}  {check.name}: {check.value}")
        if path := self.config.getoption("--results"):
            write_json(path, body)
