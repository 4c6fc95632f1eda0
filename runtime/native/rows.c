/* What a decoding step on a CPU does for few rows in floats: x W^T, the gated unit, and attention over the KV arena.
 *
 * Every row's numbers depend on that row alone, bit for bit: the order of each sum is fixed by the length of what is
 * summed, never by how many rows there are, where they stand or how many threads work. All tensors are contiguous
 * unless a stride is given. Compiled and called by ds2ds.native.library and ds2ds.native.operations. */

#include "native.h"
#include "vectors.h"

#define TILE 4 /* rows, and outputs, whose sums are held in registers at once */

/* Lane i of the result is the sum over v[i]'s lanes, added up in the same order for every i: pairs, then pairs of those. */
INLINE vec sums(vec v[LANES]) {
    for (int i = 0; i < 16; i += 2)
        v[i] = __builtin_shufflevector(v[i], v[i + 1], 0, 16, 2, 18, 4, 20, 6, 22, 8, 24, 10, 26, 12, 28, 14, 30)
             + __builtin_shufflevector(v[i], v[i + 1], 1, 17, 3, 19, 5, 21, 7, 23, 9, 25, 11, 27, 13, 29, 15, 31);
    for (int i = 0; i < 16; i += 4)
        v[i] = __builtin_shufflevector(v[i], v[i + 2], 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29)
             + __builtin_shufflevector(v[i], v[i + 2], 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31);
    for (int i = 0; i < 16; i += 8)
        v[i] = __builtin_shufflevector(v[i], v[i + 4], 0, 1, 2, 3, 16, 17, 18, 19, 8, 9, 10, 11, 24, 25, 26, 27)
             + __builtin_shufflevector(v[i], v[i + 4], 4, 5, 6, 7, 20, 21, 22, 23, 12, 13, 14, 15, 28, 29, 30, 31);
    return __builtin_shufflevector(v[0], v[8], 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23)
         + __builtin_shufflevector(v[0], v[8], 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31);
}

/* As `sums` does it, for one: bit for bit the same. */
INLINE float sum(vec v) {
    v += __builtin_shufflevector(v, v, 1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14);
    v += __builtin_shufflevector(v, v, 2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13);
    v += __builtin_shufflevector(v, v, 4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11);
    v += __builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7);
    return v[0];
}

/* How many lines of the strip of outputs to come are asked for in each step of a tile, where a step has one line of each
 * output; the first tiles do it. */
INLINE int lines_ahead(int64_t rows, int64_t row) {
    int tiles = rows >= 4 * TILE ? 4 : rows >= 2 * TILE ? 2 : 1;
    return rows > 1 && row < tiles * TILE ? TILE / tiles : 0;
}

/* Multiplied and added in two roundings or in one: the same in every tile, whatever the compiler would prefer. */
INLINE vec add_product(vec total, vec a, vec b) {
#if defined(__AVX512F__)
    return (vec)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)total);
#else
    return total + a * b;
#endif
}

/* `rows` x `outs` sums of products, both at most TILE and constant where this is inlined. */
INLINE void tile(int rows, int outs, const float *x, const float *w, float *out, int64_t inputs, int64_t outputs,
                 const char *ahead, int lines) {
    vec total[TILE * TILE] = {0};
    int64_t k = 0;
    for (; k + LANES <= inputs; k += LANES) {
        vec some[TILE];
        ahead = fetch(ahead, lines);
        for (int r = 0; r < rows; r++) some[r] = of_float(x + r * inputs + k);
        for (int o = 0; o < outs; o++) {
            vec weights = of_float(w + o * inputs + k);
            for (int r = 0; r < rows; r++) total[r * TILE + o] = add_product(total[r * TILE + o], weights, some[r]);
        }
    }
    vec all = {0};
    if (rows * outs == 1) all[0] = sum(total[0]);
    else all = sums(total);
    for (int r = 0; r < rows; r++)
        for (int o = 0; o < outs; o++) {
            float s = all[r * TILE + o];
            for (int64_t i = k; i < inputs; i++) s = fmaf(x[r * inputs + i], w[o * inputs + i], s);
            out[r * outputs + o] = s;
        }
}

