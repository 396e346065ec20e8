"""Build, check and measure everything that needs a GPU: one command, a table, a JSON file.

    make gpu-check
    python benchmarks/gpu_check.py --interpret          the checks alone, tiny, without a GPU
    python benchmarks/gpu_check.py --sections linear    some sections

Each kernel is compared with its torch reference on fresh random inputs; then whole models on the GPU with the
CPU; then speeds are held against the GPU's own copy and product. Exit code 1: something differs or broke.

Sections run one after the other in a worker process, and each has its time. The JSON file is written as
results come, so it holds them even if the run is killed; what workers say on standard error lies beside it.
Without a GPU all is skipped, and a line says so.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from pathlib import Path

from _gpu_messages import Begin, Cut, End, Facts, Failed, Figure, Message, Skipped
from _gpu_sections import SECTIONS, TOTAL_SECONDS, Section
from _gpu_watch import Watch
from _report import Report


class Check:
    """One run: takes what workers say, keeps the report.

    Args:
        report: takes the figures.
        path: where it is written.

    Attributes:
        failures: what differs or broke.
        unfinished: sections that began and did not come to their end, and why.
        skipped: what could not be done, and why.
        seconds: that sections took which came to their end.
    """

    def __init__(self, report: Report, path: Path | None) -> None:
        self.report = report
        self.failures: list[str] = []
        self.unfinished: dict[str, str] = {}
        self.skipped: dict[str, str] = {}
        self.seconds: dict[str, float] = {}
        self._path = path
        self._began = 0.0

    def take(self, message: Message) -> None:
        """Record a message and bring the file up to date."""
        match message:
            case Facts(values):
                self.report.machine |= values
            case Begin(section):
                self._began = time.monotonic()
                self.unfinished[section] = "it broke off"
                print(f"gpu-check: {section} …", flush=True)
            case Figure():
                self._add(message)
            case Failed(what):
                self.failures.append(what)
                print(f"gpu-check: FAILED {what}", flush=True)
            case Skipped(what, why):
                self.skipped[what] = why
                print(f"gpu-check: skipped {what}: {why}", flush=True)
            case Cut(section, why):
                self.unfinished[section] = why
                print(f"gpu-check: CUT OFF {section}: {why}", flush=True)
            case End(section):
                del self.unfinished[section]
                self.seconds[section] = round(time.monotonic() - self._began, 1)
        self.report.machine |= {
            "failures": self.failures,
            "unfinished_sections": self.unfinished,
            "skipped_sections": self.skipped,
            "section_seconds": self.seconds,
        }
        self.report.save(self._path)

    def summary(self) -> list[str]:
        """For people, at the end: what came of the sections, a line for each kind."""
        lines = [f"{len(self.seconds)} sections came to their end"]
        lines += [f"unfinished: {section}: {why}" for section, why in self.unfinished.items()]
        lines += [f"skipped: {what}: {why}" for what, why in self.skipped.items()]
        return [*lines, *(f"FAILED: {what}" for what in self.failures)]

    def _add(self, figure: Figure) -> None:
        self.report.row(
            figure.case,
            math.nan if figure.value is None else figure.value,
            figure.unit,
            peer=figure.peer,
            peer_value=figure.peer_value,
            floor=figure.floor,
            higher_is_better=figure.higher_is_better,
        )


def main() -> int:
    """Run; the exit code."""
    options = parse_options()
    started = time.monotonic()
    check = Check(Report("gpu-check", seed=options.seed), options.json)
    sections = chosen(options)
    for section in SECTIONS if options.interpret else ():
        if not section.interpreted:
            check.take(Skipped(section.name, "it needs a GPU"))
    arguments = ["--seed", str(options.seed), *(["--interpret"] if options.interpret else [])]
    left = max(0.0, TOTAL_SECONDS - options.spent)
    for message in Watch(sections, arguments, left, _fresh_log(options.json)).messages():
        check.take(message)
        if isinstance(message, Facts) and "skipped" in message.values:
            print("gpu-check: skipped: torch sees no CUDA GPU here")
            check.report.write(options.json)
            return 0
    check.report.write(options.json)
    for line in check.summary():
        print(f"gpu-check: {line}")
    is_whole = check.seconds.keys() == {section.name for section in sections}
    verdict = "FAILED" if check.failures else "passed" if is_whole else "UNFINISHED"
    print(f"gpu-check: {verdict} in {time.monotonic() - started:.0f} s, seed {options.seed}", flush=True)
    return 0 if verdict == "passed" else 1


def _fresh_log(report: Path | None) -> Path | None:
    """Beside the report, empty."""
    if report is None:
        return None
    log = report.with_suffix(".log")
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_bytes(b"")
    return log


def chosen(options: argparse.Namespace) -> list[Section]:
    """The sections that are wanted and can run."""
    wanted = [name.strip() for name in options.sections.split(",") if name.strip()]
    return [
        section
        for section in SECTIONS
        if (not wanted or section.name in wanted) and (section.interpreted or not options.interpret)
    ]


def parse_options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--interpret", action="store_true", help="check in Triton's interpreter, on the CPU")
    parser.add_argument("--seed", type=int, default=int(time.time()), help="of the inputs; default: the time")
    parser.add_argument("--json", type=Path, default=None, help="where the results go")
    parser.add_argument("--spent", type=float, default=0.0, help="seconds that building took, of the run's")
    parser.add_argument("--sections", default="", help="names, with commas between; default: all")
    options = parser.parse_args()
    names = {section.name for section in SECTIONS}
    for name in filter(None, map(str.strip, options.sections.split(","))):
        if name not in names:
            parser.error(f"--sections: {name!r} is none of {', '.join(sorted(names))}")
    return options


if __name__ == "__main__":
    sys.exit(main())
