"""The page that is taught signs: on a phone's screen, offline, and equal to Python."""

import contextlib
import json
import struct
import subprocess
import sys
import urllib.parse

import numpy as np
import pytest

import tff_perfedavg as pfa
from tests import signs
from tests.web_page import BUILD, ROOT, hosted, served, start_browser, wait_for
from tff_perfedavg import errors
from tff_perfedavg.ondevice import card

# Trained beforehand on Omniglot's characters: users with five signs of their own.
MODEL = ROOT / "tests/data/signs.tflite"
MOST_STEPS, SLACK = 20, 1.25
SMALL = pfa.models.mlp((28, 28), 5, hidden=(16,))
# Of text on its background, and of touch targets.
LEAST_CONTRAST, LEAST_TARGET = 4.5, 44
# Of what is drawn (WCAG 2.1, 1.4.11).
LEAST_CONTRAST_OF_BARS = 3


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The app of both pages under a path of a static host: directory, address, host."""
    root = tmp_path_factory.mktemp("host")
    digits = root / "digits.tflite"
    model = pfa.models.mlp((8, 8), 10)
    config = pfa.ondevice.ExportConfig(batch_size=4, max_local_steps=0)
    pfa.export_tflite(model, [np.asarray(w) for w in model.init(0)], digits, config)
    directory = root / "some/where"
    command = [sys.executable, BUILD, f"--model={digits},{MODEL}"]
    subprocess.run([*command, f"--output_dir={directory}"], check=True)
    with hosted(root) as host:
        yield directory, f"{host.url}some/where/", host


@pytest.fixture(scope="module")
def opened(site, tmp_path_factory):
    """A phone at the page."""
    browser = start_browser(tmp_path_factory.mktemp("profile"))
    browser.become_a_phone()
    browser.open(site[1])
    yield browser
    browser.quit()


@pytest.fixture
def phone(opened, site):
    """A phone at the page, taught nothing yet."""
    yield opened
    # Wherever the test failed, the next one begins as this one did.
    opened.emulate("setEmulatedMedia", features=[])
    if opened.current_url != site[1]:
        opened.open(site[1])
    opened.run("return demo.reset()")
    opened.run("document.querySelector('#name').value = ''")


def is_enabled(phone, selector):
    return phone.run("return !document.querySelector(arguments[0]).disabled", selector)


def teach(phone, name, number, seed):
    """Draws a sign with a finger and says which it is, the `number`-th on the page.

    Comes back before it is learned: one can go on drawing.
    """
    phone.touch(*signs.drawn(name, seed))
    is_new = len(phone.find_elements("css selector", "#signs li")) < number
    button = "#add" if is_new else f"#signs li:nth-child({number}) button"
    wait_for(lambda: is_enabled(phone, button))
    if is_new:
        phone.find("#name").send_keys(name)
    phone.find(button).click()


def wait_until_learned(phone, count):
    script = "return document.body.getAttribute('aria-busy') !== 'true'"
    wait_for(lambda: phone.text("#count") == str(count))
    wait_for(lambda: phone.run(script), seconds=60)


def shown(phone, what="probability"):
    return np.array(
        phone.run(
            "return [...document.querySelectorAll('#signs li')]"
            ".map((row) => Number(row.dataset[arguments[0]]))",
            what,
        )
    )


def lesson(phone):
    """What the page was taught: x, labels, and the signs' labels in their order."""
    x, y, labels = phone.run(
        "const {examples, labels} = demo.lesson(); return ["
        "examples.map(({x}) => [...x]), examples.map(({label}) => label), labels]"
    )
    return np.array(x, np.float32).reshape(-1, 28, 28), np.array(y), labels


