"""Local retrieval sets: a folder of pages or a PDF and a file of queries, with no code."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from embedding import build_subject, page
from llmquant.errors import OptionError, RequestErrors, RunError, UnsupportedError
from llmquant.evaluators.page_set.options import LocalSetOptions
from llmquant.evaluators.page_set.pages import list_pages, page_files
from llmquant.executors.shipping import pack, record_path, unpack
from llmquant.plugins.options import build, dump, input_files, restore, verify_inputs
from llmquant.study.call import Call

WORDS = ("ledger", "barley", "kettle", "harbour", "engine")
COLOURS = ("white", "lightblue", "wheat", "pink", "palegreen")


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "pages"
    path.mkdir()
    for word, colour in zip(WORDS, COLOURS, strict=True):
        (path / f"{word}.png").write_bytes(page(word, colour=colour))
    return path


@pytest.fixture
def pdf(tmp_path):
    """Write a PDF of three pages of 120 x 160 points."""
    path = tmp_path / "manual.pdf"
    images = [Image.new("RGB", (120, 160), colour) for colour in COLOURS[:3]]
    images[0].save(path, save_all=True, append_images=images[1:], resolution=72)
    return path


@pytest.fixture
def rows(tmp_path):
    def write(found, name="queries.jsonl"):
        path = tmp_path / name
        text = found if isinstance(found, str) else "".join(json.dumps(row) + "\n" for row in found)
        path.write_text(text, encoding="utf-8")
        return path

    return write


def options(pages, queries, **others):
    return build(LocalSetOptions, Call("retrieval", (str(pages),), {"queries": str(queries), **others}))


def check(tmp_path, pages, queries, **embedder):
    chosen = options(pages, queries)
    chosen.check(build_subject(tmp_path, **embedder).info, "cpu")
    return chosen


def messages(tmp_path, pages, queries):
    with pytest.raises((OptionError, RequestErrors)) as caught:
        check(tmp_path, pages, queries)
    return [error.message for error in getattr(caught.value, "errors", [caught.value])]


def evaluate(tmp_path, ctx, chosen):
    from llmquant.evaluators.page_set.evaluator import LocalSet

    (result,) = LocalSet(chosen).evaluate(build_subject(tmp_path), ctx)
    return result


def test_a_folder_of_images_is_a_task(tmp_path, context, folder, rows):
    """Each query is a sample, the headline is NDCG@5, and mteb's own result file is kept."""
    queries = rows([{"query": f"the {word}", "relevant": f"{word}.png"} for word in WORDS])
    ctx = context()
    result = evaluate(tmp_path, ctx, check(tmp_path, folder, queries))
    assert (result.task, result.measurements[0].metric) == ("pages", "ndcg_at_5")
    assert [json.loads(sample.target) for sample in result.samples] == [{f"{word}.png": 1} for word in WORDS]
    assert all({found for found, _ in json.loads(s.answer)} == {f"{w}.png" for w in WORDS} for s in result.samples)
    assert (ctx.files / result.details["result_file"]).is_file()


def test_grades_reach_the_metric(tmp_path, context, folder, rows):
    """A page of grade 2 that comes after one of grade 1 costs NDCG."""
    first = evaluate(tmp_path, context(), check(tmp_path, folder, rows([{"query": "x", "relevant": ["ledger.png"]}])))
    best, second = (name for name, _ in json.loads(first.samples[0].answer)[:2])
    scores = {}
    for name, grades in (("right", {best: 2, second: 1}), ("turned", {best: 1, second: 2})):
        result = evaluate(tmp_path, context(), check(tmp_path, folder, rows([{"query": "x", "relevant": grades}])))
        scores[name] = result.samples[0].scores["ndcg_at_5"]
    assert scores["right"] == 1
    assert 0.8 < scores["turned"] < 1


