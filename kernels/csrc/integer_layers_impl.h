// The exact integer layers, included by one translation unit for each instruction set, which may
// define VQCODEC_DOT_U8S8 for its dot product.
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
// One row x 16 outputs: acc[o] += sum over 4 inputs, for all quads.
inline void dot_block(const uint8_t* x, int quads, const int8_t* packed, int32_t* acc) {
  for (int q = 0; q < quads; ++q) {
    const int8_t* w = packed + q * 64;
    const int32_t x0 = x[4 * q], x1 = x[4 * q + 1], x2 = x[4 * q + 2], x3 = x[4 * q + 3];
    for (int o = 0; o < 16; ++o)
      acc[o] += x0 * w[4 * o] + x1 * w[4 * o + 1] + x2 * w[4 * o + 2] + x3 * w[4 * o + 3];
  }
}
#endif

// Rows are padded with zeros to a multiple of 4 inputs, so that blocks need no tail.
template <typename Store>
void for_each_block(const uint8_t* x, int64_t x_stride, int64_t n, int inputs,
                    const int8_t* packed, int outputs, const int32_t* bias, Store store) {
  const int quads = padded_inputs(inputs) / 4;
  const int blocks = padded_outputs(outputs) / 16;
  alignas(64) uint8_t row[kMaxInputs];
  for (int64_t r = 0; r < n; ++r) {
    const uint8_t* xr = x + r * x_stride;
    if (inputs % 4 != 0) {
      std::memcpy(row, xr, inputs);
      std::memset(row + inputs, 0, 4 * quads - inputs);
      xr = row;
    }
    for (int block = 0; block < blocks; ++block) {
      const int count = outputs - 16 * block < 16 ? outputs - 16 * block : 16;
      alignas(64) int32_t acc[16] = {};
      std::memcpy(acc, bias + 16 * block, 4 * count);
      dot_block(xr, quads, packed + static_cast<int64_t>(block) * quads * 64, acc);
      store(r, 16 * block, count, acc);
    }
  }
}

void linear(const uint8_t* x, int64_t x_stride, int64_t n, int inputs, const int8_t* packed,
            int outputs, const int32_t* bias, const Requantise& requantise, uint8_t* y,
            int64_t y_stride) {
  const int32_t* multiplier = requantise.multiplier;
  const int shift = requantise.shift;
  for_each_block(x, x_stride, n, inputs, packed, outputs, bias,
                 [=](int64_t r, int first, int count, const int32_t* acc) {
                   for (int o = 0; o < count; ++o)
                     y[r * y_stride + first + o] =
                         requantised(acc[o], multiplier[first + o], shift);
                 });
}

void argmax(const uint8_t* x, int64_t x_stride, int64_t n, int inputs, const int8_t* packed,
            int outputs, const int32_t* bias, uint8_t* y, int64_t y_stride) {
  int32_t best = 0;
  for_each_block(x, x_stride, n, inputs, packed, outputs, bias,
                 [=](int64_t r, int first, int count, const int32_t* acc) mutable {
                   for (int o = 0; o < count; ++o) {
                     if ((first == 0 && o == 0) || acc[o] > best) {
                       best = acc[o];
                       y[r * y_stride] = static_cast<uint8_t>(first + o);
                     }
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
