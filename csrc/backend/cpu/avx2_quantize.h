// AVX2: common_impl.h's quantize(), 8 values at a time.
#pragma once

#include "backend/cpu/avx2_rows.h"

namespace grebe::cpu::avx2 {

// q needs no clamping since |x| * 127 / amax rounds to at most 127; 32 values keep the packs in
// order.
inline void quantize_avx2(
    const float* x, int64_t n, int group, int8_t* q, float* d, int16_t* sums) {
  const __m256i magnitude = _mm256_set1_epi32(0x7fffffff);
  for (int64_t begin = 0; begin < n; begin += group) {
    __m256i top = _mm256_setzero_si256();
    for (int i = 0; i < group; i += 8) {
      top = _mm256_max_epu32(top, _mm256_and_si256(load256(x + begin + i), magnitude));
    }
    __m128i m = _mm_max_epu32(_mm256_castsi256_si128(top), _mm256_extracti128_si256(top, 1));
    m = _mm_max_epu32(m, _mm_shuffle_epi32(m, 0x4e));
    m = _mm_max_epu32(m, _mm_shuffle_epi32(m, 0xb1));
    const float amax = std::bit_cast<float>(_mm_cvtsi128_si32(m));
    const bool finite = std::isfinite(amax);
    const float inverse = finite && amax >= 0x1p-100f ? 127.f / amax : 0.f;
    d[begin / group] = !finite         ? std::bit_cast<float>(0x7fc00000u)
                       : inverse > 0.f ? amax / 127.f
                                       : 0.f;
    const __m256 factor = _mm256_set1_ps(inverse);
    const __m256i keep = _mm256_set1_epi32(finite ? -1 : 0);
    const auto code = [&](int64_t i) {
      return _mm256_and_si256(
          _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x + i), factor)), keep);
    };
    for (int64_t i = begin; i < begin + group; i += 32) {
      const __m256i a = _mm256_packs_epi32(code(i), code(i + 8)),
                    b = _mm256_packs_epi32(code(i + 16), code(i + 24));
      // Words of four values: 0 2 4 6 and 1 3 5 7.
      const __m256i bytes = _mm256_permutevar8x32_epi32(
          _mm256_packs_epi16(a, b), _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(q + i), bytes);
      // Sums of four, then of the four fours of each 128-bit lane.
      const __m256i one = _mm256_set1_epi16(1);
      const __m256i fours =
          _mm256_madd_epi16(_mm256_maddubs_epi16(_mm256_set1_epi8(1), bytes), one);
      const __m256i eights = _mm256_add_epi32(fours, _mm256_shuffle_epi32(fours, 0xb1));
      const __m256i sum = _mm256_add_epi32(eights, _mm256_shuffle_epi32(eights, 0x4e));
      sums[i / 16] = static_cast<int16_t>(_mm256_extract_epi16(sum, 0));
      sums[i / 16 + 1] = static_cast<int16_t>(_mm256_extract_epi16(sum, 8));
    }
  }
}

}  // namespace grebe::cpu::avx2
