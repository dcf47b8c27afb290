// The measured choice of kernels: what is preferred is a pure function of times; files are checked;
// a bad or foreign profile costs nothing but the measurements.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <string>
#include <vector>

#include "core/status.h"
#include "core/tensor.h"
#include "dispatch/kernel_calibration.h"
#include "dispatch/kernel_choice.h"
#include "dispatch/ops.h"
#include "dispatch/run.h"
#include "tests/allocation_counter.h"

namespace tandem {

namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

OpFacts MatMulFacts(int64_t m, int64_t n, int64_t k, DType weights = DType::kF32) {
  OpFacts facts;
  facts.op = OpKind::kMatMul;
  facts.m = m;
  facts.n = n;
  facts.k = k;
  facts.weights = weights;
  return facts;
}

KernelMeasurement Measured(const OpFacts& facts, std::vector<KernelTime> times) {
  return {*ClassOf(facts, DeviceKind::kCpu), std::move(times)};
}

// A file of this test alone, removed afterwards.
class TemporaryFile {
 public:
  explicit TemporaryFile(const std::string& text = "") {
    path_ = testing::TempDir() + "/kernel_choice_" +
            testing::UnitTest::GetInstance()->current_test_info()->name() + ".json";
    if (!text.empty()) std::ofstream(path_) << text;
  }
  ~TemporaryFile() {
    std::error_code error;
    std::filesystem::remove(path_, error);
  }
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

TEST(KernelChoice, FastestFirstAndTheListWithinTheMargin) {
  const std::vector<std::string_view> list = {"a", "b", "c", "d"};
  EXPECT_THAT(OrderByTime(list, {{"a", 3.0}, {"b", 1.0}, {"c", 2.0}, {"d", 4.0}}),
              ElementsAre(1, 2, 0, 3));
  EXPECT_THAT(OrderByTime(list, {{"b", 1.0}, {"a", 1.04}}), ElementsAre(0, 1)) << "noise";
  EXPECT_THAT(OrderByTime(list, {{"b", 1.0}, {"a", 1.06}}), ElementsAre(1, 0));
  EXPECT_THAT(OrderByTime(list, {{"d", 1.0}, {"unknown", 0.1}}), ElementsAre(3));
  EXPECT_THAT(OrderByTime(list, {}), IsEmpty());
}

// The same library on two machines: one multiplies bf16 pairs at half the rate of f32, the other at
// twice it.
TEST(KernelChoice, Bf16DotProductsAtHalfAndAtTwiceTheRate) {
  const std::vector<std::string_view> list = {"bf16_dot", "widening", "reference"};
  const auto times = [](double dot_rate) {
    return std::vector<KernelTime>{
        {"bf16_dot", 1.0 / dot_rate}, {"widening", 1.0}, {"reference", 90.0}};
  };
  EXPECT_EQ(list[OrderByTime(list, times(0.5))[0]], "widening");
  EXPECT_EQ(list[OrderByTime(list, times(2.0))[0]], "bf16_dot");
}

TEST(KernelChoice, ClassesByRowsSizesAndTypes) {
  const auto id = [](const OpFacts& facts) { return ClassOf(facts, DeviceKind::kCpu)->Id(); };
  const auto rows = [](int64_t m) {
    return static_cast<int>(ClassOf(MatMulFacts(m, 8, 8), DeviceKind::kCpu)->rows);
  };
  EXPECT_EQ(rows(0), 0);
  EXPECT_EQ(rows(1), 0);
  EXPECT_EQ(rows(2), 1);
  EXPECT_EQ(rows(3), 2);
  EXPECT_EQ(rows(4), 2);
  EXPECT_EQ(rows(5), 3);
  EXPECT_EQ(rows(512), 9);
  EXPECT_EQ(rows(int64_t{1} << 48), 9);
  EXPECT_NE(id(MatMulFacts(1, 512, 512)), id(MatMulFacts(1, 4096, 4096)));
  EXPECT_EQ(id(MatMulFacts(1, 4096, 4096)), id(MatMulFacts(1, int64_t{1} << 40, int64_t{1} << 40)));
  EXPECT_NE(id(MatMulFacts(1, 8, 8)), id(MatMulFacts(1, 8, 8, DType::kQ8_0)));
  OpFacts packed = MatMulFacts(1, 8, 8);
  packed.packed = true;
  EXPECT_NE(id(packed), id(MatMulFacts(1, 8, 8)));
  OpFacts mask;
  mask.op = OpKind::kMask;
  EXPECT_EQ(ClassOf(mask, DeviceKind::kCpu), std::nullopt);
}

// Every class that a file can name has an Id of its own.
TEST(KernelChoice, IdsDiffer) {
  std::vector<uint32_t> ids;
  for (OpKind op : {OpKind::kAttention, OpKind::kMatMul}) {
    for (DeviceKind device : {DeviceKind::kCpu, DeviceKind::kCuda}) {
      for (DType input : {DType::kF32, DType::kF16, DType::kBF16}) {
        for (DType weights : {DType::kF32, DType::kBF16, DType::kQ8_0, DType::kQ6_K}) {
          for (const bool packed : {false, true}) {
            for (uint8_t rows = 0; rows < KernelClass::kRows; ++rows) {
              for (uint8_t size = 0; size < KernelClass::Sizes(op); ++size) {
                ids.push_back(KernelClass{op, device, input, weights, packed, rows, size}.Id());
              }
            }
          }
        }
      }
    }
  }
  std::sort(ids.begin(), ids.end());
  EXPECT_EQ(std::adjacent_find(ids.begin(), ids.end()), ids.end());
}

KernelProfile SomeProfile(const std::string& machine) {
  KernelProfile profile;
  profile.machine = machine;
  profile.measurements = {
      Measured(MatMulFacts(1, 4096, 4096), {{"gemv_scalar", 1e-5}, {"reference", 2.5e-5}}),
      Measured(MatMulFacts(100, 64, 64, DType::kQ4_0), {{"reference", 0.125}})};
  OpFacts attention;
  attention.op = OpKind::kAttention;
  attention.m = 7;
  attention.kv_len = 5000;
  attention.weights = DType::kF16;
  profile.measurements.push_back(Measured(attention, {{"reference", 1e-3}}));
  return profile;
}

TEST(KernelChoice, RoundTrip) {
  const KernelProfile profile = SomeProfile("m\xff \"quoted\"");
  const auto read = KernelProfileFromJson(ToJson(profile));
  ASSERT_TRUE(read.ok()) << read.status();
  ASSERT_EQ(read->measurements.size(), profile.measurements.size());
  for (size_t i = 0; i < profile.measurements.size(); ++i) {
    EXPECT_EQ(read->measurements[i].kernel_class, profile.measurements[i].kernel_class);
    ASSERT_EQ(read->measurements[i].times.size(), profile.measurements[i].times.size());
    for (size_t j = 0; j < profile.measurements[i].times.size(); ++j) {
      EXPECT_EQ(read->measurements[i].times[j].kernel, profile.measurements[i].times[j].kernel);
      EXPECT_EQ(read->measurements[i].times[j].seconds, profile.measurements[i].times[j].seconds);
    }
  }
  EXPECT_EQ(ToJson(*read), ToJson(profile));
}

TEST(KernelChoice, BadFilesAreErrorsThatSayWhere) {
  const std::string good = ToJson(SomeProfile("m"));
  ASSERT_TRUE(KernelProfileFromJson(good).ok());
  const auto broken = [&](const std::string& from, const std::string& to) {
    std::string text = good;
    const size_t at = text.find(from);
    EXPECT_NE(at, std::string::npos) << from;
    return text.replace(at, from.size(), to);
  };
  const std::vector<std::pair<std::string, std::string>> cases = {
      {"", "expected a JSON object"},
      {"[1, 2]", "expected a JSON object"},
      {good.substr(0, good.size() / 2), "expected a JSON object"},
      {"{}", "format: expected a string"},
      {broken("profile 1", "profile 9"), "format: expected 'tandem kernel profile 1'"},
      {broken("\"machine\": \"m\"", "\"machine\": 7"), "machine: expected a string"},
      {broken("\"op\": \"matmul\"", "\"op\": \"matmull\""), "classes[0].op: expected"},
      {broken("\"device\": \"cpu\"", "\"device\": \"tpu\""), "classes[0].device"},
      {broken("\"input\": \"f32\"", "\"input\": \"f33\""), "classes[0].input: expected a dtype"},
      {broken("\"rows\": 0", "\"rows\": 10"), "classes[0].rows: expected an integer of 0..9"},
      {broken("\"rows\": 0", "\"rows\": -1"), "classes[0].rows"},
      {broken("\"rows\": 0", "\"rows\": 18446744073709551615"), "classes[0].rows"},
      {broken("\"size\": 1", "\"size\": 2"), "classes[0].size: expected an integer of 0..1"},
      {broken("\"packed\": false", "\"packed\": 0"), "classes[0].packed: expected true or false"},
      {broken("1e-05", "0"), "classes[0].kernels.seconds: expected a number > 0"},
      {broken("1e-05", "-1"), "classes[0].kernels.seconds"},
      {broken("1e-05", "\"fast\""), "classes[0].kernels.seconds"},
  };
  for (const auto& [text, message] : cases) {
    const auto profile = KernelProfileFromJson(text);
    EXPECT_EQ(profile.status().code(), absl::StatusCode::kInvalidArgument) << text;
    EXPECT_THAT(Message(profile.status()), HasSubstr(message));
  }
  // Any byte changed: an error or a profile, never a crash.
  for (size_t i = 0; i < good.size(); ++i) {
    for (const char c : {'\0', '"', '{', '9', '\xff'}) {
      std::string text = good;
      text[i] = c;
      const auto profile = KernelProfileFromJson(text);
      if (profile.ok()) (void)KernelPreferences::FromProfile(*profile);
    }
  }
}

TEST(KernelChoice, UnknownKernelsAndRepeatedClassesAreErrors) {
  KernelProfile profile = SomeProfile("m");
  ASSERT_TRUE(KernelPreferences::FromProfile(profile).ok());
  profile.measurements[1].times[0].kernel = "warp_speed";
  EXPECT_THAT(Message(KernelPreferences::FromProfile(profile).status()),
              HasSubstr("no matmul kernel named 'warp_speed'"));
  profile = SomeProfile("m");
  profile.measurements[1].kernel_class = profile.measurements[0].kernel_class;
  EXPECT_THAT(Message(KernelPreferences::FromProfile(profile).status()),
              HasSubstr("given twice: matmul f32 x f32, rows 1, N * K >= 2^20"));
}

ContextOptions With(const std::string& profile) {
  ContextOptions options;
  options.threads = 1;
  options.kernel_profile = profile;
  return options;
}

// Operands of a product, and what would run it.
class Product {
 public:
  explicit Product(Context& context) : context_(context) {
    const auto make = [&](const Shape& shape) {
      tensors_.push_back(Tensor::Allocate(context.host_allocator(), DType::kF32, shape).value());
      const TensorView view = tensors_.back().view();
      for (int64_t i = 0; i < view.num_elements(); ++i) {
        view.As<float>()[i] = static_cast<float>(i % 7) - 3.0f;
      }
      return view;
    };
    args_.a = make({1, 40});
    args_.b = make({30, 40});
    args_.out = make({1, 30});
  }
  const MatMulArgs& args() const { return args_; }
  std::string Kernel() {
    const auto plan = MakePlan(context_, args_, FactsOf(args_));
    EXPECT_TRUE(plan.ok()) << plan.status();
    return std::string(plan->kernel->name);
  }
  std::vector<float> Run() {
    EXPECT_TRUE(MatMulInto(context_, args_).ok());
    return {args_.out.As<float>(), args_.out.As<float>() + 30};
  }

