// The GGUF reader: what it reads, and that no damaged or hostile file gets through.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmath>
#include <fstream>
#include <limits>

#include "core/status.h"
#include "model/gguf.h"
#include "tests/gguf_builder.h"

namespace tandem {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr uint32_t kF32 = 0, kF16 = 1, kQ4_0 = 2, kQ8_0 = 8, kQ3K = 11, kQ4K = 12,
                   kUnknownType = 77;

// A small valid file with every kind of value.
GgufBuilder Valid() {
  GgufBuilder file;
  file.String("general.architecture", "llama");
  file.Number<uint8_t>("u8", 200).Number<int8_t>("i8", -5).Number<uint16_t>("u16", 60000);
  file.Number<int16_t>("i16", -300).Number<uint32_t>("u32", 4000000000u);
  file.Number<int32_t>("i32", -70000).Number<uint64_t>("u64", uint64_t{1} << 40);
  file.Number<int64_t>("i64", -(int64_t{1} << 40)).Number<float>("f32", 0.5f);
  file.Number<double>("f64", -0.25).Number<bool>("yes", true).Number<bool>("no", false);
  file.Strings("words", {"a", "", "ccc"}).Numbers<float>("floats", {1.0f, -2.0f});
  file.Numbers<int32_t>("ints", {3, -4, 5}).Strings("none", {});
  file.TensorF32("one", {3, 2}, {1, 2, 3, 4, 5, 6});
  file.Tensor("half", {4}, kF16, std::vector<std::byte>(8));
  file.Tensor("quant", {32, 2}, kQ8_0, std::vector<std::byte>(68));
  file.Tensor("k_quant", {256}, kQ4K, std::vector<std::byte>(144));
  file.Tensor("q3_k", {256}, kQ3K, std::vector<std::byte>(110));
  return file;
}

// The builder's bytes must outlive the file: kept together.
struct Opened {
  std::vector<std::byte> bytes;
  absl::StatusOr<std::shared_ptr<const GgufFile>> file;
  const GgufFile* operator->() const { return file->get(); }
};

Opened Open(std::vector<std::byte> bytes) {
  Opened opened{std::move(bytes), absl::UnknownError("not opened")};
  opened.file = GgufFile::FromMemory(opened.bytes, "test.gguf");
  return opened;
}

absl::Status Refusal(const GgufBuilder& builder) { return Open(builder.Build()).file.status(); }

void ExpectInvalid(const absl::Status& status, const std::string& text) {
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
  EXPECT_THAT(Message(status), AllOf(HasSubstr("test.gguf"), HasSubstr(text)));
}

void ExpectDataLoss(const absl::Status& status, const std::string& text) {
  EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss) << status;
  EXPECT_THAT(Message(status), AllOf(HasSubstr("test.gguf"), HasSubstr(text)));
}

std::vector<std::byte> Payload(const ByteWriter& writer) { return writer.bytes(); }

TEST(Gguf, ReadsEveryKindOfValue) {
  const Opened file = Open(Valid().Build());
  ASSERT_TRUE(file.file.ok()) << file.file.status();
  EXPECT_EQ(file->version(), 3u);
  EXPECT_EQ(*file->String("general.architecture"), "llama");
  EXPECT_EQ(*file->Int("u8"), 200);
  EXPECT_EQ(*file->Int("i8"), -5);
  EXPECT_EQ(*file->Int("u16"), 60000);
  EXPECT_EQ(*file->Int("i16"), -300);
  EXPECT_EQ(*file->Int("u32"), 4000000000);
  EXPECT_EQ(*file->Int("i32"), -70000);
  EXPECT_EQ(*file->Int("u64"), int64_t{1} << 40);
  EXPECT_EQ(*file->Int("i64"), -(int64_t{1} << 40));
  EXPECT_EQ(*file->Float("f32"), 0.5);
  EXPECT_EQ(*file->Float("f64"), -0.25);
  EXPECT_EQ(*file->Float("u8"), 200.0);
  EXPECT_TRUE(*file->Bool("yes", false));
  EXPECT_FALSE(*file->Bool("no", true));
  EXPECT_THAT(*file->Strings("words"), ElementsAre("a", "", "ccc"));
  EXPECT_THAT(*file->Strings("none"), ElementsAre());
  EXPECT_THAT(*file->Floats("floats"), ElementsAre(1.0f, -2.0f));
  EXPECT_THAT(*file->Ints("ints"), ElementsAre(3, -4, 5));
}