def guarded(model, x, y, labels):
    """Learns as the page is documented to; returns the steps kept."""
    rank = np.array([np.sum(y[:i] == y[i]) for i in range(len(y))])
    count = np.array([np.sum(y == label) for label in y])
    is_held_back = (count > 1) & (rank % 3 == 1)
    rate, kept = model.card["inner_learning_rate"], MOST_STEPS
    if is_held_back.any():
        losses = []
        for step in range(MOST_STEPS + 1):
            if step:
                model.adapt(x[~is_held_back], y[~is_held_back], rate, 1)
            answers = [among(model, image, labels) for image in x[is_held_back]]
            right = [labels.index(label) for label in y[is_held_back]]
            chosen = np.array(answers)[np.arange(len(right)), right]
            losses.append(-np.log(chosen).mean())
        kept = np.flatnonzero(losses <= SLACK * np.min(losses)).max()
        model.reset()
    if kept:
        model.adapt(x, y, rate, int(kept))
    return kept


def among(model, image, labels):
    answer = model.infer(image[np.newaxis])[0][labels]
    return answer / answer.sum()


def weights(phone):
    return phone.run("return demo.weights()")


SIGNS_SCREEN = ("#answer", "#paper", "#signs", "#invent")
DIGITS_SCREEN = ("#prediction", "#paper", "#bars", "#labels")


def fits_one_screen(phone, what=SIGNS_SCREEN):
    """Whether drawing, answer and naming are on the screen, and nothing beside it."""
    assert phone.run("return document.documentElement.scrollWidth") == 390
    assert phone.run("return scrollY") == 0
    boxes = [phone.box(selector) for selector in what]
    return all(box["y"] >= 0 and box["y"] + box["height"] <= 844 for box in boxes)


def test_five_signs_of_three_drawings_each_are_learned_on_a_phone(phone, site):
    assert phone.run("return matchMedia('(pointer: coarse)').matches")
    assert fits_one_screen(phone)
    assert not phone.find("#keys").is_displayed()
    for count in range(15):
        if count == 14:
            # Before that one need not wait: what comes meanwhile is learned with it.
            wait_until_learned(phone, 14)
        number, seed = divmod(count, 3)
        teach(phone, list(signs.SIGNS)[number], number + 1, seed)
        wait_for(lambda count=count: phone.text("#count") == str(count + 1))
        assert fits_one_screen(phone)
    wait_until_learned(phone, 15)
    assert not phone.find("#invent").is_displayed()

    # Another drawing of each is told.
    for number, name in enumerate(signs.SIGNS):
        phone.touch(*signs.drawn(name, 10))
        wait_for(lambda: is_enabled(phone, "#signs button"))
        wait_for(lambda name=name: phone.text("#answer") == f"This is {name}.")
        now, initial = shown(phone), shown(phone, "initial")
        assert now.argmax() == number
        assert now[number] > initial[number]
        phone.find("#clear").click()
        wait_for(lambda: phone.text("#answer") == "Draw one of your signs.")

    # All of it is what Python computes.
    phone.touch(*signs.drawn("Gate", 11))
    wait_for(lambda: is_enabled(phone, "#signs button"))
    x, y, labels = lesson(phone)
    assert len(x) == 15
    model = pfa.ondevice.OnDeviceModel(MODEL)
    image = np.array(phone.run("return [...demo.image()]"), np.float32).reshape(28, 28)
    initial = among(model, image, labels)
    np.testing.assert_allclose(shown(phone, "initial"), initial, atol=1e-5)
    steps = guarded(model, x, y, labels)
    assert phone.run("return demo.result().steps") == steps
    np.testing.assert_allclose(shown(phone), among(model, image, labels), atol=1e-5)
    model.reset()
    guarded(model, x[:-1], y[:-1], labels)
    before = among(model, image, labels)
    np.testing.assert_allclose(shown(phone, "before"), before, atol=1e-5)

    # A reload finds it.
    personal = weights(phone)
    everything = shown(phone), shown(phone, "before"), shown(phone, "initial")
    phone.refresh()
    assert weights(phone) == personal
    assert "were kept" in phone.text("#kept")
    phone.touch(*signs.drawn("Gate", 11))
    wait_for(lambda: phone.text("#answer") == "This is Gate.")
    again = shown(phone), shown(phone, "before"), shown(phone, "initial")
    np.testing.assert_array_equal(again, everything)

    # And so does a visit without a network.
    assert phone.run("return demo.offline")
    assert "works without a network" in phone.text("#offline")
    _, url, host = site
    host.stop()
    try:
        nothing = "return fetch('nothing').then(() => false, () => true)"
        assert phone.run(nothing)
        phone.refresh()
        assert weights(phone) == personal
        phone.touch(*signs.drawn("Moon", 12))
        wait_for(lambda: phone.text("#answer") == "This is Moon.")
        phone.find(".tabs a:nth-child(2)").click()
        phone.run("return demo.ready")
        assert phone.text("h1") == "It learns your hand"
        assert fits_one_screen(phone, DIGITS_SCREEN)
        assert len(phone.run("return demo.predict(new Array(64).fill(1))")) == 10
        phone.open(url)
    finally:
        host.start()
    assert weights(phone) == personal


