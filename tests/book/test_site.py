"""The book as its readers meet it: every page in a browser, at two widths, and what links them.

Each check is a function that returns what it finds wrong, so that a page made badly by hand can
show that it would find it.
"""

import re
import subprocess
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import jupytext
import pytest
import yaml
from axe_playwright_python.sync_playwright import Axe
from browser import HTML, SIZES, built
from spellchecker import SpellChecker

ROOT = Path(__file__).parents[2]
# What axe finds in the theme and CSS cannot mend: {(rule, part of the element's selector): why}.
EXCUSED = {}
# pyspellchecker's English is American: a word is right if it is right with these put in.
BRITISH = {
    r"our": "or",
    r"is(e|ed|es|er|ing|ation)$": r"iz\1",
    r"ys(e|ed|es|ing)$": r"yz\1",
    r"tre(s?)$": r"ter\1",
    r"ae": "e",
    r"oe": "e",
    r"ll(ed|ing)$": r"l\1",
    r"ence$": "ense",
    r"grey": "gray",
}
AMERICAN = set((ROOT / "tests/american.txt").read_text().split())
LOOK = """async () => {
  const images = [...document.images], problems = [];
  await Promise.allSettled(images.map(image => image.decode()));
  if (document.documentElement.scrollWidth > innerWidth)
    problems.push(`${document.documentElement.scrollWidth} px wide in a window of ${innerWidth}`);
  for (const image of images) {
    if (!image.naturalWidth) problems.push(`broken image ${image.src}`);
    if (!image.alt.trim()) problems.push(`no alternative text: ${image.src}`);
  }
  return problems;
}"""


def pages(entries=None) -> list[str]:
    """The table of contents in the order in which it is read."""
    if entries is None:
        toc = yaml.safe_load((ROOT / "book/_toc.yml").read_text())
        return [toc["root"], *(page for part in toc["parts"] for page in pages(part["chapters"]))]
    return [page for e in entries for page in (e["file"], *pages(e.get("sections", ())))]


PAGES = pages()
REFERENCE = {"api/data", "api/training", "api/evaluation"}
MADE = ["search", "genindex", "_modules/seal_lite/model/losses"]  # by Sphinx


def seen(tab, path: Path) -> list[str]:
    """What goes wrong while a page loads, and what is wrong with how it is laid out."""
    problems = []
    listeners = {
        "console": lambda m: problems.append(f"console: {m.text}") if m.type == "error" else None,
        "pageerror": lambda error: problems.append(f"script: {error}"),
        "requestfailed": lambda request: problems.append(f"not loaded: {request.url}"),
        "request": lambda request: problems.extend(
            [f"asks another host: {request.url}"] * bool(urlsplit(request.url).netloc)
        ),
    }
    for event, listener in listeners.items():
        tab.on(event, listener)
    tab.goto(path.as_uri())
    problems += tab.evaluate(LOOK)
    for event, listener in listeners.items():
        tab.remove_listener(event, listener)
    return problems


def inaccessible(tab, *, colours=True) -> list[str]:
    """Serious and critical violations that axe-core finds on the page that is open.

    Without `colours` contrast is left out, which takes longer than all the rest.
    """
    options = {"resultTypes": ["violations"], "preload": False}
    options["rules"] = {"color-contrast": {"enabled": colours}}
    return [
        f"axe, {rule['id']}: {' '.join(map(str, node['target']))}: {node['failureSummary']}"
        for rule in Axe().run(tab, options=options).response["violations"]
        if rule["impact"] in ("serious", "critical")
        for node in rule["nodes"]
        if not any(rule["id"] == r and part in str(node["target"]) for r, part in EXCUSED)
    ]


class Tags(HTMLParser):
    """A page's tags with their attributes, in order."""

    def __init__(self, path: Path):
        super().__init__()
        self.tags = []
        self.feed(path.read_text())
        self.ids = {attributes.get(key) for _, attributes in self.tags for key in ("id", "name")}

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))


tags = cache(Tags)


def broken_links(path: Path) -> list[str]:
    """Local addresses on a page that lead nowhere: no such file, or no such place in it."""
    problems = []
    for tag, attributes in tags(path).tags:
        address = attributes.get("href") or attributes.get("src") or ""
        url = urlsplit(address)
        if url.scheme or url.netloc:
            continue
        target = (path.parent / unquote(url.path)).resolve() if url.path else path
        anchor = unquote(url.fragment)
        if not target.exists():
            problems.append(f"<{tag}> leads to {address}: no such file")
        elif target.suffix != ".html" or not anchor or "=" in anchor:  # =: the explorer's
            continue
        elif anchor not in tags(target).ids:
            problems.append(f"<{tag}> leads to {address}: no such place")
    return problems


