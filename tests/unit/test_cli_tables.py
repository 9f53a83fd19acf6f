"""What commands print: plain where nobody looks, one document for machines, and nothing that steers a terminal."""

import json

import pytest

from appliance.cli.tables import Column, Output, clean, plural, size_of, span_of


def test_without_a_terminal_a_table_is_aligned_text(capsys: pytest.CaptureFixture[str]) -> None:
    Output().table([Column("name"), Column("count", right=True)], [("pacs", 7), ("a", 1234)])
    assert capsys.readouterr().out == "name  count\npacs      7\na      1234\n"


def test_a_long_line_is_never_cut_or_wrapped(capsys: pytest.CaptureFixture[str]) -> None:
    Output().table([Column("uid")], [("1." * 200,)])
    assert "1." * 200 in capsys.readouterr().out


def test_with_json_only_the_document_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    output = Output(as_json=True)
    output.line("for people")
    output.table([Column("a")], [(1,)])
    with output.progress("sending") as tell, output.waiting() as step:
        tell(1, 2)
        step("going on")
    output.document({"a": 1})
    assert json.loads(capsys.readouterr().out) == {"a": 1}


def test_what_peers_say_cannot_steer_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    Output().table([Column("why")], [("\x1b[2Jgone [bold]x[/bold]\n",)])
    assert capsys.readouterr().out == "why\n?[2Jgone [bold]x[/bold]?\n"
    assert clean("a\tb\x07") == "a?b?"


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 bytes"), (999, "999 bytes"), (525_214, "525 kB"), (8_700, "8.7 kB"), (52e6, "52.0 MB"), (3e12, "3.0 TB")],
)
def test_sizes(count: float, text: str) -> None:
    assert size_of(count) == text


@pytest.mark.parametrize(
    ("ms", "text"), [(0, "0 ms"), (999, "999 ms"), (3_200, "3.2 s"), (90_000, "1.5 min"), (2 * 86_400_000, "2.0 days")]
)
def test_spans(ms: float, text: str) -> None:
    assert span_of(ms) == text


def test_plurals() -> None:
    assert (plural(1, "object"), plural(2, "object"), plural(2, "delivery", "deliveries")) == (
        "1 object",
        "2 objects",
        "2 deliveries",
    )
