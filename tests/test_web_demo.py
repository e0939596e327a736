"""The page of digits in a browser: what it shows is what Python computes."""

import contextlib
import hashlib
import http.client
import json
import re
import subprocess
import sys

import numpy as np
import pytest
from selenium.common.exceptions import JavascriptException

import tff_perfedavg as pfa
from tests.phone_layers import phone_layers
from tests.web_page import (
    BUILD,
    PAGE,
    SERVE,
    hosted,
    served,
    start_browser,
    wait_for,
)
from tff_perfedavg.experiments.deploy import web_runtime
from tff_perfedavg.ondevice import flatbuffer

RATE, STEPS = 0.05, 5
# In the place of a side: a model of all layers that phones' models have.
PHONE = "phone"


@pytest.fixture(scope="module")
def export(tmp_path_factory):
    """Exports an untrained model of images of a side, once each."""
    made = {}

    def export_side(side, seed=0):
        if (side, seed) not in made:
            path = tmp_path_factory.mktemp("exported") / f"{side}.tflite"
            model = (
                phone_layers() if side == PHONE else pfa.models.mlp((side, side), 10)
            )
            weights = [np.asarray(w) for w in model.init(seed)]
            config = pfa.ondevice.ExportConfig(batch_size=4, max_local_steps=0)
            card = {"inner_learning_rate": RATE}
            pfa.export_tflite(model, weights, path, config, card=card)
            made[side, seed] = path
        return made[side, seed]

    return export_side


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    opened = start_browser(tmp_path_factory.mktemp("profile"))
    yield opened
    opened.quit()


@pytest.fixture(scope="module")
def site(export, tmp_path_factory):
    """The app of a model of 8x8, written for a static host; and its model file."""
    directory = tmp_path_factory.mktemp("site") / "site"
    command = [sys.executable, BUILD, f"--model={export(8)}"]
    subprocess.run([*command, f"--output_dir={directory}"], check=True)
    (model,) = directory.glob("page-*/digits.tflite")
    with hosted(directory) as host:
        yield host.url, model


@pytest.fixture
def page(browser, export):
    """The page with a model of 8x8, open."""
    with served(export(8)) as url:
        browser.open(url)
        yield browser


def flat_image():
    return images(8, 1).ravel().tolist()


def images(side, count):
    side = 8 if side == PHONE else side
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


@pytest.mark.parametrize("side", [8, 28, pytest.param(PHONE, marks=pytest.mark.slow)])
def test_page_predicts_adapts_and_resets_as_python_does(browser, export, side):
    python = pfa.ondevice.OnDeviceModel(export(side))
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
        assert browser.text("#adaptations") == "6"
        assert re.sub(r"\D", "", browser.text("#corrections")) == "4159"
        assert float(browser.text("#loss")) == pytest.approx(loss, abs=1e-4)
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
        assert "were kept" in browser.text("#kept")
        assert re.sub(r"\D", "", browser.text("#corrections")) == "012"
        assert browser.text("#adaptations") == "3"
    with served(export(8, seed=1), port=port) as url:
        browser.open(url)
        assert "belongs to another model" in browser.text("#kept")
        assert browser.run("return demo.weights()") != personal
    with served(export(8), port=port) as url:
        browser.open(url)
        assert browser.run("return demo.weights()") == personal
        browser.find("#forget").click()
        browser.find("#ask .no").click()
        assert browser.run("return demo.weights()") == personal
        browser.find("#forget").click()
        browser.find("#ask .yes").click()
        wait_for(lambda: "Forgotten" in browser.text("#kept"))
        assert browser.run("return demo.weights()") == initial
        browser.refresh()
        assert browser.run("return demo.weights()") == initial
        assert browser.text("#corrections") == ""


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
    page.module(
        "const storage = await load('storage.js');"
        "const {kept} = await storage.load(demo.keys());"
        f"{damage};"
        "await storage.save(demo.keys(), kept);"
    )
    page.refresh()
    assert "cannot be used and is ignored" in page.text("#kept")
    assert page.run("return demo.weights()") == initial


