"""The page and the real server with the embedded model: what the one sends, the other takes, both ways."""

from collections.abc import Iterator

import pytest
from playwright.sync_api import BrowserContext, Page, expect
from server.page_steps import answers, ask, finished
from serving import serving, wait_until

import mistral_portable as mp


@pytest.fixture(scope="module")
def url(model: mp.Model) -> Iterator[str]:
    """The address of a server that wants a key."""
    with serving(model, keys=["secret"]) as running:
        yield f"{running.url}/"


@pytest.fixture
def real_page(context: BrowserContext, url: str) -> Page:
    """The page, with the key given."""
    page = context.new_page()
    page.goto(url)
    page.get_by_label("Key", exact=True).fill("secret")
    page.keyboard.press("Enter")
    expect(page.locator("#model")).to_have_text("tiny")
    return page


def set_up(page: Page, **fields: str) -> None:
    page.get_by_role("button", name="Settings", exact=True).click()
    for label, value in fields.items():
        page.get_by_label(label.replace("_", " ")).fill(value)
    page.keyboard.press("Escape")


def test_the_answer_is_the_models(real_page: Page, model: mp.Model) -> None:
    set_up(real_page, Temperature="0", Max_tokens="24")
    question = "Tom has a red ball. What color is the ball?"
    ask(real_page, question)
    finished(real_page)
    chat = [{"role": "user", "content": question}]
    expected = model.chat(chat, temperature=0, max_tokens=24)
    expect(answers(real_page)).to_have_text([expected.text.strip()])
    expect(real_page.locator(".figures")).to_contain_text(f"{len(expected.tokens)} tokens")
    expect(real_page.locator(".figures")).to_contain_text("tokens/s")
    # The second turn finds the first one in the cache.
    ask(real_page, "And what does Tom have?")
    expect(answers(real_page)).to_have_count(2)
    finished(real_page)
    figures = real_page.locator(".figures").last.inner_text()
    cached = int(figures.rpartition("·")[2].split()[0])
    assert cached >= expected.timings.prefill_tokens


def test_stop_frees_the_lane(real_page: Page, model: mp.Model) -> None:
    set_up(real_page, Seed="1")
    # An answer without an end: the page has no setting for it, so it is put into the request.
    real_page.route(
        "**/v1/chat/completions",
        lambda route: route.continue_(post_data={**route.request.post_data_json, "ignore_eos": True}),
    )
    ask(real_page, "Once upon a time")
    expect(answers(real_page)).not_to_be_empty()
    assert model.manager.lanes
    real_page.get_by_role("button", name="Stop").click()
    expect(real_page.locator(".assistant .note")).to_have_text("Stopped.")
    wait_until(lambda: not model.manager.lanes)


def test_the_servers_reasons_are_shown(real_page: Page) -> None:
    set_up(real_page, Max_tokens="0")
    ask(real_page, "Hello")
    expect(real_page.locator(".assistant .error")).to_contain_text("max_tokens")


def test_the_model_is_described(real_page: Page) -> None:
    real_page.get_by_role("button", name="Model", exact=True).click()
    info = real_page.locator("#info")
    expect(info).to_contain_text("numba, float32")
    expect(info.locator("figure")).to_have_count(2)


def test_the_page_needs_no_key_and_all_else_does(context: BrowserContext, url: str) -> None:
    requests = context.request
    assert requests.get(url).status == 200
    assert requests.get(f"{url}page/main.js").status == 200
    for path in ("info", "v1/models", "page/nothing"):
        assert requests.get(url + path).status == 401
    assert requests.post(f"{url}info/attention", data={"text": "a"}).status == 401
