"""A small tokenizer in Gemma's form, trained on raw text: the same text gives the same tokenizer, byte for byte."""

import json
from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING

from refembed.errors import RefembedError
from refembed.reference.ul2 import MODES, SENTINELS

if TYPE_CHECKING:
    import tokenizers

SPECIAL = ("<pad>", "<eos>", "<bos>", "<unk>")  # ids 0 to 3, as in the released tokenizer; <mask> is 4
UNUSED = (*MODES.values(), *SENTINELS)
BYTES = tuple(f"<0x{byte:02X}>" for byte in range(256))
FIRST = (*SPECIAL, "<mask>", *UNUSED, *BYTES)
COVERED = 0.999  # of all letters; what is rarer is spelled in bytes, which leaves more of a small vocabulary to pieces
LETTERS = 0.5  # of the room for pieces at most: a text of Chinese would take it all


def train_tokenizer(texts: Iterable[str], vocabulary: int) -> "tokenizers.Tokenizer":
    """Byte-pair encoding with byte fallback and '▁' for spaces; unused tokens are there for UL2's modes and sentinels.

    texts        held in memory, so a sample of what there is
    vocabulary   how many tokens at most

    Raises RefembedError where the vocabulary has no room for pieces.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

    room = vocabulary - len(FIRST)
    if room < 2:
        raise RefembedError("train-config", f"vocabulary is {vocabulary}; more than {len(FIRST) + 1} is needed")
    texts = list(texts)
    trained = Tokenizer(models.BPE(byte_fallback=True, unk_token=SPECIAL[3]))
    trained.normalizer = normalizers.Replace(" ", "▁")
    trained.pre_tokenizer = pre_tokenizers.Sequence(  # no piece is longer than a word
        [pre_tokenizers.Split("▁", "merged_with_next"), pre_tokenizers.Punctuation(), pre_tokenizers.Digits(True)]
    )
    letters = alphabet(texts, int(room * LETTERS))
    trained.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=vocabulary,
            special_tokens=list(FIRST),
            initial_alphabet=letters,
            limit_alphabet=len(letters),  # the library's own choice is another in every run where counts are equal
            show_progress=False,
        ),
    )
    model = json.loads(trained.to_str())["model"]
    merges = [tuple(pair) for pair in model["merges"]]
    made = Tokenizer(models.BPE(model["vocab"], merges, byte_fallback=True, fuse_unk=True, unk_token=SPECIAL[3]))
    made.normalizer = normalizers.Replace(" ", "▁")
    made.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    made.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    made.post_processor = processors.TemplateProcessing(
        single="<bos> $A <eos>", pair="<bos> $A <eos> <bos> $B <eos>", special_tokens=[("<bos>", 2), ("<eos>", 1)]
    )
    made.add_special_tokens([AddedToken(name, normalized=False) for name in SPECIAL])
    made.add_tokens([AddedToken(name, normalized=False) for name in ("<mask>", *UNUSED)])
    return made


def alphabet(texts: Iterable[str], most: int) -> list[str]:
    """The letters that are pieces of their own: the commonest, up to the share COVERED of all, at most so many."""
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(text.replace(" ", "▁"))
    ordered = sorted(counts, key=lambda letter: (-counts[letter], letter))[: max(most, 1)]
    total, seen, kept = counts.total(), 0, []
    for letter in ordered:
        if seen > COVERED * total:
            break
        kept.append(letter)
        seen += counts[letter]
    return kept
