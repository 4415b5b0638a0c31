#include "base/status.h"

#include <stdarg.h>
#include <stdio.h>

static _Thread_local char message[512] = "no failure on record";

dd_status dd_fail(dd_status status, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    vsnprintf(message, sizeof message - 12, format, args);
    va_end(args);
    return status;
}

const char *dd_message(void)
{
    return message;
}
