"""Tokens as bytes and as slices of the text: what is cut apart must rebuild the text exactly."""

import json

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from sae_explore.errors import InputError
from sae_explore.models import tokens
from sae_explore.models.tokens import char_ends, check_text, readable, tokenize, vocabulary_of

AWKWARD = (
    "naïve café — “quotes” … 😀👩‍👩‍👧‍👦🏳️‍🌈 e\u0301a\u0300 漢字かな 한국어 שלום עולם مرحبا \u202eRTL\u202c "
    "tab\t\tnewline\r\n\n  spaces   \x07\x1b\x00 \ufeff\u200b end"
)
texts = st.one_of(
    st.text(max_size=40),
    st.lists(
        st.sampled_from(["😀", "👩‍👧", "é", "e\u0301", "漢", "שלום", "\u202e", "\n", "  ", "\x01", " the", "'s", "ﬁ", "İ", "<|endoftext|>"])
    ).map("".join),
)


@pytest.fixture(scope="module")
def tiny(byte_tokenizer):
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=byte_tokenizer, bos_token="<|endoftext|>")
    return tokenizer, vocabulary_of(tokenizer, 610)


@pytest.fixture(scope="module")
def real(real_gpt2_tokenizer):
    return real_gpt2_tokenizer, vocabulary_of(real_gpt2_tokenizer, len(real_gpt2_tokenizer))


def unigram(corpus):
    """In the manner of SentencePiece: ▁ for spaces, one in front of the text, unknown characters as bytes."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    trainer = trainers.UnigramTrainer(vocab_size=300, special_tokens=["<unk>"], unk_token="<unk>", show_progress=False)
    tokenizer.train_from_iterator([t[:300] for t in corpus[:40]], trainer)
    pieces = [(tokenizer.id_to_token(i), -5.0 - 0.01 * i) for i in range(1, tokenizer.get_vocab_size())]
    vocabulary = [("<unk>", 0.0), *((f"<0x{b:02X}>", -20.0) for b in range(256)), *pieces]
    with_bytes = Tokenizer(models.Unigram(vocabulary, unk_id=0, byte_fallback=True))
    with_bytes.normalizer, with_bytes.pre_tokenizer = tokenizer.normalizer, tokenizer.pre_tokenizer
    with_bytes.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace(prepend_scheme="always")])
    return with_bytes


def lowercasing(corpus):
    """In the manner of BERT: lower case, accents stripped, words and their continuations."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.train_from_iterator(corpus[:60], trainers.WordPieceTrainer(vocab_size=400, special_tokens=["[UNK]"], show_progress=False))
    return tokenizer


