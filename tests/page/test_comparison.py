"""Points that were chosen, in a real Chromium: training curves, figures, and bars for each layer."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from playwright.sync_api import Page


def test_a_click_chooses_and_shows_curves_and_figures(page: "Page") -> None:
    halo = page.locator(".point[data-focus='dot s0 s1'] .halo").bounding_box()
    assert halo is not None
    page.mouse.move(halo["x"] + 12, halo["y"] + 12)
    tip = page.inner_text(".tip")
    assert "distill" in tip and "0.025 (0.02 to 0.03)" in tip and "2 seeds" in tip
    page.mouse.click(halo["x"] + 12, halo["y"] + 12)
    page.locator("tbody .name", has_text="key=q8").click()
    assert page.locator("[aria-pressed=true].name").count() == 2
    assert page.locator(".point[aria-selected=true]").count() == 2
    assert page.locator(".curves .line").count() == 1
    assert page.locator(".curves .line").get_attribute("d").count("M") == 2  # type: ignore[union-attr]  # a gap
    page.locator(".curves svg").hover(position={"x": 900, "y": 60})
    assert page.inner_text(".readout") == "step 9; A, seed 0: 0.1"
    assert "Without this curve: B." in page.inner_text(".curves")
    assert "0.025 (0.02 to 0.03)" in page.inner_text(".comparison")
    page.get_by_role("button", name="Choose none").click()
    assert page.locator(".comparison").count() == 0


def test_a_bar_for_each_layer_of_a_chosen_point_that_has_them(page: "Page") -> None:
    page.locator("tbody .name", has_text="key=q8").click()
    assert page.locator(".sensitivity").count() == 0
    page.locator("tbody .name", has_text="bare").click()
    table = page.get_by_role("region", name="Sensitivity by layer").get_by_role("row").all_inner_texts()
    cells = [" ".join(row.split()) for row in table]
    assert cells == [
        "layer B 10⁻³ nats",
        "encoder.block.0",
        "layer.0.SelfAttention.q 12.3",
        "layer.1.wo 40",
        "decoder.block.0",
        "layer.0.SelfAttention.q -1",
    ]
    bars = page.locator(".sensitivity .bar").evaluate_all(
        "all => all.map(one => [one.getAttribute('x'), one.getAttribute('width')])"
    )
    assert bars == [["2.44%", "30.12%"], ["2.44%", "97.56%"], ["0.00%", "2.44%"]]
    assert "Not measured: A." in page.inner_text(".sensitivity")
    page.set_viewport_size({"width": 360, "height": 740})
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    region = "document.querySelector('.layers')"
    assert page.evaluate(f"{region}.scrollWidth === {region}.clientWidth")


def test_bits_of_each_layer_above_what_it_would_cost(page: "Page") -> None:
    page.locator("tbody .name", has_text="key=q8").click()
    page.locator("tbody .name", has_text="key=q4").click()
    region = page.get_by_role("region", name="Bits by layer")

    def rows() -> list[str]:
        return [" ".join(row.split()) for row in region.get_by_role("row").all_inner_texts()]

    assert rows() == [
        "layer B bits",
        "encoder.block.0",
        "layer.0.SelfAttention.q 4 10",
        "layer.1.wo 8 40",
        "decoder.block.0",
        "layer.0.SelfAttention.q 2 2",
    ]
    widths = region.locator(".bar").evaluate_all("all => all.map(one => one.getAttribute('width'))")
    assert widths == ["50.00%", "25.00%", "100.00%", "100.00%", "25.00%", "5.00%"]
    assert "All layers alike: A." in page.inner_text(".allotted")
    assert "(10⁻³ nats)" in page.inner_text(".allotted label")
    select = page.locator("[data-focus=width]")
    select.focus()
    page.keyboard.press("ArrowDown")  # by keyboard alone, and the choice keeps the focus
    assert rows()[3] == "layer.1.wo 8 2"
    assert page.evaluate("document.activeElement.dataset.focus") == "width"
    page.set_viewport_size({"width": 360, "height": 740})
    assert page.evaluate("document.documentElement.scrollWidth") == 360
