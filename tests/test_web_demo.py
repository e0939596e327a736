"""The web page in a browser: what it shows is what Python computes."""

import contextlib
import hashlib
import http.client
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest
from selenium import webdriver
from selenium.common.exceptions import JavascriptException

import tff_perfedavg as pfa
from tests.browser import Browser, process
from tests.needs import BROWSER
from tff_perfedavg.ondevice import flatbuffer

ROOT = pathlib.Path(__file__).parent.parent
SERVE = ROOT / "scripts/serve_web_demo.py"
RUNTIME = ROOT / "scripts/web_demo/node_modules/@litertjs/core/package.json"
RATE, STEPS = 0.05, 5


class DemoBrowser(Browser):
    """A browser at the demo's page."""

    def open(self, url):
        self.get(url)
        self.run("return demo.ready")

    def refresh(self):
        super().refresh()
        self.run("return demo.ready")

    def draw(self, *strokes):
        """Moves a mouse over the paper along lines of points in [0, 1] x [0, 1]."""
        paper = self.find("#paper")
        width, height = self.run(
            "const box = arguments[0].getBoundingClientRect();"
            "return [box.width, box.height]",
            paper,
        )
        mouse = webdriver.ActionChains(self, duration=10)
        for stroke in strokes:
            for i, (x, y) in enumerate(stroke):
                mouse.move_to_element_with_offset(
                    paper, round((x - 0.5) * width), round((y - 0.5) * height)
                )
                if i == 0:
                    mouse.click_and_hold()
            mouse.release()
        mouse.perform()


@pytest.fixture(scope="module")
def export(tmp_path_factory):
    """Exports an untrained model of images of a side, once each."""
    made = {}

    def export_side(side, seed=0):
        if (side, seed) not in made:
            path = tmp_path_factory.mktemp("exported") / f"{side}.tflite"
            model = pfa.mlp((side, side), 10)
            weights = [np.asarray(w) for w in model.init(seed)]
            config = pfa.ExportConfig(batch_size=4, max_local_steps=0)
            card = {"inner_learning_rate": RATE}
            pfa.export_tflite(model, weights, path, config, card=card)
            made[side, seed] = path
        return made[side, seed]

    return export_side


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """A browser; every page served has a port, so a storage, of its own."""
    if not RUNTIME.exists():
        pytest.skip(f"{BROWSER}: @litertjs/core is missing: make browser")
    opened = DemoBrowser(tmp_path_factory.mktemp("profile"))
    yield opened
    opened.quit()


@contextlib.contextmanager
def served(model, *flags, port=0):
    command = (sys.executable, SERVE, f"--model={model}", f"--port={port}", *flags)
    with process(*command, says=r"(http://\S+)") as url:
        yield url


@pytest.fixture
def page(browser, export):
    """The page with a model of 8x8, open."""
    with served(export(8)) as url:
        browser.open(url)
        yield browser


def flat_image():
    return images(8, 1).ravel().tolist()


def images(side, count):
    rng = np.random.default_rng(side)
    return rng.integers(0, 17, [count, side, side]).astype(np.float32) / 16


def shown(browser):
    """The probabilities on the page."""
    return np.array(
        browser.run(
            "return [...document.querySelectorAll('#bars li')]"
            ".map((row) => Number(row.dataset.probability || NaN))"
        ),
        float,  # JSON has null for NaN.
    )


def text(browser, selector):
    return browser.run(
        "return document.querySelector(arguments[0]).textContent", selector
    )


def wait_for(condition):
    deadline = time.monotonic() + 10
    while not (answer := condition()):
        assert time.monotonic() < deadline, "waited 10 seconds"
        time.sleep(0.05)
    return answer


