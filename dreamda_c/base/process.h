/* The life of the process around the engine: its threads do not survive a fork, and have to be at rest when the process
 * ends.
 *
 *     DD_TRY(dd_process_enter());   // before anything that may use threads
 *     dd_process_busy();
 *     compute(); // without the GIL
 *     dd_process_idle();
 */
#ifndef DD_PROCESS_H
#define DD_PROCESS_H

#include "base/status.h"

/* Registers what has to happen at a fork, once a process. DD_NOMEM on failure. */
dd_status dd_process_watch(void);

/* DD_FORKED in the child of a process that had entered before it forked. */
dd_status dd_process_enter(void);

void dd_process_busy(void);
void dd_process_idle(void);

/* Returns when no call is running. To be called before the process ends, which destroys what oneDNN and OpenMP compute
   with. */
void dd_process_wait(void);

#endif