def composing(corpus):
    """In the manner of Qwen: byte-level BPE after composition (NFC), so that the bytes are not always the text's own."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    tokenizer.train_from_iterator([*corpus[:60], "😀 a😀 b😀"], trainer)
    return tokenizer


def byte_fallback_bpe(corpus, *, prefix: bool):
    """In the manner of SentencePiece's BPE (Llama with a space put in front, Gemma without): ▁ for spaces, the unknown as bytes."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    marked = [normalizers.Replace(" ", "▁")]
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), *marked] if prefix else marked)
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    special = ["<unk>", *(f"<0x{b:02X}>" for b in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=special, max_token_length=8, show_progress=False)
    tokenizer.train_from_iterator([word if prefix else f" {word}" for text in corpus[:40] for word in text.split()], trainer)
    state = json.loads(tokenizer.to_str())  # the byte pieces are ordinary ones: only training needed them to be special
    state["added_tokens"] = [token for token in state["added_tokens"] if token["content"] == "<unk>"]
    return Tokenizer.from_str(json.dumps(state))


def llama_like(corpus):
    return byte_fallback_bpe(corpus, prefix=True)


def gemma_like(corpus):
    return byte_fallback_bpe(corpus, prefix=False)


def spaced(corpus):
    """In the manner of OPT's and RoBERTa's kin: byte-level BPE that puts a space in front of a text, offsets without spaces."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder, tokenizer.post_processor = decoders.ByteLevel(), processors.ByteLevel(trim_offsets=True)
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    tokenizer.train_from_iterator(corpus[:60], trainer)
    return tokenizer


@pytest.fixture(scope="module", params=[unigram, lowercasing, composing, llama_like, gemma_like, spaced])
def foreign(request, corpus_texts):
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=request.param(corpus_texts))
    return tokenizer, vocabulary_of(tokenizer, len(tokenizer))


def check_byte_level(tokenizer, vocabulary, text):
    found = tokenize(tokenizer, vocabulary, text)
    assert "".join(found.texts) == text
    assert b"".join(found.bytes) == text.encode()
    assert found.ids.tolist() == tokenizer(text, add_special_tokens=False)["input_ids"]
    # Independent of the module's own way: after each token, the characters completed so far are the valid part of its bytes.
    read, seen = b"", ""
    for piece, piece_text in zip(found.bytes, found.texts, strict=True):
        read += piece
        seen += piece_text
        assert seen == read.decode("utf-8", errors="ignore")


@given(texts)
@example(AWKWARD)
@example("")
def test_byte_level_pieces_rebuild_the_text(tiny, text):
    check_byte_level(*tiny, text)


@given(texts)
@example(AWKWARD)
def test_pieces_of_gpt2s_own_vocabulary_rebuild_the_text(real, text):
    check_byte_level(*real, text)


def test_known_pieces_of_gpt2(real):
    """Ids as published: 'Hello' is 15496, ' world' 995; an emoji is cut into bytes of which the last token completes it."""
    found = tokenize(*real, "Hello world 😀")
    assert found.ids[:2].tolist() == [15496, 995]
    assert found.texts[:2] == ("Hello", " world")
    assert found.texts[-1].endswith("😀")
    assert all(t == "" for t in found.texts[3:-1])
    assert real[1].text_of(50256) == "<|endoftext|>"
    assert np.flatnonzero(real[1].special).tolist() == [50256]


@given(texts)
@example(AWKWARD)
def test_pieces_of_other_tokenizers_rebuild_the_text(foreign, text):
    found = tokenize(*foreign, text)
    assert len(found.texts) == len(found.ids) == len(found.bytes)
    if len(found):  # a text of which the tokenizer makes nothing has no token to carry it
        assert "".join(found.texts) == text
        assert char_ends(found.texts).tolist() == [len("".join(found.texts[: i + 1])) for i in range(len(found))]


def test_lowercasing_keeps_the_texts_own_letters(corpus_texts):
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=lowercasing(corpus_texts))
    found = tokenize(tokenizer, vocabulary_of(tokenizer, len(tokenizer)), "The ÉTÉ  of it")
    assert found.texts[0] == "The"
    assert found.texts[-1] == " it"
    assert found.bytes[0] == b"the"


def test_the_last_of_several_tokens_in_a_character_carries_it(corpus_texts):
    """A combining sequence makes the bytes differ, so that offsets decide; 😀's bytes stand in a token that began before it."""
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=composing(corpus_texts))
    found = tokenize(tokenizer, vocabulary_of(tokenizer, len(tokenizer)), "e\u0301 漢")
    assert b"".join(found.bytes) == "é 漢".encode()
    assert found.texts[0] == ("" if len(found.bytes[0]) == 1 else "e\u0301")
    assert "".join(found.texts) == "e\u0301 漢"
    assert found.texts[-1].endswith("漢")
    assert not any("漢" in t for t in found.texts[:-1])


def test_tokens_that_begin_before_a_shared_character():
    """A token that holds a mark and the first byte of an emoji carries the mark only; the emoji goes to the one that ends it."""
    alphabet = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    first, *rest = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str("😀")[0][0]
    vocabulary = alphabet | {"!" + first: 256}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[("!", first)]))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer)
    found = tokenize(fast, vocabulary_of(fast, 257), "!😀e\u0301")
    assert found.bytes[0] == b"!" + "😀".encode()[:1]
    assert found.texts[: 1 + len(rest)] == ("!", "", "", "😀")
    assert "".join(found.texts) == "!😀e\u0301"


def test_byte_fallback_pieces_hold_their_bytes(corpus_texts):
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=unigram(corpus_texts))
    found = tokenize(tokenizer, vocabulary_of(tokenizer, len(tokenizer)), "a 漢")
    assert b"".join(found.bytes[-3:]) == "漢".encode()
    assert found.texts[-3:-1] == ("", "") or found.texts[-3:-1] == (" ", "")
    assert found.texts[-1] == "漢"


