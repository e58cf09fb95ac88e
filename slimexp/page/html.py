"""The page as one HTML file that holds its style, script and data, and whose policy forbids the network."""

import base64
import hashlib
import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from string import Template
from typing import Any

_ASSETS = Path(__file__).parent
_SCRIPTS = (  # of one scope, in the order in which they run
    "format.js",
    "pareto.js",
    "chart.js",
    "lines.js",
    "layers.js",
    "state.js",
    "table.js",
    "budget.js",
    "comparison.js",
    "controls.js",
    "environment.js",
    "predicted.js",
    "candidates.js",
    "search.js",
    "view.js",
    "page.js",
)


def render(content: Mapping[str, Any]) -> str:
    """The page of ``content``; only where ``content["live"]`` is true may it talk to its own server."""
    style, scripts = _asset("page.css"), script()
    return Template(_asset("template.html")).substitute(
        policy=_policy(style, scripts, live=content["live"]), style=style, script=scripts, data=embedded(content)
    )


def script() -> str:
    """All of the page's JavaScript, as it runs."""
    return "\n".join(map(_asset, _SCRIPTS))


def embedded(content: Mapping[str, Any]) -> str:
    """Strict JSON without the character ``<``, so that nothing in it ends the element around it."""
    return json.dumps(content, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")


def _policy(style: str, script: str, *, live: bool) -> str:
    """Content security policy: only this style and this script apply, and nothing else is fetched or sent."""
    rules = ["default-src 'none'", f"style-src {_hash(style)}", f"script-src {_hash(script)}", "img-src data:"]
    rules += ["base-uri 'none'", "form-action 'none'", *(["connect-src 'self'"] if live else [])]
    return "; ".join(rules)


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


@cache
def _asset(name: str) -> str:
    return (_ASSETS / name).read_text(encoding="utf-8")
