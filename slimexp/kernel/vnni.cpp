// y[m, n] = sum_g xs[m, g] * ws[n, g] * (sum_k x[m, g, k] * u[n, g, k] - zero[n, g] * sum_k x[m, g, k]) + bias[n]
//
// u are weights stored unsigned, x are inputs rounded to signed 8 bits: the operands of vpdpbusd, which multiplies
// four of each and adds them to an int32 (no saturation: 4 * 255 * 128 fits). The weights' zero point is paid once
// per group with the sum of x. Without AVX512-VNNI the same loops run portably.
//
// Layout of u: [panels of 16 outputs][groups][quads of 4 inputs][16 outputs][4 inputs], groups padded to whole quads;
// of 4 bits two quads share 64 bytes, the first in the low halves. Of x: [blocks of 8 rows][groups][quads][rows of the
// block][4 inputs], so that a tile reads one stream; the last block may be lower.

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VNNI__)
#define WITH_VNNI 1
#include <immintrin.h>
#else
#define WITH_VNNI 0
#endif

namespace {

constexpr int64_t kLanes = 16;        // outputs of a panel
constexpr int64_t kQuad = 4;          // inputs that one instruction takes per lane
constexpr int64_t kWorth = 1 << 16;   // multiplications below which a second thread costs more than it gains

enum Activation : int64_t { kToken = 0, kGroup = 1, kStatic = 2 };

constexpr int64_t kRows = 8;          // of a tile: with 3 panels 24 sums, 3 weights and an input fill the 32 registers
constexpr int64_t kPanels = 3;
constexpr int64_t kApart = 32;        // rows per thread from which each reads all weights: it uses them often enough

struct Rows {  // a rounded input
  std::vector<int8_t> x;      // blocks of rows, as above
  std::vector<float> scale;   // [rows, groups]
  std::vector<int32_t> sum;   // [rows, groups]
};

struct Layer {
  const uint8_t* weight;
  const float* scale;    // [panels, groups, 16]
  const int32_t* zero;   // [panels, groups, 16]
  const float* bias;     // [panels, 16]
  int64_t out, groups, padded;
};

// Largest magnitude of x[0..n); NaN if any entry is not finite.
float largest(const float* x, int64_t n) {
  float most = 0.0f;
  int64_t k = 0;
  bool finite = true;
#if WITH_VNNI
  __m512 top = _mm512_setzero_ps();
  __mmask16 odd = 0;
  const __m512 limit = _mm512_set1_ps(std::numeric_limits<float>::max());
  for (; k < n; k += 16) {
    const __mmask16 live = k + 16 <= n ? 0xFFFF : (1u << (n - k)) - 1;
    const __m512 v = _mm512_abs_ps(_mm512_maskz_loadu_ps(live, x + k));
    odd |= _mm512_cmp_ps_mask(v, limit, _CMP_NLE_UQ);
    top = _mm512_max_ps(top, v);
  }
  most = _mm512_reduce_max_ps(top);
  finite = odd == 0;
#else
  for (; k < n; ++k) {
    finite &= std::isfinite(x[k]);
    most = std::max(most, std::fabs(x[k]));
  }
#endif
  return finite ? most : std::numeric_limits<float>::quiet_NaN();
}

// Rounds x[0..n) to nearest with ties to even, in -128..127, and pads it with zeros to whole quads, which it writes to
// q, q + stride, ...; returns the sum.
int32_t round_to(const float* x, int64_t n, int64_t padded, float scale, int8_t* q, int64_t stride) {
  int32_t sum = 0;
#if WITH_VNNI
  const __m512 by = _mm512_set1_ps(scale), high = _mm512_set1_ps(127.0f), low = _mm512_set1_ps(-128.0f);
  __m512i sums = _mm512_setzero_si512();
  for (int64_t k = 0; k < padded; k += 16) {
    const __mmask16 live = k + 16 <= n ? 0xFFFF : k < n ? (1u << (n - k)) - 1 : 0;
    const __m512 v = _mm512_div_ps(_mm512_maskz_loadu_ps(live, x + k), by);  // as the quantizer: no reciprocal
    const __m512i i = _mm512_cvtps_epi32(_mm512_max_ps(low, _mm512_min_ps(high, v)));
    sums = _mm512_add_epi32(sums, i);
    int8_t sixteen[16];
    _mm_storeu_si128(reinterpret_cast<__m128i*>(sixteen), _mm512_cvtepi32_epi8(i));
    for (int64_t t = 0; t < 16 && k + t < padded; t += kQuad, q += stride) std::memcpy(q, sixteen + t, kQuad);
  }
  sum = _mm512_reduce_add_epi32(sums);
#else
  for (int64_t k = 0; k < padded; ++k) {
    const float v = k < n ? std::nearbyint(std::max(-128.0f, std::min(127.0f, x[k] / scale))) : 0.0f;
    q[k / kQuad * stride + k % kQuad] = static_cast<int8_t>(v);
    sum += static_cast<int32_t>(v);
  }
#endif
  return sum;
}

void round_row(const float* x, int64_t in, int64_t row, int64_t rows, const Layer& layer, int64_t activation,
               float fixed, Rows& to) {
  const int64_t size = in / layer.groups, first = row / kRows * kRows, high = std::min(kRows, rows - first);
  int8_t* block = to.x.data() + first * layer.groups * layer.padded + (row - first) * kQuad;
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const auto scale_of = [&](const float* from, int64_t n, float levels) {
    const float most = largest(from, n);
    if (std::isnan(most)) return nan;
    if (activation == kStatic) return fixed;
    const float scale = most / levels;
    return scale == 0.0f ? std::numeric_limits<float>::epsilon() : scale;
  };
  const float whole = activation == kGroup ? 0.0f : scale_of(x, in, 127.5f);
  for (int64_t g = 0; g < layer.groups; ++g) {
    const float scale = activation == kGroup ? scale_of(x + g * size, size, 127.0f) : whole;
    int8_t* q = block + g * layer.padded * high;
    to.scale[row * layer.groups + g] = scale;
    to.sum[row * layer.groups + g] = round_to(x + g * size, size, layer.padded, std::isnan(scale) ? 1.0f : scale, q, high * kQuad);
  }
}

#if WITH_VNNI

// sum + products of u's and x's four bytes, per lane. Of the intrinsic GCC copies every sum at every step, and spills them.
inline __m512i dot(__m512i sum, __m512i u, __m512i x) {
  asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(u), "v"(x));
  return sum;
}

