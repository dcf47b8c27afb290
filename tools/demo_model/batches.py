"""Training batches: token ids, next-token targets, and which targets count in the loss."""

import random

import torch

import corpus
import tokenizer as tokenizer_module

IGNORED = -100

# Which share of the lines of a recall row are queries: many in most rows, because each one teaches;
# few in every fourth row, because then the pairs are as many as in the evaluation.
DENSE_SHARE = (0.3, 0.75)
SPARSE_SHARE = (0.01, 0.3)


class BatchMaker:
    """Draws batches of each task from one seeded generator."""

    def __init__(self, tokenizer, seed):
        self.tokenizer = tokenizer
        self.rng = random.Random(seed)
        self.train_sums, _ = corpus.split_sums()
        single = {text: tokenizer.encode(text) for text in corpus.CODES + ["=", "?", "\n"]}
        assert all(len(ids) == 1 for ids in single.values())
        self.code = {code: single[code][0] for code in corpus.CODES}
        self.equals, self.question, self.newline = (single[text][0] for text in "=?\n")
        self.digit = [tokenizer.encode(str(d))[0] for d in range(10)]
        self.plus = tokenizer.encode("+")[0]

    def _digits(self, number):
        return [self.digit[int(d)] for d in str(number)]

    def sums(self, count):
        """Rows `a+b=c</s>`; the loss counts the digits of c and the end."""
        rows = []
        for a, b in self.rng.choices(self.train_sums, k=count):
            prompt = [tokenizer_module.BOS_ID, *self._digits(a), self.plus, *self._digits(b)]
            prompt.append(self.equals)
            answer = [*self._digits(a + b), tokenizer_module.EOS_ID]
            rows.append((prompt + answer, [False] * len(prompt) + [True] * len(answer)))
        return _pack(rows)

    def recall(self, count, length):
        """Rows of `length` + 1 tokens: definitions, then several queries, each answered.

        Returns inputs, targets, and the look-back targets of train.py: at every defined value and
        at every question mark, the key of that line.
        """
        lines = length // 4
        rows, look_back = [], []
        for row in range(count):
            asked = self.rng.uniform(*(DENSE_SHARE if row % 4 else SPARSE_SHARE))
            queries = min(lines - 1, max(1, round(asked * lines)))
            case = corpus.make_recall(self.rng, lines - queries, queries)
            ids, counted, keys = [tokenizer_module.BOS_ID], [False], [IGNORED]
            for key, value in case.definitions:
                ids += [self.code[key], self.equals, self.code[value], self.newline]
                counted += [False] * 4
                keys += [IGNORED, IGNORED, self.code[key], IGNORED]
            for key, value in case.queries:
                ids += [self.code[key], self.question, self.code[value], tokenizer_module.EOS_ID]
                counted += [False, False, True, True]
                keys += [IGNORED, self.code[key], IGNORED, IGNORED]
            rows.append((ids, counted))
            look_back.append(keys[:-1])
        return *_pack(rows), torch.tensor(look_back)

    def stories(self, count):
        """Rows `story</s>`; every token counts."""
        rows = []
        for _ in range(count):
            ids = self.tokenizer.encode(corpus.make_story(self.rng), add_bos=True)
            ids.append(tokenizer_module.EOS_ID)
            rows.append((ids, [True] * len(ids)))
        return _pack(rows)


def _pack(rows):
    """Pads rows of (ids, counted) to one length; returns inputs and targets, shifted by one."""
    longest = max(len(ids) for ids, _ in rows)
    inputs = torch.full((len(rows), longest - 1), tokenizer_module.EOS_ID)
    targets = torch.full((len(rows), longest - 1), IGNORED)
    for row, (ids, counted) in enumerate(rows):
        count = len(ids) - 1
        inputs[row, :count] = torch.tensor(ids[:-1])
        targets[row, :count] = torch.tensor(
            [token if use else IGNORED for token, use in zip(ids[1:], counted[1:])]
        )
    return inputs, targets
