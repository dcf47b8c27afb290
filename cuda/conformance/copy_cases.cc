// Asynchronous copies: by threads, and in bulk.
#include <algorithm>
#include <array>

#include "absl/strings/str_cat.h"
#include "core/dtype.h"
#include "core/status.h"
#include "cuda/conformance/case_helpers.h"

namespace tandem::cuda {

void AddSmallCopies(std::vector<ConformanceCase>& cases, Random& random) {
  for (int which = 0; which < 3; ++which) {
    const size_t bytes = size_t{4} << which;
    const Bytes in = RandomBytes(random, 128 * bytes);
    Bytes image(in.size());
    for (size_t t = 0; t < 128; ++t) {
      std::copy_n(in.begin() + static_cast<std::ptrdiff_t>(t * bytes), t % (bytes + 1),
                  image.begin() + static_cast<std::ptrdiff_t>(t * bytes));
    }
    std::vector<uint32_t> words = FromBytes<uint32_t>(image);
    std::reverse(words.begin(), words.end());
    ConformanceCase test;
    test.name = absl::StrCat("cp.async.", bytes);
    test.capability = 80;
    test.expected = ToBytes(words);
    test.run = Simple(static_cast<Primitive>(static_cast<int>(Primitive::kCopyAsync4) + which),
                      Config(1, 128, static_cast<int64_t>(128 * bytes)), {in, {}, {}}, in.size());
    cases.push_back(std::move(test));
  }
  ConformanceCase arrive;
  arrive.name = "cp.async.mbarrier.arrive";
  arrive.capability = 80;
  arrive.expected = RandomBytes(random, 512);
  arrive.run =
      Simple(Primitive::kCopyAsyncArrive, Config(1, 64, 512 + 8), {arrive.expected, {}, {}}, 512);
  cases.push_back(std::move(arrive));
  for (const int32_t bytes : {16, 256, 4096}) {
    for (const bool load : {true, false}) {
      ConformanceCase test;
      test.name = absl::StrCat("cp.async.bulk.", load ? "load." : "store.", bytes);
      test.capability = 90;
      test.expected = RandomBytes(random, static_cast<size_t>(bytes));
      test.run =
          Simple(load ? Primitive::kBulkLoad : Primitive::kBulkStore, Config(1, 64, bytes + 8),
                 {test.expected, {}, {}}, static_cast<size_t>(bytes), {0, 0, 0, 0, 0, bytes});
      cases.push_back(std::move(test));
    }
    ConformanceCase reuse;
    reuse.name = absl::StrCat("cp.async.bulk.wait_group.read.", bytes);
    reuse.capability = 90;
    reuse.expected = RandomBytes(random, static_cast<size_t>(8 * bytes));
    reuse.run = Simple(Primitive::kBulkStoreReuse, Config(1, 64, bytes), {reuse.expected, {}, {}},
                       reuse.expected.size(), {8, 0, 0, 0, 0, bytes});
    cases.push_back(std::move(reuse));
  }
}

// One box of a random tensor, which reaches beyond the tensor at both ends where it may.
void AddTensorCopies(std::vector<ConformanceCase>& cases, Random& random) {
  struct Element {
    DType dtype;
    const char* name;
  };
  for (size_t rank = 1; rank <= 5; ++rank) {
    for (const Swizzle swizzle : {Swizzle::kNone, Swizzle::k32, Swizzle::k64, Swizzle::k128}) {
      for (const Element& element : {Element{DType::kF32, "f32"}, Element{DType::kBF16, "bf16"},
                                     Element{DType::kI8, "i8"}}) {
        const int64_t size = BlockBytes(element.dtype);
        const int64_t row_bytes = swizzle == Swizzle::kNone ? 48 : SwizzleBytes(swizzle);
        TensorMapSpec spec;
        spec.dtype = element.dtype;
        spec.rank = static_cast<int>(rank);
        spec.swizzle = swizzle;
        std::array<int32_t, 12> v = {};
        int64_t rows = 1, stride = 1;
        for (size_t i = 0; i < rank; ++i) {
          spec.box[i] = static_cast<int32_t>(i == 0   ? row_bytes / size
                                             : i == 1 ? 12
                                                      : 2 + random() % 2);
          if (i > 0) rows *= spec.box[i];
          spec.extent[i] = spec.box[i] + static_cast<int64_t>(random() % 5) + (i == 0 ? 3 : 0);
          if (i == 1) stride = (spec.extent[0] * size + 15) / 16 * 16 + 16;
          if (i > 0) {
            spec.stride[i] = stride;
            stride *= spec.extent[i];
          }
          // -2 .. beyond the end.
          v[i] = static_cast<int32_t>(random() % 8) - 2;
        }
        const int64_t memory = rank == 1 ? (spec.extent[0] * size + 15) / 16 * 16 : stride;
        const int64_t box_bytes = rows * row_bytes;
        v[5] = static_cast<int32_t>(box_bytes);
        const Bytes tensor = RandomBytes(random, static_cast<size_t>(memory));
        const Bytes box = RandomBytes(random, static_cast<size_t>(box_bytes));
        Bytes image(box.size()), stored = tensor;
        for (int64_t row = 0; row < rows; ++row) {
          int64_t rest = row, at = 0;
          bool inside = true;
          for (size_t i = 1; i < rank; ++i) {
            const int64_t index = v[i] + rest % spec.box[i];
            rest /= spec.box[i];
            inside = inside && index >= 0 && index < spec.extent[i];
            at += index * spec.stride[i];
          }
          for (int64_t b = 0; b < row_bytes; ++b) {
            const int64_t column = v[0] + b / size;
            if (!inside || column < 0 || column >= spec.extent[0]) continue;
            const int64_t global = at + column * size + b % size;
            const int64_t shared =
                row * row_bytes + (swizzle == Swizzle::kNone
                                       ? b
                                       : SwizzledChunk(row * row_bytes / SwizzleBytes(swizzle),
                                                       b / 16, SwizzleBytes(swizzle)) *
                                                 16 +
                                             b % 16);
            image[static_cast<size_t>(shared)] = tensor[static_cast<size_t>(global)];
            stored[static_cast<size_t>(global)] = box[static_cast<size_t>(shared)];
          }
        }
        for (const bool load : {true, false}) {
          const auto primitive = static_cast<Primitive>(
              static_cast<int>(load ? Primitive::kTensorLoad1 : Primitive::kTensorStore1) +
              static_cast<int>(rank) - 1);
          ConformanceCase test;
          test.name = absl::StrCat("tensor.", load ? "load." : "store.", rank, "d.", element.name,
                                   ".swizzle", SwizzleBytes(swizzle));
          test.capability = 90;
          test.expected = load ? image : stored;
          test.run = [=](ConformanceRunner& runner) -> absl::StatusOr<Bytes> {
            PrimitiveParams params;
            params.v = v;
            TANDEM_ASSIGN_OR_RETURN(void* const memory_of, runner.Upload(tensor));
            TensorMapSpec here = spec;
            here.data = memory_of;
            TANDEM_ASSIGN_OR_RETURN(params.map, runner.runtime().EncodeTensorMap(here));
            TANDEM_ASSIGN_OR_RETURN(params.a, runner.Upload(box));
            TANDEM_ASSIGN_OR_RETURN(params.out, runner.Upload(Bytes(box.size())));
            TANDEM_RETURN_IF_ERROR(runner.Launch(gpu::PrimitiveFunction(primitive),
                                                 emulated::PrimitiveFunction(primitive),
                                                 Config(1, 128, box_bytes + 8), &params));
            return load ? runner.Download(params.out, box.size())
                        : runner.Download(memory_of, tensor.size());
          };
          cases.push_back(std::move(test));
        }
      }
    }
  }
}

}  // namespace tandem::cuda
