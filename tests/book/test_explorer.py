"""The explorer: what its data hold, and what its page does with them in a browser."""

import base64
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from browser import SIZES

from seal_lite.encoders.embedding import embed_patches
from seal_lite.evaluation.retrieval import gene_set_profile, search

BOOK = Path(__file__).parents[2] / "book"
PAGE = BOOK / "extra/explorer"


@pytest.fixture(scope="module")
def explorer(book):
    return book("explorer")


@pytest.fixture(scope="module")
def data(explorer, trained, sections, ground_truth):
    """The explorer's data of a model trained on PA1, with PB1 held out."""
    model = trained[1]
    genes = model.panel.genes[:12]
    sets = {"two": list(genes[:2]), "elsewhere": [genes[0], "NONE"]}
    return explorer.explorer_data(
        model, sections[:1], sections[1:], genes, sets=sets, classes=ground_truth.classes
    )


@pytest.fixture(scope="module")
def embedded(trained, sections):
    return [embed_patches(trained[1].encoder, s.patches) for s in sections]


@pytest.fixture(scope="module")
def text(explorer, data, sections):
    return explorer.script(data, sections, edges=(32,))


def integers(packed, dtype, n):
    return np.frombuffer(base64.b64decode(packed), dtype).reshape(n, -1)


def test_a_held_out_section_is_never_one_of_training(explorer, data, sections):
    seen, held = ({s["name"] for s in data["sections"] if s["held_out"] == out} for out in (0, 1))
    assert (seen, held) == ({"PA1"}, {"PB1"})
    assert [s["role"] for s in data["sections"]] == ["seen in training", "patient held out"]
    twins = explorer.roles(sections[:1], sections[:1])
    assert twins == ["seen in training", "section held out"]


def test_the_data_are_what_the_model_predicts(data, trained, sections, embedded):
    model = trained[1]
    columns = [model.panel.genes.index(g) for g in data["genes"]]
    for entry, section, e in zip(data["sections"], sections, embedded, strict=True):
        n = len(section.rows)
        assert len(entry["spots"]) == n
        z = model.panel.transform(section.adata)[section.rows][:, columns]
        predicted = model.predict_genes(e)[:, columns]
        for name, true in (("measured", z), ("predicted", predicted)):
            stored = integers(entry[name], "<i2", n) * data["z_step"]
            np.testing.assert_allclose(stored, true, atol=0.51 * data["z_step"])


def test_similarity_survives_its_eight_bits(data, trained, embedded):
    model = trained[1]
    profiles = np.concatenate([gene_set_profile(model.panel, t["genes"]) for t in data["targets"]])
    stored = integers(data["queries"], "i1", len(profiles)).astype(float)
    stored /= np.linalg.norm(stored, axis=1, keepdims=True)
    asked = model.encode_genes(profiles)
    for entry, e in zip(data["sections"], embedded, strict=True):
        images = integers(entry["images"], "i1", len(e)).astype(float)
        images /= np.linalg.norm(images, axis=1, keepdims=True)
        true = asked @ model.project_images(e).T
        np.testing.assert_allclose(stored @ images.T, true, atol=0.02)


def test_a_set_with_a_gene_that_is_not_scored_is_left_out(data):
    assert [t["name"] for t in data["targets"]] == ["two", *data["genes"]]
    assert {t["kind"] for t in data["targets"][1:]} <= {"visible", "subtle", "invisible", ""}


def test_images_shrink_until_all_is_below_the_limit(explorer, data, sections):
    large, small = (len(explorer.script(data, sections, edges=(e,))) for e in (64, 32))
    assert small < large < explorer.LIMIT == 5_000_000
    fitted = explorer.script(data, sections, edges=(64, 32), limit=large)
    assert len(fitted) == small and '"edge":32' in fitted
    with pytest.raises(SystemExit, match="take fewer sections"):
        explorer.script(data, sections, edges=(64, 32), limit=small)


def test_the_whole_is_below_5_mb(text):
    if (PAGE / "data.js").exists():
        text = (PAGE / "data.js").read_text()
    hand_written = sum(p.stat().st_size for p in PAGE.iterdir() if p.name != "data.js")
    assert len(text) + hand_written < 5e6
    json.loads(text.removeprefix("window.EXPLORER = ").removesuffix(";\n"))


@pytest.fixture(scope="module")
def tiny_page(text, tmp_path_factory):
    folder = tmp_path_factory.mktemp("explorer") / "page"
    shutil.copytree(PAGE, folder, ignore=shutil.ignore_patterns("data.js"))
    (folder / "data.js").write_text(text)
    return folder


@pytest.fixture(params=["of the tests", "of the book"])
def folder(request):
    """The page with the tests' tiny data, and as the book has it."""
    if request.param == "of the tests":
        return request.getfixturevalue("tiny_page")
    if not (PAGE / "data.js").exists():
        pytest.skip(f"{PAGE / 'data.js'} is absent: run `make book` first")
    return PAGE


