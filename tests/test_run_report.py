"""The page about runs: what it says, what it needs, and how a browser shows it."""

import base64
import dataclasses
import json
import re
import xml.etree.ElementTree

import numpy as np
import pandas as pd
import pytest

from tests.browser import Browser
from tff_perfedavg import errors
from tff_perfedavg.data.user_store import Description, Rows, User, UserStore
from tff_perfedavg.experiments.assemble.population import build_population
from tff_perfedavg.experiments.evaluation import metrics
from tff_perfedavg.experiments.evaluation.measured_adaptation import MeasuredAdaptation
from tff_perfedavg.experiments.files import trained_model
from tff_perfedavg.experiments.files.run_paths import RunPaths
from tff_perfedavg.experiments.report import figures, run_report
from tff_perfedavg.experiments.settings.experiment import Experiment
from tff_perfedavg.files import atomic_write
from tff_perfedavg.optimization.config import AdaptationConfig

STEPS = 3
DIGITS = Experiment(num_users=12, num_new_users=4)
FED_AVG = dataclasses.replace(DIGITS, algorithm="fed_avg")
REGRESSION = Experiment(
    dataset="sinusoid", model="mlp_regressor", num_users=12, num_new_users=4
)
FIGURES = ["adaptation_curves", "gain_histogram", "before_against_after"]


def make_run(root, name, experiment, *, curves=True, steps=STEPS, seed=0):
    """Leaves behind what a run that was evaluated does; returns where."""
    run = RunPaths(root, name)
    population = build_population(experiment, root)
    trained_model.save(run.model, [np.zeros([3])], experiment)
    rng = np.random.default_rng(seed)
    has_classes = population.description.num_classes is not None
    is_new = np.isin(np.arange(population.num_users), population.new_users)
    user, step = np.indices([population.num_users, steps + 1]).reshape(2, -1)
    # By adapting, one user in four loses, one stays as it is, the others gain.
    gain = np.array([-0.1, 0.0, 0.1, 0.2])[user % 4] * (step == steps)
    accuracy = np.round(rng.uniform(0.3, 0.6, population.num_users), 2)[user] + gain
    per_user = pd.DataFrame(
        {
            "algorithm": experiment.label,
            "users": np.where(is_new, "new", "seen")[user],
            "user": user,
            "step": step,
            "loss": 1 - accuracy,
            "accuracy": accuracy if has_classes else np.nan,
        }
    )
    write(per_user, run.per_user)
    rounds = np.arange(10)
    write(pd.DataFrame({"round_num": rounds, "query_loss": 1 / (1 + rounds)}), run)
    if curves:
        rows = metrics.mean_rows(per_user)
        by_round = [{"round_num": n, **row} for n in (0, 5, 10) for row in rows]
        write(pd.DataFrame(by_round), run.evaluations)
    with atomic_write(run.facts) as file:
        facts = {"seconds": 12.3, "machine": "an abacus", "versions": {"numpy": "1"}}
        file.write(json.dumps(facts).encode())
    return run


def write(frame, place):
    path = place.metrics if isinstance(place, RunPaths) else place
    with atomic_write(path) as file:
        frame.to_csv(file, index=False)


def write_page(runs, path, title="Who gains"):
    page, directory = run_report.write_page(run_report.read_runs(runs), title, path)
    return page.read_text(), directory


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("root")


@pytest.fixture(scope="module")
def runs(root):
    return [
        make_run(root, "first", FED_AVG),
        make_run(root, "second", DIGITS, seed=1),
    ]


@pytest.fixture(scope="module")
def written(runs, root):
    """The page of two runs, where it is, and its figures' directory."""
    path = root / "page.html"
    page, directory = write_page(runs, path)
    return page, path, directory


def page_of(written):
    return written[0]


def test_the_page_asks_nothing_of_the_network(written):
    page = page_of(written)
    # Names of XML's vocabularies are no addresses.
    assert "//" not in re.sub(r'xmlns(:\w+)?="[^"]*"', "", page)
    for address in re.findall(r'(?:src|href)="([^"]*)"', page):
        assert address.startswith(("#", "data:"))
    for address in re.findall(r"url\(([^)]*)\)", page):
        assert address.startswith("#")
    assert "<script" not in page


