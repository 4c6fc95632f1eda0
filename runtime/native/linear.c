/* x W^T in floats, for few rows and for many. */

#include "native.h"
#include "panels.h"

#if defined(__AVX512F__) || defined(__aarch64__)
#define ROWS 4 /* of few rows: those, and outputs, whose sums are held in registers at once; some vectors full of sums */
#else
#define ROWS 2
#endif
#define OUTS 4
#define MANY 40  /* rows that are multiplied in panels */
#define STRIP 48 /* of many: outputs, and inputs, that are multiplied before others are */
#define DEEP 128

struct product {
    int64_t rows, inputs, outputs;
    const float *x, *w;
    float *out, *panels;
};

/* Few rows: each row's sums are added up in an order that depends on their length alone, never on how many rows there
 * are or where they stand, so that a row has the same bits whatever is beside it. */

/* How many lines of the strip of outputs to come are asked for in a tile at each line of these; the first tiles do it. */
INLINE int lines_ahead(int64_t rows, int64_t row) {
    int tiles = rows >= 4 * ROWS ? 4 : rows >= 2 * ROWS ? 2 : 1;
    return rows > 1 && row < tiles * ROWS ? OUTS / tiles : 0;
}

/* `rows` x `outs` sums of products, at most ROWS x OUTS and constant where this is inlined. */
INLINE void tile(int rows, int outs, const float *x, const float *w, float *out, int64_t inputs, int64_t outputs,
                 const char *ahead, int lines) {
    vec total[ROWS * OUTS] = {{0}};
    int64_t k = 0;
    for (; k + LANES <= inputs; k += LANES) {
        vec some[ROWS];
        if (LANES * 4 == LINE || k % (LINE / 4) == 0) ahead = fetch(ahead, lines);
        for (int r = 0; r < rows; r++) some[r] = of_float(x + r * inputs + k);
        for (int o = 0; o < outs; o++) {
            vec weights = of_float(w + o * inputs + k);
            for (int r = 0; r < rows; r++) total[r * OUTS + o] = add_product(total[r * OUTS + o], weights, some[r]);
        }
    }
    float all[ROWS * OUTS];
    if (rows * outs == 1) all[0] = sum(total[0]);
    else
        for (int i = 0; i < ROWS * OUTS; i += LANES) to_float(all + i, sums(total + i));
    for (int r = 0; r < rows; r++)
        for (int o = 0; o < outs; o++) {
            float s = all[r * OUTS + o];
            for (int64_t i = k; i < inputs; i++) s = fmaf(x[r * inputs + i], w[o * inputs + i], s);
            out[r * outputs + o] = s;
        }
}

static void few_rows(const void *with, int64_t from, int64_t to) {
    const struct product *p = with;
    const int64_t rows = p->rows, inputs = p->inputs, outputs = p->outputs;
    const float *x = p->x, *w = p->w;
    for (int64_t o = from * OUTS; o < to * OUTS && o < outputs; o += OUTS) {
        int outs = outputs - o < OUTS ? (int)(outputs - o) : OUTS;
        const char *ahead = (const char *)(w + (o + OUTS) * inputs);
        for (int64_t r = 0; r < rows; r += ROWS) {
            int some = rows - r < ROWS ? (int)(rows - r) : ROWS, lines = lines_ahead(rows, r);
            const float *some_rows = x + r * inputs, *weights = w + o * inputs;
            float *out = p->out + r * outputs + o;
            if (outs < OUTS) tile(some, outs, some_rows, weights, out, inputs, outputs, ahead, lines);
            else if (some == ROWS) tile(ROWS, OUTS, some_rows, weights, out, inputs, outputs, ahead, lines);
#if ROWS > 2
            else if (some == 3) tile(3, OUTS, some_rows, weights, out, inputs, outputs, ahead, lines);
            else if (some == 2) tile(2, OUTS, some_rows, weights, out, inputs, outputs, ahead, lines);
#endif
            else /* one after the other: memory is read in order, which is all that counts here */
                for (int e = 0; e < OUTS; e++)
                    tile(1, 1, some_rows, weights + e * inputs, out + e, inputs, outputs, 0, 0);
            ahead += lines * inputs * 4;
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
        in_parts(threads, (outputs + OUTS - 1) / OUTS, worth_a_part(OUTS * inputs * 4), few_rows, &p);
        return;
    }
    in_parts(threads, (rows + PANEL - 1) / PANEL, 1, fill_panels, &p);
    in_parts(threads, (outputs + STRIP - 1) / STRIP, 1, many_rows, &p);
}
