"""Steps of a user of the page, and what is to be seen then."""

from playwright.sync_api import Locator, Page, expect


def ask(page: Page, text: str) -> None:
    """Write a message and send it."""
    page.get_by_label("Message", exact=True).fill(text)
    page.keyboard.press("Enter")


def answers(page: Page) -> Locator:
    """The texts of the answers, without their reasoning."""
    return page.get_by_role("article", name="Answer").locator("> .text")


def questions(page: Page) -> Locator:
    """The texts of the user's messages."""
    return page.get_by_role("article", name="You").locator("> .text")


def finished(page: Page) -> None:
    """Wait until no answer is being written in the conversation."""
    expect(page.locator("#send")).to_have_text("Send")
