/* x W^T in floats, for few rows and for many. */

#include "native.h"
#include "panels.h"

#define TILE 4   /* of few rows: rows, and outputs, whose sums are held in registers at once */
#define MANY 33  /* rows that are multiplied in panels */
#define STRIP 48 /* of many: outputs, and inputs, that are multiplied before others are */
#define DEEP 128

struct product {
    int64_t rows, inputs, outputs;
    const float *x, *w;
    float *out, *panels;
};

/* Few rows: each row's sums are added up in an order that depends on their length alone, never on how many rows there
 * are or where they stand, so that a row has the same bits whatever is beside it. */

/* How many lines of the strip of outputs to come are asked for in each step of a tile, where a step has one line of each
 * output; the first tiles do it. */
INLINE int lines_ahead(int64_t rows, int64_t row) {
    int tiles = rows >= 4 * TILE ? 4 : rows >= 2 * TILE ? 2 : 1;
    return rows > 1 && row < tiles * TILE ? TILE / tiles : 0;
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

static void few_rows(const void *with, int64_t from, int64_t to) {
    const struct product *p = with;
    const int64_t rows = p->rows, inputs = p->inputs, outputs = p->outputs;
    const float *x = p->x, *w = p->w;
    for (int64_t o = from * TILE; o < to * TILE && o < outputs; o += TILE) {
        int outs = outputs - o < TILE ? (int)(outputs - o) : TILE;
        const char *ahead = (const char *)(w + (o + TILE) * inputs);
        for (int64_t r = 0; r < rows; r += TILE) {
            int some = rows - r < TILE ? (int)(rows - r) : TILE, lines = lines_ahead(rows, r);
            const float *some_rows = x + r * inputs, *weights = w + o * inputs;
            float *out = p->out + r * outputs + o;
            if (outs < TILE) tile(some, outs, some_rows, weights, out, inputs, outputs, ahead, lines);
            else if (some == 4) tile(4, TILE, some_rows, weights, out, inputs, outputs, ahead, lines);
            else if (some == 3) tile(3, TILE, some_rows, weights, out, inputs, outputs, ahead, lines);
            else if (some == 2) tile(2, TILE, some_rows, weights, out, inputs, outputs, ahead, lines);
            else /* one after the other: memory is read in order, which is all that counts here */
                for (int e = 0; e < TILE; e++)
                    tile(1, 1, some_rows, weights + e * inputs, out + e, inputs, outputs, 0, 0);
            ahead += lines * 64 * (inputs / LANES);
        }
    }
}

/* Many rows: all of them in panels, side by side. */

static void fill_panels(const void *with, int64_t from, int64_t to) {
    const struct product *p = with;
    for (int64_t r = from * PANEL; r < to * PANEL && r < p->rows; r += PANEL)
        to_panel(p->rows - r, p->inputs, p->x + r * p->inputs, p->inputs, p->panels + r * p->inputs);
}

static void many_rows(const void *with, int64_t from, int64_t to) {
    const struct product *p = with;
    const int64_t rows = p->rows, inputs = p->inputs, outputs = p->outputs;
    for (int64_t o = from * STRIP; o < to * STRIP && o < outputs; o += STRIP) {
        const int64_t outs = outputs - o < STRIP ? outputs - o : STRIP;
        for (int64_t r = 0; r < rows; r += PANEL) {
            float sums[STRIP * PANEL] = {0};
            for (int64_t k = 0; k < inputs; k += DEEP)
                add_products(rows - r, outs, inputs - k < DEEP ? inputs - k : DEEP, p->w + o * inputs + k, inputs, 1,
                             p->panels + r * inputs + k * PANEL, sums);
            from_panel(rows - r < PANEL ? rows - r : PANEL, outs, sums, p->out + r * outputs + o, outputs);
        }
    }
}

/* x [rows, inputs] times w [outputs, inputs], to out [rows, outputs].
 *
 *   apart: a row's bits must not depend on how many there are.
 *   room: for many rows [rows, filled up to 64, inputs] floats to work in. */
void linear_float(int64_t rows, int64_t inputs, int64_t outputs, int apart, const float *x, const float *w, float *out,
                  float *room, int threads) {
    const struct product p = {rows, inputs, outputs, x, w, out, room};
    if (rows < MANY || apart) {
        in_parts(threads, (outputs + TILE - 1) / TILE, few_rows, &p);
        return;
    }
    in_parts(threads, (rows + PANEL - 1) / PANEL, fill_panels, &p);
    in_parts(threads, (outputs + STRIP - 1) / STRIP, many_rows, &p);
}