def test_everything_that_is_referred_to_is_in_the_page_once(written):
    ids = re.findall(r'\bid="([^"]*)"', page_of(written))
    assert len(ids) == len(set(ids))
    referred = re.findall(r'(?:href="|url\()#([^")]*)', page_of(written))
    assert len(referred) > 10
    assert {*referred} <= {*ids}


def test_the_page_has_every_figure_and_each_is_a_file_in_two_forms(written):
    page, _, directory = written
    names = ["learning_curves", *FIGURES, "users_by_gain_0", "users_by_gain_1"]
    assert re.findall(r'<figure id="(\w+)">', page) == names
    assert page.count("<svg") == len(names)
    assert page.count("<figcaption>") == len(names)
    files = {f"{name}.{kind}" for name in names for kind in ("png", "svg")}
    assert {path.name for path in directory.iterdir()} == files
    for name in names:
        png = (directory / f"{name}.png").read_bytes()
        assert png.startswith(b"\x89PNG\r\n\x1a\n")
        assert png.endswith(b"IEND\xaeB`\x82")
        svg = xml.etree.ElementTree.parse(directory / f"{name}.svg").getroot()
        assert svg.tag == "{http://www.w3.org/2000/svg}svg"


def test_the_page_has_every_table_with_what_was_measured(written, runs):
    page = page_of(written)
    captions = re.findall(r"<p>([^<]*)</p>\s*<table", page)
    words = (
        "before (0 steps)",
        "number of classes",
        "evenly",
        "second against",
        "took",
        "Settings",
    )
    assert len(captions) == len(words)
    for caption, word in zip(captions, words, strict=True):
        assert word in caption
    summary = metrics.summarize(pd.concat(pd.read_csv(run.per_user) for run in runs))
    for _, row in summary.iterrows():
        if row.name[2] in (0, 1, STEPS):
            # Halves go up.
            assert f"<td>{100 * row['accuracy'] + 1e-9:.1f}</td>" in page
    for word in ("an abacus", "12.3", "FedAvg + update", "inner_learning_rate"):
        assert word in page


def test_four_users_have_neither_an_interval_nor_a_band(written, runs):
    tables = re.findall(r"<table.*?</table>", page_of(written), re.DOTALL)
    (table,) = (table for table in tables if "users better" in table)
    cells = (re.findall(r"<td>(.*?)</td>", row) for row in table.split("<tr>"))
    seen, new = (row for row in cells if row)
    assert "-" not in seen
    assert new[1:3] == ["-", "-"]
    per_user = pd.concat(pd.read_csv(run.per_user) for run in runs)
    curves = {"A": pd.read_csv(runs[0].evaluations)}
    for figure in figures.adaptation_curves(per_user), figures.learning_curves(curves):
        for panel in figure.axes:
            drawn = [bool(band.get_paths()) for band in panel.collections]
            assert drawn == [panel.get_title() != "New users"] * 2


def test_the_findings_count_users_as_one_does_by_hand(written, runs):
    findings = re.findall(r"<li>(.*?)</li>", page_of(written))
    assert len(findings) == 4
    for run, label, said in zip(
        runs,
        ("FedAvg + update", "Per-FedAvg exact"),
        (findings[:2], findings[2:]),
        strict=True,
    ):
        population = build_population(DIGITS, run.root)
        for group, users, finding in (
            ("seen", population.training_users, said[0]),
            ("new", population.new_users, said[1]),
        ):
            kind = np.bincount(users % 4, minlength=4)
            mean = 100 * (kind @ [-0.1, 0.0, 0.1, 0.2]) / len(users)
            assert finding == (
                f"{label}: of {len(users)} {group} users, {kind[2] + kind[3]} gain by "
                f"adapting, {kind[0]} lose; on average {mean:+.1f} points of accuracy."
            )