def test_after_one_visit_it_works_without_a_network(site, tmp_path):
    _, url, host = site
    browser = start_browser(tmp_path)
    try:
        browser.become_a_phone()
        browser.open(url)
        assert browser.run("return demo.offline")
        host.stop()
        # What is left is what the app keeps.
        browser.execute_cdp_cmd("Network.clearBrowserCache", {})
        browser.refresh()
        for number, name in enumerate(["Moon", "Hook"]):
            teach(browser, name, number + 1, 0)
            wait_until_learned(browser, number + 1)
        browser.touch(*signs.drawn("Hook", 1))
        wait_for(lambda: browser.text("#answer") == "This is Hook.")
    finally:
        host.start()
        browser.quit()


def test_taking_a_drawing_back_is_as_if_it_had_never_been_taught(phone):
    for i, name in enumerate(["Moon", "Hook", "Moon", "Hook"]):
        teach(phone, name, 1 + i % 2, i)
        wait_until_learned(phone, i + 1)
    before = weights(phone)
    teach(phone, "Waves", 3, 5)
    wait_until_learned(phone, 5)
    assert weights(phone) != before
    phone.find("#undo").click()
    wait_until_learned(phone, 4)
    assert weights(phone) == before
    # What was taught wrongly is still there to be taught as something else.
    phone.find("#signs li:nth-child(2) button").click()
    wait_until_learned(phone, 5)
    _, y, _ = lesson(phone)
    assert y.tolist() == [0, 1, 0, 1, 1]
    # Any one drawing, by its picture.
    phone.find("#drawings > li:nth-child(2) li:nth-child(3) button").click()
    wait_until_learned(phone, 4)
    assert weights(phone) == before
    # The only one of a sign, with it.
    phone.find("#drawings > li:nth-child(1) .sign-head button").click()
    wait_until_learned(phone, 2)
    assert phone.text("#signs .sign-name") == "Hook"
    assert phone.text("#answer") == "Draw and name a second sign."
    initial = [w.ravel() for w in pfa.ondevice.OnDeviceModel(MODEL).weights]
    for ours, theirs in zip(weights(phone), initial, strict=True):
        np.testing.assert_array_equal(ours, theirs)

    phone.find("#forget").click()
    phone.find("#ask .no").click()
    assert phone.text("#count") == "2"
    phone.find("#forget").click()
    phone.find("#ask .yes").click()
    wait_for(lambda: "Forgotten" in phone.text("#kept"))
    assert phone.text("#count") == "0"
    phone.refresh()
    assert phone.text("#count") == "0"
    assert phone.text("#answer") == "Draw a sign, please."


