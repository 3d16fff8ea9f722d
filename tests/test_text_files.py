"""Files of text and of rows, read exactly as they were written, by one reader for every place that reads them."""

from __future__ import annotations

import gzip
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fuzzing import JSON_VALUES
from llmquant.errors import OptionError
from llmquant.evaluators.page_set.pages import list_pages
from llmquant.evaluators.page_set.queries import read_questions
from llmquant.evaluators.perplexity.options import PerplexityOptions
from llmquant.plugins.options import build
from llmquant.quantizers.calibration.options import read_documents
from llmquant.storage.text_files import parse_rows, read_rows, read_text
from llmquant.study.call import Call

BOM = b"\xef\xbb\xbf"
# Unicode's other line ends, which `str.splitlines` splits at.
SEPARATORS = "\u2028\u2029\x85\x0b\x0c\x1c\x1d\x1e"


@pytest.fixture
def file(tmp_path):
    def write(data, name="file.txt"):
        path = tmp_path / name
        path.write_bytes(data)
        return path

    return write


rows = st.lists(st.dictionaries(st.text(), JSON_VALUES, max_size=4), max_size=5)


@given(rows, st.booleans(), st.sampled_from([b"\n", b"\r\n"]), st.sampled_from([b"", BOM]))
def test_rows_are_what_was_written(written, ascii_only, end, mark):
    """Every value and its type comes back, whatever the line ends and with or without a byte-order mark."""
    data = mark + b"".join(json.dumps(row, ensure_ascii=ascii_only).encode() + end for row in written)
    found = [row for _, row in parse_rows(data.splitlines(keepends=True), "rows")]
    assert repr(found) == repr(written)


@given(st.text(alphabet=st.characters(exclude_categories=("Cs",), exclude_characters="\0\ufeff")))
def test_text_is_what_was_written(tmp_path_factory, text):
    """Every character, CRLF and other line ends among them."""
    path = tmp_path_factory.getbasetemp() / "any.txt"
    path.write_bytes(text.encode())
    assert read_text(path, "any.txt") == text


def test_only_a_line_feed_ends_a_row(file):
    """A value may hold every other line end of Unicode, and empty lines count in the numbers."""
    path = file(f'\n{{"a": "x{SEPARATORS[:3]}y"}}\r\n \t\r\n{{"a": 2}}'.encode())
    assert list(read_rows(path, "rows")) == [(2, {"a": f"x{SEPARATORS[:3]}y"}), (4, {"a": 2})]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b'{"a": NaN}', "line 3 is not JSON: NaN"),
        (b'{"a": [-Infinity]}', "line 3 is not JSON: -Infinity"),
        (b'{"a": 1e999}', "line 3 is not JSON: 1e999 is too large"),
        (b'{"a": {"b": 1, "b": 1}}', "line 3 is not JSON: the key 'b' is given twice"),
        (b'{"a": "\\ud83d"}', "line 3 contains half of a surrogate pair"),
        (b'{"\\udc00": 1}', "line 3 contains half of a surrogate pair"),
        (b"[1]", r"line 3 is '\[1\]'"),
        (b"null", "line 3 is 'null'"),
        (b'{"a": 1} {"a": 2}', "line 3 is not JSON: Extra data, column 10"),
        (b'{"a": 1}\r{"a": 2}', "line 3 is not JSON: Extra data"),
        (b"[" * 100_000, "line 3 is not JSON"),
        (b'{"a": ' + b"9" * 5000 + b"}", "line 3 is not JSON"),
        (BOM + b'{"a": 1}', "line 3 is not JSON"),
        (b'{"a": "\xff"}', "in line 3, byte 25 is 0xff"),
        (b'{"a": "\0"}', "in line 3, byte 25 is 0x0"),
    ],
)
def test_what_is_not_a_row_is_refused_with_its_line(file, line, words):
    """Python's own JSON reader takes some of these and changes them."""
    path = file(b'{"a": 1}\n{"a": 2}\n' + line + b"\n")
    with pytest.raises(OptionError, match=f"rows.*{words}"):
        list(read_rows(path, "rows"))


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "latin-1"])
def test_other_encodings_are_refused(file, encoding):
    """With the byte, so that no text is scored that nobody wrote."""
    path = file("Straße\nZürich".encode(encoding))
    for read in (lambda: read_text(path, "file"), lambda: list(read_rows(path, "file"))):
        with pytest.raises(OptionError, match=r"file is not UTF-8 text: in line 1, byte [0-4] is 0x"):
            read()


def test_a_byte_that_is_not_text_has_its_line(file):
    """In a text file too."""
    path = file(BOM + b"one\r\ntwo\r\nth\0ree")
    with pytest.raises(OptionError, match="in line 3, byte 15 is 0x0"):
        read_text(path, "file")


def test_a_byte_order_mark_is_no_text(file):
    """At the start alone; elsewhere it is a character like any other."""
    assert read_text(file(BOM + b"a\r\n" + BOM + b"b"), "file") == "a\r\n\ufeffb"


TEXT = f"One.\r\nTwo{SEPARATORS}three.\r\n"


def perplexity(path):
    return list(build(PerplexityOptions, Call("perplexity", (str(path),))).texts())


