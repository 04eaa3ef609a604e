"""Tables, sentences and pictures that notebooks share, on records made up here."""

# ruff: noqa: RUF001
# ×, – and ± are meant: they are the paper's notation.
import matplotlib
import numpy as np
import pandas as pd
import pytest

from emigm.paper.reported import reported
from emigm.paper.settings import PAPER_MODELS
from emigm.records.frame import baselines, runs
from emigm.report import notes, style
from emigm.report.tables import Reading, Table, body, load, plus_minus


@pytest.fixture
def frame(root):
    return runs(root, ["mnist"])


def test_all_reported_rows_are_read_in_the_papers_order():
    assert (len(reported(256)), len(reported(512)), len(reported())) == (34, 26, 60)
    ours = reported().query("family == 'Ours'")
    assert {(int(r.resolution), r.size) for r in ours.itertuples()} == set(PAPER_MODELS)
    assert set(ours["budget"]) == {"16", "128", "64"} and (reported().query("family != 'Ours'")["size"] == "").all()


@pytest.mark.parametrize(
    ("mean", "error", "text"),
    [
        (3.50389, 0.00075, "3.504 ± 0.001"),
        (3.91, 0.624, "3.91 ± 0.62"),
        (0.1154, 0.0087, "0.1154 ± 0.0087"),
        (49.8, 0.32, "49.80 ± 0.32"),
        (1.42, float("nan"), "1.42"),
        (1.42, None, "1.42"),
        (float("nan"), float("nan"), "not run"),
        (None, None, "not run"),
        (0.0, None, "0.00"),
    ],
)
def test_numbers_are_written_with_the_digits_that_their_error_allows(mean, error, text):
    assert plus_minus(mean, error) == text


def test_what_is_saved_reads_back_as_data_and_is_shown_without_title_and_notes(tmp_path):
    frame = pd.DataFrame({"a": ["1 ± 2", None], "b": ["x", ""]})
    table = Table("t", "Title", frame, ("A note.", "")).save(tmp_path)
    assert (tmp_path / "t.md").read_text(encoding="utf-8") == table.markdown(1)
    assert "# Title" in table.markdown(1) and "- A note." in table.markdown() and "| –" in table.markdown()
    again = load(tmp_path / "t.md")
    assert (again.title, again.notes, again.body) == ("Title", ("A note.",), table.body)
    assert again.frame.equals(frame.fillna("–")) and body(tmp_path / "t") == table.body
    reading = Reading(("First.", "", "Second."), ("A note.",)).save(tmp_path)
    assert (tmp_path / "reading.md").read_text() == reading.markdown() == "First.\n\nSecond.\n\n- A note.\n"
    assert load(tmp_path / "reading.md").notes == ("A note.",) and body(tmp_path / "reading.md") == "First.\n\nSecond."
    assert body(tmp_path / "absent.md") == "not run"


def test_every_number_comes_with_what_it_rests_on(frame, root, released):
    real = baselines(root, "mnist")
    text = " ".join(notes.all_of(frame, real))
    assert "64 features of a small CNN" in text and "between 1,000 generated images" in text
    assert "The paper's FIDs are of 50,000 images" in text
    assert "held-out real images (never trained on; 1,000 images) 1.20" in text
    assert "2 training seeds × 2 sampling seeds" in text and "With n = 2 training seeds it is itself imprecise" in text
    assert "FAILED by training seeds of XS (1 of 2)" in text
    assert "XS, S, B, L, H trained here on 160,000 images" in text
    assert "Not at equal numbers of images" not in text
    real.loc[real["baseline"] == "holdout", "images"] = 359
    assert "held-out real images 359" in notes.baselines_at_equal_images(frame, real).lower()
    assert "No ±" in notes.spread(runs(root, ["smoke"]))
    assert "one training seed says nothing of other training runs" in notes.spread(frame.query("train_seed == 0"))
    text = " ".join(notes.all_of(runs(released, ["imagenet256"])))
    assert "XS, S, B, L, H released by the paper's authors, not trained here" in text
    assert "VIRTUAL_imagenet256_labeled.npz" in text and "Context gate" not in text
    assert "The paper's FIDs are of" not in text  # they are: 50,000 images


