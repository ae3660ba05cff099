"""Small real tokenizers, trained on the spot: byte-level BPE, BPE with byte fallback, and SentencePiece with byte fallback."""

import functools
import io
import json
from collections.abc import Sequence

import sentencepiece
import tokenizers
from sentencepiece import sentencepiece_model_pb2
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from apr_jax.pretrained.gguf.vocabulary import pre_tokenizers as pre_tokenizers_of_gguf
from apr_jax.tokenizer import ChatTemplate, Tokenizer
from apr_jax.tokenizer.huggingface import HuggingFaceTokenizer

CORPUS = [
    "What is 6 times 7? The answer is 42, because 6 * 7 = 42.",
    "She sells 16 - 3 - 4 = 9 eggs a day for $2 each, so she makes 9 * 2 = $18 every day.",
    "Grüße aus Köln! Ça va? Привет, мир. 你好，世界。 こんにちは 🦄🦄 naïve café",
    "def add(a, b):\n    return a + b\n\n\tassert add(1, 2) == 3\n",
    "<think>thinking</think> start user assistant system end im_start im_end",
] * 3
MARKS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@functools.cache
def byte_level_definition(pre: str = "smollm") -> str:
    """`tokenizer.json` of a byte-level BPE with turn marks first, as SmolLM2's, and one added word that is not special."""
    made = tokenizers.Tokenizer(models.BPE())
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=list(MARKS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.train_from_iterator(CORPUS, trainer)
    made.add_tokens([tokenizers.AddedToken("<think>", special=False, normalized=False)])
    definition = json.loads(made.to_str())
    definition["pre_tokenizer"] = pre_tokenizers_of_gguf()[pre]
    return json.dumps(definition)


def byte_level(pre: str = "smollm", template: str = CHATML) -> HuggingFaceTokenizer:
    config = {"bos_token": MARKS[1], "eos_token": {"content": MARKS[2], "lstrip": False}, "pad_token": MARKS[0]}
    definition = json.loads(byte_level_definition(pre))
    return HuggingFaceTokenizer(definition, config, ChatTemplate(template, "template of the test"))


def byte_level_with_ordinary_words(words: Sequence[str] = ("ő", "  ", "Straße", "∑")) -> HuggingFaceTokenizer:
    """Letters and a run of spaces are added words as well, and text is composed (NFC)."""
    codec = byte_level()
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
    added = [{"id": codec.size + i, "content": word, **flags} for i, word in enumerate(words)]
    definition = codec.definition | {"normalizer": {"type": "NFC"}}
    definition["added_tokens"] = [*definition["added_tokens"], *added]
    return HuggingFaceTokenizer(definition, codec.config, codec.chat_template)


@functools.cache
def byte_fallback_definition(metaspace: bool) -> str:
    """`tokenizer.json` as of Llama 2: a space before every stretch of text, or (Metaspace) before the first."""
    made = tokenizers.Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    words = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    if metaspace:
        made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    else:
        made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    made.decoder = decoders.Sequence(parts)
    ascii_corpus = [text for text in CORPUS if text.isascii() and "\n" not in text]
    made.train_from_iterator(
        ascii_corpus, trainers.BpeTrainer(vocab_size=450, special_tokens=words, show_progress=False)
    )
    definition = json.loads(made.to_str())
    definition["added_tokens"] = definition["added_tokens"][:3]  # bytes are ordinary pieces
    vocabulary, merges = definition["model"]["vocab"], definition["model"]["merges"]
    for piece, pair in (("\n", None), ("\n\n", ["\n", "\n"]), ("\nT", ["\n", "T"])):  # new lines are merged with others
        vocabulary[piece] = len(vocabulary)
        merges[:0] = [pair] if pair else []
    return json.dumps(definition)


def byte_fallback(metaspace: bool = True) -> HuggingFaceTokenizer:
    config = {"bos_token": "<s>", "eos_token": "</s>"}
    return HuggingFaceTokenizer(json.loads(byte_fallback_definition(metaspace)), config)


def unigram() -> HuggingFaceTokenizer:
    """Pieces with scores and byte fallback, as converted from SentencePiece; a tag and a letter are added words."""
    made = tokenizers.Tokenizer(models.Unigram())
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    made.decoder = decoders.Sequence(parts)
    words = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.UnigramTrainer(vocab_size=400, special_tokens=words, unk_token="<unk>", show_progress=False)
    made.train_from_iterator([text for text in CORPUS if text.isascii()], trainer)
    definition = json.loads(made.to_str())
    definition["model"]["byte_fallback"] = True
    size, flags = (
        len(definition["model"]["vocab"]),
        dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False),
    )
    added = [{"id": size, "content": "<think>"}, {"id": size + 1, "content": "ő"}]
    definition["added_tokens"] = definition["added_tokens"][:3] + [
        {**flags, "special": False, **word} for word in added
    ]
    return HuggingFaceTokenizer(definition, {"bos_token": "<s>", "eos_token": "</s>"})


@functools.cache
def sentencepiece_bytes() -> bytes:
    """A SentencePiece BPE model as Llama 2 has it: byte fallback, dummy prefix, no padding."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([text for text in CORPUS if text.isascii()]),
        model_writer=model,
        model_type="bpe",
        vocab_size=400,
        byte_fallback=True,
        add_dummy_prefix=True,
        remove_extra_whitespaces=False,
        normalization_rule_name="identity",
        user_defined_symbols=["<think>"],
        num_threads=1,
        minloglevel=2,
    )
    return model.getvalue()


def sentencepiece_with_symbols() -> bytes:
    """The same with user-defined symbols without angle brackets, a tag and two of ordinary text, and pieces of new lines."""
    proto = sentencepiece_model_pb2.ModelProto.FromString(sentencepiece_bytes())
    known = {piece.piece: piece for piece in proto.pieces}
    kinds = {"[/INST]": 4, "ö": 4, "▁▁▁": 4, "\n": 1, "\n\n": 1}  # user-defined, normal
    for symbol, kind in kinds.items():
        piece = known.get(symbol) or proto.pieces.add(piece=symbol, score=0.0)
        piece.type = kind
    return proto.SerializeToString()


def sentence() -> Tokenizer:
    return Tokenizer(sentencepiece_bytes())
