"""The Chinese README and guide have what the English ones have: sections, code, tables, links."""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from urllib.parse import unquote

import pytest
from markdown_it import MarkdownIt

ROOT = Path(__file__).parents[2]
PAIRS = [
    (name, name.replace(".md", ".zh-CN.md"))
    for name in ("README.md", "PARALLEL_READ_DATA_GUIDE.md")
]
CHINESE = dict(PAIRS)
#: The line under the title.
SWITCH = {english: f"English | [简体中文]({chinese})\n" for english, chinese in PAIRS}
SWITCH |= {chinese: f"[English]({english}) | 简体中文\n" for english, chinese in PAIRS}
PARSER = MarkdownIt("commonmark").enable("table")


@dataclass
class Section:
    """What is between two headings."""

    level: int
    title: str = ""
    blocks: list[str] = field(default_factory=list)
    tables: list[list[set[str]]] = field(default_factory=list)  # code spans of each row
    spans: set[str] = field(default_factory=set)
    links: set[str] = field(default_factory=set)
    text: str = ""


@cache
def sections(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    found = []
    row = None
    for token in PARSER.parse(text.replace(SWITCH.get(page, ""), "", 1)):
        if token.type == "heading_open":
            found.append(section := Section(level=int(token.tag[1:])))
        elif token.type in {"fence", "code_block", "html_block"}:
            section.blocks.append(token.info + token.content)
        elif token.type == "table_open":
            section.tables.append([])
        elif token.type == "tr_open":
            section.tables[-1].append(row := set())
        elif token.type == "tr_close":
            row = None
        elif token.type == "inline":
            spans = {child.content for child in token.children if child.type == "code_inline"}
            section.spans |= spans
            section.links |= {
                child.attrs["href"] for child in token.children if child.type == "link_open"
            }
            section.text += "".join(c.content for c in token.children if c.type == "text") + "\n"
            if not section.title:
                section.title = "".join(child.content for child in token.children)
            if row is not None:
                row |= spans
    return found


def anchors(page):
    """GitHub's: lower case, no punctuation, hyphens for spaces."""
    return [
        re.sub(r"[^\w\- ]", "", section.title.lower()).replace(" ", "-")
        for section in sections(page)
    ]


def resolved(link, page):
    """A link as (file, number of its heading); fails if it leads nowhere."""
    if "://" in link:
        return link, None
    path, _, anchor = unquote(link).partition("#")
    path = path or page
    assert (ROOT / path).exists(), f"{page}: no file {path}"
    if not anchor:
        return path, None
    assert anchors(path).count(anchor) == 1, f"{page}: no heading for {link}"
    return path, anchors(path).index(anchor)


@pytest.fixture(params=PAIRS, ids=lambda pair: pair[0])
def pair(request):
    return request.param


@pytest.fixture
def both(pair):
    """Every section with its translation."""
    english, chinese = map(sections, pair)
    levels = [[section.level for section in page] for page in (english, chinese)]
    assert levels[0] == levels[1], [
        [section.title for section in page] for page in (english, chinese)
    ]
    return list(zip(english, chinese, strict=True))


def test_each_page_leads_to_the_other_under_its_title(pair):
    for page in pair:
        lines = (ROOT / page).read_text(encoding="utf-8").splitlines(keepends=True)
        assert lines[2] == SWITCH[page]


def test_code_blocks_and_comments_are_identical(both):
    for english, chinese in both:
        assert chinese.blocks == english.blocks, chinese.title


def test_tables_have_the_same_rows(both):
    for english, chinese in both:
        assert chinese.tables == english.tables, chinese.title


def test_sections_name_the_same_code(both):
    for english, chinese in both:
        assert chinese.spans == english.spans, chinese.title


def test_links_resolve_and_lead_to_the_same_headings(pair, both):
    for english, chinese in both:
        wanted = {resolved(link, pair[0]) for link in english.links}
        found = {resolved(link, pair[1]) for link in chinese.links}
        assert found == {(CHINESE.get(path, path), number) for path, number in wanted}


def test_no_markup_is_left_in_the_text(both):
    """CommonMark does not close ``**`` between a full-width full stop and a letter."""
    for section in itertools.chain.from_iterable(both):
        assert not re.search(r"\*\*|`|\]\(", section.text), section.title
