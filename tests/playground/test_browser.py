"""The page in a browser: what a person sees, sets and flips, by mouse and by keyboard, on large and small screens."""

import re
import shutil
import threading
from collections.abc import Iterator

import pytest

from ssm_metarl_gym.playground.server import make_server

playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright, which drives a browser")
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(BROWSER is None, reason="needs Chromium or Chrome on the path"),
]
KEYS = {"cartpole": "1", "pendulum": "2", "point": "3"}
# How many steps it takes the policy to be at its goal, and what it is then reversed in until it is lost without help.
STEPS = {"cartpole": (80, 60), "pendulum": (80, 60), "point": (60, 40)}
PHONE = {"width": 390, "height": 844}


@pytest.fixture(scope="module")
def address():
    server = make_server(0)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://localhost:{server.server_port}/"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=BROWSER)
        yield browser
        browser.close()


@pytest.fixture
def page(browser, address) -> Iterator:
    """The page, paused, whose console must stay empty."""
    context = browser.new_context(viewport={"width": 1280, "height": 800}, reduced_motion="reduce")
    page = context.new_page()
    complaints = []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto(address)
    page.wait_for_selector("body[data-ready=cartpole]")
    yield page
    context.close()
    assert complaints == []


def choose(page, family):
    page.keyboard.press(KEYS[family])
    page.wait_for_selector(f"body[data-ready={family}]")


def step(page, count):
    """Take steps, and give the errors of both models after each of them."""
    # All at once, as each look into the browser takes longer than a step.
    labels = page.evaluate(
        """(count) => Array.from({ length: count }, () => {
            document.body.dispatchEvent(new KeyboardEvent("keydown", { key: "s", bubbles: true }));
            return document.querySelector("#chart-error").ariaLabel;
        })""",
        count,
    )
    return [[float(number) for number in re.findall(r"[\d.]+(?:e-\d+)?", label)] for label in labels]


def returns(page):
    return [float(page.text_content(f"#return-{i}")) for i in (0, 1)]


@pytest.mark.parametrize("family", KEYS)
def test_after_a_flip_the_error_rises_and_falls_and_the_returns_part(page, family):
    choose(page, family)
    before, after = STEPS[family]
    calm = step(page, before)[-1]
    assert page.text_content("#status-1") == "leaves the policy alone"
    assert returns(page)[0] == returns(page)[1]
    page.click("#flip-0")
    assert "reversed" in page.text_content("#wrong-0")
    flipped = step(page, after)
    adapted = [error for error, _ in flipped]
    assert max(adapted) > 100 * calm[0]
    assert min(adapted[adapted.index(max(adapted)) :]) < 0.01 * max(adapted)
    as_it_is, corrected = returns(page)
    assert corrected > as_it_is + 5


def test_a_motor_is_flipped_by_its_button_and_by_its_key(page):
    words = page.text_content("#flip-0")
    page.keyboard.press("f")
    assert page.text_content("#flip-0") != words
    page.click("#flip-0")
    assert page.text_content("#flip-0") == words
    choose(page, "point")
    page.keyboard.press("g")
    assert page.text_content("#wrong-1") == "motor 2 reversed"


def test_sliders_change_the_physics_of_both_sides_and_can_be_put_back(page):
    assert page.text_content("output[for=slider-length]") == "0.5 m"
    page.focus("#slider-length")
    for _ in range(4):
        page.keyboard.press("ArrowRight")
    assert page.text_content("output[for=slider-length]") == "0.7 m"
    (calm,) = step(page, 1)[0][1:]
    page.focus("#slider-noise")
    page.keyboard.press("End")
    assert max(reference for _, reference in step(page, 10)) > 100 * calm
    page.focus("#slider-share")
    page.keyboard.press("End")
    page.select_option("#kind", "NaN")
    assert [] in step(page, 20)  # an error that is no number
    page.click("#default")
    assert page.text_content("output[for=slider-length]") == "0.5 m"


def test_it_runs_pauses_and_begins_anew(page):
    assert page.text_content("#clock") == "step 0 of 500"
    page.select_option("#speed", "4")
    page.click("#pause")
    page.wait_for_function("parseInt(document.querySelector('#clock').textContent.slice(5)) > 40")
    page.keyboard.press("Tab")  # away from the button, whose own key is the space key, too
    page.keyboard.press("r")
    page.click("#pause")
    paused = page.text_content("#clock")
    page.wait_for_timeout(200)
    assert page.text_content("#clock") == paused


def test_the_keyboard_reaches_every_control_and_each_has_a_name(page):
    wanted = page.evaluate("""() => [...document.querySelectorAll("button, select, input")].map((one) => one.id)""")
    unnamed = page.evaluate(
        """() => [...document.querySelectorAll("button, select, input")]
            .filter((one) => !(one.textContent.trim() || one.labels?.length)).map((one) => one.id)"""
    )
    assert unnamed == []
    reached = set()
    for _ in wanted[2:]:  # of the three tasks, one is reached, and arrow keys go on to the others
        page.keyboard.press("Tab")
        focused, outline = page.evaluate(
            """() => {
                const one = document.activeElement;
                const shown = one.type === "radio" ? one.parentElement : one;
                return [one.id, getComputedStyle(shown).outlineStyle];
            }"""
        )
        assert outline == "solid", focused
        reached.add(focused)
    assert reached >= {one for one in wanted if not one.startswith("task-")}
    page.focus("#task-cartpole")
    page.keyboard.press("ArrowRight")
    page.wait_for_selector("body[data-ready=pendulum]")


@pytest.mark.parametrize("family", KEYS)
def test_a_phone_shows_it_without_scrolling_sideways(page, family):
    page.set_viewport_size(PHONE)
    choose(page, family)
    page.keyboard.press("f")
    step(page, 3)
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    # What is flipped and what comes of it are seen at once.
    box = page.locator("#flip-0").bounding_box()
    assert box["y"] + box["height"] < PHONE["height"]


def test_a_damaged_bundle_is_told(browser, address):
    context = browser.new_context(reduced_motion="reduce")
    page = context.new_page()
    page.route("**/cartpole.safetensors", lambda route: route.fulfill(body=b"\x00" * 100))
    page.goto(address)
    page.wait_for_selector("text=cartpole.safetensors is damaged")
    context.close()


def test_the_first_family_may_be_missing(browser, address):
    page = browser.new_page(reduced_motion="reduce")
    page.route("**/cartpole.safetensors", lambda route: route.fulfill(status=404))
    page.goto(address)
    page.wait_for_selector("#problem:not([hidden])")
    for name in ("step", "restart", "default"):  # there is nothing to step yet
        page.click(f"#{name}")
    page.keyboard.press("2")
    page.wait_for_selector("body[data-ready=pendulum]")
    assert page.is_hidden("#problem")
    page.click("#pause")
    page.wait_for_function("document.querySelector('#clock').textContent.match(/^step [1-9]/)")
    page.keyboard.press("1")
    page.wait_for_selector("#problem:not([hidden])")
    assert page.is_checked("#task-pendulum")  # which goes on
    page.close()
