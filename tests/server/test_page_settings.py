"""The page's settings, in Chromium: they reach the request, survive a reload, and wrong ones are not sent."""

import json

from playwright.sync_api import Page, expect
from server.fake_chat import FakeChat
from server.page_steps import answers, ask, finished

SCHEMA = {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}


def fill(page: Page, **fields: str) -> None:
    page.get_by_role("button", name="Settings", exact=True).click()
    for label, value in fields.items():
        page.get_by_label(label.replace("_", " ")).fill(value)
    page.get_by_role("button", name="Done").click()
    expect(page.get_by_role("dialog")).to_have_count(0)


def fill_all(page: Page) -> None:
    fill(
        page,
        Temperature="0.5",
        **{"Top-p": "0.9"},
        Max_tokens="64",
        Seed="7",
        System_prompt="Be brief.",
        JSON_schema_of_the_answers=json.dumps(SCHEMA),
    )


def test_settings_reach_the_request(page: Page, fake: FakeChat) -> None:
    fill_all(page)
    ask(page, "Hello")
    finished(page)
    assert fake.bodies == [
        {
            "model": "tiny",
            "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}],
            "stream": True,
            "stream_options": {"include_usage": True},
            "temperature": 0.5,
            "top_p": 0.9,
            "max_tokens": 64,
            "seed": 7,
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "answer", "strict": True, "schema": SCHEMA},
            },
        }
    ]


def test_settings_survive_a_reload_and_can_be_reset(page: Page, fake: FakeChat) -> None:
    fill_all(page)
    page.reload()
    ask(page, "Hello")
    finished(page)
    page.get_by_role("button", name="Settings", exact=True).click()
    expect(page.get_by_label("Temperature")).to_have_value("0.5")
    page.get_by_role("button", name="Reset").click()
    page.keyboard.press("Escape")
    ask(page, "Hello again")
    expect(answers(page)).to_have_count(2)
    finished(page)
    first, second = (set(body) for body in fake.bodies)
    assert first - second == {"temperature", "top_p", "max_tokens", "seed", "response_format"}


def test_a_temperature_of_zero_is_sent(page: Page, fake: FakeChat) -> None:
    fill(page, Temperature="0")
    ask(page, "Hello")
    finished(page)
    assert fake.bodies[0]["temperature"] == 0


def test_a_schema_that_is_none_is_refused_and_nothing_is_lost(page: Page, fake: FakeChat) -> None:
    for wrong, reason in (("{oops", "is no JSON"), ("[1]", "must be an object"), ("null", "must be an object")):
        page.get_by_role("button", name="Settings", exact=True).click()
        page.get_by_label("JSON schema").fill(wrong)
        expect(page.locator("#schema-problem")).to_contain_text(reason)
        expect(page.get_by_label("JSON schema")).to_have_attribute("aria-invalid", "true")
        page.keyboard.press("Escape")
        ask(page, "Hello")
        expect(page.locator("#notice")).to_contain_text(reason)
        expect(page.get_by_label("Message", exact=True)).to_have_value("Hello")
    assert not fake.bodies
    fill(page, JSON_schema="")
    page.get_by_label("Message", exact=True).press("Enter")
    expect(answers(page)).to_have_text(["Hello."])
    expect(page.locator("#notice")).to_be_hidden()


def test_regenerate_takes_the_present_settings(page: Page, fake: FakeChat) -> None:
    ask(page, "Hello")
    finished(page)
    fill(page, Seed="3")
    page.locator("body").press("Alt+r")
    expect(page.locator("#send")).to_have_text("Send")
    expect(page.locator(".figures")).to_have_count(1)
    assert [body.get("seed") for body in fake.bodies] == [None, 3]
