// The cases: inputs, what the documentation says of them, and their launches.
#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstring>
#include <random>

#include "absl/strings/str_cat.h"
#include "core/dtype.h"
#include "core/status.h"
#include "cuda/conformance/primitives.h"
#include "cuda/conformance/suite.h"

namespace tandem::cuda {
namespace {

using Random = std::mt19937;

template <typename T>
Bytes ToBytes(const std::vector<T>& values) {
  Bytes bytes(values.size() * sizeof(T));
  std::memcpy(bytes.data(), values.data(), bytes.size());
  return bytes;
}

template <typename T>
std::vector<T> FromBytes(const Bytes& bytes) {
  std::vector<T> values(bytes.size() / sizeof(T));
  std::memcpy(values.data(), bytes.data(), values.size() * sizeof(T));
  return values;
}

Bytes RandomBytes(Random& random, size_t count) {
  Bytes bytes(count);
  for (std::byte& b : bytes) b = static_cast<std::byte>(random());
  return bytes;
}

float RandomFloat(Random& random) { return static_cast<float>(random() % 2001) / 1000.0f - 1.0f; }

// 16-bit floats, as bits.
struct Halves {
  bool bf16;
  std::vector<uint16_t> bits;

  Halves(Random& random, bool is_bf16, size_t count) : bf16(is_bf16) {
    for (size_t i = 0; i < count; ++i) {
      const float x = RandomFloat(random);
      bits.push_back(bf16 ? ToBF16(x).bits : ToF16(x).bits);
    }
  }
  double operator[](size_t i) const {
    return bf16 ? ToFloat(BF16{bits[i]}) : ToFloat(F16{bits[i]});
  }
};

// f32 sums of products of 16-bit floats in [-1, 1]: tensor cores align the products of a step and
// keep a few bits below the largest, then truncate (no published rule).
float ProductTolerance(int64_t depth) { return 4e-7f * static_cast<float>(depth + 16); }

// --- where things lie in shared memory, by rows and 16-byte chunks

// Chunk of a row of `swizzle` bytes at which chunk c of row r is found.
int64_t SwizzledChunk(int64_t row, int64_t chunk, int swizzle) {
  switch (swizzle) {
    case 128:
      return chunk ^ (row % 8);
    case 64:
      return chunk ^ (row / 2 % 4);
    case 32:
      return chunk ^ (row / 4 % 2);
    default:
      return chunk;
  }
}

// An operand of wgmma as an image of shared memory.
struct Operand {
  std::vector<uint16_t> image;
  int32_t step_bytes = 0, leading = 16, stride = 0;
};

// `matrix`: [rows, depth] row by row. `spread`: a second choice of the strides.
Operand PlaceOperand(const std::vector<uint16_t>& matrix, int64_t rows, int64_t depth,
                     bool transposed, Swizzle mode, bool spread) {
  const int swizzle = SwizzleBytes(mode);
  const int64_t width = std::max(1, swizzle / 16);  // chunks of a swizzled row
  Operand o;
  std::vector<std::pair<int64_t, uint16_t>> places;  // byte offset, element
  int64_t size = 0;
  const auto put = [&](int64_t offset, uint16_t element) {
    places.push_back({offset, element});
    size = std::max(size, offset + 2);
  };
  if (!transposed && swizzle > 0) {
    // Eight rows of `swizzle` bytes are a block; blocks follow each other along the rows.
    o.stride = static_cast<int32_t>(8 * swizzle * (spread ? 2 : 1));
    o.step_bytes = 32;
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t k = 0; k < depth; ++k) {
        put(r / 8 * o.stride + r % 8 * swizzle + SwizzledChunk(r % 8, k / 8, swizzle) * 16 +
                k % 8 * 2,
            matrix[static_cast<size_t>(r * depth + k)]);
      }
    }
  } else if (!transposed || swizzle == 0) {
    // Blocks of eight rows by 16 bytes (K-major), or of 16 bytes of a row by eight k (MN-major).
    const int64_t row_blocks = rows / 8, k_blocks = depth / 8;
    const int64_t along_rows = spread ? 128 * k_blocks : 128;
    const int64_t along_k = spread ? 128 : 128 * row_blocks;
    o.stride = static_cast<int32_t>(along_rows);
    o.leading = static_cast<int32_t>(along_k);
    o.step_bytes = static_cast<int32_t>(2 * along_k);
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t k = 0; k < depth; ++k) {
        const int64_t inside = transposed ? k % 8 * 16 + r % 8 * 2 : r % 8 * 16 + k % 8 * 2;
        put(r / 8 * along_rows + k / 8 * along_k + inside,
            matrix[static_cast<size_t>(r * depth + k)]);
      }
    }
  } else {
    // Eight k of `swizzle` bytes of rows are a block.
    const int64_t block = 8 * swizzle, row_blocks = rows / (8 * width), k_blocks = depth / 8;
    o.leading = static_cast<int32_t>(spread ? block * k_blocks : block);
    o.stride = static_cast<int32_t>(spread ? block : block * row_blocks);
    o.step_bytes = 2 * o.stride;
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t k = 0; k < depth; ++k) {
        const int64_t chunk = r / 8;
        put(chunk / width * o.leading + k / 8 * o.stride + k % 8 * swizzle +
                SwizzledChunk(k % 8, chunk % width, swizzle) * 16 + r % 8 * 2,
            matrix[static_cast<size_t>(r * depth + k)]);
      }
    }
  }
  o.image.assign(static_cast<size_t>((size + 15) / 16 * 8), 0x7FFF);  // NaN where nothing lies
  for (const auto& [offset, element] : places) o.image[static_cast<size_t>(offset / 2)] = element;
  return o;
}

