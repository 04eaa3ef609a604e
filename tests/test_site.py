"""The site of the results: its pages made from made-up results, and the built site opened in a real headless Chromium.

What needs the dependencies of the site (`make test-site` installs them) or a Chromium is skipped
where they are missing. No number in this file was measured.
"""

import functools
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote, urlsplit

import made_up
import pandas as pd
import pytest
from made_up import REPO, write_results
from simulated import SIZES, simulate, write_records

from emigm.paper.claims import load_claims
from emigm.report.ledger import FAILS, HOLDS, NOT_RUN
from emigm.report.tables import Table
from emigm.stages.notebooks import execute
from emigm.verify.equivalence import DIFFERS, IDENTICAL, REPRODUCED, Comparison, Verdict
from emigm.verify.verdict import as_json
from emigm.verify.verify import Verification

CLAIMS = load_claims(REPO)
LEDGER, ELSEWHERE = "ledger.html", CLAIMS.ground("imagenet512")
CLAIMS_CSV = Path("results/evidence/notebooks/claims/claims.csv")


def verified(*statuses):
    """What `emigm verify --json` writes of one benchmark whose cells came to these."""
    compared = Comparison([Verdict("a cell", status, 1.0, 1.0) for status in statuses])
    again, devices = frozenset({"a"}), ("a CPU", "another CPU")  # the stage of the cell
    return json.dumps(as_json([Verification("mnist", compared, again=again, records=1, devices=devices)]))


spec = importlib.util.spec_from_file_location("docs_build", REPO / "docs" / "build.py")
builder = importlib.util.module_from_spec(spec)
spec.loader.exec_module(builder)


def checkout(root):
    """What of a checkout the site is made of, but results."""
    files = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "params.yaml", "LICENSE")
    return made_up.checkout(root, *files, "benchmarks", "notebooks")


