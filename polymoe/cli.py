"""``polymoe <verb>``: results go to stdout (``--json`` for machines), all else to stderr."""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from difflib import get_close_matches
from inspect import cleandoc
from pathlib import Path
from typing import Any, TypeVar

import tyro
from rich.console import Console
from rich.table import Table

import polymoe
from polymoe.adapters.catalog import LETTERS, catalog
from polymoe.models import load_base
from polymoe.recipe import Recipe
from polymoe.training import TrainingInterrupted, load_run
from polymoe.training.metrics import Evaluation
from polymoe.training.summary import versions

CONFIG = (tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff)
DEMO = Path(__file__).parent / "demo"
T = TypeVar("T")


@dataclass(frozen=True)
class Output:
    """The folder that a run is written to."""

    output: str = "run"
    """Folder for the adapter, checkpoints and metrics."""
    resume: bool = False
    """Go on where the run in this folder stopped."""
    overwrite: bool = False
    """Replace the run in this folder."""
    json: bool = False
    """Print the summary as JSON."""


@dataclass(frozen=True)
class Evaluate:
    """Evaluate a run on the test part of its own data, or of other data."""

    run: tyro.conf.Positional[str]
    """Folder of the run."""
    data: str | None = None
    """Folder or file with tasks; the run's own by default."""
    tasks: tuple[str, ...] | None = None
    """Tasks to evaluate; all by default."""
    split: str = "test"
    """Part of the data: train, valid or test."""
    base: str | None = None
    """Where the base is now, if it has moved."""
    json: bool = False
    """Print the evaluation as JSON."""


@dataclass(frozen=True)
class Predict:
    """Print what a run says of each text, one line each."""

    run: tyro.conf.Positional[str]
    """Folder of the run."""
    task: str
    """Which task the texts belong to."""
    input: tuple[str, ...] = ()
    """The texts; lines of stdin when there are none."""
    candidates: tuple[str, ...] | None = None
    """Outputs to choose from (objective match), in place of the task's own."""
    base: str | None = None
    """Where the base is now, if it has moved."""
    json: bool = False
    """Print a JSON object per line: input, output, score and the scores of all choices."""


@dataclass(frozen=True)
class Info:
    """Say what this installation runs on: versions, instruction set, threads, OpenMP runtime, memory."""

    json: bool = False
    """Print it as JSON."""


@dataclass(frozen=True)
class Methods:
    """List the methods: their parts, what they need, and how much each trains."""

    base: str | None = None
    """Count parameters on this base: a folder, "minilm", or a name on the hub."""
    n_tasks: int = 8
    """Number of tasks T in that count."""
    target_modules: str | tuple[str, ...] = "all-linear"
    """Modules that get an adapter in that count."""
    r: int | None = None
    """Rank; each method's own by default."""
    json: bool = False
    """Print the rows as JSON."""


@dataclass(frozen=True)
class Demo:
    """Train one model on the eight small tasks that come with polymoe, and show what it learnt."""

    output: str = "runs/demo"
    """Folder of the run; replaced if it holds an earlier demo."""
    method: str = "mhr"
    """Any that `polymoe methods` lists."""
    seed: int = 0
    """Of order, noise and initial values."""
    json: bool = False
    """Print the summary as JSON."""


def train(argv: Sequence[str]) -> None:
    """Train one adapter on many tasks.

    Settings come from RECIPE.yaml if one is named, with --resume from the run itself, and from flags,
    which win.

        polymoe train [RECIPE.yaml] [OPTIONS]
    """

    @dataclass(frozen=True)
    class Train:
        recipe: Recipe
        out: Output

    def parse(flags: Sequence[str], recipe: Recipe) -> Train:
        default = Train(recipe, Output())
        return tyro.cli(
            Train,
            args=flags,
            default=default,
            prog="polymoe train",
            description=cleandoc(train.__doc__ or ""),
            config=CONFIG,
        )

    if argv and not argv[0].startswith("-"):
        parsed = parse(argv[1:], Recipe.from_yaml(argv[0]))
    else:
        parsed = parse(argv, Recipe())
        if parsed.out.resume:
            parsed = parse(argv, Recipe.from_yaml(Path(parsed.out.output) / "recipe.yaml"))
    out = parsed.out
    summary = parsed.recipe.trainer(out.output).train(resume=out.resume, overwrite=out.overwrite)
    if out.json:
        print_json(summary)
    else:
        show_summary(summary, out.output)
        say(
            f"\nnext:\n  polymoe evaluate {out.output}\n"
            f"  polymoe predict {out.output} --task NAME --input TEXT"
        )


