/* Vectors of 16 lanes, whatever the processor's own width, and what is done with them. */

#include <math.h>
#include <stdint.h>
#include <string.h>
#if defined(__AVX2__)
#include <immintrin.h>
#endif

#define INLINE static inline __attribute__((always_inline))
#define LANES 16

typedef float vec __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int32_t ints __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

INLINE vec of_float(const float *w) { return *(const vec *)w; }
INLINE void to_float(float *x, vec some) { *(vec *)x = some; }

/* Up to 16 floats, the rest zeros; up to 16 of them to memory. */
INLINE vec some_of(const float *x, int64_t left) {
    if (left >= LANES) return of_float(x);
    vec some = {0};
    if (left > 0) memcpy(&some, x, sizeof(float) * left);
    return some;
}
INLINE void to_some(float *x, vec some, int64_t left) {
    if (left >= LANES) to_float(x, some);
    else memcpy(x, &some, sizeof(float) * left);
}

INLINE vec choose(ints where, vec a, vec b) { return (vec)((where & (ints)a) | (~where & (ints)b)); }

/* Of each 2, 4, 8 or 16 lanes the first half, or the second, of a and then of b: the four steps in which vectors are
 * transposed, or what they hold added up. */
#define LOW_1(a, b) __builtin_shufflevector(a, b, 0, 16, 2, 18, 4, 20, 6, 22, 8, 24, 10, 26, 12, 28, 14, 30)
#define HIGH_1(a, b) __builtin_shufflevector(a, b, 1, 17, 3, 19, 5, 21, 7, 23, 9, 25, 11, 27, 13, 29, 15, 31)
#define LOW_2(a, b) __builtin_shufflevector(a, b, 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29)
#define HIGH_2(a, b) __builtin_shufflevector(a, b, 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31)
#define LOW_4(a, b) __builtin_shufflevector(a, b, 0, 1, 2, 3, 16, 17, 18, 19, 8, 9, 10, 11, 24, 25, 26, 27)
#define HIGH_4(a, b) __builtin_shufflevector(a, b, 4, 5, 6, 7, 20, 21, 22, 23, 12, 13, 14, 15, 28, 29, 30, 31)
#define LOW_8(a, b) __builtin_shufflevector(a, b, 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23)
#define HIGH_8(a, b) __builtin_shufflevector(a, b, 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31)

/* Lane i of v[j] and lane j of v[i] change places, for all of them. */
INLINE void transpose(vec v[LANES]) {
#define STEP(by)                                                                                                       \
    for (int i = 0; i < LANES; i++) {                                                                                  \
        if (i & by) continue;                                                                                          \
        const vec a = v[i], b = v[i + by];                                                                             \
        v[i] = LOW_##by(a, b);                                                                                         \
        v[i + by] = HIGH_##by(a, b);                                                                                   \
    }
    STEP(1)
    STEP(2)
    STEP(4)
    STEP(8)
#undef STEP
}

/* Lane i of the result is the sum over v[i]'s lanes, added up in the same order for every i: pairs, then pairs of those. */
INLINE vec sums(vec v[LANES]) {
    for (int i = 0; i < 16; i += 2) v[i] = LOW_1(v[i], v[i + 1]) + HIGH_1(v[i], v[i + 1]);
    for (int i = 0; i < 16; i += 4) v[i] = LOW_2(v[i], v[i + 2]) + HIGH_2(v[i], v[i + 2]);
    for (int i = 0; i < 16; i += 8) v[i] = LOW_4(v[i], v[i + 4]) + HIGH_4(v[i], v[i + 4]);
    return LOW_8(v[0], v[8]) + HIGH_8(v[0], v[8]);
}

/* As `sums` does it, for one: bit for bit the same. */
INLINE float sum(vec v) {
    v += __builtin_shufflevector(v, v, 1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14);
    v += __builtin_shufflevector(v, v, 2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13);
    v += __builtin_shufflevector(v, v, 4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11);
    v += __builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7);
    return v[0];
}

/* Ask for some lines of weights, and say where the next ones are. Where several outputs' weights are read side by side,
 * which processors foresee badly, those of the outputs to come are asked for as these are multiplied: up to twice as
 * fast. It is done little by little, some lines in each step, or the processor would wait for them. */
INLINE const char *fetch(const char *weights, int lines) {
    for (int line = 0; line < lines; line++) __builtin_prefetch(weights + 64 * line);
    return weights + 64 * lines;
}

/* Multiplied and added in two roundings or in one: the same in every tile, whatever the compiler would prefer. */
INLINE vec add_product(vec total, vec a, vec b) {
#if defined(__AVX512F__)
    return (vec)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)total);
#else
    return total + a * b;
#endif
}

/* e^x within 2 units in the last place, for |x| < 87; beyond, the bound's. NaN stays NaN. */
INLINE vec exponential(vec x) {
    vec bound = (vec){0} + 87.0f, zero = {0};
    x = choose(x > bound, bound, x);
    x = choose(x < -bound, -bound, x);
    vec whole = x * 1.44269504088896341f + 12582912.0f; /* rounds to a whole number, kept in the last bits */
    ints power = ((ints)whole - 0x4B400000) << 23;
    whole -= 12582912.0f;
    vec r = x - whole * 0.693359375f + whole * 2.12194440e-4f;
    vec p = zero + 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    return (vec)((ints)p + power);
}