@pytest.mark.parametrize("side", [8, 28])
def test_page_predicts_adapts_and_resets_as_python_does(browser, export, side):
    python = pfa.OnDeviceModel(export(side))
    # More corrections than a batch has rows: the last four count.
    x, y = images(side, 6), [3, 1, 4, 1, 5, 9]

    def predict_and_compare():
        browser.run("return demo.predict(arguments[0])", x[0].ravel().tolist())
        np.testing.assert_allclose(shown(browser), python.infer(x[:1])[0], atol=1e-5)

    with served(export(side)) as url:
        browser.open(url)
        predict_and_compare()
        before = shown(browser)
        for i in range(6):
            answer = browser.run(
                "return demo.correct(...arguments)", x[i].ravel().tolist(), y[i]
            )
            batch = slice(max(0, i - 3), i + 1)
            loss = python.adapt(x[batch], np.array(y[batch]), RATE, STEPS)
            assert answer["loss"] == pytest.approx(loss, abs=1e-5)
            expected = python.infer(x[i : i + 1])[0]
            np.testing.assert_allclose(shown(browser), expected, atol=1e-5)
        predict_and_compare()
        assert np.abs(shown(browser) - before).max() > 0.05
        for ours, theirs in zip(
            python.weights, browser.run("return demo.weights()"), strict=True
        ):
            np.testing.assert_allclose(theirs, ours.ravel(), atol=1e-5)
        assert text(browser, "#adaptations") == "6"
        assert re.sub(r"\D", "", text(browser, "#corrections")) == "4159"
        assert float(text(browser, "#loss")) == pytest.approx(loss, abs=1e-4)
        browser.run("return demo.reset()")
        np.testing.assert_array_equal(shown(browser), before)
        python.reset()
        predict_and_compare()


def test_weights_stay_in_the_browser_until_forgotten(browser, export):
    x = images(8, 3).reshape(3, -1).tolist()
    with served(export(8)) as url:
        port = int(url.rstrip("/").rpartition(":")[2])
        browser.open(url)
        initial = browser.run("return demo.weights()")
        for i in range(3):
            browser.run("return demo.correct(...arguments)", x[i], i)
        personal = browser.run("return demo.weights()")
        browser.refresh()
        assert browser.run("return demo.weights()") == personal
        assert "were kept" in text(browser, "#kept")
        assert re.sub(r"\D", "", text(browser, "#corrections")) == "012"
        assert text(browser, "#adaptations") == "3"
    with served(export(8, seed=1), port=port) as url:
        browser.open(url)
        assert "belongs to another model" in text(browser, "#kept")
        assert browser.run("return demo.weights()") != personal
    with served(export(8), port=port) as url:
        browser.open(url)
        assert browser.run("return demo.weights()") == personal
        browser.find("#forget").click()
        wait_for(lambda: "Forgotten" in text(browser, "#kept"))
        assert browser.run("return demo.weights()") == initial
        browser.refresh()
        assert browser.run("return demo.weights()") == initial
        assert text(browser, "#corrections") == ""


@pytest.mark.parametrize(
    "damage",
    [
        "kept.weights.pop()",
        "kept.weights[1][0] = NaN",
        "kept.weights.forEach((weight) => weight.fill(1e30))",
        "kept.examples[0].label = 10",
    ],
)
def test_damaged_storage_is_ignored_and_said_so(page, damage):
    initial = page.run("return demo.weights()")
    page.run("return demo.correct(...arguments)", images(8, 1).ravel().tolist(), 7)
    page.run(
        "return (async () => {"
        "const storage = await import('/storage.js');"
        "const {kept} = await storage.load(demo.keys());"
        f"{damage};"
        "await storage.save(demo.keys(), kept);"
        "})()"
    )
    page.refresh()
    assert "cannot be used and is ignored" in text(page, "#kept")
    assert page.run("return demo.weights()") == initial


def test_a_model_exported_anew_finds_what_was_taught(browser, export, tmp_path):
    again = tmp_path / "again.tflite"
    model = pfa.mlp((8, 8), 10)
    weights = [np.asarray(w) for w in model.init(0)]
    card = {"inner_learning_rate": RATE, "license": "MIT"}
    config = pfa.ExportConfig(batch_size=5, max_local_steps=0)
    pfa.export_tflite(model, weights, again, config, card=card)
    with served(export(8)) as url:
        port = int(url.rstrip("/").rpartition(":")[2])
        browser.open(url)
        browser.run("return demo.correct(...arguments)", flat_image(), 7)
        personal = browser.run("return demo.weights()")
    with served(again, port=port) as url:
        browser.open(url)
        assert browser.run("return demo.weights()") == personal
        assert "were kept" in text(browser, "#kept")