@pytest.mark.parametrize("relevant", ["2", 2, "manual.pdf#2", ["2"], {"2": 1}])
def test_pages_of_a_pdf_are_called_by_number(tmp_path, pdf, rows, relevant):
    """One PDF needs no names: its pages count from 1."""
    from llmquant.evaluators.page_set.queries import read_questions

    pages, errors = list_pages(pdf, pdf.name, 72)
    questions, mistakes = read_questions(rows([{"query": "x", "relevant": relevant}]), "queries.jsonl", pages.names())
    assert (errors, mistakes) == ([], [])
    assert questions[0].relevant == {"manual.pdf#2": 1}


def test_a_pdf_is_rendered_once(tmp_path, context, pdf, rows):
    """Its pages are images of the size that the resolution says, kept in the cache."""
    queries = rows([{"query": "blue", "relevant": 2}, {"query": "wheat", "relevant": [1, 3]}])
    chosen = options(pdf, queries, dpi=144)
    chosen.check(build_subject(tmp_path).info, "cpu")
    ctx = context()
    result = evaluate(tmp_path, ctx, chosen)
    assert result.details["documents"] == [3]
    files = page_files(list_pages(pdf, pdf.name, 144)[0].pages, 144, ctx.cache)
    before = {name: file.stat().st_mtime_ns for name, file in files.items()}
    for file in files.values():
        with Image.open(file) as image:
            assert image.size == (240, 320)
    page_files(list_pages(pdf, pdf.name, 144)[0].pages, 144, ctx.cache)
    assert {name: file.stat().st_mtime_ns for name, file in files.items()} == before


def test_a_filled_in_form_is_rendered_with_its_values(tmp_path, context):
    """The field of this page is a black box of 50 x 20 points."""
    drawn = b"0 0 50 20 re f"
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R /AcroForm << /Fields [4 0 R] >> >>",
        b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 100 100] /Annots [4 0 R] >>",
        b"<< /Type /Annot /Subtype /Widget /FT /Tx /T (n) /F 4 /Rect [10 10 60 30] /P 3 0 R /AP << /N 5 0 R >> >>",
        b"<< /Type /XObject /Subtype /Form /BBox [0 0 50 20] /Length %d >> stream\n%s\nendstream" % (len(drawn), drawn),
    ]
    path = tmp_path / "form.pdf"
    numbered = b"".join(b"%d 0 obj %s endobj\n" % pair for pair in enumerate(objects, start=1))
    path.write_bytes(b"%PDF-1.4\n" + numbered + b"trailer << /Size 6 /Root 1 0 R >>")  # pdfium restores the table
    files = page_files(list_pages(path, path.name, 72)[0].pages, 72, context().cache)
    with Image.open(files["form.pdf#1"]) as image:
        assert image.convert("L").point(lambda grey: int(grey < 128)).histogram()[1] == 50 * 20


def test_csv_and_tsv_say_the_same_as_jsonl(folder, rows):
    """Several pages and grades are separated by semicolons."""
    from llmquant.evaluators.page_set.queries import read_questions

    names = list_pages(folder, "pages", 72)[0].names()
    written = {
        "q.jsonl": [{"query": "a, b", "relevant": ["ledger.png", "kettle.png"], "relevance": [2, 1], "id": "one"}],
        "q.csv": 'query,relevant,relevance,id\n"a, b",ledger.png; kettle.png,2;1,one\n',
        "q.tsv": "query\trelevant\trelevance\tid\na, b\tledger.png;kettle.png\t2; 1\tone\n",
    }
    found = [read_questions(rows(text, name), name, names) for name, text in written.items()]
    assert all(errors == [] for _, errors in found)
    assert found[0] == found[1] == found[2]
    assert found[0][0][0].relevant == {"ledger.png": 2, "kettle.png": 1}