def test_a_name_typed_while_another_sign_is_learned_stays(phone):
    for number, name in enumerate(["Moon", "Hook"]):
        teach(phone, name, number + 1, 0)
        wait_until_learned(phone, number + 1)
    phone.touch(*signs.drawn("Gate", 0))
    wait_for(lambda: is_enabled(phone, "#add"))
    phone.find("#name").send_keys("Gate")
    # Learning goes on for steps after this.
    name = phone.run(
        "const name = document.querySelector('#name');"
        "document.querySelector('#add').click();"
        "const left = name.value; name.value = 'Waves'; return left"
    )
    assert name == ""
    wait_until_learned(phone, 3)
    assert phone.run("return document.querySelector('#name').value") == "Waves"


def test_a_name_comes_back_where_its_sign_cannot_be_taught(phone):
    image = image_of(phone, signs.drawn("Moon", 0))
    phone.run(
        "return Promise.all(['A', 'B', 'C', 'D', 'E']"
        ".map((name) => demo.teach(arguments[0], name)))",
        image,
    )
    phone.touch(*signs.drawn("Gate", 0))
    wait_for(lambda: is_enabled(phone, "#add"))
    # The page hides the form of a model that is full.
    phone.run(
        "document.querySelector('#name').value = 'Gate';"
        "document.querySelector('#invent').requestSubmit()"
    )
    wait_for(lambda: "remove one first" in phone.text("#alert"))
    assert phone.run("return document.querySelector('#name').value") == "Gate"


def test_what_is_taught_at_once_is_learned_as_one_after_the_other(phone):
    names = ["Moon", "Hook", "Moon", "Hook"]
    images = [image_of(phone, signs.drawn(n, i)) for i, n in enumerate(names)]
    taught = list(zip(images, ["A", "B", 0, 1], strict=True))
    for image, sign in taught:
        phone.run("return demo.teach(...arguments)", image, sign)
    expected = weights(phone)
    phone.run("return demo.reset()")
    results = phone.run(
        "return Promise.all(arguments[0].map((each) => demo.teach(...each)))", taught
    )
    assert results[:3] == [None] * 3
    assert results[3] == phone.run("return demo.result()")
    assert weights(phone) == expected


def test_steps_that_hurt_the_drawings_held_back_are_undone(phone):
    """Drawings that are held back contradict those that are learned."""
    moon, hook = (image_of(phone, signs.drawn(name, 0)) for name in ("Moon", "Hook"))
    for image, sign in ((moon, "A"), (hook, "B"), (hook, 0), (moon, 1)):
        phone.run("return demo.teach(...arguments)", image, sign)
    result = phone.run("return demo.result()")
    assert result["numHeldBack"] == 2
    assert result["losses"][-1] > SLACK * min(result["losses"])
    assert result["steps"] < MOST_STEPS
    assert "would have hurt the 2 drawings held back" in phone.text("#learned")
    x, y, labels = lesson(phone)
    model = pfa.ondevice.OnDeviceModel(MODEL)
    assert guarded(model, x, y, labels) == result["steps"]


def test_outputs_that_are_no_signs_are_not_told(phone):
    moon, hook = (image_of(phone, signs.drawn(name, 0)) for name in ("Moon", "Hook"))
    phone.run("return demo.teach(...arguments)", moon, "A")
    phone.run("return demo.teach(...arguments)", hook, "")
    answer = phone.run("return demo.predict(arguments[0])", moon)
    assert [len(answer[part]) for part in ("initial", "now")] == [2, 2]
    assert sum(answer["now"]) == pytest.approx(1)
    assert [sign["name"] for sign in phone.run("return demo.lesson().signs")] == [
        "A",
        "Sign 1",
    ]


def test_of_too_many_drawings_one_of_the_most_drawn_sign_goes(phone):
    labels = phone.module(
        "const {Lesson} = await load('lesson.js');"
        "const lesson = new Lesson(3, 5);"
        "const x = (value) => Float32Array.of(value);"
        "lesson.invent('a', x(0)); lesson.invent('b', x(1));"
        "for (let i = 2; i < 7; i++) lesson.add(x(i), i < 5 ? 0 : 1);"
        "return lesson.examples.map(({x, label}) => [x[0], label]);"
    )
    assert labels == [[1, 1], [3, 0], [4, 0], [5, 1], [6, 1]]


