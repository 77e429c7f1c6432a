"""Take the README's pictures of the app.

    python -m benchmarks.app_screenshots

In a headless Chromium (needs Playwright and Chromium), each as high as its page. On a machine that does nothing else:
the app shows how long drawing took.
"""

import argparse
from pathlib import Path

from benchmarks.app_server import chromium, serve
from common.command_line import ArgumentParser, run
from common.files import write_bytes

WIDTH = 1180
SHOTS = {
    "app_compare": ("Compare", "light", "Download: one-step student"),
    "app_trajectory": ("Trajectory", "dark", "One-step student, t"),
    "app_explore": ("Explore", "light", "airplane, automobile"),
}
"""File: page, colours, and the text that comes last."""


def parse_args() -> argparse.Namespace:
    parser = ArgumentParser(__doc__)
    parser.add_argument("--models", type=Path, default=Path("checkpoints"), help="folder of the models")
    parser.add_argument("--out", type=Path, default=Path("docs"), help="folder of the pictures")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    with serve(args.models.resolve()) as (address, _), chromium() as browser:
        for name, (title, scheme, last) in SHOTS.items():
            page = browser.new_page(viewport={"width": WIDTH, "height": 800}, color_scheme=scheme)
            page.set_default_timeout(120_000)
            page.goto(f"{address}/{'' if title == 'Compare' else title.lower()}")
            page.get_by_text(last).wait_for()
            page.locator("[data-testid=stApp][data-test-script-state=notRunning]").wait_for()
            height = page.evaluate("document.querySelector('[data-testid=stMainBlockContainer]').scrollHeight")
            page.set_viewport_size({"width": WIDTH, "height": height})
            page.wait_for_timeout(500)  # for the layout to settle
            write_bytes(args.out / f"{name}.png", page.screenshot())
            print(args.out / f"{name}.png")


if __name__ == "__main__":
    run(main)
