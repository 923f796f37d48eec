from llmcli.cli.reports import explanation as report


def test_an_effect_that_is_shown_as_zero_has_no_bar(monkeypatch, capsys) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    effects = [0.0049, -0.0049, 0.5, -0.25, None]
    tokens = [{"text": text, "effect_bits": bits} for text, bits in zip("abcde", effects, strict=True)]
    report._show_ablation({"tokens": tokens, "attribution": {"text": "e"}}, list("abcde"), 5)
    rows = [line.split() for line in capsys.readouterr().out.splitlines() if line[:1].isdigit()]
    assert rows == [
        ["1", "a", "0.00"],
        ["2", "b", "0.00"],
        ["3", "c", "+0.50", "█" * 30],
        ["4", "d", "-0.25", "░" * 15],
    ]
