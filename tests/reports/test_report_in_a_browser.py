"""The page in a real browser: silent, asking nothing of anybody, used with the keyboard, read in
both schemes and on paper."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path

import pypdfium2
import pytest

from clinpeft.reports import html as report
from tests.reports.browser import PROGRAM, Page, opened
from tests.reports.invented import NAMES, ODD, grid

pytest.importorskip("matplotlib")
pytestmark = pytest.mark.skipif(
    PROGRAM is None, reason="no chromium here: apt-get install chromium"
)

CONTRAST = """
(() => {
  const parts = (text) => {
    const found = text.match(/[\\d.]+/g).map(Number);
    return text.startsWith("color(srgb") ? found.map((n, at) => at < 3 ? n * 255 : n) : found;
  };
  const light = ([r, g, b]) => {
    const [x, y, z] = [r, g, b].map((n) => n / 255).map((n) => n <= 0.04045 ? n / 12.92 : ((n + 0.055) / 1.055) ** 2.4);
    return 0.2126 * x + 0.7152 * y + 0.0722 * z;
  };
  const behind = (node) => {
    for (let at = node; at; at = at.parentElement) {
      const found = parts(getComputedStyle(at).backgroundColor);
      if (found.length < 4 || found[3] > 0) return found;
    }
    return parts(getComputedStyle(document.body).backgroundColor);
  };
  const poor = [];
  let seen = 0;
  for (const node of document.querySelectorAll("body *")) {
    const own = Array.from(node.childNodes).some((child) => child.nodeType === 3 && child.textContent.trim());
    if (!own || ["SCRIPT", "STYLE", "title", "OPTION"].includes(node.tagName) || node.closest("[hidden]")) continue;
    const style = getComputedStyle(node);
    const [one, other] = [light(parts(node.ownerSVGElement ? style.fill : style.color)), light(behind(node))];
    const ratio = (Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05);
    seen += 1;
    const large = parseFloat(style.fontSize) >= 24 || (parseFloat(style.fontSize) >= 18.66 && Number(style.fontWeight) >= 700);
    if (ratio < (large ? 3 : 4.5)) poor.push(`${node.tagName} ${node.textContent.slice(0, 30)} ${ratio.toFixed(2)}`);
  }
  return { seen, poor };
})()
"""  # noqa: E501


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    home = tmp_path_factory.mktemp("browser")
    entries = [entry for entry in grid(home / "runs") if entry.name.endswith("seed=1")]
    path = report.write_html_report(
        home / "out", "A study", ["Lead"], report.build_report_contents(entries, "A study")
    )[0]
    with opened(home / "profile") as one:
        one.open(path)
        one.path = path  # type: ignore[attr-defined]
        yield one


def path_of(page: Page) -> Path:
    path: Path = page.path  # type: ignore[attr-defined]
    return path


def test_the_page_is_silent_and_asks_for_nothing_but_itself(page: Page) -> None:
    page.open(path_of(page))
    assert page.complaints() == [] and page.requests() == [path_of(page).resolve().as_uri()]


def test_what_the_policy_forbids_the_browser_refuses(page: Page) -> None:
    """The test of the tests: a request would have been seen, and a style that is not the page's own
    is not taken."""
    page.open(path_of(page))
    page.run(
        "document.body.insertAdjacentHTML('beforeend', '<img "
        'src="http://127.0.0.1:9/x.png"><p id=odd style="color: red">.</p>\'), 0'
    )
    page.run("new Promise((done) => setTimeout(done, 200))")
    assert "img-src" in " ".join(page.complaints())
    assert page.run("getComputedStyle(document.getElementById('odd')).color") != "rgb(255, 0, 0)"


def test_the_figures_are_drawn(page: Page) -> None:
    page.open(path_of(page))
    sizes = page.run(
        "Array.from(document.querySelectorAll('figure svg')).map((one) => "
        "[one.getBBox().width, one.getBBox().height])"
    )
    assert len(sizes) >= 15 and all(width > 100 and height > 50 for width, height in sizes)
    assert page.run(
        "Array.from(document.querySelectorAll('figure svg')).every((one) => "
        "one.getAttribute('aria-label').length > 20)"
    )


def test_a_table_is_sorted_with_the_keyboard(page: Page) -> None:
    page.open(path_of(page))
    column = (
        "Array.from(document.querySelectorAll('table')[0].tBodies[0].rows).map((row) => "
        "row.cells[1].dataset.value)"
    )
    page.run("document.querySelectorAll('table')[0].querySelectorAll('thead button')[1].focus()")
    for turn, name in ((1, "ascending"), (-1, "descending")):
        page.press("Enter", 13, "\r")
        values = [float(value) for value in page.run(column) if value is not None]
        assert values == sorted(values, reverse=turn < 0) and len(set(values)) > 2
        assert page.run("document.activeElement.closest('th').getAttribute('aria-sort')") == name


def test_what_is_not_known_is_last_however_it_is_sorted(page: Page) -> None:
    page.open(path_of(page))
    for _ in range(2):
        page.run(
            "document.querySelectorAll('table')[0].querySelectorAll('thead button')[4].click()"
        )
        is_filled = page.run(
            "Array.from(document.querySelectorAll('table')[0].tBodies[0].rows).map((row) "
            "=> row.cells[4].dataset.value !== undefined)"
        )
        assert (
            any(is_filled) and not all(is_filled) and is_filled == sorted(is_filled, reverse=True)
        )


def test_the_first_stop_of_the_keyboard_skips_to_the_results_and_its_focus_is_seen(
    page: Page,
) -> None:
    page.open(path_of(page))
    page.press("Tab", 9)
    focused = "document.activeElement"
    assert (
        page.run(f"{focused}.className") == "skip"
        and page.run(f"{focused}.getBoundingClientRect().left") >= 0
    )
    page.press("Enter", 13, "\r")
    assert page.run("location.hash") == "#content"
    page.run("document.querySelector('thead button').focus()")
    page.press("Tab", 9)
    assert (
        page.run(f"getComputedStyle({focused}).outlineStyle") == "solid"
        and page.run(f"{focused}.tagName") == "BUTTON"
    )


def chosen(page: Page, field: str, value: str) -> None:
    page.run(
        f"(() => {{ const one = document.getElementById('choose-{field}'); one.value = "
        f"{value!r}; one.dispatchEvent(new Event('change')); }})()"
    )


def test_one_task_is_shown_alone(page: Page) -> None:
    page.open(path_of(page))
    seen = (
        "Array.from(document.querySelectorAll('figure')).filter((one) => "
        "one.getClientRects().length).map((one) => one.id)"
    )
    chosen(page, "task", "mortality")
    visible = page.run(seen)
    assert "mortality-auroc" in visible and not any(
        name.startswith("diagnoses") for name in visible
    )
    assert "lines shown" in page.run("document.getElementById('shown').textContent")
    chosen(page, "task", "")
    assert (
        "diagnoses-auroc" in page.run(seen)
        and page.run("document.getElementById('shown').textContent") == ""
    )


def test_one_method_is_shown_alone_and_the_others_are_dimmed_in_figures(page: Page) -> None:
    page.open(path_of(page))
    rows = (
        "Array.from(document.querySelectorAll('main tr[data-row]')).filter((one) => "
        "!one.hidden).map((one) => one.dataset.row)"
    )
    assert set(page.run(rows)) == set(NAMES)
    chosen(page, "row", "head only")
    assert set(page.run(rows)) == {"head only"}
    dimmed = page.run(
        "Array.from(document.querySelectorAll('svg .dim')).map((one) => one.dataset.row)"
    )
    assert set(dimmed) == {ODD}


def test_a_mark_says_its_value_to_whoever_points_at_it(page: Page) -> None:
    page.open(path_of(page))
    script = (
        "const one = document.querySelector('#mortality-calibration .tooltip'); "
        "one.scrollIntoView({block: 'center'})"
    )
    location = (
        f"(() => {{ {script}; const box = one.getBoundingClientRect(); return [box.x + "
        "box.width / 2, box.y + box.height / 2]; })()"
    )
    x, y = page.run(location)
    page.say("Input.dispatchMouseEvent", {"type": "mouseMoved", "x": x, "y": y})
    assert page.run("document.getElementById('tip').hidden") is False
    assert "predicted 0.100, observed 0.083" in page.run(
        "document.getElementById('tip').textContent"
    )


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_has_the_contrast_of_level_aa(page: Page, scheme: str) -> None:
    page.scheme(scheme)
    page.open(path_of(page))
    assert page.run(f"matchMedia('(prefers-color-scheme: {scheme})').matches")
    values = page.run(CONTRAST)
    assert values["seen"] > 200 and values["poor"] == []
    page.scheme("light")


def test_a_narrow_page_does_not_scroll_sideways(page: Page) -> None:
    page.say(
        "Emulation.setDeviceMetricsOverride",
        {"width": 360, "height": 700, "deviceScaleFactor": 1, "mobile": False},
    )
    page.open(path_of(page))
    assert page.run("document.documentElement.scrollWidth") <= 360
    page.say("Emulation.clearDeviceMetricsOverride")


def test_it_is_printed_without_what_paper_cannot_do(page: Page) -> None:
    page.scheme("dark", "print")
    page.open(path_of(page))
    assert page.run("getComputedStyle(document.querySelector('.filters')).display") == "none"
    assert page.run("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    paper = base64.b64decode(
        page.say("Page.printToPDF", {"preferCSSPageSize": True, "printBackground": True})["data"]
    )
    assert 3 < len(pypdfium2.PdfDocument(paper)) < 25
    page.scheme("light")
