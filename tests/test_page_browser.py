"""The page in Chromium: what a reader sees and does.

Wherever a test does not say otherwise, nothing is asked of another origin, and the console has no complaint.
With DS2DS_SCREENSHOT=1 the last test writes docs/page.png.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from playwright.sync_api import Browser, BrowserContext, Download, Page, expect, sync_playwright
from scripted import Texts, follow, is_clean, small_runtime
from serving import FakeBackend, listening

from ds2ds import DocumentCorpus, Runtime

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
PICTURE = Path(__file__).parent.parent / "docs" / "page.png"
CORPUS = Texts({"A": "about A, with [b](B) and more", "B": "about B"})
HOSTILE = "a<img src=x onerror=window.hacked=1><script>window.hacked=1</script>"
expect.set_options(timeout=20_000)  # a machine may be busy
PHONE = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}
SCRIPT = {"": " see [one](A), [two](C) and [three](B) now. [four](https://example.org)", "C": "written here"}


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        if os.environ.get("CI") == "true":
            pytest.fail(f"CI has none of {BROWSERS}: .ci/run is to install chromium")
        pytest.skip(f"none of {BROWSERS} is installed")
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield running
        running.close()


class Visits:
    """Pages of servers, each in a context of its own; what they ask for and complain of is kept."""

    def __init__(self, chromium: Browser) -> None:
        self.chromium = chromium
        self.contexts: list[BrowserContext] = []
        self.origins: list[str] = []
        self.requests: list[str] = []
        self.complaints: list[str] = []

    def __call__(self, url: str, hash: str = "", ready: bool = True, **options: Any) -> Page:
        """The page, ready to be used; `hash` is what stands behind # in its address."""
        self.contexts.append(self.chromium.new_context(**{"viewport": {"width": 1280, "height": 900}, **options}))
        self.origins.append(url)
        page = self.contexts[-1].new_page()
        page.set_default_timeout(15_000)
        page.on("request", lambda request: self.requests.append(request.url))
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("console", lambda told: self.complaints.append(told.text) if told.type == "error" else None)
        page.goto(f"{url}/#seed=1&max_tokens=100&{hash}")
        if ready:
            expect(page.locator("#model")).to_have_text("m")
        return page

    def close(self) -> None:
        while self.contexts:
            self.contexts.pop().close()


@pytest.fixture
def visit(chromium: Browser) -> Iterator[Visits]:
    visits = Visits(chromium)
    yield visits
    visits.close()
    assert not [url for url in visits.requests if not url.startswith((*visits.origins, "data:", "blob:"))]
    # A refused request is told on the console, whatever the page does with it.
    assert not [text for text in visits.complaints if "Failed to load resource" not in text]


@contextlib.contextmanager
def served(visit: Visits, source: Any = None, corpora: Any = None, **options: Any) -> Iterator[tuple[str, FastAPI]]:
    """A server whose readers go before it does: it would wait for them."""
    source = source or small_runtime()
    with listening(source, corpora or {"c": CORPUS}, **options) as (url, app):
        try:
            yield url, app
        finally:
            visit.close()
    assert is_clean(source)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, visit: Visits) -> Iterator[str]:
    """One whose model writes SCRIPT."""
    follow(monkeypatch, SCRIPT)
    with served(visit) as (url, _):
        yield url


def write(page: Page, prompt: str = "p") -> None:
    page.locator("#prompt").fill(prompt)
    page.locator("#prompt").press("Control+Enter")


def done(page: Page) -> None:
    expect(page.locator("#attention")).to_be_enabled()


def root_link(page: Page, name: str) -> Any:
    return page.locator("#root .link", has_text=re.compile(f"^{name}$"))


def has_class(name: str) -> re.Pattern[str]:
    return re.compile(rf"(^|\s){name}(\s|$)")


def saved(download: Download) -> str:
    return Path(download.path()).read_text(encoding="utf-8")


# A run


