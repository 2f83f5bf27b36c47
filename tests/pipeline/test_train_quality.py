import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.core.errors import UserError
from pipeline.quality_classifier import QualityClassifier, features, sigmoid
from pipeline.train_quality import Recipe, auc, evaluate, read_labelled, train


@given(st.lists(st.tuples(st.integers(0, 4), st.booleans()), min_size=2, max_size=20))
def test_auc_is_the_share_of_pairs_in_order(pairs):
    good = [score for score, label in pairs if label]
    others = [score for score, label in pairs if not label]
    if not good or not others:
        return
    wins = sum((g > o) + 0.5 * (g == o) for g in good for o in others)
    scores, labels = np.array([float(score) for score, _ in pairs]), np.array([x for _, x in pairs])
    assert auc(scores, labels.astype(np.int64)) == pytest.approx(wins / len(good) / len(others))


def test_features_by_hand():
    places, values = features("One two, ONE two", 16)
    assert len(places) == 4  # one, two, "one two" twice, "two one"
    assert float((values**2).sum()) == pytest.approx(1)
    ratio = np.log(3) / np.log(2)
    assert sorted(values / values.min()) == pytest.approx([1, ratio, ratio, ratio])
    same, _ = features("one TWO one two", 16)
    assert same.tolist() == places.tolist()
    assert len(features("", 16)[0]) == 0


def test_sigmoid_stays_finite():
    assert sigmoid(0) == 0.5
    assert sigmoid(1e4) == 1.0
    assert sigmoid(-1e4) == 0.0


def made_up(number: int) -> str:
    good = number % 2
    words = ["clear", "reason", "because"] if good else ["buy", "cheap", "click"]
    return " ".join(
        f"{words[(number * step) % 3]} filler{step * number % 17}" for step in range(30)
    )


@pytest.fixture
def labelled(tmp_path):
    path = tmp_path / "labels.jsonl"
    rows = [{"text": made_up(number), "label": number % 2} for number in range(60)]
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return read_labelled([str(path)])


def test_it_learns_the_same_each_time_and_survives_its_file(labelled):
    recipe = Recipe(bits=14, epochs=3)
    model = train(labelled, recipe)
    assert train(labelled, recipe).to_bytes() == model.to_bytes()
    assert (
        model.score("because the reason is clear") > 0.6 > 0.4 > model.score("click to buy cheap")
    )
    again = QualityClassifier.from_bytes(model.to_bytes(), "file")
    assert again.bias == model.bias
    assert (again.weights == model.weights).all()
    assert evaluate(labelled, recipe, folds=3).classifier == 1.0


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[:-1],
        lambda data: data[:100],
        lambda data: data.replace(b'"version": 1', b'"version": 2'),
        lambda data: b"x" + data,
        lambda data: data[:-4] + b"\xff\xff\xff\xff",
    ],
)
def test_a_damaged_file_is_refused(damage):
    data = QualityClassifier(np.zeros(16, np.float32), 0.0).to_bytes()
    with pytest.raises(UserError, match=r"my\.file is no quality classifier"):
        QualityClassifier.from_bytes(damage(data), "my.file")


def test_parquet_reads_like_json_lines(tmp_path, labelled):
    path = tmp_path / "labels.parquet"
    table = pa.table({"text": labelled.texts, "label": labelled.labels.tolist(), "more": [0] * 60})
    pq.write_table(table, path)
    again = read_labelled([str(path)])
    assert again.texts == labelled.texts
    assert again.labels.tolist() == labelled.labels.tolist()


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ('{"text": "a", "label": 2}', "row 1: no text with label 0 or 1"),
        ('{"text": "a"}', "row without 'label'"),
        ("not json", "cannot be read"),
        ('{"text": "a", "label": 1}', "all labels are alike"),
        ('{"text": null, "label": 1}', "row 1"),
    ],
)
def test_labels_in_another_form_are_refused(tmp_path, content: str, complaint: str):
    path = tmp_path / "labels.jsonl"
    path.write_text(content)
    with pytest.raises(UserError, match=complaint):
        read_labelled([str(path)])
    with pytest.raises(UserError, match="nowhere"):
        read_labelled(["nowhere.jsonl"])


def test_on_people_s_labels(shared_data):
    """DCLM's 250 labelled pages: 0.84 by ten-fold cross-validation, where the rules' decision has
    0.65 and the best single signal, chosen afterwards, 0.80."""
    path = next(shared_data("quality/dclm-human-quality").rglob("half.jsonl"))
    found = evaluate(read_labelled([str(path)]), Recipe())
    assert found.examples == 250
    assert found.classifier >= 0.82
    assert found.heuristics >= 0.62
    assert found.classifier > found.best_signal