/* x [rows, inputs] times w [outputs, inputs], to out [rows, outputs]. */
void linear_float(int64_t rows, int64_t inputs, int64_t outputs, const float *x, const float *w, float *out,
                  int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t o = 0; o < outputs; o += TILE) {
        int outs = outputs - o < TILE ? (int)(outputs - o) : TILE;
        const char *ahead = (const char *)(w + (o + TILE) * inputs);
        for (int64_t r = 0; r < rows; r += TILE) {
            int some = rows - r < TILE ? (int)(rows - r) : TILE, lines = lines_ahead(rows, r);
            const float *from = x + r * inputs, *weights = w + o * inputs;
            float *to = out + r * outputs + o;
            if (outs < TILE) tile(some, outs, from, weights, to, inputs, outputs, ahead, lines);
            else if (some == 4) tile(4, TILE, from, weights, to, inputs, outputs, ahead, lines);
            else if (some == 3) tile(3, TILE, from, weights, to, inputs, outputs, ahead, lines);
            else if (some == 2) tile(2, TILE, from, weights, to, inputs, outputs, ahead, lines);
            else /* one after the other: memory is read in order, which is all that counts here */
                for (int e = 0; e < TILE; e++)
                    tile(1, 1, from, weights + e * inputs, to + e, inputs, outputs, 0, 0);
            ahead += lines * 64 * (inputs / LANES);
        }
    }
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

/* x [rows, 2 width] holds (up, gate): up * silu(gate) to out [rows, width]. */
void gated_unit(int64_t rows, int64_t width, const float *x, float *out, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static) if (rows * width > 262144)
    for (int64_t r = 0; r < rows; r++) {
        const float *up = x + 2 * r * width, *gate = up + width;
        float *to = out + r * width;
        for (int64_t i = 0; i < width; i += LANES) {
            int64_t left = width - i < LANES ? width - i : LANES;
            vec u = {0}, g = {0};
            memcpy(&u, up + i, 4 * left);
            memcpy(&g, gate + i, 4 * left);
            u = u * g / (1.0f + exponential(-g));
            memcpy(to + i, &u, 4 * left);
        }
    }
}

/* x [rows, groups, width], rows lying stride floats apart, each group divided by the root of its mean square. */
void rms_norm(int64_t rows, int64_t groups, int64_t width, const float *x, int64_t stride, float epsilon, float *out,
              int threads) {
#pragma omp parallel for num_threads(threads) schedule(static) if (rows * groups * width > 262144)
    for (int64_t at = 0; at < rows * groups; at++) {
        const float *from = x + at / groups * stride + at % groups * width;
        float *to = out + at * width;
        vec squares = {0};
        int64_t i = 0;
        for (; i + LANES <= width; i += LANES) squares = add_product(squares, of_float(from + i), of_float(from + i));
        float all = sum(squares);
        for (; i < width; i++) all = fmaf(from[i], from[i], all);
        float by = 1 / sqrtf(all / width + epsilon);
        for (i = 0; i < width; i++) to[i] = from[i] * by;
    }
}

INLINE void rotate(int dim, const float *x, const float *cos, const float *sin, float *to) {
    for (int half = dim / 2, i = 0; i < half; i++) {
        to[i] = x[i] * cos[i] + x[i + half] * sin[i];
        to[i + half] = x[i + half] * cos[i + half] + x[i] * sin[i + half];
    }
}

#define MOST_DIM 512

/* One head of one row: softmax-weighted values over `reads` stretches of slots, a query for each. `dim` is a multiple
 * of 4; where it is no multiple of LANES, the last lanes are filled with zeros. */
