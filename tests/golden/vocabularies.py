"""Small tokenizer vocabularies for the goldens, trained on the text below, and the test strings.

The trainer is that of the package `tokenizers`; the ids of the test strings come from llama.cpp.
"""

from __future__ import annotations

import json
import pathlib
import sys

import tokenizers
from tokenizers import models, pre_tokenizers, trainers

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "tools"))
import make_random_gguf as mrg  # noqa: E402

TEXT = """\
Once upon a time there was a small robot who lived near the river. The robot liked to count boats.
Every morning the robot walked to the bridge, looked at the water and counted: one, two, three, four.
"I don't know where they're going," said the robot, "but I'm sure they'll come back. We've time."
It's raining today; she'd rather stay inside and read. You're right, he wasn't there, and that's all.
The quick brown fox jumps over the lazy dog. The transformer reads the tokens and writes the next one.
In 1984 there were 365 boats, in 2024 there were 1,048,576 of them. 3.14159 is close to 22/7.
def add(a, b):
    # adds two numbers
    return a + b

for (int i = 0; i < n; ++i) { sum += x[i] * y[i]; }  // inner product
Les enfants étaient très contents; où est la bibliothèque? Der Fluß fließt über große Steine.
El niño pequeño corrió mañana. Größe, naïve, café, façade, jalapeño, smörgåsbord.
Жил-был маленький робот у реки. Робот любил считать лодки: один, два, три. Привет, мир!
从前有一个小机器人住在河边。机器人喜欢数船。你好,世界!今天天气很好。
옛날 옛적에 작은 로봇이 강가에 살았습니다. 안녕하세요 세계. 오늘 날씨가 좋습니다.
こんにちは世界。小さなロボットは川の近くに住んでいました。
Ένα μικρό ρομπότ ζούσε κοντά στο ποτάμι. שלום עולם. مرحبا بالعالم. नमस्ते दुनिया
😀 😃 😄 🚀 👍🏽 👨‍👩‍👧 ❤️ 🇩🇪 — “quoted” ‘single’ … € £ ¥ © ® ™ ½ ² ≤ ≥ ≠ → ∑ √
"""

STRINGS = [
    "", " ", "  ", "   ", "\n", "\n\n", "\t", " \n", "\n ", "\r\n", "a", " a", "a ", " a ", "  a", "a  b",
    "a   b    c", "    four leading", "trailing four    ", "Hello", " Hello", "Hello world",
    "Hello, world!", "hello  world", "Once upon a time there was a small robot.",
    "The transformer reads the tokens", " transformer transformers transform", "TRANSFORMER",
    "the the the the", "thethethe", "I don't know; they're sure we've time, I'll go, he'd stay, I'm ok.",
    "I DON'T KNOW; THEY'RE SURE WE'VE TIME", "it's 'quoted' 'tis 'twas rock'n'roll", "'", "''", "'s 't",
    "0", "7", "12", "123", "1234", "12345678901234567890", "3.14159", "1,048,576", "23+45=68", "a1b22c333",
    "x = y*2 + z/3 - (a && b) || !c;", "for (int i = 0; i < n; ++i) {\n    sum += x[i];\n}\n",
    "def f(x):\n\treturn x\n\n\n# end", "line one\nline two\r\nline three\n", "\n\n\n\n", "a\n\n  b", "a \n \n b",
    "tab\tseparated\tvalues", "!!!", "...", "?!?!", "#$%^&*()_+-=[]{}|;:'\",.<>/?`~\\", "https://example.org/a?b=c&d=e#f",
    "user@example.org", "snake_case camelCase PascalCase kebab-case", "café naïve façade Größe", "cafe\u0301 (combining)",
    "ÀÉÎÕÜ àéîõü ß ÿ", "Привет, мир!", "Жил-был маленький робот", "你好,世界!", "从前有一个小机器人", "中文 English 混合 text123",
    "안녕하세요 세계", "한국어 텍스트입니다.", "こんにちは世界。", "カタカナ と ひらがな", "Ένα μικρό ρομπότ", "שלום עולם", "مرحبا بالعالم",
    "नमस्ते दुनिया", "😀", "😀😃😄", "🚀 to the moon", "👍🏽", "👨‍👩‍👧", "🇩🇪🇫🇷", "❤️", "text😀text", "\U0001d54f\U0001f9ff\U00010348",
    "½ ² Ⅷ ٣ ৪ ①", "100²", "€5 £6 ¥7", "“quoted” ‘single’ … — –", "a\u00a0b\u2003c\u3000d", "\u200b\u200d\ufeff", "zero\u0000byte",
    "\u0001\u0002\u007f", "▁", "▁▁ a▁b", "Ġ Ċ Ġhello", "<unk>", "<s>", "</s>", "<s>Hello</s>", "Hello</s> world", "<0x41>", "<0x0A>",
    "<|endoftext|>", "<|im_start|>user\nHi there<|im_end|>\n<|im_start|>assistant\n", "a<|endoftext|>b <|endoftext|> c",
    "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>", "<tool>call</tool>", " <tool> x <tool><tool>y", "<too l>",
    "supercalifragilisticexpialidocious", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", "\u00ad soft\u00adhyphen", "word " * 20,
]

