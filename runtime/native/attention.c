/* Attention over the KV arena, of rows of any documents: keys and values are stored, then read.
 *
 * No row's largest score is looked for before the exponential: queries and keys have unit mean square, so a scaled score
 * lies within +-sqrt(dim), and its exponential far within a float. Exponentials and the values they weigh simply add up,
 * whichever documents are read. */

#include "native.h"
#include "panels.h"

#define MOST_DIM 512
#define KEYS 48             /* whose scores a panel has at once; a multiple of DOWN */
#define WORTH_SHARING 8192  /* floats to be stored */

struct attention {
    int64_t heads, dim, qk_stride, v_stride, head_stride;
    const struct reads *table;
    const float *qk, *v;
    float *keys, *values, scale, *out;
};

/* One head of a chunk: where its first row's query, key, value, and slot are, and what it reads goes. */
struct head {
    const float *query, *key, *value;
    float *keys, *values, *out;
};

INLINE struct head head_of(const struct attention *a, const struct chunk *chunk, int64_t head) {
    const float *qk = a->qk + chunk->row * a->qk_stride + head * a->dim;
    const int64_t at = head * a->head_stride;
    return (struct head){qk,           qk + a->heads * a->dim, a->v + chunk->row * a->v_stride + head * a->dim,
                         a->keys + at, a->values + at,         a->out + (chunk->row * a->heads + head) * a->dim};
}

INLINE void rotate(int dim, const float *x, const float *cos, const float *sin, float *to) {
    for (int half = dim / 2, i = 0; i < half; i++) {
        to[i] = x[i] * cos[i] + x[i + half] * sin[i];
        to[i + half] = x[i + half] * cos[i + half] + x[i] * sin[i + half];
    }
}

/* Of each head all chunks, one after the other: documents that several read are still in the cache then. */
static void store(const void *with, int64_t from, int64_t to) {
    const struct attention *a = with;
    const struct reads *table = a->table;
    const int64_t dim = a->dim;
    for (int64_t at = from; at < to; at++) {
        const struct chunk *chunk = table->chunks + at % table->count;
        const struct head head = head_of(a, chunk, at / table->count);
        for (int64_t r = 0; r < chunk->rows; r++) {
            const int64_t position = (table->reads[chunk->first].position + r) * dim, slot = (chunk->slot + r) * dim;
            rotate((int)dim, head.key + r * a->qk_stride, table->cos + position, table->sin + position,
                   head.keys + slot);
            memcpy(head.values + slot, head.value + r * a->v_stride, sizeof(float) * dim);
        }
    }
}

/* One row. `dim` is a multiple of 4, and constant where this is inlined; where it is no multiple of LANES, the last
 * lanes are filled with zeros. Its bits depend on nothing but what it reads. */
INLINE void attend_row(int dim, const struct attention *a, const struct chunk *chunk, struct head head) {
    const struct reads *table = a->table;
    const int whole = dim / LANES * LANES, left = dim - whole, vecs = (dim + LANES - 1) / LANES;
    vec sum_of[MOST_DIM / LANES], total = {0};
    float query[MOST_DIM];
    for (int i = 0; i < vecs; i++) sum_of[i] = total;
    memset(query, 0, sizeof(float) * vecs * LANES);
    for (const struct read *read = table->reads + chunk->first; read < table->reads + chunk->last; read++) {
        const int64_t position = read->position * dim;
        rotate(dim, head.query, table->cos + position, table->sin + position, query);
        for (int i = 0; i < dim; i++) query[i] *= a->scale;
        for (int64_t slot = read->start; slot < read->stop; slot += LANES) {
            const int count = read->stop - slot < LANES ? (int)(read->stop - slot) : LANES;
            vec scores[LANES];
            for (int j = 0; j < LANES; j++) {
                /* Past the end the last key stands in; its weights are cleared below. */
                const float *key = head.keys + (slot + (j < count ? j : count - 1)) * dim;
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
                const float *value = head.values + (slot + j) * dim;
                vec weight = (vec){0} + weights[j], rest = {0};
                for (int i = 0; i < whole / LANES; i++)
                    sum_of[i] = add_product(sum_of[i], weight, of_float(value + i * LANES));
                if (left) {
                    memcpy(&rest, value + whole, sizeof(float) * left);
                    sum_of[vecs - 1] = add_product(sum_of[vecs - 1], weight, rest);
                }
            }
        }
    }
    float all = sum(total);
    for (int i = 0; i < dim; i++) head.out[i] = sum_of[i / LANES][i % LANES] / all;
}

/* A panel of a chunk's rows: `count` of them from the `first`. Returns whether what any of these read is NaN: a value that
 * is infinite or NaN reaches all rows of the panel, since those that do not read it weigh it with 0. */
