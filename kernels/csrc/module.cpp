// Python bindings: shapes are checked here, rows are split over threads, the GIL is released.
// Arrays are C-contiguous and owned by the caller; outputs are written in place.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <algorithm>
#include <cstring>
#include <limits>
#include <stdexcept>
#include <system_error>
#include <thread>
#include <vector>

#include "kernels.h"

namespace nb = nanobind;

namespace {

template <typename T, int N>
using In = nb::ndarray<const T, nb::ndim<N>, nb::c_contig, nb::device::cpu>;
template <typename T, int N>
using Out = nb::ndarray<T, nb::ndim<N>, nb::c_contig, nb::device::cpu>;

void require(bool condition, const char* message) {
  if (!condition) throw std::invalid_argument(message);
}

// Calls work(begin, end) over [0, n) on up to `threads` threads; `grain` rows are worth a thread.
template <typename Work>
void parallel_for(int64_t n, int64_t grain, int threads, const Work& work) {
  const int64_t wanted = std::max<int64_t>(1, std::min<int64_t>(threads, n / std::max<int64_t>(1, grain)));
  if (wanted == 1) {
    work(int64_t{0}, n);
    return;
  }
  std::vector<std::thread> pool;
  pool.reserve(wanted - 1);
  int64_t share = 1;
  try {
    for (; share < wanted; ++share)
      pool.emplace_back([&work, n, share, wanted] {
        work(n * share / wanted, n * (share + 1) / wanted);
      });
  } catch (const std::system_error&) {
    // No further thread to be had: this one does the shares that are left.
    work(n * share / wanted, n);
  }
  work(int64_t{0}, n / wanted);
  for (auto& thread : pool) thread.join();
}

void nearest(In<float, 3> x, In<float, 3> codebook, In<float, 3> bias,
             nb::object table_object, Out<int64_t, 2> index, nb::object distance_object,
             int threads) {
  const int64_t groups = x.shape(0), n = x.shape(1), d = x.shape(2);
  const int64_t k = codebook.shape(1), tables = bias.shape(1);
  require(static_cast<int64_t>(codebook.shape(0)) == groups && static_cast<int64_t>(codebook.shape(2)) == d,
          "codebook does not match x");
  require(static_cast<int64_t>(bias.shape(0)) == groups && static_cast<int64_t>(bias.shape(2)) == k && tables >= 1,
          "bias does not match codebook");
  require(static_cast<int64_t>(index.shape(0)) == groups && static_cast<int64_t>(index.shape(1)) == n,
          "index does not match x");
  require(k >= 1 && k < (1 << 30) && d >= 1, "empty codebook or dimension");
  const int32_t* table = nullptr;
  float* distance = nullptr;
  In<int32_t, 2> table_array;
  Out<float, 2> distance_array;
  if (!table_object.is_none()) {
    table_array = nb::cast<In<int32_t, 2>>(table_object);
    require(static_cast<int64_t>(table_array.shape(0)) == groups && static_cast<int64_t>(table_array.shape(1)) == n,
            "table does not match x");
    table = table_array.data();
    for (int64_t i = 0; i < groups * n; ++i)
      require(table[i] >= 0 && table[i] < tables, "table index out of range");
  }
  if (!distance_object.is_none()) {
    distance_array = nb::cast<Out<float, 2>>(distance_object);
    require(static_cast<int64_t>(distance_array.shape(0)) == groups && static_cast<int64_t>(distance_array.shape(1)) == n,
            "distance does not match x");
    distance = distance_array.data();
  }
  const vqcodec::KernelTable* kernels = vqcodec::active_kernels();
  const float* xs = x.data();
  const float* codes = codebook.data();
  const float* biases = bias.data();
  int64_t* indices = index.data();
  nb::gil_scoped_release release;
  const int64_t padded = (k + kernels->lanes - 1) / kernels->lanes * kernels->lanes;
  std::vector<float> codes_t(static_cast<size_t>(padded) * d);
  std::vector<float> biases_padded(static_cast<size_t>(padded) * tables);
  for (int64_t g = 0; g < groups; ++g) {
    std::fill(codes_t.begin(), codes_t.end(), 0.0f);
    for (int64_t i = 0; i < k; ++i)
      for (int64_t j = 0; j < d; ++j) codes_t[j * padded + i] = codes[(g * k + i) * d + j];
    for (int64_t t = 0; t < tables; ++t) {
      float* row = biases_padded.data() + t * padded;
      std::copy(biases + (g * tables + t) * k, biases + (g * tables + t + 1) * k, row);
      std::fill(row + k, row + padded, std::numeric_limits<float>::infinity());
    }
    const int64_t grain = std::max<int64_t>(256, (int64_t{1} << 20) / (padded * d));
    parallel_for(n, grain, threads, [&](int64_t begin, int64_t end) {
      kernels->nearest(xs + (g * n + begin) * d, end - begin, static_cast<int>(d), codes_t.data(),
                       biases_padded.data(), table ? table + g * n + begin : nullptr,
                       static_cast<int>(padded), indices + g * n + begin,
                       distance ? distance + g * n + begin : nullptr);
    });
  }
}

std::vector<int8_t> pack_groups(const int8_t* weight, int64_t groups, int outputs, int inputs) {
  const size_t size = static_cast<size_t>(vqcodec::padded_outputs(outputs)) * vqcodec::padded_inputs(inputs);
  std::vector<int8_t> packed(groups * size);
  for (int64_t g = 0; g < groups; ++g)
    vqcodec::pack_weight(weight + g * outputs * inputs, outputs, inputs, packed.data() + g * size);
  return packed;
}

void check_linear(const In<uint8_t, 3>& x, const In<int8_t, 3>& weight, const In<int32_t, 2>& bias) {
  require(weight.shape(0) == x.shape(1) && weight.shape(2) == x.shape(2), "weight does not match x");
  require(bias.shape(0) == weight.shape(0) && bias.shape(1) == weight.shape(1), "bias does not match weight");
  require(x.shape(2) >= 1 && x.shape(2) <= vqcodec::kMaxInputs, "between 1 and 4096 inputs are supported");
  require(weight.shape(1) >= 1 && weight.shape(1) <= (1 << 20), "number of outputs out of range");
}

void integer_linear(In<uint8_t, 3> x, In<int8_t, 3> weight, In<int32_t, 2> bias,
                    In<int32_t, 2> multiplier, int shift, Out<uint8_t, 3> y, int threads) {
  check_linear(x, weight, bias);
  require(multiplier.shape(0) == bias.shape(0) && multiplier.shape(1) == bias.shape(1), "multiplier does not match bias");
  require(shift >= 1 && shift <= 62, "shift must be 1..62");
  require(y.shape(0) == x.shape(0) && y.shape(1) == x.shape(1) && y.shape(2) == weight.shape(1), "y does not match");
  const int64_t n = x.shape(0), groups = x.shape(1);
  const int inputs = static_cast<int>(x.shape(2)), outputs = static_cast<int>(weight.shape(1));
  const vqcodec::KernelTable* kernels = vqcodec::active_kernels();
  const uint8_t* xs = x.data();
  const int8_t* ws = weight.data();
  const int32_t* bs = bias.data();
  const int32_t* ms = multiplier.data();
  uint8_t* ys = y.data();
  nb::gil_scoped_release release;
  const auto packed = pack_groups(ws, groups, outputs, inputs);
  const int64_t size = packed.size() / std::max<int64_t>(1, groups);
  parallel_for(n, 1 + (1 << 20) / (1 + groups * size), threads, [&](int64_t begin, int64_t end) {
    for (int64_t g = 0; g < groups; ++g)
      kernels->linear(xs + (begin * groups + g) * inputs, groups * inputs, end - begin, inputs,
                      packed.data() + g * size, outputs, bs + g * outputs,
                      vqcodec::Requantise{ms + g * outputs, shift},
                      ys + (begin * groups + g) * outputs, groups * outputs);
  });
}

void integer_argmax(In<uint8_t, 3> x, In<int8_t, 3> weight, In<int32_t, 2> bias,
                    Out<uint8_t, 2> y, int threads) {
  check_linear(x, weight, bias);
  require(weight.shape(1) <= 256, "at most 256 outputs fit the result");
  require(y.shape(0) == x.shape(0) && y.shape(1) == x.shape(1), "y does not match");
  const int64_t n = x.shape(0), groups = x.shape(1);
  const int inputs = static_cast<int>(x.shape(2)), outputs = static_cast<int>(weight.shape(1));
  const vqcodec::KernelTable* kernels = vqcodec::active_kernels();
  const uint8_t* xs = x.data();
  const int8_t* ws = weight.data();
  const int32_t* bs = bias.data();
  uint8_t* ys = y.data();
  nb::gil_scoped_release release;
  const auto packed = pack_groups(ws, groups, outputs, inputs);
  const int64_t size = packed.size() / std::max<int64_t>(1, groups);
  parallel_for(n, 1 + (1 << 20) / (1 + groups * size), threads, [&](int64_t begin, int64_t end) {
    for (int64_t g = 0; g < groups; ++g)
      kernels->argmax(xs + (begin * groups + g) * inputs, groups * inputs, end - begin, inputs,
                      packed.data() + g * size, outputs, bs + g * outputs, ys + begin * groups + g,
                      groups);
  });
}

void integer_window(In<uint8_t, 3> map, In<int32_t, 2> positions, int tile, In<int8_t, 3> taps,
                    In<int32_t, 1> bias, In<int32_t, 1> multiplier, int shift,
                    Out<uint8_t, 2> y, int threads) {
  const int64_t height = map.shape(0), width = map.shape(1), channels = map.shape(2);
  const int64_t n = positions.shape(0);
  require(positions.shape(1) == 2, "positions must be (n, 2)");
  require(taps.shape(0) == taps.shape(1) && taps.shape(0) % 2 == 1, "taps must be (2r+1, 2r+1, channels)");
  require(static_cast<int64_t>(taps.shape(2)) == channels && static_cast<int64_t>(bias.shape(0)) == channels &&
          static_cast<int64_t>(multiplier.shape(0)) == channels, "taps, bias or multiplier do not match map");
  require(channels >= 1 && channels <= vqcodec::kMaxChannels, "between 1 and 1024 channels are supported");
  require(static_cast<int64_t>(y.shape(0)) == n && static_cast<int64_t>(y.shape(1)) == channels, "y does not match");
  require(shift >= 1 && shift <= 62 && tile >= 1, "shift must be 1..62, tile positive");
  const int32_t* at = positions.data();
  for (int64_t i = 0; i < n; ++i)
    require(at[2 * i] >= 0 && at[2 * i] < height && at[2 * i + 1] >= 0 && at[2 * i + 1] < width,
            "position outside the map");
  const vqcodec::KernelTable* kernels = vqcodec::active_kernels();
  const uint8_t* m = map.data();
  const int8_t* t = taps.data();
  const int32_t* b = bias.data();
  const vqcodec::Requantise requantise{multiplier.data(), shift};
  const int radius = static_cast<int>(taps.shape(0) / 2);
  uint8_t* ys = y.data();
  nb::gil_scoped_release release;
  parallel_for(n, 1 + (1 << 18) / (channels * (2 * radius + 1) * (2 * radius + 1)), threads,
               [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int row = at[2 * i], column = at[2 * i + 1];
      const int y0 = row / tile * tile, x0 = column / tile * tile;
      const int y1 = static_cast<int>(std::min<int64_t>(height, y0 + int64_t{tile}));
      const int x1 = static_cast<int>(std::min<int64_t>(width, x0 + int64_t{tile}));
      kernels->window(m, static_cast<int>(width), static_cast<int>(channels), row, column, y0, y1,
                      x0, x1, radius, t, b, requantise, ys + i * channels);
    }
  });
}

}  // namespace

