#include "cuda/emulator/thread.h"

namespace tandem::cuda::emulator {
namespace {

thread_local Thread* current = nullptr;

}  // namespace

Thread& CurrentThread() { return *current; }

}  // namespace tandem::cuda::emulator
