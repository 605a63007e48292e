"""A hook of mkdocs: links from pages to files of the repository that are no pages are only named.

In the repository ``[results](../benchmarks/results/x.json)`` is a link; the site has no such file.
"""

from __future__ import annotations

import re
from typing import Any

_OUTSIDE = re.compile(r"\[([^\]]*)\]\(\.\./((?!docs/)[^)\s]+)\)")


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Return a page's text with such links replaced; links between pages stay."""
    if "/" in page.file.src_uri:
        return markdown  # from a folder of the docs, ../ is a page's
    return _OUTSIDE.sub(lambda link: f"{link[1]} (`{link[2]}`)", markdown)
