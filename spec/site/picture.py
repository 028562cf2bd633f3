"""The README's picture, of a page that `refembed inspect --html` made: python spec/site/picture.py PAGE.html OUT.png

Needs Chromium, and Playwright from the extra `test`.
"""

import shutil
import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

WIDTH = 1120


def main(page: Path, out: Path) -> None:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        opened = browser.new_page(viewport={"width": WIDTH, "height": 1400})
        opened.goto(page.resolve().as_uri())
        end = opened.evaluate("document.getElementById('upper').getBoundingClientRect().bottom")
        opened.set_viewport_size({"width": WIDTH, "height": int(end)})
        opened.screenshot(path=out)
        browser.close()


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
