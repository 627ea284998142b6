"""Every method on the same tasks, at one rank and at one number of trained parameters, each at its own rate.

    python -m benchmarks.methods DATA ... --output FOLDER

For each method a small grid of learning rates is tried on one seed (it grows while the best is at its
edge) and the best on validation is taken; then every seed is trained at that rate, and only these runs read
test. Under Adam a step moves a layer's output by rate times scale, so the grid is one of that product:
multiples of the default 5e-4 / scale. Each size has a grid of its own: at four times the rank the product
that was best can be too much.

Runs that are there already are not run again: an interrupted table goes on where it stopped, a new method
or seed is added to it, and several processes can work on one folder (`--jobs`, or this command twice). A
method that fails is told in the table, the others go on, and the exit code is 1. Leaves methods.md,
methods.json and, with matplotlib, methods.svg in FOLDER and prints the first.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import replace

import tyro

from benchmarks.ladder import Ladder, Settings, labelled_tasks
from benchmarks.plan import Options, plan
from benchmarks.report import report

WORKER = "POLYMOE_LADDER_WORKER"


def work(ladder: Ladder, options: Options) -> None:
    """Run whatever is missing, until nothing is."""

    def say(line: str) -> None:
        print(f"{time.strftime('%H:%M:%S')} {line}", file=sys.stderr, flush=True)

    while pending := [job for job in plan(ladder, options) if not ladder.done(job)]:
        if not any(ladder.run(job, say) for job in pending):  # all are in the hands of other processes
            time.sleep(1)


def main(options: Options) -> int:
    """Run, report, and return the exit code."""
    tasks = options.tasks or labelled_tasks(options.data)
    if not options.seeds or not options.grid or len(tasks) < 1:
        raise ValueError("seeds, grid, tasks: expected at least one of each, got none")
    shared = ("data", "base", "train_examples", "valid_examples", "epochs", "batch_size", "max_length")
    settings = Settings(tasks=tasks, **{name: getattr(options, name) for name in shared})
    ladder = Ladder(options.output, settings)
    if options.budget is None:
        options = replace(options, budget=ladder.size("poly", options.rank).parameters)
    if options.retry and WORKER not in os.environ:
        for failure in (ladder.path / "runs").glob("*/failure.json"):
            failure.unlink()
    if WORKER in os.environ or (options.jobs == 1 and not options.report_only):
        work(ladder, options)
    elif not options.report_only:
        environment = {**os.environ, WORKER: "1", "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "benchmarks.methods", *sys.argv[1:]]
        workers = [subprocess.Popen(command, env=environment) for _ in range(options.jobs)]
        codes = [worker.wait() for worker in workers]
        if any(codes):
            raise RuntimeError(f"jobs: expected every process to end with 0, got {codes}")
    return 0 if WORKER in os.environ else report(ladder, options)


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options, config=(tyro.conf.FlagCreatePairsOff,))))
