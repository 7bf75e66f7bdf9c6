"""The page's looks in Chromium: narrow and wide, light and dark, by keyboard, for readers of screens."""

import io
import threading
from collections.abc import Callable

import pytest
from axe_playwright_python.sync_playwright import Axe
from PIL import Image
from playwright.sync_api import Page, expect
from server.fake_chat import FakeChat
from server.page_steps import answers, ask, finished

WIDE = "a_very_long_word_" * 20
FULL_ANSWER = f"# Title\n\n{WIDE}\n\n```\n{WIDE}\n```\n\n| {WIDE} | b |\n|---|---|\n| 1 | 2 |\n\n- [x] done\n\n> quoted"


def fill_conversation(page: Page, fake: FakeChat) -> None:
    """A conversation that has all that there is."""
    call = {"index": 0, "id": "abc", "function": {"name": "weather", "arguments": '{"city": "Paris"}'}}
    fake.say({"reasoning_content": "Let me see."}, FULL_ANSWER, {"tool_calls": [call]})
    ask(page, f"Hello {WIDE}")
    finished(page)
    fake.refuse(400, "no")
    ask(page, "Once more")
    expect(page.locator(".assistant .error")).to_have_text("no")


def brightness(page: Page) -> float:
    """Mean of a screenshot's pixels, from 0 to 255."""
    pixels = Image.open(io.BytesIO(page.screenshot())).convert("L").histogram()
    return sum(value * count for value, count in enumerate(pixels)) / sum(pixels)


def overflows(page: Page) -> list[str]:
    """All that is wider than the window, apart from boxes that scroll."""
    found: list[str] = page.evaluate("""() => {
      const wide = [...document.querySelectorAll("body, body *")].filter((element) =>
        !element.closest("pre, .wide, dialog, #sidebar") && element.getBoundingClientRect().right > innerWidth + 1);
      return wide.map((element) => element.outerHTML.slice(0, 80));
    }""")
    return found


@pytest.mark.parametrize("width", [320, 375, 768, 1400])
def test_nothing_is_wider_than_the_window(page: Page, fake: FakeChat, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 700})
    assert overflows(page) == []
    fill_conversation(page, fake)
    assert overflows(page) == []
    for name in ("Settings", "Model", "Shortcuts"):
        page.evaluate(f"document.getElementById('open-{name.lower().replace('model', 'info')}').click()")
        dialog = page.get_by_role("dialog")
        expect(dialog).to_be_visible()
        assert dialog.evaluate("dialog => dialog.scrollWidth <= dialog.clientWidth"), name
        assert dialog.evaluate("dialog => dialog.getBoundingClientRect().right <= innerWidth"), name
        page.keyboard.press("Escape")


def test_on_a_phone_the_conversations_are_a_drawer(page: Page, fake: FakeChat) -> None:
    page.set_viewport_size({"width": 375, "height": 700})
    ask(page, "Hello")
    finished(page)
    menu, new = page.locator("#menu"), page.get_by_role("button", name="New conversation")
    expect(new).to_be_hidden()
    menu.click()
    expect(menu).to_have_attribute("aria-expanded", "true")
    page.keyboard.press("Escape")
    expect(new).to_be_hidden()
    menu.click()
    new.click()
    expect(new).to_be_hidden()
    expect(answers(page)).to_have_count(0)
    menu.click()
    page.get_by_role("button", name="Hello", exact=True).click()
    expect(answers(page)).to_have_count(1)
    expect(new).to_be_hidden()


def test_light_and_dark(page: Page) -> None:
    """The system's choice counts until one is made, which survives a reload."""
    page.emulate_media(color_scheme="dark")
    assert brightness(page) < 60
    page.emulate_media(color_scheme="light")
    assert brightness(page) > 200
    page.get_by_role("button", name="Settings", exact=True).click()
    page.get_by_label("Colours").select_option("Dark")
    page.keyboard.press("Escape")
    assert brightness(page) < 60
    page.reload()
    assert brightness(page) < 60
    page.get_by_role("button", name="Settings", exact=True).click()
    page.get_by_label("Colours").select_option("Light")
    page.keyboard.press("Escape")
    page.emulate_media(color_scheme="dark")
    assert brightness(page) > 200


def _nothing(page: Page, fake: FakeChat) -> None: ...


def _writing(page: Page, fake: FakeChat) -> None:
    fake.say("Half of it", threading.Event())
    ask(page, "Hello")
    expect(answers(page)).to_have_text("Half of it")


def _editor(page: Page, fake: FakeChat) -> None:
    fill_conversation(page, fake)
    page.get_by_role("button", name="Edit").first.click()


