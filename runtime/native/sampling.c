/* A token for each row of logits, by the rule of ds2ds.kernels.sampling: the same tokens as its plain version in NumPy,
 * since what decides is computed in the same operations (elementary.py, philox.py), each rounded in one way only. */

#include <stdlib.h>

#include "native.h"
#include "noise.h"

typedef int64_t masses __attribute__((vector_size(8 * LANES)));

enum status { OK, NOT_FINITE, EMPTY };

#define MASS_ONE 0x1p44f
#define RUN 64           /* tokens of which the largest is looked for */
#define MOST_NOISE 23.0f

INLINE int any(ints where) {
#if defined(__AVX512F__)
    return _mm512_test_epi32_mask((__m512i)where, (__m512i)where) != 0;
#elif defined(__AVX2__)
    return !_mm256_testz_si256((__m256i)where, (__m256i)where);
#else
    int some = 0;
    for (int i = 0; i < LANES; i++) some |= where[i];
    return some;
#endif
}

/* The largest score and its token, the lowest of those that have it. */
struct best {
    float score;
    int32_t token;
};

INLINE void take_better(struct best *best, vec score, ints ids) {
    if (!__builtin_expect(any(score >= best->score), 0)) return;
    for (int i = 0; i < LANES; i++)
        if (score[i] > best->score || (score[i] == best->score && ids[i] < best->token))
            *best = (struct best){score[i], ids[i]};
}

/* A row, or what is left of it past its end: -inf. */
INLINE vec logits_of(const float *x, int64_t left) {
    if (left >= LANES) return of_float(x);
    vec some = all(-INFINITY);
    if (left > 0) memcpy(&some, x, sizeof(float) * left);
    return some;
}

/* The largest logit; NaN if one is. */
static float largest_of(const float *x, int64_t vocab) {
    vec most = all(-INFINITY);
    ints wrong = {0};
    for (int64_t i = 0; i < vocab; i += LANES) {
        const vec some = logits_of(x + i, vocab - i);
        most = choose(some > most, some, most);
        wrong |= some != some;
    }
    float top = most[0];
    for (int lane = 0; lane < LANES; lane++) {
        top = most[lane] > top ? most[lane] : top;
        if (wrong[lane]) return NAN;
    }
    return top;
}

static int32_t first_of(const float *x, int64_t vocab, float top) {
    int64_t i = 0;
    while (i + LANES <= vocab && !any(of_float(x + i) == top)) i += LANES;
    while (x[i] != top) i++;
    return (int32_t)i;
}

INLINE masses mass_of(vec weight) { return __builtin_convertvector(weight * MASS_ONE, masses); }

/* The mass of a whole row: it is added up in integers, and so the same in any order. */
static int64_t total_mass(const float *x, int64_t vocab, float top, float temperature) {
    masses total = {0};
    for (int64_t i = 0; i < vocab; i += LANES)
        total += mass_of(exp_exact((logits_of(x + i, vocab - i) - top) / temperature));
    int64_t all = 0;
    for (int lane = 0; lane < LANES; lane++) all += total[lane];
    return all;
}

static int32_t draw_any(const float *x, int64_t vocab, float top, float temperature, uint64_t seed, uint64_t position) {
    struct best best = {-INFINITY, 0};
    for (int64_t first = 0; first < vocab; first += SOME) {
        vec y[SOME / LANES], most = all(-INFINITY);
        for (int i = 0; i < SOME / LANES; i++) {
            y[i] = (logits_of(x + first + LANES * i, vocab - first - LANES * i) - top) / temperature;
            most = choose(y[i] > most, y[i], most);
        }
        if (!any(most + MOST_NOISE > best.score)) continue;
        vec noise[SOME / LANES];
        noise_of_some((int32_t)first, seed, position, noise);
        for (int i = 0; i < SOME / LANES; i++)
            take_better(&best, y[i] + noise[i], lanes + (int32_t)(first + LANES * i));
    }
    return best.token;
}

/* A token among those that rank high: its logit as a number that is the smaller the larger the logit, and the id. */
struct candidate {
    uint32_t key;
    int32_t id;
};

/* Its own inverse. */
INLINE uint32_t flipped(uint32_t bits) { return bits ^ (~(uint32_t)((int32_t)bits >> 31) & 0x7FFFFFFF); }

static uint32_t key_of(float x) {
    x += 0.0f; /* the two zeros tie */
    uint32_t bits;
    memcpy(&bits, &x, 4);
    return flipped(bits);
}

