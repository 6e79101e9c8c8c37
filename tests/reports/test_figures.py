"""The figures of the study are drawn from runs, with text as text, and those without data are
named."""

from __future__ import annotations

import itertools
import sys
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest

from clinpeft.core.errors import InputError, UsageError
from clinpeft.reports import CellResult
from clinpeft.reports.encoders import EncoderGrid, build_encoder_grid
from clinpeft.reports.figures import (
    EMBEDDING_FIGURES,
    draw_embedding_figures,
    style,
    write_embedding_figures,
)
from tests.reports.conftest import (
    TEN,
    ablation,
    embedded,
    make_embed_recipe,
    separations,
    ten_backbones,
)

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture(scope="module")
def ten(tmp_path_factory: pytest.TempPathFactory) -> EncoderGrid:
    return build_encoder_grid(ten_backbones(tmp_path_factory.mktemp("ten")))


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ...]:
    home = tmp_path_factory.mktemp("written")
    entries = [
        *ten_backbones(home / "ten", 2)[1:],
        *(entry for entry in ablation(home / "ablation") if "r=8" in entry.name),
    ]
    return write_embedding_figures(entries, home / "figures")


def points(axes: Any, marker: str) -> list[tuple[float, float]]:
    lines = [line for line in axes.lines if line.get_marker() == marker]
    return [
        (float(x), float(y))
        for line in lines
        for x, y in zip(line.get_xdata(), line.get_ydata(), strict=True)
    ]


def draw(name: str, grid: EncoderGrid) -> Any:
    with style.apply_plot_style():
        return EMBEDDING_FIGURES[name][1](grid)


def test_there_are_thirteen_and_each_has_a_caption() -> None:
    assert list(EMBEDDING_FIGURES) == [f"figure-{number}" for number in range(1, 14)]
    assert all(caption.endswith(".") for caption, _ in EMBEDDING_FIGURES.values())


def test_every_figure_is_written_in_both_formats(written: tuple[Path, ...]) -> None:
    assert [path.name for path in written[:-1]] == [
        f"{name}.{form}" for name in EMBEDDING_FIGURES for form in ("svg", "png")
    ]
    for path in written[:-1]:
        content = path.read_bytes()
        assert content.startswith(PNG) if path.suffix == ".png" else b"</svg>" in content


def test_text_in_an_svg_is_text(written: tuple[Path, ...]) -> None:
    for path in (path for path in written if path.suffix == ".svg"):
        texts = {
            "".join(node.itertext())
            for node in ET.parse(path).iter("{http://www.w3.org/2000/svg}text")
        }
        assert "rank 8" in texts if path.stem == "figure-13" else "Gemma-2-2B" in texts, path.name
        assert any(len(text) > 8 for text in texts)


def test_the_captions_stand_in_a_file_beside(written: tuple[Path, ...]) -> None:
    text = written[-1].read_text(encoding="utf-8")
    assert written[-1].name == "figures.md" and "was not drawn" not in text
    assert all(caption in text for caption, _ in EMBEDDING_FIGURES.values())


def test_the_same_runs_give_the_same_file(ten: EncoderGrid, tmp_path: Path) -> None:
    for name in ("a.svg", "b.svg"):
        style.write_figure(draw("figure-12", ten), tmp_path / name)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()


def test_one_backbone_is_enough_for_all_but_the_ablation(tmp_path: Path) -> None:
    figures, skipped = draw_embedding_figures(ten_backbones(tmp_path, 1))
    assert list(skipped) == ["figure-13"] and len(figures) == 12


def test_a_figure_without_data_is_skipped_and_named(tmp_path: Path) -> None:
    run = embedded(tmp_path / "runs", f"{1:012x}", make_embed_recipe(), *separations(0.1, 0.4))
    paths = write_embedding_figures(
        [
            CellResult("BGE", run),
            CellResult("E5", None, "no weights", recipe=make_embed_recipe("intfloat/e5-large-v2")),
        ],
        tmp_path / "figures",
    )
    assert [path.name for path in paths if path.suffix == ".png"] == [
        f"figure-{number}.png" for number in (1, 5, 6, 7, 8)
    ]
    text = paths[-1].read_text(encoding="utf-8")
    assert "**figure-9** was not drawn: no run has scores of pairs." in text
    assert (
        "**figure-4** was not drawn: no run has a dimension with a speed or memory in its profile."
        in text
    )


def test_a_grid_without_a_run_draws_nothing(tmp_path: Path) -> None:
    figures, skipped = draw_embedding_figures(
        [CellResult("BGE", None, "no weights", recipe=make_embed_recipe())]
    )
    assert not figures and list(skipped) == list(EMBEDDING_FIGURES)
    with pytest.raises(InputError) as error:
        EMBEDDING_FIGURES["figure-1"][1](build_encoder_grid([]))
    assert error.value.location == "figures" and "separation" in error.value.message


