"""Texts that try to become script, markup or layout, wherever the app shows a text, in Chromium: none runs, none is formatted, none breaks a page."""

from urllib.parse import urlencode

import pytest
from app_server import running_app
from injected_bundle import CURATED, GROUPED, OWN, injected
from injections import HOST, INJECTIONS, SCAN, groups

from sae_explore import open_bundle
from sae_explore.building.build import build
from sae_explore.building.build_request import BuildRequest
from sae_explore.explore.find_links import BY
from sae_explore.export import feature_html

pytestmark = pytest.mark.browser

PAGES = (
    "?", "?doc={doc}", *(f"feature?feature={f}" for f in (0, 1, len(GROUPED), CURATED, OWN)), "map?feature=0", "lens?features=0-1-2",
    "whatif?feature=0", "compare?doc={doc}", "lists?features=0-1-2-3", "quality?", "build?", "about?",
    *(f"browse?find={by}" for by in BY),
)  # fmt: skip
LINKED = ("bundle", "text", "doc", "feature", "features", "find", "q", "where", "text2", "doc2", "bundle2", "page", "inj")
BROKEN = """
() => {
  const found = [];
  const root = document.scrollingElement;
  if (root.scrollWidth > innerWidth + 1) found.push(`the page is ${root.scrollWidth} wide in ${innerWidth}`);
  if (document.querySelector('[data-testid="stException"]')) found.push("an exception");
  const main = document.querySelector('[data-testid="stMainBlockContainer"]');
  if (!main || main.getBoundingClientRect().height < 100) found.push("no page");
  if (!document.querySelector('[data-testid="stSidebar"]')) found.push("no sidebar");
  return found;
}
"""


@pytest.fixture(scope="module")
def cache(gpt2_folder, tmp_path_factory):
    """A sound bundle of 192 latents over 131 texts, and the same by somebody who means harm."""
    folder = tmp_path_factory.mktemp("injected")
    request = BuildRequest("sound", latents=192, k=6, epochs=1, max_tokens=4_000, model=str(gpt2_folder), hook="blocks.1.hook_resid_post",
                           texts=("embedded",), max_texts=len(INJECTIONS) + 8, context=64)  # fmt: skip
    build(request, cache=folder)
    injected(folder, "sound", "hostile")
    return folder


@pytest.fixture(scope="module")
def address(cache):
    with running_app(cache) as app:
        yield app.url
    assert "Traceback" not in app.log.read_text()


@pytest.fixture
def page(browser):
    """A page that tells what ran or was asked for in `page.caught`."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    context.set_default_timeout(60_000)
    caught = []
    context.expose_function("pwned", lambda *what: caught.append(f"ran: {what}"))
    context.on("request", lambda request: caught.append(f"asked for {request.url}") if HOST in request.url.split("?")[0] else None)
    found = context.new_page()
    found.on("dialog", lambda dialog: (caught.append(f"dialog: {dialog.message}"), dialog.dismiss()))
    found.on("popup", lambda popup: caught.append(f"opened {popup.url}"))
    found.caught = caught
    yield found
    context.close()


def look(page, address: str) -> list[str]:
    """What is wrong with a page, wide and narrow, once it is drawn."""
    page.goto(address)
    page.locator('[data-testid="stMainBlockContainer"] h1').first.wait_for()
    wrong = []
    for width in (1280, 420):
        page.set_viewport_size({"width": width, "height": 900})
        page.wait_for_timeout(300)
        page.locator('[data-testid="stStatusWidget"]').wait_for(state="detached")
        wrong += [f"{width}: {found}" for found in page.evaluate(SCAN) + page.evaluate(BROKEN)]
    return wrong + page.caught


def test_there_are_many():
    assert len(set(INJECTIONS)) >= 60


@pytest.mark.parametrize("path", PAGES)
def test_no_page_runs_or_formats_what_a_bundle_says(address, cache, page, path):
    document = open_bundle("hostile", cache=cache).documents["id"][2].as_py()
    path = path.replace("{doc}", urlencode({"": document})[1:])
    assert look(page, f"{address}/{path}&bundle=hostile") == []


@pytest.mark.parametrize("part", range(4))
def test_no_link_runs_or_formats_anything(address, page, part):
    for i, string in enumerate(groups(900)[part::4]):
        found = urlencode(dict.fromkeys(LINKED, string), errors="replace")
        assert look(page, f"{address}/{'browse' if i % 2 else ''}?{found}") == [], string


def test_a_pasted_text_stays_a_text(address, page):
    page.goto(f"{address}/?bundle=sound")
    page.get_by_role("textbox", name="Your own text").fill(" ".join(INJECTIONS)[:2_500])
    page.get_by_role("button", name="Analyse").click()
    page.get_by_text("Your text,").wait_for()
    page.locator('[data-testid="stStatusWidget"]').wait_for(state="detached")
    assert page.evaluate(SCAN) + page.evaluate(BROKEN) + page.caught == []


def test_an_exported_file_runs_nothing(cache, page, tmp_path):
    bundle = open_bundle("hostile", cache=cache)
    file = tmp_path / "features.html"
    file.write_text(feature_html(bundle, [*range(len(GROUPED)), CURATED, OWN]), encoding="utf-8", errors="replace")
    page.goto(file.as_uri())
    page.wait_for_timeout(300)
    found = [line for line in page.evaluate(SCAN) if not line.startswith(("element: <meta", "document: <meta"))]
    assert found + page.caught == []
    assert page.evaluate("document.scrollingElement.scrollWidth <= innerWidth + 1")
