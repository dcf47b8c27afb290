// Tokenizers: ids and pieces equal to llama.cpp's (tests/golden), texts that come back, streams of
// tokens, and vocabularies that must be refused.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>
#include <random>

#include "absl/strings/escaping.h"
#include "absl/strings/str_format.h"
#include "core/status.h"
#include "model/pretokenizer.h"
#include "model/tokenizer.h"
#include "model/utf8.h"
#include "tests/gguf_builder.h"

namespace tandem {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

const char* const kGolden = TANDEM_SOURCE_DIR "/tests/golden/";

std::shared_ptr<const Tokenizer> LoadFile(const std::string& path) {
  const auto file = GgufFile::Open(path);
  EXPECT_TRUE(file.ok()) << file.status();
  if (!file.ok()) return nullptr;
  auto tokenizer = Tokenizer::Load(*file);
  EXPECT_TRUE(tokenizer.ok()) << tokenizer.status();
  return tokenizer.ok() ? *tokenizer : nullptr;
}

// A tokenizer together with the bytes it views.
struct Loaded {
  std::vector<std::byte> bytes;
  absl::StatusOr<std::shared_ptr<const Tokenizer>> tokenizer;
  const Tokenizer* operator->() const { return tokenizer->get(); }
};

Loaded Load(const GgufBuilder& builder) {
  Loaded loaded{builder.Build(), absl::UnknownError("not loaded")};
  const auto file = GgufFile::FromMemory(loaded.bytes, "test.gguf");
  loaded.tokenizer = file.ok() ? Tokenizer::Load(*file) : file.status();
  return loaded;
}

void ExpectRefused(const GgufBuilder& builder, absl::StatusCode code, const std::string& text) {
  const absl::Status status = Load(builder).tokenizer.status();
  EXPECT_EQ(status.code(), code) << status;
  EXPECT_THAT(Message(status), AllOf(HasSubstr("test.gguf"), HasSubstr(text)));
}

class GoldenTokenizer : public ::testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    std::ifstream in(std::string(kGolden) + GetParam() + ".json");
    ASSERT_TRUE(in) << GetParam();
    golden_ = nlohmann::json::parse(in, nullptr, /*allow_exceptions=*/false);
    ASSERT_FALSE(golden_.is_discarded());
    tokenizer_ = LoadFile(kGolden + golden_["vocabulary"].get<std::string>());
    ASSERT_NE(tokenizer_, nullptr);
  }
  nlohmann::json golden_;
  std::shared_ptr<const Tokenizer> tokenizer_;
};

TEST_P(GoldenTokenizer, IdsEqualLlamaCpp) {
  ASSERT_GE(golden_["cases"].size(), 100u);
  for (const auto& c : golden_["cases"]) {
    const auto text = c["text"].get<std::string>();
    const EncodeOptions options{c["add_special"].get<bool>(), c["parse_special"].get<bool>()};
    const auto ids = tokenizer_->Encode(text, options);
    ASSERT_TRUE(ids.ok()) << ids.status();
    EXPECT_EQ(*ids, c["ids"].get<std::vector<int32_t>>())
        << "text \"" << absl::CHexEscape(text) << "\" add_special " << options.add_special
        << " parse_special " << options.parse_special;
  }
}

TEST_P(GoldenTokenizer, PiecesEqualLlamaCpp) {
  const auto& pieces = golden_["token_bytes_hex"];
  ASSERT_EQ(static_cast<int64_t>(pieces.size()), tokenizer_->size());
  for (int32_t id = 0; id < tokenizer_->size(); ++id) {
    const std::string expected =
        absl::HexStringToBytes(pieces[static_cast<size_t>(id)].get<std::string>());
    EXPECT_EQ(absl::CHexEscape(*tokenizer_->Piece(id)), absl::CHexEscape(expected)) << "id " << id;
  }
}

TEST_P(GoldenTokenizer, TextComesBack) {
  for (const auto& c : golden_["cases"]) {
    if (c["parse_special"].get<bool>()) continue;
    const auto text = c["text"].get<std::string>();
    // A literal U+2581 means a space to SentencePiece-style vocabularies.
    if (golden_["model"] == "llama" && text.find("\xE2\x96\x81") != std::string::npos) continue;
    const auto ids = tokenizer_->Encode(text, {false, false});
    ASSERT_TRUE(ids.ok()) << ids.status();
    EXPECT_EQ(*tokenizer_->Decode(*ids), text);
  }
}