def test_a_document_streams_and_its_links_light_up(visit: Visits, server: str) -> None:
    page = visit(server)
    write(page, "Prompt:")
    done(page)
    expect(page.locator("#root .text")).to_have_text("Prompt: see one, two and three now. four")
    for name, outcome in (("one", "corpus"), ("two", "generated"), ("three", "corpus"), ("four", "not_followed")):
        expect(root_link(page, name)).to_have_class(has_class(outcome))
    assert "external" in (root_link(page, "four").get_attribute("title") or "")
    # The last one stands beside the root, the others behind their tabs.
    expect(page.get_by_role("tab")).to_have_text(["A", "C", "B"])
    expect(page.locator("#panels article:visible h2")).to_have_text("B")
    root, beside = page.locator("#root").bounding_box(), page.locator("#beside").bounding_box()
    assert root and beside and beside["x"] >= root["x"] + root["width"] and abs(beside["y"] - root["y"]) < 5
    root_link(page, "two").click()
    expect(page.locator("#panels article:visible")).to_contain_text("written here")
    expect(page.get_by_role("tab", name="C")).to_have_attribute("aria-selected", "true")
    # The graph has what the documents have.
    expect(page.locator("#graph .node .title")).to_have_text(["root", "A", "C", "B"])
    expect(page.locator("#graph .edge")).to_have_count(3)
    page.locator("#graph .node", has_text="A").first.click()
    expect(page.locator("#panels article:visible h2")).to_have_text("A")
    expect(page.locator("#status")).to_contain_text("prefilled")
    page.locator("#fold").click()
    expect(page.locator("#beside")).to_be_hidden()


def test_a_link_lights_up_while_the_rest_is_still_to_come(visit: Visits, monkeypatch: pytest.MonkeyPatch) -> None:
    follow(monkeypatch, SCRIPT)
    with served(visit) as (url, _):
        page = visit(url, "interactive=true")
        write(page)
        expect(root_link(page, "one")).to_have_class(has_class("asking"))
        expect(page.locator("#root article")).to_have_class(has_class("writing"))
        page.keyboard.press("f")
        expect(root_link(page, "one")).to_have_class(has_class("corpus"))
        expect(root_link(page, "two")).to_have_class(has_class("asking"))
        expect(page.get_by_role("tab", name="A")).to_be_visible()
        expect(page.locator("#root .text")).not_to_contain_text("now")


def test_links_within_links_documents(visit: Visits, server: str) -> None:
    page = visit(server, "max_link_depth=2")
    write(page)
    done(page)
    expect(page.get_by_role("tab")).to_have_text(["A", "B", "C"])
    root_link(page, "one").click()
    page.locator("#panels .link", has_text="b").first.click()
    expect(page.locator("#panels article:visible h2")).to_have_text("B")
    # B is below A, and A below the root, which reads B as well.
    tops = [page.locator("#graph .node", has_text=name).first.bounding_box() for name in ("root", "A", "B")]
    assert tops[0] and tops[1] and tops[2] and tops[0]["y"] < tops[1]["y"] < tops[2]["y"]
    expect(page.locator("#graph .edge")).to_have_count(4)


def test_stop_ends_the_run(visit: Visits, monkeypatch: pytest.MonkeyPatch) -> None:
    follow(monkeypatch, SCRIPT)
    with served(visit) as (url, app):
        page = visit(url, "interactive=true")
        write(page)
        expect(page.locator("#question")).to_be_visible()
        page.locator("#stop").click()
        expect(page.locator("#question")).to_be_hidden()
        expect(page.locator("#status")).to_contain_text("Stopped")
        expect(page.locator("#start")).to_be_enabled()
        expect(page.locator("#error")).to_be_hidden()
        for _ in range(500):
            if not len(app.state.page_sessions):
                break
            page.wait_for_timeout(10)
        assert not len(app.state.page_sessions)
        # And another one can begin.
        write(page)
        expect(page.locator("#question")).to_be_visible()


# At each link


