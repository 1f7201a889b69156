"""The report of real runs: tables, pictures and the page, as they are and as a browser shows it."""

import csv
import html
import html.parser
import importlib.util
import io
import itertools
import json
import re
import shutil
import statistics
import subprocess

import finished
import numpy as np
import pytest
from helpers import DIGITS, exit_code, load, result
from PIL import Image

from common.reports import page, reading, report
from common.runs import log, workdir
from common.sweeps import population
from common.training.saved import read_config

TEST = "eval/test/accuracy"


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two seeds of an MLP on digits, and one of another rate."""
    folder = tmp_path_factory.mktemp("runs")
    short = {"train.duration": "40 steps", "evals.test.every": "20 steps"}
    own = {"mlp-0": {"seed": 0}, "mlp-1": {"seed": 1}, "fast": {"optim.lr": 0.01}}
    configs = [load(f"{DIGITS}:mlp", **short, **overrides) for overrides in own.values()]
    population.run(configs, [folder / name for name in own])
    return folder


@pytest.fixture
def sweep(runs, tmp_path):
    """A folder of three configs by three seeds, made of copies of a run with other numbers, and of
    what else may lie there."""
    draw = np.random.default_rng(0)
    for i, name in enumerate(("a|<b></script>&*", "adamw", "lion")):
        for seed in range(3):
            folder = tmp_path / f"sweep/{name[0]}{i}-{seed}"
            shutil.copytree(runs / "fast", folder, ignore=shutil.ignore_patterns("checkpoints"))
            config = read_config(folder)
            config["seed"], config["optim"]["name"] = seed, name
            (folder / "config.json").write_text(json.dumps(config))
            value = 0.5 + (0, 0.02, 0.3)[i] + 0.05 * draw.normal()
            line = {"step": 41, TEST: value, "eval/valid/accuracy": 1 - value}
            with open(folder / "metrics.jsonl", "a") as log:
                log.write(json.dumps(line) + "\n")
            ends = {"test": {"accuracy": value}, "valid": {"accuracy": 1 - value}}
            ended = result(folder) | {"steps": 41, "eval": ends}
            (folder / "result.json").write_text(json.dumps(ended))
    for name in ("stopped", "broken"):
        shutil.copytree(tmp_path / "sweep/l2-0", tmp_path / "sweep" / name)
        (tmp_path / "sweep" / name / "result.json").unlink()
    (tmp_path / "sweep/broken/failed.txt").write_text("step 7: loss is not finite\n")
    (tmp_path / "sweep/notes").mkdir()
    (tmp_path / "sweep/best.json").write_text("{}")
    return tmp_path / "sweep"


def printed(capsys, *argv) -> str:
    """What the script prints."""
    assert exit_code("report", *map(str, argv)) == 0
    return capsys.readouterr().out


def refused(capsys, *argv) -> str:
    """The one line of a script that ends with exit code 2."""
    assert exit_code("report", *map(str, argv)) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    return lines[0]


# ------------------------------------------------------------------------------------------- table


def test_a_line_is_the_mean_over_the_seeds(runs, capsys):
    lines = printed(capsys, *(runs / name for name in ("mlp-0", "fast", "mlp-1"))).splitlines()
    values = [result(runs / f"mlp-{seed}")["eval"]["test"]["accuracy"] for seed in (0, 1)]
    said = f"{statistics.mean(values):.4f} ± {statistics.stdev(values):.4f}"
    mlp, fast = (next(x for x in lines if x.startswith(name)) for name in ("mlp ", "fast "))
    assert "0, 1" in mlp
    assert said in mlp
    assert f"{result(runs / 'fast')['eval']['test']['accuracy']:.4f}" in fast
    start = json.loads((runs / "fast/environment.json").read_text())[0]
    for known in (start["commit"][:7], start["versions"]["jax"], f"{start['device']} x "):
        assert known in fast
    assert sum("one seed: not distinguishable" in line for line in lines) == 1
    best = max(("mlp", "fast"), key=lambda name: next(x for x in lines if x.startswith(f"{name} "))
               .split(TEST)[0].split("±")[0].split()[-1])  # fmt: skip
    assert f"best: {best}, by {TEST} itself: not an estimate for new data" in lines


def test_a_folder_is_its_runs_called_by_what_differs(runs, capsys):
    given = json.loads(printed(capsys, runs, "--format", "json"))
    by_name = printed(capsys, *(runs / n for n in ("fast", "mlp-0", "mlp-1")), "--format", "json")
    known = {"mlp": "optim.lr=0.003", "fast": "optim.lr=0.01"}
    for row, same in zip(given["rows"], json.loads(by_name)["rows"], strict=True):
        assert row == same | {"name": known[same["name"]]}
    twice = json.loads(printed(capsys, runs, runs, runs / "fast", "--format", "json"))
    for row, same in zip(twice["rows"], given["rows"], strict=True):
        assert row == same | {"name": f"{runs.name} {same['name']}"}


def test_what_is_not_finished_in_a_folder_is_named_and_left_out(sweep, capsys):
    out = printed(capsys, sweep)
    said = "left out: broken (failed: step 7: loss is not finite), stopped (not finished)"
    assert out.splitlines()[-1] == said
    assert f"{sweep}/stopped: not finished" in refused(capsys, sweep / "stopped")
    with workdir.Lock(sweep / "stopped") as lock:
        lock.hold()
        assert refused(capsys, sweep / "stopped").endswith("/stopped: still running")
    shutil.copytree(sweep / "broken", sweep / "all/broken")
    assert "there is no finished run; left out: broken" in refused(capsys, sweep / "all")


def unquoted(cell: str) -> str:
    return re.sub(r"\\(.)", r"\1", cell.strip())


def test_all_formats_say_the_same(sweep, capsys):
    text, markdown, table, found = (
        printed(capsys, sweep, "--format", kind) for kind in ("text", "markdown", "csv", "json")
    )
    found, table = json.loads(found), list(csv.DictReader(io.StringIO(table)))
    lines = [line for line in markdown.splitlines() if line.startswith("|")]
    header, dashes, *rows = (
        [unquoted(cell) for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines
    )
    assert dashes == ["---"] * len(header)
    assert len(rows) == len(found["rows"]) == 3
    assert len(table) == 9
    assert [row["best"] for row in found["rows"]] == [True, False, False]
    for cells, row, line in zip(rows, found["rows"], text.splitlines()[2:], strict=False):
        cell = dict(zip(header, cells, strict=True))
        assert re.sub(" +", " ", line) == re.sub(" +", " ", " ".join(cells))
        assert cell["runs"] == row["name"] == f"optim.name={row['settings']['optim.name']}"
        assert cell["seeds"] == ", ".join(map(str, row["seeds"])) == "0, 1, 2"
        assert cell[TEST] == f"{row['mean']:.4f} ± {row['std']:.4f}"
        assert row["mean"] == pytest.approx(statistics.mean(row["values"]))
        assert cell["parameters"] == f"{row['parameters']:,}"
        against = row["against_the_best"]
        if against is None:
            assert cell["against the best"] == "best"
        else:
            numbers = [f"{against[key]:+.4f}" for key in ("mean", "low", "high")]
            assert re.findall(r"[+-][\d.]+", cell["against the best"]) == numbers
            unsure = "not distinguishable" in cell["against the best"]
            assert unsure == (not against["distinguishable"])
            assert against["distinguishable"] == (against["low"] > 0 or against["high"] < 0)
        mine = [each for each in table if each["name"] == row["name"]]
        assert [float(each[TEST]) for each in mine] == row["values"]
        assert [float(each["eval/valid/accuracy"]) for each in mine] == row["selecting"]
        assert {each["optim.name"] for each in mine} == {row["settings"]["optim.name"]}
        assert [each["path"] for each in mine] == row["paths"]
        for each in mine:
            assert float(each["mean"]) == row["mean"]
            assert each["best"] == str(row["best"])
            assert each["against_the_best_low"] == ("" if against is None else str(against["low"]))
    assert {row["against_the_best"] and row["against_the_best"]["distinguishable"]
            for row in found["rows"]} == {None, True, False}  # drawn to be so  # fmt: skip
    notes = [unquoted(line[2:]) for line in markdown.splitlines() if line.startswith("- ")]
    assert notes == found["notes"] == text.splitlines()[-len(notes) :]


def test_folds_are_averaged_in_every_format(tmp_path, capsys):
    for seed, number in itertools.product((0, 1), (1, 3)):
        folder = finished.write(tmp_path / f"cv/{seed}{number}", seed)
        config = read_config(folder)
        config["data"]["train"] = f"train[not fold {number}/3]"
        config["evals"]["test"]["split"] = f"train[fold {number}/3]"
        (folder / "config.json").write_text(json.dumps(config))
    text = printed(capsys, tmp_path / "cv")
    assert "0, 1; folds 1, 3 of 3" in text
    assert "cv: without fold 2" in text
    (row,) = json.loads(printed(capsys, tmp_path / "cv", "--format", "json"))["rows"]
    assert (row["seeds"], row["folds"]) == ([0, 0, 1, 1], [1, 3, 1, 3])
    table = csv.DictReader(io.StringIO(printed(capsys, tmp_path / "cv", "--format", "csv")))
    assert [(line["seed"], line["fold"]) for line in table] == [
        ("0", "1"), ("0", "3"), ("1", "1"), ("1", "3")
    ]  # fmt: skip


def test_what_is_not_there_is_one_line(runs, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    assert "no run there" in refused(capsys, tmp_path)
    assert "no run there" in refused(capsys, tmp_path / "nowhere")
    fast = runs / "fast"
    assert "eval/test/f1" in refused(capsys, fast, "--metric", "eval/test/f2")
    assert "eval/test/f1" in refused(capsys, fast, "--select", "max eval/test/f2")
    assert "write 'max eval/valid/accuracy'" in refused(capsys, runs, "--select", "max  ")
    assert "invalid choice: 'xml'" in refused(capsys, fast, "--format", "xml")
    assert "does not end in .png" in refused(capsys, fast, "--png", tmp_path / "curves.gif")
    missing = tmp_path / "none/page.html"
    assert refused(capsys, fast, "--html", missing).startswith(f"error: --html: {missing}: No such")


# ---------------------------------------------------------------------------------------- pictures


def test_pictures_are_where_they_are_asked_for_and_out_of_the_way_of_programs(
    runs, tmp_path, capsys
):
    pytest.importorskip("matplotlib")
    table = printed(capsys, runs, "--format", "json")
    words = str(runs), "--format", "json", "--png", str(tmp_path / "a.png")
    assert exit_code("report", *words) == 0
    said = capsys.readouterr()
    assert said.out == table
    drawn = {"a.png", "a-against.png", "a-parallel.png"}
    assert {path.name for path in tmp_path.iterdir()} == drawn
    for name in drawn:
        assert f"{tmp_path / name}: " in said.err
        assert np.asarray(Image.open(tmp_path / name)).std() > 10
    out = printed(capsys, runs / "mlp-0", runs / "mlp-1", "--png", tmp_path / "b.png")
    assert out.splitlines()[-1].startswith(f"{tmp_path / 'b.png'}: ")
    assert {path.name for path in tmp_path.iterdir()} == drawn | {"b.png"}


@pytest.mark.slow
def test_what_predictions_cost_is_in_every_format(runs, tmp_path, capsys):
    Image.new("L", (8, 8)).save(tmp_path / "a.png")
    words = runs, "--cost", tmp_path / "a.png", "--html", tmp_path / "page.html"
    words += ("--png", tmp_path / "b.png") if importlib.util.find_spec("matplotlib") else ()
    rows = json.loads(printed(capsys, *words, "--format", "json"))["rows"]
    for row in rows:
        assert list(row["cost"]) == ["MB", "ms alone", "ms each of 64"]
        assert row["cost"]["MB"] == 4e-6 * row["parameters"]
        assert min(row["cost"].values()) > 0
    panels = json.loads(Page((tmp_path / "page.html").read_text()).scripts[0])["dots"]
    assert [panel["key"] for panel in panels] == [*rows[0]["cost"], "optim.lr"]
    found = [dot["at"][0] for dot in panels[0]["points"]]
    assert found == pytest.approx([row["cost"]["MB"] for row in rows for _ in row["seeds"]])
    assert len(words) == 4 or (tmp_path / "b-cost.png").exists()
    for kind in ("text", "markdown", "csv"):
        lines = printed(capsys, *words[:3], "--format", kind).splitlines()
        assert "ms each of 64" in lines[0]
    assert "a.txt" in refused(capsys, runs, "--cost", tmp_path / "a.txt")


# -------------------------------------------------------------------------------------------- page


class Page(html.parser.HTMLParser):
    """What a page holds: its tags, its links elsewhere, its text, and the data of its plots."""

    def __init__(self, text: str):
        super().__init__()
        self.tags, self.links, self.text, self.scripts = [], [], "", []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [value for name, value in attrs if name in ("src", "href", "srcset", "data")]

    def handle_data(self, data):
        if self.tags and self.tags[-1] == "script":
            self.scripts.append(data)
        else:
            self.text += data

    def handle_endtag(self, tag):
        self.tags.append(f"/{tag}")


def test_the_page_needs_nothing_else_and_shows_names_as_they_are(sweep, tmp_path, capsys):
    file = tmp_path / "page.html"
    printed(capsys, sweep, "--html", file)
    text = file.read_text()
    page = Page(text)
    assert not page.links
    assert not {"link", "iframe", "img", "b"} & set(page.tags)
    assert page.tags.count("script") == page.tags.count("/script") == 2  # its data and its drawing
    bare = text.replace("http://www.w3.org/2000/svg", "")
    assert not re.search(r"https?:|url\((?!#)|@import|\b(fetch|eval)\(|innerHTML", bare)
    assert "default-src 'none'" in text
    said = json.loads(printed(capsys, sweep, "--format", "json"))
    for row in said["rows"]:
        # In the table, above its command, and the best one in a note.
        assert page.text.count(row["name"]) == 2 + row["best"]
        assert f"{row['mean']:.4f} ± {row['std']:.4f}" in page.text
        assert row["command"] in page.text
    assert all(line in page.text for line in said["notes"][:-1])
    assert "2 runs are not in the table" in page.text
    assert "broken: failed: step 7: loss is not finite" in page.text
    data = json.loads(page.scripts[0])
    assert [row["name"] for row in data["rows"][:3]] == [row["name"] for row in said["rows"]]
    assert {row["left_out"] for row in data["rows"][3:]} == set(said["left_out"].values())


def test_the_page_has_a_curve_of_every_run_and_of_every_metric(sweep, capsys, tmp_path):
    runs, left_out = reading.find_runs([str(sweep)])
    data = page.plotted(report.compare(runs, TEST, "", left_out), "epochs")
    assert data["axes"] == ["steps", "minutes"]  # their durations are in steps
    assert data["axis"] == "steps"
    by_key = {chart["key"]: chart for chart in data["curves"]}
    assert list(by_key)[:2] == [TEST, "eval/valid/accuracy"]
    assert {"train/loss", "eval/test/loss", TEST} <= set(by_key)
    chart = by_key[TEST]
    assert [line["row"] for line in chart["lines"]] == [0] * 3 + [1] * 3 + [2] * 3 + [3, 4]
    for row in range(3):
        members = [line for line in chart["lines"] if line["row"] == row]
        assert [line["run"] for line in members] == ["seed 0", "seed 1", "seed 2"]
        (mean,) = (each for each in chart["bands"] if each["row"] == row)
        ends = [line["points"][-1][2] for line in members]
        assert mean["points"][-1][2] == pytest.approx(statistics.mean(ends))
        half = statistics.stdev(ends)
        assert mean["points"][-1][3] == pytest.approx(statistics.mean(ends) - half)
        low, high = chart["window"]
        assert all(low <= end <= high for end in ends)
    assert chart["away"] == []


def test_the_page_names_a_run_that_ends_off_the_axis_of_a_plot():
    losses = (0.344, 0.342, 0.347), (0.35, 0.342, 0.335), (1.93, 2.1, 2.3), (0.9, 0.33, 0.345)
    logs = [[{"step": k, "train/loss": v} for k, v in enumerate(of)] for of in losses]
    # The last is left out: it decides neither the axis nor what is off it.
    made = page._curves("train/loss", [[("", lines)] for lines in logs], 3, {"loss": -1})
    assert made["window"][1] < 1
    assert [(end["row"], end["end"]) for end in made["away"]] == [(2, 2.3)]


# Hovers over the first point of the first plot, zooms into the right half, goes back, and hides the
# best row; says after each what there is to see.
DRIVE = """<script>
const svg = document.querySelector("svg"), box = () => svg.getBoundingClientRect(), seen = {};
const at = (type, x, y, on) => (on || svg).dispatchEvent(new PointerEvent(type, {
  bubbles: true, button: 0, clientX: box().left + x, clientY: box().top + y }));