@pytest.mark.parametrize("read", [perplexity, lambda path: list(read_documents(path, path.name))])
@pytest.mark.parametrize("mark", [b"", BOM], ids=["plain", "marked"])
def test_every_reader_of_text_gives_it_as_written(file, read, mark):
    """What perplexity is measured on, and what calibrates."""
    assert read(file(mark + TEXT.encode())) == [TEXT]


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", [b"", BOM], ids=["plain", "marked"])
def test_every_reader_of_rows_takes_marks_and_line_ends(file, mark, end):
    """Calibration texts and queries."""
    path = file(mark + f'{{"text": "a{SEPARATORS[:3]}b"}}{end}{{"text": "c"}}{end}'.encode(), "calibration.jsonl")
    assert list(read_documents(path, path.name)) == [f"a{SEPARATORS[:3]}b", "c"]
    path = file(mark + f'{{"query": "a{SEPARATORS[:3]}b", "relevant": "p"}}{end}'.encode(), "queries.jsonl")
    questions, errors = read_questions(path, path.name, {"p": "p"})
    assert ([question.text for question in questions], errors) == ([f"a{SEPARATORS[:3]}b"], [])


def test_a_cell_of_csv_may_hold_line_ends(file):
    """In quotes it is one cell, and U+2028 needs none."""
    path = file(BOM + 'query,relevant\r\n"one\r\ntwo",p\r\nth\u2028ree,p\r\n'.encode(), "queries.csv")
    questions, errors = read_questions(path, path.name, {"p": "p"})
    assert ([question.text for question in questions], errors) == (["one\r\ntwo", "th\u2028ree"], [])


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"query,query,relevant\na,b,p\n", "has the column 'query' twice"),
        (b'query,relevant\na,p\n"b" c,p\n', "line 3 cannot be read"),
        (b"query,relevant\na,\xff\n", "in line 2, byte 17 is 0xff"),
    ],
)
def test_csv_that_would_be_changed_is_refused(file, data, words):
    """A column that is there twice, and text after a closing quote, which the quotes would vanish from."""
    path = file(data, "queries.csv")
    _, errors = read_questions(path, path.name, {"p": "p"})
    assert words in errors[0].message


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"query;relevant\na;p\n", "has the columns 'query;relevant'\nThey are separated by semicolons; separate"),
        (b",query,relevant\n0,a,p\n", "has the columns '', 'query', 'relevant'\nRename or remove ''"),
        (b"query\trelevant\na\tp\n", "They are separated by tabs; separate them by commas."),
        (b"Query,relevant\na,p\n", "Write 'query', in small letters"),
        (b"query,page\na,p\n", "has the columns 'query', 'page'\nRename or remove 'page'"),
        (b"query,id\na,p\n", "has no column 'relevant'"),
        (b'query,relevant\na,"p,P"\n', "there is no page 'p,P'\nSeparate pages by ';'"),
        (b"id,query,relevant\n2,a,p\n,b,p\n", "row 2: the id is empty\nGive all queries an id, or none."),
        (b"query,relevant\na, b,p\n", "row 1 has more cells than columns"),
        (b"query,relevant,relevance\na,p;p,2;0\n", "page 'p' has the grades 2 and 0"),
        (b"query,relevant,relevance\na,p;P,1;2\n", "page 'P' has the grades 1 and 2"),
    ],
)
def test_csv_of_another_form_is_refused_once(file, data, words):
    """Spreadsheets separate by semicolons and number their rows, and a page may be there twice."""
    path = file(data, "queries.csv")
    (error,) = read_questions(path, path.name, {"p": "p", "P": "p"})[1]
    assert words in str(error)


def test_a_query_in_two_rows_is_refused(file):
    """Each row would count the pages of the other as wrong; a repeated row counts twice."""
    path = file(b"query,relevant\na,p\na,q\n", "queries.csv")
    (error,) = read_questions(path, path.name, {"p": "p", "q": "q"})[1]
    assert "row 2: the query is that of row 1, with other pages" in error.message
    path = file(b"query,relevant\na,p\na,p\n", "queries.csv")
    assert len(read_questions(path, path.name, {"p": "p"})[0]) == 2


@pytest.mark.parametrize(
    ("data", "hint"),
    [(gzip.compress(b"{}", mtime=0), "gzip"), (b"PAR1\x15\0", "Parquet"), (b"PK\3\4\x14\0", "spreadsheet")],
)
def test_files_of_another_form_are_called_by_it(file, data, hint):
    """Rather than taken for text in another encoding."""
    with pytest.raises(OptionError) as caught:
        list(read_rows(file(data), "rows"))
    assert hint in caught.value.hint


@pytest.mark.parametrize("line", ['{"text": null}', '{"text": 5}', '{"texts": "a"}'])
def test_calibration_rows_without_text_are_refused(file, line):
    """`null` is not the text "None"."""
    path = file(f'{{"text": "a"}}\n{line}\n'.encode(), "calibration.jsonl")
    with pytest.raises(OptionError, match=r"calibration: calibration.jsonl, line 2 has no text"):
        list(read_documents(path, path.name))


@pytest.mark.parametrize(("data", "words"), [(b"a\0b", "in line 1, byte 1 is 0x0"), (b" \r\n", "holds no text")])
def test_a_page_that_is_not_text_is_refused(file, data, words):
    """With the file's name."""
    path = file(data, "page.txt")
    _, errors = list_pages(path.parent, "pages", 150)
    assert "page.txt" in errors[0].message
    assert words in errors[0].message