// --- the cases

LaunchConfig Config(int64_t blocks, int64_t threads, int64_t shared_bytes) {
  LaunchConfig config;
  config.grid.x = blocks;
  config.block.x = threads;
  config.shared_bytes = shared_bytes;
  return config;
}

// A kernel that reads up to three buffers and leaves `out_bytes` in another.
std::function<absl::StatusOr<Bytes>(ConformanceRunner&)> Simple(
    Primitive primitive, const LaunchConfig& config, const std::array<Bytes, 3>& inputs,
    size_t out_bytes, const std::array<int32_t, 12>& v = {}) {
  return [=](ConformanceRunner& runner) -> absl::StatusOr<Bytes> {
    PrimitiveParams params;
    params.v = v;
    TANDEM_ASSIGN_OR_RETURN(params.a, runner.Upload(inputs[0]));
    TANDEM_ASSIGN_OR_RETURN(params.b, runner.Upload(inputs[1]));
    TANDEM_ASSIGN_OR_RETURN(params.c, runner.Upload(inputs[2]));
    TANDEM_ASSIGN_OR_RETURN(params.out, runner.Upload(Bytes(out_bytes, std::byte{0xEE})));
    TANDEM_RETURN_IF_ERROR(runner.Launch(gpu::PrimitiveFunction(primitive),
                                         emulated::PrimitiveFunction(primitive), config, &params));
    return runner.Download(params.out, out_bytes);
  };
}

