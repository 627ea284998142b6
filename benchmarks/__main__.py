"""Time polymoe against the limits of this machine and against what else does the same, in one run.

    python -m benchmarks                               everything: about half an hour, more on a busy machine
    python -m benchmarks --quick                       small sizes, under a minute
    python -m benchmarks --only products layers        some groups
    python -m benchmarks --output run.json --markdown tables.md --plot roofline.png
    python -m benchmarks --against run.json            what has changed since, beyond noise
    python -m benchmarks --read run.json --markdown -  from a file: nothing is timed
    python -m benchmarks --gate                        the regression gate: 1 when something became slow

On one thread a candidate is given its processor time, else the time on the wall. NumPy and torch get as many
threads. torch, transformers and PEFT take part where they are installed (extra `parity`).
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from pathlib import Path

from rich.console import Console

from benchmarks import gate, machine, rivals, table
from benchmarks.options import Options
from benchmarks.results import Run, comparison, options_of, read, together, write
from benchmarks.targets import Results
from benchmarks.timing import race
from polymoe import _core

GROUPS = ("products", "operations", "layers", "alone", "experts", "steps", "generation", "growth")
CALM = 0.5  # load average before the start


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Of the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="small sizes, few turns")
    parser.add_argument(
        "--only", nargs="+", choices=GROUPS, default=GROUPS, metavar="GROUP", help=", ".join(GROUPS)
    )
    parser.add_argument("--threads", type=int, default=0, help="0: as many as polymoe takes by itself")
    parser.add_argument("--isa", choices=_core.isas(), help="this instruction set alone")
    parser.add_argument("--rounds", type=int, help="counted turns of every candidate: 9, with --quick 3")
    parser.add_argument("--no-torch", action="store_true", help="compare with NumPy alone")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the run as JSON")
    parser.add_argument(
        "--read",
        type=Path,
        nargs="+",
        metavar="FILE",
        help="take a run, or its groups, from files",
    )
    parser.add_argument("--against", type=Path, metavar="FILE", help="an earlier run to compare with")
    parser.add_argument("--markdown", metavar="FILE", help="write the tables; - is standard output")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the roofline and the growth")
    parser.add_argument("--gate", action="store_true", help="the regression gate alone")
    return parser.parse_args(argv)


def measure(args: argparse.Namespace, console: Console) -> Run:
    """Time everything that was asked for."""
    load = os.getloadavg()[0]
    if load > CALM:
        console.print(f"[bold]the load average is {load:.2f}: others are busy here, see the marks[/bold]")
    torch = None if args.no_torch else rivals.torch()
    with machine.threads(args.threads) as threads:
        if torch is not None:
            torch.set_num_threads(threads)
        isas = (args.isa,) if args.isa else tuple(_core.isas())
        rounds = args.rounds or (3 if args.quick else 9)
        options = Options(threads, isas, rounds, args.quick, torch is not None)
        roofs, rows, resident = machine.Roofs(machine.clock(threads)), [], []
        for group in args.only:
            module = importlib.import_module(f"benchmarks.{group}")
            for contest in module.contests(options):
                console.print(f"{group}: {contest.what}", style="dim", highlight=False, markup=False)
                rows += race(contest, options.rounds, roofs, isas[0])
            if group == "steps" and not options.quick:
                resident = module.resident(options)
            summary, found = roofs.summary(isas[0]), machine.describe()
            run = Run(found, options_of(options), load, summary, Results(rows, resident))
            if args.output:  # what is done is kept, whatever comes
                write(args.output, run)
    return run


def main(argv: list[str] | None = None) -> int:
    """Returns the exit status."""
    args, console = arguments(argv), Console(stderr=False)
    if args.gate:
        return gate.main()
    run = together([read(path) for path in args.read]) if args.read else measure(args, console)
    heading = table.heading(run.machine, run.options, run.load)
    tables = list(table.tables(run.results))
    if args.against:
        tables.append(comparison(read(args.against), run))
    if args.markdown:
        page = "\n".join(
            [*(f"- {line}" for line in heading), "", table.LEGEND, "", *(t.markdown() for t in tables)]
        )
        sys.stdout.write(page) if args.markdown == "-" else Path(args.markdown).write_text(
            page, encoding="utf-8"
        )
    if args.markdown != "-":
        for line in heading:
            console.print(line, highlight=False)
        for each in tables:
            each.print(console)
        console.print(table.LEGEND, style="dim")
    if args.plot:
        from benchmarks.roofline import plot

        plot(args.plot, run)
    return 0


if __name__ == "__main__":
    if any(
        name in os.environ for name in machine.MISLEADING
    ):  # read when NumPy is loaded: start again without
        clean = {k: v for k, v in os.environ.items() if k not in machine.MISLEADING}
        os.execve(sys.executable, [sys.executable, "-m", "benchmarks", *sys.argv[1:]], clean)
    sys.exit(main())
