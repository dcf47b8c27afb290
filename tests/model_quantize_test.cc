// Quantised files: types, bytes, metadata, fallbacks, and errors that leave nothing behind.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <limits>
#include <map>

#include "core/status.h"
#include "model/quantize.h"
#include "tests/cases/random.h"
#include "tests/gguf_builder.h"
#include "tests/reference/elements.h"
#include "tests/reference/quantize.h"

namespace tandem {
namespace {

using ::testing::HasSubstr;
using ::testing::IsEmpty;

constexpr uint32_t kF32 = 0, kF16 = 1, kI32 = 26, kBF16 = 30;

std::vector<float> Normals(size_t count, uint64_t seed) {
  cases::Rng rng(seed);
  std::vector<float> x(count);
  for (float& v : x) v = static_cast<float>(0.02 * rng.Normal());
  return x;
}

// The numbers in a file's type.
std::vector<std::byte> Stored(uint32_t type, const std::vector<float>& x) {
  std::vector<std::byte> bytes;
  const auto put = [&](auto value) {
    const auto* from = reinterpret_cast<const std::byte*>(&value);
    bytes.insert(bytes.end(), from, from + sizeof(value));
  };
  for (float v : x) {
    if (type == kF32) put(v);
    if (type == kF16) put(ToF16(v).bits);
    if (type == kBF16) put(ToBF16(v).bits);
  }
  return bytes;
}

GgufBuilder Model() {
  GgufBuilder file;
  file.String("general.architecture", "llama").Number<uint32_t>("general.file_type", 1);
  file.Strings("tokenizer.ggml.tokens", {"a", "b"});
  file.Tensor("token_embd.weight", {512, 5}, kF16, Stored(kF16, Normals(5 * 512, 1)));
  file.Tensor("blk.0.attn_norm.weight", {512}, kF16, Stored(kF16, Normals(512, 2)));
  file.Tensor("blk.0.attn_q.weight", {512, 3}, kF32, Stored(kF32, Normals(3 * 512, 3)));
  file.Tensor("blk.0.attn_v.weight", {256, 7}, kBF16, Stored(kBF16, Normals(7 * 256, 4)));
  file.Tensor("blk.0.ffn_up.weight", {96, 4}, kF32, Stored(kF32, Normals(4 * 96, 5)));
  file.Tensor("blk.0.ffn_down.weight", {40, 2}, kF32, Stored(kF32, Normals(2 * 40, 6)));
  file.Tensor("blk.0.ffn_gate_inp.weight", {256, 2}, kF16, Stored(kF16, Normals(2 * 256, 7)));
  file.Tensor("blk.0.exps.weight", {256, 2, 3}, kF32, Stored(kF32, Normals(6 * 256, 8)));
  file.Tensor("output.weight", {512, 5}, kF32, Stored(kF32, Normals(5 * 512, 9)));
  file.Tensor("positions", {3}, kI32, std::vector<std::byte>(12, std::byte{7}));
  return file;
}

class QuantizeTest : public ::testing::Test {
 protected:
  QuantizeTest()
      : folder_(std::filesystem::path(::testing::TempDir()) /
                ::testing::UnitTest::GetInstance()->current_test_info()->name()) {
    std::filesystem::remove_all(folder_);
    std::filesystem::create_directories(folder_);
    path_ = (folder_ / "out.gguf").string();
  }
  ~QuantizeTest() override { std::filesystem::remove_all(folder_); }

  absl::StatusOr<QuantizeStats> Quantize(const GgufFile& in, const QuantizeOptions& options,
                                         int threads = 2) {
    ContextOptions context_options;
    context_options.threads = threads;
    auto context = Context::Create(context_options);
    EXPECT_TRUE(context.ok()) << context.status();
    return QuantizeGguf(**context, in, path_, options);
  }

  // Quantises a file that must be refused; the message. Nothing may be left behind.
  std::string Refusal(const GgufBuilder& builder, const QuantizeOptions& options) {
    const std::vector<std::byte> bytes = builder.Build();
    const auto in = GgufFile::FromMemory(bytes, "in");
    EXPECT_TRUE(in.ok()) << in.status();
    const auto stats = Quantize(**in, options);
    EXPECT_FALSE(stats.ok());
    EXPECT_THAT(Files(), IsEmpty());
    return Message(stats.status());
  }