INLINE void attend(int dim, int reads, const float *x, const float *cos, const float *sin, const int64_t *starts,
                   const int64_t *stops, const float *keys, const float *values, float scale, float *out) {
    const int whole = dim / LANES * LANES, left = dim - whole, vecs = (dim + LANES - 1) / LANES;
    vec read[MOST_DIM / LANES], total = {0};
    float query[MOST_DIM];
    for (int i = 0; i < vecs; i++) read[i] = total;
    memset(query, 0, sizeof(float) * vecs * LANES);
    for (int d = 0; d < reads; d++) {
        rotate(dim, x, cos + d * dim, sin + d * dim, query);
        for (int i = 0; i < dim; i++) query[i] *= scale;
        for (int64_t slot = starts[d]; slot < stops[d]; slot += LANES) {
            const int count = stops[d] - slot < LANES ? (int)(stops[d] - slot) : LANES;
            vec scores[LANES];
            for (int j = 0; j < LANES; j++) {
                /* Past the end the last key stands in; its weights are cleared below. */
                const float *key = keys + (slot + (j < count ? j : count - 1)) * dim;
                vec products = {0}, rest = {0};
                for (int i = 0; i < whole; i += LANES)
                    products = add_product(products, of_float(query + i), of_float(key + i));
                if (left) {
                    memcpy(&rest, key + whole, sizeof(float) * left);
                    products = add_product(products, of_float(query + whole), rest);
                }
                scores[j] = products;
            }
            vec weights = exponential(sums(scores));
            for (int j = count; j < LANES; j++) weights[j] = 0;
            total += weights;
            for (int j = 0; j < count; j++) {
                const float *value = values + (slot + j) * dim;
                vec weight = (vec){0} + weights[j], rest = {0};
                for (int i = 0; i < whole / LANES; i++) read[i] = add_product(read[i], weight, of_float(value + i * LANES));
                if (left) {
                    memcpy(&rest, value + whole, sizeof(float) * left);
                    read[vecs - 1] = add_product(read[vecs - 1], weight, rest);
                }
            }
        }
    }
    float all = sum(total);
    for (int i = 0; i < dim; i++) out[i] = read[i / LANES][i % LANES] / all;
}

/* Store the rows' keys (rotated) and values, then read. One layer; rows of any documents.
 *
 *   qk [rows, 2, heads, dim] and v [rows, heads, dim]: their rows lie qk_stride and v_stride floats apart.
 *   reads->slots [rows]: where each row's key and value go.
 *   first [rows + 1]: the reads of row r are first[r] to first[r + 1]; the first of them is of its own document, whose
 *   cos and sin also turn the key.
 *   starts, stops [reads]: slots read. cos, sin [reads, dim]: how the query is turned for them.
 *   keys, values: the layer's [heads, slots, dim], heads head_stride floats apart. out [rows, heads, dim]. */
void attend_rows(int64_t rows, int64_t heads, int64_t dim, const float *qk, int64_t qk_stride, const float *v,
                 int64_t v_stride, const struct reads *reads, float *keys, float *values, int64_t head_stride,
                 float scale, float *out, int threads) {
    const int64_t *first = reads->first, *starts = reads->starts, *stops = reads->stops;
    const float *cos = reads->cos, *sin = reads->sin;
    for (int64_t at = 0; at < rows * heads; at++) {
        int64_t r = at / heads, h = at % heads, to = h * head_stride + reads->slots[r] * dim;
        const float *x = qk + r * qk_stride + (heads + h) * dim;
        rotate((int)dim, x, cos + first[r] * dim, sin + first[r] * dim, keys + to);
        memcpy(values + to, v + r * v_stride + h * dim, sizeof(float) * dim);
    }
#pragma omp parallel for num_threads(threads) schedule(dynamic)
    for (int64_t at = 0; at < rows * heads; at++) {
        int64_t r = at / heads, h = at % heads, d = first[r];
        int reads = (int)(first[r + 1] - d);
        const float *x = qk + r * qk_stride + h * dim, *k = keys + h * head_stride, *w = values + h * head_stride;
        float *to = out + at * dim;
        if (dim == 64) attend(64, reads, x, cos + d * dim, sin + d * dim, starts + d, stops + d, k, w, scale, to);
        else attend((int)dim, reads, x, cos + d * dim, sin + d * dim, starts + d, stops + d, k, w, scale, to);
    }
}
