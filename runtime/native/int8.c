/* x W^T for weights of 8 bits, in integers: whatever the order of its sums, a row's result is the same bit for bit.
 *
 * x is rounded to whole numbers, row by row: of 8 bits, or of 24, which is all that a float of the row's largest
 * magnitude has. These are cut into digits. Each digit's products with the weights add up in 32 bits, exactly; only then
 * the digits' sums become one number, and that a float.
 *
 * With AVX512-VNNI, AVX-VNNI or ARM's dot product digits are bytes: one instruction multiplies 64 of them, or 32 or 16,
 * and adds them up, so that three sums take fewer instructions than making the weights floats. Other x86 processors
 * multiply 16 bits so, and add up pairs: for them two digits have 12 bits each.
 *
 * Weights lie in blocks of 16 outputs, each in groups of 4 inputs, [outputs / 16, inputs / 4, 16, 4], filled up with
 * zeros: what is loaded at once belongs to 16 outputs, whose sums are then in one register, and a block is read from
 * its first byte to its last. */

#include "native.h"
#include "vectors.h"

#define BLOCK 16
#define VECS (BLOCK / LANES) /* vectors of a block */
#define GROUP 4

#if defined(__AVX512VNNI__) || (LANES == 8 && defined(__AVXVNNI__)) || defined(__ARM_FEATURE_DOTPROD)
#define BITS 8
#elif defined(__AVX512BW__) || (LANES < 16 && defined(__SSE2__))
#define BITS 12
#else
#define BITS 8 /* in plain C */
#endif
#if BITS == 8
#define DIGITS 3
typedef uint8_t cell; /* holds a digit */
#else
#define DIGITS 2
typedef uint16_t cell;
#endif
/* Rows of digits, and blocks, whose sums are held in registers at once; rows are a multiple of DIGITS. */
#if defined(__AVX512VNNI__)
#define ROWS 6
#define BLOCKS 4
#elif BITS == 12 && LANES > 4
#define ROWS 4
#define BLOCKS (LANES / 8)
#else
#define ROWS DIGITS
#define BLOCKS 1
#endif
/* Inputs whose products with one digit add up in 32 bits, (2^BITS - 1) * 127 for each; and how many there are at most, see
 * model/int8_weight.py. */
#define MOST_AT_ONCE (1 << (24 - BITS))
#define MOST_INPUTS (1 << 16)
#if defined(__ARM_FEATURE_DOTPROD)
#define SIGNED 1 /* the processor multiplies bytes with a sign: they are kept 128 smaller, and totals begin with the rest */
#else
#define SIGNED 0
#endif

typedef cell cells __attribute__((vector_size(sizeof(cell) * LANES)));
typedef int16_t words __attribute__((vector_size(4 * LANES)));
typedef double doubles __attribute__((vector_size(8 * LANES)));

#if BITS == 12
/* Adds to each lane two products, of its lower and of its upper 16 bits; a's are the same for all lanes. */
INLINE ints add_two(ints total, const cell *a, words b) {
    int32_t two;
    memcpy(&two, a, sizeof two);
#if LANES == 16
    return total + (ints)_mm512_madd_epi16(_mm512_set1_epi32(two), (__m512i)b);
#elif LANES == 8
    return total + (ints)_mm256_madd_epi16(_mm256_set1_epi32(two), (__m256i)b);
#else
    return total + (ints)_mm_madd_epi16(_mm_set1_epi32(two), (__m128i)b);
#endif
}
#endif

/* Adds to each lane four products: four digits, the same for all lanes, by four weights of its own. */
INLINE ints add_four(ints total, const cell *digits, ints weights) {
#if BITS == 12
    const words w = (words)weights; /* the even ones below, the odd ones above */
    return add_two(add_two(total, digits, w << 8 >> 8), digits + 2, w >> 8);
#else
    uint32_t four;
    memcpy(&four, digits, sizeof four);
#if LANES == 16 && defined(__AVX512VNNI__)
    return (ints)_mm512_dpbusd_epi32((__m512i)total, _mm512_set1_epi32((int)four), (__m512i)weights);
#elif LANES == 8 && defined(__AVXVNNI__)
    return (ints)_mm256_dpbusd_avx_epi32((__m256i)total, _mm256_set1_epi32((int)four), (__m256i)weights);
#elif SIGNED
    return (ints)vdotq_s32((int32x4_t)total, (int8x16_t)weights, vreinterpretq_s8_u32(vdupq_n_u32(four)));
#else
    for (int i = 0; i < GROUP; i++) total += (weights << (24 - 8 * i) >> 24) * (int32_t)(four >> 8 * i & 0xFF);
    return total;
#endif
#endif
}

