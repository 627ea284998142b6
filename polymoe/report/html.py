"""The report as a page: one file of HTML that asks for nothing else, and its short form for notebooks.

inspection = polymoe.report.inspect(run)
polymoe.report.write_page("report.html", [inspection])
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path

import polymoe
from polymoe.files import PathLike, write_bytes
from polymoe.report import router_section, sections, task_section, token_section
from polymoe.report.inspection import Inspection
from polymoe.report.markup import describe_list, two
from polymoe.report.routing import RoutingStatistics

MARK = '<meta name="generator" content="polymoe inspect">'
"""What tells a page of ours."""
POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"
"""What a browser may load for it: nothing."""

SECTIONS: tuple[tuple[str, str, Callable[[Inspection, str], str]], ...] = (
    ("adapter", "Adapter", sections.facts),
    ("faults", "Is anything wrong?", sections.complaints),
    ("skills", "Which task uses which skill", router_section.weights),
    ("tasks", "Which tasks are alike", task_section.tasks),
    ("routers", "Router by router", router_section.routers),
    ("text", "One text", token_section.text),
    ("gradients", "Do the tasks pull the same way", task_section.gradients),
)


def page(inspections: Sequence[Inspection]) -> str:
    """The page of one adapter, or of two side by side, as a text of HTML. Names and texts are escaped."""
    if not 1 <= len(inspections) <= 2:
        raise ValueError(f"inspections: expected one or two, got {len(inspections)}")
    parts = []
    for anchor, title, draw in SECTIONS:
        columns = [draw(inspection, f"{anchor}{i}") for i, inspection in enumerate(inspections)]
        if any(columns):
            parts.append((anchor, title, _beside(inspections, columns)))
    if curves := sections.curves(inspections):
        parts.append(("training", "Training", curves))
    title = "polymoe: " + " and ".join(inspection.name for inspection in inspections)
    links = "".join(f'<li><a href="#{anchor}">{escape(name)}</a>' for anchor, name, _ in parts)
    body = "".join(
        f'<section id="{a}"><h2>{escape(name)}</h2>{content}</section>' for a, name, content in parts
    )
    names = " <small>and</small> ".join(escape(inspection.name) for inspection in inspections)
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">{MARK}'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        f'<meta name="color-scheme" content="light dark"><link rel="icon" href="data:,">'
        f"<title>{escape(title)}</title>\n<style>{_asset('page.css')}</style></head>\n"
        f'<body class="polymoe page"><a class="skip" href="#adapter">To the content</a>'
        f'<header><h1>{names}</h1><nav aria-label="Sections"><ul>{links}</ul></nav></header>\n'
        f"<main>{body}</main>\n<footer><p>Written by polymoe {escape(polymoe.__version__)}. "
        f"This file needs no network.</footer>\n<script>{_asset('page.js')}</script></body></html>\n"
    )


def fragment(inspection: Inspection, faults: bool = True) -> str:
    """A short form for notebooks: facts, ``faults``, the mean heatmap, nearest tasks. It brings its own
    style."""
    parts = [f"<h3>{escape(inspection.name)}</h3>", sections.facts(inspection, "")]
    if faults:
        parts.append(sections.complaints(inspection, ""))
    if inspection.routes and inspection.statistics is not None:
        parts += [
            router_section.mean_weights(inspection.statistics),
            task_section.nearest(inspection.statistics),
        ]
    return styled("".join(parts))


def statistics_fragment(statistics: RoutingStatistics) -> str:
    """The same of statistics alone: means of the measures, the mean heatmap, nearest tasks."""
    means = {name.replace("_", " "): two(value) for name, value in statistics.summary().items()}
    heading = f"<h3>{escape(statistics.method)}, router {escape(statistics.router)}</h3>"
    tables = router_section.mean_weights(statistics) + task_section.nearest(statistics)
    return styled(heading + describe_list(means) + tables)


def write_page(path: PathLike, inspections: Sequence[Inspection], *, overwrite: bool = False) -> Path:
    """Write the :func:`page`, atomically; its path. An earlier page is replaced; anything else only with
    ``overwrite``: else FileExistsError. FileNotFoundError without the folder."""
    target = Path(path)
    check_target(target, overwrite)
    write_bytes(target, page(inspections).encode())
    return target


def check_target(path: Path, overwrite: bool = False) -> None:
    """Make sure that a page may be written there; nothing changes."""
    if path.is_dir():
        raise IsADirectoryError(f"html: expected a file to write, got the folder {path}")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"html: expected a file in a folder that is there, got {path}")
    if path.exists() and not overwrite:
        with path.open("rb") as file:
            if MARK.encode() not in file.read(1024):
                raise FileExistsError(
                    f"html: expected a new file or an earlier page, got {path}, which is another file "
                    "(overwrite)"
                )


def styled(content: str) -> str:
    """A piece of HTML with the style of the page."""
    return f'<style>{_asset("page.css")}</style><div class="polymoe">{content}</div>'


def _asset(name: str) -> str:
    return files("polymoe.report").joinpath(name).read_text(encoding="utf-8")


def _beside(inspections: Sequence[Inspection], columns: Sequence[str]) -> str:
    """A section of each, side by side where there are two."""
    if len(columns) == 1:
        return columns[0]
    found = (
        f'<div><h3 class="of">{escape(inspection.name)}</h3>{content or "<p>Nothing to show.</p>"}</div>'
        for inspection, content in zip(inspections, columns, strict=True)
    )
    return f'<div class="two">{"".join(found)}</div>'
