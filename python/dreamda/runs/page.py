"""Self-contained HTML pages, from the Jinja2 templates in pages/.

    page = render("trial", name="photos", ...)         # pages/trial.html; what is shown is escaped
"""
from __future__ import annotations

import base64
import io
from functools import cache
from pathlib import Path
from typing import Any

from ..text import counted
from .checks import duration


@cache
def _environment() -> Any:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(loader=FileSystemLoader(Path(__file__).parent / "pages"),
                              autoescape=True,
                              undefined=StrictUndefined,
                              trim_blocks=True,
                              lstrip_blocks=True)
    environment.filters |= {"embedded": _embedded, "duration": duration, "counted": counted}
    return environment


def render(template: str, **values: Any) -> str:
    """A page from its template; a value that is missing is an error, and text is escaped."""
    return str(_environment().get_template(f"{template}.html").render(values)) + "\n"


def _embedded(image: Any) -> str:
    """A picture as the data URL of an HTML image."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
