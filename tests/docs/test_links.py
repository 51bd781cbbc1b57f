"""Every link between our pages leads somewhere: to a file, and to a heading of it."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    path.relative_to(ROOT)
    for path in (*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"))
    if not path.name.endswith(".in.md")  # what is made of them is looked at
)
_FENCE = re.compile(r"^(`{3,}).*?^\1", re.MULTILINE | re.DOTALL)
_CODE = re.compile(r"`[^`\n]*`")
_LINK = re.compile(r"\]\(([^)\s]*)\)")


def prose(page: Path) -> str:
    return _FENCE.sub("", (ROOT / page).read_text())


def anchors(page: Path) -> list[str]:
    """Of its headings, as they are made of them wherever Markdown is shown."""
    headings = re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE)
    plain = [re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", h).replace("`", "") for h in headings]
    return [re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in plain]


def links(page: Path) -> list[str]:
    return _LINK.findall(_CODE.sub("", prose(page)))


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_links_lead_somewhere(page: Path) -> None:
    broken = []
    for link in links(page):
        if link.startswith(("https://", "http://")):
            continue
        target, _, anchor = link.partition("#")
        path = (ROOT / page.parent / target).resolve() if target else ROOT / page
        if not path.exists() or (anchor and anchor not in anchors(path.relative_to(ROOT))):
            broken.append(link)
    assert broken == []


@pytest.mark.parametrize("page", [page for page in PAGES if page.parts[0] == "docs"], ids=str)
def test_no_two_headings_have_one_anchor(page: Path) -> None:
    found = anchors(page)
    assert sorted(set(found)) == sorted(found)


def test_the_test_finds_what_it_is_for(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# A `b` [c](x.md)\n\n`[no](y)`\n\n```text\n# none [n](z)\n```\n[d](#e)\n")
    assert anchors(page) == ["a-b-c"]
    assert links(page) == ["x.md", "#e"]


def test_each_page_is_on_the_map() -> None:
    """Where somebody who looks for it would look: docs/index.md, or the list of decisions."""
    told = {
        (Path("docs") / folder / link.partition("#")[0]).as_posix()
        for folder, page in (("", "docs/index.md"), ("decisions", "docs/decisions/README.md"))
        for link in links(Path(page))
    }
    pages = {page.as_posix() for page in PAGES if page.parts[0] == "docs"}
    assert pages - told == {"docs/index.md"}
