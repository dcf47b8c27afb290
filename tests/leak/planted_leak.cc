// Leaks a KV cache on purpose: the sanitizer build must say so, or its silence elsewhere is worth
// nothing. `planted_leak none` does the same without the leak.
#include <cstdio>
#include <string_view>

#include "core/buffer.h"
#include "core/kv_cache.h"

namespace tandem {
namespace {

// Not inlined, so that no copy of the pointer survives in main's frame.
__attribute__((noinline)) bool Run(bool leak) {
  const auto allocator = MakeHostAllocator();
  auto cache = KvCache::Create(*allocator, {.kv_heads = 2, .capacity = 16, .head_dim = 64});
  if (!cache.ok()) return false;
  auto* owner = new KvCache(*std::move(cache));
  std::printf("a cache of %d bytes\n", static_cast<int>(owner->bytes()));
  if (leak) {
    owner = nullptr;
  } else {
    delete owner;
  }
  return true;
}

// Overwrites what Run left on the stack.
__attribute__((noinline)) int Scrub() {
  volatile char stack[1 << 14];
  for (volatile char& byte : stack) byte = 0;
  return stack[0];
}

}  // namespace
}  // namespace tandem

int main(int argc, char** argv) {
  const bool leak = argc < 2 || std::string_view(argv[1]) != "none";
  if (!tandem::Run(leak)) return 2;
  return tandem::Scrub();
}
