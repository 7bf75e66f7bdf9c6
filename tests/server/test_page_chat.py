"""The page in Chromium: send, stream, stop, edit, regenerate, several conversations, errors."""

import threading

import pytest
from playwright.sync_api import Page, expect
from server.fake_chat import FakeChat
from server.page_steps import answers, ask, finished, questions


def test_an_answer_streams(page: Page, fake: FakeChat) -> None:
    more = threading.Event()
    fake.say("Once upon", more, " a time.")
    ask(page, "Tell me a story")
    expect(answers(page)).to_have_text("Once upon")  # the rest is not sent yet
    expect(page.locator("#send")).to_have_text("Stop")
    more.set()
    expect(answers(page)).to_have_text("Once upon a time.")
    finished(page)
    [body] = fake.bodies
    assert body == {
        "model": "tiny",
        "messages": [{"role": "user", "content": "Tell me a story"}],
        "stream": True,
        "stream_options": {"include_usage": True},
    }


def test_figures_of_the_last_chunk(page: Page) -> None:
    ask(page, "Hello")
    expect(page.locator(".figures")).to_have_text("12 tokens · 48.0 tokens/s · prompt of 300 · 256 from the cache")


def test_the_history_is_sent(page: Page, fake: FakeChat) -> None:
    fake.say({"reasoning_content": "Easy."}, "Blue.")
    ask(page, "What color is the sky?")
    finished(page)
    expect(answers(page)).to_have_text("Blue.")
    ask(page, "And the sun?")
    expect(answers(page)).to_have_count(2)
    finished(page)
    assert fake.bodies[1]["messages"] == [
        {"role": "user", "content": "What color is the sky?"},
        {"role": "assistant", "content": "Blue."},
        {"role": "user", "content": "And the sun?"},
    ]


def test_enter_sends_and_shift_enter_begins_a_line(page: Page, fake: FakeChat) -> None:
    field = page.get_by_label("Message", exact=True)
    field.press_sequentially("one")
    height = field.evaluate("field => field.clientHeight")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("two")
    assert field.evaluate("field => field.clientHeight") > height
    assert not fake.bodies
    page.keyboard.press("Enter")
    expect(questions(page)).to_have_text("one\ntwo")
    expect(field).to_have_value("")
    assert field.evaluate("field => field.clientHeight") == height


def test_enter_within_an_input_method_does_not_send(page: Page, fake: FakeChat) -> None:
    field = page.get_by_label("Message", exact=True)
    field.fill("にほん")
    field.evaluate(
        "field => field.dispatchEvent(new KeyboardEvent('keydown', {key: 'Enter', isComposing: true, bubbles: true}))"
    )
    expect(field).to_have_value("にほん")
    expect(questions(page)).to_have_count(0)
    assert not fake.bodies


@pytest.mark.parametrize("how", ["button", "Escape"])
def test_stop_ends_the_request_and_keeps_the_text(page: Page, fake: FakeChat, how: str) -> None:
    fake.say("Half of it", threading.Event())
    ask(page, "Count to a million")
    expect(answers(page)).to_have_text("Half of it")
    if how == "button":
        page.get_by_role("button", name="Stop").click()
    else:
        page.keyboard.press("Escape")
    finished(page)
    assert fake.left.wait(30), "the server was not told"
    expect(answers(page)).to_have_text("Half of it")
    expect(page.locator(".assistant .note")).to_have_text("Stopped.")


def test_regenerate(page: Page, fake: FakeChat) -> None:
    fake.say("The first.")
    fake.say("The second.")
    ask(page, "Give me a number")
    finished(page)
    page.get_by_role("button", name="Regenerate").click()
    expect(answers(page)).to_have_text("The second.")
    finished(page)
    assert fake.bodies[0] == fake.bodies[1]


def test_regenerating_an_earlier_answer_drops_what_followed(page: Page, fake: FakeChat) -> None:
    for text in ("A", "B", "C"):
        fake.say(text)
    ask(page, "one")
    finished(page)
    ask(page, "two")
    expect(answers(page)).to_have_count(2)
    finished(page)
    page.get_by_role("button", name="Regenerate").first.click()
    expect(answers(page)).to_have_text(["C"])
    expect(questions(page)).to_have_text(["one"])


