"""Fixtures of the page's tests: Chromium and a fake server. Without Chromium the tests say that they are skipped."""

import shutil
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright
from server.fake_chat import FakeChat

import mistral_portable as mp

__all__ = ["browser", "browser_page", "context", "fake", "page", "running_fake"]

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

# A machine may be slow: nothing here is a measurement.
expect.set_options(timeout=30_000)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Headless Chromium. For a module at a time: playwright's event loop runs in this thread meanwhile, and other
    modules start their own."""
    if CHROMIUM is None:
        pytest.skip("not installed: chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def running_fake() -> Iterator[FakeChat]:
    """A fake server that shows the embedded model."""
    with mp.load("tiny", backend="reference") as model:
        fake = FakeChat(model)
        yield fake
        fake.close()


@pytest.fixture
def fake(running_fake: FakeChat) -> FakeChat:
    """The fake server, as new."""
    running_fake.reset()
    return running_fake


@pytest.fixture
def context(browser: Browser) -> Iterator[BrowserContext]:
    """A browser that knows nothing yet."""
    context = browser.new_context(viewport={"width": 1100, "height": 800})
    yield context
    context.close()


@pytest.fixture
def page(context: BrowserContext, fake: FakeChat) -> Iterator[Page]:
    """The page, loaded. A test fails if there was an error in its console."""
    page = context.new_page()
    problems: list[str] = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
    page.goto(fake.url)
    expect(page.locator("#model")).to_have_text("tiny")
    yield page
    # Refusals of the server are listed by the browser, too; tests look at what the page makes of them.
    assert not [problem for problem in problems if "Failed to load resource" not in problem]


@pytest.fixture(scope="module")
def browser_page(browser: Browser, running_fake: FakeChat) -> Iterator[Page]:
    """The page, for all examples of a drawn test: they call its modules, and leave it as it is."""
    page = browser.new_page()
    page.goto(running_fake.url)
    expect(page.locator("#model")).to_have_text("tiny")
    yield page
    page.close()
