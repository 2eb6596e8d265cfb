import json
import re
from contextlib import contextmanager

import numpy as np
import pytest
from playwright.sync_api import expect, sync_playwright

from tests.chromium import find_chromium
from twmaml.analysis.page import write_page

NAMES = ["uniform", "epsilon_greedy", "weighted", "importance", "delta", "importance_delta"]
COLOURS = ["#000000", "#e69f00", "#56b4e9", "#009e73", "#f0e442", "#d55e00"]
METRICS = [
    {"key": "mean", "label": "mean", "unit": "loss"},
    {"key": "iqm", "label": "interquartile mean"},
    {"key": "median", "label": "median"},
    {"key": "sd", "label": "standard deviation"},
    {"key": "worst_task", "label": "worst task"},
    {"key": "worst_cell", "label": "worst cell"},
    {"key": "cvar", "label": "CVaR", "tails": [50, 30, 10, 5]},
    {"key": "diverged", "label": "diverged tasks"},
]
AMPLITUDE = {"name": "amplitude", "unit": "", "edges": list(np.linspace(0.1, 5, 26))}
PHASE = {"name": "phase", "unit": "°", "edges": list(np.linspace(0, 180, 19))}
FREQUENCY = {"name": "frequency", "unit": "Hz", "edges": list(np.linspace(0.5, 2, 9))}


def _keys(metrics):
    return [f"{m['key']}_{tail}" if tail else m["key"] for m in metrics for tail in m.get("tails", [None])]


def made_up(
    names=NAMES, seeds=5, steps=9, inner=(0, 1, 5, 10), views=((AMPLITUDE, PHASE),), baseline: str | None = "uniform"
):
    """A comparison as `twmaml.compare` hands it over, of numbers that look like losses."""
    random = np.random.default_rng(0)
    meta_steps = [2500 * i for i in range(steps)]

    def curve(level, meta_steps=meta_steps, runs=seeds):
        falling = level * (0.15 + np.exp(-np.asarray(meta_steps) / 5000))
        each = falling * np.exp(random.normal(0, 0.12, (runs, len(meta_steps))))
        estimate, spread = each.mean(0), each.std(0)
        bounds = {"low": list(estimate - spread), "high": list(estimate + spread)}
        return {"estimate": list(estimate), **bounds, "runs": each.tolist()}

    def by_inner(make):
        return {key: {str(k): make(i, k) for k in inner} for i, key in enumerate(_keys(METRICS))}

    def difference(i, name):
        estimate = random.normal(-0.05 * names.index(name), 0.02)
        return {
            "estimate": estimate,
            "low": estimate - 0.05,
            "high": estimate + 0.05,
            "p": float(random.uniform(0, 0.2)),
        }

    def improvement(i, k):
        better = np.triu(random.uniform(0.2, 1, (len(names), len(names))), 1)
        matrix = better + np.tril(1 - better.T, -1)
        low, high = np.clip(matrix - 0.15, 0, 1), np.clip(matrix + 0.15, 0, 1)
        return {"samplers": list(names), "matrix": matrix.tolist(), "low": low.tolist(), "high": high.tolist()}

    def heatmap(view, level):
        x, y = (np.linspace(0, 1, len(axis["edges"]) - 1 if axis else 1) for axis in view)
        hill = np.exp(3 * x[:, None] - 2 * (y[None] - 0.5) ** 2)
        return (level * hill * np.exp(random.normal(0, 0.1, hill.shape))).ravel().tolist()

    return {
        "title": f"{len(names)} samplers on sin2d, {seeds} seeds each",
        "made": "2026-11-24 00:10",
        "command": "python -m twmaml.compare outputs/multirun/2026-11-23/21-40-10_compare_samplers-sin2d",
        "baseline": baseline,
        "protocols": ["sinusoids, 10 shots, 10 inner steps, 450 tasks"],
        "notes": [f"With {seeds} seeds an interval of 95 % holds about nine times in ten.", "Left out: 3, unfinished."],
        "samplers": [
            {
                "name": name,
                "colour": colour,
                "seeds": list(range(seeds)),
                "folders": [{"seed": k, "href": f"../../{k}"} for k in range(seeds)],
            }
            for name, colour in zip(names, COLOURS, strict=False)
        ],
        "inner_steps": list(inner),
        "points": meta_steps,
        "metrics": METRICS,
        "curves": by_inner(lambda i, k: {n: curve((3 + i) / (1 + k)) for n in names}),
        "health": {
            "metrics": [
                {"key": "queue/entropy", "label": "entropy of the distribution"},
                {"key": "queue/coverage", "label": "cells visited"},
                {"key": "weights/max", "label": "largest weight"},
                {"key": "weights/effective_sample_size", "label": "effective sample size"},
            ],
            "points": [200 * i for i in range(100)],
            "curves": {
                key: {n: curve(5, [200 * i for i in range(100)]) for n in names}
                for key in ("queue/entropy", "queue/coverage", "weights/max", "weights/effective_sample_size")
            },
        },
        "differences": by_inner(lambda i, k: {n: difference(i, n) for n in names if n != baseline}),
        "improvement": by_inner(improvement),
        "heatmaps": {
            "views": [{"x": x, "y": y} for x, y in views],
            "differences": [
                {
                    str(k): {str(step): {n: heatmap(view, 0.3) for n in names if n != baseline} for step in meta_steps}
                    for k in inner
                }
                for view in views
            ]
            if baseline
            else [],
            "values": [
                {
                    str(k): {
                        str(step): {
                            n: heatmap(view, (1 + j / 5) / (1 + k) / (1 + step / 5000)) for j, n in enumerate(names)
                        }
                        for step in meta_steps
                    }
                    for k in inner
                }
                for view in views
            ],
        },
        "configuration": [
            {"key": "sampler.signal", "values": {n: "deltas" if "delta" in n else "losses" for n in names}},
            {"key": "sampler.importance", "values": {n: str("importance" in n).lower() for n in names}},
            {
                "key": "sampler.epsilon",
                "values": {"epsilon_greedy": "linear_schedule(init_value=1.0, end_value=0.1, transition_steps=10000)"},
            },
        ],
        "health_missing_ok": True,
    }