// Random bytes, mostly not UTF-8: nothing is lost on the way through tokens.
TEST_P(GoldenTokenizer, AnyBytesComeBack) {
  std::mt19937_64 random(20);
  for (int i = 0; i < 300; ++i) {
    std::string text(random() % 40, '\0');
    for (char& c : text) {
      constexpr std::string_view kLikely = " \n'saAtx7\xE2\x96\x81\xF0\x9F\xC3\x80\xFF";
      c = random() % 2 ? kLikely[random() % kLikely.size()] : static_cast<char>(random());
    }
    if (golden_["model"] == "llama" && text.find("\xE2\x96\x81") != std::string::npos) continue;
    const auto ids = tokenizer_->Encode(text, {false, false});
    ASSERT_TRUE(ids.ok()) << ids.status();
    EXPECT_EQ(absl::CHexEscape(*tokenizer_->Decode(*ids)), absl::CHexEscape(text));
  }
}

TEST_P(GoldenTokenizer, StreamEqualsWhole) {
  for (const auto& c : golden_["cases"]) {
    if (c["parse_special"].get<bool>()) continue;
    const auto ids = c["ids"].get<std::vector<int32_t>>();
    StreamDecoder stream(*tokenizer_);
    std::string streamed, whole;
    for (const int32_t id : ids) {
      const std::string piece = *stream.Push(id);
      for (std::string_view rest = piece; !rest.empty();) {
        const Utf8Sequence sequence = FirstUtf8Sequence(rest);
        ASSERT_TRUE(sequence.valid) << absl::CHexEscape(piece);
        rest.remove_prefix(static_cast<size_t>(sequence.length));
      }
      streamed += piece;
      whole += *tokenizer_->Piece(id);
    }
    EXPECT_EQ(stream.Finish(), "");
    EXPECT_EQ(streamed, whole);
  }
}

// Long texts: minutes if any step were quadratic.
TEST_P(GoldenTokenizer, LongTexts) {
  for (const std::string_view unit :
       {"a", " ", "ab ", "1", "\n", "\xE2\x96\x81", "<tool", "\xFF"}) {
    std::string text;
    while (text.size() < 400000) text += unit;
    const auto ids = tokenizer_->Encode(text, {false, true});
    ASSERT_TRUE(ids.ok()) << ids.status();
    if (unit != "\xE2\x96\x81" || golden_["model"] != "llama") {
      EXPECT_TRUE(*tokenizer_->Decode(*ids) == text) << absl::CHexEscape(std::string(unit));
    }
  }
}

TEST_P(GoldenTokenizer, IdsOutsideTheVocabulary) {
  for (const int32_t id : {-1, static_cast<int32_t>(tokenizer_->size()), INT32_MAX, INT32_MIN}) {
    EXPECT_EQ(tokenizer_->Piece(id).status().code(), absl::StatusCode::kInvalidArgument);
    EXPECT_FALSE(tokenizer_->Decode(std::vector<int32_t>{0, id}).ok());
    EXPECT_FALSE(StreamDecoder(*tokenizer_).Push(id).ok());
  }
}

TEST_P(GoldenTokenizer, KnowsWhereGenerationEnds) {
  const Vocabulary& v = tokenizer_->vocabulary();
  EXPECT_EQ(v.bos(), golden_["bos"].get<int32_t>());
  EXPECT_EQ(v.eos(), golden_["eos"].get<int32_t>());
  EXPECT_TRUE(v.EndsGeneration(*v.eos()));
  EXPECT_FALSE(v.EndsGeneration(300));
}

INSTANTIATE_TEST_SUITE_P(All, GoldenTokenizer,
                         ::testing::Values("tokenizer_spm", "tokenizer_qwen2",
                                           "tokenizer_llama_bpe", "tokenizer_gpt_2"),
                         [](const auto& golden) { return std::string(golden.param); });

// A SentencePiece-style vocabulary of a few pieces.
GgufBuilder Spm(const std::vector<std::string>& pieces, const std::vector<float>& scores,
                bool bytes = true) {
  std::vector<std::string> tokens = {"<unk>", "<s>", "</s>"};
  std::vector<int32_t> types = {2, 3, 3};
  std::vector<float> all_scores(3);
  for (int i = 0; i < 256 && bytes; ++i) {
    tokens.push_back(absl::StrFormat("<0x%02X>", i));
    types.push_back(6);
    all_scores.push_back(0);
  }
  for (size_t i = 0; i < pieces.size(); ++i) {
    tokens.push_back(pieces[i]);
    types.push_back(1);
    all_scores.push_back(scores[i]);
  }
  GgufBuilder file;
  file.String("tokenizer.ggml.model", "llama").Strings("tokenizer.ggml.tokens", tokens);
  file.Numbers("tokenizer.ggml.token_type", types).Numbers("tokenizer.ggml.scores", all_scores);
  return file;
}