@pytest.mark.parametrize(
    "damage",
    [
        "kept.weights.pop()",
        "kept.before[1][0] = NaN",
        "kept.examples[0].label = 3",
        "kept.signs[0].label = 1",
        "kept.signs[0].name = ''",
        "delete kept.signs",
    ],
)
def test_damaged_storage_is_ignored_and_said_so(phone, damage):
    initial = weights(phone)
    for name in ("Moon", "Hook"):
        image = image_of(phone, signs.drawn(name, 0))
        phone.run("return demo.teach(...arguments)", image, name)
    phone.module(
        "const storage = await load('storage.js');"
        "const {kept} = await storage.load(demo.keys());"
        f"{damage};"
        "await storage.save(demo.keys(), kept);"
    )
    phone.refresh()
    assert "cannot be used and is ignored" in phone.text("#kept")
    assert weights(phone) == initial
    assert phone.text("#count") == "0"


def image_of(phone, strokes):
    return phone.module(
        "const {toSign} = await load('strokes.js'); return [...toSign(given[0])];",
        strokes,
    )


@pytest.mark.parametrize(
    "strokes",
    [
        signs.drawn("Gate", 0),
        signs.drawn("Waves", 1),
        [[[0.5, 0.2], [0.5, 0.8]]],
        [[[0.1, 0.9]]],
        [[[0.2, 0.2], [0.21, 0.2]]],
    ],
)
def test_a_drawing_becomes_the_image_that_is_documented(phone, strokes):
    image = np.reshape(image_of(phone, strokes), [28, 28])
    np.testing.assert_allclose(image, omniglot_image(strokes), atol=1e-5)
    # On the paper, too, wherever it is drawn.
    moved = [[[0.5 * x + 0.3, 0.5 * y + 0.4] for x, y in s] for s in strokes]
    if len(strokes[0]) > 2:
        np.testing.assert_allclose(image_of(phone, moved), image.ravel(), atol=0.15)


def omniglot_image(strokes):
    points = np.concatenate([np.array(stroke) for stroke in strokes])
    low, high = points.min(0), points.max(0)
    scale = 63.3 / max(*(high - low), 0.08)
    centres = np.stack(np.meshgrid(*2 * [np.arange(105) + 0.5]), -1)
    is_ink = np.zeros([105, 105], bool)
    for stroke in strokes:
        path = 50.6 + (np.array(stroke) - (low + high) / 2) * scale
        for start, end in zip(path, [*path[1:], path[-1]], strict=True):
            along = end - start
            part = (centres - start) @ along / max(along @ along, 1e-300)
            nearest = start + np.clip(part, 0, 1)[..., None] * along
            is_ink |= ((centres - nearest) ** 2).sum(-1) <= (4.7 / 2) ** 2
    edges = np.arange(29) * 105 / 28
    dots = np.arange(105)
    cover = np.clip(
        np.minimum(edges[1:, None], dots + 1) - np.maximum(edges[:-1, None], dots), 0, 1
    )
    return cover @ is_ink @ cover.T / 3.75**2


def test_the_app_can_be_installed(phone, site):
    directory, url, _ = site
    answer = phone.execute_cdp_cmd("Page.getInstallabilityErrors", {})
    assert answer["installabilityErrors"] == []
    assert phone.run("return navigator.serviceWorker.controller !== null")
    found = phone.execute_cdp_cmd("Page.getAppManifest", {})
    assert found["errors"] == []
    manifest = json.loads(found["data"])
    assert manifest["name"] == "Teach it your signs"
    assert urllib.parse.urljoin(found["url"], manifest["start_url"]) == url
    sizes = {}
    for icon in manifest["icons"]:
        header = (directory / icon["src"]).read_bytes()[:24]
        width, height = struct.unpack(">II", header[16:])
        assert icon["sizes"] == f"{width}x{height}"
        sizes.setdefault(icon.get("purpose", "any"), []).append(width)
    assert sizes == {"any": [192, 512], "maskable": [512]}