TEST(Gguf, ReadsTensors) {
  const Opened file = Open(Valid().Build());
  ASSERT_TRUE(file.file.ok()) << file.file.status();
  const TensorView one = *file->Tensor("one", {2, 3});
  EXPECT_EQ(one.dtype, DType::kF32);
  for (int i = 0; i < 6; ++i) EXPECT_EQ(one.As<float>()[i], static_cast<float>(i + 1));
  EXPECT_EQ(file->Tensor("half")->dtype, DType::kF16);
  EXPECT_EQ(file->Tensor("quant")->dtype, DType::kQ8_0);
  EXPECT_EQ(file->Tensor("quant")->shape, (Shape{2, 32}));
  // Listed, but refused when used.
  const auto k_quant = file->Tensor("k_quant", {256});
  ASSERT_TRUE(k_quant.ok()) << k_quant.status();
  EXPECT_EQ(k_quant->dtype, DType::kQ4_K);
  ASSERT_NE(file->FindTensor("q3_k"), nullptr);
  EXPECT_EQ(GgufTensorTypeName(file->FindTensor("q3_k")->type), "Q3_K");
  const absl::Status q3_k = file->Tensor("q3_k").status();
  EXPECT_EQ(q3_k.code(), absl::StatusCode::kUnimplemented);
  EXPECT_THAT(Message(q3_k), AllOf(HasSubstr("'q3_k'"), HasSubstr("Q3_K")));
}

TEST(Gguf, ReadsVersion2AndOtherAlignments) {
  GgufBuilder old = Valid();
  old.version = 2;
  EXPECT_TRUE(Refusal(old).ok());
  GgufBuilder wide;
  wide.alignment = 256;
  wide.Number<uint32_t>("general.alignment", 256);
  wide.TensorF32("a", {1}, {1}).TensorF32("b", {1}, {2});
  const Opened file = Open(wide.Build());
  ASSERT_TRUE(file.file.ok()) << file.file.status();
  EXPECT_EQ(file->Tensor("b")->As<float>()[0], 2.0f);
}

