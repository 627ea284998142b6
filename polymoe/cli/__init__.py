"""``polymoe <verb>``: results go to stdout (``--json`` for machines), all else to stderr.

A verb is a function of its arguments and a row of VERBS: runs.py has those that make and use runs, demo.py
the one that does so with tasks of our own, plan.py the one that says what a run will take, generate.py the
one that writes text, few_shot.py the one that teaches a run a further task, inspect.py the one that looks
into an adapter, exchange.py those that take adapters elsewhere, about.py those that need none; flags.py,
folders.py and show.py are what they share.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from functools import partial
from typing import Any

import polymoe
from polymoe.cli.about import info, methods
from polymoe.cli.demo import DEMO, demo
from polymoe.cli.exchange import convert, export, merge
from polymoe.cli.few_shot import adapt
from polymoe.cli.generate import write
from polymoe.cli.inspect import inspect
from polymoe.cli.plan import plan
from polymoe.cli.runs import evaluate, predict, train
from polymoe.training import TrainingInterrupted

__all__ = ["DEMO", "VERBS", "main"]

VERBS: dict[str, tuple[Callable[[Sequence[str]], None], str]] = {
    "demo": (demo, "train one model on small tasks that come with polymoe"),
    "plan": (plan, "what training will take: memory, time, and what to set"),
    "train": (train, "train on your tasks"),
    "adapt": (adapt, "teach a run one more task from a few examples"),
    "evaluate": (evaluate, "metrics of a run, task by task"),
    "predict": (predict, "outputs for texts"),
    "generate": (write, "text, token by token: a run's outputs, or what a base alone writes"),
    "export": (export, "a task of a run as one LoRA: for PEFT, mlx-lm, llama.cpp, or merged into the base"),
    "convert": (convert, "a LoRA in another format"),
    "merge": (merge, "several LoRAs as one"),
    "inspect": (inspect, "what an adapter is made of and what its router learnt"),
    "methods": (methods, "what can share what: the methods, their parts, what they need and train"),
    "info": (info, "versions, instruction set, threads, memory"),
}


def main(argv: Sequence[str] | None = None) -> None:
    """Run a verb; exits with 0, with 1 and a line on what was wrong, 2 for wrong flags, 130 after Ctrl-C."""
    args = list(sys.argv[1:] if argv is None else argv)
    if args and args[0] == "--version":
        print(f"polymoe {polymoe.__version__}")
        return
    if not args or args[0] in ("-h", "--help"):
        print(usage())
        sys.exit(0 if args else 2)
    if args[0] not in VERBS:
        near = get_close_matches(args[0], VERBS, n=1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        print(f"polymoe: expected one of {', '.join(VERBS)}, got {args[0]!r}{hint}", file=sys.stderr)
        sys.exit(2)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = partial(_warn, args[0])
            VERBS[args[0]][0](args[1:])
        sys.stdout.flush()
    except TrainingInterrupted as stop:
        verb = "adapt" if args[0] == "adapt" else "train"
        go_on = f"to go on:  polymoe {verb} --resume --output {stop.run}"
        print(f"polymoe {args[0]}: {stop}\n{go_on}", file=sys.stderr)
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


def _warn(verb: str, message: Warning | str, *where: Any) -> None:
    """A warning as a line; the place in our code that it came from helps nobody here."""
    print(f"polymoe {verb}: warning: {message}", file=sys.stderr)


def usage() -> str:
    """What ``polymoe --help`` prints."""
    verbs = "\n".join(f"  {name:9s} {line}" for name, (_, line) in VERBS.items())
    return f"""usage: polymoe VERB [OPTIONS]

Fine-tune one frozen model on many tasks at once with mixtures of adapters, on ordinary CPUs.

{verbs}

polymoe VERB --help says more; --json prints results for machines; POLYMOE_TRACEBACK=1 shows where an error
came from."""