# The pre-tokenizer patterns of the model families, as their tokenizer.json files state them.
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
PATTERNS = {
    "gpt-2": r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    "qwen2": _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}" + _REST,
    "llama-bpe": _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}" + _REST,
}
SPECIAL = {
    "gpt-2": ["<|endoftext|>"],
    "qwen2": ["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
    "llama-bpe": [
        "<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>",
    ],
}


def _train(pre_tokenizer, alphabet: list[str], size: int) -> list[tuple[str, str]]:
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizer
    trainer = trainers.BpeTrainer(
        vocab_size=size, initial_alphabet=alphabet, show_progress=False, min_frequency=1
    )
    tokenizer.train_from_iterator(TEXT.splitlines(keepends=True), trainer)
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    return [tuple(m) if isinstance(m, list) else tuple(m.split(" ")) for m in merges]


def _byte_level_split(pre: str):
    return pre_tokenizers.Sequence([
        pre_tokenizers.Split(tokenizers.Regex(PATTERNS[pre]), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])


def train_bpe(pre: str, size: int, extras: bool = False) -> mrg.Vocabulary:
    """A byte-level BPE vocabulary of `size` tokens. `extras` adds a user-defined token and a whole
    word that no merge leads to (llama-bpe must use it, the others must not)."""
    special = SPECIAL[pre]
    word = ["\u0120transformer"] if extras else []
    user = ["<tool>"] if extras else []
    count = size - 256 - len(special) - len(word) - len(user)
    merges, seen = [], set(word)
    for left, right in _train(_byte_level_split(pre), pre_tokenizers.ByteLevel.alphabet(), size + 64):
        if len(merges) == count:
            break
        if left in word or right in word or left + right in seen:
            continue
        seen.add(left + right)
        merges.append(f"{left} {right}")
    if len(merges) != count:
        raise ValueError(f"the text yields only {len(merges)} merges, want {count}")
    bos = {"llama-bpe": "<|begin_of_text|>"}.get(pre, "<|endoftext|>")
    eos = {"llama-bpe": "<|eot_id|>", "qwen2": "<|im_end|>"}.get(pre, "<|endoftext|>")
    vocabulary = mrg.bpe_vocabulary(merges, word + special + user, pre, add_bos=pre == "llama-bpe")
    if word:
        vocabulary.types[vocabulary.tokens.index(word[0])] = mrg.NORMAL
    if user:
        vocabulary.types[vocabulary.tokens.index(user[0])] = mrg.USER_DEFINED
    vocabulary.bos = vocabulary.tokens.index(bos)
    vocabulary.eos = vocabulary.tokens.index(eos)
    return vocabulary


def train_spm(size: int, extras: bool = False) -> mrg.Vocabulary:
    """A SentencePiece-style vocabulary: specials, bytes, merged pieces by rank, single characters."""
    spaces = ["\u2581" * n for n in (2, 4, 8)] if extras else []
    user = ["<tool>"] if extras else []
    merges = _train(pre_tokenizers.Metaspace(), [], 4096)
    count = size - 259 - len(user)
    # Half of the room for the most frequent characters; what is left falls back to bytes.
    ranked = sorted(set(TEXT.replace(" ", "\u2581")) - {"\n"},
                    key=lambda c: (-TEXT.replace(" ", "\u2581").count(c), c))
    characters = ranked[: count // 2]
    pieces, known = spaces[:], set(characters) | set(spaces)
    for left, right in merges:
        if len(pieces) + len(characters) == count:
            break
        if left in known and right in known and left + right not in known:
            known.add(left + right)
            pieces.append(left + right)
    if len(pieces) + len(characters) != count:
        raise ValueError(f"the text yields only {len(pieces)} pieces")
    vocabulary = mrg.spm_vocabulary(pieces + characters + user)
    if user:
        vocabulary.types[-1] = mrg.USER_DEFINED
    return vocabulary


def byte_level_ids(vocabulary: mrg.Vocabulary) -> dict[str, list[int]]:
    """A second opinion on the ids of STRINGS, by the package `tokenizers`: text without special or
    user-defined tokens, no BOS."""
    ids = {token: i for i, token in enumerate(vocabulary.tokens)}
    merges = [tuple(m.split(" ")) for m in vocabulary.merges]
    tokenizer = tokenizers.Tokenizer(
        models.BPE(ids, merges, ignore_merges=vocabulary.pre == "llama-bpe")
    )
    tokenizer.pre_tokenizer = _byte_level_split(vocabulary.pre)
    return {t: tokenizer.encode(t).ids for t in STRINGS if "<tool>" not in t}