def test_what_version_0_1_0_kept_under_a_files_hash_is_found_and_moved(page, export):
    hash_of_file = hashlib.sha256(export(8).read_bytes()).hexdigest()
    model_id = pfa.OnDeviceModel(export(8)).card["model_id"]
    assert page.run("return demo.keys()") == [model_id, hash_of_file]
    page.run("return demo.correct(...arguments)", flat_image(), 7)
    personal = page.run("return demo.weights()")
    storage = "const storage = await import('/storage.js');"

    def run(body):
        script = (
            f"return (async ({{model, file}}) => {{{storage}{body}}})(arguments[0])"
        )
        return page.run(script, {"model": model_id, "file": hash_of_file})

    run(
        "const {kept} = await storage.load([model]);"
        "await storage.remove([model]);"
        "await storage.save([file], kept);"
    )
    page.refresh()
    assert page.run("return demo.weights()") == personal
    page.run("return demo.correct(...arguments)", flat_image(), 7)
    assert not run("return (await storage.load([file])).kept !== undefined")
    assert run("return (await storage.load([model])).kept.adaptations") == 2
    page.run("return demo.reset()")
    assert run("return (await storage.load([file, model])).others") == 0


def test_a_file_without_checksum_and_identity_works_as_it_did(
    browser, export, tmp_path
):
    """As version 0.1.0 wrote them."""
    model = flatbuffer.read(export(8).read_bytes())
    text = flatbuffer.metadata(model, flatbuffer.CARD)
    card = json.loads(text)
    del card["model_id"], card["max_adapt_steps"]
    card["format_version"] = 1
    old = json.dumps(card, separators=(",", ":")).encode().ljust(len(text))
    for buffer in model.buffers:
        if buffer.data is not None and bytes(buffer.data) == text:
            buffer.data = np.frombuffer(old, np.uint8)
    path = tmp_path / "old.tflite"
    path.write_bytes(flatbuffer.pack(model))
    python = pfa.OnDeviceModel(path)
    with served(path) as url:
        browser.open(url)
        hash_of_file = hashlib.sha256(path.read_bytes()).hexdigest()
        assert browser.run("return demo.keys()") == [hash_of_file]
        answer = browser.run("return demo.correct(...arguments)", flat_image(), 7)
        loss = python.adapt(images(8, 1), np.array([7]), RATE, STEPS)
        assert answer["loss"] == pytest.approx(loss, abs=1e-5)
        browser.refresh()
        for ours, theirs in zip(
            python.weights, browser.run("return demo.weights()"), strict=True
        ):
            np.testing.assert_allclose(theirs, ours.ravel(), atol=1e-5)


@pytest.mark.parametrize("place", [10, 30, 1000, -1])
def test_a_damaged_model_file_is_refused_before_it_is_run(
    browser, export, tmp_path, place
):
    path = tmp_path / "model.tflite"
    content = bytearray(export(8).read_bytes())
    path.write_bytes(content)
    with served(path) as url:
        # The server looks when it starts.
        content[place] ^= 4
        path.write_bytes(content)
        with pytest.raises(JavascriptException, match="The model file is damaged"):
            browser.open(url)


