"""Hooks of the documentation's build."""

from __future__ import annotations

import re
from typing import Any

_CODE = re.compile(r"<code.*?</code>", re.DOTALL)
_FLAG = re.compile(r"(?<![\w-])--?[A-Za-z][\w-]*")


def on_page_content(html: str, **_page: Any) -> str:  # Any: MkDocs passes the page, its files and the configuration
    """Keep options of commands in one piece: Chromium breaks ``--store`` after its first hyphen."""
    return _CODE.sub(lambda code: _FLAG.sub(r'<span class="flag">\g<0></span>', code[0]), html)
