"""Writes models/demo_eval.json: the fixed sums and recalls that the tests ask the demo model.

`context_tokens` counts the whole sequence: <s>, the prompt and the answer.
"""

import argparse
import json
import pathlib
import random

import corpus
import tokenizer as tokenizer_module

SEED = 404
SUM_COUNT = 200
RECALL_COUNT = 40
RECALL_LENGTHS = [64, 128, 256, 512, 1024]


def recall_case(rng, length):
    """One recall whose prompt with <s> and answer make exactly `length` tokens."""
    return corpus.make_recall(rng, definition_count=length // 4 - 1, query_count=1)


def cases():
    """All cases, the same on every run; every tenth sum was held out of the training."""
    rng = random.Random(SEED)
    tokenizer = tokenizer_module.build()
    train_sums, held_out_sums = corpus.split_sums()
    held_out = rng.sample(held_out_sums, SUM_COUNT // 10)
    sums = rng.sample(train_sums, SUM_COUNT - len(held_out)) + held_out

    def entry(task, prompt, answer):
        tokens = tokenizer.encode(prompt + answer, add_bos=True)
        return {"task": task, "context_tokens": len(tokens), "prompt": prompt, "answer": answer}

    for a, b in sums:
        text = corpus.sum_text(a, b)
        prompt = text[: text.index("=") + 1]
        yield entry("sum", prompt, text[len(prompt) :])
    for length in RECALL_LENGTHS:
        for _ in range(RECALL_COUNT):
            case = recall_case(rng, length)
            yield entry("recall", case.prompt(), case.queries[0][1])


def main():
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("target", type=pathlib.Path)
    arguments = parser.parse_args()
    lines = ",\n".join(json.dumps(case) for case in cases())
    arguments.target.write_text(f"[\n{lines}\n]\n")


if __name__ == "__main__":
    main()
