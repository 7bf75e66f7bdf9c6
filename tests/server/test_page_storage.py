"""The page's storage in the browser: a full storage, damaged entries; and the events of a stream, cut anywhere."""

import json

from hypothesis import given
from hypothesis import strategies as st
from playwright.sync_api import BrowserContext, Page, expect
from server.fake_chat import FakeChat
from server.page_steps import answers, ask, finished

FILL = """() => {
  let text = "x".repeat(1 << 20);
  for (let index = 0; text; index++) {
    try { localStorage.setItem(`filler.${index}`, text); }
    catch { text = text.slice(0, text.length >> 1); }
  }
}"""

DAMAGED = {
    "mistral-portable.chat.a": "{oops",
    "mistral-portable.chat.b": "null",
    "mistral-portable.chat.c": json.dumps({"id": "another", "title": "t", "updated": 1, "messages": []}),
    "mistral-portable.chat.d": json.dumps({"id": "d", "title": "t", "updated": 1, "messages": [{"role": "user"}]}),
    "mistral-portable.chat.e": json.dumps({"id": "e", "title": "t", "updated": 1, "messages": [None]}),
    "mistral-portable.settings": json.dumps({"seed": {"a": 1}, "temperature": "0.5"}),
    "another": "not ours",
}

# Cuts a text's bytes at the given places, sends them as a body, and lists the events.
READ = """async ([text, cuts]) => {
  const { events } = await import("/page/events.js");
  const bytes = new TextEncoder().encode(text);
  const ends = [...cuts.map((cut) => cut % (bytes.length + 1)), bytes.length].sort((a, b) => a - b);
  let begin = 0;
  const parts = ends.map((end) => bytes.slice(begin, (begin = end)));
  const body = new ReadableStream({
    start(controller) {
      for (const part of parts) controller.enqueue(part);
      controller.close();
    },
  });
  const found = [];
  for await (const data of events(body)) found.push(data);
  return found;
}"""


def test_a_full_storage_is_said_and_loses_nothing_before_the_page_closes(page: Page, fake: FakeChat) -> None:
    ask(page, "Before")
    finished(page)
    page.evaluate(FILL)
    page.get_by_role("button", name="New conversation").click()
    fake.say("This goes on.")
    ask(page, "After")
    expect(answers(page)).to_have_text(["This goes on."])
    expect(page.locator("#notice")).to_contain_text("storage is full")
    page.get_by_role("button", name="Before", exact=True).click()
    page.get_by_role("button", name="After", exact=True).click()
    expect(answers(page)).to_have_text(["This goes on."])
    page.get_by_role("button", name="Close the notice").click()
    expect(page.locator("#notice")).to_be_hidden()


def test_damaged_entries_are_passed_over(context: BrowserContext, fake: FakeChat) -> None:
    context.add_init_script(f"for (const [k, v] of Object.entries({json.dumps(DAMAGED)})) localStorage.setItem(k, v)")
    page = context.new_page()
    page.goto(fake.url)
    expect(page.locator("#model")).to_have_text("tiny")
    expect(page.locator("#conversations li")).to_have_count(0)
    ask(page, "Hello")
    expect(answers(page)).to_have_text(["Hello."])
    finished(page)
    assert "seed" not in fake.bodies[0]
    assert fake.bodies[0]["temperature"] == 0.5


LINE = st.text(st.characters(codec="utf-8", exclude_characters="\r\n"), max_size=12)


@given(
    sent=st.lists(LINE.map(lambda line: (True, line)) | LINE.map(lambda line: (False, line)), max_size=8),
    ending=st.sampled_from(["\n", "\r\n"]),
    cuts=st.lists(st.integers(0, 500), max_size=8),
)
def test_events_may_be_cut_anywhere(
    browser_page: Page, sent: list[tuple[bool, str]], ending: str, cuts: list[int]
) -> None:
    """Pairs are (whether it is an event, or else a comment; its text)."""
    text = "".join(f"{'data: ' if is_event else ': '}{line}{ending * 2}" for is_event, line in sent)
    assert browser_page.evaluate(READ, [text, cuts]) == [line for is_event, line in sent if is_event]


def test_an_event_of_several_lines(browser_page: Page) -> None:
    assert browser_page.evaluate(READ, ["event: x\ndata: a\ndata:b\nid: 1\n\ndata: unfinished", []]) == ["a\nb"]