static float logit_of(uint32_t key) {
    const uint32_t bits = flipped(key);
    float x;
    memcpy(&x, &bits, 4);
    return x;
}

/* By key, and where keys are the same as they were, that is by id. `spare` is room for as many. */
static void sort(struct candidate *candidates, struct candidate *spare, int64_t count) {
    struct candidate *from = candidates, *to = spare;
    for (int shift = 0; shift < 32; shift += 8) {
        int64_t places[256] = {0}, at = 0;
        for (int64_t i = 0; i < count; i++) places[from[i].key >> shift & 255]++;
        for (int digit = 0; digit < 256; digit++) {
            const int64_t these = places[digit];
            places[digit] = at;
            at += these;
        }
        for (int64_t i = 0; i < count; i++) to[places[from[i].key >> shift & 255]++] = from[i];
        struct candidate *other = from;
        from = to;
        to = other;
    }
}

/* Those with y = (x - top) / temperature of at least `bound` and x above -inf, by id; returns how many. */
static int64_t collect(const float *x, int64_t vocab, float top, float temperature, float bound,
                       struct candidate *candidates) {
    int64_t count = 0;
    for (int64_t i = 0; i < vocab; i += LANES) {
        const vec some = logits_of(x + i, vocab - i), y = (some - top) / temperature;
        const ints fit = (y >= bound) & (some > -INFINITY);
        if (!any(fit)) continue;
        for (int lane = 0; lane < LANES; lane++)
            if (fit[lane]) candidates[count++] = (struct candidate){key_of(some[lane]), (int32_t)i + lane};
    }
    return count;
}

/* A logit that at least k tokens reach, and few more do: the k-th largest of the largest of each run; -inf where there
 * are not so many. */
static float reached_by(const float *x, int64_t vocab, int64_t k, struct candidate *room, struct candidate *spare) {
    const int64_t runs = vocab / RUN;
    if (runs < k) return -INFINITY;
    for (int64_t run = 0; run < runs; run++) room[run] = (struct candidate){key_of(largest_of(x + run * RUN, RUN)), 0};
    sort(room, spare, runs);
    return logit_of(room[k - 1].key);
}

struct settings {
    const float *temperature;
    const int32_t *top_k;
    const float *top_p, *min_p;
    const int64_t *seed, *position;
};

/* The mass at which top-p stops; beyond any sum where it is off. */
INLINE int64_t target_of(int64_t total, float top_p) {
    return top_p < 1 ? (int64_t)ceil((double)total * (double)top_p) : INT64_MAX;
}

/* Some candidates' y, exp of it and mass; past their end nothing. */
INLINE vec weights_of(const struct candidate *candidates, int64_t left, float top, float temperature, ints *ids, vec *y) {
    vec x = all(-INFINITY);
    for (int lane = 0; lane < LANES && lane < left; lane++) {
        x[lane] = logit_of(candidates[lane].key);
        (*ids)[lane] = candidates[lane].id;
    }
    *y = (x - top) / temperature;
    return exp_exact(*y);
}

/* Top-k, top-p and min-p; -1 where there is no memory for it. */
static int32_t draw_ranked(const float *x, int64_t vocab, float top, const struct settings *s, int64_t row) {
    const float temperature = s->temperature[row], top_p = s->top_p[row], min_p = s->min_p[row];
    const int64_t k = s->top_k[row];
    struct candidate *candidates = malloc(2 * vocab * sizeof(struct candidate));
    if (!candidates) return -1;
    struct candidate *spare = candidates + vocab;
    int64_t count, target;
    if (0 < k && k < vocab) {
        const float bound = reached_by(x, vocab, k, candidates, spare);
        count = collect(x, vocab, 0, 1, bound, candidates);
        sort(candidates, spare, count);
        count = count < k ? count : k;
        masses total = {0};
        int64_t all = 0;
        for (int64_t at = 0; at < count && top_p < 1; at += LANES) {
            ints ids;
            vec y;
            total += mass_of(weights_of(candidates + at, count - at, top, temperature, &ids, &y));
        }
        for (int lane = 0; lane < LANES; lane++) all += total[lane];
        target = target_of(all, top_p);
    } else {
        const int64_t total = total_mass(x, vocab, top, temperature);
        target = target_of(total, top_p);
        /* Tokens of at most this mass sum to no more than what top-p may drop. The margin covers the rounding of exp. */
        const double spared = top_p < 1 ? (double)((total - target) / vocab) / 0x1p44 : 0;
        const double bound = log(spared > (double)min_p ? spared : (double)min_p) - 0.01;
        count = collect(x, vocab, top, temperature, (float)bound, candidates);
        sort(candidates, spare, count);
    }
    struct best best = {-INFINITY, INT32_MAX};
    int64_t before = 0;
    for (int64_t at = 0; at < count && before < target; at += LANES) {
        ints ids = {0}, kept = {0};
        vec y;
        const vec weight = weights_of(candidates + at, count - at, top, temperature, &ids, &y);
        const masses mass = mass_of(weight);
        for (int lane = 0; lane < LANES && at + lane < count && before < target; lane++) {
            kept[lane] = weight[lane] >= min_p ? -1 : 0;
            before += mass[lane];
        }
        const vec score = y + noise_of(ids, (uint64_t)s->seed[row], (uint64_t)s->position[row]);
        take_better(&best, choose(kept, score, all(-INFINITY)), ids);
    }
    free(candidates);
    return best.token;
}

