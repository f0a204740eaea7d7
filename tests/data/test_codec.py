import importlib.util
import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ofa_plugin.data import codec as codec_module
from ofa_plugin.data.codec import Codec
from ofa_plugin.data.sentencepiece_training import train_bpe
from ofa_plugin.errors import UserError
from tests.helpers.chinese import write_wordpiece

GOLDEN = json.loads((Path(__file__).parents[1] / "fixtures" / "text" / "bpe_ids.json").read_text(encoding="utf-8"))
CHINESE = json.loads((Path(__file__).parents[1] / "fixtures" / "text" / "bert_cn.json").read_text(encoding="utf-8"))
TEXT = "a dog runs&&A red bus, in the rain!&&two <bin_3> men\n"
ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\u2581"), max_size=40)


@pytest.fixture
def gpt2(shared) -> Path:
    return shared("bpe/gpt2")


@pytest.fixture(params=["tiktoken", "fairseq"])
def engine(request, monkeypatch):
    """Both implementations of GPT-2's encoding."""
    if request.param == "fairseq":
        monkeypatch.setattr(codec_module, "tiktoken", None)
    elif importlib.util.find_spec("tiktoken") is None:
        pytest.skip("tiktoken is not installed")


@pytest.fixture(scope="module")
def pieces(tmp_path_factory) -> Path:
    """A sentencepiece folder made from three texts."""
    folder = tmp_path_factory.mktemp("pieces")
    (folder / "text.tsv").write_text(TEXT)
    train_bpe(folder / "bpe", [(folder / "text.tsv", [0])], 400)
    return folder / "bpe"


@pytest.fixture(scope="module")
def piece_codec(pieces) -> Codec:
    return Codec.build("sentencepiece", str(pieces), 100, 256)


@pytest.fixture(scope="module")
def toy_bert(tmp_path_factory) -> Path:
    """A WordPiece folder of a few Chinese captions."""
    return write_wordpiece(tmp_path_factory.mktemp("chinese") / "bpe")


@pytest.fixture(scope="module")
def toy_gpt2(tmp_path_factory) -> Path:
    """A GPT-2 folder of bytes and two merges, its numbers in an order of their own."""
    folder = tmp_path_factory.mktemp("toy")
    tokens = ["Ġa", *codec_module._byte_characters().values(), "Ġab", "<|endoftext|>"]
    (folder / "encoder.json").write_text(json.dumps({token: number for number, token in enumerate(tokens)}))
    (folder / "vocab.bpe").write_text("#version: 0.2\nĠ a\nĠa b\n", encoding="utf-8")
    (folder / "dict.txt").write_text("".join(f"{n} 1\n" for n in reversed(range(259))) + "madeupword0000 0\n")
    return folder


def built(request, bpe: str) -> Codec:
    """A small codec of a kind."""
    folder = {"gpt2": "toy_gpt2", "sentencepiece": "pieces", "bert": "toy_bert"}[bpe]
    return Codec.build(bpe, str(request.getfixturevalue(folder)), 4, 2)


