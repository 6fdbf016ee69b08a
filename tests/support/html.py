"""What HTML says, taken apart: tags must close in their order, and no attribute may stand there twice."""

from __future__ import annotations

from html.parser import HTMLParser


class Page(HTMLParser):
    """The tags with their attributes, the text of each, and the text outside of tags' names."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.data: list[str] = []
        self.open: list[str] = []
        self.inside: dict[str, list[str]] = {}
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len(dict(attrs)) == len(attrs), f"an attribute twice in {tag}: {attrs}"
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "input", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.handle_endtag(tag)

    def handle_data(self, data: str) -> None:
        self.data.append(data)
        if self.open:
            self.inside.setdefault(self.open[-1], []).append(data)

    def all(self, *keys: str) -> list[str]:
        """The values of some attributes, wherever they stand."""
        return [attrs[key] or "" for _, attrs in self.tags for key in keys if key in attrs]