TEST(SpmTokenizer, MergesByScoreThenFromTheLeft) {
  // Of "abc": "bc" scores higher than "ab".
  GgufBuilder file = Spm({"a", "b", "c", "ab", "bc", "aa"}, {-9, -9, -9, -2, -1, -3});
  file.Number<bool>("tokenizer.ggml.add_space_prefix", false);
  const Loaded t = Load(file);
  ASSERT_TRUE(t.tokenizer.ok()) << t.tokenizer.status();
  const int32_t a = 259, c = 261, ab = 262, bc = 263, aa = 264;
  EXPECT_THAT(*t->Encode("abc", {false, false}), ElementsAre(a, bc));
  EXPECT_THAT(*t->Encode("abab", {false, false}), ElementsAre(ab, ab));
  EXPECT_THAT(*t->Encode("aaac", {false, false}), ElementsAre(aa, a, c));
  EXPECT_THAT(*t->Encode("abc", {true, false}), ElementsAre(1, a, bc));
  EXPECT_EQ(*t->Decode(std::vector<int32_t>{1, a, bc, 2}), "abc");
  EXPECT_EQ(*t->Decode(std::vector<int32_t>{1, a, bc, 2}, true), "<s>abc</s>");
}

TEST(SpmTokenizer, UnknownWhereNoByteTokenIs) {
  const Loaded t = Load(Spm({"a"}, {0}, /*bytes=*/false));
  ASSERT_TRUE(t.tokenizer.ok()) << t.tokenizer.status();
  EXPECT_THAT(*t->Encode("a!", {false, false}), ElementsAre(0, 0, 0, 3, 0));
  GgufBuilder none = Spm({"a"}, {0}, /*bytes=*/false);
  none.Number<int32_t>("tokenizer.ggml.unknown_token_id", -1);
  const Loaded strict = Load(none);
  ASSERT_TRUE(strict.tokenizer.ok()) << strict.tokenizer.status();
  EXPECT_THAT(Message(strict->Encode("!").status()), HasSubstr("no token for byte 0xE2"));
}

TEST(SpmTokenizer, RefusesBadVocabularies) {
  const auto kInvalid = absl::StatusCode::kInvalidArgument;
  ExpectRefused(Spm({"a", "b"}, {0, NAN}), kInvalid, "scores entry 260: expected a finite number");
  GgufBuilder few = Spm({"a"}, {0}, false);
  few = GgufBuilder();
  few.String("tokenizer.ggml.model", "llama").Strings("tokenizer.ggml.tokens", {"<unk>", "a", "b"});
  ExpectRefused(few, absl::StatusCode::kNotFound, "'tokenizer.ggml.scores'");
  few.Numbers<float>("tokenizer.ggml.scores", {0, 0});
  ExpectRefused(few, kInvalid, "scores: expected 3 entries, one per token, got 2");
  GgufBuilder types;
  types.String("tokenizer.ggml.model", "llama").Strings("tokenizer.ggml.tokens", {"<unk>", "a"});
  types.Numbers<float>("tokenizer.ggml.scores", {0, 0});
  GgufBuilder short_types = types, bad_type = types, byte = types;
  short_types.Numbers<int32_t>("tokenizer.ggml.token_type", {1});
  ExpectRefused(short_types, kInvalid, "token_type: expected 2 entries");
  bad_type.Numbers<int32_t>("tokenizer.ggml.token_type", {2, 9});
  ExpectRefused(bad_type, kInvalid, "token_type entry 1: expected 1..6, got 9");
  byte.Numbers<int32_t>("tokenizer.ggml.token_type", {2, 6});
  ExpectRefused(byte, kInvalid, "byte token 1");
  for (const char* key : {"bos", "eos", "unknown", "eot", "eom"}) {
    for (const int64_t id : {int64_t{2}, int64_t{1} << 40, int64_t{-7}}) {
      GgufBuilder ids = types;
      ids.Number<int64_t>(absl::StrCat("tokenizer.ggml.", key, "_token_id"), id);
      ExpectRefused(ids, kInvalid,
                    absl::StrCat(key, "_token_id: expected an id in 0..1, got ", id));
    }
  }
  GgufBuilder no_bos = types;
  no_bos.Number<int32_t>("tokenizer.ggml.bos_token_id", -1);
  ExpectRefused(no_bos, kInvalid, "there is no BOS token");
  GgufBuilder no_eos = types;
  no_eos.Number<bool>("tokenizer.ggml.add_eos_token", true);
  ExpectRefused(no_eos, kInvalid, "there is no EOS token");
}

