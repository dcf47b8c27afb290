// What GgufWriter writes, the reader reads; what it cannot write leaves nothing behind.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "core/status.h"
#include "model/gguf_writer.h"
#include "tests/gguf_builder.h"
#include "tests/model_golden.h"

namespace tandem {
namespace {

using ::testing::HasSubstr;
using ::testing::IsEmpty;

// An empty folder of this test's own.
class GgufWriterTest : public ::testing::Test {
 protected:
  GgufWriterTest()
      : folder_(std::filesystem::path(::testing::TempDir()) /
                ::testing::UnitTest::GetInstance()->current_test_info()->name()) {
    std::filesystem::remove_all(folder_);
    std::filesystem::create_directories(folder_);
  }
  ~GgufWriterTest() override { std::filesystem::remove_all(folder_); }

  std::string Path(const std::string& name) const { return (folder_ / name).string(); }
  std::vector<std::string> Files() const {
    std::vector<std::string> names;
    for (const auto& entry : std::filesystem::directory_iterator(folder_)) {
      names.push_back(entry.path().filename().string());
    }
    return names;
  }

  std::filesystem::path folder_;
};

std::vector<std::byte> Bytes(size_t count, int seed) {
  std::vector<std::byte> bytes(count);
  for (size_t i = 0; i < count; ++i) bytes[i] = static_cast<std::byte>(i * 37 + 11 * seed);
  return bytes;
}

void ExpectSameValue(const GgufValue& a, const GgufValue& b) {
  EXPECT_EQ(a.key, b.key);
  EXPECT_EQ(a.type, b.type) << a.key;
  EXPECT_EQ(a.is_array, b.is_array) << a.key;
  EXPECT_EQ(a.count, b.count) << a.key;
  EXPECT_TRUE(std::equal(a.data.begin(), a.data.end(), b.data.begin(), b.data.end())) << a.key;
}

// Copies a file tensor by tensor, `step` bytes at a time.
absl::Status CopyFile(const GgufFile& file, const std::string& path, size_t step) {
  GgufWriter writer;
  TANDEM_RETURN_IF_ERROR(writer.CopyMetadata(file));
  for (const GgufTensor& t : file.tensors()) {
    TANDEM_RETURN_IF_ERROR(writer.AddTensor(t.name, t.type, t.shape));
  }
  TANDEM_RETURN_IF_ERROR(writer.Create(path));
  for (const GgufTensor& t : file.tensors()) {
    for (size_t at = 0; at < t.data.size(); at += step) {
      const size_t count = std::min(step, t.data.size() - at);
      TANDEM_RETURN_IF_ERROR(writer.Append(t.data.subspan(at, count)));
    }
  }
  TANDEM_RETURN_IF_ERROR(writer.Finish());
  EXPECT_EQ(writer.bytes(), std::filesystem::file_size(path));
  return absl::OkStatus();
}

TEST_F(GgufWriterTest, CopiesOfModelsReadTheSame) {
  for (const std::string& name : GoldenModelNames()) {
    SCOPED_TRACE(name);
    const auto file = GgufFile::Open(TANDEM_SOURCE_DIR "/tests/golden/" + name + ".gguf");
    ASSERT_TRUE(file.ok()) << file.status();
    const absl::Status copied = CopyFile(**file, Path("copy.gguf"), 1000);
    ASSERT_TRUE(copied.ok()) << copied;
    const auto copy = GgufFile::Open(Path("copy.gguf"));
    ASSERT_TRUE(copy.ok()) << copy.status();
    EXPECT_EQ((*copy)->version(), 3u);
    ASSERT_EQ((*copy)->metadata().size(), (*file)->metadata().size());
    for (size_t i = 0; i < (*file)->metadata().size(); ++i) {
      ExpectSameValue((*copy)->metadata()[i], (*file)->metadata()[i]);
    }
    ASSERT_EQ((*copy)->tensors().size(), (*file)->tensors().size());
    for (size_t i = 0; i < (*file)->tensors().size(); ++i) {
      const GgufTensor& a = (*copy)->tensors()[i];
      const GgufTensor& b = (*file)->tensors()[i];
      EXPECT_EQ(a.name, b.name);
      EXPECT_EQ(a.type, b.type);
      EXPECT_EQ(a.shape, b.shape);
      EXPECT_TRUE(std::equal(a.data.begin(), a.data.end(), b.data.begin(), b.data.end()));
    }
    EXPECT_THAT(Files(), ::testing::ElementsAre("copy.gguf"));
  }
}

TEST_F(GgufWriterTest, EveryKindOfValueAndAnAlignmentOf64) {
  GgufBuilder in;
  in.alignment = 64;
  in.Number<uint32_t>("general.alignment", 64).Number<uint8_t>("u8", 200).Number<bool>("b", true);
  in.Number<int64_t>("i64", -5).Number<double>("f64", 0.25).String("text", "");
  in.Strings("words", {"", "a", "bc"}).Numbers<int16_t>("shorts", {-1, 2}).Numbers<bool>("no", {});
  in.Tensor("a", {3}, 24, Bytes(3, 1)).Tensor("b", {32, 2, 1}, 8, Bytes(68, 2));
  in.Tensor("c", {1}, 0, Bytes(4, 3));
  const std::vector<std::byte> bytes = in.Build();
  const auto file = GgufFile::FromMemory(bytes, "in");
  ASSERT_TRUE(file.ok()) << file.status();
  const absl::Status copied = CopyFile(**file, Path("out.gguf"), 7);
  ASSERT_TRUE(copied.ok()) << copied;
  std::ifstream out(Path("out.gguf"), std::ios::binary);
  const std::string got(std::istreambuf_iterator<char>(out), {});
  EXPECT_EQ(got, std::string(reinterpret_cast<const char*>(bytes.data()), bytes.size()));
}

TEST_F(GgufWriterTest, SetReplacesInPlaceOrAppends) {
  GgufBuilder in;
  in.String("general.name", "old").Number<uint32_t>("general.file_type", 1).String("last", "x");
  const std::vector<std::byte> bytes = in.Build();
  const auto file = GgufFile::FromMemory(bytes, "in");
  ASSERT_TRUE(file.ok());
  GgufWriter writer;
  ASSERT_TRUE(writer.CopyMetadata(**file).ok());
  writer.SetU32("general.file_type", 14);
  writer.SetString("general.name", "a longer name");
  writer.SetU32("general.quantization_version", 2);
  ASSERT_TRUE(writer.Create(Path("out.gguf")).ok());
  ASSERT_TRUE(writer.Finish().ok());
  const auto out = GgufFile::Open(Path("out.gguf"));
  ASSERT_TRUE(out.ok()) << out.status();
  std::vector<std::string> keys;
  for (const GgufValue& value : (*out)->metadata()) keys.emplace_back(value.key);
  EXPECT_THAT(keys, ::testing::ElementsAre("general.name", "general.file_type", "last",
                                           "general.quantization_version"));
  EXPECT_EQ(*(*out)->String("general.name"), "a longer name");
  EXPECT_EQ(*(*out)->Int("general.file_type"), 14);
  EXPECT_EQ(*(*out)->Int("general.quantization_version"), 2);
  EXPECT_TRUE((*out)->tensors().empty());
}

TEST_F(GgufWriterTest, RefusesWhatTheReaderWouldRefuse) {
  GgufWriter writer;
  const auto refusal = [&](std::string_view name, uint32_t type, const Shape& shape) {
    return Message(writer.AddTensor(name, type, shape));
  };
  EXPECT_THAT(refusal("", 0, {1}), HasSubstr("expected a name of 1..255 bytes"));
  EXPECT_THAT(refusal(std::string(256, 'n'), 0, {1}), HasSubstr("got 256"));
  EXPECT_THAT(refusal("t", 77, {1}), HasSubstr("unknown type number 77"));
  EXPECT_THAT(refusal("t", 0, {2, 0}), HasSubstr("dimension 1: expected >= 1, got 0"));
  EXPECT_THAT(refusal("t", 0, Shape()), HasSubstr("expected 1..4 dimensions, got 0"));
  EXPECT_THAT(refusal("t", 12, {2, 128}), HasSubstr("a multiple of 256 for Q4_K, got 128"));
  EXPECT_THAT(refusal("t", 0, {int64_t{1} << 40, int64_t{1} << 40}), HasSubstr("overflows"));
  ASSERT_TRUE(writer.AddTensor("t", 0, {4}).ok());
  EXPECT_THAT(refusal("t", 0, {4}), HasSubstr("'t': occurs twice"));
}

TEST_F(GgufWriterTest, WithoutFinishThereIsNoFile) {
  {
    GgufWriter writer;
    ASSERT_TRUE(writer.AddTensor("t", 0, {4}).ok());
    ASSERT_TRUE(writer.Create(Path("out.gguf")).ok());
    ASSERT_TRUE(writer.Append(Bytes(12, 1)).ok());
    EXPECT_EQ(Files().size(), 1u);
    EXPECT_FALSE(std::filesystem::exists(Path("out.gguf")));
    EXPECT_THAT(Message(writer.Finish()), HasSubstr("tensor 't': expected 16 bytes, got 12"));
    EXPECT_THAT(Message(writer.Append(Bytes(5, 1))), HasSubstr("1 bytes after the last tensor"));
  }
  EXPECT_THAT(Files(), IsEmpty());
}

TEST_F(GgufWriterTest, AnErrorLeavesTheOldFile) {
  std::ofstream(Path("out.gguf")) << "precious";
  {
    GgufWriter writer;
    ASSERT_TRUE(writer.AddTensor("t", 0, {4}).ok());
    ASSERT_TRUE(writer.Create(Path("out.gguf")).ok());
  }
  std::ifstream file(Path("out.gguf"));
  EXPECT_EQ(std::string(std::istreambuf_iterator<char>(file), {}), "precious");
  EXPECT_THAT(Files(), ::testing::ElementsAre("out.gguf"));
}

TEST_F(GgufWriterTest, BadPathsAreErrorsThatNameThem) {
  GgufWriter writer;
  const std::string missing = Path("no/such/folder/out.gguf");
  EXPECT_THAT(Message(writer.Create(missing)), HasSubstr(missing));
  EXPECT_THAT(Message(writer.Create(folder_.string())),
              HasSubstr(folder_.string() + ": exists and is not a regular file"));
  EXPECT_FALSE(writer.Append(Bytes(1, 1)).ok());
  EXPECT_FALSE(writer.Finish().ok());
  EXPECT_THAT(Files(), IsEmpty());
}

}  // namespace
}  // namespace tandem
