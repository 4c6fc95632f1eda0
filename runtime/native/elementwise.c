/* What lies between the products: norms and the gated unit, in floats. */

#include "native.h"
#include "vectors.h"

#define WORTH_SHARING 16384 /* floats, where little is done to each */

/* Rows, or groups of rows, from x to out. */
struct rows {
    int64_t groups, width, stride;
    float epsilon;
    const float *x;
    float *out;
};

static void gate_rows(const void *with, int64_t from, int64_t to) {
    const struct rows *rows = with;
    const int64_t width = rows->width;
    for (int64_t r = from; r < to; r++) {
        const float *up = rows->x + 2 * r * width, *gate = up + width;
        float *out = rows->out + r * width;
        for (int64_t i = 0; i < width; i += LANES) {
            int64_t left = width - i < LANES ? width - i : LANES;
            vec u = {0}, g = {0};
            memcpy(&u, up + i, 4 * left);
            memcpy(&g, gate + i, 4 * left);
            u = u * g / (1.0f + exponential(-g));
            memcpy(out + i, &u, 4 * left);
        }
    }
}

/* x [rows, 2 width] holds (up, gate): up * silu(gate) to out [rows, width]. */
void gated_unit(int64_t rows, int64_t width, const float *x, float *out, int threads) {
    const struct rows all = {1, width, 2 * width, 0, x, out};
    in_parts(rows * width > WORTH_SHARING ? threads : 1, rows, 1, gate_rows, &all);
}

static void norm_groups(const void *with, int64_t from, int64_t to) {
    const struct rows *rows = with;
    const int64_t groups = rows->groups, width = rows->width;
    for (int64_t at = from; at < to; at++) {
        const float *x = rows->x + at / groups * rows->stride + at % groups * width;
        float *out = rows->out + at * width;
        vec squares = {0};
        int64_t i = 0;
        for (; i + LANES <= width; i += LANES) squares = add_product(squares, of_float(x + i), of_float(x + i));
        float all = sum(squares);
        for (; i < width; i++) all = fmaf(x[i], x[i], all);
        float by = 1 / sqrtf(all / width + rows->epsilon);
        for (i = 0; i < width; i++) out[i] = x[i] * by;
    }
}

/* x [rows, groups, width], rows lying stride floats apart, each group divided by the root of its mean square. */
void rms_norm(int64_t rows, int64_t groups, int64_t width, const float *x, int64_t stride, float epsilon, float *out,
              int threads) {
    const struct rows all = {groups, width, stride, epsilon, x, out};
    in_parts(rows * groups * width > WORTH_SHARING ? threads : 1, rows * groups, 1, norm_groups, &all);
}