def test_all_mistakes_are_told_at_once(tmp_path, folder, rows):
    """A set with many mistakes is refused with every one of them, before anything is loaded."""
    (folder / "empty.png").write_bytes(b"")
    queries = rows(
        [
            {"query": "fine", "relevant": "ledger.png", "id": "a"},
            {"query": "  ", "relevant": "ledger.png"},
            {"query": "no pages", "relevant": []},
            {"query": "grade nought", "relevant": {"ledger.png": 0}},
            {"query": "gone", "relevant": ["legder.png"]},
            {"query": "again", "relevant": "ledger.png", "id": "a"},
            {"query": "grades", "relevant": ["ledger.png"], "relevance": [1, 2]},
            {"query": "typo", "relevnt": "ledger.png"},
        ]
    )
    found = messages(tmp_path, folder, queries)
    assert found[0] == "empty.png is empty: 0 bytes"
    for row, part in (
        (2, "the query is empty"),
        (3, "no page is relevant"),
        (4, "no page is relevant"),
        (5, "there is no page 'legder.png'"),
        (6, "id 'a' is that of row 1 already"),
        (7, "1 pages are relevant, but there are 2 grades"),
        (8, "there is no column 'relevnt'"),
    ):
        assert f"queries.jsonl, row {row}: {part}" in found


def test_a_name_that_is_nearly_right_is_suggested(tmp_path, folder, rows):
    """The nearest page is in the hint."""
    with pytest.raises(OptionError, match=r"Did you mean 'ledger.png'"):
        check(tmp_path, folder, rows([{"query": "gone", "relevant": ["legder.png"]}]))


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"readme.md": b"x"}, "pages has no pages"),
        ({"a.pdf": b"no PDF"}, "a.pdf cannot be opened as a PDF"),
        ({"a.txt": b"text", "b.png": b"x"}, "holds texts (a.txt, ...) and page images"),
        ({"a.pdf": b"%PDF-1.4 no page"}, "a.pdf cannot be opened as a PDF"),
        ({"a.txt": b"text", "IMG_1.HEIC": b"x"}, "IMG_1.HEIC: .heic files cannot be read"),
        ({"a.txt": b"\xff\xfe\x00"}, "a.txt is not UTF-8 text: in line 1, byte 0 is 0xff"),
    ],
)
def test_what_is_no_set_of_pages_is_refused(tmp_path, rows, files, message):
    """Folders without pages, damaged PDFs and mixtures are refused with the file's name."""
    path = tmp_path / "pages"
    path.mkdir()
    for name, data in files.items():
        (path / name).write_bytes(data)
    assert message in messages(tmp_path, path, rows([{"query": "x", "relevant": "a.txt"}]))[0]


def scan(path, pages, *, smaller=False):
    """Write a TIFF file of several pages, or of one with a smaller copy of itself."""
    frames = [Image.new("RGB", (24, 32), colour) for colour in COLOURS[:pages]]
    for frame in frames[1:]:
        frame.encoderinfo = {"tiffinfo": {254: int(smaller)}}
    frames[0].save(path, save_all=True, append_images=frames[1:])


def test_a_scan_of_several_pages_is_refused(tmp_path, folder, rows):
    """An image is one page: the others would be missing among the documents; a smaller copy is not a page."""
    scan(folder / "scan.tif", 3)
    scan(folder / "camera.tiff", 2, smaller=True)
    found = messages(tmp_path, folder, rows([{"query": "x", "relevant": "ledger.png"}]))
    assert found == ["scan.tif holds 3 pages, and only the first would be read"]