def data_of(page):
    """The data as a browser reads it: what the element holds up to the first end tag."""
    (text,) = re.findall(r'<script type="application/json" id="data">(.*?)</script', page, re.DOTALL)
    return json.loads(text)


NASTY = [
    "</script><script>alert(1)</script>",
    "<!-- <script>",
    "ε–größe ☃ \u2028",
    'quo"te\\',
    "{{data}}",
    "__proto__",
    "\udcff",
]


@pytest.mark.parametrize("name", NASTY)
def test_any_text_comes_back(name, tmp_path):
    write_page({"title": name, "notes": [name], "curves": {name: {"0": 1.5}}}, tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert data_of(page) == {"title": name, "notes": [name], "curves": {name: {"0": 1.5}}}
    assert page.count("<script") == 2
    assert page.count("</script>") == 2


def test_what_is_not_finite_is_null_and_arrays_are_lists(tmp_path):
    data = {
        "a": [float("nan"), float("inf"), 1.0],
        "b": np.array([[1.0, np.nan]]),
        "c": np.float32(0.5),
        "d": {10: (1,)},
    }
    write_page(data, tmp_path / "page.html")
    assert data_of((tmp_path / "page.html").read_text()) == {
        "a": [None, None, 1.0],
        "b": [[1.0, None]],
        "c": 0.5,
        "d": {"10": [1]},
    }


def test_what_cannot_be_written_leaves_the_page_that_was_there(tmp_path):
    write_page({"title": "old"}, tmp_path / "page.html")
    with pytest.raises(TypeError):
        write_page({"title": object()}, tmp_path / "page.html")
    assert data_of((tmp_path / "page.html").read_text()) == {"title": "old"}
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]


