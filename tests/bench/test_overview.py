"""The overview of many cells: a block in place on a terminal, plain lines elsewhere."""

import io

from bench.overview import Board


class Terminal(io.StringIO):
    def isatty(self):
        return True


def screen(text):
    """What a terminal shows after these characters: enough of ANSI for a block that is redrawn."""
    rows, at = [""], 0
    k = 0
    while k < len(text):
        if text[k] == "\n":
            at += 1
            if at == len(rows):
                rows.append("")
        elif text[k] == "\r":
            pass
        elif text[k] == "\x1b":
            end = next(j for j in range(k + 2, len(text)) if text[j].isalpha())
            number, what = text[k + 2 : end], text[end]
            if what == "A":
                at -= int(number)
            elif what == "J":
                rows[at:] = [""]
            k = end
        else:
            rows[at] += text[k]
        k += 1
    return rows


def test_running_cells_have_a_line_each_and_leave_when_they_end():
    out = Terminal()
    board = Board(3, many=True, quiet=False, stream=out)
    first, second = board.progress("a"), board.progress("b")
    first.phase("train", 10)
    second.phase("certify", 10)
    board._drawn_at = 0
    second.update(5, acc=0.5)
    shown = screen(out.getvalue())
    assert shown[0] == "0 of 3 cells done, 2 running"
    assert shown[1].startswith("a: train") and shown[2].startswith("b: certify [")
    first.close()
    board.ended(1)
    board.say("error: a: it broke", always=True)
    shown = screen(out.getvalue())
    assert shown[0] == "error: a: it broke"
    assert shown[1] == "1 of 3 cells done, 1 failed, 1 running" and shown[2].startswith("b: ")
    second.close()
    board.close()
    assert screen(out.getvalue()) == ["error: a: it broke", ""]


def test_off_a_terminal_lines_say_which_cell_of_how_many():
    out = io.StringIO()
    board = Board(2, many=True, quiet=False, stream=out)
    board.progress("a").note("hello")
    board.progress("b").note("hello")
    board.say("done")
    board.close()
    assert out.getvalue() == "[1/2] a: hello\n[2/2] b: hello\ndone\n"


def test_a_single_cell_needs_no_name():
    out = io.StringIO()
    Board(1, many=False, quiet=False, stream=out).progress("a").note("hello")
    assert out.getvalue() == "hello\n"


def test_quiet_says_only_failures():
    out = Terminal()
    board = Board(2, many=True, quiet=True, stream=out)
    progress = board.progress("a")
    progress.phase("train", 3)
    progress.update(1)
    progress.note("a note")
    board.say("finished a")
    board.say("error: b", always=True)
    board.close()
    assert out.getvalue() == "error: b\n"