def test_follow_skip_and_own_text(visit: Visits, server: str) -> None:
    page = visit(server)
    page.get_by_label("Ask me at each link").check()
    write(page)
    question = page.locator("#question")
    expect(question.locator("h2")).to_have_text("Follow “A”?")
    expect(question).to_contain_text("from the corpus")
    expect(question).to_contain_text("about A")
    question.get_by_role("button", name="Follow f").click()
    expect(question.locator("h2")).to_have_text("Follow “C”?")
    expect(question).to_contain_text("the model would write it")
    question.get_by_role("button", name="Skip").click()
    expect(root_link(page, "two")).to_have_class(has_class("skipped"))
    expect(question.locator("h2")).to_have_text("Follow “B”?")
    question.get_by_role("button", name="Own text").click()
    own = page.get_by_label("What it is to read instead")
    expect(own).to_be_focused()
    own.fill("  ")
    page.get_by_role("button", name="Read this").click()
    # What the server does not take is told, and can be mended.
    expect(page.locator("#question-error")).to_contain_text("not blank")
    own.fill("what I know of f, s and w")
    page.get_by_role("button", name="Read this").click()
    done(page)
    expect(root_link(page, "three")).to_have_class(has_class("supplied"))
    root_link(page, "three").click()
    expect(page.locator("#panels article:visible")).to_contain_text("what I know of f, s and w")
    expect(page.locator("#graph .node .told")).to_have_text(
        [re.compile("^root"), re.compile("corpus"), re.compile("supplied")]
    )


def test_all_from_now_on_and_end_here(visit: Visits, server: str) -> None:
    page = visit(server, "interactive=true")
    write(page)
    expect(page.locator("#question")).to_be_visible()
    page.keyboard.press("a")
    done(page)
    expect(page.get_by_role("tab")).to_have_text(["A", "C", "B"])
    write(page)
    expect(page.locator("#question")).to_be_visible()
    page.keyboard.press("Escape")
    done(page)
    expect(page.locator("#status")).to_contain_text("ended by quit")
    expect(page.get_by_role("tab")).to_have_count(0)


# From the keyboard


def test_keyboard_alone(visit: Visits, server: str) -> None:
    page = visit(server, "interactive=true")
    expect(page.locator("#prompt")).to_be_focused()
    page.keyboard.type("Hello")
    page.keyboard.press("Control+Enter")
    expect(page.locator("#question h2")).to_have_text("Follow “A”?")
    expect(page.get_by_role("button", name="Follow f")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("#question h2")).to_have_text("Follow “C”?")
    page.keyboard.press("w")
    page.keyboard.type("few words")
    page.keyboard.press("Escape")
    expect(page.locator("#choices")).to_be_visible()
    page.keyboard.press("w")
    page.keyboard.press("Control+A")
    page.keyboard.type("few words")
    page.keyboard.press("Control+Enter")
    expect(page.locator("#question h2")).to_have_text("Follow “B”?")
    page.keyboard.press("s")
    done(page)
    # Tabs by arrow keys, links and boxes by Enter.
    tab = page.get_by_role("tab", name="C")
    expect(tab).to_have_attribute("aria-selected", "true")
    tab.focus()
    page.keyboard.press("ArrowRight")
    expect(page.get_by_role("tab", name="A")).to_be_focused()
    expect(page.locator("#panels article:visible")).to_contain_text("about A")
    root_link(page, "two").focus()
    page.keyboard.press("Enter")
    expect(page.locator("#panels article:visible")).to_contain_text("few words")
    page.locator("#graph .node", has_text="A").first.focus()
    page.keyboard.press("Enter")
    expect(page.locator("#panels article:visible")).to_contain_text("about A")
    # All that can be pressed has a name, and Tab leads to it.
    page.locator("#prompt").focus()
    seen = set()
    for _ in range(40):
        page.keyboard.press("Tab")
        seen.add(page.evaluate_handle("document.activeElement").evaluate("e => e.id || e.textContent"))
    assert {
        "start",
        "interactive",
        "corpus",
        "seed",
        "new-seed",
        "more",
        "attention",
        "copy",
        "save",
        "tab-1",
        "fold",
    } <= seen
    for button in page.get_by_role("button").all():
        assert (button.text_content() or "").strip() or button.get_attribute("aria-label")


# Attention


def heat(page: Page, where: str) -> list[float]:
    found: list[float] = page.locator(f"{where} .tokens span").evaluate_all(
        "all => all.map(e => Number(getComputedStyle(e).getPropertyValue('--a')))"
    )
    return found