static int attend_panel(const struct attention *a, const struct chunk *chunk, struct head head, int64_t first,
                        int64_t count) {
    const struct reads *table = a->table;
    const int64_t dim = a->dim, vecs = (count + LANES - 1) / LANES;
    /* As large as they need be: a thread of the caller's may have little stack. */
    float queries[dim * PANEL], sums[dim * PANEL], scores[KEYS * PANEL];
    vec total[ACROSS] = {{0}};
    memset(sums, 0, sizeof(float) * dim * PANEL);
    for (const struct read *read = table->reads + chunk->first; read < table->reads + chunk->last; read++) {
        const int64_t from = read->row > first ? read->row : first, end = read->row + read->rows,
                      to = end < first + count ? end : first + count;
        if (from >= to) continue;
        /* How many slots each row reads. */
        int32_t most[PANEL] = {0};
        float turned[LANES * dim];
        for (int64_t at = 0; at < vecs * LANES; at += LANES) {
            for (int64_t i = 0; i < LANES; i++) {
                const int64_t row = first + at + i, position = (read->position + row - read->row) * dim;
                float *query = turned + i * dim;
                if (row < from || row >= to) {
                    memset(query, 0, sizeof(float) * dim);
                    continue;
                }
                most[at + i] = (int32_t)(read->stop - read->start + read->grows * (row - read->row));
                rotate((int)dim, head.query + row * a->qk_stride, table->cos + position, table->sin + position, query);
                for (int64_t d = 0; d < dim; d++) query[d] *= a->scale;
            }
            to_panel(LANES, dim, turned, dim, queries + at);
        }
        const int64_t all = most[to - 1 - first];
        for (int64_t key = 0; key < all; key += KEYS) {
            const int64_t some = all - key < KEYS ? all - key : KEYS, slot = (read->start + key) * dim;
            memset(scores, 0, sizeof(float) * some * PANEL);
            add_products(count, some, dim, head.keys + slot, dim, 1, queries, scores);
            for (int64_t j = 0; j < some; j++)
                for (int64_t v = 0; v < vecs; v++) {
                    float *score = scores + j * PANEL + v * LANES;
                    const ints seen = *(const ints *)(most + v * LANES) > (int32_t)(key + j);
                    const vec weight = (vec)(seen & (ints)exponential(of_float(score)));
                    total[v] += weight;
                    to_float(score, weight);
                }
            add_products(count, dim, some, head.values + slot, 1, dim, scores, sums);
        }
    }
    ints odd[ACROSS] = {{0}};
    for (int64_t d = 0; d < dim; d++)
        for (int64_t v = 0; v < vecs; v++) {
            float *sum = sums + d * PANEL + v * LANES;
            const vec mean = of_float(sum) / total[v];
            odd[v] |= (ints)(mean != mean);
            to_float(sum, mean);
        }
    from_panel(count, dim, sums, head.out + first * a->heads * dim, a->heads * dim);
    int any = 0;
    for (int64_t row = 0; row < count; row++) any |= odd[row / LANES][row % LANES];
    return any;
}

static void attend(const void *with, int64_t from, int64_t to) {
    const struct attention *a = with;
    for (int64_t at = from; at < to; at++) {
        const struct chunk *chunk = a->table->chunks + at % a->table->count;
        const struct head head = head_of(a, chunk, at / a->table->count);
        if (chunk->rows == 1 && a->dim == 64) attend_row(64, a, chunk, head);
        else if (chunk->rows == 1) attend_row((int)a->dim, a, chunk, head);
        else
            for (int64_t row = 0; row < chunk->rows; row += PANEL) {
                const int64_t count = chunk->rows - row < PANEL ? chunk->rows - row : PANEL;
                if (!attend_panel(a, chunk, head, row, count)) continue;
                for (int64_t r = row; r < row + count; r++) attend_panel(a, chunk, head, r, 1);
            }
    }
}

/* One layer.
 *
 *   qk [rows, 2, heads, dim], not rotated, and v [rows, heads, dim]: their rows lie qk_stride and v_stride floats apart.
 *   keys, values: the layer's [heads, slots, dim], heads head_stride floats apart. out [rows, heads, dim]. */
void attend_rows(int64_t heads, int64_t dim, const float *qk, int64_t qk_stride, const float *v, int64_t v_stride,
                 const struct reads *table, float *keys, float *values, int64_t head_stride, float scale, float *out,
                 int threads) {
    const struct attention all = {heads, dim, qk_stride, v_stride, head_stride, table, qk, v, keys, values, scale, out};
    const int64_t stored = table->rows * dim * 8 / (table->count + 1); /* bytes, of a head of a chunk */
    in_parts(table->rows * heads * dim > WORTH_SHARING ? threads : 1, table->count * heads, worth_a_part(stored), store,
             &all);
    in_parts(threads, table->count * heads, 1, attend, &all);
}
