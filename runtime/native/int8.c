/* x W^T for weights of 8 bits, in integers: whatever the order of its sums, a row's result is the same bit for bit.
 *
 * x is rounded to whole numbers, row by row, and these are cut into bytes: one, or three, which is all that a float of
 * the row's largest magnitude has. Each byte's products with the weights add up in 32 bits, exactly; only then the
 * bytes' sums become one number, and that a float. Three sums of bytes take fewer instructions than making the weights
 * floats, as one instruction multiplies 64 bytes, or 32 or 16, and adds them up where there is AVX512-VNNI, AVX-VNNI or
 * ARM's dot product.
 *
 * Weights lie in blocks of 16 outputs, each in groups of 4 inputs, [outputs / 16, inputs / 4, 16, 4], filled up with
 * zeros: what is loaded at once belongs to 16 outputs, whose sums are then in one register, and a block is read from
 * its first byte to its last. */

#include "native.h"
#include "vectors.h"

#define BLOCK 16
#define VECS (BLOCK / LANES) /* vectors of a block */
#define GROUP 4
#define DIGITS 3
#if defined(__AVX512VNNI__)
#define BYTE_ROWS 6 /* whose sums are held in registers at once, with as many blocks; a multiple of DIGITS */
#define BLOCKS 4
#else
#define BYTE_ROWS 3
#define BLOCKS 1
#endif
#if defined(__ARM_FEATURE_DOTPROD)
#define SIGNED 1 /* the processor multiplies bytes with a sign: they are kept 128 smaller, and totals begin with the rest */
#else
#define SIGNED 0
#endif

typedef uint8_t bytes __attribute__((vector_size(LANES)));
typedef double doubles __attribute__((vector_size(8 * LANES)));

/* Adds to each lane four products: `four` bytes, the same for all lanes, by four weights of its own. */
INLINE ints add_four(ints total, uint32_t four, ints weights) {
#if LANES == 16 && defined(__AVX512VNNI__)
    return (ints)_mm512_dpbusd_epi32((__m512i)total, _mm512_set1_epi32((int)four), (__m512i)weights);
#elif LANES == 8 && defined(__AVXVNNI__)
    return (ints)_mm256_dpbusd_avx_epi32((__m256i)total, _mm256_set1_epi32((int)four), (__m256i)weights);
#elif LANES == 8
    /* 16 bits hold a byte, or a weight, and pairs of their products add up in 32. */
    const __m256i even = _mm256_set1_epi32(four & 0xFF00FF), odd = _mm256_set1_epi32(four >> 8 & 0xFF00FF),
                  w = (__m256i)weights, w_even = _mm256_srai_epi16(_mm256_slli_epi16(w, 8), 8),
                  w_odd = _mm256_srai_epi16(w, 8);
    const __m256i pairs = _mm256_add_epi32(_mm256_madd_epi16(even, w_even), _mm256_madd_epi16(odd, w_odd));
    return (ints)_mm256_add_epi32((__m256i)total, pairs);
#elif SIGNED
    return (ints)vdotq_s32((int32x4_t)total, (int8x16_t)weights, vreinterpretq_s8_u32(vdupq_n_u32(four)));
#else
    for (int i = 0; i < GROUP; i++) total += (weights << (24 - 8 * i) >> 24) * (int32_t)(four >> 8 * i & 0xFF);
    return total;
#endif
}

/* The largest whole number to each side (a few less than fit: the scale and its inverse are rounded), and what is added
 * so that bytes have no sign. */
INLINE float largest(int digits) { return digits == 1 ? 127 : 8388600; }
INLINE int32_t middle(int digits) { return 128 << 8 * (digits - 1); }

/* One row x to bytes [digits, padded], the lowest first: x ~ (number of bytes - middle) * scale, which is returned. It
 * is NaN for a row with NaN or infinity. */