TEST(Vocabulary, RefusesOtherModelsAndNoTokens) {
  GgufBuilder none;
  ExpectRefused(none, absl::StatusCode::kNotFound, "'tokenizer.ggml.model'");
  GgufBuilder other;
  other.String("tokenizer.ggml.model", "bert").Strings("tokenizer.ggml.tokens", {"a"});
  ExpectRefused(other, absl::StatusCode::kUnimplemented, "expected 'llama' or 'gpt2', got 'bert'");
  GgufBuilder missing;
  missing.String("tokenizer.ggml.model", "gpt2");
  ExpectRefused(missing, absl::StatusCode::kNotFound, "'tokenizer.ggml.tokens'");
  GgufBuilder empty;
  empty.String("tokenizer.ggml.model", "gpt2").Strings("tokenizer.ggml.tokens", {});
  ExpectRefused(empty, absl::StatusCode::kInvalidArgument, "expected 1..2^31-1 tokens, got 0");
  GgufBuilder number;
  number.String("tokenizer.ggml.model", "gpt2").Numbers<int32_t>("tokenizer.ggml.tokens", {1});
  ExpectRefused(number, absl::StatusCode::kInvalidArgument, "expected an array of strings");
  GgufBuilder long_special;
  long_special.String("tokenizer.ggml.model", "gpt2");
  long_special.Strings("tokenizer.ggml.tokens", {"a", std::string(513, 'x')});
  long_special.Numbers<int32_t>("tokenizer.ggml.token_type", {1, 3});
  ExpectRefused(long_special, absl::StatusCode::kInvalidArgument, "special token 1");
}

GgufBuilder Bpe(const std::vector<std::string>& tokens, const std::vector<std::string>& merges,
                const std::string& pre = "gpt-2") {
  GgufBuilder file;
  file.String("tokenizer.ggml.model", "gpt2").String("tokenizer.ggml.pre", pre);
  file.Strings("tokenizer.ggml.tokens", tokens).Strings("tokenizer.ggml.merges", merges);
  return file;
}

TEST(BpeTokenizer, RefusesBadMerges) {
  const auto kInvalid = absl::StatusCode::kInvalidArgument;
  const std::vector<std::string> tokens = {"a", "b", "ab"};
  EXPECT_TRUE(Load(Bpe(tokens, {"a b"})).tokenizer.ok());
  ExpectRefused(Bpe(tokens, {"a b", "a x"}), kInvalid,
                "merges entry 1 'a x': the vocabulary has no token 'x'");
  ExpectRefused(Bpe(tokens, {"x b"}), kInvalid, "no token 'x'");
  ExpectRefused(Bpe(tokens, {"b a"}), kInvalid, "no token 'ba'");
  ExpectRefused(Bpe(tokens, {"ab"}), kInvalid, "expected two tokens with a space between");
  ExpectRefused(Bpe(tokens, {""}), kInvalid, "expected two tokens");
  ExpectRefused(Bpe(tokens, {"a "}), kInvalid, "expected two tokens");
  // A merge of a token with itself that yields nothing new.
  ExpectRefused(Bpe(tokens, {"a a"}), kInvalid, "no token 'aa'");
  GgufBuilder none;
  none.String("tokenizer.ggml.model", "gpt2").Strings("tokenizer.ggml.tokens", tokens);
  ExpectRefused(none, absl::StatusCode::kNotFound, "'tokenizer.ggml.merges'");
  ExpectRefused(Bpe(tokens, {}, "klingon"), absl::StatusCode::kUnimplemented,
                "expected one of gpt-2, llama-bpe");
}

TEST(BpeTokenizer, MissingBytes) {
  const Loaded strict = Load(Bpe({"a", "b", "ab"}, {"a b"}));
  ASSERT_TRUE(strict.tokenizer.ok()) << strict.tokenizer.status();
  EXPECT_THAT(*strict->Encode("abba"), ElementsAre(2, 1, 0));
  EXPECT_THAT(Message(strict->Encode("abc").status()), HasSubstr("no token for byte 0x63"));
  GgufBuilder file = Bpe({"a", "b", "ab"}, {"a b"});
  file.Number<uint32_t>("tokenizer.ggml.unknown_token_id", 1);
  EXPECT_THAT(*Load(file)->Encode("abc"), ElementsAre(2, 1));
}