@pytest.fixture
def visit(browser):
    """Opens a folder's page, and fails in the end if it complained or asked for anything else."""
    pages, wrong = [], []

    def opened(folder, address="", *, size="desktop", **options):
        width, height = SIZES[size]
        page = browser.new_page(viewport={"width": width, "height": height}, **options)
        page.on("console", lambda m: wrong.append(m.text) if m.type != "log" else None)
        page.on("pageerror", lambda e: wrong.append(str(e)))
        page.on("request", lambda r: wrong.append(r.url) if not local(r.url) else None)
        page.goto(f"{(folder / 'index.html').as_uri()}{address}")
        pages.append(page)
        return page

    yield opened
    for page in pages:
        page.close()
    assert wrong == []


def local(url: str) -> bool:
    return url.startswith(("file:", "data:"))


def choose(page, name):
    page.get_by_role("radio", name=name, exact=True).check()


def results(page):
    return page.locator("#results button").all_inner_texts()


def fills(page):
    return page.eval_on_selector_all("#map .spot", "all => all.map((e) => e.getAttribute('fill'))")


def test_it_opens_with_something_to_see(folder, visit):
    page = visit(folder)
    assert page.locator("#map .spot").count() > 50
    assert len(results(page)) == 12 and len(set(fills(page))) > 20
    assert page.locator("#where").inner_text().endswith("patient held out")
    assert page.locator("#cards .tag.out").count() == 1
    assert "retrieved" in page.locator("#summary").inner_text()


def test_a_click_on_a_spot_searches_with_it(folder, visit):
    page = visit(folder)
    before = results(page)
    page.locator("#spot-5").click()
    first = results(page)
    page.locator("#spot-40").click()
    assert page.locator("#query").inner_text().partition("\n")[0].endswith("spot 41")
    assert len({*before} ^ {*first}) and first != results(page)
    genes = results(page)
    choose(page, "its image")
    assert results(page) != genes and "its own" not in " ".join(results(page))


def test_a_result_is_shown_on_the_map_and_the_list_stays(folder, visit):
    page = visit(folder, "#scope=others")
    before = results(page)
    page.locator("#results button").first.click()
    assert results(page) == before
    assert not page.locator("#where").inner_text().endswith("held out")
    assert page.locator("#tip").is_visible()
    assert page.evaluate("document.activeElement.matches('#results button')")


def test_the_keyboard_alone_is_enough(folder, visit):
    page = visit(folder)
    before, places = results(page), []
    for _ in range(12):
        page.keyboard.press("Tab")
        places.append(page.evaluate("document.activeElement.id || document.activeElement.name"))
        if places[-1] == "map":
            break
    assert places[-5:] == ["section", "of", "show", "opacity", "map"]
    page.keyboard.press("Home")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowDown")
    chosen = page.locator("#map").get_attribute("aria-activedescendant")
    assert chosen != "spot-0" and page.locator("#tip").is_visible()
    page.keyboard.press("Enter")
    assert page.locator(f"#{chosen}").get_attribute("aria-selected") == "true"
    assert results(page) != before
    announced = page.locator("#live").text_content()
    assert f"spot {int(chosen[5:]) + 1}" in announced and "Measured z of" in announced
    page.keyboard.press("Escape")
    assert page.locator("#tip").is_hidden()
    page.keyboard.press("Tab")  # to the query; then another of its choices
    page.keyboard.press("ArrowRight")
    assert "image" in page.locator("#query").inner_text()


def test_the_toggles_redraw_the_map(folder, visit):
    page = visit(folder)
    seen = {}
    for name in ("measured", "predicted", "difference"):
        choose(page, name)
        seen[name] = (fills(page), page.locator("#ramp").get_attribute("style"))
        assert name in page.locator("#where").inner_text() or name == "difference"
        assert page.locator("#ticks span").count() == 3
    maps, ramps = zip(*seen.values(), strict=True)
    assert len({tuple(m) for m in maps}) == 3
    assert ramps[0] == ramps[1] != ramps[2]
    page.select_option("#of", index=3)
    assert fills(page) != maps[2]


def test_errors_have_the_colours_of_the_chapters(tiny_page, visit):
    """Where a prediction is too high its spot is orange, as in the chapters' error maps."""
    import matplotlib

    from seal_lite.tutorial.charts import ERROR_COLOURS

    chapters = matplotlib.colormaps[ERROR_COLOURS]
    page = visit(tiny_page, "#show=difference")
    limits = "scale(section(), 'difference')"
    for sign, end in ((1, 1.0), (-1, 0.0)):
        shown = page.evaluate(f"shade({limits}, {sign} * {limits}.high)")
        rgb = [int(channel) for channel in re.findall(r"\d+", shown)]
        np.testing.assert_allclose(rgb, 255 * np.array(chapters(end)[:3]), atol=1)
    too_high = chapters(0.85)
    assert too_high[0] > too_high[1] > too_high[2]  # orange: red, then green, then blue
    assert "Orange: the prediction is too high" in page.locator("#explain").inner_text()