def test_steps_without_finite_answers_are_undone(page):
    before = page.run("return demo.weights()")
    script = (
        "return (async (x) => {"
        "const {PersonalModel} = await import('/model.js');"
        "const answer = await fetch('/model.tflite');"
        "const content = new Uint8Array(await answer.arrayBuffer());"
        "const model = await PersonalModel.load("
        "content, '/node_modules/@litertjs/core/wasm/');"
        "const example = {x: Float32Array.from(x), label: 7};"
        "const messages = [];"
        "for (const [rate, steps] of [[1e30, 1], [0.1, 10001], [0.1, 2 ** 31]])"
        "await model.adapt([example], rate, steps)"
        ".catch((error) => messages.push(error.message));"
        # Begun at once, ended one after the other.
        "const [loss, first, ...after] = await Promise.all(["
        "model.adapt([example], 0.1, 1), model.infer(example.x),"
        "model.adapt([example], 0.1, 1), model.infer(example.x)]);"
        "return {messages, loss, first: first[7], second: after[1][7]};"
        "})(arguments[0])"
    )
    answer = page.run(script, flat_image())
    messages = answer["messages"]
    assert "answers that are not finite; the weights are as before" in messages[0]
    assert all("not a whole number from 1 to 10000" in m for m in messages[1:])
    assert np.exp(-answer["loss"]) < answer["first"] < answer["second"]
    assert page.run("return demo.weights()") == before


def test_no_request_leaves_the_machine(page):
    page.run("return demo.correct(...arguments)", images(8, 1).ravel().tolist(), 7)
    urls = page.run(
        "return performance.getEntries().filter((entry) =>"
        "['resource', 'navigation'].includes(entry.entryType))"
        ".map((entry) => entry.name)"
    )
    origin = page.run("return location.origin")
    assert origin.startswith("http://127.0.0.1:")
    assert any(url.endswith(".wasm") for url in urls)
    assert any(url.endswith("/model.tflite") for url in urls)
    outside = [url for url in urls if not url.startswith((origin, "data:"))]
    assert outside == []
    # Its policy would not let it, were it asked to.
    other = "http://localhost:" + origin.rpartition(":")[2]
    assert page.run(
        "return new Promise((resolve) => {"
        "document.addEventListener('securitypolicyviolation',"
        "(event) => resolve(event.violatedDirective));"
        "fetch(arguments[0]).catch(() => {});"
        "})",
        other,
    ).startswith("connect-src")


def test_a_drawing_is_read_corrected_and_learned(page, export):
    python = pfa.OnDeviceModel(export(8))
    seven = [(0.25, 0.2), (0.75, 0.2), (0.6, 0.5), (0.4, 0.85)]
    page.draw(seven)
    wait_for(lambda: np.isfinite(shown(page)).all())
    ink = ink_of(page)
    assert 0.05 < ink.mean() < 0.5
    x = digit_image(ink)[np.newaxis]
    wait_for(lambda: np.allclose(shown(page), python.infer(x)[0], atol=1e-5))
    assert text(page, "#prediction") == f"I read a {python.infer(x).argmax()}."

    page.find("#labels button:nth-child(8)").click()
    wait_for(lambda: text(page, "#adaptations") == "1")
    python.adapt(x, np.array([7]), RATE, STEPS)
    wait_for(lambda: np.allclose(shown(page), python.infer(x)[0], atol=1e-5))
    assert text(page, "#prediction") == "I read a 7."

    # The next stroke begins a new drawing.
    page.draw([(0.5, 0.2), (0.5, 0.8)])
    wait_for(lambda: ink_of(page).mean() < ink.mean() * 0.8)
    one = digit_image(ink_of(page))[np.newaxis]
    wait_for(lambda: np.allclose(shown(page), python.infer(one)[0], atol=1e-5))
    page.find("#clear").click()
    wait_for(lambda: np.isnan(shown(page)).all())


def test_a_drawing_by_keyboard(page):
    down, space = "\ue015", " "
    page.find("#paper").send_keys(space + down * 12 + space)
    wait_for(lambda: np.isfinite(shown(page)).all())
    page.find("#paper").send_keys("1")
    wait_for(lambda: re.sub(r"\D", "", text(page, "#corrections")) == "1")
    page.find("#paper").send_keys("\ue017")
    wait_for(lambda: np.isnan(shown(page)).all())