void AddProducts(std::vector<ConformanceCase>& cases, Random& random) {
  constexpr size_t kBlocks = 8;
  for (const bool bf16 : {false, true}) {
    const Halves a(random, bf16, kBlocks * 256), b(random, bf16, kBlocks * 128);
    std::vector<float> c(kBlocks * 128), out(c.size());
    for (float& x : c) x = RandomFloat(random);
    for (size_t i = 0; i < out.size(); ++i) {
      const size_t block = i / 128, m = i % 128 / 8, n = i % 8;
      double sum = c[i];
      for (size_t k = 0; k < 16; ++k) {
        sum += a[block * 256 + m * 16 + k] * b[block * 128 + n * 16 + k];
      }
      out[i] = static_cast<float>(sum);
    }
    ConformanceCase test;
    test.name = absl::StrCat("mma.m16n8k16.", bf16 ? "bf16" : "f16");
    test.capability = 80;
    test.exact = false;
    test.tolerance = ProductTolerance(16);
    test.expected = ToBytes(out);
    test.run =
        Simple(bf16 ? Primitive::kMultiplyBF16 : Primitive::kMultiplyF16, Config(kBlocks, 32, 0),
               {ToBytes(a.bits), ToBytes(b.bits), ToBytes(c)}, out.size() * 4);
    cases.push_back(std::move(test));
  }
  std::vector<int8_t> a(kBlocks * 512), b(kBlocks * 256);
  std::vector<int32_t> c(kBlocks * 128), out(c.size());
  for (int8_t& x : a) x = static_cast<int8_t>(random());
  for (int8_t& x : b) x = static_cast<int8_t>(random());
  for (int32_t& x : c) x = static_cast<int32_t>(random() % 100000);
  for (size_t i = 0; i < out.size(); ++i) {
    const size_t block = i / 128, m = i % 128 / 8, n = i % 8;
    out[i] = c[i];
    for (size_t k = 0; k < 32; ++k) {
      out[i] += a[block * 512 + m * 32 + k] * b[block * 256 + n * 32 + k];
    }
  }
  ConformanceCase test;
  test.name = "mma.m16n8k32.s8";
  test.capability = 80;
  test.expected = ToBytes(out);
  test.run = Simple(Primitive::kMultiplyI8, Config(kBlocks, 32, 0),
                    {ToBytes(a), ToBytes(b), ToBytes(c)}, out.size() * 4);
  cases.push_back(std::move(test));
}

void AddMatrixMoves(std::vector<ConformanceCase>& cases, Random& random) {
  for (int which = 0; which < 3; ++which) {
    const size_t count = size_t{1} << which;
    for (const bool transposed : {false, true}) {
      std::vector<uint16_t> tiles(count * 64);
      for (uint16_t& x : tiles) x = static_cast<uint16_t>(random());
      std::vector<uint32_t> registers(32 * count);
      for (size_t lane = 0; lane < 32; ++lane) {
        for (size_t j = 0; j < count; ++j) {
          uint32_t value = 0;
          for (size_t i = 0; i < 2; ++i) {
            const size_t row = lane / 4, column = lane % 4 * 2 + i;
            const size_t at = transposed ? column * 8 + row : row * 8 + column;
            value |= uint32_t{tiles[j * 64 + at]} << (16 * i);
          }
          registers[lane * count + j] = value;
        }
      }
      const auto offset = which + (transposed ? 3 : 0);
      const std::string name = absl::StrCat("x", count, transposed ? ".trans" : "");
      const LaunchConfig config = Config(1, 32, static_cast<int64_t>(count) * 128);
      ConformanceCase load, store;
      load.name = "ldmatrix." + name;
      load.capability = 80;
      load.expected = ToBytes(registers);
      load.run = Simple(static_cast<Primitive>(static_cast<int>(Primitive::kLoadMatrix1) + offset),
                        config, {ToBytes(tiles), {}, {}}, load.expected.size());
      store.name = "stmatrix." + name;
      store.capability = 90;
      store.expected = ToBytes(tiles);
      store.run =
          Simple(static_cast<Primitive>(static_cast<int>(Primitive::kStoreMatrix1) + offset),
                 config, {ToBytes(registers), {}, {}}, store.expected.size());
      cases.push_back(std::move(load));
      cases.push_back(std::move(store));
    }
  }
}

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