inline __m512i broadcast(const int8_t* quad) {
  int32_t four;
  std::memcpy(&four, quad, sizeof four);
  return _mm512_set1_epi32(four);
}

#define UNROLL _Pragma("GCC unroll 8")  // else sums are an array in memory

// Rows row..row + M, a block or its end; panels panel..panel + P.
template <int M, int P, int BITS>
void tile(const Layer& layer, const Rows& in, int64_t row, int64_t panel, float* y) {
  const int64_t groups = layer.groups, padded = layer.padded, bytes = padded * kLanes * BITS / 8;
  const __m512i half = _mm512_set1_epi8(0x0F);
  __m512 total[M][P];
  UNROLL for (int m = 0; m < M; ++m)
    UNROLL for (int p = 0; p < P; ++p) total[m][p] = _mm512_loadu_ps(layer.bias + (panel + p) * kLanes);
  for (int64_t g = 0; g < groups; ++g) {
    const uint8_t* w = layer.weight + (panel * groups + g) * bytes;
    const int64_t of = row * groups + g, at = (panel * groups + g) * kLanes, panel_bytes = groups * bytes;
    const int8_t* x = in.x.data() + (row * groups + g * M) * padded;
    __m512i sum[M][P];
    UNROLL for (int m = 0; m < M; ++m)
      UNROLL for (int p = 0; p < P; ++p)
        sum[m][p] = _mm512_mullo_epi32(_mm512_loadu_si512(layer.zero + at + p * groups * kLanes),
                                       _mm512_set1_epi32(-in.sum[of + m * groups]));
    if constexpr (BITS == 8) {
      for (int64_t k = 0; k < padded; k += kQuad, w += kLanes * kQuad, x += M * kQuad) {
        __m512i v[P];
        UNROLL for (int p = 0; p < P; ++p) v[p] = _mm512_loadu_si512(w + p * panel_bytes);
        UNROLL for (int m = 0; m < M; ++m) {
          const __m512i four = broadcast(x + m * kQuad);
          UNROLL for (int p = 0; p < P; ++p) sum[m][p] = dot(sum[m][p], v[p], four);
        }
      }
    } else {
      for (int64_t k = 0; k < padded; k += 2 * kQuad, w += kLanes * kQuad, x += 2 * M * kQuad) {
        __m512i v[P];
        UNROLL for (int p = 0; p < P; ++p) v[p] = _mm512_and_si512(_mm512_loadu_si512(w + p * panel_bytes), half);
        UNROLL for (int m = 0; m < M; ++m) {
          const __m512i four = broadcast(x + m * kQuad);
          UNROLL for (int p = 0; p < P; ++p) sum[m][p] = dot(sum[m][p], v[p], four);
        }
        UNROLL for (int p = 0; p < P; ++p)
          v[p] = _mm512_and_si512(_mm512_srli_epi16(_mm512_loadu_si512(w + p * panel_bytes), 4), half);
        UNROLL for (int m = 0; m < M; ++m) {
          const __m512i four = broadcast(x + (M + m) * kQuad);
          UNROLL for (int p = 0; p < P; ++p) sum[m][p] = dot(sum[m][p], v[p], four);
        }
      }
    }
    UNROLL for (int p = 0; p < P; ++p) {
      const __m512 scale = _mm512_loadu_ps(layer.scale + at + p * groups * kLanes);
      UNROLL for (int m = 0; m < M; ++m) {
        const __m512 both = _mm512_mul_ps(scale, _mm512_set1_ps(in.scale[of + m * groups]));
        total[m][p] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum[m][p]), both, total[m][p]);
      }
    }
  }
  UNROLL for (int p = 0; p < P; ++p) {
    const int64_t column = (panel + p) * kLanes, left = layer.out - column;
    const __mmask16 live = left >= kLanes ? 0xFFFF : (1u << left) - 1;
    UNROLL for (int m = 0; m < M; ++m) _mm512_mask_storeu_ps(y + (row + m) * layer.out + column, live, total[m][p]);
  }
}

