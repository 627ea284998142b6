"""The section of a page that shows how one text is routed, token by token where the router reads tokens."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import numpy as np

from polymoe.report.inspection import Inspection
from polymoe.report.markup import fold, heat, json_block, scroll, thousandths, title
from polymoe.report.texts import RouterText, TextRouting

CELLS = 12_000
"""Cells of the overview of a text."""


def text(inspection: Inspection, anchor: str) -> str:
    """How the given text is routed."""
    found = inspection.text
    if found is None:
        return ""
    task = "" if found.task is None else f" <small>as {escape(found.task)}</small>"
    content = f"<blockquote>{escape(found.text)}{task}</blockquote>"
    by_token = [router for router in found.routers if router.axis == "token"]
    if by_token:
        content += _tokens(found, by_token, anchor)
    rest = [router for router in found.routers if router.axis != "token" and router.weights.shape[-1] > 1]
    for size in dict.fromkeys(router.weights.shape[-1] for router in rest):
        rows = [router for router in rest if router.weights.shape[-1] == size]
        values = np.array([router.weights[0].mean(axis=0) for router in rows])
        skills = [str(s) for s in range(size)]
        content += heat("Weights of each router", "router", [r.name for r in rows], skills, values)
    return content


def _tokens(found: TextRouting, routers: Sequence[RouterText], anchor: str) -> str:
    """The tokens, to be coloured by the router that is picked, and the leading skills of all routers."""
    n = len(found.tokens)
    kept = routers if len(routers) * n <= CELLS else routers[:: -(-len(routers) * n // CELLS)]
    views = [
        {"name": r.name, "skills": r.weights.shape[-1], "w": thousandths(r.weights.mean(axis=1))}
        for r in kept
    ]
    options = "".join(f"<option value={i}>{escape(view['name'])}" for i, view in enumerate(views))
    first = kept[0]
    chips = "".join(
        f'<li><button type="button" class="k{k % 8}" tabindex="{-1 if i else 0}">{escape(token)}'
        f"<sub>{k}</sub></button>"
        for i, (token, k) in enumerate(zip(found.tokens, first.ids[:, 0], strict=True))
    )
    head = "".join(f'<th scope="col">{escape(token)}' for token in found.tokens)
    rows = "".join(
        f'<tr><th scope="row">{title(r.name)}' + "".join(f'<td class="k{k % 8}">{k}' for k in r.ids[:, 0])
        for r in kept
    )
    caption = "The leading skill of each token, by router"
    overview = scroll(
        caption,
        f'<table class="leads"><caption>{caption}</caption><thead><tr><th scope="col">router{head}</thead>'
        f"<tbody>{rows}</tbody></table>",
    )
    mean = first.weights.mean(axis=1)
    tokens = [f"{i} {token}" for i, token in enumerate(found.tokens)]
    weights = heat("Weights of each token", "token", tokens, [str(s) for s in range(mean.shape[1])], mean)
    note = "" if len(kept) == len(routers) else f"<p>{len(kept)} of {len(routers)} routers are shown.</p>"
    return (
        f'<div class="tokens" id="{anchor}-tokens"><form class="picks" hidden>'
        f"<label>Router <select name=view>{options}</select></label></form>"
        f'<p>Each token with the skill that leads it<span class="router"> in {escape(first.name)}</span>. '
        f"Point at one, or move with the arrow keys, for all its weights.</p>"
        f'<ul class="chips">{chips}</ul><p class="said" aria-live="polite">&nbsp;</p>'
        f'<details><summary>All weights as a table</summary><div class="shown">{weights}</div></details>'
        f"{json_block({'tasks': tokens, 'views': views})}</div>{fold(caption, overview)}{note}"
    )