TEST(Gguf, GettersNameWhatIsMissingOrWrong) {
  const Opened file = Open(Valid().Build());
  ASSERT_TRUE(file.file.ok()) << file.file.status();
  EXPECT_EQ(file->Int("absent").status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(Message(file->Int("absent").status()), HasSubstr("'absent'"));
  EXPECT_EQ(*file->Int("absent", 7), 7);
  EXPECT_EQ(*file->Float("absent", 0.5), 0.5);
  EXPECT_EQ(*file->String("absent", "x"), "x");
  ExpectInvalid(file->Int("f32").status(), "'f32': expected an integer");
  ExpectInvalid(file->Int("ints").status(), "got array of 3 int32");
  ExpectInvalid(file->Int("f32", 7).status(), "'f32'");
  ExpectInvalid(file->Float("words").status(), "expected a number");
  ExpectInvalid(file->Bool("u8", false).status(), "expected a bool, got uint8");
  ExpectInvalid(file->String("u8").status(), "expected a string, got uint8");
  ExpectInvalid(file->Strings("general.architecture").status(), "expected an array of strings");
  ExpectInvalid(file->Floats("ints").status(), "expected an array of floats");
  ExpectInvalid(file->Ints("words").status(), "expected an array of integers");
  EXPECT_EQ(file->Tensor("absent").status().code(), absl::StatusCode::kNotFound);
  ExpectInvalid(file->Tensor("one", {3, 2}).status(), "expected shape [3, 2]");
}

TEST(Gguf, NumbersThatDoNotFit) {
  GgufBuilder builder;
  builder.Number<uint64_t>("big", std::numeric_limits<uint64_t>::max());
  builder.Number<float>("nan", NAN).Number<double>("inf", INFINITY);
  const Opened file = Open(builder.Build());
  ASSERT_TRUE(file.file.ok()) << file.file.status();
  ExpectInvalid(file->Int("big").status(), "'big'");
  ExpectInvalid(file->Float("nan").status(), "expected a finite number");
  ExpectInvalid(file->Float("inf").status(), "expected a finite number");
}

// Every prefix of a valid file fails cleanly: nothing beyond its end is read (the sanitizer build
// watches), nothing is accepted but the whole.
TEST(Gguf, EveryTruncation) {
  const std::vector<std::byte> whole = Valid().Build();
  for (size_t size = 0; size < whole.size(); ++size) {
    const Opened part = Open({whole.begin(), whole.begin() + static_cast<std::ptrdiff_t>(size)});
    ASSERT_FALSE(part.file.ok()) << "prefix of " << size << " of " << whole.size() << " bytes";
    EXPECT_THAT(Message(part.file.status()), HasSubstr("test.gguf"));
  }
  EXPECT_TRUE(Open(whole).file.ok());
}

// Single damaged bytes anywhere either leave a file that can be walked or give an error.
TEST(Gguf, EveryDamagedByte) {
  const std::vector<std::byte> whole = Valid().Build();
  for (size_t i = 0; i < whole.size(); ++i) {
    for (const int value : {0x00, 0x01, 0x7F, 0x80, 0xFF}) {
      std::vector<std::byte> damaged = whole;
      damaged[i] = static_cast<std::byte>(value);
      const Opened file = Open(std::move(damaged));
      if (!file.file.ok()) continue;
      for (const GgufValue& pair : file->metadata()) {
        (void)file->Int(pair.key);
        (void)file->Float(pair.key);
        (void)file->Strings(pair.key);
        (void)file->Floats(pair.key);
        (void)file->Ints(pair.key);
      }
      int64_t sum = 0;
      for (const GgufTensor& tensor : file->tensors()) {
        if (!file->Tensor(tensor.name).ok()) continue;
        for (const std::byte byte : tensor.data) sum += std::to_integer<int>(byte);
      }
      EXPECT_GE(sum, 0);
    }
  }
}

TEST(Gguf, BadHeader) {
  GgufBuilder file = Valid();
  file.magic = "GGML";
  ExpectInvalid(Refusal(file), "not a GGUF file");
  file = Valid();
  file.version = 1;
  ExpectInvalid(Refusal(file), "version: expected 2 or 3, got 1");
  file.version = 4;
  ExpectInvalid(Refusal(file), "got 4");
  file.version = 0x03000000;
  ExpectInvalid(Refusal(file), "big-endian");
}

TEST(Gguf, HugeCounts) {
  for (const uint64_t count : {uint64_t{1} << 20, uint64_t{1} << 40, uint64_t{1} << 63,
                               std::numeric_limits<uint64_t>::max()}) {
    GgufBuilder pairs = Valid();
    pairs.pair_count = count;
    ExpectInvalid(Refusal(pairs), "metadata count");
    GgufBuilder tensors = Valid();
    tensors.tensor_count = count;
    ExpectInvalid(Refusal(tensors), "tensor count");

    ByteWriter text;
    text.Put(count);
    GgufBuilder string;
    string.RawPair("key", static_cast<uint32_t>(GgufType::kString), Payload(text));
    ExpectDataLoss(Refusal(string), "'key'");

    for (const GgufType type : {GgufType::kString, GgufType::kU8, GgufType::kF64}) {
      ByteWriter array;
      array.Put(static_cast<uint32_t>(type)).Put(count).Put(uint64_t{0});
      GgufBuilder builder;
      builder.RawPair("key", static_cast<uint32_t>(GgufType::kArray), Payload(array));
      ExpectDataLoss(Refusal(builder), "'key'");
    }
  }
  // One pair more than there is.
  GgufBuilder one_more = Valid();
  one_more.pair_count = 18;
  EXPECT_FALSE(Refusal(one_more).ok());
}

TEST(Gguf, BadKeysAndTypes) {
  GgufBuilder empty;
  empty.Number<uint32_t>("", 1);
  ExpectInvalid(Refusal(empty), "the key is empty");
  GgufBuilder longest;
  longest.Number<uint32_t>(std::string(65536, 'k'), 1);
  ExpectInvalid(Refusal(longest), "at most 65535 bytes");
  GgufBuilder twice;
  twice.Number<uint32_t>("key", 1).String("key", "two");
  ExpectInvalid(Refusal(twice), "'key': occurs twice");
  for (const uint32_t type : {13u, 77u, 0xFFFFFFFFu}) {
    GgufBuilder unknown;
    unknown.RawPair("key", type, std::vector<std::byte>(64));
    ExpectInvalid(Refusal(unknown), absl::StrCat("unknown value type ", type));
    ByteWriter array;
    array.Put(type).Put(uint64_t{0});
    GgufBuilder elements;
    elements.RawPair("key", static_cast<uint32_t>(GgufType::kArray), Payload(array));
    ExpectInvalid(Refusal(elements), absl::StrCat("unknown array element type ", type));
  }
  GgufBuilder boolean;
  boolean.RawPair("key", static_cast<uint32_t>(GgufType::kBool),
                  std::vector<std::byte>(1, std::byte{2}));
  ExpectInvalid(Refusal(boolean), "expected a bool 0 or 1, got 2");
}

TEST(Gguf, NestedArrays) {
  // A million nested array headers: refused at the first, without recursion.
  ByteWriter nested;
  for (int i = 0; i < 1000000; ++i) {
    nested.Put(static_cast<uint32_t>(GgufType::kArray)).Put(uint64_t{1});
  }
  GgufBuilder builder;
  builder.RawPair("key", static_cast<uint32_t>(GgufType::kArray), Payload(nested));
  ExpectInvalid(Refusal(builder), "nested arrays are not supported");
}

TEST(Gguf, BadAlignment) {
  for (const uint32_t alignment : {0u, 1u, 4u, 24u, 33u, 1u << 21, 0xFFFFFFFFu}) {
    GgufBuilder builder;
    builder.Number<uint32_t>("general.alignment", alignment).TensorF32("a", {1}, {1});
    ExpectInvalid(Refusal(builder), "'general.alignment': expected a power of two");
  }
  GgufBuilder text;
  text.String("general.alignment", "32");
  ExpectInvalid(Refusal(text), "'general.alignment': expected an integer");
}

TEST(Gguf, BadTensorShapes) {
  const std::vector<float> data(64);
  GgufBuilder none;
  none.TensorF32("a", {}, data);
  ExpectInvalid(Refusal(none), "'a': expected 1..4 dimensions, got 0");
  GgufBuilder five;
  five.TensorF32("a", {1, 1, 1, 1, 1}, data);
  ExpectInvalid(Refusal(five), "got 5");
  GgufBuilder zero;
  zero.TensorF32("a", {4, 0, 4}, data);
  ExpectInvalid(Refusal(zero), "'a' dimension 1");
  GgufBuilder negative;
  negative.TensorF32("a", {std::numeric_limits<uint64_t>::max()}, data);
  ExpectInvalid(Refusal(negative), "'a' dimension 0");
  GgufBuilder product;
  product.TensorF32("a", {uint64_t{1} << 32, uint64_t{1} << 32}, data);
  ExpectInvalid(Refusal(product), "overflows 64 bits");
  GgufBuilder bytes;  // fits in elements, not in bytes
  bytes.TensorF32("a", {uint64_t{1} << 62}, data);
  ExpectDataLoss(Refusal(bytes), "more than 2^63 bytes");
  GgufBuilder block;
  block.Tensor("a", {33}, kQ4_0, std::vector<std::byte>(64));
  ExpectInvalid(Refusal(block), "expected a multiple of 32 for Q4_0, got 33");
}

TEST(Gguf, BadTensorOffsets) {
  GgufBuilder odd;
  odd.TensorF32("a", {1}, std::vector<float>(16), 4);
  ExpectInvalid(Refusal(odd), "multiple of the alignment 32, got 4");
  for (const uint64_t offset : {uint64_t{64}, uint64_t{1} << 40, uint64_t{0} - 32}) {
    GgufBuilder beyond;
    beyond.TensorF32("a", {1}, std::vector<float>(8), offset);
    EXPECT_FALSE(Refusal(beyond).ok()) << offset;
  }
  GgufBuilder too_long;
  too_long.TensorF32("a", {9}, std::vector<float>(8));
  ExpectDataLoss(Refusal(too_long), "needs 36 bytes at offset 0, but 32 are left");
  GgufBuilder overlap;
  overlap.TensorF32("a", {16}, std::vector<float>(16)).TensorF32("b", {4}, {1, 2, 3, 4}, 32);
  ExpectInvalid(Refusal(overlap), "'b' overlaps tensor 'a'");
  GgufBuilder same;
  same.TensorF32("a", {4}, {1, 2, 3, 4}).TensorF32("b", {4}, {1, 2, 3, 4}, 0);
  ExpectInvalid(Refusal(same), "overlaps");
}

TEST(Gguf, BadTensorNames) {
  GgufBuilder twice;
  twice.TensorF32("a", {1}, {1}).TensorF32("a", {1}, {1});
  ExpectInvalid(Refusal(twice), "tensor 'a': occurs twice");
  GgufBuilder empty;
  empty.TensorF32("", {1}, {1});
  ExpectInvalid(Refusal(empty), "the name is empty");
  GgufBuilder long_name;
  long_name.TensorF32(std::string(256, 'n'), {1}, {1});
  ExpectInvalid(Refusal(long_name), "at most 255 bytes");
  // Control characters do not reach the terminal.
  GgufBuilder escape;
  escape.TensorF32("\x1b[31m", {0}, {1});
  EXPECT_THAT(Message(Refusal(escape)), AllOf(HasSubstr("\\x1b"), Not(HasSubstr("\x1b"))));
}

TEST(Gguf, UnknownTensorTypeIsListedButNotUsable) {
  GgufBuilder builder;
  builder.Tensor("a", {7}, kUnknownType, std::vector<std::byte>(32));
  const Opened file = Open(builder.Build());
  ASSERT_TRUE(file.file.ok()) << file.file.status();
  ASSERT_EQ(file->tensors().size(), 1u);
  EXPECT_EQ(file->Tensor("a").status().code(), absl::StatusCode::kUnimplemented);
  EXPECT_THAT(Message(file->Tensor("a").status()), HasSubstr("type 77"));
}

// A million empty strings, then a million pairs: linear time, memory within a small multiple of the
// file.
TEST(Gguf, ManySmallThings) {
  GgufBuilder builder;
  builder.Strings("words", std::vector<std::string>(1000000));
  for (int i = 0; i < 100000; ++i) builder.Number<uint8_t>(absl::StrCat("k", i), 1);
  const Opened file = Open(builder.Build());
  ASSERT_TRUE(file.file.ok()) << file.file.status();
  EXPECT_EQ(file->Strings("words")->size(), 1000000u);
  EXPECT_EQ(file->metadata().size(), 100001u);
}

TEST(Gguf, OpensFilesAndRefusesWhatIsNone) {
  const std::string folder = ::testing::TempDir();
  const std::string path = folder + "/model_gguf_test.gguf";
  const std::vector<std::byte> bytes = Valid().Build();
  std::ofstream(path, std::ios::binary)
      .write(reinterpret_cast<const char*>(bytes.data()),
             static_cast<std::streamsize>(bytes.size()));
  {
    const auto file = GgufFile::Open(path);
    ASSERT_TRUE(file.ok()) << file.status();
    EXPECT_EQ((*file)->Tensor("one")->As<float>()[5], 6.0f);
    EXPECT_EQ((*file)->bytes(), static_cast<int64_t>(bytes.size()));
  }
  std::ofstream(path, std::ios::trunc).close();
  EXPECT_EQ(GgufFile::Open(path).status().code(), absl::StatusCode::kDataLoss);
  unlink(path.c_str());
  EXPECT_EQ(GgufFile::Open(path).status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(Message(GgufFile::Open(path).status()), HasSubstr(path));
  EXPECT_EQ(GgufFile::Open(folder).status().code(), absl::StatusCode::kInvalidArgument);
  const std::string pipe = folder + "/model_gguf_test.pipe";
  unlink(pipe.c_str());
  ASSERT_EQ(mkfifo(pipe.c_str(), 0600), 0);
  EXPECT_EQ(GgufFile::Open(pipe).status().code(), absl::StatusCode::kInvalidArgument);
  unlink(pipe.c_str());
}

}  // namespace
}  // namespace tandem