void AddBarriers(std::vector<ConformanceCase>& cases) {
  constexpr int32_t kRounds = 20;
  std::vector<int32_t> sums(64);
  for (int32_t i = 0; i < 64; ++i) {
    sums[static_cast<size_t>(i)] = 64 * kRounds * (kRounds - 1) / 2 + kRounds * i;
  }
  ConformanceCase ring;
  ring.name = "mbarrier.ring";
  ring.capability = 80;
  ring.expected = ToBytes(sums);
  ring.run =
      Simple(Primitive::kMbarrierRing, Config(1, 96, 3 * 64 * 4 + 32 + 24), {}, 256, {kRounds});
  cases.push_back(std::move(ring));

  std::vector<uint32_t> board(128), out(128);
  for (uint32_t i = 0; i < 64; ++i) board[i] = i * 3;
  for (uint32_t i = 64; i < 128; ++i) out[i] = board[i] = board[(i + 5) % 64] + 1;
  for (uint32_t i = 0; i < 64; ++i) out[i] = board[64 + (i + 17) % 64];
  ConformanceCase named;
  named.name = "bar.named";
  named.capability = 80;
  named.expected = ToBytes(out);
  named.run = Simple(Primitive::kNamedBarriers, Config(1, 128, 512), {}, 512);
  cases.push_back(std::move(named));

  std::vector<uint32_t> warp(32 * 12);
  const auto x = [](uint32_t lane) { return lane * lane + 7; };
  uint32_t sum = 0, thirds = 0;
  for (uint32_t lane = 0; lane < 32; ++lane) {
    sum += x(lane);
    thirds |= lane % 3 == 0 ? 1u << lane : 0;
  }
  for (uint32_t lane = 0; lane < 32; ++lane) {
    const std::array<uint32_t, 12> expected = {x(5),
                                               x(31 - lane),
                                               x(lane ^ 9),
                                               x(lane < 3 ? lane : lane - 3),
                                               x(lane + 4 > 31 ? lane : lane + 4),
                                               thirds,
                                               0,
                                               1,
                                               x(lane ^ 1),
                                               lane < 16 ? 0x00005555u : 0x55550000u,
                                               sum,
                                               31};
    std::copy(expected.begin(), expected.end(), warp.begin() + lane * 12);
  }
  ConformanceCase shuffles;
  shuffles.name = "shfl.vote";
  shuffles.capability = 80;
  shuffles.expected = ToBytes(warp);
  shuffles.run = Simple(Primitive::kWarp, Config(1, 32, 0), {}, shuffles.expected.size());
  cases.push_back(std::move(shuffles));
}

void AddMemory(std::vector<ConformanceCase>& cases, Random& random) {
  ConformanceCase vectors;
  vectors.name = "memory.vectors";
  vectors.capability = 80;
  vectors.expected = RandomBytes(random, 128 * 28);
  vectors.run = Simple(Primitive::kVectorAccesses, Config(1, 128, 0), {vectors.expected, {}, {}},
                       vectors.expected.size());
  cases.push_back(std::move(vectors));

  // Which thread exchanges first is open: its mark is set to 1.
  constexpr uint32_t kThreads = 32 * 128;
  std::vector<uint32_t> out(16);
  out[0] = 3 * kThreads;
  out[1] = static_cast<uint32_t>(-2 * static_cast<int32_t>(kThreads));
  out[2] = kThreads - 1;
  out[3] = kThreads - 1 - 4000;
  out[4] = kThreads % 100;
  out[5] = 1;
  out[6] = 1;
  out[7] = 128 * 127 / 2;
  const uint64_t sum = uint64_t{kThreads} << 33, largest = uint64_t{kThreads - 1} << 32;
  std::memcpy(&out[8], &sum, 8);
  std::memcpy(&out[10], &largest, 8);
  const float halves = 0.5f * kThreads;
  std::memcpy(&out[12], &halves, 4);
  ConformanceCase atomics;
  atomics.name = "memory.atomics";
  atomics.capability = 80;
  atomics.expected = ToBytes(out);
  atomics.run = [](ConformanceRunner& runner) -> absl::StatusOr<Bytes> {
    PrimitiveParams params;
    TANDEM_ASSIGN_OR_RETURN(params.out, runner.Upload(Bytes(64)));
    TANDEM_RETURN_IF_ERROR(runner.Launch(gpu::PrimitiveFunction(Primitive::kAtomics),
                                         emulated::PrimitiveFunction(Primitive::kAtomics),
                                         Config(32, 128, 0), &params));
    TANDEM_ASSIGN_OR_RETURN(const Bytes bytes, runner.Download(params.out, 64));
    std::vector<uint32_t> words = FromBytes<uint32_t>(bytes);
    if (words[5] >= 1 && words[5] <= kThreads) words[5] = 1;
    return ToBytes(words);
  };
  cases.push_back(std::move(atomics));
}