#else

template <int M, int P, int BITS>
void tile(const Layer& layer, const Rows& in, int64_t row, int64_t panel, float* y) {
  const int64_t groups = layer.groups, padded = layer.padded, bytes = padded * kLanes * BITS / 8;
  for (int m = 0; m < M; ++m)
    for (int p = 0; p < P; ++p) {
      float total[kLanes];
      std::copy_n(layer.bias + (panel + p) * kLanes, kLanes, total);
      for (int64_t g = 0; g < groups; ++g) {
        const int64_t of = (row + m) * groups + g, at = ((panel + p) * groups + g) * kLanes;
        const int8_t* x = in.x.data() + (row * groups + g * M) * padded + m * kQuad;
        const uint8_t* w = layer.weight + ((panel + p) * groups + g) * bytes;
        int32_t sum[kLanes] = {};
        for (int64_t k = 0; k < padded; k += kQuad) {
          const int64_t pair = BITS == 8 ? k : k / (2 * kQuad) * kQuad;
          const int shift = BITS == 4 && (k / kQuad) % 2 ? 4 : 0, mask = BITS == 8 ? 0xFF : 0x0F;
          for (int64_t n = 0; n < kLanes; ++n)
            for (int64_t t = 0; t < kQuad; ++t)
              sum[n] += static_cast<int32_t>((w[(pair * kLanes) + n * kQuad + t] >> shift) & mask) * x[k * M + t];
        }
        for (int64_t n = 0; n < kLanes; ++n)
          total[n] += static_cast<float>(sum[n] - layer.zero[at + n] * in.sum[of]) * (layer.scale[at + n] * in.scale[of]);
      }
      const int64_t column = (panel + p) * kLanes;
      std::copy_n(total, std::min(kLanes, layer.out - column), y + (row + m) * layer.out + column);
    }
}

#endif

