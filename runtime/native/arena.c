/* Runs of slots that change their place in the arena. */

#include <string.h>

#include "native.h"

/* Bytes of a plane. */
struct move {
    int64_t from, to, length;
};

struct planes {
    int64_t bytes, count;
    const struct move *moves;
    char *first;
};

static void move_planes(const void *with, int64_t from, int64_t to) {
    const struct planes *p = with;
    for (int64_t plane = from; plane < to; plane++)
        for (int64_t i = 0; i < p->count; i++) {
            char *at = p->first + plane * p->bytes;
            memmove(at + p->moves[i].to, at + p->moves[i].from, p->moves[i].length);
        }
}

/* All moves in order, in each plane [bytes]; a move may overlap itself. */
void move_slots(int64_t planes, int64_t bytes, char *first, const struct move *moves, int64_t count, int threads) {
    const struct planes all = {bytes, count, moves, first};
    in_parts(threads, planes, 1, move_planes, &all);
}
