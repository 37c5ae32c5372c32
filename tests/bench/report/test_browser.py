"""The page in a real browser; skipped where there is none."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

_spec = importlib.util.spec_from_file_location("headless", Path(__file__).with_name("headless.py"))
headless = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(headless)

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(headless.find() is None, reason="no Chromium on this machine (apt-get install chromium)"),
]


@pytest.fixture(scope="module")
def browser():
    with headless.Page(1280, 900) as page:
        yield page


@pytest.fixture()
def page(browser, report):
    browser.resize(1280, 900)
    browser.logs.clear()
    browser.requests.clear()
    browser.open(report.out / "index.html")
    return browser


def column(name: str) -> str:
    return (
        "[...document.querySelectorAll('#t-results tbody tr:not([hidden])')].map(r => r.cells["
        f"[...document.querySelectorAll('#t-results thead th')].findIndex(h => h.textContent.startsWith('{name}'))"
        "]).map(c => (c.querySelector('.v') || c).textContent.trim())"
    )


def test_it_opens_without_a_request_or_a_complaint(page, report):
    assert page.requests == [(report.out / "index.html").resolve().as_uri()]
    assert page.logs == []


def test_a_click_on_a_head_sorts_and_puts_missing_values_last(page):
    button = "[...document.querySelectorAll('#t-results thead button')].find(b => b.textContent.startsWith('Clean'))"
    for wanted, reverse in (("descending", True), ("ascending", False)):
        page.js(f"{button}.click()")
        assert page.js(f"{button}.parentElement.getAttribute('aria-sort')") == wanted
        values = page.js(column("Clean"))
        numbers = [float(v) for v in values if v not in ("\u2013", "!", "n/a")]
        assert numbers == sorted(numbers, reverse=reverse)
        first_missing = next((i for i, v in enumerate(values) if v in ("\u2013", "!", "n/a")), len(values))
        assert first_missing == len(numbers)


def test_filters_hide_rows_say_so_and_stand_in_the_address(page):
    page.js("document.querySelector('input[name=k][value=measured]').click()")
    kinds = page.js("[...document.querySelectorAll('#t-results tbody tr:not([hidden])')].map(r => r.dataset.k)")
    assert set(kinds) == {"measured"}
    assert page.js("document.querySelector('#count').textContent").startswith(f"{len(kinds)} of ")
    assert "k=measured" in page.js("location.hash")


def test_a_view_can_be_sent(page, report):
    page.open(report.out / "index.html", "#k=measured&m=ibp&sort=Certified+%25&dir=up")
    assert page.js("[...document.querySelectorAll('#t-results tbody tr:not([hidden])')].map(r => r.dataset.m)") == [
        "ibp"
    ] * len(page.js("[...document.querySelectorAll('#t-results tbody tr:not([hidden])')].map(r => 1)"))
    numbers = [float(v) for v in page.js(column("Certified"))]
    assert len(numbers) > 1
    assert numbers == sorted(numbers)


def test_a_number_tells_how_it_was_made_and_gives_the_focus_back(page):
    page.js("document.querySelector('#t-results tbody .v').focus()")
    page.press("Enter", 13)
    text = page.js("document.querySelector('#pop').textContent")
    assert page.js("document.querySelector('#pop').matches(':popover-open')")
    for word in ("bench run -m", "95 % interval", "Recipe", "Device", "Commit", "Certificates", "Attacks"):
        assert word in text
    page.press("Escape", 27)
    assert not page.js("document.querySelector('#pop').matches(':popover-open')")
    assert page.js("document.activeElement.classList.contains('v')")


def test_a_published_number_names_paper_and_place(page):
    page.js("document.querySelector('#t-results tr[data-k=published] .v').click()")
    text = page.js("document.querySelector('#pop').textContent")
    assert "Stands in" in text
    assert "clean / robust / certified" in text


def test_a_hostile_title_runs_nowhere(page):
    for row in ("tr[data-m=my_plugin] .v", "tr[data-m=my_plugin] .v"):
        page.js(f"document.querySelector('#t-results {row}').click()")
    assert page.logs == []
    assert "<script>alert(1)</script>" in page.js("document.querySelector('#pop-title').textContent")


def test_two_rows_can_be_compared(page):
    page.js(
        "[...document.querySelectorAll('#t-results tr[data-k=measured]')].slice(0, 2).forEach(r => r.cells[2].click())"
    )
    assert page.js("document.querySelector('#compare-open').textContent") == "Compare 2 rows"
    page.js("document.querySelector('#compare-open').click()")
    assert "bench compare " in page.js("document.querySelector('#pop').textContent")


def test_a_curve_is_read_out_and_can_be_hidden(page):
    page.js(
        "(() => { const r = document.querySelector('input[data-curve]'); r.value = 40;"
        " r.dispatchEvent(new Event('input')); })()"
    )
    before = page.js("document.querySelector('output').textContent")
    assert before.startswith("at ")
    page.js("document.querySelector('.chips button').click()")
    assert len(page.js("document.querySelector('output').textContent")) < len(before)
    assert page.js("document.querySelectorAll('svg .off').length") >= 1


def test_the_copied_table_is_markdown(page):
    page.js("window.copied = ''; navigator.clipboard.writeText = async t => { window.copied = t; }")
    page.js("document.querySelector('input[name=k][value=measured]').click()")
    page.js("document.querySelector('[data-do=md]').click()")
    lines = page.js("new Promise(r => setTimeout(() => r(window.copied), 50))").splitlines()
    shown = page.js("document.querySelectorAll('#t-results tbody tr:not([hidden])').length")
    assert len(lines) == shown + 2
    assert lines[1].startswith("| --- |")
    assert any("<sup>q</sup>" in line for line in lines)


@pytest.mark.parametrize("width", [360, 390, 768, 1280])
@pytest.mark.parametrize("dark", [False, True])
def test_the_page_never_scrolls_sideways(page, report, width, dark):
    page.resize(width, 800, dark=dark)
    page.open(report.out / "index.html")
    page.js("document.querySelectorAll('details').forEach(d => { d.open = true; })")
    assert page.js("document.documentElement.scrollWidth") <= width


def test_dark_mode_follows_the_system_and_the_switch(page):
    ground = "getComputedStyle(document.body).backgroundColor"
    assert page.js(ground) == "rgb(255, 255, 255)"
    page.resize(1280, 900, dark=True)
    assert page.js(ground) == "rgb(20, 23, 27)"
    page.js("document.querySelector('#theme').click()")  # auto -> light
    assert page.js(ground) == "rgb(255, 255, 255)"
    page.js("document.querySelector('#theme').click(); document.querySelector('#theme').click()")


def test_a_card_of_a_phone_unfolds(page, report):
    page.resize(390, 844)
    page.open(report.out / "index.html")
    hidden = "getComputedStyle(document.querySelector('#t-results tbody tr').cells[8]).display"
    assert page.js(hidden) == "none"
    page.js("document.querySelector('#t-results .expand button, #t-results button.expand').click()")
    assert page.js(hidden) == "block"


def test_touch_targets_are_large_enough(page):
    small = page.js(
        "[...document.querySelectorAll('button:not(.v), summary, input[type=range]')].filter(e => e.offsetParent && "
        "e.getBoundingClientRect().height < 24).map(e => e.outerHTML.slice(0, 80))"
    )
    assert small == []