def test_published_values_are_hollow_marks_below_what_was_measured(ten: EncoderGrid) -> None:
    (axes,) = draw("figure-1", ten).axes
    marks = points(axes, "D")
    assert [x for x, _ in marks] == [backbone[3] for backbone in TEN]
    assert [y for _, y in marks] == pytest.approx([location + 0.3 for location in range(10)])
    assert (
        next(line for line in axes.lines if line.get_marker() == "D").get_markerfacecolor()
        == "white"
    )


def test_bars_have_their_intervals_and_the_threshold_of_the_study_is_drawn(
    ten: EncoderGrid,
) -> None:
    """Separations are 0.02 above the published ones, each with an interval of 0.03 to either
    side."""
    (axes,) = draw("figure-1", ten).axes
    widths = [bar.get_width() for bar in axes.patches]
    assert widths == pytest.approx([backbone[3] + 0.02 for backbone in TEN])
    segments = [segment for lines in axes.collections for segment in lines.get_segments()]
    assert sorted(float(end) for segment in segments for end in segment[:, 0]) == pytest.approx(
        sorted(backbone[3] + 0.02 + side for backbone in TEN for side in (-0.03, 0.03))
    )
    assert 0.3 in [line.get_xdata()[0] for line in axes.lines if len(line.get_xdata()) == 2]


def test_gains_are_differences_in_order_with_their_median(ten: EncoderGrid) -> None:
    """The published gains 0.477, 0.411 ... -0.238; of ten the median is (0.252 + 0.211) / 2."""
    (axes,) = draw("figure-7", ten).axes
    assert [label.get_text() for label in axes.get_yticklabels()][:3] == [
        "BioLinkBERT",
        "Qwen3-4B",
        "Gemma-2-2B",
    ]
    dotted = next(line for line in axes.lines if line.get_linestyle() == ":")
    assert dotted.get_xdata()[0] == pytest.approx(0.2315)


def test_the_frontier_is_what_no_other_beats_in_both(ten: EncoderGrid) -> None:
    """Of the published numbers BioLinkBERT, MPNet and BGE-small."""
    (axes,) = draw("figure-11", ten).axes
    frontier = sorted(points(axes, "o"))
    assert [speed for speed, _ in frontier] == [143.5, 228.8, 467.3]
    assert [separation for _, separation in frontier] == pytest.approx([0.53, 0.406, 0.27])
    assert len(points(axes, "s")) == 7


def test_boxes_stand_apart_for_encoders_and_decoders(ten: EncoderGrid) -> None:
    encoders, decoders = draw("figure-9", ten).axes
    assert (encoders.get_title(loc="left"), decoders.get_title(loc="left")) == (
        "encoders",
        "decoders",
    )
    assert (len(encoders.patches), len(decoders.patches)) == (14, 6)


def test_each_backbone_has_its_own_radar_in_shares_of_the_best(ten: EncoderGrid) -> None:
    figure = draw("figure-10", ten)
    assert len(figure.axes) == 10
    small = next(axes for axes in figure.axes if axes.get_title() == "BGE-small-v1.5")
    assert [share for _, share in points(small, "o")] == pytest.approx([0.27 / 0.53, 1, 1, 1])


@pytest.mark.parametrize("name", ["figure-2", "figure-3", "figure-4", "figure-11"])
def test_names_beside_points_do_not_cover_each_other(ten: EncoderGrid, name: str) -> None:
    figure = draw(name, ten)
    figure.draw_without_rendering()
    renderer = figure.canvas.get_renderer()
    for axes in figure.axes:
        boxes = {
            text.get_text(): text.get_window_extent(renderer).shrunk(0.9, 0.7)
            for text in axes.texts
            if text.get_text()
        }
        assert len(boxes) == 10
        assert not [
            (one, other)
            for (one, a), (other, b) in itertools.combinations(boxes.items(), 2)
            if a.overlaps(b)
        ]


def test_architectures_can_be_told_apart_without_colour() -> None:
    looks = list(style.ARCHITECTURE_STYLES.values())
    assert len({look.marker for look in looks}) == len({look.hatch for look in looks}) == len(looks)


def test_drawing_leaves_the_settings_of_matplotlib_as_they_were(ten: EncoderGrid) -> None:
    library = style.import_matplotlib()
    before = {key: library.rcParams[key] for key in style.MATPLOTLIB_RC}
    draw("figure-12", ten)
    assert {key: library.rcParams[key] for key in style.MATPLOTLIB_RC} == before
    assert before["svg.fonttype"] != style.MATPLOTLIB_RC["svg.fonttype"]


def test_without_matplotlib_the_extra_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(UsageError) as raised:
        write_embedding_figures(ten_backbones(tmp_path, 1), tmp_path)
    assert 'pip install "clinpeft[figures]"' in str(raised.value)
