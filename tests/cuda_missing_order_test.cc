// What if a kernel forgot one of its barriers, waits, arrivals or fences? Every such call that a
// kernel makes in these cases is left out in turn, and must be missed: the emulator reports it, or
// the result is wrong or not the same in every order of threads. Whatever remains is in the list of
// those that only ThreadSanitizer or a GPU would miss, with its reason.
//
// What a kernel does without a barrier may be anything, so each attempt is a process of its own.
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <functional>
#include <iostream>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "cuda/backend.h"
#include "cuda/emulator/ordering_calls.h"
#include "cuda/kernels.h"
#include "cuda/runtime/emulated_runtime.h"
#include "tests/cases/attention_cases.h"
#include "tests/cases/matmul_cases.h"
#include "tests/cases/run.h"
#include "tests/sanitizers.h"

namespace tandem::cuda {
namespace {

using cases::AttentionCase;
using cases::MatMulCase;
using emulator::OrderingCalls;

template <typename Args>
const Kernel<Args>& KernelOf(const std::string& name) {
  for (const auto& kernel : Kernels<Args>()) {
    if (kernel.name == name) return kernel;
  }
  ADD_FAILURE() << "no kernel " << name;
  return Kernels<Args>().back();
}

// Runs a case on an emulated device of its own.
using Runner = std::function<cases::Outcome(const std::string& mode, OrderingCalls* calls)>;

template <typename Case>
Runner RunnerOf(const std::string& kernel, const std::string& text) {
  const auto c = cases::ParseCase<Case>(text);
  EXPECT_TRUE(c.ok()) << c.status();
  auto prepared = cases::Prepare(*c);
  EXPECT_TRUE(prepared.ok()) << prepared.status();
  const auto shared = std::make_shared<cases::Prepared<Case>>(*std::move(prepared));
  return [shared, kernel](const std::string& mode, OrderingCalls* calls) {
    EmulatedRuntimeOptions options;
    options.emulator = *emulator::EmulatorOptions::Parse(mode);
    options.emulator.ordering_calls = calls;
    options.emulator.stuck_seconds = 2.0;
    options.emulator.max_yields = 1'000'000;
    const auto backend =
        *MakeCudaBackend(MakeEmulatedRuntime(options), {.device = kEmulatedDevice});
    const auto stream = *backend->CreateStream();
    return RunPrepared(*shared, KernelOf<typename Case::Args>(kernel),
                       {.backend = backend.get(), .stream = stream.get(), .pack = nullptr});
  };
}

std::vector<std::string> Modes() {
  return {"lifo,eager", "reverse", "random:1,random", "fifo", "random:2,random", "random:3"};
}

// Does the call's absence show, in any order of threads and completions?
bool Shows(const Runner& run, const std::string& call, uint64_t right) {
  for (const std::string& mode : Modes()) {
    const pid_t child = fork();
    if (child == 0) {
      if (std::freopen("/dev/null", "w", stderr) == nullptr) _exit(2);
      const rlimit none = {0, 0};
      setrlimit(RLIMIT_CORE, &none);
      alarm(30);
      OrderingCalls calls;
      calls.LeaveOut(call);
      const cases::Outcome outcome = run(mode, &calls);
      _exit(outcome.passed() && outcome.output_hash == right ? 0 : 1);
    }
    int status = 0;
    if (child < 0 || waitpid(child, &status, 0) != child) {
      ADD_FAILURE() << "no process for " << call;
      return false;
    }
    if (!WIFEXITED(status) || WEXITSTATUS(status) != 0) return true;
  }
  return false;
}

struct KernelCases {
  const char* name;  // of the test
  std::vector<Runner> runs;
  // Calls whose absence does not show here, without their lines, and why.
  std::map<std::string, std::string> silent;
};

// Without its line.
std::string WithoutLine(const std::string& call) { return call.substr(0, call.rfind(':')); }

class MissingOrder : public testing::TestWithParam<std::string> {};

constexpr char kRacesOnly[] = "only a race detector or a GPU sees it";
constexpr char kNothingLeft[] = "nothing is under way any more, or another barrier follows at once";

Runner Attention(const std::string& kernel, const std::string& text) {
  return RunnerOf<AttentionCase>(kernel, "attention lse=1 " + text);
}

KernelCases CasesOf(const std::string& name) {
  const std::map<std::string, std::string> of_decode = {
      // Blocks run one after the other here, and shuffles keep the lanes of a warp together.
      {"FenceDevice attention_decode_block.h", kRacesOnly},
      {"SyncThreads attention_decode_block.h", kRacesOnly},
      {"CopyAsyncWait attention_decode_ring.h", kNothingLeft}};
  if (name == "decode_f16") {
    KernelCases c = {
        "decode",
        {Attention("decode", "q_heads=4 kv_heads=2 kv_len=700 head_dim=32 kv_dtype=f16"),
         Attention("decode",
                   "batch=2 q_heads=12 q_len=3 kv_len=300 head_dim=32 kv_dtype=f16 queries=packed"),
         Attention("decode",
                   "q_heads=8 kv_heads=1 q_len=3 kv_len=70 head_dim=144 new_len=20 kv_dtype=f16")},
        of_decode};
    c.silent["SyncThreads attention_decode_ring.h"] = kNothingLeft;
    c.silent["SyncThreads attention_decode_fresh.h"] = kNothingLeft;
    c.silent["SyncWarp attention_decode_fresh.h"] = kRacesOnly;
    return c;
  }
  if (name == "decode_i8") {
    KernelCases c = {"decode",
                     {Attention("decode",
                                "q_heads=8 kv_heads=1 kv_len=700 head_dim=32 page_size=16 "
                                "kv_dtype=i8")},
                     of_decode};
    c.silent["SyncThreads attention_decode_ring.h"] = kNothingLeft;
    return c;
  }
  if (name == "decode_f32") {
    KernelCases c = {
        "decode",
        {Attention("decode",
                   "q_heads=16 kv_heads=1 kv_len=128 head_dim=128 kv_dtype=f32 "
                   "batch_invariant=1"),
         Attention("decode",
                   "q_heads=8 kv_heads=1 q_len=3 kv_len=70 head_dim=144 new_len=20 kv_dtype=f32")},
        of_decode};
    c.silent["SyncThreads attention_decode_ring.h"] =
        "the result does not lie where the last values do";
    c.silent["SyncWarp attention_decode_fma.h"] = kRacesOnly;
    c.silent["SyncThreads attention_decode_fresh.h"] = kNothingLeft;
    c.silent["SyncWarp attention_decode_fresh.h"] = kRacesOnly;
    return c;
  }
  if (name == "prefill") {
    return {"prefill",
            {Attention("prefill",
                       "q_heads=2 kv_heads=1 q_len=90 kv_len=260 head_dim=32 q_dtype=f32 "
                       "kv_dtype=f16"),
             Attention("prefill",
                       "batch=2 q_len=40 kv_len=200 head_dim=32 q_dtype=f16 kv_dtype=i8 "
                       "page_size=16 softcap=10 queries=packed")},
            {{"CopyAsyncWait attention_prefill_kernel.h", kNothingLeft}}};
  }
  if (name == "prefill_i8") {
    // Keys come through registers; only zeros are copied.
    return {"prefill_i8",
            {Attention("prefill_i8",
                       "batch=2 q_len=40 kv_len=200 head_dim=32 kv_dtype=i8 "
                       "page_size=16")},
            {{"CopyAsyncCommit attention_prefill_kernel.h", kNothingLeft},
             {"CopyAsyncWait attention_prefill_kernel.h", kNothingLeft},
             {"SyncWarp attention_prefill_kernel.h", kNothingLeft}}};
  }
  if (name == "prefill_f32") {
    return {"prefill_f32",
            {Attention("prefill_f32", "q_len=90 kv_len=200 head_dim=32"),
             Attention("prefill_f32",
                       "batch=2 q_len=40 kv_len=100 head_dim=32 kv_dtype=i8 page_size=16 "
                       "new_len=2")},
            {{"CopyAsyncWait attention_prefill_float.cu", kNothingLeft},
             {"SyncWarp attention_prefill_float.cu", kNothingLeft}}};
  }
  if (name == "hopper") {
    const std::string types = "q_dtype=f16 kv_dtype=f16 ";
    return {
        "hopper",
        {Attention("hopper", types + "q_heads=5 kv_heads=1 q_len=150 kv_len=520"),
         Attention("hopper", types + "batch=2 q_len=140 kv_len=436 page_size=16 values=nan_last")},
        {// Of two: before non-finite values become 0, which are found under NaN keys only here,
         // and the last of the turns.
         {"NamedBarrierSync attention_hopper_kernel.h", kNothingLeft},
         {"SyncWarp attention_hopper_kernel.h", kRacesOnly}}};
  }
  if (name == "generic") {
    return {"generic",
            {Attention("generic", "q_heads=2 q_len=3 kv_len=300 head_dim=40")},
            {{"SyncThreads attention.cu", kNothingLeft}}};
  }
  if (name == "int8_dot") {
    return {"int8_dot",
            {RunnerOf<MatMulCase>("int8_dot",
                                  "matmul m=2 n=70 k=512 b_dtype=q4_k float_activations=0")},
            // What separates the matrices of a group.
            {{"CopyAsyncWait matmul_int8_dot_kernel.h", kNothingLeft},
             {"SyncThreads matmul_int8_dot_kernel.h", kNothingLeft},
             {"SyncWarp matmul_int8_dot_kernel.h", kNothingLeft}}};
  }
  return {
      "int8_mma",
      {RunnerOf<MatMulCase>("int8_mma", "matmul m=70 n=70 k=512 b_dtype=q4_k float_activations=0")},
      {{"CopyAsyncWait matmul_int8_mma.cu", kNothingLeft},
       {"SyncThreads matmul_int8_mma.cu", kNothingLeft}}};
}

TEST_P(MissingOrder, IsMissed) {
  if (kSanitized) GTEST_SKIP() << "hundreds of processes: the plain build does it";
  const KernelCases all = CasesOf(GetParam());
  std::vector<uint64_t> right;
  OrderingCalls calls;
  for (const Runner& run : all.runs) {
    const cases::Outcome outcome = run("fifo", &calls);
    ASSERT_TRUE(outcome.passed()) << outcome.message;
    right.push_back(outcome.output_hash);
  }
  const std::set<std::string> met = calls.met();
  ASSERT_FALSE(met.empty());
  std::set<std::string> silent;
  for (const std::string& call : met) {
    bool shows = false;
    for (size_t i = 0; i < all.runs.size() && !shows; ++i) {
      shows = Shows(all.runs[i], call, right[i]);
    }
    if (shows) continue;
    silent.insert(WithoutLine(call));
    EXPECT_TRUE(all.silent.contains(WithoutLine(call))) << call << " is not missed";
    std::cout << "silent: " << call << "\n";
  }
  for (const auto& [call, reason] : all.silent) {
    EXPECT_TRUE(silent.contains(call)) << call << " is missed after all, not: " << reason;
  }
}

INSTANTIATE_TEST_SUITE_P(All, MissingOrder,
                         testing::Values("decode_f16", "decode_i8", "decode_f32", "prefill",
                                         "prefill_i8", "prefill_f32", "hopper", "generic",
                                         "int8_dot", "int8_mma"),
                         [](const auto& kernel) { return kernel.param; });

}  // namespace
}  // namespace tandem::cuda