/* x [vocab]: logits after the repetition penalty of the listed tokens; however often one is listed, it counts once. */
static void penalise(const float *given, int64_t vocab, float by, const int64_t *listed, int64_t count, float *x) {
    memcpy(x, given, sizeof(float) * vocab);
    for (int64_t i = 0; i < count; i++) {
        if (listed[i] < 0) continue;
        const float old = given[listed[i]];
        x[listed[i]] = old > 0 ? old / by : old * by;
    }
}

/* What is drawn for each row, see sample_rows. */
struct draws {
    int64_t vocab, stride, most;
    const float *given, *penalty;
    const struct settings *settings;
    const int64_t *listed;
    int64_t *tokens;
    float *logprobs;
    int32_t *status;
    int *failed; /* atomic */
};

static int draw(const struct draws *d, int64_t row) {
    const int64_t vocab = d->vocab, k = d->settings->top_k[row];
    const struct settings *s = d->settings;
    const float *raw = d->given + row * d->stride, temperature = s->temperature[row];
    float *penalised = d->penalty ? malloc(sizeof(float) * vocab) : NULL;
    const float *x = d->penalty ? penalised : raw;
    int64_t token = -1;
    d->tokens[row] = -1;
    d->logprobs[row] = NAN;
    d->status[row] = OK;
    if (!x) return 1;
    if (penalised) penalise(raw, vocab, d->penalty[row], d->listed + row * d->most, d->most, penalised);
    const float top = largest_of(x, vocab);
    if (!(top < INFINITY)) d->status[row] = NOT_FINITE;
    else if (top == -INFINITY) d->status[row] = EMPTY;
    else if (temperature == 0) token = first_of(x, vocab, top);
    else if ((0 < k && k < vocab) || s->top_p[row] < 1 || s->min_p[row] > 0) token = draw_ranked(x, vocab, top, s, row);
    else token = draw_any(x, vocab, top, temperature, (uint64_t)s->seed[row], (uint64_t)s->position[row]);
    free(penalised);
    if (token < 0) return d->status[row] == OK;
    const float largest = d->penalty ? largest_of(raw, vocab) : top;
    const double total = (double)total_mass(raw, vocab, largest, 1) / 0x1p44;
    d->tokens[row] = token;
    d->logprobs[row] = (float)((double)raw[token] - (double)largest - log(total));
    return 0;
}

static void draw_rows(const void *with, int64_t from, int64_t to) {
    const struct draws *d = with;
    for (int64_t row = from; row < to; row++)
        if (draw(d, row)) __atomic_fetch_add(d->failed, 1, __ATOMIC_RELAXED);
}

/* Tokens int64 [rows], -1 where there is none, log-probabilities float [rows] and statuses int32 [rows].
 *
 *   given [rows, vocab]: logits, their rows `stride` floats apart.
 *   settings: of each row, in range. penalty [rows] and listed [rows, most], token ids or -1; or NULL.
 *   Returns how many rows found no memory. */
int sample_rows(int64_t rows, int64_t vocab, const float *given, int64_t stride, const struct settings *settings,
                const float *penalty, const int64_t *listed, int64_t most, int64_t *tokens, float *logprobs,
                int32_t *status, int threads) {
    int failed = 0;
    const struct draws all = {vocab,  stride, most,   given,    penalty, settings,
                              listed, tokens, logprobs, status, &failed};
    in_parts(threads, rows, 1, draw_rows, &all);
    return failed;
}
