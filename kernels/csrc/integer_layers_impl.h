// The exact integer layers, included by one translation unit for each instruction set, which may
// define VQCODEC_DOT_U8S8 for its dot product and VQCODEC_LAYER_RESULTS for what becomes of the sums.
#include <cstring>

#include "kernels.h"

namespace vqcodec {
namespace {

inline uint8_t requantised(int32_t acc, int32_t multiplier, int shift) {
  const int64_t scaled =
      (static_cast<int64_t>(acc) * multiplier + (int64_t{1} << (shift - 1))) >> shift;
  return static_cast<uint8_t>(scaled < 0 ? 0 : scaled > 255 ? 255 : scaled);
}

#ifndef VQCODEC_DOT_U8S8
// kLayerRows rows x 16 outputs: acc[r][o] += sum over 4 inputs, for all quads.
inline void dot_rows(const uint8_t* const* x, int quads, const int8_t* packed, int32_t (*acc)[16]) {
  for (int r = 0; r < kLayerRows; ++r) {
    for (int q = 0; q < quads; ++q) {
      const int8_t* w = packed + q * 64;
      const uint8_t* v = x[r] + 4 * q;
      const int32_t x0 = v[0], x1 = v[1], x2 = v[2], x3 = v[3];
      for (int o = 0; o < 16; ++o)
        acc[r][o] += x0 * w[4 * o] + x1 * w[4 * o + 1] + x2 * w[4 * o + 2] + x3 * w[4 * o + 3];
    }
  }
}
#endif

// Sums of kLayerRows rows and 16 outputs at a time, block by block inside the rows: store(row, number
// of rows, block, sums). Rows are padded with zeros to a multiple of 4 inputs, so that blocks need no
// tail; the rows that are missing from the last ones repeat it.
template <typename Store>
void for_each_block(const uint8_t* x, int64_t x_stride, int64_t n, int inputs,
                    const int8_t* packed, int outputs, const int32_t* bias, Store store) {
  const int quads = padded_inputs(inputs) / 4;
  const int blocks = padded_outputs(outputs) / 16;
  alignas(64) uint8_t padded[kLayerRows][kMaxInputs];
  for (int64_t row = 0; row < n; row += kLayerRows) {
    const int rows = static_cast<int>(n - row < kLayerRows ? n - row : kLayerRows);
    const uint8_t* at[kLayerRows];
    for (int r = 0; r < kLayerRows; ++r) {
      at[r] = x + (row + (r < rows ? r : rows - 1)) * x_stride;
      if (inputs % 4 != 0) {
        std::memcpy(padded[r], at[r], inputs);
        std::memset(padded[r] + inputs, 0, 4 * quads - inputs);
        at[r] = padded[r];
      }
    }
    for (int block = 0; block < blocks; ++block) {
      alignas(64) int32_t acc[kLayerRows][16];
      for (int r = 0; r < kLayerRows; ++r) std::memcpy(acc[r], bias + 16 * block, sizeof(acc[r]));
      dot_rows(at, quads, packed + static_cast<int64_t>(block) * quads * 64, acc);
      store(row, rows, block, acc);
    }
  }
}

#ifndef VQCODEC_LAYER_RESULTS
inline void requantise_block(const int32_t* acc, const int32_t* multiplier, int shift, uint8_t* y) {
  for (int o = 0; o < 16; ++o) y[o] = requantised(acc[o], multiplier[o], shift);
}

// Takes the sums of a block, and its number, in the lanes where they are larger than those so far.
inline void keep_larger(const int32_t* acc, int block, int32_t* sum, int32_t* chosen) {
  for (int o = 0; o < 16; ++o) {
    const bool larger = acc[o] > sum[o];
    sum[o] = larger ? acc[o] : sum[o];
    chosen[o] = larger ? block : chosen[o];
  }
}

// The lowest of the outputs 16 block + lane that have the largest sum.
inline int best_output(const int32_t* sum, const int32_t* block) {
  int32_t largest = sum[0];
  for (int o = 1; o < 16; ++o) largest = sum[o] > largest ? sum[o] : largest;
  int32_t lowest = INT32_MAX;
  for (int o = 0; o < 16; ++o) {
    const int32_t output = sum[o] == largest ? 16 * block[o] + o : INT32_MAX;
    lowest = output < lowest ? output : lowest;
  }
  return lowest;
}
#endif

void linear(const uint8_t* x, int64_t x_stride, int64_t n, int inputs, const int8_t* packed,
            int outputs, const int32_t* bias, const Requantise& requantise, uint8_t* y,
            int64_t y_stride) {
  const int32_t* multiplier = requantise.multiplier;
  const int shift = requantise.shift;
  for_each_block(x, x_stride, n, inputs, packed, outputs, bias,
                 [=](int64_t row, int rows, int block, const int32_t (*acc)[16]) {
                   const int first = 16 * block;
                   const int count = outputs - first < 16 ? outputs - first : 16;
                   for (int r = 0; r < rows; ++r) {
                     uint8_t bytes[16];
                     requantise_block(acc[r], multiplier + first, shift, bytes);
                     std::memcpy(y + (row + r) * y_stride + first, bytes, count);
                   }
                 });
}

// The best sums of each of 16 lanes and their blocks.
struct Best {
  alignas(64) int32_t sum[kLayerRows][16];
  alignas(64) int32_t block[kLayerRows][16];
};

void argmax(const uint8_t* x, int64_t x_stride, int64_t n, int inputs, const int8_t* packed,
            int outputs, const int32_t* bias, uint8_t* y, int64_t y_stride) {
  const int last = padded_outputs(outputs) / 16 - 1;
  Best best;
  for_each_block(x, x_stride, n, inputs, packed, outputs, bias,
                 [=, &best](int64_t row, int rows, int block, const int32_t (*acc)[16]) {
                   for (int r = 0; r < rows; ++r) {
                     if (block == 0) {
                       std::memcpy(best.sum[r], acc[r], sizeof(best.sum[r]));
                       std::memset(best.block[r], 0, sizeof(best.block[r]));
                     } else {
                       keep_larger(acc[r], block, best.sum[r], best.block[r]);
                     }
                     if (block == last)
                       y[(row + r) * y_stride] =
                           static_cast<uint8_t>(best_output(best.sum[r], best.block[r]));
                   }
                 });
}

void window(const uint8_t* map, int width, int channels, int y, int x, int y0, int y1, int x0,
            int x1, int radius, const int8_t* taps, const int32_t* bias,
            const Requantise& requantise, uint8_t* out) {
  alignas(64) int32_t acc[kMaxChannels];
  std::memcpy(acc, bias, 4 * channels);
  const int side = 2 * radius + 1;
  for (int dy = -radius; dy <= radius; ++dy) {
    if (y + dy < y0 || y + dy >= y1) continue;
    for (int dx = -radius; dx <= radius; ++dx) {
      if (x + dx < x0 || x + dx >= x1) continue;
      const uint8_t* m = map + (static_cast<int64_t>(y + dy) * width + x + dx) * channels;
      const int8_t* t = taps + ((dy + radius) * side + dx + radius) * channels;
      for (int c = 0; c < channels; ++c)
        acc[c] += static_cast<int32_t>(m[c]) * static_cast<int32_t>(t[c]);
    }
  }
  for (int c = 0; c < channels; ++c)
    out[c] = requantised(acc[c], requantise.multiplier[c], requantise.shift);
}

const LayerKernels kLayerKernels = {linear, argmax, window};

}  // namespace
}  // namespace vqcodec