def test_colour_by_attention(visit: Visits, server: str) -> None:
    page = visit(server)
    write(page)
    done(page)
    page.locator("#attention").click()
    tokens = page.locator("#root .tokens span")
    expect(tokens.first).to_be_visible()
    expect(page.locator("#root .text")).to_be_hidden()
    expect(page.locator("#read-what")).to_contain_text("other documents")
    # Before the first link nothing else was read, after it something was.
    page.wait_for_timeout(200)
    values = heat(page, "#root")
    assert values[0] == 0 and values[-1] > 0
    background = tokens.last.evaluate("e => getComputedStyle(e).backgroundColor")
    assert background != tokens.first.evaluate("e => getComputedStyle(e).backgroundColor")
    # The last token: shares of all documents in view, colours in the one beside.
    tokens.last.click()
    expect(page.locator("#shares li")).to_have_count(4)
    shares = [float(text.rstrip("%")) for text in page.locator("#shares button > span:nth-child(2)").all_inner_texts()]
    assert abs(sum(shares) - 100) < 0.5
    page.wait_for_timeout(200)
    assert max(heat(page, "#panels article:not([hidden])")) > 0
    assert max(heat(page, "#root")) <= 1
    expect(page.locator("#root .tokens .linked.generated").first).to_have_text("[")
    # By arrow keys; Esc goes back to the overview.
    page.locator("#root .tokens").focus()
    page.keyboard.press("Home")
    expect(tokens.first).to_have_attribute("aria-selected", "true")
    expect(page.locator("#shares li")).to_have_count(1)
    expect(page.locator("#shares")).to_contain_text("100.0%")
    page.keyboard.press("ArrowRight")
    expect(tokens.nth(1)).to_have_attribute("aria-selected", "true")
    expect(tokens.first).to_have_attribute("aria-selected", "false")
    page.keyboard.press("Escape")
    expect(page.locator("#shares li")).to_have_count(0)
    expect(page.locator("#root [aria-selected=true]")).to_have_count(0)
    # A bar opens its document, whose tokens are there as well.
    tokens.last.click()
    page.locator("#shares button", has_text="A").first.click()
    expect(page.locator("#panels article:visible .tokens")).to_contain_text("about A")
    page.locator("#attention").click()
    expect(page.locator("#root .text")).to_be_visible()
    expect(page.locator("#read")).to_be_hidden()
    # A new run starts without.
    write(page)
    done(page)
    expect(page.locator("#attention")).to_have_attribute("aria-pressed", "false")


def test_a_result_that_is_not_kept_any_more(visit: Visits, monkeypatch: pytest.MonkeyPatch) -> None:
    follow(monkeypatch, SCRIPT)
    with served(visit) as (url, app):
        page = visit(url)
        write(page)
        done(page)
        app.state.page_sessions.seconds = -1
        page.locator("#attention").click()
        expect(page.locator("#error")).to_contain_text("still kept")


# Out of the page


def test_save_and_copy(visit: Visits, server: str) -> None:
    page = visit(server, permissions=["clipboard-read", "clipboard-write"])
    write(page, "Prompt:")
    done(page)
    root = "Prompt: see [one](A), [two](C) and [three](B) now. [four](https://example.org)"
    with page.expect_download() as all_of_it:
        page.locator("#save").click()
    assert all_of_it.value.suggested_filename == "root.md"
    expected = [root, "# A\n\nabout A, with [b](B) and more", "# C\n\nwritten here", "# B\n\nabout B"]
    assert saved(all_of_it.value) == "\n\n---\n\n".join(expected) + "\n"
    page.get_by_role("tab", name="C").click()
    with page.expect_download() as one:
        page.get_by_role("button", name="Save C as markdown").click()
    assert one.value.suggested_filename == "C.md" and saved(one.value) == "written here"
    page.locator("#root").get_by_role("button", name="Copy").click()
    expect(page.locator("#note")).to_have_text("Copied")
    page.locator("#prompt").fill("")
    page.locator("#prompt").press("Control+V")
    expect(page.locator("#prompt")).to_have_value(root)