def test_edit(page: Page, fake: FakeChat) -> None:
    for text in ("A", "B", "C"):
        fake.say(text)
    ask(page, "one")
    finished(page)
    ask(page, "two")
    expect(answers(page)).to_have_count(2)
    finished(page)
    page.get_by_role("button", name="Edit").first.click()
    editor = page.get_by_label("Edit the message")
    expect(editor).to_have_value("one")
    editor.fill("uno")
    page.keyboard.press("Enter")
    expect(questions(page)).to_have_text(["uno"])
    expect(answers(page)).to_have_text(["C"])
    assert fake.bodies[2]["messages"] == [{"role": "user", "content": "uno"}]


def test_an_edit_can_be_given_up(page: Page, fake: FakeChat) -> None:
    ask(page, "one")
    finished(page)
    page.get_by_label("Message", exact=True).focus()
    page.keyboard.press("ArrowUp")  # in the empty field
    page.get_by_label("Edit the message").fill("another")
    page.keyboard.press("Escape")
    expect(page.get_by_label("Edit the message")).to_have_count(0)
    expect(questions(page)).to_have_text(["one"])
    expect(answers(page)).to_have_text(["Hello."])
    assert len(fake.bodies) == 1


def test_conversations_are_apart_and_survive_a_reload(page: Page, fake: FakeChat) -> None:
    fake.say("Answer A")
    fake.say("Answer B")
    ask(page, "Question A")
    finished(page)
    page.get_by_role("button", name="New conversation").click()
    expect(answers(page)).to_have_count(0)
    ask(page, "Question B")
    expect(answers(page)).to_have_text(["Answer B"])
    finished(page)
    assert fake.bodies[1]["messages"] == [{"role": "user", "content": "Question B"}]
    page.reload()
    expect(answers(page)).to_have_text(["Answer B"])
    page.get_by_role("button", name="Question A", exact=True).click()
    expect(answers(page)).to_have_text(["Answer A"])
    expect(page.locator("[aria-current]")).to_have_text("Question A")
    expect(page.locator(".figures")).to_contain_text("12 tokens")


def test_a_conversation_can_be_deleted(page: Page) -> None:
    ask(page, "Question A")
    finished(page)
    page.once("dialog", lambda dialog: dialog.dismiss())
    page.get_by_role("button", name="Delete Question A").click()
    expect(answers(page)).to_have_count(1)
    page.once("dialog", lambda dialog: dialog.accept())
    page.get_by_role("button", name="Delete Question A").click()
    expect(answers(page)).to_have_count(0)
    page.reload()
    expect(page.locator("#conversations li")).to_have_count(0)


def test_an_answer_goes_on_behind_another_conversation(page: Page, fake: FakeChat) -> None:
    more = threading.Event()
    fake.say("Begun", more, ", done.")
    ask(page, "The slow one")
    expect(answers(page)).to_have_text("Begun")
    page.get_by_role("button", name="New conversation").click()
    ask(page, "The quick one")
    expect(answers(page)).to_have_text(["Hello."])
    finished(page)
    expect(page.locator("#conversations .running .open")).to_have_text(["The slow one"])
    more.set()
    expect(page.locator("#conversations .running")).to_have_count(0)
    expect(answers(page)).to_have_text(["Hello."])
    page.get_by_role("button", name="The slow one", exact=True).click()
    expect(answers(page)).to_have_text(["Begun, done."])


def test_a_reload_amid_an_answer_keeps_its_beginning(page: Page, fake: FakeChat) -> None:
    fake.say("The beginning", threading.Event())
    ask(page, "A long one")
    expect(answers(page)).to_have_text("The beginning")
    page.reload()
    expect(answers(page)).to_have_text("The beginning")
    expect(page.locator(".assistant .note")).to_contain_text("Interrupted")
    assert fake.left.wait(30)
    finished(page)


