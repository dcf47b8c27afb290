// Generation that goes on and on: memory stays what it was after the warm-up.
//
// 10 000 tokens by default; `ctest -C soak -L soak` runs as many as TANDEM_SOAK_TOKENS says.
#include <gtest/gtest.h>

#include <charconv>
#include <cstdlib>
#include <cstring>

#include "model/generate.h"
#include "tests/allocation_counter.h"
#include "tests/model_golden.h"
#include "tests/sanitizers.h"
#include "tools/process_memory.h"

namespace tandem {
namespace {

constexpr char kDemo[] = TANDEM_SOURCE_DIR "/models/demo.gguf";

// What the C library and the kernel may add to the resident set by themselves. One leaked KV row
// (256 bytes) per token would show after 4096 tokens.
constexpr int64_t kNoise = int64_t{1} << 20;

int64_t SoakTokens() {
  int64_t tokens = kSanitized ? 1000 : 10000;
  if (const char* text = std::getenv("TANDEM_SOAK_TOKENS")) {
    std::from_chars(text, text + std::strlen(text), tokens);
  }
  return tokens;
}

// A sanitizer's own bookkeeping grows; there LeakSanitizer watches instead.
void ExpectSameResidentSet(int64_t after_warm_up) {
  const int64_t end = tools::ResidentBytes();
  ASSERT_GT(after_warm_up, 0);
  if (!kSanitized) {
    EXPECT_LE(end - after_warm_up, kNoise)
        << "resident: " << after_warm_up << " bytes after the warm-up, " << end << " at the end";
  }
  std::printf("resident: %.2f MiB after the warm-up, %+.3f MiB at the end\n",
              static_cast<double>(after_warm_up) / (1 << 20),
              static_cast<double>(end - after_warm_up) / (1 << 20));
}

// One session whose cache slides: full, it goes back to the middle. No allocation at all.
TEST(Endurance, OneSessionGeneratesWithoutAllocating) {
  for (const DType kv : {DType::kF16, DType::kI8}) {
    SCOPED_TRACE(Name(kv));
    SessionOptions options;
    options.capacity = 96;
    options.kv_dtype = kv;
    ContextOptions context;
    context.threads = 2;
    auto decoder = MakeDecoder(kDemo, context, options);
    ASSERT_TRUE(decoder.ok()) << decoder.status();
    Session& session = *decoder->session;
    int32_t token = 1;
    const auto generate = [&](int64_t tokens) {
      for (int64_t i = 0; i < tokens; ++i) {
        if (session.position() == session.capacity()) {
          ASSERT_TRUE(session.Truncate(session.capacity() / 2).ok());
        }
        const auto row = session.Forward({&token, 1});
        ASSERT_TRUE(row.ok()) << row.status();
        const float* begin = row->As<float>();
        token = static_cast<int32_t>(std::max_element(begin, begin + row->dim(1)) - begin);
      }
    };
    generate(200);  // the workspace has seen every length
    const int64_t resident = tools::ResidentBytes();
    const int64_t bytes = decoder->context->host_allocator().bytes_in_use();
    const int64_t allocations = AllocationCount();
    generate(SoakTokens());
    EXPECT_EQ(AllocationCount(), allocations);
    EXPECT_EQ(decoder->context->host_allocator().bytes_in_use(), bytes);
    ExpectSameResidentSet(resident);
  }
}

// What a server does: one text after the other, each in a session of its own, sampled.
TEST(Endurance, SessionsComeAndGo) {
  auto context = Context::Create(OneThread());
  ASSERT_TRUE(context.ok()) << context.status();
  const auto model = Model::Open(**context, kDemo);
  ASSERT_TRUE(model.ok()) << model.status();
  const auto tokenizer = Tokenizer::Load((*model)->file());
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  const int64_t loaded = (*context)->host_allocator().bytes_in_use();
  GenerateOptions options;
  options.max_tokens = 50;
  options.ignore_end_tokens = true;
  options.sampling.temperature = 1.0f;
  options.sampling.top_p = 0.9f;
  SessionOptions session_options;
  session_options.capacity = 96;
  int64_t resident = 0, generated = 0;
  const int64_t tokens = SoakTokens(), warm_up = tokens / 10;
  while (generated < warm_up + tokens) {
    auto session = Session::Create(**context, *model, session_options);
    ASSERT_TRUE(session.ok()) << session.status();
    ++options.sampling.seed;
    const auto text = Generate(**session, **tokenizer, "23+45=", options);
    ASSERT_TRUE(text.ok()) << text.status();
    ASSERT_EQ(text->stats.generated_tokens, options.max_tokens);
    generated += text->stats.generated_tokens;
    if (resident == 0 && generated >= warm_up) resident = tools::ResidentBytes();
  }
  // The workspace may have grown since loading; sessions are gone.
  EXPECT_LE((*context)->host_allocator().bytes_in_use(), loaded + kNoise);
  ExpectSameResidentSet(resident);
}

}  // namespace
}  // namespace tandem
