"""What the tests of the app's pages share."""

from streamlit.testing.v1 import AppTest

TEACHER, FOUR_STEP, ONE_STEP = "Teacher", "Four-step student", "One-step student"


def submit(app: AppTest, button: str) -> AppTest:
    app.button(key=button).click().run()
    assert not app.exception
    return app


def subheaders(app: AppTest) -> list[str]:
    return [heading.value for heading in app.subheader]


def drawn(app: AppTest) -> dict:
    return app.session_state["columns"]