@pytest.mark.parametrize("make", [llama_like, gemma_like, spaced])
def test_pieces_of_a_prefixed_text_are_slices_of_the_text_itself(corpus_texts, make):
    """The space that a tokenizer puts in front is in the first token's bytes, but not in its text; the words' own spaces stay theirs."""
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=make(corpus_texts))
    found = tokenize(tokenizer, vocabulary_of(tokenizer, len(tokenizer)), "the sea 漢 the sea")
    data = b"".join(found.bytes)
    assert data == ("" if make is gemma_like else " ").encode() + "the sea 漢 the sea".encode()
    assert not found.texts[0].startswith(" ")
    assert "".join(found.texts) == "the sea 漢 the sea"
    at = [i for i, text in enumerate(found.texts) if "漢" in text]
    assert len(at) == 1
    assert found.bytes[at[0]] == "漢".encode()[2:]  # the last of its three bytes completes it
    assert [i for i, text in enumerate(found.texts) if text == ""][-2:] == [at[0] - 2, at[0] - 1]


def test_ids_that_the_model_has_no_row_for_are_refused(tiny):
    tokenizer, _ = tiny
    with pytest.raises(InputError, match=r"the tokenizer makes token \d+ of 'x', but the model knows 50 tokens only"):
        tokenize(tokenizer, vocabulary_of(tokenizer, 50), "x")


def test_special_tokens_are_told_by_id(tiny):
    tokenizer, vocabulary = tiny
    found = tokenize(tokenizer, vocabulary, "a<|endoftext|>b")
    assert found.texts == ("a", "<|endoftext|>", "b")
    assert found.special.tolist() == [False, True, False]
    assert tokenize(tokenizer, vocabulary, "a").special.tolist() == [False]  # none is put in front


def test_a_bos_that_the_tokenizer_adds_by_itself_is_left_out(byte_tokenizer):
    leading = Tokenizer.from_str(byte_tokenizer.to_str())
    leading.post_processor = processors.TemplateProcessing(single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=leading, bos_token="<|endoftext|>")
    assert tokenizer("a b")["input_ids"][0] == 0
    assert tokenize(tokenizer, vocabulary_of(tokenizer, 600), "a b").texts == ("a", " b")


def test_ids_beyond_the_tokenizer_hold_nothing(tiny):
    tokenizer, vocabulary = tiny
    assert len(vocabulary) == 610
    assert all(vocabulary.bytes_of(i) == b"" for i in range(len(tokenizer), 610))


def test_incomplete_pieces_read_as_bytes():
    assert readable("é".encode()) == "é"
    assert readable("é".encode()[:1]) == "<0xC3>"
    assert readable(b"\xe2\x80") == "<0xE2><0x80>"


def test_lone_surrogates_are_refused_in_one_sentence(tiny):
    with pytest.raises(InputError, match=r"U\+D83D at character 2.*remove it"):
        tokenize(*tiny, "ab\ud83dcd")


def test_binary_data_is_refused_but_a_stray_nul_is_read(tiny):
    with pytest.raises(InputError, match="binary"):
        tokenize(*tiny, "\0" * 50 + "text")
    check_text("one\0nul")
    check_byte_level(*tiny, "one\0nul")


def test_a_token_that_was_added_as_a_special_one_is_special(byte_tokenizer):
    """Also where it has no role such as BOS, as the turns of a chat have none."""
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(byte_tokenizer.to_str()), bos_token="<|endoftext|>")
    tokenizer.add_tokens([AddedToken("<|turn|>", special=True), AddedToken("plain", special=False)])
    assert [tokenizer.convert_tokens_to_ids(t) for t in ("<|turn|>", "plain")] == [600, 601]
    assert np.flatnonzero(vocabulary_of(tokenizer, 610).special).tolist() == [0, 600]


def test_characters_at_the_edges_of_utf8s_lengths_end_where_their_bytes_do():
    text = "\x7f\x80\u07ff\u0800\uffff\U00010000\U0010ffff"
    assert tokens._ends_by_bytes(text, tuple(c.encode() for c in text)).tolist() == list(range(1, len(text) + 1))
    single = tuple(bytes([b]) for b in text.encode())  # a token a byte: the one that completes a character carries it
    ends = tokens._ends_by_bytes(text, single).tolist()
    assert [text[a:b] for a, b in zip([0, *ends], ends, strict=False)] == [
        c for char in text for c in (*[""] * (len(char.encode()) - 1), char)
    ]
