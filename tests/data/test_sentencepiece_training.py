import pytest
import sentencepiece

from ofa_plugin.data import sentencepiece_training
from ofa_plugin.data.sentencepiece_training import train_bpe
from ofa_plugin.errors import BadRow, UserError

ROWS = "0\tA red bus.&&two men\t0.6|!+yes, it is&&1.0|!+no\n1\ta  dog\u2028runs\t1.0|!+yes\n"


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "train.tsv"
    path.write_text(ROWS * 20, encoding="utf-8")
    return path


def test_texts_are_references_and_answers_as_written_and_in_lower_case(text):
    assert list(sentencepiece_training._texts(text, [1, 2]))[:7] == [
        " A red bus.",
        " a red bus.",
        " two men",
        " yes, it is",
        " no",
        " a dog runs",
        " yes",
    ]


def test_a_box_among_the_answers_is_no_text(tmp_path):
    (path := tmp_path / "train.tsv").write_text("1.0|!+red\n1.07,51.61,439.5,474.56\n1.0|!+1,2,3,4\n", encoding="utf-8")
    assert list(sentencepiece_training._texts(path, [0])) == [" red", " 1,2,3,4"]


def test_the_same_text_gives_the_same_files(text, tmp_path, capfd):
    for out in ("a", "b/c"):
        summary = train_bpe(tmp_path / out, [(text, [1, 2])], 400)
    for name in ("spm.model", "dict.txt"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / "c" / name).read_bytes()
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["dict.txt", "spm.model"]
    assert capfd.readouterr() == ("", "")  # sentencepiece's own log is silenced
    assert summary["texts"] == 140 and summary["folder"] == str(tmp_path / "b" / "c")


def test_a_small_text_gives_a_small_vocabulary_and_says_so(text, tmp_path):
    summary = train_bpe(tmp_path / "bpe", [(text, [1, 2])], 8000)
    model = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "bpe" / "spm.model"))
    assert summary["pieces"] == model.get_piece_size() < 400
    assert summary["reduced"] == (f"the text is too small for 8000 pieces: the vocabulary has {model.get_piece_size()}")
    lines = (tmp_path / "bpe" / "dict.txt").read_text(encoding="utf-8").split("\n")[:-1]
    assert [line.rpartition(" ")[0] for line in lines] == [
        model.id_to_piece(i) for i in range(1, model.get_piece_size())
    ]
    assert train_bpe(tmp_path / "bpe", [(text, [1, 2])], 300)["reduced"] == ""


def test_errors_name_the_flag_and_write_nothing(text, tmp_path):
    out = tmp_path / "bpe"
    with pytest.raises(UserError, match=r"--vocab-size 100: bytes and characters alone need \d+: raise it"):
        train_bpe(out, [(text, [1])], 100)
    with pytest.raises(BadRow, match=r"train.tsv:1: .*3 columns, but column 5 was selected: .*check --columns"):
        train_bpe(out, [(text, [5])], 400)
    with pytest.raises(UserError, match="nope.tsv: no such file"):
        train_bpe(out, [(tmp_path / "nope.tsv", [0])], 400)
    (tmp_path / "blank.tsv").write_text("0\t \n1\t&&\n")
    with pytest.raises(UserError, match=r"blank.tsv: no text in column 1: check --columns"):
        train_bpe(out, [(tmp_path / "blank.tsv", [1])], 400)
    assert not out.exists()


def test_another_kind_of_vocabulary_is_not_overwritten(text, tmp_path):
    (tmp_path / "gpt2").mkdir()
    (tmp_path / "gpt2" / "encoder.json").write_text("{}")
    with pytest.raises(UserError, match="gpt2 holds another kind of vocabulary"):
        train_bpe(tmp_path / "gpt2", [(text, [1])], 400)
    assert not (tmp_path / "gpt2" / "dict.txt").exists()


def test_a_folder_that_cannot_be_made_is_named(text, tmp_path):
    with pytest.raises(UserError, match="train.tsv: cannot be written"):
        train_bpe(text, [(text, [1])], 400)


def test_odd_texts_are_learned(tmp_path):
    path = tmp_path / "odd.tsv"
    path.write_text("\0 x\u2581y <unk> <s> 😀 " + "long" * 5000 + "\n" + "ordinary words here\n" * 5, encoding="utf-8")
    assert train_bpe(tmp_path / "bpe", [(path, [0])], 400)["pieces"] > 270