def test_the_address_keeps_prompt_and_settings(visit: Visits, server: str) -> None:
    page = visit(server)
    page.locator("#prompt").fill("# Ä & b\n\nmore = 1 #x")
    page.locator("#more").click()
    page.get_by_label("Temperature").fill("0.25")
    page.locator("#set-eviction_policy").select_option("stop_new")
    page.get_by_label("Write what the corpus lacks").uncheck()
    page.locator("#corpus").select_option("none")
    page.get_by_role("button", name="New seed").click()
    seed = page.get_by_label("Seed", exact=True).input_value()
    assert seed != "1"
    other = visit(server, ready=False)
    other.goto("about:blank")
    other.goto(page.url)
    expect(other.locator("#model")).to_have_text("m")
    expect(other.locator("#prompt")).to_have_value("# Ä & b\n\nmore = 1 #x")
    other.locator("#more").click()
    expect(other.get_by_label("Temperature")).to_have_value("0.25")
    expect(other.locator("#set-eviction_policy")).to_have_value("stop_new")
    expect(other.get_by_label("Write what the corpus lacks")).not_to_be_checked()
    expect(other.locator("#corpus")).to_have_value("none")
    expect(other.get_by_label("Seed", exact=True)).to_have_value(seed)
    write(other)
    done(other)
    # Nothing in the corpus, and nothing may be written.
    expect(other.locator("#root .link.not_followed")).to_have_count(4)


def test_typing_writes_the_address_now_and_then(visit: Visits, server: str) -> None:
    page = visit(server)
    written = page.locator("#prompt").evaluate(
        """async prompt => {
            let written = 0;
            const replace = history.replaceState.bind(history);
            history.replaceState = (...state) => { written += 1; replace(...state); };
            for (let letters = 1; letters <= 300; letters++) {
                prompt.value = "x".repeat(letters);
                prompt.dispatchEvent(new Event("input", { bubbles: true }));
            }
            const end = performance.now() + 5000;
            while (!location.hash.includes(prompt.value) && performance.now() < end) {
                await new Promise(done => setTimeout(done, 20));
            }
            return written;
        }"""
    )
    assert written == 1 and "x" * 300 in page.url


# Errors


def test_what_the_server_says_is_shown_where_it_is_wrong(visit: Visits, server: str) -> None:
    page = visit(server, "max_tokens=511")
    write(page, "a long prompt")
    expect(page.locator("#error")).to_contain_text("the context has 512 tokens")
    expect(page.get_by_label("Tokens per document")).to_be_focused()
    expect(page.locator("#start")).to_be_enabled()
    page.get_by_label("Tokens per document").fill("100")
    page.locator("#start").click()
    done(page)
    expect(page.locator("#error")).to_be_hidden()
    # What the browser itself refuses is not sent, even where the settings are closed.
    page.get_by_label("Top p").fill("7")
    page.locator("#more").click()
    page.locator("#start").click()
    expect(page.get_by_label("Top p")).to_be_focused()


def test_a_broken_run_and_a_server_that_is_gone(visit: Visits) -> None:
    with listening(FakeBackend(error=RuntimeError("a detail"), error_at=2)) as (url, _):
        page = visit(url)
        write(page)
        expect(page.locator("#error")).to_have_text("internal error; the server's log tells more")
        expect(page.locator("#root article")).to_be_visible()
        expect(page.locator(".writing")).to_have_count(0)
    write(page)
    expect(page.locator("#error")).to_have_text("The server cannot be reached.")


def test_the_key_is_asked_for(visit: Visits, monkeypatch: pytest.MonkeyPatch) -> None:
    follow(monkeypatch, SCRIPT)
    with served(visit, api_key="secret") as (url, _):
        page = visit(url, ready=False)
        key = page.get_by_label("API key")
        expect(key).to_be_focused()
        expect(page.locator("#model")).to_have_text("needs an API key")
        key.fill("wrong")
        key.press("Enter")
        expect(page.locator("#model")).to_have_text("wrong API key")
        key.fill("ключ")
        key.press("Enter")
        expect(page.locator("#model")).to_have_text("wrong API key: it has other characters than ASCII’s")
        key.fill("secret")
        key.press("Enter")
        expect(page.locator("#model")).to_have_text("m")
        write(page)
        done(page)
        assert "secret" not in page.url


