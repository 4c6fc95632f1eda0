/* Products of many rows: a panel has some rows' numbers side by side, one of each row in each lane. What it is multiplied
 * with, keys or values, is read as it lies, one number for all lanes at once. */

#include "vectors.h"

#if defined(__AVX512F__) || defined(__aarch64__)
#define ACROSS 4 /* vectors of a panel: with DOWN, what 32 registers hold, or 16 */
#else
#define ACROSS 2
#endif
#define PANEL (ACROSS * LANES) /* rows, at most 64 */
#define DOWN 6                 /* sums of each row that are held in registers at once */

/* sums [downs, PANEL] += a b, for a [downs, count], whose numbers lie `down` and `step` floats apart, and b [count, PANEL].
 * Of the panel the first `vecs` vectors; these and `downs` are constant where this is inlined. */
INLINE void add_block(int downs, int vecs, int64_t count, const float *a, int64_t down, int64_t step, const float *b,
                      float *sums) {
    vec total[DOWN * ACROSS];
    for (int d = 0; d < downs; d++)
        for (int v = 0; v < vecs; v++) total[d * vecs + v] = of_float(sums + d * PANEL + v * LANES);
    for (int64_t k = 0; k < count; k++) {
        vec rows[ACROSS];
        for (int v = 0; v < vecs; v++) rows[v] = of_float(b + k * PANEL + v * LANES);
        for (int d = 0; d < downs; d++) {
            const vec one = (vec){0} + a[d * down + k * step];
            for (int v = 0; v < vecs; v++) total[d * vecs + v] = add_product(total[d * vecs + v], one, rows[v]);
        }
    }
    for (int d = 0; d < downs; d++)
        for (int v = 0; v < vecs; v++) to_float(sums + d * PANEL + v * LANES, total[d * vecs + v]);
}

/* The same for any number of sums. */
INLINE void add_blocks(int vecs, int64_t downs, int64_t count, const float *a, int64_t down, int64_t step,
                       const float *b, float *sums) {
    int64_t d = 0;
    for (; d + DOWN <= downs; d += DOWN) add_block(DOWN, vecs, count, a + d * down, down, step, b, sums + d * PANEL);
    if (d + 4 <= downs) {
        add_block(4, vecs, count, a + d * down, down, step, b, sums + d * PANEL);
        d += 4;
    }
    for (; d < downs; d++) add_block(1, vecs, count, a + d * down, down, step, b, sums + d * PANEL);
}

/* The same for as many vectors of the panel as `rows` fill. */
static void add_products(int64_t rows, int64_t downs, int64_t count, const float *a, int64_t down, int64_t step,
                         const float *b, float *sums) {
#if ACROSS > 2
    if (rows > 3 * LANES) add_blocks(4, downs, count, a, down, step, b, sums);
    else if (rows > 2 * LANES) add_blocks(3, downs, count, a, down, step, b, sums);
    else
#endif
        if (rows > LANES) add_blocks(2, downs, count, a, down, step, b, sums);
    else add_blocks(1, downs, count, a, down, step, b, sums);
}

/* x [rows, width], its rows `stride` floats apart, to a panel [width, PANEL], up to PANEL of them; zeros in what is left of
 * the last vector. */
static void to_panel(int64_t rows, int64_t width, const float *x, int64_t stride, float *panel) {
    for (int64_t first = 0; first < rows && first < PANEL; first += LANES)
        for (int64_t at = 0; at < width; at += LANES) {
            vec v[LANES];
            for (int i = 0; i < LANES; i++)
                v[i] = first + i < rows ? some_of(x + (first + i) * stride + at, width - at) : (vec){0};
            transpose(v);
            for (int i = 0; i < LANES && at + i < width; i++) to_float(panel + (at + i) * PANEL + first, v[i]);
        }
}

/* And back. */
static void from_panel(int64_t rows, int64_t width, const float *panel, float *x, int64_t stride) {
    for (int64_t first = 0; first < rows; first += LANES)
        for (int64_t at = 0; at < width; at += LANES) {
            vec v[LANES];
            for (int i = 0; i < LANES; i++) v[i] = at + i < width ? of_float(panel + (at + i) * PANEL + first) : (vec){0};
            transpose(v);
            for (int i = 0; i < LANES && first + i < rows; i++) to_some(x + (first + i) * stride + at, v[i], width - at);
        }
}