def test_no_request_leaves_the_host_and_the_policy_forbids_it(phone, site):
    origin = "{0.scheme}://{0.netloc}/".format(urllib.parse.urlsplit(site[1]))
    urls = phone.run("return performance.getEntries().map((entry) => entry.name)")
    urls = [url for url in urls if "://" in url]
    assert any(url.endswith(".wasm") for url in urls)
    assert [url for url in urls if not url.startswith(site[1])] == []
    policy = phone.find("meta[http-equiv]").get_attribute("content")
    assert policy.startswith("default-src 'none'; script-src 'self' 'wasm-unsafe-eval'")
    assert "unsafe-inline" not in policy
    assert "http" not in policy
    assert phone.run(
        "return new Promise((resolve) => {"
        "document.addEventListener('securitypolicyviolation',"
        "(event) => resolve(event.violatedDirective));"
        "fetch(arguments[0]).catch(() => {});"
        "})",
        origin.replace("127.0.0.1", "localhost"),
    ).startswith("connect-src")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("page", ["", "digits.html"])
def test_text_has_contrast_and_controls_have_names_and_room(phone, site, scheme, page):
    phone.emulate(
        "setEmulatedMedia",
        features=[{"name": "prefers-color-scheme", "value": scheme}],
    )
    phone.open(site[1] + page)
    if not page:
        for name in ("Moon", "Hook"):
            image = image_of(phone, signs.drawn(name, 0))
            phone.run("return demo.teach(...arguments)", image, name)
        phone.touch(*signs.drawn("Hook", 1))
        wait_for(lambda: phone.text("#answer") == "This is Hook.")
    check_contrast(phone)
    bars = phone.run(CONTRAST_OF_BARS)
    assert len(bars) >= (6 if not page else 10)
    assert min(bars) >= LEAST_CONTRAST_OF_BARS
    small = phone.run(
        "return [...document.querySelectorAll('button, input, .tabs a')]"
        ".filter((e) => e.checkVisibility())"
        ".map((e) => [e.id || e.className, e.getBoundingClientRect().height])"
        ".filter(([, height]) => height < arguments[0])",
        LEAST_TARGET,
    )
    assert small == []
    check_names(phone, "application", "button", "link")
    assert phone.run("return document.documentElement.scrollWidth") == 390
    # An error, and what asks before it forgets.
    phone.run(
        "const alert = document.querySelector('#alert');"
        "alert.textContent = 'The model could not be loaded.'; alert.hidden = false;"
        "document.querySelector('#ask').showModal()"
    )
    check_contrast(phone)
    check_names(phone, "button", "dialog")
    phone.run("document.querySelector('#alert').hidden = true")
    phone.find("#ask .no").click()
    phone.run("return demo.reset()")


def check_contrast(phone):
    lowest, seen = phone.run(CONTRAST)
    assert seen > 20
    assert lowest["ratio"] >= LEAST_CONTRAST, lowest


def check_names(phone, *roles):
    """Whatever a screen reader stops at has a name; these roles are among it."""
    tree = phone.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
    nodes = [node for node in tree if node.get("role", {}).get("value") in NAMED]
    assert {*roles} <= {node["role"]["value"] for node in nodes}
    for node in nodes:
        assert node["name"]["value"].strip(), node


# Roles of what one acts on, and of what opens above the page.
NAMED = ("application", "button", "dialog", "link", "spinbutton", "textbox")


