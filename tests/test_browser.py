"""End to end in Chromium: what a visitor does, and what must never happen (markup that runs, console errors, a page too wide)."""

import pytest
from app_server import running_app

pytest_plugins = ["bundle_fixtures"]
pytestmark = pytest.mark.browser

HOSTILE = '<img src=x onerror="window.__ran=1"> <script>window.__ran=2</script> & **bold** [link](javascript:window.__ran=3)'
TEXT = "Gold medals are rarely gold. 🥇 Naïve café!"


@pytest.fixture(scope="module")
def address(tiny_cache):
    """The app on a free loopback port, with the tiny bundles."""
    with running_app(tiny_cache) as app:
        yield app.url
    assert "Traceback" not in app.log.read_text()


def watch(target, errors: list[str]) -> None:
    """Collect what the console reports as errors. Streamlit itself asks below a page's own path for its server before it asks at the root: a 404."""

    def keep(message) -> None:
        if message.type == "error" and "/_stcore/" not in message.location.get("url", ""):
            errors.append(f"{message.text} {message.location}")

    target.on("console", keep)


@pytest.fixture
def context(browser):
    """A fresh visitor; whatever the console reports as an error fails the test."""
    found = browser.new_context(viewport={"width": 1280, "height": 900})
    found.set_default_timeout(30_000)
    errors: list[str] = []
    watch(found, errors)
    found.on("weberror", lambda error: errors.append(str(error.error)))
    yield found
    found.close()
    assert errors == []


def tokens_of(page) -> str:
    """The text that the page shows as tokens, with spaces between them or alone (as dots), without other marks."""
    return page.locator(".run").evaluate(
        """run => {
          const shown = node => node.nodeType === 3 || /^·+$/.test(node.textContent) ? node.textContent : "";
          return Array.from(run.childNodes, c => c.nodeType === 3 ? c.data : Array.from(c.childNodes, shown).join("")).join("");
        }"""
    )


def analyse(page, text: str) -> None:
    page.get_by_role("textbox", name="Your own text").fill(text)
    page.get_by_role("button", name="Analyse").click()
    page.get_by_text("Your text,").wait_for()
    settled(page)


def settled(page) -> None:
    """Wait until the page's run has ended."""
    page.wait_for_timeout(300)
    page.locator('[data-testid="stStatusWidget"]').wait_for(state="detached")


def test_a_visitor_reads_a_text_clicks_a_feature_and_opens_its_link_in_a_new_tab(address, context):
    page = context.new_page()
    page.goto(f"{address}/?bundle=tiny")
    page.locator(".run").wait_for()
    analyse(page, TEXT)
    assert tokens_of(page).replace("·", " ") == TEXT

    page.locator(".run [data-i='2']").click()
    page.get_by_text("Token 2", exact=True).wait_for()
    settled(page)
    link = page.get_by_role("link", name="Open this feature's page").first
    feature = link.get_attribute("href").split("feature=")[1].split("&")[0]
    link.click()
    page.wait_for_url(f"**/feature?*feature={feature}*")
    page.get_by_text(f"Feature {feature}").first.wait_for()
    heading = page.get_by_role("heading", level=1).first.inner_text()

    other = context.new_page()
    other.goto(page.url)
    other.get_by_text(f"Feature {feature}").first.wait_for()
    assert other.get_by_role("heading", level=1).first.inner_text() == heading


def test_a_visitor_starts_with_a_feature(address, context):
    page = context.new_page()
    page.goto(f"{address}/?bundle=tiny")
    first = page.locator(".list .row").first
    first.wait_for()
    settled(page)
    number = first.locator(".name a").get_attribute("href").split("feature=")[1]
    text = first.locator(".example").get_attribute("href").split("doc=")[1]

    page.get_by_role("link", name="start with a feature").click()
    first.locator(".example").click()
    page.wait_for_url(f"**/?*feature={number}&doc={text}")
    settled(page)
    assert page.locator(".run .a10").count()  # its strongest example is on the page, in the deepest colour
    assert page.evaluate("document.querySelector('[data-testid=stMain]').scrollTop") == 0

    first.locator(".name a").click()
    page.wait_for_url(f"**/feature?*feature={number}")
    page.get_by_role("heading", name=f"Feature {number}").wait_for()
    settled(page)


def test_the_link_of_a_text_opens_the_same_view_for_another_visitor(address, browser, context):
    page = context.new_page()
    page.goto(f"{address}/?bundle=tiny")
    page.locator(".run").wait_for()
    analyse(page, TEXT)
    visitor = browser.new_context()
    other = visitor.new_page()
    other.goto(page.url)
    other.get_by_text("Your text,").wait_for(timeout=30_000)
    settled(other)
    assert tokens_of(other) == tokens_of(page)
    visitor.close()


def test_hostile_text_stays_text(address, context):
    page = context.new_page()
    page.goto(f"{address}/?bundle=tiny")
    page.locator(".run").wait_for()
    analyse(page, HOSTILE)
    assert tokens_of(page).replace("·", " ") == HOSTILE
    page.locator(".run [data-i='3']").click()
    settled(page)
    assert page.evaluate("window.__ran") is None
    assert page.locator("img[src='x']").count() == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("path", ["", "feature", "browse", "lens", "lists", "quality", "about"])
def test_no_page_is_wider_than_a_phone(address, browser, path, scheme):
    visitor = browser.new_context(viewport={"width": 420, "height": 900}, color_scheme=scheme)
    page = visitor.new_page()
    errors: list[str] = []
    watch(page, errors)
    page.goto(f"{address}/{path}?bundle=tiny")
    page.get_by_role("heading", level=1).first.wait_for(timeout=30_000)
    settled(page)
    assert page.locator('[data-testid="stException"]').count() == 0
    assert page.evaluate("document.querySelector('[data-testid=stMain]').scrollWidth") <= 420
    visitor.close()
    assert errors == []