const texts = () => [...svg.querySelectorAll("text")].map((text) => text.textContent);
const lines = () => svg.querySelectorAll("path.line").length;
const dot = svg.querySelector("circle[data-row='0']");
at("pointermove", +dot.getAttribute("cx"), +dot.getAttribute("cy"));
seen.tip = svg.parentNode.querySelector(".tip:not([hidden])").textContent;
seen.lit = document.querySelector("tr.lit").dataset.row;
at("pointermove", 0, 0);
seen.away = svg.parentNode.querySelector(".tip").hidden;
seen.texts = texts();
const width = box().width, height = box().height;
at("pointerdown", width / 2, height / 2);
at("pointermove", width - 20, height / 2);
at("pointerup", width - 20, height / 2, window);
seen.zoomed = texts();
svg.dispatchEvent(new MouseEvent("dblclick", { bubbles: true }));
seen.back = texts();
seen.lines = lines();
document.querySelector("tr[data-row='0']").click();
seen.fewer = lines();
seen.charts = [...document.querySelectorAll("figure")].map((f) => f.innerText.split("\\n")[0]);
seen.width = [width, document.body.clientWidth];
document.title = JSON.stringify(seen);
</script></body>"""


def test_a_browser_draws_the_plots_which_can_be_hovered_and_zoomed(runs, tmp_path, capsys):
    names = ("chromium", "chromium-browser", "google-chrome")
    browser = next(filter(None, map(shutil.which, names)), None)
    if browser is None:
        pytest.skip("no Chromium")
    file = tmp_path / "page.html"
    printed(capsys, runs, "--html", file)
    file.write_text(file.read_text().replace("</body>", DRIVE))
    done = subprocess.run(
        [browser, "--headless", "--no-sandbox", "--disable-gpu", "--window-size=1200,900",
         f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", file.as_uri()],
        check=True, capture_output=True, timeout=120, text=True,
    )  # fmt: skip
    title = html.unescape(re.search(r"<title>(.*?)</title>", done.stdout, re.DOTALL)[1])
    seen = json.loads(title)
    best = json.loads(printed(capsys, runs, "--format", "json"))["rows"][0]
    name, _, place = seen["tip"].partition("\n")
    assert name.startswith(best["name"])
    value, step = re.fullmatch(r"(\S+) at (\S+) steps", place).groups()
    (run,) = (path for path, seed in zip(best["paths"], best["seeds"], strict=True)
              if len(best["seeds"]) == 1 or f"seed {seed}" in name)  # fmt: skip
    known = {line["step"]: line[TEST] for line in log.read_lines(run) if TEST in line}
    assert float(value) == pytest.approx(known[int(step)], rel=1e-4)
    assert seen["lit"] == "0"
    assert seen["away"] is True
    steps = lambda texts: [float(text) for text in texts[: texts.index("steps")] if "." not in text]
    assert min(steps(seen["zoomed"])) > min(steps(seen["texts"]))
    assert seen["back"] == seen["texts"]
    assert 0 < seen["fewer"] < seen["lines"]
    assert seen["charts"][0].startswith(TEST)
    assert any(name.startswith(f"{TEST} against optim.lr") for name in seen["charts"])
    assert "parallel coordinates, a line for each row" in seen["charts"]
    wide, body = seen["width"]
    assert 0.4 * body < wide < body  # two beside one another fill the page