def edit_links(path: Path) -> list[str]:
    """The files that a page's edit buttons lead to."""
    hrefs = [attributes.get("href") or "" for tag, attributes in tags(path).tags if tag == "a"]
    return [href.split("/edit/")[1].partition("/")[2] for href in hrefs if "/edit/" in href]


def neighbour(page: str, which: str) -> str | None:
    """The page that the button `left-prev` or `right-next` of a page leads to."""
    path = built(f"{page}.html")
    for tag, attributes in tags(path).tags:
        if tag == "a" and which in (attributes.get("class") or "").split():
            target = (path.parent / attributes["href"]).resolve()
            return str(target.relative_to(HTML).with_suffix(""))
    return None


def headings(page: str) -> list[str]:
    """A page's headings, from its source: Markdown, or the text cells of a notebook's script."""
    script = ROOT / f"{page}.py"
    if script.exists():
        cells = jupytext.read(script).cells
        text = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    else:
        path = ROOT / f"book/{page}.md"
        text = path.read_text() if path.exists() else ""
    text = re.sub(r"^(`{3,}).*?^\1", "", text, flags=re.M | re.S)
    return re.findall(r"^#+ +(.+)$", text, flags=re.M)


def misspelt(heading: str, terms: set[str]) -> list[str]:
    """Words that are in no British dictionary and not among the project's terms."""
    plain = re.sub(r"`[^`]*`|\$[^$]*\$|\]\([^)]*\)|\{[^}]*\}", " ", heading)
    words = [word.strip("'").removesuffix("'s") for word in re.findall(r"[A-Za-z']+", plain)]
    words = [w for w in words if w and not re.search(r".[A-Z]", w) and w.lower() not in terms]
    return sorted(w for w in set(words) if w.lower() in AMERICAN or not is_english(w.lower()))


@cache
def is_english(word: str) -> bool:
    american = word
    for ending, other in BRITISH.items():
        american = re.sub(ending, other, american)
    return bool(spelling().known([word, american]))


@cache
def spelling() -> SpellChecker:
    return SpellChecker(language="en")


@cache
def terms() -> set[str]:
    return set((ROOT / "tests/terms.txt").read_text().lower().split())


@pytest.fixture(scope="module")
def tabs(browser):
    """One tab for each width, used for every page."""
    tabs = {
        name: browser.new_page(viewport={"width": width, "height": height})
        for name, (width, height) in SIZES.items()
    }
    yield tabs
    for tab in tabs.values():
        tab.close()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("page", PAGES + MADE)
def test_a_page_is_whole_and_accessible(page, size, request):
    path = built(f"{page}.html")
    tab = request.getfixturevalue("tabs")[size]
    # Colours do not depend on the width, and are those of `api` on all pages that autodoc makes.
    colours = size == "desktop" and page not in REFERENCE
    problems = seen(tab, path) + inaccessible(tab, colours=colours)
    assert not problems, "\n".join(problems)


def test_local_links_lead_somewhere():
    problems = {page: broken_links(built(f"{page}.html")) for page in PAGES + MADE}
    assert {page: links for page, links in problems.items() if links} == {}


def test_headings_are_spelt_as_in_britain():
    problems = {
        f"{page}: {heading}": misspelt(heading, terms())
        for page in PAGES
        for heading in headings(page)
    }
    assert {heading: words for heading, words in problems.items() if words} == {}


def test_previous_and_next_lead_through_the_whole_book():
    forward = [neighbour(page, "right-next") for page in PAGES]
    assert forward == [*PAGES[1:], None]
    assert [neighbour(page, "left-prev") for page in PAGES] == [None, *PAGES[:-1]]


def test_edit_buttons_lead_to_files_of_the_repository():
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("this is no checkout")
    files = set(listed.stdout.splitlines())
    for page in PAGES:
        source = f"{page}.py" if page.startswith("notebooks/") else f"book/{page}.md"
        assert source in files and edit_links(built(f"{page}.html")) == [source]


