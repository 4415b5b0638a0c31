#define _GNU_SOURCE
#include "base/process.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <time.h>

static atomic_bool used, forked, watched;
static atomic_int busy;

/* Runs in the child, where only the forking thread is left. */
static void in_child(void)
{
    if (atomic_load(&used)) {
        atomic_store(&forked, true);
    }
    atomic_store(&busy, 0);
}

dd_status dd_process_watch(void)
{
    if (!atomic_exchange(&watched, true) && pthread_atfork(NULL, NULL, in_child) != 0) {
        return dd_fail(DD_NOMEM, "out of memory for the handler of forks");
    }
    return DD_OK;
}

dd_status dd_process_enter(void)
{
    if (atomic_load(&forked)) {
        return dd_fail(
            DD_FORKED,
            "the engine was used before this process was forked, and its threads do not survive a fork: start "
            "processes with multiprocessing's \"spawn\", or fork before the engine is first used");
    }
    atomic_store(&used, true);
    return DD_OK;
}

void dd_process_busy(void)
{
    atomic_fetch_add(&busy, 1);
}

void dd_process_idle(void)
{
    atomic_fetch_sub(&busy, 1);
}

void dd_process_wait(void)
{
    while (atomic_load(&busy) > 0) {
        nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
    }
}
