"""What is told of a long run."""

import io

from ofa_plugin.data.prepare.report import Place, Report, RowProblem
from ofa_plugin.progress import progress_bar, say


def test_a_bar_says_nothing_of_a_short_job_and_how_long_a_long_one_will_take(capsys):
    with progress_bar(10, "picture", "writing", delay=60) as bar:
        bar.update(10)
    assert capsys.readouterr().err == ""
    with progress_bar(10, "picture", "writing") as bar:
        bar.update(5)
        bar.refresh()
        say("a.tsv:3: something is wrong")
    printed = capsys.readouterr().err
    assert "writing:  50%" in printed and "5/10" in printed and "picture/s]" in printed
    assert "a.tsv:3: something is wrong\n" in printed


def test_a_bad_row_is_one_line_of_four_cells_whatever_its_reason_holds(capsys):
    ledger = io.StringIO()
    report = Report(ledger)
    report.bad(Place("a.jsonl", "3"), RowProblem("a\tb\nc", "do"))
    report.bad(Place("a.jsonl", "3: objects[1]"), RowProblem("r", "do"))
    report.bad(Place("a.json", "images[1] (id 2)"), RowProblem("r", "do"))
    assert (
        ledger.getvalue() == "a.jsonl\t3\ta b c\tdo\na.jsonl\t3: objects[1]\tr\tdo\na.json\timages[1] (id 2)\tr\tdo\n"
    )
    assert capsys.readouterr().err.splitlines()[-2:] == [
        "a.jsonl:3: objects[1]: r: do",
        "a.json: images[1] (id 2): r: do",
    ]
    assert report.bad_rows == 3


def test_the_first_places_of_a_change_are_named():
    report = Report(io.StringIO())
    for number in range(5):
        report.change("tidied", f"a:{number}")
    report.change("clamped", "b:1")
    assert report.change_lines() == ["tidied: 5 (a:0; a:1; a:2; ...)", "clamped: 1 (b:1)"]
