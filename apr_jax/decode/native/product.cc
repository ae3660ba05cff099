// Products of rows with weights that lie as the processor wants them. XLA:CPU brings weights into that order anew in every
// product, which takes longer than the product of a few rows. Weights of 16 columns lie together, as pairs of rows:
// [n / 16, k / 2, 16, 2]. Sums are f32; each thread takes some columns for all rows, so that weights are read once.
//
// Rows that are zero, as those of idle lanes are, are not multiplied: a step costs what its busy rows cost.
//
// Letters: R rows, k numbers that are summed over, a multiple of 32, n columns, too.

#include <algorithm>
#include <cstring>
#include <vector>

#include "deal.h"
#include "tiles.h"
#include "vectors.h"

namespace ffi = xla::ffi;

namespace {

constexpr int kMost = 32;          // rows that are multiplied before the weights are read again
constexpr int kPair = 2 * kLanes;  // columns
constexpr int kVectors = 8;        // rows at a time where there are no tiles
constexpr int kPieces = 64;        // at most, of a product

template <typename To>
struct Job {
  int64_t R, k, n;
  const bf16 *x, *weights;
  To* out;
};

// sums [2, 32, 16]: rows [rows, k] times twice 16 columns; rows are padded to a multiple of 16 where tiles are used.
inline void multiply(const bf16* x, const bf16* weights, int64_t rows, int64_t k, float* sums, bool tiles) {
  if (tiles) return multiply_rows(x, weights, rows, k, sums);
  for (int64_t first = 0; first < rows; first += kVectors) {
    Lanes part[2][kVectors] = {};
    const bf16* row[kVectors];
    for (int i = 0; i < kVectors; ++i) row[i] = x + std::min(first + i, rows - 1) * k;
    for (int64_t d = 0; d < k; d += 2)
      for (int i = 0; i < kVectors; ++i)
        for (int side = 0; side < 2; ++side)
          part[side][i] = pair(part[side][i], row[i] + d, weights + (side * k + d) * kLanes);
    for (int side = 0; side < 2; ++side)
      for (int i = 0; i < kVectors; ++i) store(part[side][i], sums + (side * kMost + first + i) * kLanes);
  }
}

// The rows that are not zero.
std::vector<int64_t> rows_to_multiply(const bf16* x, int64_t R, int64_t k) {
  std::vector<int64_t> result;
  for (int64_t r = 0; r < R; ++r) {
    const bf16* row = x + r * k;
    if (std::any_of(row, row + k, [](bf16 number) { return number.bits << 1 & 0xffff; })) result.push_back(r);
  }
  return result;
}

template <typename To>
void run(ffi::ThreadPool pool, const Job<To>& job) {
  const bool tiles = kHasTiles && tiles_allowed();
  const int64_t columns = std::max<int64_t>(kPair, job.n / kPieces / kPair * kPair);
  const std::vector<int64_t> rows = rows_to_multiply(job.x, job.R, job.k);
  const int64_t some = rows.size();
  // Tiles want a multiple of 16 rows. What lies as it is wanted is not copied.
  const bool copied = some < job.R || (tiles && some % kLanes);
  std::vector<bf16> copy(copied ? (some + kLanes - 1) / kLanes * kLanes * job.k : 0);
  for (int64_t i = 0; copied && i < some; ++i) std::memcpy(&copy[i * job.k], job.x + rows[i] * job.k, job.k * sizeof(bf16));
  const bf16* x = copied ? copy.data() : job.x;
  // A thread that comes when all is done finds this frame gone: it must read nothing before it is given a piece.
  deal(pool, (job.n + columns - 1) / columns, [job, tiles, columns, x, some, rows = rows.data()](auto next) {
    float sums[2 * kMost * kLanes];
    Tiles shape(tiles);
    for (int64_t piece; (piece = next()) >= 0;) {
      const int64_t first = piece * columns, end = std::min(job.n, first + columns);
      if (some < job.R)
        for (int64_t r = 0; r < job.R; ++r) std::fill(job.out + r * job.n + first, job.out + r * job.n + end, To{});
      for (int64_t column = first; column < end; column += kPair) {
        for (int64_t from = 0; from < some; from += kMost) {
          const int64_t count = std::min<int64_t>(kMost, some - from);
          multiply(x + from * job.k, job.weights + column * job.k, count, job.k, sums, tiles);
          for (int64_t i = 0; i < count; ++i)
            for (int side = 0; side < 2; ++side)
              store(load(sums + (side * kMost + i) * kLanes),
                    job.out + rows[from + i] * job.n + column + side * kLanes);
        }
      }
    }
  });
}

ffi::Error product(ffi::ThreadPool pool, ffi::Buffer<ffi::BF16> x, ffi::Buffer<ffi::BF16> weights,
                   ffi::Result<ffi::AnyBuffer> out) {
  auto go = [&](auto type) {
    using To = decltype(type);
    auto a = x.dimensions();
    run(pool, Job<To>{a[0], a[1], weights.dimensions()[0] * kLanes, reinterpret_cast<const bf16*>(x.untyped_data()),
                      reinterpret_cast<const bf16*>(weights.untyped_data()), static_cast<To*>(out->untyped_data())});
  };
  if (out->element_type() == ffi::BF16) go(bf16{});
  else if (out->element_type() == ffi::F32) go(float{});
  else return ffi::Error::InvalidArgument("product: bfloat16 or float32 comes out");
  return ffi::Error::Success();
}

}  // namespace

extern "C" const bool apr_jax_multiplies_bfloat16 = kHasPairs;

XLA_FFI_DEFINE_HANDLER_SYMBOL(
    apr_jax_product, product,
    ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().Arg<ffi::Buffer<ffi::BF16>>().Arg<ffi::Buffer<ffi::BF16>>().Ret<ffi::AnyBuffer>());
