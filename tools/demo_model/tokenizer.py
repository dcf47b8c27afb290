"""A SentencePiece-style tokenizer: bigram merges by score, with byte fallback.

The vocabulary is built here and stored in the GGUF file. `encode` follows the rule that llama.cpp
and Tandem use for `tokenizer.ggml.model = llama`: start from single characters, and repeatedly
merge the adjacent pair whose concatenation is the token of the highest score (the leftmost on a
tie); what is no token at the end falls back to one token per byte.
"""

import collections
import dataclasses
import math
import random
import re
import string

import corpus

SPACE = "\u2581"
UNKNOWN_ID, BOS_ID, EOS_ID = 0, 1, 2
TYPE_NORMAL, TYPE_UNKNOWN, TYPE_CONTROL, TYPE_BYTE = 1, 2, 3, 6

VOCABULARY_LIMIT = 1024
VOCABULARY_STORIES = 4000
VOCABULARY_SEED = 1
CHARACTERS = SPACE + string.ascii_letters + string.digits + ".,!?'\"=+-:;"


@dataclasses.dataclass
class Tokenizer:
    """Token texts, scores and types, in the order of their ids."""

    tokens: list
    scores: list
    types: list

    def __post_init__(self):
        self._ids = {
            text: i for i, text in enumerate(self.tokens) if self.types[i] == TYPE_NORMAL
        }
        self._byte_ids = {
            int(text[3:5], 16): i
            for i, text in enumerate(self.tokens)
            if self.types[i] == TYPE_BYTE
        }

    def __len__(self):
        return len(self.tokens)

    def _pair_score(self, pieces, i):
        """Score of the token that pieces i and i + 1 make together; -inf when they make none."""
        token = self._ids.get(pieces[i] + pieces[i + 1])
        return -math.inf if token is None else self.scores[token]

    def encode(self, text, add_bos=False):
        """Token ids of `text`."""
        pieces = list(text.replace(" ", SPACE))
        scores = [self._pair_score(pieces, i) for i in range(len(pieces) - 1)]
        while scores and (best := max(scores)) > -math.inf:
            i = scores.index(best)
            pieces[i : i + 2] = [pieces[i] + pieces[i + 1]]
            del scores[i]
            for j in range(max(0, i - 1), min(i + 1, len(scores))):
                scores[j] = self._pair_score(pieces, j)
        ids = [BOS_ID] if add_bos else []
        for piece in pieces:
            token = self._ids.get(piece)
            if token is not None:
                ids.append(token)
            else:
                ids.extend(self._byte_ids[byte] for byte in piece.encode())
        return ids

    def decode(self, ids):
        """Text of token ids; control tokens are left out."""
        data = b""
        for token in ids:
            if self.types[token] == TYPE_BYTE:
                data += bytes([int(self.tokens[token][3:5], 16)])
            elif self.types[token] == TYPE_NORMAL:
                data += self.tokens[token].replace(SPACE, " ").encode()
        return data.decode(errors="replace")


def _learn_merges(words, limit):
    """Byte-pair merges over a word count, most frequent first, ties broken by text."""
    splits = {word: list(word) for word in words}
    merges = []
    while len(merges) < limit:
        pairs = collections.Counter()
        for word, pieces in splits.items():
            for pair in zip(pieces, pieces[1:]):
                pairs[pair] += words[word]
        if not pairs:
            break
        left, right = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(left + right)
        for pieces in splits.values():
            i = 0
            while i < len(pieces) - 1:
                if pieces[i] == left and pieces[i + 1] == right:
                    pieces[i : i + 2] = [left + right]
                i += 1
    return merges


def build():
    """The demo model's tokenizer: the same on every run."""
    rng = random.Random(VOCABULARY_SEED)
    words = collections.Counter()
    for _ in range(VOCABULARY_STORIES):
        text = corpus.make_story(rng).replace(" ", SPACE)
        words.update(re.findall(f"{SPACE}?[A-Za-z]+", text))
    fixed = 3 + 256 + len(corpus.CODES) + len(CHARACTERS)
    merges = list(dict.fromkeys(_learn_merges(words, VOCABULARY_LIMIT - fixed)))

    tokens = ["<unk>", "<s>", "</s>"] + [f"<0x{byte:02X}>" for byte in range(256)]
    scores = [0.0] * len(tokens)
    types = [TYPE_UNKNOWN, TYPE_CONTROL, TYPE_CONTROL] + [TYPE_BYTE] * 256
    for rank, piece in enumerate(merges + corpus.CODES + list(CHARACTERS)):
        tokens.append(piece)
        scores.append(-1.0 - rank)
        types.append(TYPE_NORMAL)
    return Tokenizer(tokens, scores, types)
