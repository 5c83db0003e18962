"""A hook of mkdocs: what a page links to outside of docs/ is named on the site, where it has no page."""

import re
from posixpath import join, normpath
from typing import Any


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Links that leave the folder become their text, with the file's path in the repository."""
    folder = join("docs", page.file.src_uri.rpartition("/")[0])

    def named(link: re.Match[str]) -> str:
        text, path = link[1], normpath(join(folder, link[2]))
        if path.startswith("docs/"):
            return link[0]
        return f"`{path}`" if path.endswith(text.strip("`")) else f"{text} (`{path}`)"

    return re.sub(r"(?<!!)\[([^\]]+)\]\(((?:\.\./)+[^)#\s]+)\)", named, markdown)
