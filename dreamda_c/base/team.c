#include "base/team.h"

#include <omp.h>

static _Thread_local int exact;

void dd_team_ask(dd_team *team, int threads)
{
    *team = (dd_team){.threads_before = omp_get_max_threads(),
                      .exact_before = exact,
                      .dynamic_before = omp_get_dynamic() != 0};
    omp_set_dynamic(0); /* or the load of the machine would decide */
    omp_set_num_threads(threads);
    exact = 0;
}

void dd_team_end(const dd_team *team)
{
    exact = team->exact_before;
    omp_set_num_threads(team->threads_before);
    omp_set_dynamic(team->dynamic_before);
}

/* With the number of threads already asked for. Outside of parallel regions the answer follows from `threads` and the
   two settings, so it is measured once for them. */
static int measure(int threads)
{
    static _Thread_local struct {
        int threads, limit, levels, given;
    } last;
    const int limit = omp_get_thread_limit(), levels = omp_get_max_active_levels();
    int given = 1;
    if (threads == 1 || omp_in_parallel()) { /* inside of a region oneDNN keeps to the calling thread */
        return 1;
    }
    if (omp_get_level() == 0 && last.threads == threads && last.limit == limit && last.levels == levels) {
        return last.given;
    }
#pragma omp parallel
    {
#pragma omp master
        given = omp_get_num_threads();
    }
    if (omp_get_level() == 0) {
        last.threads = threads;
        last.limit = limit;
        last.levels = levels;
        last.given = given;
    }
    return given;
}

int dd_team_given(int threads)
{
    dd_team team;
    dd_team_ask(&team, threads);
    int given = measure(threads);
    dd_team_end(&team);
    return given;
}

static dd_status too_few(int threads, int given)
{
    if (omp_in_parallel()) {
        return dd_fail(
            DD_TEAM,
            "threads: made for %d threads, but called inside of an OpenMP parallel region, where there is one: call "
            "it from outside the region, or make it with threads=1",
            threads);
    }
    if (omp_get_thread_limit() < threads) {
        return dd_fail(
            DD_TEAM,
            "threads: %d are needed, but OpenMP gives %d (OMP_THREAD_LIMIT=%d): raise OMP_THREAD_LIMIT, or use "
            "threads=%d",
            threads, given, omp_get_thread_limit(), given);
    }
    if (omp_get_max_active_levels() < 1) {
        return dd_fail(
            DD_TEAM,
            "threads: %d are needed, but OpenMP gives %d (OMP_MAX_ACTIVE_LEVELS=%d): unset OMP_MAX_ACTIVE_LEVELS, or "
            "use threads=%d",
            threads, given, omp_get_max_active_levels(), given);
    }
    return dd_fail(DD_TEAM, "threads: %d are needed, but OpenMP gives %d: use threads=%d", threads, given, given);
}

dd_status dd_team_begin(dd_team *team, int threads)
{
    dd_team_ask(team, threads);
    int given = measure(threads);
    if (given != threads) {
        dd_team_end(team);
        return too_few(threads, given);
    }
    exact = threads;
    return DD_OK;
}

int dd_team_exact(void)
{
    return exact;
}
