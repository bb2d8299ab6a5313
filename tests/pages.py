"""What a browser would make of a page: its text, its tags, and whether it loads anything."""

import re
from html.parser import HTMLParser
from pathlib import Path

LOADS = {"script", "link", "img", "iframe", "object", "embed", "video", "audio", "source", "base", "form"}


class Page(HTMLParser):
    """A page, parsed; `tables` have rows of cells, the heading's first."""

    def __init__(self, path: Path) -> None:
        super().__init__(convert_charrefs=True)
        self.source = path.read_text()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.tables: list[list[list[str]]] = []
        self._cell = False
        self.feed(self.source)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
            self._cell = True

    def handle_endtag(self, tag: str) -> None:
        self._cell = self._cell and tag not in ("td", "th")

    def handle_data(self, data: str) -> None:
        self.text += data
        if self._cell:
            self.tables[-1][-1][-1] += data

    def check(self) -> None:
        """Asserts that it loads nothing, that its links are relative, and that no two elements share an id."""
        assert {tag for tag, _ in self.tags}.isdisjoint(LOADS)
        for tag, attributes in self.tags:
            assert not any(name.startswith("on") or name in ("src", "srcset", "action") for name in attributes)
            address = attributes.get("href") or ""
            assert ":" not in address or address.startswith("data:image/png"), (tag, address)
        assert "@import" not in self.source
        assert set(re.findall(r"url\((.)", self.source)) <= {"#"}
        ids = [attributes["id"] for _, attributes in self.tags if "id" in attributes]
        assert len(ids) == len(set(ids))
        known = set(ids)
        assert {name for name in re.findall(r"url\(#([^)]*)\)", self.source)} <= known