def test_the_rocket_leads_to_the_notebook_without_outputs():
    for page in (page for page in PAGES if page.startswith("notebooks/")):
        hrefs = {
            attributes.get("href") or ""
            for tag, attributes in tags(built(f"{page}.html")).tags
            if tag == "a"
        }
        rockets = [href for href in hrefs if "colab.research" in href]
        assert len(rockets) == 1 and rockets[0].endswith(f"/{page}.ipynb")


def test_the_reference_has_every_module_and_leads_to_its_source():
    pages = [page for page in PAGES if page.startswith("api")]
    text = "".join(built(f"{page}.html").read_text() for page in pages)
    files = (ROOT / "seal_lite").rglob("*.py")
    names = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in files]
    modules = [name for name in names if "__init__" not in name and ".cli." not in name]
    shown = set(re.findall(r'id="module-([\w.]+)"', text))
    assert [name for name in modules if name not in shown | {"seal_lite.tutorial.runs"}] == []
    entries = re.findall(r'<dt class="sig sig-object py" id="([\w.]+)">(.*?)</dt>', text, re.S)
    linked = [name for name, signature in entries if "viewcode-link" in signature]
    assert len(linked) > 100


def test_the_reference_has_every_command():
    from typer.main import get_command

    from seal_lite.cli import app

    text = built("api/command_line.html").read_text()
    commands = get_command(app).commands
    assert [name for name in commands if f"Usage: seal-lite {name} " not in text] == []


def test_the_statistics_page_has_every_chapter():
    text = built("executed.html").read_text()
    assert [p for p in PAGES if p.startswith("notebooks/") and p not in text] == []


def test_search_finds_pages(tabs):
    tab = tabs["desktop"]
    tab.goto(built("intro.html").as_uri())
    tab.keyboard.press("Control+k")
    tab.keyboard.type("LoRA")
    tab.keyboard.press("Enter")
    tab.wait_for_selector("#search-results li a")
    assert "search.html" in tab.url
    links = tab.eval_on_selector_all("#search-results li a", "links => links.map(a => a.pathname)")
    assert len(links) > 3 and all(Path(path).exists() for path in links)


def test_dark_mode_is_a_click_away_and_legible(tabs):
    tab = tabs["desktop"]
    for page in ("intro", "cite", PAGES[2]):
        tab.goto(built(f"{page}.html").as_uri())
        for _ in range(3):  # light, dark, as the system
            if tab.evaluate("document.documentElement.dataset.theme") == "dark":
                break
            tab.click("button.theme-switch-button:visible")
        tab.reload()  # the choice is kept, and no colour is on its way to another
        background = tab.evaluate("getComputedStyle(document.body).backgroundColor")
        assert max(map(int, re.findall(r"\d+", background)[:3])) < 60
        assert inaccessible(tab) == []
    tab.evaluate("localStorage.clear()")


@pytest.mark.parametrize("page, link", [("glossary", "#term-H-E"), ("intro", "references.html#")])
def test_a_card_appears_over_a_term_and_a_citation(page, link, tabs):
    tab = tabs["desktop"]
    tab.goto(built(f"{page}.html").as_uri())
    tab.hover(f"article p a[href^='{link}']")
    card = tab.wait_for_selector(".tippy-box")
    assert len(card.inner_text()) > 40


BAD = """<!doctype html><html><head><title>bad</title><script>throw Error("oops")</script>
<script src="https://example.org/x.js"></script></head><body><div style="width: 2000px">wide</div>
<img src="none.png" alt="there is none"><img alt=" " src="data:image/gif;base64,
R0lGODlhAQABAIAAAP///wAAACwAAAAAAQABAAACAkQBADs="><p style="color: #ddd">pale</p>
<a href="none.html">a</a><a href="#none">b</a><a href="#there" id="there">c</a></body></html>"""


def test_the_checks_can_fail(tmp_path, tabs):
    path = tmp_path / "bad.html"
    path.write_text(BAD)
    problems = "\n".join(seen(tabs["phone"], path) + inaccessible(tabs["phone"]))
    for problem in (
        "script: oops",
        "asks another host: https://example.org/x.js",
        "not loaded",
        "console",
        "px wide in a window",
        "broken image",
        "no alternative text",
        "axe, color-contrast",
        "axe, html-has-lang",
    ):
        assert problem in problems
    assert len(broken_links(path)) == 3 and "none.png" in broken_links(path)[0]


def test_the_spelling_check_can_fail():
    assert misspelt("What the encoder's colours meen, in `cfg` and $x_i$", {"encoder"}) == ["meen"]
    assert misspelt("The color of HER2st and LoRA", set()) == ["color"]