def message(*args, **kwargs) -> str:
    with pytest.raises(UserError) as caught:
        Codec.build(*args, **kwargs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# GPT-2


@pytest.mark.parity
def test_ids_and_texts_are_official(gpt2, engine):
    codec = Codec.build("gpt2", str(gpt2))
    for case in GOLDEN["cases"]:
        assert codec.encode(case["text"]).tolist() == case["ids"]
        assert codec.decode(torch.tensor(case["ids"])) == case["roundtrip"]
        assert codec.decode_symbols(case["bpe"]) == case["roundtrip"]
    cut = GOLDEN["special"]["length_truncation"]
    assert [codec.bos, *codec.encode(cut["text"], cut["length"]).tolist(), codec.eos] == cut["ids"]
    mixed = GOLDEN["special"]["mixed_decode"]
    assert codec.decode_symbols(mixed["symbols"]) == mixed["decoded"]


@pytest.mark.parity
def test_dictionary_is_official(gpt2):
    codec, golden = Codec.build(None, str(gpt2)), GOLDEN["special"]
    assert len(codec.dictionary) == golden["len"] and codec.dictionary.nspecial == golden["nspecial"]
    for name in ("bos", "pad", "eos", "unk", "mask"):
        assert getattr(codec, name) == golden[name]
    assert (codec.code0, codec.bin0) == (golden["code_0"], golden["bin_0"])
    assert codec.dictionary.index("<code_8191>") == golden["code_8191"] == codec.codes([8191]).item()
    assert codec.dictionary.index("<bin_999>") == golden["bin_999"]
    assert codec.bins([0, 499, 999, 57]).tolist() == golden["coord_ids"]
    assert codec.dictionary[4] == golden["first_dict_symbol"]
    assert codec.dictionary[50263] == golden["symbol_50263"]


def test_both_engines_agree_on_any_text(gpt2, monkeypatch):
    pytest.importorskip("tiktoken")
    fast = Codec.build("gpt2", str(gpt2), 0, 0)
    monkeypatch.setattr(codec_module, "tiktoken", None)
    stock = Codec.build("gpt2", str(gpt2), 0, 0)
    assert fast.tokenizer._tiktoken is not None and stock.tokenizer._tiktoken is None

    @settings(max_examples=200, deadline=None)
    @given(text=st.text(st.characters(max_codepoint=0x24F, exclude_categories=["Cs"]), max_size=60))
    def agree(text):  # scripts that Unicode has had since its beginnings: newer ones split by each engine's own tables
        assert torch.equal(fast.encode(text), stock.encode(text))
        assert fast.decode(fast.encode(text)) == text

    agree()


def test_numbers_of_encoder_json_may_stand_in_any_order(toy_gpt2, engine):
    codec = Codec.build("gpt2", str(toy_gpt2), 4, 2)
    assert (
        codec.dictionary.string(codec.encode(" ab ac"))
        == f"257 0 {1 + list(codec_module._byte_characters()).index(99)}"
    )
    assert codec.decode(codec.encode(" ab aé\n")) == " ab aé\n"
    assert codec.fingerprint == Codec.build("gpt2", str(toy_gpt2), 4, 2).fingerprint
    assert codec.fingerprint != Codec.build("gpt2", str(toy_gpt2), 5, 2).fingerprint


# sentencepiece


@settings(max_examples=150, deadline=None)
@given(text=ANY_TEXT)
def test_sentencepiece_gives_back_any_text(piece_codec, text):
    codec = piece_codec
    ids = codec.encode(text)
    assert ids.dtype == torch.long and not set(ids.tolist()) & {codec.bos, codec.pad, codec.eos, codec.unk}
    assert all(token < codec.mask for token in ids.tolist())  # what looks like a special token is text
    assert codec.decode(ids) == text
    assert codec.decode_symbols(codec.dictionary.string(ids)) == text


def test_a_word_is_one_piece_wherever_it_stands(piece_codec):
    codec = piece_codec
    assert codec.encode(" dog").tolist() == codec.encode(" a dog").tolist()[1:]
    assert codec.dictionary.string(codec.encode(" a dog")) == "\u2581a \u2581dog"


def test_small_worlds(pieces):
    codec = Codec.build("sentencepiece", str(pieces), 100, 256)
    assert codec.dictionary[codec.mask] == "<mask>" and codec.code0 == codec.mask + 1
    assert codec.bin0 == codec.code0 + 256 and len(codec.dictionary) == codec.bin0 + 100
    assert codec.decode(
        [codec.bos, *codec.encode(" a"), codec.mask, *codec.bins([3]), *codec.codes([7]), codec.eos]
    ) == (" a<mask><bin_3><code_7>")
    none = Codec.build("sentencepiece", str(pieces), 0, 0)
    assert len(none.dictionary) == none.mask + 1
    with pytest.raises(ValueError, match="bin 100 is not in 0 .. 99: see --num-bins"):
        codec.bins([99, 100])
    with pytest.raises(ValueError, match="code -1 is not in 0 .. 255: see --code-dict-size"):
        codec.codes([-1])
    assert "--num-bins -1" in message("sentencepiece", str(pieces), -1, 0)


# WordPiece


@pytest.mark.parity
def test_chinese_ids_and_texts_are_official(shared):
    codec = Codec.build("bert", str(shared("bpe/bert_cn")))
    assert codec.chinese
    for case in CHINESE["cases"]:
        assert codec.encode(case["text"]).tolist() == case["ids"]
        assert codec.dictionary.string(case["ids"]) == case["bpe"]
        assert codec.decode(case["ids"]) == codec.decode_symbols(case["bpe"]) == case["decoded"]
    golden = CHINESE["special"]
    assert len(codec.dictionary) == golden["len"] == 30325
    for symbol in ("[PAD]", "[UNK]", "[CLS]", "code_0", "bin_0", "bin_999"):
        assert codec.dictionary.index(symbol if symbol.startswith("[") else f"<{symbol}>") == golden[symbol]
    assert (codec.mask, codec.code0, codec.bin0) == (golden["mask"], golden["code_0"], golden["bin_0"])
    assert codec.encode("一\u2028二").tolist() == codec.encode("一 二").tolist()  # the piece that dict.txt lacks
    assert codec.dictionary.symbols[4 + 343] == ""


def test_wordpieces_are_decoded_with_what_stands_between_them(toy_bert):
    codec = Codec.build("bert", str(toy_bert), 4, 2)
    ids = [codec.bos, *codec.encode("红 Playing."), *codec.bins([0, 3]), codec.unk, *codec.codes([1]), codec.eos]
    assert codec.decode(ids) == codec.decode(torch.tensor(ids)) == "红 playing. <bin_0> <bin_3> <unk> <code_1>"
    assert codec.decode_symbols(codec.dictionary.string(ids)) == "红 playing. <bin_0> <bin_3> <unk> <code_1>"
    assert codec.decode_symbols("<<unk>> <s> 红 ##红 nonsense") == "<<unk>> 红红 nonsense"
    assert codec.decode([]) == codec.decode_symbols("") == codec.decode([codec.pad]) == ""
    assert codec.dictionary.string(codec.encode("😀红 [MASK] 雪")) == "[UNK] 红 [UNK] [UNK] [UNK] 雪"
    assert codec.encode("红 雪红", 2).tolist() == codec.encode("红 雪").tolist()


# All kinds


@pytest.mark.parametrize("bpe", ["gpt2", "sentencepiece"])
def test_odd_output_of_a_model_is_decoded(request, bpe):
    codec = built(request, bpe)
    assert not codec.chinese
    half = codec.encode("é")[:1].tolist()
    assert codec.decode([*half, *codec.encode(" a")]) == "\ufffd a"
    assert codec.decode([codec.pad, codec.unk, codec.eos]) == "<unk>"
    assert codec.decode([]) == codec.decode_symbols("") == ""
    assert codec.decode_symbols("<<unk>> <s> <bin_1> nonsense") == "<<unk>><bin_1>nonsense"


@pytest.mark.parametrize("bpe", ["gpt2", "sentencepiece", "bert"])
def test_codecs_pickle(request, bpe):
    codec = built(request, bpe)
    copy = pickle.loads(pickle.dumps(codec))
    assert copy.encode(" ab ü").tolist() == codec.encode(" ab ü").tolist()
    assert copy.fingerprint == codec.fingerprint


@pytest.mark.parametrize("bpe", ["gpt2", "sentencepiece", "bert"])
def test_a_lone_surrogate_is_named(request, bpe):
    codec = built(request, bpe)
    with pytest.raises(UserError, match=r"lone surrogate U\+D83D at character 2"):
        codec.encode("ab\ud83d")


# The checkpoint's record


def test_a_sentencepiece_vocabulary_lives_in_the_checkpoint(pieces, tmp_path, toy_gpt2):
    moved = tmp_path / "moved"
    shutil.copytree(pieces, moved)
    codec = Codec.build("sentencepiece", str(moved), 10, 0)
    state = codec.state()
    restored = Codec.restore(state, str(moved), 10, 0)
    shutil.rmtree(moved)
    assert json.loads(state)["bpe"] == "sentencepiece"
    again = Codec.restore(state, None, 10, 0)
    assert again.fingerprint == restored.fingerprint == codec.fingerprint and again.state() == state
    assert again.encode(" a dog").tolist() == codec.encode(" a dog").tolist()
    with pytest.raises(
        UserError, match=r"holds a GPT-2 vocabulary \(encoder.json\): give the checkpoint's own, a sent"
    ):
        Codec.restore(state, str(toy_gpt2), 10, 0)
    (tmp_path / "t.tsv").write_text("other words\n")
    train_bpe(tmp_path / "other", [(tmp_path / "t.tsv", [0])], 400)
    with pytest.raises(UserError, match="other is another vocabulary than the checkpoint's"):
        Codec.restore(state, str(tmp_path / "other"), 10, 0)


def test_wordpiece_files_are_found_again_and_compared(toy_bert, toy_gpt2, tmp_path):
    folder = tmp_path / "bert"
    shutil.copytree(toy_bert, folder)
    codec = Codec.build("bert", str(folder), 10, 0)
    state = codec.state()
    record = json.loads(state)
    assert (record["bpe"], record["dir"], sorted(record["sha256"])) == ("bert", str(folder), ["dict.txt", "vocab.txt"])
    again = Codec.restore(state, None, 10, 0)
    assert again.chinese and again.fingerprint == codec.fingerprint and again.state() == state
    assert Codec.restore(state, str(toy_bert), 10, 0).fingerprint == codec.fingerprint
    with (folder / "vocab.txt").open("a", encoding="utf-8") as file:
        file.write("extra\n")
    with pytest.raises(UserError, match=f"changed in {folder}: give the folder of its dict.txt, vocab.txt as --bpe-d"):
        Codec.restore(state, None, 10, 0)
    with pytest.raises(UserError, match="bert is another vocabulary than the checkpoint's"):
        Codec.restore(state, str(folder), 10, 0)
    with pytest.raises(UserError, match=r"GPT-2 vocabulary \(encoder.json\): give the checkpoint's own, a WordPiece"):
        Codec.restore(state, str(toy_gpt2), 10, 0)


def test_gpt2_files_are_found_again_and_compared(toy_gpt2, pieces, tmp_path, monkeypatch):
    folder = tmp_path / "gpt2"
    shutil.copytree(toy_gpt2, folder)
    monkeypatch.chdir(tmp_path)
    codec = Codec.build("gpt2", "gpt2", 10, 0)
    state = codec.state()
    record = json.loads(state)
    assert record["dir"] == str(folder) and len(record["sha256"]["vocab.bpe"]) == 64 and len(state) < 1000
    monkeypatch.chdir("/")
    assert Codec.restore(state, None, 10, 0).fingerprint == codec.fingerprint
    folder.rename(tmp_path / "moved")
    with pytest.raises(UserError, match=f"no longer in {folder}: give the folder of its dict.txt, .* as --bpe-dir"):
        Codec.restore(state, None, 10, 0)
    assert Codec.restore(state, str(tmp_path / "moved"), 10, 0).fingerprint == codec.fingerprint
    lines = (tmp_path / "moved" / "dict.txt").read_text().splitlines(keepends=True)
    (tmp_path / "moved" / "dict.txt").write_text("".join([*lines[1:], lines[0]]))
    with pytest.raises(UserError, match="moved is another vocabulary than the checkpoint's"):
        Codec.restore(state, str(tmp_path / "moved"), 10, 0)
    (tmp_path / "moved").rename(folder)
    with pytest.raises(UserError, match=f"vocabulary is changed in {folder}: .* as --bpe-dir"):
        Codec.restore(state, None, 10, 0)
    with pytest.raises(
        UserError, match=r"holds a sentencepiece vocabulary \(spm.model\): give the checkpoint's own, a GPT"
    ):
        Codec.restore(state, str(pieces), 10, 0)


@pytest.mark.parametrize(
    "state",
    [
        "",
        "[]",
        "{}",
        '{"bpe": ["gpt2"]}',
        '{"bpe": "gpt2"}',
        '{"bpe": "gpt2", "dir": "/", "sha256": {}}',
        '{"bpe": "sentencepiece", "model": "*", "dict": ""}',
        '{"bpe": "bert", "dir": "/", "sha256": {"dict.txt": ""}}',
    ],
)
def test_a_damaged_record_is_named(state):
    with pytest.raises(UserError, match="the checkpoint's vocabulary record is damaged: give --bpe and --bpe-dir"):
        Codec.restore(state, None, 10, 0)


# Wrong folders


def test_missing_and_wrong_folders_are_named(tmp_path, toy_gpt2, toy_bert, pieces):
    for nothing in (None, ""):
        assert message("gpt2", nothing) == (
            "--bpe-dir is missing: give the folder of dict.txt, encoder.json and vocab.bpe, "
            "or make one with `ofa train-bpe` and add --bpe sentencepiece"
        )
    assert message("gpt2", str(tmp_path / "x")).startswith(f"--bpe-dir {tmp_path / 'x'}: no such folder; check the ")
    assert message("bpe", str(toy_gpt2)) == "--bpe bpe: choose gpt2, sentencepiece or bert"
    assert message("bert", None).startswith("--bpe-dir is missing: give the folder of dict.txt and vocab.txt, or make ")
    assert message("gpt2", str(pieces)) == (
        f"--bpe-dir {pieces} holds a sentencepiece vocabulary (spm.model): add --bpe sentencepiece"
    )
    assert message("sentencepiece", str(toy_gpt2)) == (
        f"--bpe-dir {toy_gpt2} holds a GPT-2 vocabulary (encoder.json): add --bpe gpt2"
    )
    assert message("gpt2", str(tmp_path)).startswith(
        f"--bpe-dir {tmp_path} lacks dict.txt, encoder.json, vocab.bpe, which --bpe gpt2 reads"
    )
    for other in ("gpt2", "sentencepiece"):
        assert message(other, str(toy_bert)) == (
            f"--bpe-dir {toy_bert} holds a WordPiece vocabulary (vocab.txt): add --bpe bert"
        )
    assert message("bert", str(toy_gpt2)).endswith("holds a GPT-2 vocabulary (encoder.json): add --bpe gpt2")
    assert message("bert", str(pieces)).endswith(
        "holds a sentencepiece vocabulary (spm.model): add --bpe sentencepiece"
    )


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("dict.txt", "", "dict.txt is empty"),
        ("dict.txt", "0\n", "dict.txt:1: '0' is not 'symbol count'"),
        ("dict.txt", "0 1\n0 2\n", "dict.txt:2: '0' is in the dictionary already"),
        ("dict.txt", "0 1\n0 2 #fairseq:overwrite\n", "is not 'symbol count'"),
        ("dict.txt", "<pad> 1\n", "'<pad>' is in the dictionary already"),
        ("dict.txt", "0 1\nthe 1\n", "dict.txt:2: 'the' is no token number of encoder.json"),
        ("dict.txt", "0 1\n7 1\n", "dict.txt lacks 256 of the 258 tokens of vocab.bpe (the first is 1)"),
        ("encoder.json", "{", "encoder.json or vocab.bpe is damaged"),
        ("encoder.json", "[]", "encoder.json or vocab.bpe is damaged"),
        ("encoder.json", '{"a": 0}', "which encoder.json lacks"),
        ("vocab.bpe", "#version: 0.2\nĠ x\n", "vocab.bpe makes 'Ġx', which encoder.json lacks"),
        ("vocab.bpe", "#version: 0.2\nĠab\n", "vocab.bpe: 'Ġab' is not a pair"),
    ],
)
def test_files_that_do_not_belong_together_are_refused(toy_gpt2, tmp_path, file, content, said):
    folder = tmp_path / "bpe"
    shutil.copytree(toy_gpt2, folder)
    (folder / file).write_text(content, encoding="utf-8")
    assert said in message("gpt2", str(folder))


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("dict.txt", b"", "dict.txt is empty"),
        ("dict.txt", b"[PAD]\n", "dict.txt:1: '[PAD]' is not 'symbol count'"),
        ("dict.txt", b"[PAD] 1\n[UNK] 1\n", "pieces of vocab.txt (the first is '[CLS]'): give the folder whose files"),
        (
            "vocab.txt",
            b"",
            "vocab.txt is no vocabulary of BERT's (a WordPiece vocabulary needs [UNK]): restore",
        ),
        ("vocab.txt", b"\xff\n", "vocab.txt is no vocabulary of BERT's ("),
        ("vocab.txt", b"[UNK]\r\nabc\r\n", "dict.txt lacks 1 of the 2 pieces of vocab.txt (the first is 'abc')"),
    ],
)
def test_a_wordpiece_folder_that_does_not_fit_is_refused(toy_bert, tmp_path, file, content, said):
    folder = tmp_path / "bpe"
    shutil.copytree(toy_bert, folder)
    (folder / file).write_bytes(content)
    assert said in message("bert", str(folder))


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("dict.txt", b"", "dict.txt is empty"),
        ("dict.txt", b"the 1\n", "dict.txt and spm.model are not of one vocabulary (spm.model lacks 'the')"),
        ("dict.txt", b"\xff 1\n", "dict.txt is not UTF-8"),
        ("spm.model", b"", "spm.model is no sentencepiece model"),
        ("spm.model", b"garbage", "spm.model is no sentencepiece model"),
    ],
)
def test_a_sentencepiece_folder_that_does_not_fit_is_refused(pieces, tmp_path, file, content, said):
    folder = tmp_path / "bpe"
    shutil.copytree(pieces, folder)
    (folder / file).write_bytes(content)
    assert said in message("sentencepiece", str(folder))


