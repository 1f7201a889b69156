"""The report of real runs: tables, pictures and the page, as they are and as a browser shows it."""

import base64
import csv
import html.parser
import io
import json
import re
import shutil
import statistics
import subprocess

import numpy as np
import pytest
from helpers import DIGITS, exit_code, load, result
from PIL import Image

from common.reports import plots
from common.runs import log
from common.training import train
from common.training.saved import read_config

TEST = "eval/test/accuracy"


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two seeds of an MLP on digits, and one of another rate."""
    folder = tmp_path_factory.mktemp("runs")
    for name, overrides in {
        "mlp-0": {"seed": 0},
        "mlp-1": {"seed": 1},
        "fast": {"optim.lr": 0.01},
    }.items():
        short = {"train.duration": "40 steps", "evals.test.every": "20 steps"}
        train.run(load(f"{DIGITS}:mlp", **short, **overrides), str(folder / name), show=False)
    return folder


@pytest.fixture
def sweep(runs, tmp_path):
    """A folder of three configs by three seeds, made of copies of a run with other numbers, and of
    what else may lie there."""
    draw = np.random.default_rng(0)
    for i, name in enumerate(("a|<b>&*", "adamw", "lion")):
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
    assert f"best by {TEST} itself: not an estimate for new data" in lines


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
    assert notes == found["notes"] == text.splitlines()[-3:]


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


def test_a_curve_goes_through_the_values_at_their_time(runs):
    history = log.read_lines(runs / "fast")
    steps, values = plots.curve(history, TEST, "steps")
    assert steps.tolist() == [line["step"] for line in history if TEST in line]
    minutes, values = plots.curve(history, TEST)
    assert values.tolist() == [h[TEST] for h in history if "eval/test/loss" in h]
    clock = [line["time/seconds"] / 60 for line in history if "time/seconds" in line]
    assert (np.diff(minutes) > 0).all()
    assert min(clock) <= minutes[0] <= minutes[-1] <= max(clock)


def logged(value) -> list[dict]:
    return [{"step": s, "time/seconds": 60.0 * s, TEST: value * s / 2} for s in (1, 2)]


def test_a_few_rows_have_a_name_each_and_of_many_the_best():
    pytest.importorskip("matplotlib")
    for count in (3, 10, 11, 40):
        rows = {f"row {i}": [logged(1 - i / 100), logged(0.9 - i / 100)] for i in range(count)}
        axes = plots.learning_curves(rows, TEST).axes[0]
        named = [text.get_text() for text in axes.get_legend().get_texts()]
        assert named == list(rows)[: 5 if count > 10 else count]
        colours = [line.get_color() for line in axes.lines]
        assert colours[::2] == colours[1::2]
        assert len(set(colours)) == count
        for line in axes.lines[:2]:
            assert line.get_xdata().tolist() == [1, 2]


def test_numbers_over_more_than_a_factor_of_ten_are_logarithmic_and_words_are_categories():
    def kind(*values):
        _, log, names = plots.positions(values)
        return names or ("log" if log else "linear")

    assert kind(1, 2, 10.0) == kind(0, 1, 100) == kind(-1, 100) == kind(5) == "linear"
    assert kind(1e-4, 1e-2) == kind(1, 10.5) == "log"
    assert kind("b", "a", "b") == ["a", "b"]
    assert kind(True, False) == ["False", "True"]
    assert kind("10 epochs", "5%", "5 epochs") == ["5 epochs", "5%", "10 epochs"]
    assert kind(None, 0.5, 0.25) == ["0.25", "0.5", "None"]
    assert kind((64,), (8, 8)) == ["(8,8)", "(64)"]
    assert plots.positions(["b", "a", "b"]).at.tolist() == [1, 0, 1]


SETTINGS = [{"lr": lr, "name": name, "depth": 3} for lr in (1e-3, 1e-1) for name in ("x", "y")]
VALUES = [0.1, 0.2, 0.6, 0.9]


def test_a_panel_holds_every_run_and_the_means():
    pytest.importorskip("matplotlib")
    panels = plots.against(SETTINGS, VALUES, TEST).axes
    for axes, xs, means in (
        (panels[0], [1e-3, 1e-3, 1e-1, 1e-1], [0.15, 0.75]),
        (panels[1], [0, 1, 0, 1], [0.35, 0.55]),
        (panels[2], [3, 3, 3, 3], [0.45]),
    ):
        dots, line = axes.lines
        np.testing.assert_allclose(dots.get_xydata(), np.transpose([xs, VALUES]))
        np.testing.assert_allclose(line.get_ydata(), means)
        assert axes.get_xscale() == ("log" if xs[0] == 1e-3 else "linear")
    assert [axes.get_xlabel() for axes in panels] == list(SETTINGS[0])
    assert [text.get_text() for text in panels[1].get_xticklabels()] == ["x", "y"]
    assert panels[0].get_ylabel() == TEST
    drawn = plots.against([{"lr": 0.01 * i} for i in range(40)], [0.5] * 40, TEST).axes[0]
    assert len(drawn.lines) == 1  # dots: numbers drawn at random have no means


def test_a_line_of_parallel_coordinates_goes_through_its_values():
    pytest.importorskip("matplotlib")
    settings = [each | {"lr": lr} for each, lr in zip(SETTINGS, (1, 10, 100, 1), strict=True)]
    axes, bar = plots.parallel(settings, VALUES, TEST).axes
    lines = [line for line in axes.lines if len(line.get_ydata()) == 4]  # the others are axes
    heights = [line.get_ydata() for line in reversed(lines)]  # the first is on top
    known = np.transpose([[0, 0.5, 1, 0], [0, 1, 0, 1], [0] * 4, [0, 0.125, 0.625, 1]])
    np.testing.assert_allclose(heights, known, atol=1e-12)
    assert len({line.get_color() for line in lines}) == 4
    assert bar.get_ylabel() == TEST


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


# -------------------------------------------------------------------------------------------- page


class Page(html.parser.HTMLParser):
    """What a page holds: its images, its links elsewhere, and its text."""

    def __init__(self, text: str):
        super().__init__()
        self.tags, self.images, self.links, self.text = [], [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        for name, value in attrs:
            if name in ("src", "href", "srcset", "action", "data"):
                (self.images if value.startswith("data:") else self.links).append(value)
        assert tag != "img" or dict(attrs)["alt"]

    def handle_data(self, data):
        self.text += data

    def pictures(self) -> list[np.ndarray]:
        """u8[H, W, 3] each."""
        found = []
        for image in self.images:
            kind, _, data = image.partition(",")
            assert kind == "data:image/png;base64"
            found.append(np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB")))
        return found


def test_the_page_needs_nothing_else_and_shows_names_as_they_are(sweep, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    file = tmp_path / "page.html"
    printed(capsys, sweep, "--html", file, "--png", tmp_path / "a.png")
    text = file.read_text()
    page = Page(text)
    assert not page.links
    assert not {"script", "link", "iframe", "b"} & set(page.tags)
    assert not re.search(r"https?:|url\(|@import|//", re.sub(r'"data:[^"]*"', "", text))
    files = [tmp_path / f"a{end}.png" for end in ("", "-against", "-parallel")]
    for picture, path in zip(page.pictures(), files, strict=True):
        assert (picture == np.asarray(Image.open(path).convert("RGB"))).all()
    said = json.loads(printed(capsys, sweep, "--format", "json"))
    for row in said["rows"]:
        assert page.text.count(row["name"]) == 2  # in the table, and above its command
        assert f"{row['mean']:.4f} ± {row['std']:.4f}" in page.text
        assert row["command"] in page.text
    assert all(line in page.text for line in said["notes"])


def places(picture: np.ndarray, screen: np.ndarray) -> int:
    """How often a picture u8[H, W, 3] is there, pixel for pixel, in a larger one."""
    height, width, _ = picture.shape
    if height > screen.shape[0] or width > screen.shape[1]:
        return 0
    inside = screen.shape[0] - height + 1, screen.shape[1] - width + 1
    ys, xs = (axis.ravel() for axis in np.indices(inside))
    inked = np.argwhere(picture.min(axis=2) < 200)
    for y, x in inked[:: max(1, len(inked) // 50)]:  # some pixels first
        same = (np.abs(screen[ys + y, xs + x].astype(int) - picture[y, x]) <= 2).all(axis=1)
        ys, xs = ys[same], xs[same]
    close = lambda y, x: np.abs(screen[y : y + height, x : x + width].astype(int) - picture) <= 2
    return sum(close(y, x).all() for y, x in zip(ys, xs, strict=True))


def test_a_browser_shows_every_picture(runs, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    names = ("chromium", "chromium-browser", "google-chrome")
    browser = next(filter(None, map(shutil.which, names)), None)
    if browser is None:
        pytest.skip("no Chromium")
    file, shot = tmp_path / "page.html", tmp_path / "shot.png"
    printed(capsys, runs, "--html", file)
    subprocess.run(
        [browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
         "--force-color-profile=srgb", f"--user-data-dir={tmp_path / 'profile'}",
         f"--screenshot={shot}", "--window-size=1200,3000", file.as_uri()],
        check=True, capture_output=True, timeout=120,
    )  # fmt: skip
    screen = np.asarray(Image.open(shot).convert("RGB"))
    pictures = Page(file.read_text()).pictures()
    assert len(pictures) == 3
    for picture in pictures:
        assert places(picture, screen) == 1
        assert places(picture[::-1], screen) == 0  # it could have failed