def test_baselines_stand_beside_the_methods_and_in_the_findings(tmp_path):
    runs = [
        make_run(tmp_path, "first", FED_AVG),
        make_run(tmp_path, "second", DIGITS, seed=1),
    ]
    for run, accuracy in zip(runs, (0.9, 0.25), strict=True):
        per_user = pd.read_csv(run.per_user)
        rows = per_user[per_user["step"] == 0].assign(accuracy=accuracy)
        frames = [
            rows.assign(baseline=name) for name in ("label shares", "majority class")
        ]
        write(pd.concat(frames), run.baselines)
    page, directory = write_page(runs, tmp_path / "page.html")
    findings = re.findall(r"<li>(.*?)</li>", page)
    assert len(findings) == 4 + 2
    for group, said in zip(("seen", "new"), findings[4:], strict=True):
        start = f"Of {group} users, FedAvg + label shares reaches 90.0 % of accuracy"
        assert said.startswith(start)
    tables = re.findall(r"<p>([^<]*)</p>\s*(<table.*?</table>)", page, re.DOTALL)
    (caption, table), (_, by_classes) = tables[:2]
    assert "Baselines owe nothing" in caption
    names = [
        "majority class for FedAvg",
        "majority class for Per-FedAvg exact",
        "FedAvg + label shares",
        "Per-FedAvg exact + label shares",
    ]
    for name in names:
        assert f">{name}</th>" in table
        assert f">{name}</th>" in by_classes
    # Baselines are above the methods, in both groups.
    marks = re.findall(r"<th[^>]*>(baseline|method)</th>", table)
    assert marks == ["baseline", "method"] * 2
    # Of each kind the best alone is drawn.
    figure = (directory / "adaptation_curves.svg").read_text()
    drawn = [name for name in names if f"baseline: {name}<" in figure]
    assert drawn == ["majority class for FedAvg", "FedAvg + label shares"]
    # Nobody adapts who takes no steps.
    rows = re.findall(r"<th>-</th>(.*?)</tr>", table, re.DOTALL)
    assert len(rows) == 2 * 4
    assert all(">-</td>" in row for row in rows)


def test_figures_and_page_are_the_same_every_time(written, runs, tmp_path):
    page, _, directory = written
    again, other = write_page(runs, tmp_path / "page.html")
    assert again == page
    for path in directory.glob("*.svg"):
        assert (other / path.name).read_bytes() == path.read_bytes()


def test_names_with_special_characters_are_shown_as_they_are(tmp_path):
    names = ["<b>tea</b>", "5 $ & more $", "5 $_x"]
    rng = np.random.default_rng(0)

    def rows():
        return Rows(rng.normal(size=[6, 2]), np.arange(6) % 3)

    store = UserStore.write(
        tmp_path / "a&b",
        (User(rows(), rows(), is_new=number > 3) for number in range(6)),
        Description("drinks", 3, class_names=names, provenance="<i>by hand</i>"),
    )
    experiment = Experiment(store=str(store.path))
    runs = [make_run(tmp_path, name, experiment) for name in ("a<b", "c&d")]
    title = "Who <gains> & who does not"
    page, directory = write_page(runs, tmp_path / "page.html", title)
    assert "<title>Who &lt;gains&gt; &amp; who does not</title>" in page
    assert "<h1>Who &lt;gains&gt; &amp; who does not</h1>" in page
    for raw in ("<b>", "<i>", "a<b", "c&d"):
        assert raw not in page
    for shown in ("a&lt;b: of 4 seen users", "c&amp;d: of 2 new users"):
        assert shown in page
    figure = (directory / "users_by_gain_0.svg").read_text()
    for shown in ("&lt;b&gt;tea&lt;/b&gt;", "5 $ &amp; more $", "5 $_x"):
        assert shown in figure
        assert shown in page


def test_a_single_run_without_evaluations_while_it_trained(root, tmp_path):
    run = make_run(root, "plain", DIGITS, curves=False)
    page, _ = write_page([run], tmp_path / "page.html")
    assert re.findall(r'<figure id="(\w+)">', page) == [*FIGURES, "users_by_gain_0"]
    assert "second against" not in page
    run.facts.unlink()
    page, _ = write_page([run], tmp_path / "page.html")
    assert "an abacus" not in page
    assert "users seen and new" in page


def test_curves_of_the_runs_that_have_some(runs, root, tmp_path):
    without = make_run(root, "without", DIGITS, curves=False)
    page, _ = write_page([runs[0], without], tmp_path / "page.html")
    assert '<figure id="learning_curves">' in page