_COLOURS = """
const canvas = document.createElement('canvas').getContext('2d');
const rgba = (color) => {
  canvas.clearRect(0, 0, 1, 1);
  canvas.fillStyle = color;
  canvas.fillRect(0, 0, 1, 1);
  return [...canvas.getImageData(0, 0, 1, 1).data];
};
const luminance = (color) => {
  const [r, g, b] = color.map((value) => {
    const part = value / 255;
    return part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4;
  });
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const background = (element) => {
  for (let each = element; each; each = each.parentElement) {
    const color = rgba(getComputedStyle(each).backgroundColor);
    if (color[3] === 255) return color;
  }
  return rgba('Canvas');
};
const contrast = (front, back) => {
  const [dark, light] = [front, back].map(luminance).sort((a, b) => a - b);
  return (light + 0.05) / (dark + 0.05);
};
"""
CONTRAST_OF_BARS = f"""
{_COLOURS}
return [...document.querySelectorAll('.bars .initial, .bars .now, .bars .last, .share')]
  .map((bar) => {{
    const {{backgroundColor, opacity}} = getComputedStyle(bar);
    const back = background(bar.parentElement);
    const mixed = rgba(backgroundColor).map(
      (part, i) => opacity * part + (1 - opacity) * back[i],
    );
    return contrast(mixed, back);
  }});
"""
# The lowest contrast of a text that is shown, of a control that is enabled, and of how
# many it was looked for.
CONTRAST = f"""
{_COLOURS}
let lowest = {{ratio: 21}};
let seen = 0;
const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
while (walker.nextNode()) {{
  const element = walker.currentNode.parentElement;
  const text = walker.currentNode.textContent.trim();
  if (!text || !element.checkVisibility() || element.closest('[disabled]')) continue;
  seen += 1;
  const [front, back] = [rgba(getComputedStyle(element).color), background(element)];
  const ratio = contrast(front, back);
  if (ratio < lowest.ratio) lowest = {{ratio, text, front, back}};
}}
return [lowest, seen];
"""


def test_a_new_version_is_there_at_the_next_visit(phone, site):
    """Although the one before is kept for use without a network."""
    directory, url, _ = site
    phone.run("return demo.offline")
    index, worker = directory / "index.html", directory / "service-worker.js"
    before = {path: path.read_text() for path in (index, worker)}
    title = "<h1>Teach it your signs</h1>"
    index.write_text(before[index].replace(title, "<h1>Signs, anew</h1>"))
    version = json.loads(before[worker].splitlines()[0].partition(" = ")[2].rstrip(";"))
    worker.write_text(before[worker].replace(version, "another"))
    try:
        phone.refresh()
        assert phone.text("h1") == "Signs, anew"
        kept = "return caches.match(arguments[0]).then((answer) => answer.text())"
        wait_for(lambda: "Signs, anew" in phone.run(kept, url))
    finally:
        for path, text in before.items():
            path.write_text(text)
    phone.refresh()
    assert phone.text("h1") == "Teach it your signs"


def version_at(path, number, weights, rate):
    """Exports a version of a family, of users with labels of their own."""
    config = pfa.ondevice.ExportConfig(
        batch_size=12, max_local_steps=0, family="signs", version=number
    )
    card = {"own_labels": 5, "inner_learning_rate": rate}
    pfa.export_tflite(SMALL, weights, path, config, card=card)