template <int P, int BITS>
void rows_of(int64_t m, const Layer& layer, const Rows& in, int64_t row, int64_t panel, float* y) {
  switch (m) {
    case 1: return tile<1, P, BITS>(layer, in, row, panel, y);
    case 2: return tile<2, P, BITS>(layer, in, row, panel, y);
    case 3: return tile<3, P, BITS>(layer, in, row, panel, y);
    case 4: return tile<4, P, BITS>(layer, in, row, panel, y);
    case 5: return tile<5, P, BITS>(layer, in, row, panel, y);
    case 6: return tile<6, P, BITS>(layer, in, row, panel, y);
    case 7: return tile<7, P, BITS>(layer, in, row, panel, y);
    default: return tile<8, P, BITS>(layer, in, row, panel, y);
  }
}

template <int BITS>
void panels(const Layer& layer, const Rows& in, int64_t row_from, int64_t row_to, int64_t from, int64_t to, float* y) {
  for (int64_t panel = from; panel < to;) {
    const int64_t wide = std::min(kPanels, to - panel);
    for (int64_t row = row_from; row < row_to; row += kRows) {
      const int64_t m = std::min(kRows, row_to - row);
      if (wide == 3) rows_of<3, BITS>(m, layer, in, row, panel, y);
      else if (wide == 2) rows_of<2, BITS>(m, layer, in, row, panel, y);
      else rows_of<1, BITS>(m, layer, in, row, panel, y);
    }
    panel += wide;
  }
}

template <class F>
void split(int64_t count, bool worth, const F& work) {
  if (!worth || count < 2) return work(0, count);
  const int64_t threads = at::get_num_threads();
  at::parallel_for(0, count, std::max<int64_t>(1, (count + threads - 1) / threads), work);
}

at::Tensor linear(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& scale, const at::Tensor& zero,
                  const at::Tensor& bias, int64_t out, int64_t bits, int64_t activation, double fixed) {
  const auto input = x.contiguous();
  const int64_t in = input.size(-1), rows = in ? input.numel() / in : 0;
  auto sizes = input.sizes().vec();
  sizes.back() = out;
  auto y = at::empty(sizes, input.options());
  if (rows == 0) return y;
  const Layer layer{weight.data_ptr<uint8_t>(), scale.data_ptr<float>(), zero.data_ptr<int32_t>(),
                    bias.data_ptr<float>(), out, scale.size(1),
                    weight.size(2) * kQuad * (bits == 4 ? 2 : 1)};
  thread_local Rows rounded;  // kept between calls: decoding allocates nothing
  Rows& in_rows = rounded;
  in_rows.x.resize(rows * layer.groups * layer.padded);
  in_rows.scale.resize(rows * layer.groups);
  in_rows.sum.resize(rows * layer.groups);
  const float* from = input.data_ptr<float>();
  float* to = y.data_ptr<float>();
  const auto round_rows = [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row)
      round_row(from + row * in, in, row, rows, layer, activation, static_cast<float>(fixed), in_rows);
  };
  const auto multiply = [&](int64_t row_from, int64_t row_to, int64_t panel_from, int64_t panel_to) {
    bits == 4 ? panels<4>(layer, in_rows, row_from, row_to, panel_from, panel_to, to)
              : panels<8>(layer, in_rows, row_from, row_to, panel_from, panel_to, to);
  };
  const int64_t columns = scale.size(0);
  if (rows >= kApart * at::get_num_threads()) {  // no thread waits for another's rows
    split((rows + kRows - 1) / kRows, rows * in * out > kWorth, [&](int64_t begin, int64_t end) {
      round_rows(begin * kRows, std::min(end * kRows, rows));
      multiply(begin * kRows, std::min(end * kRows, rows), 0, columns);
    });
  } else {
    split(rows, rows * in > kWorth / 4, round_rows);
    split(columns, rows * in * out > kWorth, [&](int64_t begin, int64_t end) { multiply(0, rows, begin, end); });
  }
  return y;
}

bool vnni() { return WITH_VNNI; }

}  // namespace

TORCH_LIBRARY(slimexp, m) {
  m.def("linear(Tensor x, Tensor weight, Tensor scale, Tensor zero, Tensor bias, int out, int bits, int activation, "
        "float fixed) -> Tensor");
  m.def("vnni() -> bool", vnni);
}

TORCH_LIBRARY_IMPL(slimexp, CPU, m) { m.impl("linear", linear); }