INLINE float quantise(int digits, int64_t inputs, int64_t padded, const float *x, uint8_t *to) {
    vec most = {0}, wrong = {0};
    float size = 1e-30f, bad = 0; /* of smaller numbers so much is lost that the scale's inverse is finite */
    for (int64_t i = 0; i < inputs; i += LANES) {
        vec some = some_of(x + i, inputs - i), magnitude = (vec)((ints)some & 0x7FFFFFFF);
        most = choose(magnitude > most, magnitude, most);
        wrong += some * 0.0f; /* NaN for NaN and for infinity, else 0 */
    }
    for (int lane = 0; lane < LANES; lane++) size = most[lane] > size ? most[lane] : size, bad += wrong[lane];
    const float scale = size / largest(digits);
    const vec by = (vec){0} + (bad == 0 ? 1 / scale : 0), half = (vec){0} + 0.5f;
    for (int64_t i = 0; i < padded; i += LANES) {
        vec some = some_of(x + i, inputs - i) * by;
        some = choose(some < 0.0f, some - half, some + half); /* rounded, when what follows the point is cut off */
        ints number = __builtin_convertvector(choose(some == some, some, half), ints) + middle(digits);
        for (int digit = 0; digit < digits; digit++) {
            bytes those = __builtin_convertvector(number >> 8 * digit, bytes) - (uint8_t)(SIGNED * 128);
            if (padded - i >= LANES) memcpy(to + digit * padded + i, &those, LANES);
            else memcpy(to + digit * padded + i, &those, padded - i);
        }
    }
    return scale + bad;
}

/* What stays the same from tile to tile. */
struct product {
    int64_t rows, inputs, padded, outputs, digits; /* padded: inputs, filled up to groups */
    const float *given;                         /* [rows, inputs] */
    uint8_t *x;                                 /* the same in bytes, [rows, digits, padded] */
    float *by;                                  /* [rows], the scales of x */
    const int8_t *w;                            /* as above */
    const int32_t *sums;                        /* [outputs, filled up], of each output's weights */
    const float *scale;                         /* [outputs] */
    float *out;                                 /* [rows, outputs] */
};

/* `count` rows of bytes from the `from`th by `blocks` blocks from the `block`th; `count`, `digits` and `blocks` are
 * constant where this is inlined. Rows of bytes that are digits of one row of x become one row of out. */
INLINE void tile(const struct product *p, int count, int digits, int blocks, int64_t from, int64_t block,
                 const char *ahead, int lines) {
    const int64_t padded = p->padded;
    const uint8_t *x = p->x + from * padded;
    const int8_t *w = p->w + block * BLOCK * padded;
    const int vecs = blocks * VECS;
    ints total[BYTE_ROWS * BLOCKS * VECS];
    for (int r = 0; r < count; r++)
        for (int v = 0; v < vecs; v++)
            total[r * vecs + v] = SIGNED * 128 * *(const ints *)(p->sums + block * BLOCK + v * LANES);
    for (int64_t k = 0; k < padded; k += GROUP) {
        ints weights[BLOCKS * VECS];
        ahead = fetch(ahead, lines);
        for (int v = 0; v < vecs; v++)
            weights[v] = *(const ints *)(w + (v / VECS * padded + k) * BLOCK + v % VECS * LANES * GROUP);
        for (int r = 0; r < count; r++) {
            uint32_t four;
            memcpy(&four, x + r * padded + k, GROUP);
            for (int v = 0; v < vecs; v++) total[r * vecs + v] = add_four(total[r * vecs + v], four, weights[v]);
        }
    }
    for (int v = 0; v < vecs; v++) {
        const int64_t output = block * BLOCK + v * LANES, left = p->outputs - output;
        if (left <= 0) break;
        const ints sums = *(const ints *)(p->sums + output);
        const vec scale = some_of(p->scale + output, left);
        for (int r = 0; r < count; r += digits) {
            /* 128 in the highest byte is the middle: that times the sum of the weights is too much. */
            ints high = total[(r + digits - 1) * vecs + v] - 128 * sums;
            vec some;
            if (digits == 1) some = __builtin_convertvector(high, vec);
            else {
                doubles number = __builtin_convertvector(high, doubles); /* whole, and below 2^53 */
                for (int digit = digits - 2; digit >= 0; digit--)
                    number = number * 256 + __builtin_convertvector(total[(r + digit) * vecs + v], doubles);
                some = __builtin_convertvector(number, vec);
            }
            const int64_t row = (from + r) / digits;
            some *= scale * p->by[row];
            to_some(p->out + row * p->outputs + output, some, left);
        }
    }
}

