// Matrices: products of tensor cores, and the moves of 8x8 matrices.
#include <algorithm>
#include <array>
#include <utility>

#include "absl/strings/str_cat.h"
#include "core/dtype.h"
#include "core/status.h"
#include "cuda/conformance/case_helpers.h"

namespace tandem::cuda {
namespace {

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

}  // namespace

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

}  // namespace tandem::cuda
