"""The comparison of backbones, on data small enough to make here: its figures, its page, and whose figures stay."""

from __future__ import annotations

import json
from pathlib import Path

import _numbers
import compare_backbones
import pytest

from anomaly.models.backbones import CAUSAL


def test_the_figures_stand_beside_those_of_others(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _numbers.write_numbers(tmp_path, "python scripts/other.py", {"other.ap": 0.5, "backbone.gone.ap": 0.1})
    sizes = ["--customers", "50", "--days", "40", "--epochs", "1", "--cue-epochs", "1", "--seeds", "1"]
    assert compare_backbones.main(["--reports", str(tmp_path), *sizes]) == 0
    content = json.loads((tmp_path / "numbers.json").read_text(encoding="utf-8"))
    assert content["command"] == "python scripts/other.py"
    told = "python scripts/compare_backbones.py --customers 50 --days 40 --epochs 1 --cue-epochs 1 --seeds 1"
    assert content["parts"]["backbone"]["command"] == told
    figures = content["figures"]
    assert figures["other.ap"] == 0.5
    assert "backbone.gone.ap" not in figures
    for name in CAUSAL:
        assert 0 <= figures[f"backbone.{name}.ap"] <= 1
        assert 0 <= figures[f"backbone.{name}.cue"] <= 1
        assert figures[f"backbone.{name}.fit_events_per_second"] > 0
        assert figures[f"backbone.{name}.score_events_per_second"] > 0
    assert 0 <= figures["backbone.lstm_reach.cue"] <= 1
    assert figures["backbone.none.parameters"] < figures["backbone.rnn.parameters"]
    assert figures["backbone.rnn.parameters"] < figures["backbone.gru.parameters"] < figures["backbone.lstm.parameters"]
    assert figures["backbone.rnn.state"] < figures["backbone.lstm.state"] < figures["backbone.transformer.state"]
    page = (tmp_path / "backbones.md").read_text(encoding="utf-8")
    assert f"| lstm | {figures['backbone.lstm.ap']:.3f} |" in page
    assert f"The rule has {figures['backbone.ratio.ap']:.3f}" in page
    assert str(tmp_path) in capsys.readouterr().out


def test_the_choice_follows_from_the_figures() -> None:
    kept = {"gru": 1.0, "rnn": 0.0, "transformer": 3.0, "lstm": 0.0, "lstm_reach": 3.0}
    figures = {f"backbone.{name}.cue.kept": number for name, number in kept.items()} | {"backbone.cue.fits": 3.0}
    figures |= {"backbone.lstm.state": 128.0, "backbone.transformer.state": 16_000.0}
    figures |= {f"backbone.{name}.score_events_per_second": 1e5 for name in ("lstm", "transformer")}
    told = compare_backbones.choice(figures, near=True)
    assert "keep it (3 of 3 fits), where RNN and GRU kept it in 0 and 1; and it carries 128 numbers" in told
    assert compare_backbones.choice(figures, near=False) == "These figures speak against the LSTM as the usual one."
    figures["backbone.lstm_reach.cue.kept"] = 0.0
    assert "speak against" in compare_backbones.choice(figures, near=True)


def test_a_part_keeps_to_its_own_names(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"expected a name that begins with backbone\."):
        _numbers.merge_numbers(tmp_path, "backbone", "x", {"other.ap": 1.0})
