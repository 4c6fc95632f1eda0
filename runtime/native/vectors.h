/* Vectors as wide as the processor's own, and what is done with them. Wider ones of the compiler's making would be kept in
 * memory by some. */

#include <math.h>
#include <stdint.h>
#include <string.h>
#if defined(__SSE2__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#define INLINE static inline __attribute__((always_inline))

#if defined(LANES) /* a file needs so many */
#elif defined(__AVX512F__)
#define LANES 16
#elif defined(__AVX2__)
#define LANES 8
#else
#define LANES 4
#endif

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

/* __builtin_shufflevector with an index for each lane. */
#if LANES == 16
#define EACH(at, by)                                                                                                   \
    at(by, 0), at(by, 1), at(by, 2), at(by, 3), at(by, 4), at(by, 5), at(by, 6), at(by, 7), at(by, 8), at(by, 9),      \
        at(by, 10), at(by, 11), at(by, 12), at(by, 13), at(by, 14), at(by, 15)
#elif LANES == 8
#define EACH(at, by) at(by, 0), at(by, 1), at(by, 2), at(by, 3), at(by, 4), at(by, 5), at(by, 6), at(by, 7)
#else
#define EACH(at, by) at(by, 0), at(by, 1), at(by, 2), at(by, 3)
#endif

/* Of each 2 `by` lanes the first half, or the second, of a and then of b: the steps in which vectors are transposed, or
 * what they hold added up. */
#define LOW_AT(by, lane) ((lane) & (by) ? LANES + (lane) - (by) : (lane))
#define HIGH_AT(by, lane) ((lane) & (by) ? LANES + (lane) : (lane) + (by))
#define LOW(by, a, b) __builtin_shufflevector(a, b, EACH(LOW_AT, by))
#define HIGH(by, a, b) __builtin_shufflevector(a, b, EACH(HIGH_AT, by))
#if LANES == 16
#define STEPS STEP(1) STEP(2) STEP(4) STEP(8)
#elif LANES == 8
#define STEPS STEP(1) STEP(2) STEP(4)
#else
#define STEPS STEP(1) STEP(2)
#endif

/* Lane i of v[j] and lane j of v[i] change places, for all of them. */
INLINE void transpose(vec v[LANES]) {
#define STEP(by)                                                                                                       \
    for (int i = 0; i < LANES; i++) {                                                                                  \
        if (i & by) continue;                                                                                          \
        const vec a = v[i], b = v[i + by];                                                                             \
        v[i] = LOW(by, a, b);                                                                                          \
        v[i + by] = HIGH(by, a, b);                                                                                    \
    }
    STEPS
#undef STEP
}

/* Lane i of the result is the sum over v[i]'s lanes, added up in the same order for every i: pairs, then pairs of those. */
INLINE vec sums(vec v[LANES]) {
#define STEP(by)                                                                                                       \
    for (int i = 0; i < LANES; i += 2 * by) v[i] = LOW(by, v[i], v[i + by]) + HIGH(by, v[i], v[i + by]);
    STEPS
#undef STEP
    return v[0];
}

/* As `sums` does it, for one: bit for bit the same. */
INLINE float sum(vec v) {
#define OTHER_AT(by, lane) ((lane) ^ (by))
#define STEP(by) v += __builtin_shufflevector(v, v, EACH(OTHER_AT, by));
    STEPS
#undef STEP
    return v[0];
}

/* Ask for some lines of weights, and say where the next ones are. Where several outputs' weights are read side by side,
 * which processors foresee badly, those of the outputs to come are asked for as these are multiplied: up to twice as
 * fast. It is done little by little, some lines in each step, or the processor would wait for them; and into the second
 * cache, as the first keeps few lines on their way at a time: up to 1.8 times as fast again. */
#define LINE 64
INLINE const char *fetch(const char *weights, int lines) {
    for (int line = 0; line < lines; line++) __builtin_prefetch(weights + LINE * line, 0, 2);
    return weights + LINE * lines;
}

/* What is used several times and is to be loaded once: compilers load it for each multiplication, which takes as long. */
INLINE vec in_register(vec some) {
#if defined(__x86_64__)
    __asm__("" : "+v"(some));
#elif defined(__aarch64__)
    __asm__("" : "+w"(some));
#endif
    return some;
}

/* total + a b, in one rounding where the processor does that at once, in two elsewhere: the same in every tile, whatever
 * the compiler would prefer. */
INLINE vec add_product(vec total, vec a, vec b) {
#if LANES == 16 && defined(__AVX512F__)
    return (vec)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)total);
#elif LANES == 8 && defined(__FMA__)
    return (vec)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)total);
#elif LANES == 4 && defined(__aarch64__)
    return (vec)vfmaq_f32((float32x4_t)total, (float32x4_t)a, (float32x4_t)b);
#else
    return total + a * b;
#endif
}

/* e^x within 2 units in the last place, for |x| < 87; beyond, the bound's. NaN stays NaN. */
INLINE vec exponential(vec x) {
    vec bound = (vec){0} + 87.0f, zero = {0};
    x = choose(x > bound, bound, x);
    x = choose(x < -bound, -bound, x);
    /* Rounded to a whole number, which is in the last bits. */
    vec whole = add_product(zero + 12582912.0f, x, zero + 1.44269504088896341f);
    ints power = ((ints)whole - 0x4B400000) << 23;
    whole -= 12582912.0f;
    vec r = add_product(add_product(x, whole, zero - 0.693359375f), whole, zero + 2.12194440e-4f);
    vec p = add_product(zero + 1.3981999507e-3f, zero + 1.9875691500e-4f, r);
    p = add_product(zero + 8.3334519073e-3f, p, r);
    p = add_product(zero + 4.1665795894e-2f, p, r);
    p = add_product(zero + 1.6666665459e-1f, p, r);
    p = add_product(zero + 5.0000001201e-1f, p, r);
    p = add_product(r, p * r, r) + 1.0f;
    return (vec)((ints)p + power);
}
