"""The README's screenshots, taken from the running app: python tests/make_screenshots.py [FOLDER]"""

import sys
from pathlib import Path

from app_server import CHROMIUM, FLAGS, ROOT, running_app
from playwright.sync_api import sync_playwright

SHOTS = (  # file, page, colour scheme, height
    ("text-light.png", "?bundle=demo", "light", 900),
    ("feature-dark.png", "feature?bundle=demo&feature=", "dark", 1_000),
)
FEATURE = 106  # a feature whose examples read at a glance


def main(folder: Path) -> None:
    """Write every screenshot into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    with running_app(ROOT / "cache") as app, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        for file, page_path, scheme, height in SHOTS:
            context = browser.new_context(viewport={"width": 1280, "height": height}, color_scheme=scheme, device_scale_factor=1.5)
            page = context.new_page()
            page.goto(f"{app.url}/{page_path}{FEATURE if page_path.endswith('feature=') else ''}")
            page.get_by_role("heading", level=1).first.wait_for()
            page.wait_for_timeout(8_000)  # charts draw themselves after the page has arrived
            page.screenshot(path=folder / file)
            context.close()
        browser.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / ".github")