@pytest.mark.parametrize("side", [8, 28])
def test_a_drawing_becomes_the_image_that_is_documented(page, side):
    page.draw([(0.3, 0.1), (0.35, 0.55), (0.8, 0.6)], [(0.7, 0.3), (0.68, 0.9)])
    ink = ink_of(page)
    image = page.run(
        "return import('/drawing.js').then(({toImage}) =>"
        "[...toImage(Float32Array.from(arguments[0]), arguments[1])])",
        ink.ravel().tolist(),
        side,
    )
    expected = {8: digit_image, 28: mnist_image}[side](ink)
    np.testing.assert_allclose(np.reshape(image, [side, side]), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("demo.predict([1, 2])", "64 numbers; this has 2"),
        ("demo.predict(new Array(64).fill(NaN))", "x has a number that is not finite"),
        ("demo.correct(new Array(64).fill(1), 10)", "10 is no class; they are 0 to 9"),
        ("demo.correct(new Array(64).fill(1), 1.5)", "1.5 is no class"),
        (
            "(document.querySelector('#steps').value = 101,"
            " demo.correct(new Array(64).fill(1), 1))",
            "a whole number from 1 to 100",
        ),
    ],
)
def test_wrong_input_is_refused_and_changes_nothing(page, script, message):
    before = page.run("return demo.weights()")
    with pytest.raises(JavascriptException, match=message):
        page.run(f"return {script}")
    assert page.run("return demo.weights()") == before
    assert text(page, "#adaptations") == "0"


def test_a_model_that_the_page_cannot_draw_for_is_named(browser, tmp_path):
    path = tmp_path / "other.tflite"
    model = pfa.logistic_regression((3,), 2)
    weights = [np.asarray(w) for w in model.init(0)]
    pfa.export_tflite(model, weights, path, pfa.ExportConfig(max_local_steps=0))
    with served(path) as url:
        with pytest.raises(JavascriptException, match="2 classes from inputs of shape"):
            browser.open(url)
        assert "2 classes" in text(browser, "#alert")
        assert browser.run("return document.querySelector('#clear').disabled")
        for _ in range(2):
            with pytest.raises(JavascriptException, match="2 classes"):
                browser.run("return demo.predict([1, 2, 3])")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Stand-ins for npm packages, with links out of their folder."""
    root = tmp_path_factory.mktemp("served")
    package = root / "node_modules/@litertjs/core"
    package.mkdir(parents=True)
    shutil.copy(ROOT / "scripts/web_demo/package.json", root)
    wanted = json.loads((root / "package.json").read_text())["dependencies"]
    version = {"version": wanted["@litertjs/core"]}
    (package / "package.json").write_text(json.dumps(version))
    (root / "secret").write_text("secret")
    (root / "elsewhere").mkdir()
    (root / "elsewhere/secret").write_text("secret")
    os.symlink(root / "secret", package / "link")
    os.symlink(root / "elsewhere", package / "folder")
    os.symlink(package / "package.json", package / "inner")
    os.symlink("loop", package / "loop")
    os.symlink(root / "node_modules", root / "linked_modules")
    (root / "model").write_bytes(b"\x1c\0\0\0TFL3")
    os.symlink(root / "model", root / "model.tflite")
    return root


@pytest.fixture(scope="module")
def bare_server(folder):
    """A server's port, and what it said so far."""
    modules = f"--node_modules={folder / 'linked_modules'}"
    with served(folder / "model.tflite", modules) as url:
        yield int(url.rstrip("/").rpartition(":")[2])


