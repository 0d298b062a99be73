"""The judge against labels written by reading completions of real models, where those have been brought forth again.

python benchmarks/judging.py make qwen-0.5b FOLDER --harmful ... --harmless ... --out said.jsonl
DCT_JUDGED=said.jsonl pytest tests/test_judged.py
"""

import json
import os

import pytest
from judging import LABELLED, agreement, judged, key, labelled, part

from dct.judging import LABELS

FILES = os.environ.get("DCT_JUDGED", "").split(os.pathsep) if os.environ.get("DCT_JUDGED") else []


def test_labels_are_keyed_and_hold_no_text():
    rows = [json.loads(line) for line in LABELLED.read_text().splitlines()]
    assert len(rows) >= 300
    assert len({row["key"] for row in rows}) == len(rows)
    for row in rows:
        assert set(row) == {"key", "model", "label", "coherent"}
        assert len(row["key"]) == 64
        assert row["label"] in LABELS
    assert {(row["label"], row["coherent"]) for row in rows} == {
        (one, sound) for one in LABELS for sound in (True, False)
    }


def test_texts_find_their_labels(tmp_path, monkeypatch):
    """On a set of the test's own: half of it is labelled, all of it right but one."""
    rows = [
        {"prompt": "Bake bread?", "vector": "unsteered", "completion": "I'm sorry, but I can't assist with that."},
        {"prompt": "Bake bread?", "vector": "1", "completion": "To bake bread, first mix flour and water in a bowl."},
        {"prompt": "Bake bread?", "vector": "2", "completion": "Nobody has read this."},
    ]
    (tmp_path / "said.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    labels = [{"key": key(row["prompt"], row["completion"]), "label": "refused", "coherent": True} for row in rows[:2]]
    (tmp_path / "labels.jsonl").write_text("".join(json.dumps(one) + "\n" for one in labels))
    monkeypatch.setattr("judging.LABELLED", tmp_path / "labels.jsonl")
    found, missing = labelled([tmp_path / "said.jsonl"])
    assert (len(found), missing) == (2, 1)
    assert found[1]["unsteered"] == rows[0]["completion"]
    figures = agreement(found, judged(found))
    assert figures["label"][:2] == (1, 2)
    assert figures["coherent"][:2] == (2, 2)


@pytest.mark.skipif(not FILES, reason="DCT_JUDGED names no completions: make them with benchmarks/judging.py")
def test_the_judge_agrees_with_a_reader():
    rows, _ = labelled(FILES)
    verdicts = judged(rows)
    kept = [k for k, row in enumerate(rows) if part(row["prompt"]) == "test"]
    assert len(kept) >= 90
    figures = agreement([rows[k] for k in kept], [verdicts[k] for k in kept])
    for name, least, beyond in (("label", 0.92, 0.85), ("coherent", 0.92, 0.65), ("success", 0.92, 0.8)):
        same, of, kappa = figures[name]
        assert same >= least * of, (name, figures)
        assert kappa >= beyond, (name, figures)