def test_a_piece_may_be_any_character(pieces):
    symbols = [("\u2028", 3), ("\x85", 1), ("#fairseq:overwrite", 2), ("\u3000", 1), ("\u2581", 1), ("a\rb", 1)]
    data = "".join(f"{symbol} {count}\n" for symbol, count in symbols).encode()
    assert codec_module._parse_dict(data, "x") == symbols
    assert codec_module._parse_dict(data.replace(b"\n", b"\r\n").removesuffix(b"\r\n"), "x") == symbols


def test_official_symbols_in_dict_txt_are_refused(pieces, tmp_path):
    class Symbols:
        name, symbols, token_symbols, symbol_bytes = "here", [("<bin_0>", 1)], [], {}

    with pytest.raises(UserError, match="here holds <bin_0>, which OFA adds itself"):
        Codec(Symbols(), {}, 1, 0)


# Where words begin


def test_a_word_begins_with_a_space(piece_codec):
    ids = piece_codec.encode(" a dog runs in the rain")
    starts = piece_codec.word_starts(ids)
    assert starts.dtype == torch.bool and starts.shape == ids.shape and starts.sum() == 6
    assert "".join("|" * bool(start) + piece_codec.decode([token])
                   for token, start in zip(ids, starts, strict=True)) == "| a| dog| runs| in| the| rain"  # fmt: skip