 private:
  Context& context_;
  std::vector<Tensor> tensors_;
  MatMulArgs args_;
};

std::string FileOf(const Context& context, std::vector<KernelTime> times) {
  KernelProfile profile;
  profile.machine = context.machine_key();
  profile.measurements = {Measured(MatMulFacts(1, 30, 40), std::move(times))};
  return ToJson(profile);
}

TEST(KernelChoice, ProfileDecidesAndAFaultyOneIsOnlySlow) {
  auto plain = Context::Create(With("off")).value();
  EXPECT_EQ(plain->kernel_profile_note(), "off");
  Product by_list(*plain);
  const std::string first = by_list.Kernel();
  ASSERT_NE(first, "reference");
  const std::vector<float> expected = by_list.Run();

  // It claims that the slowest is the fastest.
  TemporaryFile file(FileOf(*plain, {{"reference", 1e-9}, {first, 1.0}}));
  auto context = Context::Create(With(file.path()));
  ASSERT_TRUE(context.ok()) << context.status();
  EXPECT_THAT((*context)->kernel_profile_note(), HasSubstr("1 classes of calls"));
  Product product(**context);
  EXPECT_EQ(product.Kernel(), "reference");
  const std::vector<float> got = product.Run();
  for (size_t i = 0; i < got.size(); ++i) EXPECT_NEAR(got[i], expected[i], 1e-3);
  const KernelPreference* preference =
      (*context)->kernel_preferences().Find(FactsOf(product.args()), DeviceKind::kCpu);
  EXPECT_THAT(ExplainKernel(preference, "reference"),
              HasSubstr("x as fast as " + first + " on this machine"));
  EXPECT_EQ(ExplainKernel(nullptr, first), "list order");

  // A forced kernel wins over any measurement.
  ASSERT_TRUE((*context)->ForceKernel(OpKind::kMatMul, first).ok());
  EXPECT_EQ(product.Kernel(), first);
}

TEST(KernelChoice, PreferredKernelsThatCannotArePassedOver) {
  auto plain = Context::Create(With("off")).value();
  const std::string first = Product(*plain).Kernel();
  // Needs packed weights, which the product does not give.
  TemporaryFile file(FileOf(*plain, {{"onednn_packed", 1e-9}, {first, 1.0}}));
  auto context = Context::Create(With(file.path())).value();
  EXPECT_EQ(Product(*context).Kernel(), first);
}

TEST(KernelChoice, ForeignAndBrokenFiles) {
  auto plain = Context::Create(With("off")).value();
  const std::string key = plain->machine_key();
  std::string note;
  const auto load = [&](const std::string& text, bool required) {
    TemporaryFile file(text);
    return LoadKernelPreferences(file.path(), key, required, &note);
  };
  const std::string foreign = ToJson(SomeProfile("another machine"));
  EXPECT_EQ(load(foreign, true).status().code(), absl::StatusCode::kInvalidArgument);
  auto ignored = load(foreign, false);
  ASSERT_TRUE(ignored.ok());
  EXPECT_TRUE(ignored->empty());
  EXPECT_THAT(note, HasSubstr("measured on another machine (another machine)"));
  ASSERT_TRUE(load("{ not json", false).ok());
  EXPECT_THAT(note, HasSubstr("ignored: kernel profile: expected a JSON object"));
  EXPECT_FALSE(load("{ not json", true).ok());

  EXPECT_TRUE(LoadKernelPreferences("", key, false, &note).ok());
  EXPECT_TRUE(LoadKernelPreferences("/nowhere/at/all.json", key, false, &note).ok());
  EXPECT_THAT(note, HasSubstr("not measured"));
  EXPECT_THAT(Message(LoadKernelPreferences("/nowhere/at/all.json", key, true, &note).status()),
              HasSubstr("cannot read"));
  EXPECT_FALSE(LoadKernelPreferences("/", key, true, &note).ok()) << "a folder";
  EXPECT_EQ(Context::Create(With("/nowhere/at/all.json")).status().code(),
            absl::StatusCode::kInvalidArgument);
}

// Threads and instruction set are part of the key.
TEST(KernelChoice, MachineKeys) {
  const auto key = [](int threads, const std::string& isa) {
    ContextOptions options = With("off");
    options.threads = threads;
    options.isa = isa;
    return Context::Create(options).value()->machine_key();
  };
  EXPECT_EQ(key(2, "scalar"), key(2, "scalar"));
  EXPECT_NE(key(1, "scalar"), key(2, "scalar"));
  EXPECT_THAT(key(2, "scalar"), HasSubstr("scalar, 2 threads"));
  EXPECT_NE(DefaultKernelProfilePath(key(1, "scalar")), DefaultKernelProfilePath(key(2, "scalar")));
  EXPECT_THAT(DefaultKernelProfilePath("x"), HasSubstr("/tandem/kernels-"));
}

TEST(KernelChoice, SaveIsReadAgain) {
  TemporaryFile file;
  const KernelProfile profile = SomeProfile("m");
  ASSERT_TRUE(SaveKernelProfile(file.path(), profile).ok());
  std::string note;
  const auto read = LoadKernelPreferences(file.path(), "m", true, &note);
  ASSERT_TRUE(read.ok()) << read.status();
  EXPECT_EQ(read->size(), 3u);
  EXPECT_FALSE(SaveKernelProfile("", profile).ok());
  EXPECT_FALSE(SaveKernelProfile("/proc/nothing/here.json", profile).ok());
}

TEST(KernelChoice, LookupAllocatesNothing) {
  const auto preferences = KernelPreferences::FromProfile(SomeProfile("m")).value();
  const OpFacts known = MatMulFacts(1, 4096, 4096), unknown = MatMulFacts(3, 4096, 4096);
  const int64_t before = AllocationCount();
  const KernelPreference* found = preferences.Find(known, DeviceKind::kCpu);
  const KernelPreference* missing = preferences.Find(unknown, DeviceKind::kCpu);
  EXPECT_EQ(AllocationCount(), before);
  EXPECT_NE(found, nullptr);
  EXPECT_EQ(missing, nullptr);
}

// Measures a few classes for real: every one holds at least two kernels that exist, and a context
// takes the result.
TEST(KernelChoice, CalibrationGivesAProfileOfThisMachine) {
  auto plain = Context::Create(With("off")).value();
  KernelCalibrationOptions options;
  options.seconds_per_kernel = 1e-4;
  int asked = 0;
  options.only = [](const KernelClass& c) { return c.size == 0 && c.rows <= 1; };
  options.progress = [&](int, int, const std::string&) { ++asked; };
  const auto profile = CalibrateKernels(*plain, options);
  ASSERT_TRUE(profile.ok()) << profile.status();
  EXPECT_GT(asked, 0);
  EXPECT_EQ(profile->machine, plain->machine_key());
  for (const KernelMeasurement& measurement : profile->measurements) {
    EXPECT_GE(measurement.times.size(), 2u) << Describe(measurement.kernel_class);
    for (const KernelTime& time : measurement.times) EXPECT_GT(time.seconds, 0.0);
  }
  TemporaryFile file;
  ASSERT_TRUE(SaveKernelProfile(file.path(), *profile).ok());
  const auto context = Context::Create(With(file.path()));
  ASSERT_TRUE(context.ok()) << context.status();
  EXPECT_EQ((*context)->kernel_preferences().size(), profile->measurements.size());
}

}  // namespace
}  // namespace tandem
