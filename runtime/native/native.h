/* What the files here have of each other: see there. */

#include <stdint.h>

/* Items [from, to) of a loop. */
typedef void part(const void *with, int64_t from, int64_t to);

/* Do all items, in parts of about so many at least, by up to `threads` threads. */
void in_parts(int threads, int64_t items, int64_t least, part *some, const void *with);

/* How many items of so many bytes are worth taking a part: it takes a tenth of a microsecond. */
static inline int64_t worth_a_part(int64_t bytes) { return 65536 / (bytes + 1) + 1; }

void linear_float(int64_t rows, int64_t inputs, int64_t outputs, const float *x, const float *w, float *out,
                  int threads);
void linear_int8(int64_t rows, int64_t inputs, int64_t outputs, int64_t bytes, const float *x, const int8_t *w,
                 const int32_t *sums, const float *scale, float *out, void *room, int threads);
void gated_unit(int64_t rows, int64_t width, const float *x, float *out, int threads);
void rms_norm(int64_t rows, int64_t groups, int64_t width, const float *x, int64_t stride, float epsilon, float *out,
              int threads);

/* Rows of one document, one after the other: their first row, how many there are, the slot of the first one's key and
 * value, and which reads are theirs; the first of these is of their own document. */
struct chunk {
    int64_t row, rows, slot, first, last;
};

/* Rows of a chunk, counted from its first, that read slots from start on: the first one up to `stop`, each after it
 * `grows` more; as queries at `position` and those after it. */
struct read {
    int64_t row, rows, start, stop, grows, position;
};

/* cos, sin [positions, dim], as ds2ds.attention.rotary has them. */
struct reads {
    int64_t rows, count; /* of all chunks; chunks */
    const struct chunk *chunks;
    const struct read *reads;
    const float *cos, *sin;
};

void attend_rows(int64_t heads, int64_t dim, const float *qk, int64_t qk_stride, const float *v, int64_t v_stride,
                 const struct reads *table, float *keys, float *values, int64_t head_stride, float scale, float *out,
                 int threads);
