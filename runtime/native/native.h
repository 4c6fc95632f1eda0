/* What backbone.c calls: see rows.c and int8.c. */

#include <stdint.h>

void linear_float(int64_t rows, int64_t inputs, int64_t outputs, const float *x, const float *w, float *out,
                  int threads);
void linear_int8(int64_t rows, int64_t inputs, int64_t outputs, int64_t digits, const float *x, const int8_t *w,
                 const int32_t *sums, const float *scale, float *out, void *room, int threads);
void gated_unit(int64_t rows, int64_t width, const float *x, float *out, int threads);
void rms_norm(int64_t rows, int64_t groups, int64_t width, const float *x, int64_t stride, float epsilon, float *out,
              int threads);

/* Which slots each row reads, and how its query is turned for them: see attend_rows. */
struct reads {
    const int64_t *slots, *first, *starts, *stops;
    const float *cos, *sin;
};

void attend_rows(int64_t rows, int64_t heads, int64_t dim, const float *qk, int64_t qk_stride, const float *v,
                 int64_t v_stride, const struct reads *reads, float *keys, float *values, int64_t head_stride,
                 float scale, float *out, int threads);
