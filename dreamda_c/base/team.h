/* The team of OpenMP threads. omp_set_num_threads only asks: OMP_THREAD_LIMIT, OMP_DYNAMIC, OMP_MAX_ACTIVE_LEVELS and a
 * parallel region around the call can give fewer. oneDNN splits the work of a primitive for the number asked for when
 * it is created; with a smaller team parts stay undone, and its barriers wait for ever. So primitives are created and
 * run between dd_team_begin and dd_team_end alone.
 *
 *     dd_team team;
 *     DD_TRY(dd_team_begin(&team, 2));   // every parallel region of this thread now gets exactly two threads
 *     status = dd_primitive_run(primitive); // or create some
 *     dd_team_end(&team);
 *
 * Loops of our own are right for any team; they need dd_team_ask at most. Teams may be nested; each belongs to the
 * calling thread.
 */
#ifndef DD_TEAM_H
#define DD_TEAM_H

#include "base/status.h"

#include <stdbool.h>

typedef struct {
    int threads_before, exact_before;
    bool dynamic_before;
} dd_team;

/* How many of `threads` OpenMP gives to this thread, here and now: 1 to `threads`. Measured in a parallel region. */
int dd_team_given(int threads);

/* DD_TEAM, with the reason, where OpenMP gives fewer; nothing is to be ended then. */
dd_status dd_team_begin(dd_team *team, int threads);

/* At most `threads`. */
void dd_team_ask(dd_team *team, int threads);

void dd_team_end(const dd_team *team);

/* The threads of the innermost dd_team_begin of this thread, 0 outside. */
int dd_team_exact(void);

#endif