def demo(argv: Sequence[str]) -> None:
    """Train on the shipped tasks."""
    options = _parse(Demo, argv, "demo")
    recipe = Recipe.from_yaml(DEMO / "recipe.yaml")
    training = replace(recipe.training, seed=options.seed)
    recipe = replace(recipe, data=str(DEMO / "tasks"), method=options.method, training=training)
    earlier = Path(options.output) / "recipe.yaml"
    is_demo = earlier.exists() and Recipe.from_yaml(earlier).data == str(Path(recipe.data or "").resolve())
    summary = recipe.trainer(options.output).train(overwrite=is_demo)
    if options.json:
        print_json(summary)
        return
    show_summary(summary, options.output)
    say(
        "\nnext:\n"
        f'  polymoe predict {options.output} --task intent --input "Wake me at six, please"\n'
        f"  polymoe evaluate {options.output}\n"
        "  polymoe train --data YOUR_FOLDER --output runs/mine"
    )


def evaluate(argv: Sequence[str]) -> None:
    """Evaluate a run."""
    options = _parse(Evaluate, argv, "evaluate")
    evaluation = load_run(options.run, options.base).evaluate(options.data, options.split, options.tasks)
    if options.json:
        print_json(evaluation)
    else:
        show_evaluation(evaluation, None, f"{options.run}: {options.split}")


def predict(argv: Sequence[str]) -> None:
    """Predict outputs of texts."""
    options = _parse(Predict, argv, "predict")
    run = load_run(options.run, options.base)
    run.model.tasks.id(options.task)  # an unknown task is told before stdin is waited for
    texts = list(options.input) or [line.rstrip("\r\n") for line in sys.stdin]
    for text, prediction in zip(texts, run.predict(texts, options.task, options.candidates), strict=True):
        if options.json:
            print_json({"input": text, **asdict(prediction)}, indent=None)
        else:
            print(prediction.output)


def info(argv: Sequence[str]) -> None:
    """Say what this installation runs on."""
    options = _parse(Info, argv, "info")
    facts: dict[str, Any] = {
        **versions(),
        "platform": platform.platform(),
        "isa": polymoe.get_isa(),
        "isas": polymoe.isas(),
        "threads": polymoe.get_num_threads(),
        "openmp": polymoe.openmp(),
        **memory(),
    }
    if options.json:
        print_json(facts)
        return
    if facts["openmp"] == "none":
        facts["openmp"] = "none (built without OpenMP: one thread)"
    for name, value in facts.items():
        if name.endswith("_bytes"):
            name, value = name.removesuffix("_bytes"), f"{value / 2**30:.1f} GiB"
        print(f"{name:18s} {', '.join(value) if isinstance(value, list) else value}")


def methods(argv: Sequence[str]) -> None:
    """List the methods."""
    options = _parse(Methods, argv, "methods")
    overrides = {} if options.r is None else {"r": options.r}
    base = None if options.base is None else load_base(options.base)
    rows = catalog(base, options.n_tasks, target_modules=options.target_modules, **overrides)
    if options.json:
        print_json(rows)
        return
    columns = ("method", "router", "experts", "mixing", "needs", "r", "skills", "trains in a layer")
    table = Table(*columns, *["parameters"] * (base is not None))
    for row in rows:
        keys = ("method", "router", "experts", "mixing", "needs", "r", "n_skills", "formula")
        count = [] if base is None else [f"{row['parameters']:,}"]
        table.add_row(*(str(row[key]) for key in keys), *count)
    Console(width=None if sys.stdout.isatty() else 140).print(table)
    say(LETTERS)


VERBS = {
    "demo": demo,
    "train": train,
    "evaluate": evaluate,
    "predict": predict,
    "methods": methods,
    "info": info,
}