def test_a_model_exported_anew_finds_what_was_taught(browser, export, tmp_path):
    again = tmp_path / "again.tflite"
    model = pfa.models.mlp((8, 8), 10)
    weights = [np.asarray(w) for w in model.init(0)]
    card = {"inner_learning_rate": RATE, "license": "MIT"}
    config = pfa.ondevice.ExportConfig(batch_size=5, max_local_steps=0)
    pfa.export_tflite(model, weights, again, config, card=card)
    with served(export(8)) as url:
        port = int(url.rstrip("/").rpartition(":")[2])
        browser.open(url)
        browser.run("return demo.correct(...arguments)", flat_image(), 7)
        personal = browser.run("return demo.weights()")
    with served(again, port=port) as url:
        browser.open(url)
        assert browser.run("return demo.weights()") == personal
        assert "were kept" in browser.text("#kept")


def test_what_version_0_1_0_kept_under_a_files_hash_is_found_and_moved(page, export):
    hash_of_file = hashlib.sha256(export(8).read_bytes()).hexdigest()
    model_id = pfa.ondevice.OnDeviceModel(export(8)).card["model_id"]
    assert page.run("return demo.keys()") == [model_id, hash_of_file]
    page.run("return demo.correct(...arguments)", flat_image(), 7)
    personal = page.run("return demo.weights()")

    def run(body):
        start = "const storage = await load('storage.js'); const [model, file] = given;"
        return page.module(start + body, model_id, hash_of_file)

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
    python = pfa.ondevice.OnDeviceModel(path)
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
def test_a_damaged_model_file_is_refused_before_it_is_run(browser, site, place):
    url, path = site
    whole = path.read_bytes()
    content = bytearray(whole)
    content[place] ^= 4
    path.write_bytes(content)
    try:
        with pytest.raises(JavascriptException, match="The model file is damaged"):
            browser.open(url)
    finally:
        path.write_bytes(whole)


def test_steps_without_finite_answers_are_undone(page):
    before = page.run("return demo.weights()")
    answer = page.module(
        "const {PersonalModel} = await load('model.js');"
        "const {download, RUNTIME} = await load('dom.js');"
        "const content = await download('digits.tflite');"
        "const model = await PersonalModel.load(content, RUNTIME);"
        "const example = {x: Float32Array.from(given[0]), label: 7};"
        "const messages = [];"
        "for (const [rate, steps] of [[1e30, 1], [0.1, 10001], [0.1, 2 ** 31]])"
        "await model.adapt([example], rate, steps)"
        ".catch((error) => messages.push(error.message));"
        # Begun at once, ended one after the other.
        "const [loss, first, ...after] = await Promise.all(["
        "model.adapt([example], 0.1, 1), model.infer(example.x),"
        "model.adapt([example], 0.1, 1), model.infer(example.x)]);"
        "return {messages, loss, first: first[7], second: after[1][7]};",
        flat_image(),
    )
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
    assert any(url.endswith("/digits.tflite") for url in urls)
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
    python = pfa.ondevice.OnDeviceModel(export(8))
    seven = [(0.25, 0.2), (0.75, 0.2), (0.6, 0.5), (0.4, 0.85)]
    page.draw(seven)
    wait_for(lambda: np.isfinite(shown(page)).all())
    ink = ink_of(page)
    assert 0.05 < ink.mean() < 0.5
    x = digit_image(ink)[np.newaxis]
    wait_for(lambda: np.allclose(shown(page), python.infer(x)[0], atol=1e-5))
    assert page.text("#prediction") == f"I read a {python.infer(x).argmax()}."

    page.find("#labels button:nth-child(8)").click()
    wait_for(lambda: page.text("#adaptations") == "1")
    python.adapt(x, np.array([7]), RATE, STEPS)
    wait_for(lambda: np.allclose(shown(page), python.infer(x)[0], atol=1e-5))
    assert page.text("#prediction") == "I read a 7."

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
    wait_for(lambda: re.sub(r"\D", "", page.text("#corrections")) == "1")
    page.find("#paper").send_keys("\ue017")
    wait_for(lambda: np.isnan(shown(page)).all())


