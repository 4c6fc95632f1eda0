/* Vectors of 16 lanes, whatever the processor's own width, and what rows.c and int8.c both do with them. */

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

INLINE vec choose(ints where, vec a, vec b) { return (vec)((where & (ints)a) | (~where & (ints)b)); }

/* Ask for some lines of weights, and say where the next ones are. Where several outputs' weights are read side by side,
 * which processors foresee badly, those of the outputs to come are asked for as these are multiplied: up to twice as
 * fast. It is done little by little, some lines in each step, or the processor would wait for them. */
INLINE const char *fetch(const char *weights, int lines) {
    for (int line = 0; line < lines; line++) __builtin_prefetch(weights + 64 * line);
    return weights + 64 * lines;
}
