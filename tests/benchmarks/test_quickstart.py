"""The benchmark of the quickstart: what it does before it runs one, which takes ten minutes."""

from benchmarks import quickstart


def test_help_is_shown_and_nothing_is_run(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    quickstart.main(["--help"])
    assert "python -m benchmarks.quickstart" in capsys.readouterr().out and not list(tmp_path.iterdir())