NB_MODULE(_native, m) {
  m.doc() = "Native kernels of vqcodec_kernels; use the functions of that package instead.";
  m.def("isa", [] { return nb::str(vqcodec::active_isa()); });
  m.def("nearest", &nearest, nb::arg("x").noconvert(), nb::arg("codebook").noconvert(),
        nb::arg("bias").noconvert(), nb::arg("table").none(), nb::arg("index").noconvert(),
        nb::arg("distance").none(), nb::arg("threads"));
  m.def("integer_linear", &integer_linear, nb::arg("x").noconvert(), nb::arg("weight").noconvert(),
        nb::arg("bias").noconvert(), nb::arg("multiplier").noconvert(), nb::arg("shift"),
        nb::arg("y").noconvert(), nb::arg("threads"));
  m.def("integer_argmax", &integer_argmax, nb::arg("x").noconvert(), nb::arg("weight").noconvert(),
        nb::arg("bias").noconvert(), nb::arg("y").noconvert(), nb::arg("threads"));
  m.def("integer_window", &integer_window, nb::arg("map").noconvert(), nb::arg("positions").noconvert(),
        nb::arg("tile"), nb::arg("taps").noconvert(), nb::arg("bias").noconvert(),
        nb::arg("multiplier").noconvert(), nb::arg("shift"), nb::arg("y").noconvert(),
        nb::arg("threads"));
}