def test_a_corrupt_page_is_a_recorded_skip(tmp_path, context, folder, rows):
    """It cannot be found, which the run says; the other pages are evaluated."""
    whole = (folder / "ledger.png").read_bytes()
    (folder / "ledger.png").write_bytes(whole[: len(whole) // 2])
    queries = rows([{"query": word, "relevant": f"{word}.png"} for word in WORDS])
    result = evaluate(tmp_path, context(), check(tmp_path, folder, queries))
    assert list(result.details["skipped"]) == ["ledger.png"]
    assert result.samples[0].scores["ndcg_at_5"] == 0
    assert result.measurements[0].n == 5


def test_texts_are_a_set_too(tmp_path, context, rows):
    """A folder of .txt files is searched by embedders of texts."""
    path = tmp_path / "texts"
    path.mkdir()
    for word in WORDS:
        (path / f"{word}.txt").write_text(f"The {word} is here.", encoding="utf-8")
    queries = rows([{"query": f"The {word} is here.", "relevant": f"{word}.txt"} for word in WORDS])
    chosen = check(tmp_path, path, queries, modalities=("text",))
    assert evaluate(tmp_path, context(), chosen).task == "texts"


def test_images_are_refused_for_an_embedder_of_texts(tmp_path, folder, rows):
    """The reason names the folder and what the embedder encodes."""
    with pytest.raises(UnsupportedError, match=r"pages holds images, but .* encodes only text"):
        check(tmp_path, folder, rows([{"query": "x", "relevant": "ledger.png"}]), modalities=("text",))


def test_options_travel_by_content(tmp_path, context, folder, rows):
    """A worker gets the folder by its digest; a set that is not there says so."""
    queries = rows([{"query": "x", "relevant": "ledger.png"}])
    chosen = options(folder, queries)
    files = input_files(chosen)
    there = restore(LocalSetOptions, dump(chosen))
    assert there == chosen
    assert there.pages.path is None
    result = evaluate(tmp_path, context(inputs=files), there)
    assert result.measurements[0].n == 1
    with pytest.raises(RunError, match="pages was not brought to this worker"):
        evaluate(tmp_path, context(), there)


def test_a_folder_has_one_ndcg_wherever_it_is_read(tmp_path, context, folder, rows):
    """A hidden folder's pages count nowhere and a linked folder's everywhere: here, and where a job was sent."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "anchor.png").write_bytes(page("anchor", colour="tan"))
    (folder / "linked").symlink_to(elsewhere)
    (folder / ".ipynb_checkpoints").mkdir()
    (folder / ".ipynb_checkpoints" / "ledger-checkpoint.png").write_bytes(page("ledger", colour="white"))
    queries = rows([{"query": f"the {word}", "relevant": f"{word}.png"} for word in (*WORDS, "linked/anchor")])
    chosen = check(tmp_path, folder, queries)
    here = evaluate(tmp_path, context(), chosen)

    record = record_path(tmp_path / "store", "study", 1)
    record.parent.mkdir(parents=True)
    inputs = {digest: str(path) for digest, path in input_files(chosen).items()}
    model = {"source": "random", "digest": "sha256:0", "embedder": {"options": {}}}
    record.write_text(json.dumps({"study": "study", "number": 1, "model": model, "experiments": [], "inputs": inputs}))
    pack(record, tmp_path / "store", tmp_path / "packed", with_model=True)
    there, _ = unpack(tmp_path / "packed", tmp_path / "work")
    sent = {digest: Path(path) for digest, path in json.loads(there.read_text())["inputs"].items()}
    options_there = restore(LocalSetOptions, dump(chosen))
    verify_inputs(options_there, sent)
    assert evaluate(tmp_path, context(inputs=sent), options_there).samples == here.samples
    found = {name for sample in here.samples for name, _ in json.loads(sample.answer)}
    assert found <= {f"{word}.png" for word in (*WORDS, "linked/anchor")}


@pytest.mark.parametrize("engine", ["faiss", "usearch"])
def test_a_graph_finds_what_exact_search_finds(tmp_path, context, folder, rows, engine):
    """On a handful of pages the approximate engines give the exact scores, and mteb's file says who searched."""
    pytest.importorskip(engine)
    queries = rows([{"query": f"the {word}", "relevant": f"{word}.png"} for word in WORDS])
    exact = evaluate(tmp_path, context(), options(folder, queries))
    graph = evaluate(tmp_path, context(), options(folder, queries, engine=engine))
    assert graph.measurements[0].value == pytest.approx(exact.measurements[0].value)
    assert engine in graph.details["result_file"]


def test_the_size_of_batches_may_be_chosen(tmp_path, context, folder, rows):
    """`batch_tokens` bounds what is encoded at a time, and changes no score."""
    from llmquant.evaluators.page_set.evaluator import LocalSet

    queries = rows([{"query": f"the {word}", "relevant": f"{word}.png"} for word in WORDS])
    scores, batches = [], []
    for size in (16, 1000):
        subject = build_subject(tmp_path / str(size))
        (result,) = LocalSet(options(folder, queries, batch_tokens=size)).evaluate(subject, context())
        scores.append(result.measurements[0].value)
        batches.append(len(subject.opened.batches))
    assert scores[0] == scores[1]
    assert batches[0] > batches[1]
