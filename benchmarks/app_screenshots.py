"""Take the README's pictures of the app, in a headless Chromium (needs Playwright and Chromium).

python benchmarks/app_screenshots.py
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.app_server import chromium, serve
from common.command_line import run
from common.files import write_bytes

ROOT = Path(__file__).parent.parent
WIDE, NARROW = 1180, 400
SHOTS = {
    "app_compare": ("Compare", WIDE, "light", "Download: one-step student"),
    "app_trajectory": ("Trajectory", WIDE, "dark", "One-step student, t"),
    "app_explore": ("Explore", WIDE, "light", "airplane, automobile"),
    "app_narrow": ("Compare", NARROW, "dark", "Download: one-step student"),
}
"""File: page, width of the window, colours, and the text that comes last."""


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, default=ROOT / "checkpoints" / "pretrained", help="folder of the models")
    parser.add_argument("--out", type=Path, default=ROOT / "docs", help="folder of the pictures")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    with serve(args.models.resolve()) as (address, _), chromium() as browser:
        for name, (title, width, scheme, last) in SHOTS.items():
            page = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
            page.set_default_timeout(120_000)
            page.goto(f"{address}/{'' if title == 'Compare' else title.lower()}")
            page.get_by_text(last).wait_for()
            page.locator("[data-testid=stApp][data-test-script-state=notRunning]").wait_for()
            height = page.evaluate("document.querySelector('[data-testid=stMainBlockContainer]').scrollHeight")
            page.set_viewport_size({"width": width, "height": height})
            page.wait_for_timeout(500)  # for the layout to settle
            write_bytes(args.out / f"{name}.png", page.screenshot())
            print(args.out / f"{name}.png")


if __name__ == "__main__":
    run(main)