/* The largest whole number to each side (a few less than fit: the scale and its inverse are rounded), and what is added
 * so that digits have no sign. */
INLINE float largest(int digits) { return digits == 1 ? 127 : 8388600; }
INLINE int32_t middle(int digits) { return digits == 1 ? 128 : 1 << 23; }

/* One row x to digits [digits, padded], the lowest first: x ~ (number of digits - middle) * scale, which is returned. It
 * is NaN for a row with NaN or infinity. */
INLINE float quantise(int digits, int64_t inputs, int64_t padded, const float *x, cell *to) {
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
            cells those = __builtin_convertvector(number >> BITS * digit & ((1 << BITS) - 1), cells);
#if BITS == 12
#define EVEN_FIRST_AT(by, lane) (((lane) & ~3) | ((lane) & 1) << 1 | ((lane) >> 1 & 1))
            those = __builtin_shufflevector(those, those, EACH(EVEN_FIRST_AT, 0)); /* of four, as add_four takes them */
#endif
            those -= SIGNED * 128;
            if (padded - i >= LANES) memcpy(to + digit * padded + i, &those, sizeof those);
            else memcpy(to + digit * padded + i, &those, sizeof(cell) * (padded - i));
        }
    }
    return scale + bad;
}

/* What stays the same from tile to tile. */
struct product {
    int64_t rows, inputs, padded, outputs, digits; /* padded: inputs, filled up to groups */
    const float *given;                         /* [rows, inputs] */
    cell *x;                                    /* the same in digits, [rows, digits, padded] */
    float *by;                                  /* [rows], the scales of x */
    const int8_t *w;                            /* as above */
    const int32_t *sums;                        /* [outputs, filled up], of each output's weights */
    const float *scale;                         /* [outputs] */
    float *out;                                 /* [rows, outputs] */
};

/* `count` rows of digits from the `from`th by `blocks` blocks from the `block`th; `count`, `digits` and `blocks` are
 * constant where this is inlined. Rows that are the digits of one row of x become one row of out. */
INLINE void tile(const struct product *p, int count, int digits, int blocks, int64_t from, int64_t block,
                 const char *ahead, int lines) {
    const int64_t padded = p->padded;
    const cell *x = p->x + from * padded;
    const int8_t *w = p->w + block * BLOCK * padded;
    const int vecs = blocks * VECS;
    ints total[ROWS * BLOCKS * VECS];
    doubles number[ROWS / DIGITS * BLOCKS * VECS]; /* whole, and below 2^53 */
    const int once = digits == 1 || MOST_AT_ONCE >= MOST_INPUTS;
    int64_t k = 0;
    do {
        const int64_t start = once ? 0 : k, end = once || padded - k <= MOST_AT_ONCE ? padded : k + MOST_AT_ONCE;
        for (int r = 0; r < count; r++)
            for (int v = 0; v < vecs; v++)
                total[r * vecs + v] = SIGNED * 128 * *(const ints *)(p->sums + block * BLOCK + v * LANES);
        for (; k < end; k += GROUP) {
            ints weights[BLOCKS * VECS];
            ahead = fetch(ahead, lines);
            for (int v = 0; v < vecs; v++)
                weights[v] = *(const ints *)(w + (v / VECS * padded + k) * BLOCK + v % VECS * LANES * GROUP);
            for (int r = 0; r < count; r++)
                for (int v = 0; v < vecs; v++)
                    total[r * vecs + v] = add_four(total[r * vecs + v], x + r * padded + k, weights[v]);
        }
        for (int r = 0; r < count && digits > 1; r += digits)
            for (int v = 0; v < vecs; v++) {
                doubles some = {0};
                for (int digit = digits - 1; digit >= 0; digit--)
                    some = some * (1 << BITS) + __builtin_convertvector(total[(r + digit) * vecs + v], doubles);
                doubles *to = number + r / digits * vecs + v;
                *to = start ? *to + some : some;
            }
    } while (!once && k < padded);
    for (int v = 0; v < vecs; v++) {
        const int64_t output = block * BLOCK + v * LANES, left = p->outputs - output;
        if (left <= 0) break;
        const ints sums = *(const ints *)(p->sums + output);
        const vec scale = some_of(p->scale + output, left);
        for (int r = 0; r < count; r += digits) {
            /* The middle times the sum of the weights is too much. */
            vec some;
            if (digits == 1) some = __builtin_convertvector(total[r * vecs + v] - middle(digits) * sums, vec);
            else {
                const doubles one = number[r / digits * vecs + v], more = __builtin_convertvector(sums, doubles);
                some = __builtin_convertvector(one - more * middle(digits), vec);
            }
            const int64_t row = (from + r) / digits;
            some *= scale * p->by[row];
            to_some(p->out + row * p->outputs + output, some, left);
        }
    }
}