TEST(Vocabulary, SplitPrefersLongerSpecialTokens) {
  GgufBuilder file = Bpe({"a", "b", "<x>", "<x><y>", "y><", "<c>"}, {});
  file.Numbers<int32_t>("tokenizer.ggml.token_type", {1, 1, 4, 4, 4, 3});
  const Loaded t = Load(file);
  ASSERT_TRUE(t.tokenizer.ok()) << t.tokenizer.status();
  EXPECT_THAT(*t->Encode("a<x><y>b<x>a"), ElementsAre(0, 3, 1, 2, 0));
  // "y><" would overlap the longer "<x><y>".
  EXPECT_THAT(*t->Encode("<x><y><c>"), ElementsAre(3, 5));
  EXPECT_THAT(Message(t->Encode("<c>", {true, false}).status()), HasSubstr("byte 0x3C"));
}

std::vector<std::string> Words(const std::string& name, const std::string& text) {
  std::vector<std::string> words;
  const auto pretokenizer = PreTokenizer::Create(name);
  EXPECT_TRUE(pretokenizer.ok()) << pretokenizer.status();
  EXPECT_TRUE(
      (*pretokenizer)->Split(text, [&](std::string_view word) { words.emplace_back(word); }).ok());
  return words;
}

TEST(PreTokenizer, Words) {
  EXPECT_THAT(Words("gpt-2", "I'll  go 123x!!\n\n a"),
              ElementsAre("I", "'ll", " ", " go", " 123", "x", "!!", "\n\n", " a"));
  EXPECT_THAT(Words("qwen2", "I'LL 123\r\n  x"),
              ElementsAre("I", "'LL", " ", "1", "2", "3", "\r\n", " ", " x"));
  EXPECT_THAT(Words("llama-bpe", "1234567 x"), ElementsAre("123", "456", "7", " x"));
  EXPECT_THAT(Words("smollm", "a 123 b"), ElementsAre("a", " ", "1", "2", "3", " b"));
  EXPECT_THAT(Words("default", "ab1234+c"), ElementsAre("ab", "123", "4", "+", "c"));
  EXPECT_THAT(Words("gpt-2",
                    "a\xFF\xFE"
                    "b"),
              ElementsAre("a", "\xFF\xFE", "b"));
}

TEST(StreamDecoder, HoldsBackAndReplaces) {
  const Loaded t = Load(Spm({"a"}, {0}));
  ASSERT_TRUE(t.tokenizer.ok()) << t.tokenizer.status();
  const auto byte = [](int value) { return value + 3; };
  StreamDecoder stream(**t.tokenizer);
  // U+1F600 in four tokens.
  EXPECT_EQ(*stream.Push(byte(0xF0)), "");
  EXPECT_EQ(*stream.Push(byte(0x9F)), "");
  EXPECT_EQ(*stream.Push(byte(0x98)), "");
  EXPECT_EQ(*stream.Push(byte(0x80)), "\xF0\x9F\x98\x80");
  // An incomplete character cut short by a letter, then one cut short by the end.
  EXPECT_EQ(*stream.Push(byte(0xE2)), "");
  EXPECT_EQ(*stream.Push(259),
            "\xEF\xBF\xBD"
            "a");
  EXPECT_EQ(*stream.Push(byte(0xFF)), "\xEF\xBF\xBD");
  EXPECT_EQ(*stream.Push(byte(0xC3)), "");
  EXPECT_EQ(stream.Finish(), "\xEF\xBF\xBD");
  EXPECT_EQ(stream.Finish(), "");
}

TEST(Utf8, Sequences) {
  const auto valid = [](std::string_view text) {
    const Utf8Sequence s = FirstUtf8Sequence(text);
    return s.valid && s.length == static_cast<int>(text.size());
  };
  for (const std::string_view text :
       {"a", "\xC2\x80", "\xDF\xBF", "\xE0\xA0\x80", "\xED\x9F\xBF", "\xEE\x80\x80", "\xEF\xBF\xBF",
        "\xF0\x90\x80\x80", "\xF4\x8F\xBF\xBF"}) {
    EXPECT_TRUE(valid(text)) << absl::CHexEscape(std::string(text));
    for (size_t i = 1; i < text.size(); ++i) {
      EXPECT_TRUE(FirstUtf8Sequence(text.substr(0, i)).incomplete);
    }
  }
  for (const std::string_view text :
       {"\x80", "\xBF", "\xC0\x80", "\xC1\xBF", "\xE0\x9F\xBF", "\xED\xA0\x80", "\xF0\x8F\xBF\xBF",
        "\xF4\x90\x80\x80", "\xF5\x80\x80\x80", "\xFF", "\xC3\x28", "\xE2\x28\xA1",
        "\xE2\x82\x28"}) {
    const Utf8Sequence s = FirstUtf8Sequence(text);
    EXPECT_TRUE(!s.valid && !s.incomplete && s.length >= 1) << absl::CHexEscape(std::string(text));
  }
}

}  // namespace
}  // namespace tandem