void AddMath(std::vector<ConformanceCase>& cases, Random& random) {
  constexpr size_t kCount = 1024;
  std::vector<float> in(kCount), out(kCount * 8);
  for (size_t i = 0; i < kCount; ++i) {
    in[i] = RandomFloat(random) * (i % 2 == 0 ? 1.0f : 8.0f);
    if (in[i] == 0.0f) in[i] = 0.5f;
    const double x = in[i];
    const std::array<double, 8> values = {std::exp(x),
                                          std::log(std::fabs(x)),
                                          std::tanh(x),
                                          std::sqrt(std::fabs(x)),
                                          std::sin(x * 3.14159265358979323846),
                                          std::cos(x * 3.14159265358979323846),
                                          ToFloat(ToF16(in[i])),
                                          ToFloat(ToBF16(in[i]))};
    for (size_t j = 0; j < 8; ++j) out[i * 8 + j] = static_cast<float>(values[j]);
  }
  ConformanceCase math;
  math.name = "math";
  math.capability = 80;
  math.exact = false;
  math.tolerance = 1e-6f;  // of values up to e^8 also relative: see Difference
  math.expected = ToBytes(out);
  math.run = Simple(Primitive::kMath, Config(kCount / 128, 128, 0), {ToBytes(in), {}, {}},
                    math.expected.size(), {static_cast<int32_t>(kCount)});
  cases.push_back(std::move(math));
}

void AddInteger(std::vector<ConformanceCase>& cases, Random& random) {
  constexpr size_t kCount = 128;
  std::vector<uint32_t> in(kCount * 3), out(kCount * 3);
  for (uint32_t& x : in) x = static_cast<uint32_t>(random());
  for (size_t i = 0; i < kCount; ++i) {
    const uint32_t x = in[i * 3], y = in[i * 3 + 1], z = in[i * 3 + 2];
    int64_t sum = z;
    for (int byte = 0; byte < 4; ++byte) {
      // As signed: 256 less from 128 on.
      const int64_t u = x >> (8 * byte) & 255u, v = y >> (8 * byte) & 255u;
      sum += (u < 128 ? u : u - 256) * (v < 128 ? v : v - 256);
    }
    out[i * 3] = static_cast<uint32_t>(sum);
    const uint32_t shift = z % 32;
    out[i * 3 + 1] = shift == 0 ? x : x >> shift | y << (32 - shift);
    out[i * 3 + 2] = std::bit_cast<uint32_t>(ToFloat(F16{static_cast<uint16_t>(x & 0xFBFFu)}));
  }
  ConformanceCase test;
  test.name = "integer";
  test.capability = 80;
  test.expected = ToBytes(out);
  test.run = Simple(Primitive::kInteger, Config(1, kCount, 0), {ToBytes(in), {}, {}},
                    test.expected.size());
  cases.push_back(std::move(test));
}