def asked(port, path, host="127.0.0.1:{port}", method="GET"):
    """The status and the body of an answer to a request as it is written."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    with contextlib.closing(connection):
        connection.putrequest(method, path, skip_host=True)
        for name in [host] if isinstance(host, str) else host:
            connection.putheader("Host", name.format(port=port))
        connection.endheaders()
        answer = connection.getresponse()
        return answer.status, answer.read()


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_other_hosts_are_not_answered_for(bare_server, method):
    for host in ("127.0.0.1:{port}", "localhost:{port}"):
        assert asked(bare_server, "/", host, method)[0] == 200
    for host in (
        "evil.example:{port}",
        "evil.example",
        "127.0.0.1",
        "127.0.0.1:1",
        "127.0.0.1:{port}.evil.example",
        "",
        [],
        ["127.0.0.1:{port}", "evil.example"],
    ):
        status, content = asked(bare_server, "/", host, method)
        assert status == 421
        assert b"<main>" not in content


@pytest.mark.parametrize("path", ["/%00", "/a%00b", "/node_modules/%00", "/%ed%a0%80"])
def test_paths_that_no_file_has_are_bad_requests(bare_server, path):
    status, content = asked(bare_server, path)
    assert status == 400
    assert b"Bad Request" in content


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/node_modules/@litertjs/core/package.json", 200),
        ("/node_modules/@litertjs/core/inner", 200),
        ("/node_modules/@litertjs/core/link", 404),
        ("/node_modules/@litertjs/core/folder/secret", 404),
        ("/node_modules/@litertjs/core/folder/", 404),
        ("/node_modules/../../secret", 404),
        ("/node_modules/%2e%2e/secret", 404),
        ("/node_modules/" + 300 * "a", 404),
        ("/model.tflite", 200),
        ("/../serve_web_demo.py", 404),
    ],
)
def test_no_link_leads_out_of_what_is_served(bare_server, path, status):
    found, content = asked(bare_server, path)
    assert found == status
    assert b"secret" not in content or status == 404


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--model=nowhere.tflite"], "No model can be read at nowhere.tflite"),
        ([f"--model={SERVE}"], "is no TensorFlow Lite file"),
        (["--model={model}", "--node_modules=nowhere"], "nowhere has no @litertjs"),
    ],
)
def test_server_says_what_is_wrong(tmp_path, flags, message):
    model = tmp_path / "model.tflite"
    model.write_bytes(b"\x1c\0\0\0TFL3")
    answer = subprocess.run(
        [sys.executable, SERVE, *(flag.format(model=model) for flag in flags)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert answer.returncode == 1
    assert answer.stderr.startswith("error: ")
    assert message in answer.stderr


def test_server_starts_without_loading_a_framework():
    answer = subprocess.run(
        [sys.executable, "-X", "importtime", SERVE, "--help"],
        capture_output=True,
        text=True,
    )
    assert "--node_modules" in answer.stdout
    loaded = set(re.findall(r"\| +(\w+)$", answer.stderr, re.MULTILINE))
    assert "tff_perfedavg" in loaded
    assert not loaded & {"tensorflow", "ai_edge_litert", "pandas", "numpy"}


def ink_of(browser):
    rgba = browser.run(
        "const paper = document.querySelector('#paper');"
        "return [...paper.getContext('2d')"
        ".getImageData(0, 0, paper.width, paper.height).data]"
        ".filter((_, i) => i % 4 === 3)"
    )
    side = round(len(rgba) ** 0.5)
    return np.reshape(rgba, [side, side]) / 255


def digit_image(ink):
    dots = bounding_square(ink, 32) >= 0.5
    blocks = dots.reshape(8, 4, 8, 4)
    return blocks.mean((1, 3)).astype(np.float32)


def mnist_image(ink):
    grey = bounding_square(ink, 20)
    centre = np.arange(20) + 0.5
    image = np.zeros([28, 28])
    # Halves go up, as JavaScript has it.
    top, left = (
        int(np.clip(np.floor(14 - grey.sum(axis) @ centre / grey.sum() + 0.5), 0, 8))
        for axis in (1, 0)
    )
    image[top : top + 20, left : left + 20] = grey
    return image


def bounding_square(ink, size):
    """The square around all ink, scaled by the area that each part covers."""
    rows, columns = np.nonzero(ink >= 0.5)
    ends = [(axis.min(), axis.max() + 1) for axis in (rows, columns)]
    side = max(end - start for start, end in ends)

    def cover(start, end):
        edges = (start + end - side) / 2 + np.arange(size + 1) * side / size
        pixels = np.arange(len(ink))
        low = np.maximum(edges[:-1, None], pixels)
        high = np.minimum(edges[1:, None], pixels + 1)
        return np.maximum(high - low, 0) * size / side

    down, across = (cover(*end) for end in ends)
    return down @ ink @ across.T
