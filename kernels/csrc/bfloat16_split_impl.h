// The first pass over long vectors with tiles of bfloat16: x' = xh + xl + ex and c' = ch + cl + ec,
// and x'.c' ~ xh.ch + xh.cl + xl.ch in float32. Included by nearest_codeword_impl.h where an
// instruction set defines `TileState` and `multiply_tiles`.

namespace vqcodec {
namespace {

constexpr int64_t kSplitFrom = 64;  // dimensions; below, the running minimum costs too much of it
constexpr int kHalf = kTile / 2;    // codewords or lanes in a tile
constexpr int kTileValues = kHalf * kTile;

int64_t split_steps(int64_t dim) { return (dim + kTile - 1) / kTile; }

int64_t split_size(int64_t dim, int64_t padded_size) {
  return dim < kSplitFrom ? 0 : padded_size / kHalf * split_steps(dim) * 2 * kTileValues;
}

// Round to nearest even, as the upper half of the bits.
template <typename Bits>
inline Bits round_bits(Bits bits) {
  return (bits + 0x7fff + ((bits >> 16) & 1)) & 0xffff0000u;
}

// Parts of codeword k go to split[k / 16][step][part][k % 16].
void split_blocks(const Codebook& book, int64_t first, int64_t last, Extent* extent) {
  const int64_t steps = split_steps(book.dim);
  const int64_t end = last == book.blocks() ? book.padded_size() : last * kBlock;
  for (int64_t k = first * kBlock; k < end; ++k) {
    double low = 0.0, error = 0.0;
    uint16_t* out = book.split + k / kHalf * steps * 2 * kTileValues + k % kHalf * kTile;
    const float* block = book.packed + k / kBlock * book.dim * kBlock + k % kBlock;
    for (int64_t d = 0; d < steps * kTile; ++d) {
      const float value = d < book.dim && k / kBlock < book.blocks() ? block[d * kBlock] : 0.0f;
      uint32_t bits;
      std::memcpy(&bits, &value, 4);
      const uint32_t high_bits = round_bits(bits);
      float high_part, low_part;
      std::memcpy(&high_part, &high_bits, 4);
      const float rest = value - high_part;
      std::memcpy(&bits, &rest, 4);
      const uint32_t low_bits = round_bits(bits);
      std::memcpy(&low_part, &low_bits, 4);
      uint16_t* at = out + d / kTile * 2 * kTileValues + d % kTile;
      at[0] = static_cast<uint16_t>(high_bits >> 16);
      at[kTileValues] = static_cast<uint16_t>(low_bits >> 16);
      const double left = static_cast<double>(rest) - low_part;
      low += static_cast<double>(low_part) * low_part;
      error += left * left;
    }
    low = std::sqrt(low);
    error = std::sqrt(error);
    extent->split_low = low > extent->split_low ? low : extent->split_low;
    extent->split_error = error > extent->split_error ? error : extent->split_error;
  }
}

typedef uint32_t VecU __attribute__((vector_size(kLanes * 4)));

inline VecF as_floats(VecU bits) {
  VecF value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

inline VecU as_bits(VecF value) {
  VecU bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

// Tiles of 16 pairs of dimensions by 16 lanes: split[step][part][half of the lanes].
void split_panel(Panel* panel, int64_t dim) {
  const int64_t steps = split_steps(dim);
  for (int half = 0; half < 2; ++half) {
    VecF low_norm{}, error_norm{};
    for (int64_t pair = 0; pair < steps * kHalf; ++pair) {
      VecU high_pair{}, low_pair{};
      for (int i = 0; i < 2; ++i) {
        const int64_t d = 2 * pair + i;
        const VecF value = d < dim ? load(panel->x + d * kTile + half * kHalf) : VecF{};
        const VecU high = round_bits(as_bits(value));
        const VecF rest = value - as_floats(high);
        const VecU low = round_bits(as_bits(rest));
        const VecF left = rest - as_floats(low);
        low_norm += as_floats(low) * as_floats(low);
        error_norm += left * left;
        // The first of a pair is in the lower half of a lane.
        high_pair |= i == 0 ? high >> 16 : high;
        low_pair |= i == 0 ? low >> 16 : low;
      }
      uint16_t* at = panel->split + (pair / kHalf * 4 + half) * kTileValues + pair % kHalf * kTile;
      std::memcpy(at, &high_pair, sizeof high_pair);
      std::memcpy(at + 2 * kTileValues, &low_pair, sizeof low_pair);
    }
    store(panel->split_low + half * kHalf, low_norm);
    store(panel->split_error + half * kHalf, error_norm);
  }
}

void scan_split(Panel* panel, const Codebook& book, const float* h, int64_t first, int64_t last) {
  const int64_t steps = split_steps(book.dim);
  alignas(64) float products[4 * kHalf * kHalf];  // [half of the codewords][half of the lanes][16][16]
  Running<2> running;
  running.read(*panel);
  for (int64_t k = first * kBlock; k < last * kBlock; k += kTile) {
    const uint16_t* codewords = book.split + k / kHalf * steps * 2 * kTileValues;
    multiply_tiles(codewords, codewords + steps * 2 * kTileValues, panel->split, steps, products);
    for (int b = 0; b < kTile / kBlock; ++b) {
      for (int half = 0; half < 2; ++half) {
        const float* here = products + (b / 2 * 2 + half) * kHalf * kHalf + b % 2 * kBlock * kHalf;
        VecF least = splat(h[k + b * kBlock]) - load(here);
#pragma GCC unroll 8
        for (int j = 1; j < kBlock; ++j)
          least = minimum(least, splat(h[k + b * kBlock + j]) - load(here + j * kHalf));
        running.take(half, least, static_cast<int32_t>(k / kBlock + b));
      }
    }
  }
  running.write(panel);
}

// Bound on what the split and its sums add to the rounding of a float32 score.
float split_bound(const Codebook& book, float norm, float low_squared, float error_squared) {
  if (!book.split) return 0.0f;
  const float steps = static_cast<float>(split_steps(book.dim));
  const Bound bound(book);
  const float low = bound.length(low_squared), error = bound.length(error_squared);
  // A product of tiles sums 32 products, then adds them; three of them to a step.
  const float sums = 0x1p-24f * (36 + 3 * steps) * 1.03f;
  return 1.01f * (error * book.radius + norm * book.split_error + low * book.split_low) +
         sums * norm * book.radius + 3 * bound.tiny * (2 + book.radius + norm);
}

}  // namespace
}  // namespace vqcodec
