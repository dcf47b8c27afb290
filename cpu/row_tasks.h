// How the row-wise ops are cut into tasks: by size alone, so that results do not depend on the
// thread count, and coarse enough that a task outweighs handing it out. Small problems are one
// task, which the calling thread runs without waking anyone.
#pragma once

#include <algorithm>
#include <cstdint>

#include "core/status.h"
#include "core/tensor_view.h"
#include "cpu/thread_pool.h"

namespace tandem::cpu {

// Elements of one task: a few microseconds of work, and a fraction of a core's cache.
inline constexpr int64_t kTaskElements = 16384;

// fn(row_begin, row_end, worker) over [0, rows), each row of `columns` elements in one task of
// about `task_elements`.
template <typename Fn>
void ParallelRows(ThreadPool& pool, int64_t rows, int64_t columns, Fn fn,
                  int64_t task_elements = kTaskElements) {
  if (columns <= 0) return;
  const int64_t rows_per_task = std::max<int64_t>(1, task_elements / columns);
  const int64_t tasks = (rows + rows_per_task - 1) / rows_per_task;
  pool.ParallelFor(tasks, [&](int64_t task, int worker) {
    const int64_t begin = task * rows_per_task;
    fn(begin, std::min(rows, begin + rows_per_task), worker);
  });
}

// fn(row, column_begin, column_end): also cuts long rows, for ops whose elements are independent.
// column_begin is a multiple of kTaskElements.
template <typename Fn>
void ParallelSpans(ThreadPool& pool, int64_t rows, int64_t columns, Fn fn) {
  if (columns <= kTaskElements) {
    ParallelRows(pool, rows, columns, [&](int64_t begin, int64_t end, int) {
      for (int64_t row = begin; row < end; ++row) fn(row, int64_t{0}, columns);
    });
    return;
  }
  const int64_t spans = (columns + kTaskElements - 1) / kTaskElements;
  pool.ParallelFor(rows * spans, [&](int64_t task, int) {
    const int64_t begin = task % spans * kTaskElements;
    fn(task / spans, begin, std::min(columns, begin + kTaskElements));
  });
}

// supports() of SIMD kernels: the last dimension must be contiguous.
inline absl::Status CheckUnitStride(std::string_view name, const TensorView& view) {
  if (view.dim(-1) <= 1 || view.stride(-1) == 1) return absl::OkStatus();
  return Unimplemented(std::string(name), ": needs stride 1 in the last dimension, got ",
                       view.stride(-1));
}

inline absl::Status CheckSameDType(std::string_view a_name, const TensorView& a,
                                   std::string_view b_name, const TensorView& b) {
  if (a.dtype == b.dtype) return absl::OkStatus();
  return Unimplemented(std::string(b_name), ": needs the dtype of ", std::string(a_name), ", ",
                       std::string(Name(a.dtype)), ", got ", std::string(Name(b.dtype)));
}

}  // namespace tandem::cpu