def test_the_page_asks_for_nothing_from_outside(tmp_path):
    write_page(made_up(), tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert "default-src 'none'" in page
    assert set(re.findall(r"https?://[^\"' ]+", page)) == {"http://www.w3.org/2000/svg"}
    assert "innerHTML" not in page


# ---- in a real browser: a Chromium that is there


@pytest.fixture(scope="module")
def chromium():
    path = find_chromium()
    if path is None:
        pytest.skip("no Chromium on the path")
    with sync_playwright() as running:
        browser = running.chromium.launch(executable_path=path)
        yield browser
        browser.close()


@pytest.fixture
def visit(chromium, tmp_path):
    """Opens the page of some data; at the end nothing may stand in the console or have been asked for."""

    @contextmanager
    def opened(data, hash="", width=1280, height=900, **options):
        write_page(data, tmp_path / "page.html")
        context = chromium.new_context(viewport={"width": width, "height": height}, **options)
        page, complaints = context.new_page(), []
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("dialog", lambda dialog: (complaints.append(dialog.message), dialog.dismiss()))
        address = (tmp_path / "page.html").as_uri()
        page.on(
            "request", lambda request: request.url.startswith((address, "data:,")) or complaints.append(request.url)
        )
        page.goto(address + hash)
        yield page
        page.wait_for_timeout(250)  # the address follows
        assert complaints == []
        context.close()

    return opened


@pytest.fixture(scope="module")
def data():
    return made_up(views=((AMPLITUDE, PHASE), (AMPLITUDE, FREQUENCY), (FREQUENCY, None)))


def shown(value, digits=3):
    """A number as the page writes it."""
    if 0 < abs(value) < 1e-3:
        mantissa, power = f"{value:.{digits - 1}e}".split("e")
        return f"{mantissa}×10⁻{'⁰¹²³⁴⁵⁶⁷⁸⁹'[-int(power)]}".replace("-", "−")
    return f"{value:#.{digits}g}".replace("-", "−")


def cells(page, column):
    """A column of the table by sampler, in the order shown; without the intervals."""
    rows = page.evaluate(
        """(column) => [...document.querySelectorAll("#table tbody tr")].map((row) =>
        [row.cells[0].innerText.trim(), row.cells[column].innerText.split("\\n")[0].trim()])""",
        column,
    )
    return dict(rows)


def scroll_to(page, locator):
    locator.evaluate("node => node.scrollIntoView({ block: 'center' })")
    page.wait_for_timeout(100)  # scrolling hides the tooltip, a frame later


def point_at_step(page, selector, fraction):
    """Moves the mouse over a chart to a fraction of its axis of meta-steps (margins as in `lineChart`)."""
    svg = page.locator(selector)
    scroll_to(page, svg)
    box = svg.bounding_box()
    left, right = 58, box["width"] - 24
    return box["x"] + left + fraction * (right - left), box["y"] + box["height"] / 2


def cell_place(page, sampler, ix, iy, columns, rows):
    """Where the middle of a cell is on the screen."""
    canvas = page.locator("#heatmaps figure", has=page.get_by_title(sampler, exact=True)).locator("canvas")
    scroll_to(page, canvas)
    box = canvas.bounding_box()
    return box["x"] + (ix + 0.5) / columns * box["width"], box["y"] + (1 - (iy + 0.5) / rows) * box["height"]


def test_every_metric_tail_and_inner_step_shows_its_numbers(visit, data):
    with visit(data) as page:
        for metric in METRICS:
            page.select_option("#metric", metric["key"])
            assert page.locator("#tail").is_disabled() == ("tails" not in metric)
            for tail in metric.get("tails", [None]):
                if tail:
                    page.select_option("#tail", str(tail))
                key = f"{metric['key']}_{tail}" if tail else metric["key"]
                label = f"{metric['label']}, worst {tail} %" if tail else metric["label"]
                for inner in data["inner_steps"]:
                    page.select_option("#inner", str(inner))
                    note = page.inner_text("#curves .note").lower()
                    assert note.startswith(f"{label} after {inner} inner step".lower())
                    assert page.locator("#curves path.estimate").count() == 6
                    curves, differences = data["curves"][key][str(inner)], data["differences"][key][str(inner)]
                    expected = {name: shown(curves[name]["estimate"][-1]) for name in NAMES}
                    assert cells(page, 1 + METRICS.index(metric)) == expected
                    differing = {n: shown(differences[n]["estimate"]) for n in NAMES[1:]}
                    assert cells(page, 1 + len(METRICS)) == {"uniform": "–", **differing}
                    holm = {n: f"{differences[n]['p']:.3f}" for n in NAMES[1:]}
                    assert cells(page, 2 + len(METRICS)) == {"uniform": "–", **holm}
                    matrix = data["improvement"][key][str(inner)]["matrix"]
                    first = page.locator("#improvement tbody tr").first.locator("td").nth(1).inner_text()
                    assert first.split("\n")[0] == f"{matrix[0][1]:.2f}"


def test_the_best_of_each_metric_is_bold(visit, data):
    with visit(data) as page:
        for i, metric in enumerate(METRICS):
            key = "cvar_10" if metric["key"] == "cvar" else metric["key"]
            best = min(NAMES, key=lambda name: data["curves"][key]["10"][name]["estimate"][-1])
            bold = page.locator(f"#table tbody tr:has(td:nth-child({i + 2}).best) th").all_inner_texts()
            assert [name.strip() for name in bold] == [best]


def test_the_meta_step_is_chosen_by_slider_buttons_and_keys(visit, data):
    with visit(data) as page:
        assert page.inner_text("#chosen") == "20,000"
        assert page.locator("#later").is_disabled()
        page.click("#earlier")
        assert page.inner_text("#chosen") == "17,500"
        assert "at the last meta-step, 20,000, not at the chosen 17,500" in page.inner_text("#table .note")
        page.locator("#step").fill("2")
        assert page.inner_text("#chosen") == "5,000"
        expected = {name: shown(data["curves"]["mean"]["10"][name]["estimate"][2]) for name in NAMES}
        assert cells(page, 1) == expected
        assert "at meta-step 5,000" in page.inner_text("#heatmaps .note")
        page.focus("#step")
        page.keyboard.press("ArrowRight")
        assert page.inner_text("#chosen") == "7,500"
        page.keyboard.press("Home")
        assert page.inner_text("#chosen") == "0"
        assert page.locator("#earlier").is_disabled()
        marker = page.locator("#marker")
        before = float(marker.get_attribute("x1"))
        page.click("#later")
        assert page.inner_text("#chosen") == "2,500"
        assert float(page.locator("#marker").get_attribute("x1")) > before


def test_seeds_scale_and_legend(visit, data):
    with visit(data) as page:
        assert page.locator("path.seed").count() == 0
        page.check("#seeds")
        assert page.locator("path.seed").count() == 30
        page.uncheck("#seeds")
        assert page.locator("path.seed").count() == 0
        logarithmic = page.locator("#curves path.estimate").first.get_attribute("d")
        page.select_option("#scale", "linear")
        assert page.locator("#curves path.estimate").first.get_attribute("d") != logarithmic
        page.select_option("#scale", "log")
        assert page.locator("#curves path.estimate").first.get_attribute("d") == logarithmic
        button = page.get_by_role("button", name="weighted")
        button.hover()
        assert page.locator("#curves [data-series].dim").count() == 5
        button.click()
        assert button.get_attribute("aria-pressed") == "false"
        assert page.locator('#curves [data-series="weighted"]').count() == 0
        assert page.locator("#heatmaps figure").count() == 5
        assert page.locator("#forest g[data-series]").count() == 4
        assert page.locator("#improvement tbody tr").count() == 5
        assert page.locator('#health [data-series="weighted"]').count() == 0
        for name in NAMES:
            if name != "weighted":
                page.locator("#legend button").nth(NAMES.index(name)).click()
        assert "Nothing known" in page.inner_text("#curves .body")
        for i in range(6):
            page.locator("#legend button").nth(i).click()
        assert page.locator("#curves path.estimate").count() == 6


def test_curves_can_be_drawn_over_what_was_spent(visit, data):
    spent = {name: [(50 if name == "delta" else 25) * step for step in data["points"]] for name in NAMES}
    over = [{"unit": "meta-steps", "places": dict.fromkeys(NAMES, data["points"])}]
    over += [{"unit": "tasks adapted", "places": spent}]
    with visit(data) as page:
        assert page.locator("#axis").is_hidden()
    with visit({**data, "across": over}) as page:
        alone = page.locator('#curves [data-series="delta"] path.estimate').get_attribute("d")
        page.focus("#across")
        page.keyboard.press("ArrowDown")
        assert page.input_value("#across") == "tasks adapted"
        assert page.evaluate("document.activeElement.id") == "across"
        assert page.locator('#curves [data-series="delta"] path.estimate').get_attribute("d") == alone  # spends most
        assert page.locator('#curves [data-series="weighted"] path.estimate').get_attribute("d") != alone
        assert page.locator("#marker").count() == 0
        x, y = point_at_step(page, "#curves svg", 0.25)
        page.mouse.move(x, y)
        text = page.inner_text("#tip")
        assert text.startswith("250,000 tasks adapted")
        for name, place in (("delta", 2), ("weighted", 4)):
            value = data["curves"]["mean"]["10"][name]["estimate"][place]
            assert re.search(rf"\b{name}\s+{shown(value, 4)}", text), text
        x, y = point_at_step(page, "#curves svg", 0.75)
        page.mouse.move(x, y)
        text = page.inner_text("#tip")
        assert text.startswith("750,000 tasks adapted")
        assert "weighted" not in text  # has come to its end
        page.wait_for_timeout(300)
        address = page.evaluate("location.hash")
    with visit({**data, "across": over}, hash=address) as page:
        assert page.input_value("#across") == "tasks adapted"


def test_a_comparison_at_equal_budgets_says_so(visit, data):
    with visit({**data, "unit": "tasks trained"}) as page:
        assert page.inner_text("label[for=step]") == "Tasks trained 20,000"
        page.click("#earlier")
        note = page.inner_text("#table .note")
        assert "At 17,500 tasks trained, after" in note
        assert "at the last point, 20,000 tasks trained, not at the chosen 17,500" in note
        assert "meta-step" not in page.inner_text("main")


def test_the_table_sorts_by_each_column(visit, data):
    with visit(data) as page:
        for i, button in enumerate(page.locator("#table thead button").all()):
            header = page.locator("#table thead th").nth(i)
            button.click()
            ascending = list(cells(page, i).items())
            assert header.get_attribute("aria-sort") == "ascending"
            button.click()
            descending = list(cells(page, i).items())
            assert header.get_attribute("aria-sort") == "descending"
            button.click()
            assert list(cells(page, i)) == NAMES
            rising, falling = ([v for _, v in rows if v != "–"] for rows in (ascending, descending))
            number = (lambda text: text) if i == 0 else (lambda text: float(text.replace("−", "-").replace(",", "")))
            assert rising == sorted(rising, key=number)
            assert falling == sorted(falling, key=number, reverse=True)
            if len(rising) < 6:  # what is unknown comes last either way
                assert ascending[-1][0] == descending[-1][0] == "uniform"


@pytest.mark.parametrize("touch", [False, True])
def test_pointing_at_a_curve_tells_every_sampler(touch, visit, data):
    with visit(data, has_touch=touch) as page:
        for step in (0, 3, 8):
            x, y = point_at_step(page, "#curves svg", step / 8)
            page.touchscreen.tap(x, y) if touch else page.mouse.move(x + 4, y)
            text = page.inner_text("#tip")
            assert text.startswith(f"meta-step {data['points'][step]:,}")
            for name in NAMES:
                curve = data["curves"]["mean"]["10"][name]
                low, high = (shown(curve[key][step]) for key in ("low", "high"))
                assert re.search(rf"{name}\s+{shown(curve['estimate'][step], 4)}\s+\[{low}, {high}\]", text), text
        page.keyboard.press("Escape")
        assert page.locator("#tip").is_hidden()
        x, y = point_at_step(page, "#health svg >> nth=1", 50 / 99)
        page.touchscreen.tap(x, y) if touch else page.mouse.move(x, y)
        value = data["health"]["curves"]["queue/coverage"]["delta"]["estimate"][50]
        assert re.search(rf"\bdelta\s+{shown(value, 4)}\s", page.inner_text("#tip"))
        page.touchscreen.tap(5, 5) if touch else page.mouse.move(5, 5)
        assert page.locator("#tip").is_hidden()


@pytest.mark.parametrize("touch", [False, True])
def test_pointing_at_a_heatmap_tells_the_cell(touch, visit, data):
    with visit(data, has_touch=touch) as page:
        views = [(0, 25, 18, "phase 140 to 150°"), (1, 25, 8, "frequency"), (2, 8, 1, "frequency")]
        for view, columns, rows, words in views:
            page.select_option("#view", str(view))
            for mode in ("loss", "difference"):
                page.select_option("#heat", mode)
                ix, iy = columns - 3, rows * 14 // 18
                x, y = cell_place(page, "importance", ix, iy, columns, rows)
                page.touchscreen.tap(x, y) if touch else page.mouse.move(x, y)
                kind = "values" if mode == "loss" else "differences"
                maps = data["heatmaps"][kind][view]["10"]["20000"]
                text = page.inner_text("#tip")
                assert words in text
                for name in NAMES if mode == "loss" else NAMES[1:]:
                    value = maps[name][ix * rows + iy]
                    assert re.search(rf"\b{name}\s+{shown(value, 4)}(\s|$)", text), (name, value, text)
                assert page.inner_text("#tip .here").split()[0] == "importance"


def test_heatmaps_share_a_scale_and_lie_the_right_way(visit, data):
    with visit(data) as page:
        maps = data["heatmaps"]["values"][0]["10"]["20000"]
        for pick, colour in ((min, [68, 1, 84]), (max, [253, 231, 37])):
            value, name, place = pick((v, n, i) for n in NAMES for i, v in enumerate(maps[n]))
            x, y = (place // 18 + 0.5) / 25, 1 - (place % 18 + 0.5) / 18
            pixel = page.evaluate(
                """([index, x, y]) => { const canvas = document.querySelectorAll("canvas")[index];
                return [...canvas.getContext("2d").getImageData(x * canvas.width, y * canvas.height, 1, 1).data]; }""",
                [NAMES.index(name), x, y],
            )
            assert pixel == [*colour, 255], (name, value)


def test_the_address_holds_the_view(visit, data):
    with visit(data) as page:
        page.select_option("#metric", "cvar")
        page.select_option("#tail", "30")
        page.select_option("#inner", "1")
        page.select_option("#heat", "difference")
        page.select_option("#view", "1")
        page.select_option("#scale", "linear")
        page.check("#seeds")
        page.locator("#step").fill("3")
        page.get_by_role("button", name="weighted").click()
        page.click("#sort-median")
        page.wait_for_timeout(300)
        address, content = page.evaluate("location.hash"), page.inner_text("main")
        assert "step=7500" in address
        page.evaluate("location.hash = ''")
        expect(page.locator("#metric")).to_have_value("mean")
    with visit(data, hash=address) as page:
        assert page.inner_text("main") == content
        assert page.is_checked("#seeds")
        assert page.input_value("#scale") == "linear"
    with visit(data, hash="#metric=none&step=7&view=9&inner=x&hide=nobody&heat=cold&sort=none") as page:
        assert page.input_value("#metric") == "mean"
        assert page.inner_text("#chosen") == "20,000"


def test_all_of_it_by_keyboard(visit, data):
    with visit(data) as page:
        reached = []
        for _ in range(80):
            page.keyboard.press("Tab")
            reached.append(page.evaluate("document.activeElement.id"))
        controls = ["metric", "inner", "scale", "heat", "view", "seeds", "earlier", "step", "show-0", "show-5"]
        assert [name for name in controls if name not in reached] == []
        assert {"sort-mean", "sort-p", "map-0", "map-5"} <= set(reached)
        page.focus("#metric")
        page.keyboard.press("ArrowDown")
        assert page.input_value("#metric") == "iqm"
        assert page.evaluate("document.activeElement.id") == "metric"
        page.focus("#seeds")
        page.keyboard.press("Space")
        assert page.is_checked("#seeds")
        page.focus("#show-2")
        page.keyboard.press("Space")
        assert page.locator("#show-2").get_attribute("aria-pressed") == "false"
        assert page.evaluate("document.activeElement.id") == "show-2"  # drawn anew, still focused
        page.focus("#sort-mean")
        page.keyboard.press("Enter")
        assert page.locator("#table th >> nth=1").get_attribute("aria-sort") == "ascending"
        page.focus("#map-1")
        for key in ("ArrowRight", "ArrowRight", "ArrowUp"):
            page.keyboard.press(key)
        value = data["heatmaps"]["values"][0]["10"]["20000"]["epsilon_greedy"][1 * 18 + 1]
        assert shown(value, 4) in page.inner_text("#tip .here")
        page.keyboard.press("Escape")
        assert page.locator("#tip").is_hidden()
        page.focus("#curves svg")
        page.keyboard.press("ArrowLeft")
        assert page.inner_text("#tip").startswith("meta-step 17,500")


SIDEWAYS = "document.documentElement.scrollWidth - document.documentElement.clientWidth"


@pytest.mark.parametrize("width", [320, 360, 768])
def test_a_phone_does_not_scroll_sideways(width, visit, data):
    long = json.loads(json.dumps(data).replace("importance_delta", "a_sampler_of_a_name_that_goes_on_for_long_" * 2))
    for content in (data, long):
        with visit(content, width=width, height=740, has_touch=True, is_mobile=True) as page:
            for metric, heat, view in (("mean", "loss", "0"), ("cvar", "difference", "2")):
                page.select_option("#metric", metric)
                page.select_option("#heat", heat)
                page.select_option("#view", view)
                assert page.evaluate(SIDEWAYS) == 0
                assert page.evaluate("innerWidth") == width  # not zoomed out either
            x, y = point_at_step(page, "#curves svg", 1)
            page.touchscreen.tap(x - 5, y)
            box = page.locator("#tip").bounding_box()
            assert box["x"] >= 0
            assert box["x"] + box["width"] <= width


CONTRASTS = """() => {
  const parse = (text) => text.match(/[\\d.]+/g).map(Number);
  const found = [];
  for (const node of document.querySelectorAll("body *")) {
    const texts = [...node.childNodes].filter((child) => child.nodeType === 3 && child.data.trim());
    if (!texts.length || !node.checkVisibility() || node.closest(":disabled, script, style, option")) continue;
    const style = getComputedStyle(node), ink = node instanceof SVGElement ? style.fill : style.color;
    let ground = node;
    while (ground && (parse(getComputedStyle(ground).backgroundColor)[3] ?? 1) === 0) ground = ground.parentElement;
    const value = contrast(parse(ink).slice(0, 3), parse(getComputedStyle(ground).backgroundColor).slice(0, 3));
    found.push([value, node.tagName, texts[0].data.trim()]);
  }
  return found;
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read_in_both_schemes(scheme, visit, data):
    with visit(data, hash="#heat=difference&hide=delta", color_scheme=scheme) as page:
        ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (sum(map(int, re.findall(r"\d+", ground))) < 150) == (scheme == "dark")
        x, y = point_at_step(page, "#curves svg", 0.5)
        page.mouse.move(x, y)
        contrasts = page.evaluate(CONTRASTS)
        assert len(contrasts) > 200
        assert [entry for entry in contrasts if entry[0] < 4.5] == []
        inks = page.locator("#curves path.estimate").evaluate_all(
            "all => all.map((path) => path.getAttribute('stroke'))"
        )
        assert len(set(inks)) == 5  # black on dark is moved, none becomes another


def test_the_scheme_may_change_and_paper_is_light(visit, data):
    with visit(data, color_scheme="light") as page:
        black = page.locator("#curves path.estimate").first
        assert black.get_attribute("stroke") == "rgb(0,0,0)"
        page.emulate_media(color_scheme="dark")
        expect(black).not_to_have_attribute("stroke", "rgb(0,0,0)")
        page.evaluate("dispatchEvent(new Event('beforeprint'))")
        assert black.get_attribute("stroke") == "rgb(0,0,0)"
        page.emulate_media(media="print", color_scheme="dark")
        assert page.evaluate("getComputedStyle(document.body).color") == "rgb(27, 30, 34)"
        assert page.locator("#controls").is_hidden()


def test_names_are_text_whatever_they_are(visit):
    names = ["uniform", '<img src=x onerror="alert(1)">', "</script><script>alert(2)</script>", "__proto__", "a&amp;b"]
    data = made_up(names=names, seeds=2, steps=3, inner=(0, 1))
    data |= {"title": "<b>bold</b>", "notes": [f"<i>{k}</i>" for k in range(9)], "protocols": ["<s>a</s>", "b"]}
    data["samplers"][1] |= {"colour": "red;background:url(http://example.invalid)"}
    data["samplers"][2] |= {"folders": [{"seed": 0, "href": "javascript:alert(3)"}, {"seed": 1, "href": "a b/1"}]}
    data["configuration"] = [{"key": "<u>", "values": dict.fromkeys(names, "<script>alert(4)</script>")}]
    with visit(data, hash="#hide=<img src=x onerror=alert(1)>&metric=<script>") as page:
        assert page.title() == page.inner_text("h1") == "<b>bold</b>"
        assert page.locator("#legend button").all_inner_texts() == names
        assert list(cells(page, 1)) == names
        assert page.locator("img, h1 b, #protocols s, #notes i, #configuration u").count() == 0
        assert page.locator("#protocols p").all_inner_texts() == ["Protocol: <s>a</s>", "Protocol: b"]
        assert page.locator("#folders a", has_text="seed 0").count() == 4  # the script is no link
        page.click("summary")
        assert page.locator("#notes li").last.is_visible()
        for i in range(len(names)):
            page.locator("#legend button").nth(i).click()


def test_links_lead_to_the_folders_of_runs(visit, data, tmp_path):
    with visit(data) as page:
        links = page.locator("#folders a")
        assert links.count() == 30
        assert links.nth(3).evaluate("link => link.href") == (tmp_path.parent.parent / "3").as_uri()


def _without(data, *keys):
    return {key: value for key, value in data.items() if key not in keys}


def _unknown(value):
    """The same data with every number of it unknown."""
    if isinstance(value, dict):
        return {key: _unknown(item) for key, item in value.items()}
    return [_unknown(item) for item in value] if isinstance(value, list) else None


def degenerate():
    alone = made_up(names=["uniform"], seeds=1, steps=1, inner=(0,), baseline=None)
    plain = made_up(seeds=2, steps=3, inner=(0, 1))
    parts = ("differences", "improvement", "heatmaps", "configuration", "health")
    holes = {**plain, "curves": json.loads(json.dumps(plain["curves"])), "health": {}}
    for by_sampler in holes["curves"]["mean"].values():
        by_sampler["delta"] = {
            "estimate": [None, 0.5, None],
            "low": [None] * 3,
            "high": [None] * 3,
            "runs": [[None] * 3],
        }
        by_sampler["weighted"]["estimate"][1] = 0.0
        del by_sampler["importance"]
    flat = {**plain, "curves": json.loads(re.sub(r"-?\d+\.\d+", "0.0", json.dumps(plain["curves"])))}
    return {
        "alone": {**_without(alone, "differences", "improvement"), "configuration": []},
        "no baseline": {**_without(plain, "differences"), "baseline": None},
        "no parts": _without(plain, *parts),
        "empty parts": {**plain, **{key: {} for key in parts}, "configuration": []},
        "unknown": {**plain, **{key: _unknown(plain[key]) for key in ("curves", "differences")}},
        "holes": holes,
        "flat": flat,
        "huge": {**plain, "curves": json.loads(re.sub(r"(\d+\.\d+)", r"\1e9", json.dumps(plain["curves"])))},
        "unknown cells": {
            **plain,
            "heatmaps": {key: part if key == "views" else _unknown(part) for key, part in plain["heatmaps"].items()},
        },
    }


@pytest.mark.parametrize("case", degenerate())
def test_little_data_is_no_error(case, visit):
    data = degenerate()[case]
    with visit(data) as page:
        for metric in METRICS:
            page.select_option("#metric", metric["key"])
        page.select_option("#metric", "mean")
        page.check("#seeds")
        page.select_option("#scale", "linear")
        if data["baseline"]:
            page.select_option("#heat", "difference")
        for svg in page.locator("svg.plot").all():
            svg.hover()
        for button in page.locator("#table thead button").all():
            button.click()
        page.locator("#legend button").first.click()
        assert "NaN" not in page.content().split('id="data">')[0] + page.content().split("</script>")[-1]
        assert "undefined" not in page.inner_text("body")
        hidden = [key for key in ("forest", "improvement", "heatmaps", "health") if page.locator(f"#{key}").is_hidden()]
    gone = {
        "alone": ["forest", "improvement"],
        "no baseline": ["forest"],
        "no parts": ["forest", "improvement", "heatmaps", "health"],
        "empty parts": ["forest", "improvement", "heatmaps", "health"],
        "holes": ["health"],
    }
    assert hidden == gone.get(case, [])


def with_accuracy():
    """Two metrics of a family, the first of which is better the higher it is, over an axis of kinds."""
    kinds = {
        "name": "kind",
        "unit": "",
        "edges": [0, 1, 2],
        "ticks": [[0.5, "Alpha"], [1.5, "Beta"]],
        "cells": ["Alpha", "Beta"],
    }
    data = made_up(seeds=2, steps=3, inner=(0, 1), views=((kinds, AMPLITUDE), (kinds, None)))
    up = {"group": "accuracy", "higher_is_better": True, "linear": True}
    data["metrics"] = [
        {"key": "mean", "label": "mean", **up},
        {"key": "sd", "label": "spread", "group": "accuracy", "linear": True},
        {"key": "iqm", "label": "middle", "group": "loss"},
        {"key": "diverged", "label": "diverged tasks"},
    ]
    data["heatmaps"] |= {"label": "accuracy", "higher_is_better": True, "linear": True}
    return data


def test_more_is_better_where_a_metric_says_so(visit):
    data = with_accuracy()
    with visit(data) as page:
        for key, pick, arrow in (("mean", max, "better →"), ("sd", min, "← better"), ("iqm", min, "← better")):
            page.select_option("#metric", key)
            assert arrow in page.inner_text("#forest .body")
            assert page.locator("#scale").is_disabled() == (key != "iqm")
            column = {"mean": 2, "sd": 3, "iqm": 2}[key]
            best = pick(NAMES, key=lambda name, key=key: data["curves"][key]["1"][name]["estimate"][-1])
            bold = page.locator(f"#table tbody tr:has(td:nth-child({column}).best) th").all_inner_texts()
            assert [name.strip() for name in bold] == [best]
        heads = page.locator("#table thead th").all_inner_texts()
        assert len(heads) == 5  # the sampler, the loss's one, the diverged tasks, difference and p
        page.select_option("#metric", "mean")
        assert len(page.locator("#table thead th").all_inner_texts()) == 6


def test_blue_is_better_and_kinds_have_names(visit):
    data = with_accuracy()
    data["heatmaps"]["differences"][0]["1"]["5000"] = {"delta": [1.0] * 25 + [-1.0] * 25}
    with visit(data, hash="#heat=difference") as page:
        pixels = page.evaluate(
            """() => { const canvas = document.querySelector("canvas"), wide = canvas.width;
            const row = canvas.getContext("2d").getImageData(0, 9, wide, 1).data;
            return [0.25, 0.75].map((x) => [...row.slice(4 * Math.round(x * wide), 4 * Math.round(x * wide) + 4)]); }"""
        )
        (red, _, blue, _), (other_red, _, other_blue, _) = pixels
        assert blue > red
        assert other_red > other_blue
        assert {"Alpha", "Beta"} <= set(page.locator("#heatmaps figure svg text").all_text_contents())
        x, y = cell_place(page, "delta", 1, 3, 2, 25)
        page.mouse.move(x, y)
        assert "kind Beta" in page.inner_text("#tip")
        page.select_option("#view", "1")
        assert {"Alpha", "Beta"} <= set(page.locator("#heatmaps figure svg text").all_text_contents())


def test_the_table_is_whole_at_1280_pixels(visit, data):
    with visit(data) as page:
        box = page.locator("#table .scroll")
        assert box.evaluate("node => node.scrollWidth <= node.clientWidth")
    with visit(data, width=400) as page:  # where it cannot be, an edge shows that there is more
        box = page.locator("#table .scroll")
        assert "more" in (box.get_attribute("class") or "")
        box.evaluate("node => { node.scrollLeft = node.scrollWidth; }")
        expect(box).not_to_contain_class("more")
