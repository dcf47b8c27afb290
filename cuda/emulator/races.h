// What ThreadSanitizer is told of a kernel. It is the race detector: every CUDA thread is a TSan
// fiber of its own, switched without an edge; edges are made by what orders memory on a GPU
// (barriers, SyncWarp, mbarriers, waits for asynchronous work), not by shuffles, votes or by the
// order in which the emulator happens to run threads. Without TSan all of this is nothing.
#pragma once

#include <cstddef>
#include <optional>

#include "cuda/emulator/watchdog.h"

#if TANDEM_TSAN
#include <sanitizer/tsan_interface.h>
extern "C" {
void __tsan_read_range(void* address, unsigned long bytes);
void __tsan_write_range(void* address, unsigned long bytes);
void AnnotateIgnoreReadsBegin(const char* file, int line);
void AnnotateIgnoreReadsEnd(const char* file, int line);
void AnnotateIgnoreWritesBegin(const char* file, int line);
void AnnotateIgnoreWritesEnd(const char* file, int line);
}
#endif

namespace tandem::cuda::emulator {

#if TANDEM_TSAN

// What happened before Release(object) happened before what follows an Acquire(object).
inline void Acquire(const void* object) { __tsan_acquire(const_cast<void*>(object)); }
inline void Release(const void* object) { __tsan_release(const_cast<void*>(object)); }
inline constexpr bool kDetectsRaces = true;

// The emulator's own state is touched from every fiber, by one host thread: no races there.
class InsideEmulator {
 public:
  InsideEmulator() {
    AnnotateIgnoreReadsBegin(__FILE__, __LINE__);
    AnnotateIgnoreWritesBegin(__FILE__, __LINE__);
  }
  ~InsideEmulator() {
    AnnotateIgnoreWritesEnd(__FILE__, __LINE__);
    AnnotateIgnoreReadsEnd(__FILE__, __LINE__);
  }
  InsideEmulator(const InsideEmulator&) = delete;
  InsideEmulator& operator=(const InsideEmulator&) = delete;

 private:
  const KernelCode::Scope left_{false};
};

// Accesses in the name of the CUDA thread or proxy that is running. Inside the emulator only.
inline void NoteAccess(const void* data, size_t bytes, bool write) {
  AnnotateIgnoreWritesEnd(__FILE__, __LINE__);
  AnnotateIgnoreReadsEnd(__FILE__, __LINE__);
  (write ? __tsan_write_range : __tsan_read_range)(const_cast<void*>(data), bytes);
  AnnotateIgnoreReadsBegin(__FILE__, __LINE__);
  AnnotateIgnoreWritesBegin(__FILE__, __LINE__);
}
inline void NoteRead(const void* data, size_t bytes) { NoteAccess(data, bytes, false); }
inline void NoteWrite(const void* data, size_t bytes) { NoteAccess(data, bytes, true); }

// A unit of the GPU that accesses memory by itself (bulk copies, a warpgroup's tensor cores), as a
// TSan fiber: code in its scope is executed in its name.
class ProxyThread {
 public:
  ProxyThread() : fiber_(__tsan_create_fiber(0)) {}
  ~ProxyThread() { __tsan_destroy_fiber(fiber_); }
  ProxyThread(const ProxyThread&) = delete;
  ProxyThread& operator=(const ProxyThread&) = delete;

  class Scope {
   public:
    explicit Scope(const ProxyThread& proxy) : back_(__tsan_get_current_fiber()) {
      __tsan_switch_to_fiber(proxy.fiber_, __tsan_switch_to_fiber_no_sync);
      inside_.emplace();
    }
    ~Scope() {
      inside_.reset();
      __tsan_switch_to_fiber(back_, __tsan_switch_to_fiber_no_sync);
    }
    Scope(const Scope&) = delete;
    Scope& operator=(const Scope&) = delete;

   private:
    void* back_;
    std::optional<InsideEmulator> inside_;
  };

 private:
  void* fiber_;
};

#else

inline void Acquire(const void*) {}
inline void Release(const void*) {}
inline void NoteRead(const void*, size_t) {}
inline void NoteWrite(const void*, size_t) {}
inline constexpr bool kDetectsRaces = false;

class InsideEmulator {
  const KernelCode::Scope left_{false};
};

class ProxyThread {
 public:
  class Scope {
   public:
    explicit Scope(const ProxyThread&) {}
    ~Scope() {}
  };
};

#endif

}  // namespace tandem::cuda::emulator
