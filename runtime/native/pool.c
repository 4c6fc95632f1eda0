/* Threads that take parts of a loop as they are free for it, until none is left.
 *
 * With OpenMP each thread has its share, and waits, spinning, for all the others, some sixty times in a step: where any
 * other program wanted a core, shares lay with threads that did not run, and decoding fell to a fifth. Here the caller
 * works too, to the last part that nobody has begun, and waits only for those that others are at. Who waits for long
 * sleeps, so that what he waits for may run on his core. */

#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <time.h>

#include "native.h"

#define MOST_HELPERS 255
#define PARTS 8            /* a loop has for each thread, so that who comes late, or leaves, is not waited for long */
#define CLOSED UINT32_MAX  /* more parts than any loop has */
#define PATIENCE 30000     /* nanoseconds that a thread spins before it sleeps: longer than from loop to loop */

/* The loop of the moment. `next` is its number, in the high half, and the part to be taken next. What is read of a
 * loop is that loop's if a part could be taken after it was read, as nothing is written while there are any. */
static _Atomic uint64_t next = CLOSED;
static _Atomic(part *) run;
static _Atomic(const void *) of;
static _Atomic int64_t size = 1, count;
static _Atomic int helpers;
static _Atomic int64_t done; /* parts */

static pthread_mutex_t caller = PTHREAD_MUTEX_INITIALIZER; /* whose loop it is */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;   /* around going to sleep */
static pthread_cond_t begun = PTHREAD_COND_INITIALIZER, ended = PTHREAD_COND_INITIALIZER;
static _Atomic int asleep, awaited; /* helpers that wait for a loop; whether its caller waits for its end */
static int there;                   /* helpers that were started */

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

static int64_t parts_of(int64_t count, int64_t size) { return (count + size - 1) / size; }

/* Take parts of the loop and do them, up to the last. */
static void take_parts(void) {
    uint64_t at = next;
    for (;;) {
        part *some = run;
        const void *with = of;
        const int64_t each = size, all = count, parts = parts_of(all, each), index = at & UINT32_MAX;
        if (index >= parts) return;
        if (!atomic_compare_exchange_weak(&next, &at, at + 1)) continue;
        some(with, index * each, (index + 1) * each < all ? (index + 1) * each : all);
        if (atomic_fetch_add(&done, 1) + 1 == parts && awaited) {
            pthread_mutex_lock(&lock);
            pthread_cond_signal(&ended);
            pthread_mutex_unlock(&lock);
        }
        at = next;
    }
}

static void *help(void *which) {
    uint64_t last = 0;
    sigset_t all; /* signals are the callers' */
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, NULL);
    for (;;) {
        for (int64_t since = now(); next >> 32 == last && now() - since < PATIENCE;)
            for (int i = 0; i < 16 && next >> 32 == last; i++) relax();
        if (next >> 32 == last) {
            pthread_mutex_lock(&lock);
            asleep++;
            while (next >> 32 == last) pthread_cond_wait(&begun, &lock);
            asleep--;
            pthread_mutex_unlock(&lock);
        }
        last = next >> 32;
        if ((intptr_t)which < helpers) take_parts();
    }
    return NULL;
}

/* After a fork there are no helpers, and whoever held a lock is gone. */
static void forget(void) {
    there = 0;
    asleep = 0;
    awaited = 0;
    pthread_mutex_init(&caller, NULL);
    pthread_mutex_init(&lock, NULL);
    pthread_cond_init(&begun, NULL);
    pthread_cond_init(&ended, NULL);
}

/* As many helpers as can be had, up to those wanted. */
static int started(int wanted) {
    static int known;
    if (!known) known = !pthread_atfork(NULL, NULL, forget);
    for (; there < wanted && there < MOST_HELPERS; there++) {
        pthread_t thread;
        if (pthread_create(&thread, NULL, help, (void *)(intptr_t)there)) break;
        pthread_detach(thread);
    }
    return there < wanted ? there : wanted;
}

void in_parts(int threads, int64_t items, part *some, const void *with) {
    /* Loops of two callers would take each other's threads. */
    if (threads < 2 || items < 2 || pthread_mutex_trylock(&caller)) {
        some(with, 0, items);
        return;
    }
    const uint64_t number = (next >> 32) + 1;
    const int64_t each = parts_of(items, (int64_t)threads * PARTS), parts = parts_of(items, each);
    helpers = started(threads - 1);
    run = some;
    of = with;
    size = each;
    count = items;
    done = 0;
    next = number << 32;
    if (asleep) {
        pthread_mutex_lock(&lock);
        pthread_cond_broadcast(&begun);
        pthread_mutex_unlock(&lock);
    }
    take_parts();
    for (int64_t since = now(); done < parts && now() - since < PATIENCE;)
        for (int i = 0; i < 16 && done < parts; i++) relax();
    if (done < parts) {
        pthread_mutex_lock(&lock);
        awaited = 1;
        while (done < parts) pthread_cond_wait(&ended, &lock);
        awaited = 0;
        pthread_mutex_unlock(&lock);
    }
    next = number << 32 | CLOSED;
    pthread_mutex_unlock(&caller);
}
