/* All layers of the model in one call: of few rows, what lies between the products takes longer in Python than many of the
 * products do here. The same as ds2ds.model.backbone, step by step. */

#include <string.h>

#include "native.h"

/* A weight [outputs, inputs]: floats where digits is 0, else what linear_int8 takes. */
struct weight {
    const void *values;
    const int32_t *sums;
    const float *scale;
    int64_t outputs, inputs, digits;
};

struct layer {
    struct weight qkv, out, up_gate, down;
};

static void multiply(const struct weight *w, int64_t rows, const float *x, float *to, void *room, int threads) {
    if (w->digits == 0) linear_float(rows, w->inputs, w->outputs, x, w->values, to, threads);
    else
        linear_int8(rows, w->inputs, w->outputs, w->digits, x, w->values, w->sums, w->scale, to, room, threads);
}

static void add(int64_t count, float by, const float *x, float *to) {
    for (int64_t i = 0; i < count; i++) to[i] += by * x[i];
}

/* x [rows, width], as many rows as `reads` has: token embeddings, and what the residual stream becomes; out [rows, width]:
 * its final norm.
 *
 *   skips [layers / 2]: what joins before layer half + i is skips[i] times what left layer half - 1 - i.
 *   arena [layers, 2, heads, slots, dim], contiguous.
 *   room: for each row 7 width + 3 inputs of `down` + (half - 1) width floats, and after them what int8 products
 *   need. */
void backbone_rows(int64_t layers, int64_t heads, int64_t dim, const struct layer *weights, const float *skips,
                   float epsilon, float *x, float *out, const struct reads *reads, float *arena,
                   int64_t slots, float scale, float *room, int threads) {
    const int64_t rows = reads->rows, width = heads * dim, half = layers / 2, wide = weights[0].down.inputs,
                  count = rows * width;
    float *qkv = room, *qk = qkv + 3 * count, *read = qk + 2 * count, *y = read + count, *up_gate = y + count,
          *hidden = up_gate + 2 * rows * wide, *left = hidden + rows * wide;
    void *bytes = left + (half > 1 ? half - 1 : 0) * count;
    rms_norm(rows, 1, width, x, width, epsilon, out, threads);
    for (int64_t i = 0; i < layers; i++) {
        const struct layer *layer = weights + i;
        float *keys = arena + 2 * i * slots * width, *values = keys + slots * width;
        multiply(&layer->qkv, rows, out, qkv, bytes, threads);
        rms_norm(rows, 2 * heads, dim, qkv, 3 * width, epsilon, qk, threads);
        attend_rows(heads, dim, qk, 2 * width, qkv + 2 * width, 3 * width, reads, keys, values, slots * dim, scale, read,
                    threads);
        multiply(&layer->out, rows, read, y, bytes, threads);
        add(count, 1, y, x);
        rms_norm(rows, 1, width, x, width, epsilon, out, threads);
        multiply(&layer->up_gate, rows, out, up_gate, bytes, threads);
        gated_unit(rows, wide, up_gate, hidden, threads);
        multiply(&layer->down, rows, hidden, y, bytes, threads);
        add(count, 1, y, x);
        const int64_t skip = i + 1 - half;
        if (skip == 0 && half > 0) add(count, skips[0], x, x);
        else if (0 < skip && skip < half) add(count, skips[skip], left + (half - 1 - skip) * count, x);
        if (i < half - 1) memcpy(left + i * count, x, sizeof(float) * count);
        rms_norm(rows, 1, width, x, width, epsilon, out, threads);
    }
}
