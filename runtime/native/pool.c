/* Threads that share out the parts of a loop, and take what others have not begun when they are done with their own.
 *
 * With OpenMP each thread has its share, and waits, spinning, for all the others, some sixty times in a step: where any
 * other program wanted a core, shares lay with threads that did not run, and decoding fell to a quarter. Here the caller
 * works too, to the last part that nobody has begun, and waits only for those that others are at. Who waits spins at
 * first, as waking takes long; where others want the cores he soon sleeps, so that what he waits for may run on his.
 *
 * Left to themselves, threads do the same parts of a loop each time, whose weights their caches may still hold. */

#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <time.h>

#include "native.h"

#define MOST 256          /* threads */
#define PARTS 128         /* a share has at most: many, so that who comes late, or leaves, is not waited for long */
#define PATIENCE 1000000  /* nanoseconds that a thread spins before it sleeps: longer than from step to step; */
#define CROWDED 30000     /* or, where others want the cores, than from loop to loop */
#define LATE 200000       /* that a part of a loop may take, and more */
#define PUT_OFF 50000     /* nanoseconds between two looks at the clock, if others had the core */
#define FOR_NOW 300000000 /* nanoseconds that they are believed to want it then */

/* The loop of the moment. What is read of it is that loop's if a part of it could be taken afterwards, as nothing is
 * written while there are any. */
static _Atomic(part *) run;
static _Atomic(const void *) of;
static _Atomic int64_t size, count; /* items of a part, and of all */
static _Atomic int64_t shares;    /* threads */
static _Atomic uint32_t loop;     /* its number: a new one is begun */
static struct {                   /* alone in its line of the cache, as all write to it */
    _Alignas(64) _Atomic int64_t parts;
} done;

/* The share of each thread: the number of its loop in the high half, then its end, and the part to be taken next. */
static struct {
    _Alignas(64) _Atomic uint64_t left;
} share[MOST];

static pthread_mutex_t caller = PTHREAD_MUTEX_INITIALIZER; /* whose loop it is */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;   /* around going to sleep */
static pthread_cond_t begun = PTHREAD_COND_INITIALIZER, ended = PTHREAD_COND_INITIALIZER;
static _Atomic int asleep, awaited; /* helpers that wait for a loop; whether its caller waits for its end */
static int there;                   /* helpers that were started */
static _Atomic int64_t crowded;     /* until when others are believed to want the cores */

static void relax(void) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

static int64_t now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * 1000000000 + time.tv_nsec;
}

/* Spin until it is so, or for long enough. */
#define SPIN(so, most)                                                                                                 \
    for (int64_t since = now(), before = since, at = since;                                                            \
         !(so) && at - since < (at < crowded ? CROWDED : (most)); before = at, at = now()) {                           \
        if (at - before > PUT_OFF) crowded = at + FOR_NOW;                                                             \
        for (int i = 0; i < 16 && !(so); i++) relax();                                                                 \
    }

static int64_t parts_of(int64_t count, int64_t size) { return (count + size - 1) / size; }

/* Do what is left of a share. */
static void take(int64_t which) {
    uint64_t at = share[which].left;
    for (;;) {
        const int64_t index = at & 0xFFFF, end = at >> 16 & 0xFFFF;
        if (index >= end) return;
        part *some = run;
        const void *with = of;
        const int64_t each = size, all = count;
        if (!atomic_compare_exchange_weak(&share[which].left, &at, at + 1)) continue;
        some(with, index * each, (index + 1) * each < all ? (index + 1) * each : all);
        if (atomic_fetch_add(&done.parts, 1) + 1 == parts_of(all, each) && awaited) {
            pthread_mutex_lock(&lock);
            pthread_cond_signal(&ended);
            pthread_mutex_unlock(&lock);
        }
        at = share[which].left;
    }
}

/* One's own share first, then those of others. */
static void work(int64_t own) {
    for (int64_t i = 0, all = shares; i < all; i++) take((own + i) % all);
}

static void *help(void *which) {
    uint32_t last = 0;
    sigset_t all; /* signals are the callers' */
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, NULL);
    for (;;) {
        SPIN(loop != last, PATIENCE)
        if (loop == last) {
            pthread_mutex_lock(&lock);
            asleep++;
            while (loop == last) pthread_cond_wait(&begun, &lock);
            asleep--;
            pthread_mutex_unlock(&lock);
        }
        last = loop;
        if ((intptr_t)which < shares) work((intptr_t)which);
    }
    return NULL;
}

/* After a fork there are no helpers, and whoever held a lock is gone. */
static void forget(void) {
    there = 0;
    asleep = 0;
    awaited = 0;
    for (int i = 0; i < MOST; i++) share[i].left = 0; /* or new ones would take parts of a loop of another thread's */
    pthread_mutex_init(&caller, NULL);
    pthread_mutex_init(&lock, NULL);
    pthread_cond_init(&begun, NULL);
    pthread_cond_init(&ended, NULL);
}

/* As many threads as can be had, up to those wanted, the caller one of them. */
static int started(int wanted) {
    static int known;
    if (!known) known = !pthread_atfork(NULL, NULL, forget);
    for (; there + 1 < wanted && there + 1 < MOST; there++) {
        pthread_t thread;
        if (pthread_create(&thread, NULL, help, (void *)(intptr_t)(there + 1))) break;
        pthread_detach(thread);
    }
    return there + 1 < wanted ? there + 1 : wanted;
}

void in_parts(int threads, int64_t items, int64_t least, part *some, const void *with) {
    /* Loops of two callers would take each other's threads. */
    if (threads < 2 || items <= least || pthread_mutex_trylock(&caller)) {
        some(with, 0, items);
        return;
    }
    const int64_t those = started(threads), fit = items / (those * least),
                  each = parts_of(items, those * (fit < 1 ? 1 : fit < PARTS ? fit : PARTS)), parts = parts_of(items, each);
    const uint64_t number = loop + 1;
    run = some;
    of = with;
    size = each;
    count = items;
    shares = those;
    done.parts = 0;
    for (int64_t i = 0; i < those; i++)
        share[i].left = number << 32 | (uint64_t)(parts * (i + 1) / those) << 16 | (uint64_t)(parts * i / those);
    loop = (uint32_t)number;
    if (asleep) {
        pthread_mutex_lock(&lock);
        pthread_cond_broadcast(&begun);
        pthread_mutex_unlock(&lock);
    }
    work(0);
    const int64_t since = now();
    SPIN(done.parts == parts, LATE)
    if (done.parts < parts) {
        pthread_mutex_lock(&lock);
        awaited = 1;
        while (done.parts < parts) pthread_cond_wait(&ended, &lock);
        awaited = 0;
        pthread_mutex_unlock(&lock);
        if (now() - since > LATE) crowded = now() + FOR_NOW;
    }
    pthread_mutex_unlock(&caller);
}