def _settings(page: Page, fake: FakeChat) -> None:
    page.get_by_role("button", name="Settings", exact=True).click()
    page.get_by_label("JSON schema").fill("{oops")


def _model(page: Page, fake: FakeChat) -> None:
    page.get_by_role("button", name="Model", exact=True).click()
    expect(page.locator("#info figure")).to_have_count(2)


def _shortcuts(page: Page, fake: FakeChat) -> None:
    page.get_by_role("button", name="Shortcuts", exact=True).click()


def _key(page: Page, fake: FakeChat) -> None:
    fake.key = "secret"
    ask(page, "Hello")
    expect(page.get_by_role("dialog", name="API key")).to_be_visible()


STATES = [_nothing, fill_conversation, _writing, _editor, _settings, _model, _shortcuts, _key]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("state", STATES, ids=lambda state: state.__name__.strip("_"))
def test_axe_finds_nothing(page: Page, fake: FakeChat, state: Callable[[Page, FakeChat], None], scheme: str) -> None:
    """Labels, roles, contrast and the rest of axe-core's rules."""
    page.emulate_media(color_scheme=scheme, reduced_motion="reduce")  # type: ignore[arg-type]
    state(page, fake)
    results = Axe().run(page)
    assert results.violations_count == 0, results.generate_report()


def test_a_reader_of_screens_hears_begin_and_end(page: Page, fake: FakeChat) -> None:
    more = threading.Event()
    fake.say("Half of it", more)
    ask(page, "Hello")
    expect(page.get_by_role("status")).to_have_text("The answer is being written.")
    more.set()
    expect(page.get_by_role("status")).to_have_text("The answer is complete.")


def test_shortcuts(page: Page, fake: FakeChat) -> None:
    ask(page, "First")
    finished(page)
    page.keyboard.press("Alt+n")
    expect(page.get_by_label("Message", exact=True)).to_be_focused()
    ask(page, "Second")
    expect(answers(page)).to_have_count(1)
    finished(page)
    for key, title in (("Alt+ArrowDown", "First"), ("Alt+ArrowUp", "Second")):
        page.keyboard.press(key)
        expect(page.locator("#title")).to_have_text(title)
    page.keyboard.press("Alt+r")
    expect(page.locator("#send")).to_have_text("Send")
    for key, title in (("Alt+s", "Settings"), ("Alt+i", "Model")):
        page.keyboard.press(key)
        expect(page.get_by_role("dialog", name=title)).to_be_visible()
        page.keyboard.press("Escape")
        expect(page.get_by_role("dialog")).to_have_count(0)
    page.keyboard.type("?")  # text, in a field
    expect(page.get_by_label("Message", exact=True)).to_have_value("?")
    page.locator("#scroll").focus()
    page.keyboard.press("?")
    expect(page.get_by_role("dialog", name="Shortcuts")).to_be_visible()
    page.keyboard.press("Escape")
    page.keyboard.press("/")
    expect(page.get_by_label("Message", exact=True)).to_be_focused()
    expect(page.get_by_label("Message", exact=True)).to_have_value("?")
    assert [body["messages"][-1]["content"] for body in fake.bodies] == ["First", "Second", "Second"]


def test_the_shortcuts_that_are_listed_are_those_that_there_are(page: Page) -> None:
    page.get_by_role("button", name="Shortcuts", exact=True).click()
    listed = page.locator("dl.keys dt").all_inner_texts()
    known = ["Enter", "Shift+Enter", "Esc", "↑", "Alt+R", "Alt+N", "Alt+↑, ↓", "Alt+S", "Alt+I", "/", "?"]
    assert listed == known


def test_the_model_and_its_attention(page: Page, fake: FakeChat) -> None:
    page.get_by_role("button", name="Model", exact=True).click()
    info = page.locator("#info")
    expect(info).to_contain_text("reference, float32")
    expect(info.get_by_role("img", name="Of 32,768 tokens each sees the last 64.")).to_be_visible()
    field = page.get_by_label("Text whose attention is drawn")
    field.fill("Once upon a time there was a very small dog. " * 12)
    expect(info.get_by_role("img", name="128 tokens, each of which sees the last 64.")).to_be_visible()
    expect(info).to_contain_text("more tokens are not drawn")
    # Row 100 begins at token 37: it sees 64.
    cell = 14
    seen = [row.bounding_box() for row in page.locator("#info .wide .seen").all()]
    assert len(seen) == 128
    first, hundred = seen[0], seen[100]
    assert first is not None
    assert hundred is not None
    assert hundred["x"] - first["x"] == pytest.approx(37 * cell, abs=0.1)
    assert hundred["width"] == pytest.approx(64 * cell - 2, abs=0.1)
    field.fill("")
    expect(page.locator("#info .wide .seen")).to_have_count(0)