def test_other_weights_of_inception_and_unlike_extractors_are_told(frame):
    inception = frame.assign(extractor="inception")
    assert "the TensorFlow weights that FID is defined with" in notes.fid(inception.assign(extractor_published=True))
    said = notes.fid(inception.assign(extractor_published=[False, *[True] * (len(frame) - 1)]))
    assert "NOT with the weights that FID is defined with" in said and "TensorFlow" not in said
    mixed = frame.assign(extractor_identity=["a", *["b"] * (len(frame) - 1)])
    assert notes.all_of(mixed)[0].startswith("NOT COMPARABLE") and notes.same_extractor(frame) == ""


def test_a_figure_is_byte_identical_when_drawn_again_and_no_vector_file_is_large(frame, tmp_path):
    def draw(folder):
        figure, axes = style.panels(1, 2)
        drawn = style.curve(axes[0, 0], frame[frame["size"] == "xs"], "N", color=style.size_colour("xs"), label="XS")
        style.log_x(axes[0, 0])
        style.common_legend(figure)
        style.Picture("p", figure).save(folder)
        assert drawn["N"].tolist() == [4, 16]
        return (folder / "p.png").read_bytes(), (folder / "p.svg").read_bytes()

    assert draw(tmp_path / "a") == draw(tmp_path / "b")
    photo, axes = style.panels()
    axes[0, 0].imshow(np.random.default_rng(0).random((500, 500, 3)))
    style.Picture("photo", photo).save(tmp_path)
    assert (tmp_path / "photo.png").is_file() and not (tmp_path / "photo.svg").exists()


def test_a_curve_shows_mean_error_and_every_training_seed_and_crosses_out_what_fails_the_gate(frame):
    axes = style.panels()[1][0, 0]
    drawn = style.curve(axes, frame[frame["size"] == "h"], "passes", color="k", label="H")
    assert list(axes.containers[0][0].get_ydata()) == pytest.approx(drawn["mean"]) and drawn["error"].notna().all()
    (dots,) = axes.collections[-1:]
    assert len(dots.get_offsets()) == 4  # two training seeds at two numbers of steps
    assert style.SEED in axes.get_legend_handles_labels()[1]
    style.curve(axes, frame[frame["size"] == "xs"], "N", color="k", label="XS")  # one of whose training seeds fails
    crosses = [line for line in axes.lines if line.get_label() == "fails the context gate"]
    assert [len(line.get_xdata()) for line in crosses] == [2]


def test_the_legend_names_every_mark_once_and_what_is_no_model_last(frame, root):
    def labels_of(legend):
        return [text.get_text() for text in legend.get_texts()]

    figure, axes = style.panels(1, 2)
    for panel in axes[0]:
        style.curve(panel, frame[frame["size"] == "xs"], "N", color="k", label="XS")
        style.baseline_lines(panel, baselines(root, "mnist"), which=("class_shuffle", "holdout"))
    style.common_legend(figure)
    first, *labels = labels_of(figure.legends[0])
    assert first == "XS" and sorted(labels) == ["class shuffle", style.FAILS, "held-out real images", style.SEED]
    style.common_legend(figure, own={panel: ["XS"] for panel in axes[0]})
    assert [labels_of(panel.get_legend()) for panel in axes[0]] == [["XS"]] * 2
    assert sorted(labels_of(figure.legends[1])) == sorted(labels)


def test_a_legend_has_no_more_columns_than_fit_into_the_figure():
    figure, axes = style.panels(1, 2)
    for i in range(9):
        axes[0, 0].plot([0, 1], [0, i], label=f"a model with a long name, number {i}")
    style.common_legend(figure)
    (legend,) = figure.legends
    figure.canvas.draw()
    assert legend.get_window_extent().width <= figure.bbox.width and len(legend.get_texts()) == 9


def test_drawing_does_not_change_the_style_of_others():
    before = dict(matplotlib.rcParams)
    assert style.styled(lambda: matplotlib.rcParams["svg.hashsalt"])() == "emigm"
    assert dict(matplotlib.rcParams) == before