  std::vector<std::string> Files() const {
    std::vector<std::string> names;
    for (const auto& entry : std::filesystem::directory_iterator(folder_)) {
      names.push_back(entry.path().filename().string());
    }
    return names;
  }

  std::filesystem::path folder_;
  std::string path_;
};

// The bytes that a tensor of `in` must have in a type.
std::vector<std::byte> Expected(const GgufFile& in, const GgufTensor& tensor, DType to) {
  TensorView view = *in.Tensor(tensor.name);
  const int64_t columns = view.dim(-1);
  std::vector<double> values = reference::ReadAll(view);
  std::vector<float> floats(values.begin(), values.end());
  const auto rows = static_cast<int64_t>(floats.size()) / columns;
  const TensorView f32 = MakeView(floats.data(), DType::kF32, {rows, columns});
  if (IsBlockQuantized(to)) return reference::QuantizedBytes(f32, to);
  return Stored(to == DType::kF32 ? kF32 : (to == DType::kF16 ? kF16 : kBF16), floats);
}

TEST_F(QuantizeTest, EveryTypeGivesTheReferenceBytes) {
  const std::vector<std::byte> bytes = Model().Build();
  const auto in = GgufFile::FromMemory(bytes, "in");
  ASSERT_TRUE(in.ok()) << in.status();
  const std::map<DType, int64_t> file_types = {
      {DType::kQ8_0, 7},  {DType::kQ4_0, 2},  {DType::kQ4_K, 15},
      {DType::kQ5_K, 17}, {DType::kQ6_K, 18}, {DType::kTQ2_0, 37},
      {DType::kF16, 1},   {DType::kBF16, 32}, {DType::kF32, 0}};
  for (const auto& [type, file_type] : file_types) {
    SCOPED_TRACE(std::string(Name(type)));
    std::map<std::string, DType> types;
    for (const char* name : {"token_embd.weight", "blk.0.attn_q.weight", "blk.0.attn_v.weight",
                             "blk.0.exps.weight", "output.weight"}) {
      types[name] = type;
    }
    for (const char* name : {"blk.0.attn_norm.weight", "blk.0.ffn_gate_inp.weight"}) {
      types[name] = DType::kF32;
    }
    // Rows of 96 and 40: no blocks of 256; no blocks of 32.
    types["blk.0.ffn_up.weight"] = BlockLength(type) == 256 ? DType::kQ8_0 : type;
    types["blk.0.ffn_down.weight"] = IsBlockQuantized(type) ? DType::kF16 : type;

    QuantizeOptions options;
    options.type = type;
    std::vector<std::string> fallbacks;
    int64_t done = 0, total = -1;
    options.on_tensor = [&](const QuantizedTensor& t) {
      if (!t.fallback.empty()) fallbacks.push_back(std::string(t.name) + ": " + t.fallback);
    };
    options.on_progress = [&](int64_t bytes_done, int64_t all) { done = bytes_done, total = all; };
    const auto stats = Quantize(**in, options);
    ASSERT_TRUE(stats.ok()) << stats.status();
    EXPECT_THAT(Files(), ::testing::ElementsAre("out.gguf"));
    EXPECT_EQ(stats->output_bytes, static_cast<int64_t>(std::filesystem::file_size(path_)));
    EXPECT_EQ(total, stats->output_bytes);
    EXPECT_GT(done, 0);
    EXPECT_LE(done, total);
    const size_t expected_fallbacks =
        BlockLength(type) == 256 ? 2u : (IsBlockQuantized(type) ? 1u : 0u);
    EXPECT_EQ(fallbacks.size(), expected_fallbacks);
    if (type == DType::kQ4_K) {
      EXPECT_THAT(fallbacks[0],
                  HasSubstr("ffn_up.weight: rows of 96 are not whole blocks of q4_k"));
    }

    const auto out = GgufFile::Open(path_);
    ASSERT_TRUE(out.ok()) << out.status();
    EXPECT_EQ(*(*out)->Int("general.file_type"), file_type);
    EXPECT_EQ(*(*out)->Int("general.quantization_version", 0), IsBlockQuantized(type) ? 2 : 0);
    EXPECT_EQ((*(*out)->Strings("tokenizer.ggml.tokens")).size(), 2u);
    ASSERT_EQ((*out)->tensors().size(), (*in)->tensors().size());
    for (size_t i = 0; i < (*in)->tensors().size(); ++i) {
      const GgufTensor& from = (*in)->tensors()[i];
      const GgufTensor& to = (*out)->tensors()[i];
      SCOPED_TRACE(std::string(from.name));
      EXPECT_EQ(to.name, from.name);
      EXPECT_EQ(to.shape, from.shape);
      const std::vector<std::byte> got(to.data.begin(), to.data.end());
      if (from.type == kI32) {
        EXPECT_EQ(to.type, kI32);
        EXPECT_EQ(got, std::vector<std::byte>(from.data.begin(), from.data.end()));
        continue;
      }
      const DType wanted = types.at(std::string(from.name));
      ASSERT_TRUE((*out)->Tensor(to.name).ok());
      EXPECT_EQ(Name((*out)->Tensor(to.name)->dtype), Name(wanted));
      EXPECT_EQ(got, Expected(**in, from, wanted));
    }
  }
}

TEST_F(QuantizeTest, TypesOfSingleTensors) {
  const std::vector<std::byte> bytes = Model().Build();
  const auto in = GgufFile::FromMemory(bytes, "in");
  ASSERT_TRUE(in.ok());
  QuantizeOptions options;
  options.type = DType::kQ4_K;
  options.output_type = DType::kQ6_K;
  options.keep_embeddings = true;
  options.tensor_types = {{"attn", DType::kQ5_K}, {"attn_v", DType::kQ8_0}};
  ASSERT_TRUE(Quantize(**in, options).ok());
  const auto out = GgufFile::Open(path_);
  ASSERT_TRUE(out.ok());
  EXPECT_EQ((*out)->Tensor("token_embd.weight")->dtype, DType::kF16);
  EXPECT_EQ((*out)->Tensor("output.weight")->dtype, DType::kQ6_K);
  EXPECT_EQ((*out)->Tensor("blk.0.attn_q.weight")->dtype, DType::kQ5_K);
  EXPECT_EQ((*out)->Tensor("blk.0.attn_v.weight")->dtype, DType::kQ8_0);
  EXPECT_EQ((*out)->Tensor("blk.0.attn_norm.weight")->dtype, DType::kF32);
  EXPECT_EQ((*out)->Tensor("blk.0.exps.weight")->dtype, DType::kQ4_K);
  options.tensor_types = {{"attn_norm", DType::kQ5_K}};
  EXPECT_THAT(Message(Quantize(**in, options).status()),
              HasSubstr("tensor_types 'attn_norm': no matrix has such a name"));
}

TEST_F(QuantizeTest, TheOutputTypeOfATiedModelIsThatOfItsEmbedding) {
  GgufBuilder file;
  file.Tensor("token_embd.weight", {256, 2}, kF32, Stored(kF32, Normals(512, 1)));
  const std::vector<std::byte> bytes = file.Build();
  const auto in = GgufFile::FromMemory(bytes, "in");
  ASSERT_TRUE(in.ok());
  QuantizeOptions options;
  options.output_type = DType::kQ6_K;
  ASSERT_TRUE(Quantize(**in, options).ok());
  EXPECT_EQ((*GgufFile::Open(path_))->Tensor("token_embd.weight")->dtype, DType::kQ6_K);
}

TEST_F(QuantizeTest, TheFileDoesNotDependOnTheThreads) {
  GgufBuilder file;
  file.Tensor("a.weight", {768, 97}, kF16, Stored(kF16, Normals(768 * 97, 1)));
  const std::vector<std::byte> bytes = file.Build();
  const auto in = GgufFile::FromMemory(bytes, "in");
  ASSERT_TRUE(in.ok());
  std::vector<std::byte> first;
  for (int threads : {1, 3}) {
    ASSERT_TRUE(Quantize(**in, {}, threads).ok());
    const auto out = GgufFile::Open(path_);
    ASSERT_TRUE(out.ok());
    const auto data = (*out)->tensors()[0].data;
    if (first.empty()) first.assign(data.begin(), data.end());
    EXPECT_TRUE(std::equal(data.begin(), data.end(), first.begin(), first.end()));
  }
}

TEST_F(QuantizeTest, QuantisingAQuantisedFileAgainCopiesOrIsRefused) {
  const std::vector<std::byte> bytes = Model().Build();
  const auto in = GgufFile::FromMemory(bytes, "in");
  ASSERT_TRUE(in.ok());
  ASSERT_TRUE(Quantize(**in, {}).ok());
  const std::string once = (folder_ / "once.gguf").string();
  std::filesystem::rename(path_, once);
  const auto quantized = GgufFile::Open(once);
  ASSERT_TRUE(quantized.ok());
  ASSERT_TRUE(Quantize(**quantized, {}).ok());
  const auto again = GgufFile::Open(path_);
  ASSERT_TRUE(again.ok());
  for (size_t i = 0; i < (*again)->tensors().size(); ++i) {
    const GgufTensor &a = (*quantized)->tensors()[i], &b = (*again)->tensors()[i];
    EXPECT_EQ(a.type, b.type);
    EXPECT_TRUE(std::equal(a.data.begin(), a.data.end(), b.data.begin(), b.data.end())) << a.name;
  }
  QuantizeOptions options;
  options.type = DType::kQ5_K;
  EXPECT_THAT(Message(Quantize(**quantized, options).status()),
              HasSubstr("'token_embd.weight': expected F32, F16, BF16 or the chosen type q5_k, "
                        "got Q4_K"));
  // The output may not be the input.
  std::filesystem::rename(once, path_);
  const auto same = GgufFile::Open(path_);
  EXPECT_THAT(Message(Quantize(**same, {}).status()), HasSubstr("the output is the input file"));
  EXPECT_TRUE(GgufFile::Open(path_).ok());
}

TEST_F(QuantizeTest, NumbersThatDoNotFitAreNamed) {
  for (const float bad : {std::numeric_limits<float>::quiet_NaN(), 70000.0f,
                          -std::numeric_limits<float>::infinity()}) {
    for (const DType type : {DType::kQ4_K, DType::kQ8_0, DType::kF16}) {
      std::vector<float> x = Normals(3 * 256, 1);
      x[2 * 256 + 5] = bad;
      GgufBuilder file;
      file.Tensor("good.weight", {256, 1}, kF32, Stored(kF32, Normals(256, 2)));
      file.Tensor("bad.weight", {256, 3}, kF32, Stored(kF32, x));
      QuantizeOptions options;
      options.type = type;
      EXPECT_THAT(Refusal(file, options),
                  HasSubstr("tensor 'bad.weight' [2, 5]: expected a number"));
    }
  }
}

TEST_F(QuantizeTest, RefusesWhatItCannotDo) {
  QuantizeOptions options;
  GgufBuilder split = Model();
  split.Number<uint16_t>("split.count", 3);
  EXPECT_THAT(Refusal(split, options), HasSubstr("is one of 3 parts"));
  GgufBuilder unknown;
  unknown.Tensor("x", {4}, 77, std::vector<std::byte>(16));
  EXPECT_THAT(Refusal(unknown, options), HasSubstr("'x' has type 77"));
  GgufBuilder integers;
  integers.Tensor("x.weight", {32, 2}, kI32, std::vector<std::byte>(256));
  EXPECT_THAT(Refusal(integers, options), HasSubstr("got I32"));
  options.type = DType::kI32;
  EXPECT_THAT(Refusal(Model(), options),
              HasSubstr("type: expected a float or block dtype, got i32"));
  options = {};
  options.output_type = DType::kBool;
  EXPECT_THAT(Refusal(Model(), options), HasSubstr("output_type: expected a float or block dtype"));
  path_ = (folder_ / "none" / "out.gguf").string();
  EXPECT_THAT(Refusal(Model(), {}), HasSubstr(path_ + ": cannot create"));
}

}  // namespace
}  // namespace tandem
