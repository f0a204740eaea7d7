"""What is told of a long run."""

import io

from ofa_plugin.data.prepare.report import Place, Progress, Report, RowProblem


def test_progress_says_nothing_of_a_short_job_and_a_line_every_five_seconds_of_a_long_one(capsys):
    now = [0.0]
    progress = Progress("writing", "pictures", 1000, clock=lambda: now[0])
    for second in range(0, 20, 2):
        now[0] = float(second)
        progress.show(second * 10)
    assert capsys.readouterr().err.splitlines() == [
        "writing: 40 of 1000 pictures (4 %), 10/s, 1 min 36 s left",
        "writing: 100 of 1000 pictures (10 %), 10/s, 1 min 30 s left",
        "writing: 160 of 1000 pictures (16 %), 10/s, 1 min 24 s left",
    ]


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
