/* exp, log and Gumbel noise in the same operations as ds2ds.kernels.sampling's elementary.py and philox.py, each rounded in one
 * way only: the same bits on every processor. */

#include "vectors.h"

typedef uint32_t words __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef uint64_t longs __attribute__((vector_size(8 * LANES)));

#define SOME (4 * LANES) /* tokens whose noise is made at once */
#define ROUNDER (0x1.8p23f + 127) /* elementary.ROUNDER */

INLINE vec all(float x) { return (vec){0} + x; }

/* elementary.exp: of y <= 0; 0 below -87. */
INLINE vec exp_exact(vec y) {
    const vec bound = all(-87.0f), clamped = choose(y > bound, y, bound);
    const vec shifted = clamped * 1.4426950408889634f + ROUNDER, n = shifted - ROUNDER;
    vec r = clamped - n * 0.693359375f;
    r -= n * -2.12194440e-4f;
    vec p = all(0.001395049155689776f);
    p = p * r + 0.008368889801204205f;
    p = p * r + 0.04166620597243309f;
    p = p * r + 0.166665181517601f;
    p = p * r + 0.5f;
    p = p * (r * r) + r + 1.0f;
    p *= (vec)((words)shifted << 23);
    return choose(y < bound, (vec){0}, p);
}

/* elementary.log: of x > 0 and normal. */
INLINE vec log_exact(vec x) {
    ints bits = (ints)x - 0x3F3504F3;
    const vec e = __builtin_convertvector(bits >> 23, vec);
    bits = (bits & 0x007FFFFF) + 0x3F3504F3;
    const vec f = (vec)bits - 1.0f, square = f * f;
    vec p = all(-0.0786093920469284f);
    p = p * f + 0.12883494794368744f;
    p = p * f + -0.13129101693630219f;
    p = p * f + 0.14180956780910492f;
    p = p * f + -0.1662449836730957f;
    p = p * f + 0.20002295076847076f;
    p = p * f + -0.25000810623168945f;
    p = p * f + 0.33333316445350647f;
    p = p * f * square + e * -2.12194440e-4f;
    p = p - square * 0.5f + f;
    return p + e * 0.693359375f;
}

/* philox._gumbel. */
INLINE vec gumbel(words word) {
    const ints above_half = (ints)word >> 31;
    const words n = (word ^ (words)above_half) << 1 | 1;
    const vec near = __builtin_convertvector(n, vec) * 0x1p-33f, rounded = 1.0f - near;
    const vec lost = (1.0f - rounded - near) / rounded;
    vec exponential = log_exact(choose(above_half, near, rounded)) + choose(above_half, (vec){0}, lost);
    return 0.0f - log_exact(-exponential);
}

/* The upper and the lower half of a product by a constant. */
INLINE words product(words a, uint32_t by, words *low) {
#if defined(__AVX512F__)
    const __m512i x = (__m512i)a, y = _mm512_set1_epi32((int)by);
    const __m512i even = _mm512_mul_epu32(x, y), odd = _mm512_mul_epu32(_mm512_srli_epi64(x, 32), y);
    *low = (words)_mm512_mask_blend_epi32(0xAAAA, even, _mm512_slli_epi64(odd, 32));
    return (words)_mm512_mask_blend_epi32(0xAAAA, _mm512_srli_epi64(even, 32), odd);
#elif defined(__AVX2__)
    const __m256i x = (__m256i)a, y = _mm256_set1_epi32((int)by);
    const __m256i even = _mm256_mul_epu32(x, y), odd = _mm256_mul_epu32(_mm256_srli_epi64(x, 32), y);
    *low = (words)_mm256_blend_epi32(even, _mm256_slli_epi64(odd, 32), 0xAA);
    return (words)_mm256_blend_epi32(_mm256_srli_epi64(even, 32), odd, 0xAA);
#else
    const longs wide = __builtin_convertvector(a, longs) * by;
    *low = __builtin_convertvector(wide, words);
    return __builtin_convertvector(wide >> 32, words);
#endif
}

/* philox.philox4x32 of the counters (block, position, 0). */
INLINE void philox(words block, uint64_t seed, uint64_t position, words c[4]) {
    uint32_t key0 = (uint32_t)seed, key1 = (uint32_t)(seed >> 32);
    c[0] = block;
    c[1] = (words){0} + (uint32_t)position;
    c[2] = (words){0} + (uint32_t)(position >> 32);
    c[3] = (words){0};
    for (int round = 0; round < 10; round++) {
        words low0, low1, high0 = product(c[0], 0xD2511F53, &low0), high1 = product(c[2], 0xCD9E8D57, &low1);
        c[0] = high1 ^ c[1] ^ key0;
        c[1] = low1;
        c[2] = high0 ^ c[3] ^ key1;
        c[3] = low0;
        key0 += 0x9E3779B9;
        key1 += 0xBB67AE85;
    }
}

/* The number of each lane. */
#define LANE_AT(by, lane) lane
static const ints lanes = {EACH(LANE_AT, 0)};

/* One lane of a and one of b, by turns, or two and two: from the first on, or from the half. */
#define ONES_AT(from, lane) ((lane) % 2 * LANES + (from) + (lane) / 2)
#define TWOS_AT(from, lane) ((lane) / 2 % 2 * LANES + (from) + (lane) / 4 * 2 + (lane) % 2)
#define MIX(at, from, a, b) __builtin_shufflevector(a, b, EACH(at, from))

/* The noise of the tokens from `first`, a multiple of four, in order. */
INLINE void noise_of_some(int32_t first, uint64_t seed, uint64_t position, vec noise[SOME / LANES]) {
    words c[4];
    philox((words)lanes + (uint32_t)first / 4, seed, position, c);
    const vec a = gumbel(c[0]), b = gumbel(c[1]), d = gumbel(c[2]), e = gumbel(c[3]);
    /* Block by block: the four words of the first lane, of the second, and so on. */
    for (int i = 0; i < 2; i++) {
        const vec ab = i ? MIX(ONES_AT, LANES / 2, a, b) : MIX(ONES_AT, 0, a, b);
        const vec de = i ? MIX(ONES_AT, LANES / 2, d, e) : MIX(ONES_AT, 0, d, e);
        noise[2 * i] = MIX(TWOS_AT, 0, ab, de);
        noise[2 * i + 1] = MIX(TWOS_AT, LANES / 2, ab, de);
    }
}

/* The noise of any tokens. */
INLINE vec noise_of(ints ids, uint64_t seed, uint64_t position) {
    words c[4];
    philox((words)(ids >> 2), seed, position, c);
    const ints which = ids & 3;
    words word = c[3];
    for (int i = 0; i < 3; i++) word = (words)choose(which == i, (vec)c[i], (vec)word);
    return gumbel(word);
}