void AddWarpgroup(std::vector<ConformanceCase>& cases, Random& random, const WarpgroupShape& shape,
                  Swizzle swizzle, bool spread) {
  // What one row of a swizzled tile holds; 32 otherwise.
  const int64_t depth = swizzle == Swizzle::kNone ? 32 : SwizzleBytes(swizzle) / 2;
  const int64_t n = shape.n;
  const Halves a(random, shape.bf16, static_cast<size_t>(64 * depth));
  const Halves b(random, shape.bf16, static_cast<size_t>(n * depth));
  std::vector<float> out(static_cast<size_t>(64 * n));
  for (int64_t i = 0; i < 64 * n; ++i) {
    double sum = 0.0;
    for (int64_t k = 0; k < depth; ++k) {
      sum += a[static_cast<size_t>(i / n * depth + k)] * b[static_cast<size_t>(i % n * depth + k)];
    }
    out[static_cast<size_t>(i)] = static_cast<float>(sum);
  }
  const Operand pa = PlaceOperand(a.bits, 64, depth, shape.transpose_a, swizzle, spread);
  const Operand pb = PlaceOperand(b.bits, n, depth, shape.transpose_b, swizzle, spread);
  const Bytes a_bytes = ToBytes(shape.a_in_registers ? a.bits : pa.image);
  const Bytes b_bytes = ToBytes(pb.image);
  const auto a_shared = static_cast<int32_t>(shape.a_in_registers ? 0 : a_bytes.size());
  const std::array<int32_t, 12> v = {a_shared,
                                     static_cast<int32_t>(b_bytes.size()),
                                     static_cast<int32_t>(depth / 16),
                                     pa.step_bytes,
                                     pb.step_bytes,
                                     static_cast<int32_t>(swizzle),
                                     pa.leading,
                                     pa.stride,
                                     pb.leading,
                                     pb.stride};
  ConformanceCase test;
  test.name = absl::StrCat("wgmma.", shape.bf16 ? "bf16" : "f16", ".n", n,
                           shape.a_in_registers ? ".a_registers" : ".a_shared",
                           shape.transpose_a ? ".a_transposed" : "",
                           shape.transpose_b ? ".b_transposed" : "", ".swizzle",
                           SwizzleBytes(swizzle), spread ? ".spread" : "");
  test.capability = 90;
  test.exact = false;
  test.tolerance = ProductTolerance(depth);
  test.expected = ToBytes(out);
  const int64_t shared = (a_shared + 1023) / 1024 * 1024 + static_cast<int64_t>(b_bytes.size());
  const size_t out_bytes = out.size() * 4;
  test.run = [=](ConformanceRunner& runner) -> absl::StatusOr<Bytes> {
    PrimitiveParams params;
    params.v = v;
    TANDEM_ASSIGN_OR_RETURN(params.a, runner.Upload(a_bytes));
    TANDEM_ASSIGN_OR_RETURN(params.b, runner.Upload(b_bytes));
    TANDEM_ASSIGN_OR_RETURN(params.out, runner.Upload(Bytes(out_bytes)));
    TANDEM_RETURN_IF_ERROR(runner.Launch(gpu::WarpgroupFunction(shape),
                                         emulated::WarpgroupFunction(shape), Config(1, 128, shared),
                                         &params));
    return runner.Download(params.out, out_bytes);
  };
  cases.push_back(std::move(test));
}

void AddWarpgroups(std::vector<ConformanceCase>& cases, Random& random) {
  const std::array<Swizzle, 4> swizzles = {Swizzle::kNone, Swizzle::k32, Swizzle::k64,
                                           Swizzle::k128};
  for (const bool bf16 : {false, true}) {
    for (int which = 0; which < 6; ++which) {
      WarpgroupShape shape;
      shape.bf16 = bf16;
      shape.a_in_registers = which >= 4;
      shape.transpose_a = which < 4 && which / 2 == 1;
      shape.transpose_b = which % 2 == 1;
      for (const Swizzle swizzle : swizzles) {
        for (const bool spread : {false, true}) AddWarpgroup(cases, random, shape, swizzle, spread);
      }
    }
  }
  for (int n = 8; n <= 256; n += 8) {
    if (n == 64) continue;  // above
    for (const bool in_registers : {false, true}) {
      WarpgroupShape shape;
      shape.bf16 = true;
      shape.n = n;
      shape.a_in_registers = in_registers;
      AddWarpgroup(cases, random, shape, Swizzle::k128, false);
    }
  }
}

}  // namespace

std::vector<ConformanceCase> ConformanceCases() {
  Random random(20251121);
  std::vector<ConformanceCase> cases;
  AddProducts(cases, random);
  AddMatrixMoves(cases, random);
  AddSmallCopies(cases, random);
  AddTensorCopies(cases, random);
  AddBarriers(cases);
  AddMemory(cases, random);
  AddMath(cases, random);
  AddInteger(cases, random);
  AddWarpgroups(cases, random);
  return cases;
}

}  // namespace tandem::cuda
