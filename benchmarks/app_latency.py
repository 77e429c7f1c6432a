"""How long the app's visitor waits, in a real browser, for the one-step student's images; and the server's memory.

    python -m benchmarks.app_latency

From the click on "Generate" to the picture on the page, in headless Chromium (needs Playwright and Chromium), and how
much of it is the network's. The teacher is given a single step, so that its work does not reach into the next click.
"""

import argparse
import re
import statistics
from pathlib import Path

from benchmarks.app_server import chromium, serve
from common.command_line import COUNT, ArgumentParser, bounded, run
from common.device import choose_device, choose_precision, describe_machine
from common.errors import UserError

CLICK = """async alt => {
    const button = [...document.querySelectorAll("button")].find(button => button.textContent === "Generate");
    const start = performance.now();
    button.click();
    for (;;) {
        const image = [...document.images].find(image => image.alt.endsWith(alt));
        if (image && image.complete && image.naturalWidth) return performance.now() - start;
        await new Promise(requestAnimationFrame);
    }
}"""


def parse_args() -> argparse.Namespace:
    parser = ArgumentParser(__doc__)
    parser.add_argument("--models", type=Path, default=Path("checkpoints/pretrained"), help="folder of the models")
    parser.add_argument("--images", type=bounded(int, low=1, high=64), default=16, help="images of each model")
    parser.add_argument("--clicks", type=COUNT, default=20, help="that are timed")
    parser.add_argument("--requests", type=COUNT, default=200, help="after which memory is read for the last time")
    return parser.parse_args()


def resident_megabytes(process: int) -> float:
    status = Path(f"/proc/{process}/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+) kB", status)[1]) / 1e3


def main() -> None:
    args = parse_args()
    if args.requests <= args.clicks:
        raise UserError("--requests must be more than --clicks")

    waited, networks, memory = [], [], {}
    with serve(args.models.resolve()) as (address, server), chromium() as browser:
        page = browser.new_page()
        page.goto(address)
        page.get_by_text("How the teacher is run").click()
        page.get_by_label("Steps", exact=True).fill("1")
        page.get_by_label("Images", exact=True).fill(str(args.images))
        for request in range(1, args.requests + 1):
            seed = page.get_by_label("Seed", exact=True)
            seed.fill(str(request))
            seed.press("Tab")
            milliseconds = page.evaluate(CLICK, f"the one-step student, seed {request}")
            page.locator("[data-testid=stApp][data-test-script-state=notRunning]").wait_for(timeout=120_000)
            facts = (
                page.locator("[data-testid=stMarkdown]").filter(has_text="1 network call an image").last.inner_text()
            )
            if 1 < request <= args.clicks + 1:  # the first comes after the form's first settings
                waited.append(milliseconds)
                networks.append(1000 * float(re.search(r"^([\d.e-]+) s,", facts, flags=re.MULTILINE)[1]))
            if request in (args.requests // 4, args.requests):
                memory[request] = resident_megabytes(server.pid)

    outside = [total - network for total, network in zip(waited, networks, strict=True)]
    device = choose_device("auto")
    print(f"{describe_machine(device)}, {choose_precision('auto', device).name}, {args.images} images")
    for name, values in (("click to picture", waited), ("of that the network", networks), ("the rest", outside)):
        print(f"{name:20} median {statistics.median(values):6.1f} ms, most {max(values):6.1f} ms of {len(values)}")
    for request, megabytes in memory.items():
        print(f"resident memory after {request} requests: {megabytes:.0f} MB")


if __name__ == "__main__":
    run(main)