def test_another_tab_shows_what_this_one_writes(page: Page, fake: FakeChat) -> None:
    other = page.context.new_page()
    other.goto(fake.url)
    ask(page, "From the first tab")
    finished(page)
    other.get_by_role("button", name="From the first tab", exact=True).click()
    expect(answers(other)).to_have_text(["Hello."])


def test_reasoning_is_folded(page: Page, fake: FakeChat) -> None:
    more = threading.Event()
    # The server sends both names; the text is to be shown once.
    fake.say({"reasoning": "Let me see.", "reasoning_content": "Let me see."}, more, "Forty-two.")
    ask(page, "What is the answer?")
    expect(page.locator(".reasoning summary")).to_have_text("Thinking…")
    expect(page.locator(".reasoning .text")).to_be_hidden()
    page.locator(".reasoning summary").click()
    more.set()
    expect(answers(page)).to_have_text(["Forty-two."])
    expect(page.locator(".reasoning summary")).to_have_text("Reasoning")
    expect(page.locator(".reasoning .text")).to_have_text("Let me see.")


def test_tool_calls_are_shown(page: Page, fake: FakeChat) -> None:
    def piece(index: int, arguments: str, **more: str) -> dict[str, object]:
        names = {"name": more["name"]} if "name" in more else {}
        return {"tool_calls": [{"index": index, "id": "abc", "function": {"arguments": arguments, **names}}]}

    fake.say(piece(0, '{"city": ', name="weather"), piece(0, '"Paris"}'), piece(1, "{}", name="<b>time</b>"))
    ask(page, "What is the weather?")
    finished(page)
    calls = page.locator(".tool-call")
    expect(calls).to_have_count(2)
    expect(calls.nth(0).locator(".tool-name")).to_have_text("Calls weather")
    expect(calls.nth(0).locator("pre")).to_have_text('{\n  "city": "Paris"\n}')
    expect(calls.nth(1).locator(".tool-name")).to_have_text("Calls <b>time</b>")


def test_an_answer_that_is_cut_off_says_so(page: Page, fake: FakeChat) -> None:
    fake.say("Cut", {"choices": [{"index": 0, "delta": {}, "finish_reason": "length"}]})
    ask(page, "Hello")
    expect(page.locator(".assistant .note")).to_contain_text("limit of tokens")


def test_refusals_are_shown_and_can_be_tried_again(page: Page, fake: FakeChat) -> None:
    fake.refuse(400, "max_tokens: must be at least 1")
    fake.refuse(503, "all lanes are busy", **{"Retry-After": "7"})
    ask(page, "Hello")
    error = page.locator(".assistant .error")
    expect(error).to_have_text("max_tokens: must be at least 1")
    page.get_by_role("button", name="Regenerate").click()
    expect(error).to_have_text("all lanes are busy (try again in 7 s)")
    page.get_by_role("button", name="Regenerate").click()
    expect(answers(page)).to_have_text(["Hello."])
    expect(error).to_have_count(0)


def test_an_error_amid_an_answer_keeps_its_beginning(page: Page, fake: FakeChat) -> None:
    fake.say("So far", {"error": {"code": 500, "message": "logits are not finite"}})
    ask(page, "Hello")
    expect(page.locator(".assistant .error")).to_have_text("logits are not finite")
    expect(answers(page)).to_have_text(["So far"])


def test_a_server_that_is_gone(page: Page) -> None:
    page.route("**/v1/chat/completions", lambda route: route.abort())
    ask(page, "Hello")
    expect(page.locator(".assistant .error")).to_have_text("The server cannot be reached. Is it running?")


def test_a_stream_that_breaks_off(page: Page) -> None:
    chunk = 'data: {"choices": [{"index": 0, "delta": {"content": "So far"}}]}\n\n'
    page.route("**/v1/chat/completions", lambda route: route.fulfill(body=chunk, content_type="text/event-stream"))
    ask(page, "Hello")
    expect(page.locator(".assistant .error")).to_have_text("The connection ended before the answer did.")
    expect(answers(page)).to_have_text(["So far"])