/* All rows of digits by `blocks` blocks. Where they take several tiles, the weights of the next blocks are asked for
 * meanwhile: a group of this one's at each step of a tile is as much as the first tiles need. */
INLINE void rows_by_blocks(const struct product *p, int64_t count, int digits, int blocks, int64_t block) {
    const int64_t tiles = (count + ROWS - 1) / ROWS;
    const int few = tiles < blocks ? (int)tiles : blocks, lines = tiles > 1 ? (blocks + few - 1) / few : 0;
    const char *ahead = (const char *)(p->w + (block + blocks) * BLOCK * p->padded);
    for (int64_t from = 0; from < count; from += ROWS) {
        const int64_t left = count - from;
        const int some = from / ROWS < few ? lines : 0;
        if (left >= ROWS) tile(p, ROWS, digits, blocks, from, block, ahead, some);
        else if (digits == DIGITS) tile(p, DIGITS, digits, blocks, from, block, ahead, some);
        else if (left == 1) tile(p, 1, digits, blocks, from, block, ahead, some);
        else if (left == 2) tile(p, 2, digits, blocks, from, block, ahead, some);
#if ROWS > 3
        else if (left == 3) tile(p, 3, digits, blocks, from, block, ahead, some);
#endif
#if ROWS > 4
        else if (left == 4) tile(p, 4, digits, blocks, from, block, ahead, some);
        else tile(p, 5, digits, blocks, from, block, ahead, some);
#endif
        ahead += some * (p->padded / GROUP) * LINE;
    }
}

/* Rows of one tile take a block at a time: memory is read in order, which is all that counts then. */
INLINE void multiply(const struct product *p, int64_t rows, int digits, int64_t block, int blocks) {
    const int64_t count = rows * digits;
    if (blocks == BLOCKS && count > ROWS) rows_by_blocks(p, count, digits, BLOCKS, block);
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
 *   bytes: 1, x is rounded to 127 steps either way of zero; 3, to 8,388,600.
 *   w, sums, scale: as `struct product` has them. room [rows, 4 + (bytes + 1) * padded], in bytes, is to work in. */
void linear_int8(int64_t rows, int64_t inputs, int64_t outputs, int64_t bytes, const float *x, const int8_t *w,
                 const int32_t *sums, const float *scale, float *out, void *room, int threads) {
    const int64_t padded = (inputs + GROUP - 1) / GROUP * GROUP, all = (outputs + BLOCK - 1) / BLOCK,
                  digits = bytes == 1 ? 1 : DIGITS;
    float *by = room;
    const struct product p = {rows, inputs, padded, outputs, digits, x, (cell *)(by + rows), by, w, sums, scale, out};
    in_parts(rows * inputs > 16384 ? threads : 1, rows, 1, quantise_rows, &p);
    in_parts(threads, (all + BLOCKS - 1) / BLOCKS, worth_a_part(BLOCKS * BLOCK * padded), multiply_blocks, &p);
}
