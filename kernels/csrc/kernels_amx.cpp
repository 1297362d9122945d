// Kernels for AMX: tiles of bfloat16 for long vectors, AVX-512 for the rest.
#include "avx512_impl.h"

namespace vqcodec {
namespace {

// The shape of the tiles, for this thread, while it lives.
struct TileState {
  TileState() {
    struct alignas(64) Configuration {
      uint8_t palette = 1, start_row = 0, reserved[14] = {};
      uint16_t row_bytes[16] = {};
      uint8_t rows[16] = {};
    } configuration;
    static_assert(sizeof(Configuration) == 64, "as the processor reads it");
    for (int i = 0; i < 8; ++i) {
      configuration.row_bytes[i] = 64;
      configuration.rows[i] = 16;
    }
    _tile_loadconfig(&configuration);
  }
  ~TileState() { _tile_release(); }
  TileState(const TileState&) = delete;
  TileState& operator=(const TileState&) = delete;
};

// products[i][j] = codeword tile i times lane tile j, over all steps: high x low, high x high,
// low x high. Tiles of codewords are [16][32], of lanes [16 pairs][16 lanes][2].
void multiply_tiles(const uint16_t* codewords0, const uint16_t* codewords1, const uint16_t* lanes,
                    int64_t steps, float* products) {
  constexpr int kValues = 512;
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (int64_t s = 0; s < steps; ++s) {
    const uint16_t* a0 = codewords0 + s * 2 * kValues;
    const uint16_t* a1 = codewords1 + s * 2 * kValues;
    const uint16_t* b = lanes + s * 4 * kValues;
    _tile_loadd(4, a0, 64);
    _tile_loadd(5, a1, 64);
    _tile_loadd(6, b + 2 * kValues, 64);
    _tile_loadd(7, b + 3 * kValues, 64);
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
    _tile_loadd(6, b, 64);
    _tile_loadd(7, b + kValues, 64);
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
    _tile_loadd(4, a0 + kValues, 64);
    _tile_loadd(5, a1 + kValues, 64);
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
  _tile_stored(0, products, 64);
  _tile_stored(1, products + 256, 64);
  _tile_stored(2, products + 512, 64);
  _tile_stored(3, products + 768, 64);
}

}  // namespace
}  // namespace vqcodec

#define VQCODEC_TILES 1
#include "gaussian_sample_impl.h"
#include "integer_layers_impl.h"
#include "nearest_codeword_impl.h"

namespace vqcodec {
const KernelTable* amx_kernels() {
  static const KernelTable table = {kLayerKernels, kSearchKernels, kGaussianKernels};
  return &table;
}

// Small whole numbers, whose products are exact, through every tile.
bool amx_multiplies() {
  alignas(64) uint16_t codewords[2][1024], lanes[2048];
  alignas(64) float products[1024];
  const auto bits = [](int value) {
    const float number = static_cast<float>(value);
    uint32_t word;
    std::memcpy(&word, &number, 4);
    return static_cast<uint16_t>(word >> 16);
  };
  const auto codeword = [](int part, int k, int d) { return (k * 5 + d * 3 + part) % 7 - 3; };
  const auto lane = [](int part, int d, int n) { return (n * 3 + d * 2 + part) % 5 - 2; };
  for (int part = 0; part < 2; ++part)
    for (int d = 0; d < 32; ++d)
      for (int i = 0; i < 32; ++i) {
        codewords[i / 16][part * 512 + i % 16 * 32 + d] = bits(codeword(part, i, d));
        lanes[(part * 2 + i / 16) * 512 + d / 2 * 32 + i % 16 * 2 + d % 2] = bits(lane(part, d, i));
      }
  {
    const TileState state;
    multiply_tiles(codewords[0], codewords[1], lanes, 1, products);
  }
  for (int k = 0; k < 32; ++k)
    for (int n = 0; n < 32; ++n) {
      int sum = 0;
      for (int d = 0; d < 32; ++d)
        sum += codeword(0, k, d) * (lane(0, d, n) + lane(1, d, n)) + codeword(1, k, d) * lane(0, d, n);
      if (products[(k / 16 * 2 + n / 16) * 256 + k % 16 * 16 + n % 16] != static_cast<float>(sum)) return false;
    }
  return true;
}
}  // namespace vqcodec