/* All rows of bytes by `blocks` blocks. Where they take several tiles, the weights of the next blocks are asked for
 * meanwhile: a group of this one's at each step of a tile is as much as the first tiles need. */
INLINE void rows_by_blocks(const struct product *p, int64_t count, int digits, int blocks, int64_t block) {
    const int64_t tiles = (count + BYTE_ROWS - 1) / BYTE_ROWS;
    const int few = tiles < blocks ? (int)tiles : blocks, lines = tiles > 1 ? (blocks + few - 1) / few : 0;
    const char *ahead = (const char *)(p->w + (block + blocks) * BLOCK * p->padded);
    for (int64_t from = 0; from < count; from += BYTE_ROWS) {
        const int64_t left = count - from;
        const int some = from / BYTE_ROWS < few ? lines : 0;
        if (left >= BYTE_ROWS) tile(p, BYTE_ROWS, digits, blocks, from, block, ahead, some);
        else if (digits == DIGITS) tile(p, DIGITS, digits, blocks, from, block, ahead, some);
        else if (left == 1) tile(p, 1, digits, blocks, from, block, ahead, some);
        else if (left == 2) tile(p, 2, digits, blocks, from, block, ahead, some);
#if BYTE_ROWS > 3
        else if (left == 3) tile(p, 3, digits, blocks, from, block, ahead, some);
        else if (left == 4) tile(p, 4, digits, blocks, from, block, ahead, some);
        else tile(p, 5, digits, blocks, from, block, ahead, some);
#endif
        ahead += some * (p->padded / GROUP) * LINE;
    }
}

/* Rows of one tile take a block at a time: memory is read in order, which is all that counts then. */
INLINE void multiply(const struct product *p, int64_t rows, int digits, int64_t block, int blocks) {
    const int64_t count = rows * digits;
    if (blocks == BLOCKS && count > BYTE_ROWS) rows_by_blocks(p, count, digits, BLOCKS, block);
    else
        for (int b = 0; b < blocks; b++) rows_by_blocks(p, count, digits, 1, block + b);
}

static void quantise_rows(const void *with, int64_t from, int64_t to) {
    const struct product *p = with;
    const int64_t inputs = p->inputs, padded = p->padded;
    for (int64_t r = from; r < to; r++) {
        const float *one = p->given + r * inputs;
        if (p->digits == 1) p->by[r] = quantise(1, inputs, padded, one, p->x + r * padded);
        else p->by[r] = quantise(DIGITS, inputs, padded, one, p->x + r * DIGITS * padded);
    }
}

static void multiply_blocks(const void *with, int64_t from, int64_t to) {
    const struct product *p = with;
    const int64_t all = (p->outputs + BLOCK - 1) / BLOCK;
    for (int64_t block = from * BLOCKS; block < to * BLOCKS && block < all; block += BLOCKS) {
        const int blocks = all - block < BLOCKS ? (int)(all - block) : BLOCKS;
        if (p->digits == 1) multiply(p, p->rows, 1, block, blocks);
        else multiply(p, p->rows, DIGITS, block, blocks);
    }
}

/* x [rows, inputs] times the weights, each output times its scale, to out [rows, outputs].
 *
 *   digits: 1, x is rounded to 127 steps either way of zero; 3, to 8,388,600.
 *   w, sums, scale: as `struct product` has them. room [rows, 4 + digits * padded] is to work in. */
void linear_int8(int64_t rows, int64_t inputs, int64_t outputs, int64_t digits, const float *x, const int8_t *w,
                 const int32_t *sums, const float *scale, float *out, void *room, int threads) {
    const int64_t padded = (inputs + GROUP - 1) / GROUP * GROUP, all = (outputs + BLOCK - 1) / BLOCK;
    float *by = room;
    uint8_t *to = (uint8_t *)(by + rows);
    const struct product p = {rows, inputs, padded, outputs, digits, x, to, by, w, sums, scale, out};
    in_parts(rows * inputs > 16384 ? threads : 1, rows, 1, quantise_rows, &p);
    in_parts(threads, (all + BLOCKS - 1) / BLOCKS, worth_a_part(BLOCKS * BLOCK * padded), multiply_blocks, &p);
}