def effect(cell):
    """Each size of the ladder is better than the one below it, and one training choice is worse than it should be."""
    return -0.3 * (SIZES.index(cell.size) if cell.size in SIZES else 0) + 2 * (cell.size == "elbo_cosine")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A checkout with made-up results, and with notebooks that were really executed on them."""
    root = checkout(tmp_path_factory.mktemp("checkout"))
    folder = write_results(root, sizes={"xs": 4.0, "h": 1.0})
    (root / "docs").mkdir()
    shutil.copy(REPO / "docs" / "reproductions.jsonl", root / "docs")
    write_records(root, simulate(CLAIMS, effect, noise=0.05))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setenv("PYTHONPATH", str(REPO))
        execute("claims", None, "evidence")
        execute("figure4", "ladder", "ladder")
    scores = pd.DataFrame({"Model": ["eMIGM-XS"], "FID": ["4.5 ± 0.1"]})
    Table("scores", "Scores", scores).save(folder / "notebooks/scores")
    return root


# The pages, which need nothing but this repository


@pytest.fixture(scope="module")
def pages(root, tmp_path_factory):
    source = tmp_path_factory.mktemp("source")
    builder.Site(root, source).write()
    return source


def test_every_link_of_the_pages_leads_to_a_page_or_a_copy(pages):
    texts = {path.relative_to(pages).as_posix(): path.read_text(encoding="utf-8") for path in pages.rglob("*.md")}
    assert {"index.md", "ledger.md", "results/README.md", "results/ladder/README.md", "api/emigm.train.md"} <= {*texts}
    for name, text in texts.items():
        for target in re.findall(r"\]\(([^)\s#]+)", text):
            assert "://" in target or (pages / target.lstrip("/")).is_file(), (name, target)


def test_rows_of_the_ledger_have_their_comparisons_figures_and_records(pages, root):
    (row,) = [line for line in (pages / "ledger.md").read_text().splitlines() if line.startswith("| 4a ")]
    assert "](/results/ladder/notebooks/figure4/figure4.ipynb)" in row
    assert all(f"/results/ladder/records/evaluate-{size}.json" in row for size in ("xs", "b", "h"))
    listed = pd.read_csv(root / CLAIMS_CSV).set_index("ID")
    assert all(part in row for part in listed.loc["4a", "Measured"].split("; "))


def test_what_has_not_run_or_failed_is_said(tmp_path):
    site, path = builder.Site(checkout(tmp_path), tmp_path / "source"), tmp_path / "verify.json"
    assert "The ledger: not run yet" in site.ledger() and "not verified here" in site.verified(path)
    path.write_text(verified(IDENTICAL, DIFFERS))
    assert "[differs]{.verdict .bad} 1 fact, the first" in site.verified(path)
    text = "[a](emigm/none.py) ![b](none.png) [c](https://example.org) [d](../params.yaml#x)"
    assert site.linked(text, Path("benchmarks")) == "a *b: not run* [c](https://example.org) [d](/params.yaml#x)"
    assert (tmp_path / "source" / "params.yaml").is_file()


# The built site


@pytest.fixture(scope="module")
def site(root, tmp_path_factory):
    """The built site; Sphinx had nothing to say."""
    for needed in ("sphinx", "myst_nb", "pydata_sphinx_theme"):
        pytest.importorskip(needed, reason=f"the site needs {needed}: make test-site")
    out = tmp_path_factory.mktemp("site")
    path = out.with_name("verify.json")
    path.write_text(verified(IDENTICAL, IDENTICAL, REPRODUCED))
    command = [sys.executable, REPO / "docs" / "build.py", "--root", root, "--out", out, "--verified", path]
    environment = {**os.environ, "PYTHONPATH": str(REPO)}
    done = subprocess.run(command, cwd=REPO, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and not done.stderr, done.stderr[-3000:]
    return out


@functools.cache
def soup(path):
    import bs4  # the theme needs it

    return bs4.BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser")


def article(site, name):
    return soup(site / name).find("article")


def pages_of(site):
    names = sorted(path.relative_to(site).as_posix() for path in site.rglob("*.html"))
    return [name for name in names if not name.startswith("_static")]  # templates of the theme


def test_every_link_leads_somewhere_and_nothing_is_loaded_from_another_host(site):
    anchors = {}
    for name in pages_of(site):
        path = site / name
        for tag, key in (("a", "href"), ("img", "src"), ("script", "src"), ("link", "href")):
            for element in soup(path).find_all(tag, **{key: True}):
                url = urlsplit(element[key])
                if url.scheme or url.netloc:
                    assert tag == "a", f"{name} loads {element[key]}"
                    continue
                target = (path.parent / unquote(url.path)).resolve() if url.path else path
                assert target.is_file(), f"{name}: {element[key]}"
                if tag == "a" and url.fragment and target.suffix == ".html":
                    ids = anchors.setdefault(target, {e["id"] for e in soup(target).find_all(id=True)})
                    assert url.fragment in ids, f"{name}: {element[key]}"


def test_the_front_page_has_the_answer_samples_and_scores_first_and_who_has_run_it_again_below(site):
    front = article(site, "index.html")
    text = " ".join(front.get_text().split())
    tally, scores, *_, again = front.find_all("table")
    assert sum("holds" in table.get_text() for table in front.find_all("table")) == 1
    assert "MNIST-5k" in tally.get_text() and "eMIGM-XS" in scores.get_text() and "another CPU" in text
    places = [text.index(part) for part in ("ledger of the paper", "eMIGM-XS", "make reproduce", "3 of 3 cells made")]
    assert places == sorted(places) and "3 of 3 cells made again, 2 identical, 1 within" in text
    assert front.find(class_="verified").find(class_="good").text == "reproduced"
    lines = list(map(json.loads, (REPO / "docs" / "reproductions.jsonl").read_text().splitlines()))
    assert lines and all(line["commit"][:12] in again.get_text() for line in lines)
    assert all(one["devices"][0] in again.get_text() for line in lines for one in line["benchmarks"].values())


def test_notebooks_and_benchmarks_have_a_page_with_their_pictures_and_folded_code(site, root):
    page = article(site, "results/ladder/notebooks/figure4/figure4.html")
    said = (root / "results/ladder/notebooks/figure4/reading.md").read_text().split("\n\n")[0]
    assert said.replace(" ± ", "\u00a0±\u00a0") in page.get_text() and page.find("img")
    assert all(code.find_parent("details") for code in page.select(".cell_input"))
    assert "benchmark = " not in page.get_text()
    page = article(site, "results/mnist/README.html")
    captions = [caption.get_text(strip=True).rstrip("#") for caption in page.find_all("figcaption")]
    assert captions[0] == "Real images" and {"eMIGM-XS at 4", "eMIGM-H at 16"} <= set(captions)
    assert any(a.get("href", "").endswith("evaluate-xs.json") for a in page.find_all("a"))
    text = " ".join(soup(site / "api/emigm.api.html").get_text().split())
    assert "an image is a function of (weights, seed, index, class)" in text  # the docstrings
    assert "SampleConfig" in text and "__call__" in text


# In the browser


@pytest.fixture(scope="module")
def chromium():
    sync_api = pytest.importorskip("playwright.sync_api", reason="the browser test needs playwright: make test-site")
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if program is None:
        pytest.skip("no Chromium here; the distribution has it: apt-get install chromium")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program)
        yield browser
        browser.close()


@pytest.fixture
def page(chromium):
    page = chromium.new_page(viewport={"width": 1280, "height": 900})
    yield page
    page.close()


SCROLLED = """[...document.querySelectorAll("body, article, article *")].filter((e) =>
    e.scrollWidth > e.clientWidth + 1 && ["auto", "scroll"].includes(getComputedStyle(e).overflowX)
).map((e) => e.outerHTML.slice(0, 200))"""


@pytest.mark.parametrize("width", [400, 1280])
def test_pages_load_without_errors_and_do_not_scroll_sideways(site, page, width):
    """On a phone no part of them does."""
    errors = []
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("requestfailed", lambda request: errors.append(request.url))
    page.on("request", lambda request: errors.append(request.url) if request.url.startswith("http") else None)
    page.set_viewport_size({"width": width, "height": 900})
    for name in pages_of(site):
        page.goto(f"file://{site / name}")
        assert page.evaluate("document.documentElement.scrollWidth") <= width, name
        assert width > 400 or page.evaluate(SCROLLED) == [], name
        assert not errors, f"{name}: {errors}"


def column(page, place):
    cells = page.locator(f"table.ledger tbody tr:visible td:nth-child({place})").all()
    return [cell.inner_text() for cell in cells]


def test_the_ledger_sorts_in_both_directions(site, page):
    page.goto(f"file://{site / LEDGER}")
    before, header, seen = column(page, 1), page.locator("table.ledger th").first, {}
    for direction in ("ascending", "descending"):
        header.locator("button").click()
        assert header.get_attribute("aria-sort") == direction
        seen[direction] = column(page, 1)
        assert sorted(seen[direction]) == sorted(before)
    numbers = [int(re.match(r"\d+", name)[0]) for name in seen["ascending"] if name[0].isdigit()]
    assert len(set(numbers)) > 3 and numbers == sorted(numbers)
    assert seen["descending"] == sorted(seen["ascending"], key=seen["ascending"].index, reverse=True)


def test_the_ledger_filters_by_verdict_data_and_text_and_colours_verdicts(site, page, root):
    listed = pd.read_csv(root / CLAIMS_CSV)
    assert len(soup(site / LEDGER).find("table", class_="ledger").find("tbody").find_all("tr")) == len(listed)
    page.goto(f"file://{site / LEDGER}")
    for label, choice in (("Verdict", HOLDS), ("Data", ELSEWHERE)):
        page.get_by_label(label).select_option(choice)
        assert 0 < len(column(page, 1)) == (listed[label] == choice).sum() < len(listed)
        page.get_by_label(label).select_option("")
    page.get_by_label("Search the rows").fill("mae TRICK")
    assert "2c" in column(page, 1) and len(column(page, 1)) < len(listed)
    page.get_by_label("Search the rows").fill("")
    look = "e => getComputedStyle(e).backgroundColor"
    seen = {v: page.locator(f".verdict:text-is('{v}')").first.evaluate(look) for v in (HOLDS, FAILS, NOT_RUN)}
    assert len(set(seen.values())) == 3


def test_on_a_phone_a_row_is_a_card_with_its_labels(site, page):
    page.set_viewport_size({"width": 400, "height": 900})
    for name, table, nth, label in ((LEDGER, "table.ledger", 0, '"Claim: "'), ("index.html", "table", 1, '"FID "')):
        page.goto(f"file://{site / name}")
        cells = page.locator(table).nth(nth).locator("tbody tr").first.locator("td")
        tops = [cell.bounding_box()["y"] for cell in cells.all()]
        assert tops == sorted(tops) and tops[0] < tops[1]
        assert cells.nth(1).evaluate("e => getComputedStyle(e, '::before').content") == label


def test_a_picture_enlarges_on_click_and_goes_back(site, page):
    page.goto(f"file://{site / 'results/mnist/README.html'}")
    picture, large = page.locator(".gallery img.pixels").first, page.locator("dialog.enlarged img")
    small = picture.bounding_box()["width"]
    picture.click()
    assert large.bounding_box()["width"] > small
    assert large.get_attribute("src") == picture.evaluate("e => e.src")
    large.click()
    assert not page.locator("dialog.enlarged").is_visible()
