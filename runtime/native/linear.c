/* x W^T in floats.
 *
 * Each row's sums are added up in an order that depends on their length alone, never on how many rows there are or where
 * they stand, so that a row has the same bits whatever is beside it. */

#include "native.h"
#include "vectors.h"

/* Rows, and outputs, whose sums are held in registers at once, with a vector of each row: what 32 registers hold, or 16. */
#if defined(__AVX512F__) || defined(__aarch64__)
#define ROWS 4
#else
#define ROWS 2
#endif
#define OUTS 6
#define SUMS ((ROWS * OUTS + LANES - 1) / LANES * LANES) /* whole vectors of their results */
#define GROUP 64 /* rows that are multiplied by all of a part's weights before others are: a core's own cache has them */

struct product {
    int64_t rows, inputs, outputs;
    const float *x, *w;
    float *out;
};

/* How many lines of the strip of outputs to come are asked for in a tile at each line of these; the first tiles do it. */
INLINE int lines_ahead(int64_t rows, int64_t row) {
    int tiles = rows >= 3 * ROWS ? 3 : rows >= 2 * ROWS ? 2 : 1;
    return rows > 1 && row < tiles * ROWS ? OUTS / tiles : 0;
}

/* `rows` x `outs` sums of products, at most ROWS x OUTS and constant where this is inlined. */
INLINE void tile(int rows, int outs, const float *x, const float *w, float *out, int64_t inputs, int64_t outputs,
                 const char *ahead, int lines) {
    vec total[SUMS] = {{0}};
    int64_t k = 0;
    for (; k + LANES <= inputs; k += LANES) {
        vec some[ROWS];
        if (LANES * 4 == LINE || k % (LINE / 4) == 0) ahead = fetch(ahead, lines);
        for (int r = 0; r < rows; r++) some[r] = of_float(x + r * inputs + k);
        for (int o = 0; o < outs; o++) {
            const vec weights = in_register(of_float(w + o * inputs + k));
            for (int r = 0; r < rows; r++) total[r * OUTS + o] = add_product(total[r * OUTS + o], weights, some[r]);
        }
    }
    float all[SUMS];
    if (rows * outs == 1) all[0] = sum(total[0]);
    else
        for (int i = 0; i < rows * OUTS; i += LANES) to_float(all + i, sums(total + i));
    for (int r = 0; r < rows; r++)
        for (int o = 0; o < outs; o++) {
            float s = all[r * OUTS + o];
            for (int64_t i = k; i < inputs; i++) s = fmaf(x[r * inputs + i], w[o * inputs + i], s);
            out[r * outputs + o] = s;
        }
}

/* Some rows by the OUTS outputs from the `o`th on. */
static void strip(const struct product *p, int64_t first, int64_t rows, int64_t o) {
    const int64_t inputs = p->inputs, outputs = p->outputs;
    const int outs = outputs - o < OUTS ? (int)(outputs - o) : OUTS;
    const char *ahead = (const char *)(p->w + (o + OUTS) * inputs);
    for (int64_t r = 0; r < rows; r += ROWS) {
        int some = rows - r < ROWS ? (int)(rows - r) : ROWS, lines = lines_ahead(rows, r);
        const float *x = p->x + (first + r) * inputs, *w = p->w + o * inputs;
        float *out = p->out + (first + r) * outputs + o;
        if (outs < OUTS) tile(some, outs, x, w, out, inputs, outputs, ahead, lines);
        else if (some == ROWS) tile(ROWS, OUTS, x, w, out, inputs, outputs, ahead, lines);
#if ROWS > 2
        else if (some == 3) tile(3, OUTS, x, w, out, inputs, outputs, ahead, lines);
        else if (some == 2) tile(2, OUTS, x, w, out, inputs, outputs, ahead, lines);
#endif
        else /* one after the other: memory is read in order, which is all that counts here */
            for (int e = 0; e < OUTS; e++) tile(1, 1, x, w + e * inputs, out + e, inputs, outputs, 0, 0);
        ahead += lines * inputs * 4;
    }
}

static void multiply(const void *with, int64_t from, int64_t to) {
    const struct product *p = with;
    for (int64_t first = 0; first < p->rows; first += GROUP)
        for (int64_t o = from * OUTS; o < to * OUTS && o < p->outputs; o += OUTS)
            strip(p, first, p->rows - first < GROUP ? p->rows - first : GROUP, o);
}

/* x [rows, inputs] times w [outputs, inputs], to out [rows, outputs]. */
void linear_float(int64_t rows, int64_t inputs, int64_t outputs, const float *x, const float *w, float *out,
                  int threads) {
    const struct product p = {rows, inputs, outputs, x, w, out};
    in_parts(threads, (outputs + OUTS - 1) / OUTS, worth_a_part(OUTS * inputs * 4), multiply, &p);
}