def test_runs_of_different_users_or_steps_are_shown_but_not_compared(
    runs, root, tmp_path
):
    others = make_run(root, "others", dataclasses.replace(DIGITS, num_users=10))
    fewer = make_run(root, "fewer", DIGITS, steps=2)
    for second in (others, fewer):
        page, _ = write_page([runs[0], second], tmp_path / "page.html")
        assert "second against" not in page
        assert page.count("<svg") == 6


def measured_by(run, path, seed=0, **changes):
    """Says in a run's file how its users adapted."""
    config = AdaptationConfig(
        **{"inner_learning_rate": 0.03, "num_steps": 3, **changes}
    )
    told = str(MeasuredAdaptation.of(config, seed))
    write(pd.read_csv(path).assign(adaptation=told), path)


@pytest.fixture
def told(tmp_path):
    """Two runs that say how their users adapted."""
    runs = [make_run(tmp_path, n, e) for n, e in (("a", FED_AVG), ("b", DIGITS))]
    for run in runs:
        rows = pd.read_csv(run.per_user)
        write(rows[rows["step"] == 0].assign(baseline="majority class"), run.baselines)
        for path in (run.per_user, run.baselines):
            measured_by(run, path)
    return runs


def test_the_page_says_how_users_adapted(told, tmp_path):
    page, _ = write_page(told, tmp_path / "page.html")
    assert "Users adapt all weights in 3 steps at rate 0.03." in page
    assert "second against" in page
    assert run_report.warnings_of(run_report.read_runs(told)) == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"moves": "head"}, "which weights move"), ({"seed": 1}, "seed")],
)
def test_runs_that_were_evaluated_differently_are_not_compared(
    told, tmp_path, changes, words
):
    for path in (told[1].per_user, told[1].baselines):
        measured_by(told[1], path, **changes)
    page, _ = write_page(told, tmp_path / "page.html")
    said = (
        f"The runs were evaluated differently ({words}), so that they are not compared"
    )
    assert f"<li>{said}" in page
    assert "second against" not in page
    assert "Per-FedAvg exact: users adapt" in page


def test_baselines_of_another_adaptation_are_left_out_with_a_warning(told, tmp_path):
    measured_by(told[0], told[0].baselines, seed=3)
    records = run_report.read_runs(told)
    (said,) = run_report.warnings_of(records)
    assert re.match("The baselines of FedAvg .* evaluate the run again", said)
    assert [record.baselines is None for record in records] == [True, False]


def test_rows_of_several_adaptations_are_refused(told):
    rows = pd.read_csv(told[0].per_user)
    rows.loc[0, "adaptation"] = "num_steps=2"
    write(rows, told[0].per_user)
    with pytest.raises(
        errors.CheckpointError, match=r"per_user\.csv has .*one for all"
    ):
        run_report.read_runs(told)


def test_where_labels_are_no_classes_losses_are_told(root, tmp_path):
    run = make_run(root, "sinusoid", REGRESSION)
    rows = pd.read_csv(run.per_user)
    write(rows[rows["step"] == 0].assign(baseline="local training"), run.baselines)
    page, directory = write_page([run], tmp_path / "page.html")
    gain = "of loss less"
    (seen, new, *_) = re.findall(r"<li>(.*?)</li>", page)
    population = build_population(REGRESSION, root)
    kind = np.bincount(population.training_users % 4, minlength=4)
    mean = kind @ [-0.1, 0.0, 0.1, 0.2] / kind.sum()
    assert seen == (
        f"Per-FedAvg exact: of {kind.sum()} seen users, {kind[2] + kind[3]} gain by "
        f"adapting, {kind[0]} lose; on average {mean:.3g} {gain}."
    )
    assert f"{len(population.new_users)} new users" in new
    assert "nan" not in page.lower()
    for words in ("labels", "classes"):
        assert words not in "".join(re.findall(r"<(?:p|figcaption)>(.*?)<", page))
    assert "accuracy" not in "".join(re.findall(r"<table.*?</table>", page, re.DOTALL))
    assert "evenly" not in page
    assert "labels held" not in (directory / "users_by_gain_0.svg").read_text()