@pytest.mark.parametrize("bpe", ["gpt2", "sentencepiece", "bert"])
def test_no_special_token_bin_or_code_begins_a_word(request, bpe):
    codec = built(request, bpe)
    strange = torch.tensor([codec.bos, codec.pad, codec.eos, codec.unk, *range(codec.mask, len(codec.dictionary))])
    assert not codec.word_starts(strange).any()
    assert codec.word_starts(torch.arange(len(codec.dictionary))).any()
    assert codec.word_starts(torch.tensor([], dtype=torch.long)).shape == (0,)


def test_words_of_bytes_begin_at_the_token_that_holds_the_space(toy_gpt2):
    codec = Codec.build("gpt2", str(toy_gpt2), 4, 2)
    ids = codec.encode(" ab c ba")  # " ab", " ", "c", " ", "b", "a"
    assert [codec.decode([token]) for token in ids] == [" ab", " ", "c", " ", "b", "a"]
    assert codec.word_starts(ids).tolist() == [True, True, False, True, False, False]
    assert not codec.word_starts(torch.tensor([codec.dictionary.index("madeupword0000")])).any()


def test_a_piece_that_continues_begins_no_word(toy_bert):
    codec = Codec.build("bert", str(toy_bert), 4, 2)
    for token in range(codec.dictionary.nspecial, codec.mask):
        begins = codec.word_starts(torch.tensor([token])).item()
        assert begins is not codec.dictionary[token].startswith("##")


@pytest.mark.parity
def test_word_starts_of_the_released_vocabulary(gpt2):
    """Official counts 19 and 6 words in these texts (text_infilling.json)."""
    codec = Codec.build("gpt2", str(gpt2))
    cases = json.loads((Path(__file__).parents[1] / "fixtures" / "text" / "text_infilling.json").read_text())["stats"]
    for case in cases.values():
        ids = torch.tensor([codec.bos, *codec.encode(case["text"]).tolist(), codec.eos])
        assert len(ids) == case["src_len_incl_bos_eos"] and codec.word_starts(ids).sum() == case["word_starts"]
