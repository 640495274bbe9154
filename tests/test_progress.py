"""Progress on standard error: lines where there is no terminal, a bar where there is one, nothing if not wanted."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from anomaly.progress import TrainingBar


def trained(bar: TrainingBar, epochs: int = 2) -> None:
    with bar:
        for epoch in range(1, epochs + 1):
            for _ in range(3):
                bar.events(100, 300, 2.5)
            bar.epoch(epoch, epochs, 2.5, 2.75)


def on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    screen = io.StringIO()
    monkeypatch.setattr(
        "anomaly.progress.Console", lambda **_: Console(file=screen, force_terminal=True, width=120, color_system=None)
    )
    return screen


def test_a_line_for_each_epoch_goes_to_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    trained(TrainingBar("forecaster", show=True))
    out, err = capsys.readouterr()
    assert out == ""
    lines = err.splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("forecaster")
    assert "epoch 1 of at most 2" in lines[0]
    assert "2.500" in lines[0]
    assert "2.750" in lines[0]
    assert "events/s" in lines[0]
    assert "epoch 2 of at most 2" in lines[1]


@pytest.mark.parametrize("show", [False, None])
def test_nothing_is_shown_where_it_is_not_wanted_or_there_is_no_terminal(
    capsys: pytest.CaptureFixture[str], show: bool | None
) -> None:
    trained(TrainingBar("forecaster", show=show))
    assert capsys.readouterr() == ("", "")


def test_what_must_be_said_is_said_anyway(capsys: pytest.CaptureFixture[str]) -> None:
    TrainingBar("forecaster", show=False).say("interrupted: keeping epoch 3")
    assert capsys.readouterr().err == "forecaster: interrupted: keeping epoch 3\n"


@pytest.mark.parametrize("show", [True, None])
def test_a_terminal_gets_a_bar_and_the_lines_above_it(monkeypatch: pytest.MonkeyPatch, show: bool | None) -> None:
    screen = on_a_terminal(monkeypatch)
    trained(TrainingBar("autoencoder", show=show))
    shown = screen.getvalue()
    assert "epoch 1 of at most 2" in shown
    assert "epoch 2 of at most 2" in shown
    assert "━" in shown


def test_the_bar_is_taken_away_when_a_fit_breaks_off(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = on_a_terminal(monkeypatch)
    bar = TrainingBar("autoencoder", show=True)

    def interrupted() -> None:
        with bar:
            bar.events(10, 20, 1.0)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert bar.bar is not None
    assert bar.bar.finished or not bar.bar.live.is_started
    assert screen.getvalue().endswith("\x1b[?25h") or "\x1b[?25h" in screen.getvalue()


def test_an_epoch_of_one_event_and_none_of_time_is_fine(capsys: pytest.CaptureFixture[str]) -> None:
    bar = TrainingBar("forecaster", show=True)
    with bar:
        bar.events(1, 1, float("nan"))
        bar.epoch(1, 1, float("nan"), float("inf"))
    assert "nan" in capsys.readouterr().err