@pytest.mark.parametrize("side", [8, 28])
def test_a_drawing_becomes_the_image_that_is_documented(page, side):
    page.draw([(0.3, 0.1), (0.35, 0.55), (0.8, 0.6)], [(0.7, 0.3), (0.68, 0.9)])
    ink = ink_of(page)
    image = page.module(
        "const {toImage} = await load('drawing.js');"
        "return [...toImage(Float32Array.from(given[0]), given[1])];",
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
    assert page.text("#adaptations") == "0"


def test_a_model_that_the_page_cannot_draw_for_is_named(browser, site, tmp_path):
    other = tmp_path / "other.tflite"
    model = pfa.models.logistic_regression((3,), 2)
    weights = [np.asarray(w) for w in model.init(0)]
    pfa.export_tflite(
        model, weights, other, pfa.ondevice.ExportConfig(max_local_steps=0)
    )
    refused = pytest.raises(RuntimeError, match=r"other\.tflite tells 2 classes")
    with refused, served(other):
        pass
    url, path = site
    whole = path.read_bytes()
    try:
        path.write_bytes(other.read_bytes())
        with pytest.raises(JavascriptException, match="2 classes from inputs of shape"):
            browser.open(url)
    finally:
        path.write_bytes(whole)
    assert "2 classes" in browser.text("#alert")
    assert browser.run("return document.querySelector('#clear').disabled")
    for _ in range(2):
        with pytest.raises(JavascriptException, match="2 classes"):
            browser.run("return demo.predict([1, 2, 3])")


@pytest.fixture(scope="module")
def modules(tmp_path_factory):
    """Stand-ins for npm packages."""
    root = tmp_path_factory.mktemp("modules")
    for package, path in web_runtime.FILES.values():
        (root / package / path).parent.mkdir(parents=True, exist_ok=True)
        (root / package / path).write_text("stand-in")
    wanted = json.loads((PAGE / "package.json").read_text())["dependencies"]
    for name, version in wanted.items():
        (root / name / "package.json").write_text(json.dumps({"version": version}))
    return root


@pytest.fixture(scope="module")
def bare_server(modules, export):
    """A server's port."""
    with served(export(8), f"--node_modules={modules}") as url:
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
    "path",
    [
        "/node_modules/@litertjs/core/package.json",
        "/../serve_web_demo.py",
        "/%2e%2e/serve_web_demo.py",
        "//etc/passwd",
        "/icons/",
        "/icons/../../serve_web_demo.py",
        "/package.json",
        "/signs.html",
        "/" + 300 * "a",
    ],
)
def test_nothing_is_served_but_the_app(bare_server, path):
    assert asked(bare_server, path)[0] == 404


def test_the_server_gives_what_is_built(bare_server, modules, export, tmp_path):
    command = [sys.executable, BUILD, f"--model={export(8)}"]
    command += [f"--node_modules={modules}", f"--output_dir={tmp_path / 'site'}"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    listed = json.loads((tmp_path / "site/site.json").read_text())["files"]
    assert {"index.html", "manifest.webmanifest", "service-worker.js"} < {*listed}
    for name in listed:
        status, content = asked(bare_server, f"/{name}")
        assert status == 200
        assert content == (tmp_path / "site" / name).read_bytes(), name


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--model=nowhere.tflite"], "No model can be read at nowhere.tflite"),
        ([f"--model={SERVE}"], "is no TensorFlow Lite file"),
        (["--model={no_card}"], "no_card.tflite has no card"),
        (["--model={model},{model}"], "are both for the page of digits"),
        (["--model="], "names no file"),
        (["--model={model}", "--node_modules=nowhere"], "nowhere has no @litertjs"),
    ],
)
def test_server_says_what_is_wrong(export, tmp_path, flags, message):
    model, no_card = export(8), tmp_path / "no_card.tflite"
    no_card.write_bytes(b"\x1c\0\0\0TFL3")
    places = {"model": model, "no_card": no_card}
    answer = subprocess.run(
        [sys.executable, SERVE, *(flag.format(**places) for flag in flags)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert answer.returncode == 1
    assert answer.stderr.startswith("error: ")
    assert message in answer.stderr


@pytest.mark.parametrize("script", [SERVE, BUILD])
def test_the_commands_start_without_loading_a_framework(script):
    answer = subprocess.run(
        [sys.executable, "-X", "importtime", script, "--help"],
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