def test_a_section_is_chosen_by_its_card(folder, visit):
    page = visit(folder)
    page.locator("#cards .card").first.click()
    assert page.locator("#where").inner_text().endswith("seen in training")
    assert not page.locator("#where .out").count()


def test_the_page_finds_what_the_package_finds(tiny_page, visit, trained, sections, embedded):
    model, held = trained[1], sections[1]
    page = visit(tiny_page, "#scope=this&by=genes&spot=4")
    gallery = model.project_images(embedded[1])
    z = model.panel.transform(held.adata)[held.rows]
    (order,), (cosines,) = search(model.encode_genes(z[3:4]), gallery, top=5)
    hits = page.evaluate("search(D, S).slice(0, 5).map((f) => [f.i, f.similarity])")
    np.testing.assert_allclose([s for _, s in hits], cosines, atol=0.02)
    assert len({int(i) for i, _ in hits} & set(order.tolist())) >= 4  # near ties may swap
    two = z[:, [model.panel.genes.index(g) for g in model.panel.genes[:2]]].mean(1)
    shown = page.evaluate('values(D, section(), D.targets[0], "measured")')
    np.testing.assert_allclose(shown, two, atol=2e-3)


def test_a_gene_that_a_section_lacks_is_shown_as_flat(tiny_page, visit):
    page = visit(tiny_page)
    page.evaluate("section().measured.fill(0); S.scope = 'this'; render()")
    assert len(set(fills(page))) == 1 and len(results(page)) == 12
    assert page.locator("#cards .r").last.inner_text() == "r = –"
    html = page.locator("main").inner_html()
    markup = re.sub(r"(?<=;base64,)[\w+/=]+", "", html)  # an image's base64 may spell anything
    assert ";base64," in markup and "NaN" not in markup


def test_the_address_holds_what_is_chosen(folder, visit):
    page = visit(folder)
    page.locator("#spot-7").click()
    choose(page, "the others")
    choose(page, "predicted")
    before, address = results(page), page.evaluate("location.hash")
    assert results(visit(folder, address)) == before
    lost = visit(folder, "#section=NONE&of=NONE&spot=99999&show=toString&by=x")
    assert len(results(lost)) == 12


def test_absent_data_are_said(tiny_page, tmp_path, browser):
    folder = shutil.copytree(tiny_page, tmp_path / "page")
    (folder / "data.js").unlink()
    page = browser.new_page()
    page.goto((folder / "index.html").as_uri())
    assert page.get_by_text("make book").is_visible()
    page.close()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_overflows_and_anyone_can_use_it(folder, visit, size, scheme):
    from axe_playwright_python.sync_playwright import Axe

    page = visit(folder, "#by=genes&show=difference", size=size, color_scheme=scheme)
    width = page.evaluate("document.documentElement.scrollWidth")
    assert width <= SIZES[size][0]
    options = {"resultTypes": ["violations"], "preload": False}  # it may not fetch from a folder
    violations = Axe().run(page, options=options).response["violations"]
    assert [
        (v["id"], v["impact"]) for v in violations if v["impact"] in ("serious", "critical")
    ] == []


def test_it_takes_the_theme_and_tells_its_height(tiny_page, visit, browser, tmp_path):
    def back(frame):
        return frame.evaluate("getComputedStyle(document.body).backgroundColor")

    light, dark = (back(visit(tiny_page, f"?theme={name}")) for name in ("light", "dark"))
    assert light != dark
    assert back(visit(tiny_page, "?theme=light", color_scheme="dark")) == light
    raw = (BOOK / "explorer.md").read_text().partition("```{raw} html\n")[2].partition("```")[0]
    shutil.copytree(tiny_page, tmp_path / "explorer")
    (tmp_path / "index.html").write_text(f'<html data-theme="dark"><body>{raw}</body></html>')
    page = visit(tmp_path)
    inside = page.frame("explorer")
    inside.wait_for_selector("#results button")
    page.wait_for_function("document.querySelector('iframe').offsetHeight !== 1400")
    assert back(inside) == dark
    page.evaluate("document.documentElement.dataset.theme = 'light'")
    inside.wait_for_function(f"getComputedStyle(document.body).backgroundColor === '{light}'")
    tall = page.evaluate("document.querySelector('iframe').offsetHeight")
    assert tall == inside.evaluate("document.body.offsetHeight")
