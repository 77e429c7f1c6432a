"""Teacher and students side by side, from the same noise, in the browser.

Reads   the checkpoints below checkpoints/, or below the folder given after `--`, and docs/results.jsonl
Run     streamlit run app.py
        streamlit run app.py -- demo/models

Each page is a script in app_pages/; this one is the frame around them, with the choice of models.
"""

import sys
from pathlib import Path

import streamlit as st

from app_pages.models import choose_models
from common.memory import keep_freed_memory

ROOT = Path(__file__).parent
PAGES = {"compare": "Compare", "trajectory": "Trajectory", "explore": "Explore", "results": "Results"}


def main() -> None:
    keep_freed_memory()
    st.set_page_config(page_title="Rectified-flow distillation", layout="wide")
    pages = [
        st.Page(f"app_pages/{name}.py", title=title, url_path=name, default=name == "compare")
        for name, title in PAGES.items()
    ]
    page = st.navigation(pages, position="top")
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "checkpoints"
    st.session_state.models = choose_models(folder)
    page.run()


main()