def test_hostile_texts_stay_texts(visit: Visits, monkeypatch: pytest.MonkeyPatch) -> None:
    text = f' </div><img src=x onerror="window.hacked=1"> [{HOSTILE}]({HOSTILE}) [x](javascript:window.hacked=1)'
    follow(monkeypatch, {"": text, HOSTILE: f"<script>window.hacked=1</script> {HOSTILE}"})
    with served(visit) as (url, _):
        page = visit(url, f"max_tokens=350&interactive=true&prompt={HOSTILE}")
        expect(page.locator("#prompt")).to_have_value(HOSTILE)
        page.locator("#start").click()
        expect(page.locator("#question h2")).to_have_text(f"Follow “{HOSTILE}”?")
        page.keyboard.press("f")
        done(page)
        expect(page.locator("#root .text")).to_contain_text(HOSTILE)
        expect(page.get_by_role("tab")).to_have_text([HOSTILE])
        page.locator("#root .link").last.click()
        page.locator("#attention").click()
        page.locator("#root .tokens span").last.click()
        expect(page.locator("#shares li")).to_have_count(2)
        with page.expect_download() as download:
            page.get_by_role("button", name=f"Save {HOSTILE} as markdown").click()
        assert re.fullmatch(r"\w+\.md", download.value.suggested_filename)
        assert page.locator("img, body script, iframe, a[href]").count() == 0
        assert page.evaluate_handle("window").evaluate("w => w.hacked ?? null") is None
        assert page.url.startswith(url)


def test_right_to_left(visit: Visits, monkeypatch: pytest.MonkeyPatch) -> None:
    hebrew = "זה מסמך!\n\nand English!"
    follow(monkeypatch, {"": hebrew})
    with served(visit) as (url, _):
        page = visit(url)
        write(page, "[one](A) ")
        done(page)
        # Where the first letter of a paragraph and the mark that ends it stand: a reader's first side, and the other.
        places = page.locator("#root .text").evaluate(
            """text => {
                const told = text.lastChild, box = text.getBoundingClientRect();
                const left = letter => {
                    const range = document.createRange();
                    range.setStart(told, told.data.indexOf(letter));
                    range.setEnd(told, told.data.indexOf(letter) + 1);
                    return (range.getBoundingClientRect().x - box.x) / box.width;
                };
                return ["ז", "!", "a"].map(left);
            }"""
        )
        first, mark, latin = places
        assert mark < first and latin < 0.1


def test_a_graph_of_hundreds_is_arranged_once_a_frame(visit: Visits, server: str) -> None:
    page = visit(server)
    arranged, places, height = page.locator("#graph").evaluate(
        """async figure => {
            const { Graph } = await import("/page/graph.js");
            const frame = () => new Promise(requestAnimationFrame);
            const graph = new Graph(() => {});
            const arrange = graph.arrange;
            let arranged = 0;
            graph.arrange = () => { arranged += 1; arrange.call(graph); };
            document.getElementById("result").hidden = false;
            for (let number = 0; number < 300; number++) {
                graph.add({ number, title: "t", source: "corpus", parent: number ? 0 : null });
            }
            await frame();
            await frame();
            const places = new Set([...figure.querySelectorAll(".node")].map(node => node.getAttribute("transform")));
            graph.connect(1, 2);
            graph.clear();
            await frame();
            await frame();
            return [arranged, places.size, figure.querySelector("svg").getAttribute("height")];
        }"""
    )
    assert arranged <= 2 and places == 300
    assert height is None  # a new one has nothing to arrange