@pytest.mark.slow
def test_what_was_taught_survives_a_new_version_that_is_better(tmp_path):
    models = [tmp_path / f"{number}.tflite" for number in (1, 2, 3)]
    initial = SMALL.init(1)
    version_at(models[0], 1, initial, 0.05)
    app = tmp_path / "host" / "app"

    def release(model):
        subprocess.run(
            [sys.executable, BUILD, f"--model={model}", f"--output_dir={app}"],
            check=True,
        )

    release(models[0])
    with hosted(app.parent) as host:
        phone = start_browser(tmp_path / "profile")
        phone.open(f"{host.url}app/")
        names = ("Moon", "Hook")
        images = {
            (name, seed): image_of(phone, signs.drawn(name, seed))
            for name in names
            for seed in range(6)
        }
        for seed in range(3):
            for label, name in enumerate(names):
                phone.run(
                    "return demo.teach(...arguments)",
                    images[name, seed],
                    label if seed else name,
                )
        first = weights(phone)
        # The second version was meta-trained, as it were: it has seen such drawings.
        trained = pfa.ondevice.OnDeviceModel(models[0])
        others = [(image, name) for (name, seed), image in images.items() if seed >= 3]
        x = np.array([image for image, _ in others], np.float32).reshape(-1, 28, 28)
        y = np.array([names.index(name) for _, name in others])
        trained.adapt(x, y, 0.05, 50)
        version_at(models[1], 2, trained.weights, 0.05)
        version_at(models[2], 3, initial, 1e-6)
        for model, version, said in (
            (models[1], 2, "A new version of the model has learned your drawings"),
            (models[2], 2, "Version 2 of the model stays in use for you"),
        ):
            release(model)
            phone.run("return demo.offline")
            phone.refresh()
            wait_for(lambda said=said: said in phone.text("#kept"))
            assert phone.text("#count") == "6"
            assert f"version {version}" in phone.text("#model")
            second = weights(phone)
            assert second != first
            phone.refresh()
        # Nothing was learned anew by the visits.
        assert weights(phone) == second
        probabilities = phone.run(
            "return demo.predict(arguments[0])", images["Hook", 4]
        )
        assert np.argmax(probabilities["now"]) == 1
        phone.quit()


def test_the_service_worker_keeps_every_file(site):
    directory, *_ = site
    lines = (directory / "service-worker.js").read_text().splitlines()[:3]
    _, files, optional = (
        json.loads(line.partition(" = ")[2].rstrip(";")) for line in lines
    )
    listed = json.loads((directory / "site.json").read_text())["files"]
    assert sorted([*files, *optional, "service-worker.js"]) == listed
    assert all((directory / name).is_file() for name in listed)
    # A browser loads one of LiteRT's builds.
    assert {path.rpartition("/")[0].partition("/")[2] for path in optional} == {"wasm"}


def test_the_card_read_without_a_runtime_is_the_runtimes(tmp_path):
    content, found = card.read(MODEL)
    assert content == MODEL.read_bytes()
    assert found == pfa.ondevice.OnDeviceModel(MODEL).card
    # A file without a checksum, as version 0.1.0 wrote them, and with any damage.
    old = bytearray((MODEL.parent / "version_0_1_0.tflite").read_bytes())
    assert card.read(MODEL.parent / "version_0_1_0.tflite")[1]["num_classes"] == 3
    rng, path = np.random.default_rng(0), tmp_path / "damaged.tflite"
    for _ in range(300):
        damaged = old.copy()
        for place in rng.integers(0, len(old), 200):
            damaged[place] = rng.integers(256)
        path.write_bytes(damaged)
        with contextlib.suppress(errors.ModelError):
            card.read(path)


def test_what_is_at_the_place_is_replaced_only_if_it_is_an_app(tmp_path):
    def build(place):
        command = [sys.executable, BUILD, f"--model={MODEL}", f"--output_dir={place}"]
        return subprocess.run(command, capture_output=True, text=True)

    place = tmp_path / "app"
    for _ in range(2):
        assert build(place).returncode == 0
        assert not (place / "digits.html").exists()
        assert '<nav class="tabs"' not in (place / "index.html").read_text()
    (place / "notes.txt").write_text("mine")
    answer = build(place)
    assert answer.returncode == 1
    assert "has something in it that is no web app" in answer.stderr
    assert "(notes.txt)" in answer.stderr
    assert (place / "notes.txt").read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["app"]


def test_the_command_serves_the_page_of_signs_too(phone):
    with served(MODEL) as url:
        phone.open(url)
        assert phone.text("h1") == "Teach it your signs"
        assert phone.find_elements("css selector", ".tabs") == []