@pytest.mark.parametrize("fresh", [True, False])
def test_the_findings_say_whose_labels_are_users_own(root, tmp_path, fresh):
    own = DIGITS.replace(partition="iid", own_labels=5, fresh_labels=fresh)
    run = make_run(root, f"own_labels_{fresh}", own)
    found = re.findall(r"<li>(.*?)</li>", write_page([run], tmp_path / "page.html")[0])
    (told,) = (words for words in found if "of its own" in words)
    assert told.startswith(
        "Per-FedAvg exact: every user has 5 labels of its own; before adapting one row "
        "in 5 is right by chance"
    )
    assert told.endswith("Training drew them afresh in every round.") == fresh


def test_of_many_users_those_at_either_end_are_drawn_and_it_says_so():
    user = np.repeat(np.arange(100), 2)
    step = np.tile([0, 1], 100)
    rows = pd.DataFrame({"algorithm": "A", "users": "seen", "user": user, "step": step})
    figure = figures.users_by_gain(rows.assign(accuracy=user * step / 100), None, [])
    (panel,) = figure.axes
    heights = [bar.get_height() for bar in panel.patches]
    np.testing.assert_allclose(heights, [*range(30), *range(70, 100)])
    said = "users, sorted by gain (of 100, the 30 at either end)"
    assert panel.get_xlabel() == said


def test_a_run_without_its_files_is_told_by_the_file(root):
    run = make_run(root, "damaged", DIGITS)
    run.per_user.unlink()
    with pytest.raises(errors.CheckpointError, match=r"per_user\.csv cannot be read"):
        run_report.read_runs([run])


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with Browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


# Every text with its colour and the page's, as red, green and blue.
TEXTS = """
const rgb = (colour) => colour.match(/[\\d.]+/g).map(Number);
const page = rgb(getComputedStyle(document.body).backgroundColor);
return [...document.querySelectorAll('body *')]
  .filter((e) => [...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim()))
  .filter((e) => !e.closest('style, defs, metadata, title'))
  .map((e) => {
    const style = getComputedStyle(e);
    const ink = e instanceof SVGElement ? style.fill : style.color;
    return [e.textContent.trim(), rgb(ink), page];
  });
"""


def contrast(colour, other):
    """WCAG 2's contrast ratio of two colours."""

    def luminance(rgb):
        share = np.array(rgb[:3]) / 255
        linear = np.where(
            share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4
        )
        return linear @ [0.2126, 0.7152, 0.0722]

    dark, light = sorted([luminance(colour), luminance(other)])
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_browser_shows_the_page_in_light_and_in_dark(browser, written, scheme):
    feature = {"name": "prefers-color-scheme", "value": scheme}
    browser.emulate("setEmulatedMedia", features=[feature])
    browser.get(written[1].as_uri())
    assert browser.console() == []
    requests = "return performance.getEntriesByType('resource').map((e) => e.name)"
    assert browser.run(requests) == []
    # No figure is empty, or cut off.
    for width, height in browser.run(
        "return [...document.querySelectorAll('svg')].map((svg) => {"
        "const box = svg.getBoundingClientRect(); return [box.width, box.height]})"
    ):
        assert width > 300
        assert height > 100
    texts = browser.run(TEXTS)
    shown = {text for text, _, _ in texts}
    assert {"Who gains", "users, sorted by gain", "Users seen in training"} < shown
    page = texts[0][2]
    assert (np.mean(page[:3]) > 128) == (scheme == "light")
    low = {text for text, ink, page in texts if contrast(ink, page) < 4.5}
    assert low == set()


@pytest.mark.parametrize("width", [400, 1200])
def test_the_page_is_as_wide_as_the_screen(browser, written, width):
    browser.emulate(
        "setDeviceMetricsOverride",
        width=width,
        height=800,
        deviceScaleFactor=1,
        mobile=False,
    )
    browser.get(written[1].as_uri())
    found = browser.run(
        "const page = document.documentElement;"
        "return [innerWidth, page.clientWidth, page.scrollWidth]"
    )
    browser.emulate("clearDeviceMetricsOverride")
    assert found[0] == width
    assert found[2] <= found[1]


def test_the_page_prints(browser, written):
    browser.get(written[1].as_uri())
    pdf = base64.b64decode(browser.print_page())
    assert pdf.startswith(b"%PDF-")
    # Six figures and five tables take more than a page.
    assert len(re.findall(rb"/Type\s*/Page\b", pdf)) > 1