def main(argv: Sequence[str] | None = None) -> None:
    """Run a verb; exits with 0, with 1 and a line on what was wrong, 2 for wrong flags, 130 after Ctrl-C."""
    args = list(sys.argv[1:] if argv is None else argv)
    if args and args[0] == "--version":
        print(f"polymoe {polymoe.__version__}")
        return
    if not args or args[0] in ("-h", "--help"):
        print(USAGE)
        sys.exit(0 if args else 2)
    if args[0] not in VERBS:
        near = get_close_matches(args[0], VERBS, n=1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        print(f"polymoe: expected one of {', '.join(VERBS)}, got {args[0]!r}{hint}", file=sys.stderr)
        sys.exit(2)
    try:
        VERBS[args[0]](args[1:])
        sys.stdout.flush()
    except TrainingInterrupted as stop:
        run = stop.checkpoint.parent.parent
        print(f"polymoe {args[0]}: {stop}\nto go on:  polymoe train --resume --output {run}", file=sys.stderr)
        sys.exit(130)
    except KeyboardInterrupt:
        print(f"polymoe {args[0]}: interrupted", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:  # whoever read our output has gone (`| head`)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except (ArithmeticError, LookupError, OSError, TypeError, ValueError, ImportError, MemoryError) as error:
        text = error.args[0] if isinstance(error, KeyError) and error.args else error
        print(f"polymoe {args[0]}: error: {text}", file=sys.stderr)
        if os.environ.get("POLYMOE_TRACEBACK"):
            raise
        sys.exit(1)


def print_json(value: Any, indent: int | None = 2) -> None:
    """One JSON value on stdout."""
    print(json.dumps(value, indent=indent, ensure_ascii=False))


def say(text: str) -> None:
    """Plain text on stdout, as it is."""
    print(text)


def show_summary(summary: dict[str, Any], output: str) -> None:
    """What a run came to, for people."""
    if summary["evaluation"] is not None:
        title = f"{summary['evaluated_split']}, {summary['objective']}"
        show_evaluation(summary["evaluation"], summary["evaluation_before"], title)
    cut = sum(summary["truncated_texts"].values())
    facts = [
        f"{summary['steps']} steps in {summary['train_seconds']:.1f} s",
        f"{summary['tokens_per_second']:,.0f} tokens/s",
        f"{summary['trainable_parameters']:,} trainable parameters",
        f"peak memory {summary['peak_rss_bytes'] / 2**20:,.0f} MiB",
    ]
    say(", ".join(facts + [f"{cut} texts cut to the length that the base takes"] * bool(cut)))
    say(f"run: {output}")


def show_evaluation(evaluation: Evaluation, before: Evaluation | None, title: str) -> None:
    """A table: a row a task, a column a metric, and the first metric before training where it is known."""
    metrics = list(evaluation["mean"])
    table = Table(title=title, title_justify="left")
    table.add_column("task")
    for name in ([f"{metrics[0]} before"] if before else []) + metrics + ["n"]:
        table.add_column(name.replace("_", " "), justify="right")
    rows = [*evaluation["tasks"].items(), ("mean", evaluation["mean"])]
    for task, values in rows:
        cells = [f"{values[m]:.3f}" if m in values else "" for m in metrics]
        if before:
            old = before["mean"] if task == "mean" else before["tasks"][task]
            cells.insert(0, f"{old[metrics[0]]:.3f}")
        table.add_row(task, *cells, str(values.get("n", "")), end_section=task == rows[-2][0])
    Console(width=None if sys.stdout.isatty() else 100).print(table)


def memory() -> dict[str, int]:
    """Bytes of memory: of the machine, and free for use; what the system does not tell is left out."""
    names = {"memory_bytes": "SC_PHYS_PAGES", "memory_free_bytes": "SC_AVPHYS_PAGES"}
    try:
        return {name: os.sysconf(key) * os.sysconf("SC_PAGE_SIZE") for name, key in names.items()}
    except (AttributeError, ValueError, OSError):
        return {}


def _parse(verb: type[T], argv: Sequence[str], name: str) -> T:
    return tyro.cli(verb, args=argv, prog=f"polymoe {name}", config=CONFIG)


USAGE = """usage: polymoe VERB [OPTIONS]

Fine-tune one frozen model on many tasks at once with mixtures of adapters, on ordinary CPUs.

  demo      train one model on eight small tasks that come with polymoe
  train     train on your tasks
  evaluate  metrics of a run, task by task
  predict   outputs for texts
  methods   what can share what: the methods, their parts, what they need and train
  info      versions, instruction set, threads, memory

polymoe VERB --help says more; --json prints results for machines; POLYMOE_TRACEBACK=1 shows where an error
came from."""

if __name__ == "__main__":
    main()