# On a phone, and in the dark


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_on_a_phone(visit: Visits, server: str, scheme: str) -> None:
    page = visit(server, color_scheme=scheme, **PHONE)
    page.locator("#prompt").fill("p")
    page.locator("#start").tap()
    done(page)
    wide = page.locator("html").evaluate("e => e.scrollWidth > e.clientWidth")
    assert not wide
    # Safari zooms into inputs of less than 16 pixels.
    for field in page.locator("#prompt, #seed, #corpus").all():
        assert float(field.evaluate("e => parseFloat(getComputedStyle(e).fontSize)")) >= 15
    expect(page.locator("#beside")).to_be_hidden()
    root_link(page, "one").tap()
    sheet = page.locator("#beside").bounding_box()
    assert sheet and sheet["width"] == 390 and sheet["y"] > 250 and abs(sheet["y"] + sheet["height"] - 844) < 2
    expect(page.locator("#panels article:visible")).to_contain_text("about A")
    page.locator("#fold").tap()
    expect(page.locator("#beside")).to_be_hidden()
    page.locator("#attention").tap()
    page.locator("#root .tokens span").last.tap()
    expect(page.locator("#shares li")).to_have_count(4)


READABLE = (
    "h1",
    "#model",
    "#root .text",
    "#root .link.corpus",
    "#root .link.generated",
    "#root .link.not_followed",
    "#root header .faint",
    "#start",
    "#status",
)


def test_dark_and_light_are_readable(visit: Visits, server: str) -> None:
    papers = []
    for scheme in ("light", "dark"):
        page = visit(server, color_scheme=scheme, reduced_motion="reduce")
        write(page)
        done(page)
        papers.append(page.locator("body").evaluate("e => getComputedStyle(e).backgroundColor"))
        for where in (
            "h1",
            "#model",
            "#root .text",
            "#root .link.corpus",
            "#root .link.generated",
            "#root .link.not_followed",
            "#start",
            "#status",
            "#root header .faint",
        ):
            assert contrast(page, where) >= 4.5, (scheme, where)
        assert page.locator("#root .link.corpus").first.evaluate("e => getComputedStyle(e).animationName") == "none"
    assert papers[0] != papers[1]


def contrast(page: Page, where: str) -> float:
    """WCAG's contrast ratio of a text with all that is painted behind it."""
    value: float = page.locator(where).first.evaluate(
        """element => {
            const canvas = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
            const layers = [];
            for (let e = element; e; e = e.parentElement) layers.unshift(getComputedStyle(e).backgroundColor);
            const paint = colours => {
                canvas.clearRect(0, 0, 1, 1);
                for (const colour of colours) { canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1); }
                const [r, g, b] = [...canvas.getImageData(0, 0, 1, 1).data].map(v => v / 255)
                    .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
                return 0.2126 * r + 0.7152 * g + 0.0722 * b;
            };
            const one = paint(layers), other = paint([...layers, getComputedStyle(element).color]);
            return (Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05);
        }"""
    )
    return value


# The demo


def test_the_demo(visit: Visits) -> None:
    with (
        DocumentCorpus("demo") as corpus,
        served(visit, Runtime.from_pretrained("demo"), {"demo": corpus}, model="demo") as (url, _),
    ):
        page = visit(url, "seed=3&max_tokens=120", ready=False)
        expect(page.locator("#prompt")).to_have_value("# Incremental linker\n\n")
        page.locator("#prompt").press("Control+Enter")
        page.locator("#root .link").first.wait_for()
        done(page)
        expect(page.locator("#root h2")).to_have_text("Incremental linker")
        expect(page.locator("#beside article:visible")).to_contain_text(re.compile(r"\w+"))
        page.locator("#attention").click()
        page.locator("#root .tokens span", has_text=re.compile(r"\w\w\w")).last.click()
        expect(page.locator("#shares li").nth(1)).to_be_visible()
        if os.environ.get("DS2DS_SCREENSHOT"):
            picture(page)


def picture(page: Page) -> None:
    """Of the demo: what a token read, beside it one of the documents that it read."""
    page.locator("#root .tokens span", has_text=re.compile(r"\w\w\w")).last.click()
    page.get_by_role("tab").last.click()
    page.locator("#read-what").click()
    page.mouse.move(0, 0)
    page.wait_for_timeout(2000)  # boxes have come to rest, links have lit up
    page.evaluate_handle("window").evaluate("w => w.scrollTo(0, 0)")
    page.screenshot(path=PICTURE)
